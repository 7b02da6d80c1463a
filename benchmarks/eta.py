"""How right the time that is left is told, over whole runs of the demo on this machine's processor.

    python -m benchmarks.eta [--runs 3] [--name cpu] [--set field=value …]

Each run is a `tuitune run` of its own. Its record is folded again up to one third and two thirds of its steps: what was
told there is held against the time that it then took to the very end, with evaluations, replies, checkpoints and
adapter. Three kinds of run: the demo as it is, one three times as long, and one that measures and saves often. Writes
benchmarks/results/eta_NAME.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.shapes import SAMPLE_DATA
from tuitune.runs.events import Step
from tuitune.runs.folder import Run
from tuitune.runs.history import History

RESULTS = Path(__file__).parent / "results"
KINDS: dict[str, list[str]] = {
    "demo": [],
    "three times as long": ["max_steps=240"],
    "measured every 20 steps, saved every 10": ["max_steps=160", "eval_steps=20", "save_steps=10"],
}
THIRDS = (1, 2)
_IN_ORDER_S = 0.5
"""An event's own time and the clock that is never set differ by no more over a run, or the clock was set."""


def trained(changes: list[str], folder: Path, name: str) -> Run:
    """Train the demo with these changes in a process of its own. Exits where that fails."""
    options = [option for change in changes for option in ("--set", change)]
    recipe = str(SAMPLE_DATA / "demo.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "tuitune", "run", recipe, "--name", name, "--runs", str(folder), *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ | {"XDG_RUNTIME_DIR": str(folder)},
        check=False,
    )
    if done.returncode:
        sys.exit(f"tuitune run failed: {done.stderr}")
    return Run(folder / name)


def told_and_true(run: Run) -> list[tuple[float, float]]:
    """At each third of a run's steps: the seconds left as they were told there, and as they were."""
    events = list(run.events())
    steps = [event for event in events if isinstance(event, Step)]
    first, last = steps[0], steps[-1]
    if abs((last.at - first.at) - ((last.elapsed_s or 0) - (first.elapsed_s or 0))) > _IN_ORDER_S:
        sys.exit("The clock was set while a run was measured: run it again.")
    pairs = []
    for third in THIRDS:
        history = History()
        for event in events:
            history.add(event)
            if isinstance(event, Step) and event.step == -(-event.total_steps * third // 3):
                break
        assert history.seconds_left is not None
        pairs.append((history.seconds_left, events[-1].at - history.last_at))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each kind")
    parser.add_argument("--name", default="cpu")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="field=value")
    arguments = parser.parse_args()
    kinds: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, changes in KINDS.items():
            runs = []
            for number in range(arguments.runs):
                name = f"run-{len(kinds)}-{number}"
                runs.append(told_and_true(trained([*changes, *arguments.changes], Path(folder), name)))
                print(kind, number, runs[-1], flush=True)
            errors = [[(told - true) / true for told, true in pairs] for pairs in runs]
            kinds[kind] = {
                "changes": changes,
                "seconds_left": [[[round(told, 1), round(true, 1)] for told, true in pairs] for pairs in runs],
                "median_error": [
                    round(statistics.median(abs(error[third]) for error in errors), 3) for third in range(len(THIRDS))
                ],
                "worst_error": [round(max(abs(error[third]) for error in errors), 3) for third in range(len(THIRDS))],
            }
    result = {
        "what": "seconds left at one and two thirds of the steps, as told and as they were; errors are shares of it",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[1], 1),
        "runs": arguments.runs,
        "kinds": kinds,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"eta_{arguments.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
