"""What each kind of export would need here, and whether it is there, before anything is begun."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuitune.backends.loading import require_adapter, weights_folder
from tuitune.errors import TuituneError
from tuitune.export import llama_cpp, place, shards
from tuitune.export.card import fingerprint, marked
from tuitune.export.kinds import KINDS, Kind
from tuitune.export.script import require_repeatable
from tuitune.model.config import require_weights, training_config
from tuitune.recipe import Recipe
from tuitune.recipe_sections import HUB
from tuitune.runs.folder import Run, default_runs_folder
from tuitune.text import one_line


@dataclass(frozen=True)
class Readiness:
    """Whether `kind` can be made: `missing` is the sentence that says why not.

    `bytes` is about what the export will take on disk, None where that cannot be known. `question` is what the user
    will be asked (whether a download is allowed), None where nothing is.
    """

    kind: str
    about: str
    ready: bool
    missing: str | None
    bytes: int | None
    question: str | None


def preflight(subject: Run | Recipe, out: Path | None = None) -> list[Readiness]:
    """Every kind in KINDS, looked at for a finished run, or for a recipe whose run is still to come.

    Nothing is written, downloaded or loaded. `out` is the folder to export to, by default the run's own.
    """
    run = subject if isinstance(subject, Run) else None
    recipe = run.resolved() if run else subject
    assert isinstance(recipe, Recipe)
    out = out or (run.exports if run else default_runs_folder())
    sizes, unreadable = {}, None
    try:
        if run and run.adapter.is_dir():
            sizes = {"adapter": place.size(run.adapter)}
        require_weights(recipe.model)
        sizes = bytes_of(recipe, run)
    except TuituneError as error:
        unreadable = str(error)
    by_shard = unreadable is None and merges_by_shard(recipe, run)
    readiness = [_looked_at(kind, run, out, sizes, unreadable, by_shard=by_shard) for kind in KINDS]
    paths = [recipe.data.path, *(source.path for source in recipe.data.also)]
    missing = [path for path in paths if not path.startswith(HUB) and not Path(path).is_file()]
    if missing:
        problem = f"The dataset {one_line(missing[0])} is no longer there: put it back."
        readiness = [
            replace(entry, ready=False, missing=problem) if entry.kind in ("script", "notebook") else entry
            for entry in readiness
        ]
    try:
        require_repeatable(recipe)
    except TuituneError as error:
        readiness = [
            replace(entry, ready=False, missing=str(error)) if entry.kind in ("script", "notebook") else entry
            for entry in readiness
        ]
    return readiness


def _looked_at(
    kind: Kind, run: Run | None, out: Path, sizes: dict[str, int], unreadable: str | None, *, by_shard: bool
) -> Readiness:
    question, missing = None, None
    try:
        if run:
            require_adapter(str(run.adapter))
        if kind.name not in sizes and unreadable:
            raise TuituneError(unreadable)
        require_room([kind], sizes, run, out, by_shard=by_shard)
        if kind.gguf:
            require_quantiser(kind.gguf)
        if kind.gguf or kind.form == "adapter_gguf":
            question = _download_question()
    except TuituneError as error:
        missing = str(error)
    return Readiness(kind.name, kind.what_for, missing is None, missing, sizes.get(kind.name), question)


def bytes_of(recipe: Recipe, run: Run | None, kinds: Sequence[Kind] = KINDS) -> dict[str, int]:
    """About what each kind takes on disk. Raises UnusableInput where the model's config cannot be read."""
    from tuitune.plan.estimate import shape_of

    shape = shape_of(recipe)
    models = {kind.name: int(kind.bytes_per_weight * shape.total_parameters) for kind in kinds}
    adapter = place.size(run.adapter) if run and run.adapter.is_dir() else 4 * shape.adapter_parameters
    data = Path(recipe.data.path)
    script = data.stat().st_size if data.is_file() else 0
    bytes_without_model = {
        "adapter": adapter,
        "hub:adapter": adapter,
        "adapter_gguf": adapter // 2,
        "script": script,
        "notebook": script,
    }
    return {**models, **{name: size for name, size in bytes_without_model.items() if name in models}}


def require_room(kinds: list[Kind], sizes: dict[str, int], run: Run | None, out: Path, *, by_shard: bool) -> None:
    """Refuse kinds that disk or memory cannot take, their intermediate merged model included. Raises TuituneError.

    `by_shard` says whether the merge needs only a part of the model in memory.
    """
    names = [kind.name for kind in kinds]
    merges = any(kind.whole_model for kind in kinds) and (
        "merged_16bit" in names or run is None or earlier_merged(run, out) is None
    )
    merged = int(2 * _weights(kinds, sizes))
    written = sum(sizes[name] for name in names) + (merged if merges and "merged_16bit" not in names else 0)
    types = {kind.gguf for kind in kinds if kind.gguf}
    if types - {"f16", "bf16", "q8_0"} or len(types) > 1:
        written += merged  # the 16-bit GGUF that the others are made from
    place.require_space(out, written, f"Exporting {' and '.join(names)}")
    if merges:
        memory = min(shards.MEMORY_BYTES, merged) if by_shard else merged
        place.require_memory(memory, "Merging the adapter into the model")


def merges_by_shard(recipe: Recipe, run: Run | None) -> bool:
    """Whether the merge needs no more than a part of the model in memory at a time."""
    if recipe.lora.init_lora_weights == "loftq":
        return False
    try:
        config, base = training_config(recipe), weights_folder(recipe.model)
        return shards.plan(config, base, run.adapter if run else None) is not None
    except (TuituneError, OSError, ValueError):  # it is not here yet, or not any more
        return False


def _weights(kinds: list[Kind], sizes: dict[str, int]) -> float:
    """The number of the model's weights, by what a whole model of these kinds takes."""
    return max((sizes[kind.name] / kind.bytes_per_weight for kind in kinds if kind.whole_model), default=0)


def require_quantiser(type_: str) -> None:
    """Refuse a type of GGUF that nothing on this machine can write. Raises TuituneError."""
    from tuitune.export.gguf import no_quantiser
    from tuitune.export.quantise import DEFAULT_TYPES

    if type_ in ("f16", "bf16", "q8_0") or (type_ in DEFAULT_TYPES and llama_cpp.kernels()) or llama_cpp.quantiser():
        return
    raise TuituneError(no_quantiser(type_))


def earlier_merged(run: Run, out: Path) -> Path | None:
    """The merged model in `out`, if it was made from this very adapter."""
    folder = out / "merged_16bit"
    fields = marked(folder)
    return folder if fields and fields.get("adapter_sha256") == fingerprint(run) else None


def _download_question() -> str | None:
    if llama_cpp.find() is not None:
        return None
    if importlib.util.find_spec("pip") is None:
        raise TuituneError(llama_cpp.NO_PIP)
    return llama_cpp.download_question()
