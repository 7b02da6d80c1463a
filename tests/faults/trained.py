"""Faults in a whole run: in the trainer's own saving, at every phase, in memory, clock and limits, and in checkpoints.

`python -m tests.faults.trained RECORDS EVERY` injects one of EVERY faults; 1 injects all, and more kinds. One run
trains in this process, which is forked wherever something is to go wrong, so that the libraries are imported once.
"""

import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

import sample_data
from tests.faults.soundness import problems_of
from tests.faults.sweep import (
    BROKEN_DISK,
    KILLS,
    NO_QUOTA,
    NO_SPACE,
    NO_SPACE_ONCE,
    GoOn,
    Injector,
    Record,
    forked,
    leave,
    sweep,
    write_records,
)
from tests.security.pickles import plant
from tuitune.machine.environment import warm_up
from tuitune.recipe import Recipe
from tuitune.runs.events import Checkpoint, Event, Phase, Started, Step
from tuitune.runs.folder import Run
from tuitune.session.jobs import Jobs
from tuitune.session.worker import Job
from tuitune.train import checkpoints, room
from tuitune.train.resume import newest_whole_checkpoint

STEPS, SAVED = 6, 2
_DEMO = Path(sample_data.__file__).parent
_DISK = (NO_SPACE, NO_SPACE_ONCE, NO_QUOTA, BROKEN_DISK)
_UNLIKE = "it goes on to other losses or another adapter than the run that nothing disturbed"


def recipe_of(work: Path) -> Recipe:
    rows = (_DEMO / "pirate.jsonl").read_text().splitlines(keepends=True)[:12]
    (work / "rows.jsonl").write_text("".join(rows))
    return Recipe.load(
        _DEMO / "demo.yaml",
        [
            f"data.path={work / 'rows.jsonl'}",
            "eval_share=0.17",
            "lora_dropout=0.1",
            f"max_steps={STEPS}",
            f"save_steps={SAVED}",
            f"eval_steps={SAVED}",
            "per_device_train_batch_size=2",
            "gradient_accumulation_steps=1",
            "samples.max_new_tokens=2",
        ],
    )


class Training:
    """A session's training in this process; `on_event` is called after each event, in between two of its acts."""

    def __init__(self, work: Path, on_event: Callable[[Event], None] = lambda event: None) -> None:
        self._on_event = on_event
        self.jobs = Jobs(work / "socket", on_event=self._last_event)

    def _last_event(self) -> None:
        assert self.jobs.run is not None
        *_, event = self.jobs.run.events()
        self._on_event(event)

    def train(self, recipe: Recipe, runs: Path, name: str) -> Run:
        self.jobs.train(_job("train"), recipe, str(runs), name)
        assert self.jobs.run is not None
        return self.jobs.run

    def resume(self, run: Run) -> None:
        self.jobs.resume(_job("resume"), run)


def _job(command: str) -> Job:
    return Job(command, lambda job: {}, on_part=lambda part: None, on_end=lambda end: None)


def losses(run: Run) -> dict[int, float]:
    return {step.step: step.loss for step in run.history().steps}


