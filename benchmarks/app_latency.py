"""Key press to paint on a busy dashboard, and what the app costs when nothing happens.

    python -m benchmarks.app_latency [--presses 300]

The app runs on a 120×40 pty with 100,000 steps on its dashboard and 20 new ones a second. A press of `m` shows
the next curve; it is painted when that curve's title has arrived on the pty. Then the events stop, and the process's
CPU time and memory are read. Writes benchmarks/results/app_latency.json.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pexpect
import psutil

RESULT = Path(__file__).parent / "results" / "app_latency.json"
STEPS = 100_000
EVENTS_PER_SECOND = 20
IDLE_SECONDS = 15
TITLES = ("Learning rate", "Gradient norm", "Tokens per second", "Loss")

APP = """
import math, sys, time
from pathlib import Path
from screens.app import TuituneApp
from screens.run_link import RunLink
from tuitune.runs.events import Phase, Plan, Started, Step
from tuitune.runs.history import History
from tuitune.runs.folder import Run

steps, rate, streaming = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])

def step(number):
    return Step(attempt=1, step=number, total_steps=10 * steps, epoch=number / steps, loss=2 + math.sin(number),
                grad_norm=1 + math.cos(number), learning_rate=1e-4, tokens=1000, tokens_per_second=5000.0 + number % 7)

class Busy(TuituneApp):
    CSS_PATH = str(Path(sys.modules["screens.app"].__file__).parent / "app.tcss")
    def stream(self):
        self.until = time.monotonic() + streaming
        self.feeding = self.set_interval(1 / rate, self.feed)
        self.call_later(self.show_step, "train")
    def feed(self):
        if time.monotonic() > self.until:
            self.feeding.stop()
            self.link._live = False
        else:
            self.link._receive(step(self.link.history.step + 1))

def start(link):
    link._set_state("ready")
    link.run, link._live, link._sends_ours = Run(Path("/tmp/busy")), True, True
    link.history = History.of([Started(run="busy", attempt=1, pid=1), Phase(name="training", text="Training"),
                               *(step(n) for n in range(1, steps + 1))])
    link._app.stream()

RunLink._start = start
Busy(runs_folder=Path("/tmp/none")).run()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presses", type=int, default=300)
    presses = parser.parse_args().presses
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(TUITUNE_RUNS=f"{folder}/runs", XDG_RUNTIME_DIR=folder, XDG_CONFIG_HOME=folder)
        streaming = presses * 0.2 + 25
        child = pexpect.spawn(
            sys.executable,
            ["-c", APP, str(STEPS), str(EVENTS_PER_SECOND), str(streaming)],
            dimensions=(40, 120),
            timeout=60,
            env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        )
        child.delaybeforesend = None  # pexpect waits 50 ms by default
        child.expect("100,0")
        started = time.monotonic()  # the events come since the app began to paint this, or shorter
        seconds = []
        for press in range(presses):
            end = time.monotonic() + 0.15
            while time.monotonic() < end:  # take what the stream paints, and keep the presses apart
                with contextlib.suppress(pexpect.TIMEOUT):
                    child.read_nonblocking(65536, timeout=0.01)
            before = time.perf_counter()
            child.send("m")
            child.expect_exact(TITLES[press % len(TITLES)])
            seconds.append(time.perf_counter() - before)
        process = psutil.Process(child.pid)
        memory = process.memory_info().rss
        while time.monotonic() < started + streaming + 3:
            with contextlib.suppress(pexpect.TIMEOUT):
                child.read_nonblocking(65536, timeout=0.1)
        busy = sum(process.cpu_times()[:2])
        time.sleep(IDLE_SECONDS)
        idle = (sum(process.cpu_times()[:2]) - busy) / IDLE_SECONDS
        child.sendcontrol("q")
        child.expect(pexpect.EOF)
    ordered = sorted(seconds)
    result = {
        "what": f"key press to paint on a 120x40 pty, {STEPS:,} steps shown, {EVENTS_PER_SECOND} events a second",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 1),
        "presses": presses,
        "median_ms": round(1000 * statistics.median(ordered), 1),
        "p99_ms": round(1000 * ordered[int(0.99 * (len(ordered) - 1))], 1),
        "max_ms": round(1000 * ordered[-1], 1),
        "idle_share_of_a_core": round(idle, 4),
        "memory_MiB": round(memory / 2**20, 1),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
