"""Checkpoints and the adapter: saved whole with a manifest, held against it before they are used."""

import hashlib
import json
import re
import shutil
from contextlib import suppress
from pathlib import Path

from tuitune.atomic import publish, recover, remove, write_atomic
from tuitune.errors import UnusableInput
from tuitune.language import _
from tuitune.runs.folder import Run
from tuitune.text import one_line

KEPT_CHECKPOINTS = 2
MANIFEST = "manifest.json"
"""Beside the files of a saved folder: each file's relative path and its SHA-256."""

_STAGED_CHECKPOINTS = ".partial"
_STAGED_ADAPTER = ".adapter.partial"
_CHECKPOINT = re.compile(r"checkpoint-[0-9]+")
_LOADED_BY_LIBRARIES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".safetensors"}


def staged_checkpoints(run: Run) -> Path:
    """The folder that the trainer writes its checkpoints to before they are whole."""
    return run.checkpoints / _STAGED_CHECKPOINTS


def is_staged(run: Run, step: int) -> bool:
    """Whether the trainer has written a checkpoint of this step that has no name yet."""
    return (staged_checkpoints(run) / f"checkpoint-{step}").is_dir()


def staged_adapter(run: Run) -> Path:
    """An empty place for an adapter that is not yet whole."""
    staged = run.folder / _STAGED_ADAPTER
    _clear(staged)
    return staged


def keep_checkpoint(run: Run, step: int, *, best: int | None = None) -> Path:
    """Give the staged checkpoint of `step` a manifest and its name, then delete the oldest ones. Raises OSError.

    The newest ones stay, and that of the step `best`.
    """
    staged = staged_checkpoints(run) / f"checkpoint-{step}"
    final = run.checkpoints / staged.name
    _write_manifest(staged)
    publish(staged, final)
    earlier = [checkpoint for checkpoint in checkpoints_of(run) if step_of(checkpoint) <= step]
    for checkpoint in earlier[:-KEPT_CHECKPOINTS]:
        if step_of(checkpoint) != best:
            remove(checkpoint)
    return final


def give_way(run: Run, best: int | None) -> Path | None:
    """Delete the oldest checkpoint, if there is a newer one, and half-saved ones; returns its path or None.

    For a disk that is full: what would be let go of for the next checkpoint goes before it. That of the step `best`
    stays.
    """
    for unfinished in staged_checkpoints(run).glob("*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    for checkpoint in checkpoints_of(run)[:-1]:
        if step_of(checkpoint) != best:
            remove(checkpoint)
            return checkpoint
    return None


def keep_adapter(run: Run) -> None:
    """Give the staged adapter a manifest and its name; one that was there before stays until this one is whole."""
    staged = run.folder / _STAGED_ADAPTER
    _write_manifest(staged)
    publish(staged, run.adapter)


def checkpoints_of(run: Run) -> list[Path]:
    """The run's checkpoints, the oldest first. Other folders beside them, such as a user's copy, are not among them."""
    try:
        folders = [path for path in run.checkpoints.iterdir() if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(folders, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that were done when it was saved."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def damage(folder: Path) -> str | None:
    """What differs from the folder's manifest, as a clause for the user; None where every file is as it was saved."""
    try:
        if not (folder / MANIFEST).is_file():
            return _("{file} is missing", file=MANIFEST)
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if not isinstance(manifest, dict) or not manifest:
            return _("{file} lists no files", file=MANIFEST)
        for name, digest in manifest.items():
            file = folder / name
            if not file.is_file():
                return _("{file} is missing", file=one_line(name, max_length=120))
            if _sha256(file) != digest:
                return _("{file} has changed since", file=one_line(name, max_length=120))
        if _CHECKPOINT.fullmatch(folder.name):  # the trainer loads what it finds there, in folders within it too
            for file in sorted(folder.rglob("*")):
                name = str(file.relative_to(folder))
                if file.suffix in _LOADED_BY_LIBRARIES and name not in manifest:
                    return _("{file} was not saved with it", file=one_line(name, max_length=120))
    except (OSError, ValueError, RecursionError) as error:
        return _("it cannot be read ({reason})", reason=one_line(error, max_length=120))
    return None


def adapter_of(run: Run, which: str | None) -> Run:
    """The run with the adapter of the checkpoint `best`, `last` or of a step; None: the adapter of the run's end.

    A run that ended before it saved one has that of its newest whole checkpoint. Raises UnusableInput, also for the
    adapter of the end of a run that is training: what lies there is of an earlier attempt.
    """
    saved = checkpoints_of(run)
    if which is None:
        if run.is_live() and run.status() == "live":  # the record, which may be long, is read only where it matters
            raise UnusableInput(
                "Run {run} is still training: take a checkpoint of it (`--checkpoint last`), or wait for its end.",
                run=one_line(run.name),
            )
        if run.adapter.is_dir():
            return run
        whole_checkpoint = next((checkpoint for checkpoint in reversed(saved) if damage(checkpoint) is None), None)
        if whole_checkpoint is None:
            raise UnusableInput("Run {run} has no adapter: it ended before one was saved.", run=one_line(run.name))
        return Run(run.folder, whole_checkpoint.name)
    by_step = {step_of(checkpoint): checkpoint.name for checkpoint in saved}
    if which == "last" and saved:
        return Run(run.folder, saved[-1].name)
    if which == "best":
        evaluations = [evaluation for evaluation in run.history().evaluations if evaluation.step in by_step]
        if not evaluations:
            raise UnusableInput(
                "Run {run} has no checkpoint whose held-out loss was measured: give the step of one.",
                run=one_line(run.name),
            )
        return Run(run.folder, by_step[min(evaluations, key=lambda evaluation: evaluation.loss).step])
    if which.isdecimal() and int(which) in by_step:
        return Run(run.folder, by_step[int(which)])
    steps = list(map(str, by_step)) or _("no step")
    raise UnusableInput(
        "Run {run} has no checkpoint {which}: it has those of {steps}; `best` and `last` name one, too.",
        run=one_line(run.name),
        which=one_line(which, max_length=40),
        steps=steps,
    )


def require_whole_adapter(run: Run) -> None:
    """Refuse an adapter that differs from what training saved. Raises UnusableInput.

    One of an older version of tuitune has no manifest, and is taken as it is.
    """
    if not (run.adapter / MANIFEST).exists():
        return
    problem = damage(run.adapter)
    if problem is not None:
        raise UnusableInput(
            "The adapter in {adapter} is not what training saved ({problem}): bring it back from a copy, "
            "or delete its {manifest} if you changed it yourself.",
            adapter=one_line(run.adapter),
            problem=problem,
            manifest=MANIFEST,
        )


def tidy(run: Run) -> None:
    """Remove what was not saved whole, and finish what a killed session began. Only for who holds the run.

    What cannot be removed stays.
    """
    _clear(staged_checkpoints(run))
    _clear(run.folder / _STAGED_ADAPTER)
    for folder in (run.folder, run.checkpoints):
        with suppress(OSError):
            recover(folder)


def _clear(staged: Path) -> None:
    """Remove a staged folder, if it can be; of a link only the link."""
    with suppress(OSError):
        staged.unlink() if staged.is_symlink() else shutil.rmtree(staged, ignore_errors=True)


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    manifest = {str(file.relative_to(folder)): _sha256(file) for file in files}
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=2))


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