class Disturbed:
    """The one run of this process, and what is left of its copies that something went wrong in."""

    def __init__(self, work: Path, every: int) -> None:
        self.work = work
        self.every = every
        self.recipe = recipe_of(work)
        self.records: list[Record] = []
        self.killed: list[tuple[str, Run]] = []
        """What is left after a kill, of which each is gone on with later: what happened, and a copy of the folder."""
        self.phases: set[str] = set()
        self.until: type[Event] | None = None
        self.writing = -1
        """In a child the pipe to its parent, by which its end is told; it ends at the next event of type `until`."""
        self.run = Run(work / "runs" / "whole")

    def train(self) -> None:
        try:
            Training(self.work, self.on_event).train(self.recipe, self.work / "runs", "whole")
        except BaseException as error:
            if self.writing < 0:
                raise
            told = error
            leave(lambda: _raise(told), self.writing)

    def on_event(self, event: Event) -> None:
        if self.writing >= 0:
            if self.until is not None and isinstance(event, self.until):
                leave(lambda: None, self.writing)
            return
        if isinstance(event, Phase) and event.name not in self.phases:
            self.phases.add(event.name)
            self.kill(f"kill -9 in phase {event.name}")
        if isinstance(event, Step):
            self.kill(f"kill -9 after step {event.step}")
        if isinstance(event, Step) and event.step == 2 * SAVED:
            self.sweep("the trainer saves a checkpoint", Checkpoint)
        if isinstance(event, Phase) and event.name == "saving":
            self.sweep("the trainer saves the adapter", Phase)

    def kill(self, what: str) -> None:
        status, _ = forked(lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert status == -signal.SIGKILL
        self.killed.append((what, self.copy(self.run)))

    def copy(self, run: Run) -> Run:
        folder = self.work / "left" / f"{len(list((self.work / 'left').glob('*'))):04}"
        shutil.copytree(run.folder, folder)
        return Run(folder)

    def sweep(self, case: str, until: type[Event]) -> None:
        """Fork at this event, once a fault; the child goes on with the training until the event of type `until`."""

        def go_on() -> None:
            raise GoOn

        def problems() -> list[str]:
            left = self.copy(self.run)
            wrong = problems_of(left)
            if len(self.records) % (12 * self.every) == 0:
                self.killed.append((case, left))
            else:
                shutil.rmtree(left.folder)
            return wrong

        expected = "checkpoints that are whole, the newest one told of among them, and a record to go on with"
        try:
            for fault_set, every in ((KILLS, self.every), (_DISK, 2 * self.every)):
                for record in sweep(case, expected, self.run.folder, go_on, problems, fault_set, every):
                    self.records.append(record)
        except GoOn as going:
            self.until, self.writing = until, going.writing


def _raise(error: BaseException) -> None:
    raise error


def going_on(disturbed: Disturbed) -> Iterator[Record]:
    """Each run that was killed is gone on with, and ends as the one that nothing disturbed."""
    whole = disturbed.run
    for what, left in disturbed.killed[:: 1 if disturbed.every == 1 else 4]:
        run = disturbed.copy(left)  # what is left is looked at again

        def resume(run: Run = run) -> None:
            Training(disturbed.work).resume(run)

        lost = _steps_lost(run)
        status, told = forked(resume)
        problems = [told] if status else [] if same(run, whole) else [_UNLIKE]
        if lost >= SAVED + 1:
            problems.append(f"{lost} steps are lost, though each {SAVED} are saved")
        yield Record("a killed run is gone on with", what, "the same losses and adapter, bit for bit", problems)


def _steps_lost(run: Run) -> int:
    whole = [checkpoints.step_of(path) for path in checkpoints.checkpoints_of(run) if not checkpoints.damage(path)]
    return int(run.history().step) - max(whole, default=0)


def same(run: Run, whole: Run) -> bool:
    ours, theirs = (load_file(trained_run.adapter / "adapter_model.safetensors") for trained_run in (run, whole))
    equal = ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in theirs)
    return run.status() == "done" and losses(run) == losses(whole) and equal and not problems_of(run, adapter=True)


def memory(disturbed: Disturbed) -> Iterator[Record]:
    """The card is stood in for: pass number k of more than one row runs out of memory."""
    import torch
    from transformers import LlamaModel

    forward = LlamaModel.forward
    whole = losses(disturbed.run)
    for number in range(1, STEPS + 1):

        def train(number: int = number) -> None:
            passes = 0

            def on_a_small_card(self: Any, input_ids: Any = None, **others: Any) -> Any:
                nonlocal passes
                passes += self.training
                if self.training and len(input_ids) > 1 and passes >= number:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return forward(self, input_ids=input_ids, **others)

            LlamaModel.forward = on_a_small_card
            run = Training(disturbed.work).train(disturbed.recipe, disturbed.work / "runs", f"memory-{number}")
            ours = losses(run)
            assert ours.keys() == whole.keys(), f"steps {sorted(ours)} instead of {sorted(whole)}"
            assert run.status() == "done" and not problems_of(run, adapter=True)

        status, told = forked(train)
        expected = "it goes on from the last checkpoint in passes of half the size, and is done with every step"
        yield Record("memory runs out", f"in pass {number}", expected, [told] if status else [])


