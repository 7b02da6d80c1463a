"""Files of the first host that the processes of the others read, too: checkpoints, and an adapter to begin with."""

import shutil
from pathlib import Path

from tuitune.errors import TuituneError
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run
from tuitune.train import checkpoints
from tuitune.train.ranks import Ranks

_CHUNK_BYTES = 64 * 2**20
_INITIAL_ADAPTER = "initial_adapter"


def on_every_host(checkpoint: Path | None, run: Run, ranks: Ranks) -> Path | None:
    """The checkpoint of the first process, in each host's folder of the run; all processes call this."""
    if not ranks.span_hosts:
        return checkpoint
    name: str | None = ranks.share(checkpoint.name if checkpoint else None)
    if name is None:
        return None
    if Path(name).name != name or name == "..":
        raise _outside()
    target = run.checkpoints / name
    _carry(checkpoint, target, ranks)
    if (problem := checkpoints.damage(target)) is not None:
        raise TuituneError("{name} did not come whole from the first host: {problem}.", name=name, problem=problem)
    return target


def with_initial_adapter(recipe: Recipe, run: Run, ranks: Ranks) -> Recipe:
    """The recipe, on other hosts with the first one's `lora.init_adapter` brought there; all processes call this."""
    folder = recipe.lora.init_adapter
    if folder is None or not ranks.span_hosts:
        return recipe
    target = run.folder / _INITIAL_ADAPTER
    _carry(Path(folder), target, ranks)
    own = folder if ranks.is_first else str(target)
    return recipe.model_copy(update={"lora": recipe.lora.model_copy(update={"init_adapter": own})})


def _carry(source: Path | None, target: Path, ranks: Ranks) -> None:
    """Bring the files of the first process's `source` to `target` on the other hosts, in place of what is there."""
    files = [file for file in source.rglob("*") if file.is_file()] if ranks.is_first and source else []
    sizes = ranks.share({str(file.relative_to(source)): file.stat().st_size for file in files if source})
    if any(not (target / relative).resolve().is_relative_to(target.resolve()) for relative in sizes):
        raise _outside()
    writes = ranks.writes_here and not ranks.is_first
    if writes:
        shutil.rmtree(target, ignore_errors=True)
    for relative, size in sizes.items():
        _copy(source / relative if ranks.is_first and source else None, size, target / relative, writes, ranks)
    ranks.wait()


def _outside() -> TuituneError:
    return TuituneError("The first host sends files that belong outside the run's folder: nothing was written.")


def _copy(source: Path | None, size: int, target: Path, writes: bool, ranks: Ranks) -> None:
    """Share a file of `size` bytes, and write it where this process `writes`."""
    if writes:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.write_bytes(b"")
    opened = source.open("rb") if source else None
    try:
        for _ in range(0, size, _CHUNK_BYTES):
            data = ranks.share_bytes(opened.read(_CHUNK_BYTES) if opened else b"")
            if writes:
                with target.open("ab") as file:
                    file.write(data)
    finally:
        if opened:
            opened.close()
