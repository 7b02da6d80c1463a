"""Faults at every call of what makes files and folders whole: runs, records, checkpoints, adapters and exports.

The files' content is made up; the trainer's own is in `trained.py`. `python -m tests.faults.edges RECORDS EVERY`
injects one of EVERY faults, 1 for all.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.faults.soundness import problems_of
from tests.faults.sweep import DISK, KILLS, Record, sweep, write_records
from tuitune.atomic import publish, recover, write_atomic
from tuitune.recipe import Recipe
from tuitune.runs.events import Checkpoint, Event, Finished, Notice, Started
from tuitune.runs.folder import Run, RunWriter, all_runs, create_run
from tuitune.session.sweep import sweep as sweep_runs
from tuitune.train import checkpoints

RECIPE = Recipe.from_data({"model": {"name": "m"}, "data": {"path": "/d.jsonl"}})
FILES = ("adapter_model.safetensors", "optimizer.pt", "trainer_state.json")


def fill(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(text * 1000)


def stage_checkpoint(run: Run, step: int) -> None:
    fill(checkpoints.staged_checkpoints(run) / f"checkpoint-{step}", str(step))


def run_with_two_checkpoints(runs: Path) -> Run:
    """A run of four steps, saved at the second and the fourth, with its adapter."""
    writer = create_run(RECIPE, runs, "run")
    writer.append(Started(run="run", attempt=1, pid=1))
    for step in (2, 4):
        stage_checkpoint(writer.run, step)
        keep(writer, step)
    fill(checkpoints.staged_adapter(writer.run), "former")
    checkpoints.keep_adapter(writer.run)
    writer.close()
    return writer.run


def keep(writer: RunWriter, step: int) -> None:
    """As the trainer's callback does once the checkpoint is staged."""
    path = checkpoints.keep_checkpoint(writer.run, step)
    writer.append(Checkpoint(attempt=1, step=step, path=str(path.relative_to(writer.run.folder))))


def new_run(work: Path, every: int) -> Iterator[Record]:
    runs = work / "new" / "runs"
    runs.mkdir(parents=True)

    def problems() -> list[str]:
        for run in all_runs(runs):
            if run.recipe() != RECIPE or run.resolved() != RECIPE:
                return ["its recipe is not whole"]
        if not all_runs(runs):
            create_run(RECIPE, runs, "mine").close()
        for left in runs.glob(".tuitune-new-*"):
            os.utime(left, (0, 0))
        sweep_runs(runs)
        names = [path.name for path in runs.iterdir()]
        return [] if names == ["mine"] else [f"the runs folder holds {names}"]

    yield from sweep(
        "a run folder is made",
        "the run is there whole, or its name is free; the next session clears the rest away",
        runs,
        lambda: create_run(RECIPE, runs, "mine", {"libraries": {}}, RECIPE).close(),
        problems,
        (*KILLS, *DISK),
        every,
    )


def record(work: Path, every: int) -> Iterator[Record]:
    run = run_with_two_checkpoints(work / "record")
    before = list(run.events())
    # one clock reading, so that the events of all children are equal
    new: list[Event] = [
        Notice(at=1.0, text="one"),
        Notice(at=2.0, text="two " * 5000),
        Finished(at=3.0, status="done", step=4, seconds=1.0, adapter="adapter"),
    ]

    def append_all() -> None:
        writer = RunWriter(run)
        for event in new:
            writer.append(event)
        writer.close()

    def problems() -> list[str]:
        events = list(run.events())
        if events != [*before, *new][: len(events)] or len(events) < len(before):
            return ["the record is not the beginning of what was to be recorded"]
        return problems_of(run, adapter=True)

    yield from sweep(
        "events are recorded",
        "the record reads as the beginning of what was told, each event whole or not there, and can be gone on with",
        run.folder,
        append_all,
        problems,
        (*KILLS, *DISK),
        every,
    )