def clocks(disturbed: Disturbed) -> Iterator[Record]:
    """The wall clock is put back or forward between two steps."""
    day = 86_400
    for offset_s in (-day, -400 * day, 3650 * day):
        for step in range(1, STEPS, 2):

            def train(offset_s: int = offset_s, step: int = step) -> None:
                injector = Injector(disturbed.work, disturbed.work / "log")

                def set_clock(event: Event) -> None:
                    if isinstance(event, Step) and event.step == step:
                        injector.set_clock(offset_s)

                name = f"clock-{offset_s}-{step}".replace("--", "-back-")
                run = Training(disturbed.work, set_clock).train(disturbed.recipe, disturbed.work / "runs", name)
                assert same(run, disturbed.run), _UNLIKE
                kept, usual = (
                    [path.name for path in checkpoints.checkpoints_of(trained_run)]
                    for trained_run in (run, disturbed.run)
                )
                assert kept == usual, f"{kept} were kept instead of {usual}"
                ended = run.history().ended
                assert 0 < getattr(ended, "seconds", -1) < 600, ended

            status, told = forked(train)
            expected = "the same training, the newest checkpoints kept, and times by a clock that is never set"
            yield Record("the clock jumps", f"by {offset_s} s after step {step}", expected, [told] if status else [])


def limits(disturbed: Disturbed) -> Iterator[Record]:
    """A limit of the system on what a process may write or open."""
    sizes = [1, 3_000, 30_000, 100_000, 300_000, 600_000]
    for what, limit, values in (
        ("file size", resource.RLIMIT_FSIZE, sizes),
        ("open files", resource.RLIMIT_NOFILE, [12, 20]),
    ):
        for value in values:
            name = f"{what.replace(' ', '-')}-{value}"

            def train(limit: int = limit, value: int = value, name: str = name) -> None:
                resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
                Training(disturbed.work).train(disturbed.recipe, disturbed.work / "runs", name)

            status, told = forked(train)
            run = Run(disturbed.work / "runs" / name)
            problems = [] if status in (0, 3) else [told]
            if status == 3 and "\n" in told:
                problems.append(f"it is told in more than a sentence: {told}")
            problems += problems_of(run) if run.folder.is_dir() else []
            expected = "done, or one sentence and nothing half saved"
            yield Record("a limit of the system", f"{what}: {value}", expected, problems)


