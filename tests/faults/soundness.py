"""What must hold of a run's folder whatever happened to the process that wrote it."""

from tuitune.runs.events import Checkpoint, Notice, from_json
from tuitune.runs.folder import Run, RunWriter
from tuitune.train import checkpoints


def problems_of(run: Run, *, adapter: bool = False) -> list[str]:
    """What is wrong with the folder, in words, once the next session has tidied it; `adapter` that there was one."""
    problems = []
    lines = run.events_file.read_bytes().splitlines()
    torn = [number for number, line in enumerate(lines, 1) if line and from_json(line) is None]
    if torn and torn != [len(lines)]:
        problems.append(f"lines {torn} of {len(lines)} of the record cannot be read")
    told = [event.step for event in run.events() if isinstance(event, Checkpoint)]
    run.recipe()
    run.resolved()
    count = len(list(run.events())) + (not run.events_file.read_bytes().endswith(b"\n"))  # a torn line is told of

    writer = RunWriter(run)  # as the next session does
    checkpoints.tidy(run)
    writer.append(Notice(text="the next attempt"))
    writer.close()
    events = list(run.events())
    if len(events) != count + 1 or not isinstance(events[-1], Notice):
        problems.append("the record cannot be gone on with")

    kept = checkpoints.checkpoints_of(run)
    damages = {
        path.name: damage for path in [*kept, run.adapter] if path.is_dir() and (damage := checkpoints.damage(path))
    }
    problems += [f"{name}: {damage}" for name, damage in damages.items()]
    whole = [checkpoints.step_of(path) for path in kept if path.name not in damages]
    if told and max(whole, default=0) < max(told):
        problems.append(f"the checkpoint of step {max(told)} was told of, and the newest whole one is of {whole}")
    if adapter and not run.adapter.is_dir():
        problems.append("the adapter is gone")
    for folder in (run.folder, run.checkpoints):
        left = [path.name for path in folder.glob(".*partial")] + [path.name for path in folder.glob(".tuitune-*")]
        problems += [f"{name} was not cleared away" for name in left]
    return problems
