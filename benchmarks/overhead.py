"""What session, events, sampling and an attached app cost a step.

    python -m benchmarks.overhead [RECIPE] [--pairs 15] [--steps 15] [--name cpu] [--set field=value …]

In one process, the same steps run in turn bare, with nothing of tuitune called between them, and watched, with every
event written to a run folder and a sample a second; the median over the pairs is told with its quartiles, since other
work on the machine moves single pairs. Then `tuitune run` with the app on a 120×40 pty beside it tells what its other
threads and processes use while steps run, as shares of what training uses. Writes
benchmarks/results/overhead_NAME.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect
import psutil

from benchmarks.shapes import SAMPLE_DATA
from tuitune.recipe import Recipe
from tuitune.runs.events import Event

RESULTS = Path(__file__).parent / "results"


@dataclass
class Block:
    """What some steps took: seconds, and CPU seconds of the whole process."""

    seconds: float
    cpu_seconds: float


def block(loaded: Any, prepared: Any, *, watched: bool) -> Block:
    """Train `max_steps` steps from where the adapter stands; the first two and the last, which saves, do not count."""
    from transformers import TrainerCallback

    from tuitune.machine.hardware import sample
    from tuitune.runs.folder import create_run
    from tuitune.train.callbacks import RunCallback
    from tuitune.train.control import Control
    from tuitune.train.evaluate import Evaluator
    from tuitune.train.trainer import make_trainer

    marks: list[tuple[float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            marks.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        writer = create_run(loaded.recipe, Path(folder), "overhead")
        writing, ended = threading.Lock(), threading.Event()

        def emit(event: Event) -> None:
            with writing:
                writer.append(event)

        def samples() -> None:
            while not ended.wait(1.0):
                emit(sample())

        control = Control()
        evaluator = Evaluator(loaded, loaded.recipe, prepared, control, emit, 1)
        callback = RunCallback(writer.run, control, emit, evaluator, 1)
        trainer = make_trainer(loaded, loaded.recipe, prepared, writer.run, [callback], control, emit)
        evaluator.trainer = trainer
        trainer.args.save_strategy = "no"
        sampler = threading.Thread(target=samples)
        if watched:
            sampler.start()
        else:
            trainer.remove_callback(callback)
        trainer.add_callback(Clock())
        loaded.backend.for_training(loaded)
        trainer.train()
        ended.set()
        if watched:
            sampler.join()
        writer.close()
    (began, cpu_began), (end, cpu_end) = marks[2], marks[-1]
    return Block(end - began, cpu_end - cpu_began)


def in_pairs(recipe: Recipe, pairs: int) -> list[tuple[Block, Block]]:
    """Watched and bare blocks in turn, each first in every second pair."""
    from tuitune.machine.environment import warm_up

    warm_up()
    from tuitune import backends
    from tuitune.data.prepare import prepare
    from tuitune.model.config import load_tokenizer

    prepared = prepare(recipe, load_tokenizer(recipe.model))
    loaded = backends.load(recipe, print)
    loaded.backend.attach(loaded)
    block(loaded, prepared, watched=True)
    blocks = []
    for pair in range(pairs):
        first = block(loaded, prepared, watched=pair % 2 == 0)
        second = block(loaded, prepared, watched=pair % 2 == 1)
        blocks.append((first, second) if pair % 2 == 0 else (second, first))
    return blocks


def quartiles(ratios: list[float]) -> list[float]:
    return [round(quartile, 4) for quartile in statistics.quantiles(ratios, n=4)]


def beside(recipe: Path) -> dict[str, float]:
    """CPU of what is not training, as shares of the training process's, while `tuitune run` steps."""
    cpu_seconds: list[dict[str, float]] = []
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
        client, session, app, shown = psutil.Process(process.pid), None, None, None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "started":
                session = psutil.Process(event["pid"])
            if event["event"] == "plan":
                command = ["-m", "tuitune", "attach"]
                shown = pexpect.spawn(sys.executable, command, dimensions=(40, 120), env=environment, timeout=None)
                threading.Thread(target=_drain, args=(shown,), daemon=True).start()
                app = psutil.Process(shown.pid)
            if event["event"] == "step" and session and app:
                # A session's main thread serves, samples and sends; training is in another.
                main = next(thread for thread in session.threads() if thread.id == session.pid)
                cpu_seconds.append(
                    {
                        "training": _cpu_seconds(session),
                        "session beside training": main.user_time + main.system_time,
                        "tuitune run": _cpu_seconds(client),
                        "app": _cpu_seconds(app),
                    }
                )
        if process.wait() != 0 or shown is None:
            sys.exit("tuitune run failed")
        shown.close(force=True)
    used = {
        name: cpu_seconds[-1][name] - cpu_seconds[len(cpu_seconds) // 2][name] for name in cpu_seconds[-1]
    }  # the app has started by half
    return {name: round(used[name] / used["training"], 4) for name in used if name != "training"}


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _drain(child: Any) -> None:
    try:
        while True:
            child.read_nonblocking(65536, timeout=None)
    except (pexpect.EOF, OSError, ValueError):
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=SAMPLE_DATA / "demo.yaml")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--name", default="cpu")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="field=value")
    arguments = parser.parse_args()
    fixed = ["save_steps=100000", "fit=false", "eval_share=0", "max_new_tokens=1", "prompts=[hello]"]
    changes = [*fixed, *arguments.changes]
    pairs = in_pairs(Recipe.load(arguments.recipe, [*changes, f"max_steps={arguments.steps}"]), arguments.pairs)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(Recipe.load(arguments.recipe, [*changes, f"max_steps={8 * arguments.steps}"]).to_yaml())
        shares = beside(file)
    result = {
        "what": f"{arguments.pairs} pairs of {arguments.steps - 3} steps, watched against bare",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 1),
        "recipe": arguments.recipe.name,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "median_step_seconds": round(statistics.median(b.seconds for _, b in pairs) / (arguments.steps - 3), 4),
        "time_ratio_quartiles": quartiles([w.seconds / b.seconds for w, b in pairs]),
        "cpu_ratio_quartiles": quartiles([w.cpu_seconds / b.cpu_seconds for w, b in pairs]),
        "cpu_share_beside_training": shares,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"overhead_{arguments.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