def tampering(disturbed: Disturbed) -> Iterator[Record]:
    """Every file of the newest checkpoint is changed, cut, emptied or taken away; the older one is gone on from."""
    left = next(run for what, run in disturbed.killed if what == f"kill -9 after step {STEPS - 1}")
    newest = checkpoints.checkpoints_of(left)[-1]
    kept = disturbed.work / "newest"
    shutil.copytree(newest, kept)

    def flip(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)

    ways: dict[str, Callable[[Path], None]] = {
        "one bit changed": flip,
        "cut in half": lambda file: os.truncate(file, file.stat().st_size // 2),
        "emptied": lambda file: os.truncate(file, 0),
        "removed": Path.unlink,
    }
    names = [path.name for path in sorted(newest.iterdir())]
    points = [(name, way) for name in names for way in ways]
    for name, way in points[:: disturbed.every]:
        ways[way](newest / name)
        told: list[Event] = []
        taken = newest_whole_checkpoint(left, told.append)
        expected = "it is passed over for the one before, and said so"
        problems = [] if taken and checkpoints.step_of(taken) == STEPS - 2 * SAVED else [f"{taken} was taken"]
        yield Record("a checkpoint is damaged", f"{name} {way}", expected, problems if told else [*problems, "untold"])
        shutil.rmtree(newest)
        shutil.copytree(kept, newest)


def pickles(disturbed: Disturbed) -> Iterator[Record]:
    """Code in every pickle that a library may look for, with a manifest that knows it and without."""
    left = next(run for what, run in disturbed.killed if what == f"kill -9 after step {STEPS - 1}")
    names: tuple[str, ...] = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin")
    names += ("adapter_model.bin", "scaler.pt", "optimizer.bin", "default/adapter_model.bin")
    points = [(name, vouched) for name in names for vouched in (False, True)]
    for name, vouched in points[:: 1 if disturbed.every == 1 else len(points) - 2]:
        run = Run(disturbed.work / "planted")
        shutil.copytree(left.folder, run.folder)
        newest = checkpoints.checkpoints_of(run)[-1]
        canary = disturbed.work / "canary"
        plant(newest / name, canary)
        if vouched:
            checkpoints._write_manifest(newest)

        def resume(run: Run = run) -> None:
            Training(disturbed.work).resume(run)

        status, told = forked(resume)
        problems = ["the code ran"] if canary.exists() else []
        attempt = [event for event in run.events() if isinstance(event, Started)][-1].attempt
        first = next((event.step for event in run.events() if isinstance(event, Step) and event.attempt == attempt), 0)
        if not vouched and (status or first != STEPS - 2 * SAVED + 1):
            problems.append(f"it was not passed over: {told or first}")
        if vouched and status not in (0, 3):
            problems.append(told)
        where = f"{name}, {'with' if vouched else 'without'} a manifest that knows it"
        expected = "its code never runs" + ("" if vouched else ", and the checkpoint before is gone on from")
        yield Record("a pickle is planted in a checkpoint", where, expected, problems)
        shutil.rmtree(run.folder)
        canary.unlink(missing_ok=True)


def exports(disturbed: Disturbed) -> Iterator[Record]:
    """A fault at every call of an export that takes the place of an older one."""
    from tuitune.export import Exported, export

    for kind, weights, every in (
        ("adapter", "adapter_model.safetensors", 2),
        ("merged_16bit", "model.safetensors", 16),
    ):
        out = disturbed.work / f"exported-{kind}"

        def make(kind: str = kind, out: Path = out) -> None:
            for result in export(disturbed.run, [kind], out, lambda *_: None, lambda _: False, lambda: False):
                if not isinstance(result, Exported):
                    raise result.error

        make()
        names = sorted(path.name for path in (out / kind).iterdir())
        digest = checkpoints._sha256(out / kind / weights)

        def problems(
            kind: str = kind, out: Path = out, names: Any = names, digest: str = digest, weights: str = weights
        ) -> list[str]:
            from tuitune.export import place

            with place.locked(out):  # which tidies
                pass
            if [path.name for path in out.iterdir()] != [kind]:
                return [f"the folder holds {sorted(path.name for path in out.iterdir())}"]
            if sorted(path.name for path in (out / kind).iterdir()) != names:
                return ["the export has other files"]
            return [] if checkpoints._sha256(out / kind / weights) == digest else ["its weights are not whole"]

        expected = "the former export or the new one, whole, and nothing else"
        for faults, thinner in ((KILLS, 1), (_DISK, 4)):
            yield from sweep(f"an export of {kind}", expected, out, make, problems, faults, every * thinner)


def main(records: Path, every: int) -> None:
    warm_up()
    room.LONGEST_WAIT_S = 0.0  # what waits for room is tests/engine/test_full_disk.py's
    work = Path.cwd()
    disturbed = Disturbed(work, every)

    def all_records() -> Iterator[Record]:
        disturbed.train()
        yield from disturbed.records
        for case in (going_on, tampering, pickles):
            yield from case(disturbed)
        if every == 1:
            for case in (memory, clocks, limits, exports):
                yield from case(disturbed)

    write_records(all_records(), records)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
