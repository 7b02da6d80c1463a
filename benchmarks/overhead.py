"""What session, events, sampling and an attached app cost a step: the same steps bare and through `tuitune run`.

    python -m benchmarks.overhead [RECIPE] [--pairs 5] [--steps 40] [--name cpu] [--set field=value …]

Bare is the same trainer, model and rows in one process, with nothing of tuitune called between its steps. Beside
`tuitune run --json`, the app shows the run on a 120×40 pty. Pairs run in turn. Rows come in the same order, so each
step is compared with itself: the fastest of all pairs, the first steps left out. CPU seconds over the same steps are
compared too, since a shared machine's other work moves them less than it moves the clock. Writes
benchmarks/results/overhead_NAME.json.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pexpect
import psutil

from benchmarks.shapes import SAMPLE_DATA
from tuitune.recipe import Recipe

RESULTS = Path(__file__).parent / "results"
WARM_UP = 5


@dataclass
class Steps:
    """When each step had ended, in seconds, and the CPU seconds that each process had used by then."""

    ends: list[float] = field(default_factory=list)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def note(self, end: float, **processes: psutil.Process) -> None:
        self.ends.append(end)
        for name, process in processes.items():
            times = process.cpu_times()
            self.cpu.setdefault(name, []).append(times.user + times.system)

    @property
    def seconds(self) -> list[float]:
        """Of each step after the first ones."""
        return [after - before for before, after in itertools.pairwise(self.ends[WARM_UP:])]

    def cpu_seconds(self, name: str) -> float:
        """Of a process, over the same steps."""
        noted = self.cpu[name]
        return noted[-1] - noted[WARM_UP]


def bare(recipe: Recipe) -> Steps:
    """The trainer without session and events."""
    from tuitune.backends.environment import warm_up

    warm_up()
    from transformers import TrainerCallback

    from tuitune import backends, train
    from tuitune.data.prepare import prepare
    from tuitune.model import load_tokenizer
    from tuitune.run import Run

    steps, this = Steps(), psutil.Process()

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.note(time.perf_counter(), trainer=this)

    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        prepared = prepare(recipe, load_tokenizer(recipe.model))
        loaded = backends.load(recipe, print)
        loaded.backend.attach(loaded)
        watcher = train._Watcher(run, train.Control(), lambda event: None, 1)
        trainer = train._trainer(loaded, prepared, run, watcher)
        trainer.callback_handler.callbacks = [
            each for each in trainer.callback_handler.callbacks if type(each).__module__ != train.__name__
        ]
        trainer.add_callback(Clock())
        trainer.args.save_strategy = "no"
        loaded.backend.for_training(loaded)
        trainer.train()
    return steps


def through_tuitune(recipe: Path, *, app: bool) -> Steps:
    """The steps by the events of `tuitune run --json`."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "TUITUNE_RUNS": f"{folder}/runs",
            "XDG_RUNTIME_DIR": folder,
            "TERM": "xterm-256color",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "tuitune", "run", str(recipe), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        steps, shown = Steps(), None
        processes = {"client": psutil.Process(process.pid)}
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "started":
                processes["trainer"] = psutil.Process(event["pid"])
            if event["event"] == "plan" and app:
                shown = pexpect.spawn(
                    sys.executable, ["-m", "tuitune", "attach"], dimensions=(40, 120), env=environment, timeout=None
                )
                processes["app"] = psutil.Process(shown.pid)
                threading.Thread(target=_drain, args=(shown,), daemon=True).start()
            if event["event"] == "step":
                steps.note(event["at"], **processes)
        if process.wait() != 0:
            sys.exit("tuitune run failed")
        if shown is not None:
            shown.close(force=True)
    return steps


def _drain(child: Any) -> None:
    try:
        while True:
            child.read_nonblocking(65536, timeout=None)
    except (pexpect.EOF, OSError, ValueError):
        return


def compared(runs: list[Steps], others: list[Steps]) -> float:
    """How much longer `runs` take than `others`: each step's fastest against its fastest."""
    fastest = [sum(map(min, zip(*(run.seconds for run in each), strict=True))) for each in (runs, others)]
    return round(float(fastest[0] / fastest[1]), 4)


def medians(runs: list[Steps]) -> list[float]:
    return [round(statistics.median(run.seconds), 4) for run in runs]


def least(runs: list[Steps], name: str) -> float:
    return min(run.cpu_seconds(name) for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=SAMPLE_DATA / "demo.yaml")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--name", default="cpu")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="field=value")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        print(json.dumps(asdict(bare(Recipe.load(arguments.recipe)))))
        return
    fixed = [f"max_steps={arguments.steps}", "save_steps=100000", "fit=false", "eval_share=0", "max_new_tokens=1"]
    recipe = Recipe.load(arguments.recipe, [*fixed, *arguments.changes])
    recipe = recipe.model_copy(update={"samples": recipe.samples.model_copy(update={"prompts": ["hello"]})})
    ways: dict[str, list[Steps]] = {"bare": [], "tuitune run": [], "tuitune run and the app": []}
    loads = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(recipe.to_yaml())
        for _ in range(arguments.pairs):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.overhead", str(file), "--bare"],
                capture_output=True,
                text=True,
                check=True,
            )
            ways["bare"].append(Steps(**json.loads(done.stdout.splitlines()[-1])))
            ways["tuitune run"].append(through_tuitune(file, app=False))
            ways["tuitune run and the app"].append(through_tuitune(file, app=True))
            loads.append(os.getloadavg()[0])
            print({way: medians(runs) for way, runs in ways.items()}, flush=True)
    spent = least(ways["bare"], "trainer")
    found = {
        "what": f"step times over {arguments.steps - WARM_UP - 1} steps, each the fastest of {arguments.pairs} runs",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": round(max(loads), 1),
        "recipe": arguments.recipe.name,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "median_step_seconds": {way: medians(runs) for way, runs in ways.items()},
        "ratio": {way: compared(runs, ways["bare"]) for way, runs in ways.items() if way != "bare"},
        # What the machine's own noise does to the same comparison.
        "ratio_of_bare_to_bare": compared(ways["bare"][::2], ways["bare"][1::2]) if arguments.pairs > 1 else None,
        "cpu_ratio_of_the_training_process": {
            way: round(least(runs, "trainer") / spent, 4) for way, runs in ways.items() if way != "bare"
        },
        "cpu_share_of_other_processes": {
            name: round(least(ways["tuitune run and the app"], name) / spent, 4) for name in ("client", "app")
        },
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"overhead_{arguments.name}.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