def checkpoint(work: Path, every: int) -> Iterator[Record]:
    run = run_with_two_checkpoints(work / "checkpoint")
    stage_checkpoint(run, 6)

    def save() -> None:
        writer = RunWriter(run)
        keep(writer, 6)
        writer.close()

    yield from sweep(
        "a checkpoint gets its name and the oldest goes",
        "every published checkpoint equals its manifest, and the newest one told of is there",
        run.folder,
        save,
        lambda: problems_of(run, adapter=True),
        (*KILLS, *DISK),
        every,
    )


def adapter(work: Path, every: int) -> Iterator[Record]:
    run = run_with_two_checkpoints(work / "adapter")
    fill(checkpoints.staged_adapter(run), "new")
    yield from sweep(
        "an adapter takes the place of an older one",
        "one of the two is there, and equals its manifest",
        run.folder,
        lambda: checkpoints.keep_adapter(run),
        lambda: problems_of(run, adapter=True),
        (*KILLS, *DISK),
        every,
    )


def tidying(work: Path, every: int) -> Iterator[Record]:
    run = run_with_two_checkpoints(work / "tidying")
    stage_checkpoint(run, 6)
    fill(run.checkpoints / ".tuitune-removing-checkpoint-0", "old")
    (run.checkpoints / "checkpoint-4").rename(run.checkpoints / ".tuitune-previous-checkpoint-4")
    fill(checkpoints.staged_adapter(run), "half")
    run.adapter.rename(run.folder / ".tuitune-previous-adapter")
    yield from sweep(
        "what a killed session left is tidied",
        "what had a name gets it back, the rest is gone after the next time",
        run.folder,
        lambda: checkpoints.tidy(run),
        lambda: problems_of(run, adapter=True),
        (*KILLS, *DISK),
        every,
    )


def settings(work: Path, every: int) -> Iterator[Record]:
    run = run_with_two_checkpoints(work / "settings")
    changed = Recipe.from_data({"model": {"name": "other"}, "data": {"path": "/d.jsonl"}})
    run.keep_resolved(RECIPE)

    def problems() -> list[str]:
        if run.resolved() not in (RECIPE, changed):
            return ["resolved.yaml is neither the old recipe nor the new one"]
        return problems_of(run, adapter=True)

    yield from sweep(
        "a small file is replaced",
        "it is the old one or the new one",
        run.folder,
        lambda: run.keep_resolved(changed),
        problems,
        (*KILLS, *DISK),
        every,
    )


def exports(work: Path, every: int) -> Iterator[Record]:
    for kind, is_file in (("model.gguf", True), ("merged", False)):
        out = work / f"exports-{kind}"
        out.mkdir()
        staged, final = out / ".tuitune-making-x" / kind, out / kind
        for path, text in ((final, "former"), (staged, "new")):
            if is_file:
                path.parent.mkdir(exist_ok=True)
                write_atomic(path, text * 1000)
            else:
                fill(path, text)

        def problems(out: Path = out, final: Path = final, is_file: bool = is_file) -> list[str]:
            recover(out)
            if not final.exists():
                return ["neither the former export nor the new one is there"]
            files = [final] if is_file else [final / name for name in FILES]
            texts = {file.read_text() if file.exists() else "" for file in files}
            return [] if texts in ({"former" * 1000}, {"new" * 1000}) else ["the export is not whole"]

        yield from sweep(
            f"an export takes the place of an older one ({'a file' if is_file else 'a folder'})",
            "one of the two is there, whole",
            out,
            lambda staged=staged, final=final: publish(staged, final),  # type: ignore[misc]
            problems,
            (*KILLS, *DISK),
            every,
        )


def main(records: Path, every: int) -> None:
    work = Path.cwd()

    def all_records() -> Iterator[Record]:
        for scenario in (new_run, record, checkpoint, adapter, tidying, settings, exports):
            yield from scenario(work, every)

    write_records(all_records(), records)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
