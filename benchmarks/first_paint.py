"""Time from start to first paint on a pty, tuitune against a one-label Textual app, in pairs in one run.

    python -m benchmarks.first_paint [--pairs 15]

Both programs run in the same 80×24 pseudo-terminal in turn; a paint has happened once the text each one is known
to show is on the emulated screen. Also lists which heavy libraries the app process had imported when it ended.
Writes benchmarks/results/first_paint.json.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pexpect
import pyte

RESULT = Path(__file__).parent / "results" / "first_paint.json"
HEAVY = ("torch", "transformers", "datasets", "trl", "peft", "unsloth", "bitsandbytes")

ONE_LABEL = """
from textual.app import App
from textual.widgets import Label
class One(App):
    def compose(self):
        yield Label("just one label")
One().run()
"""
# The command as a user runs it, with a list of what it had imported written when it ends.
TUITUNE = """
import json, sys
from tuitune.__main__ import main
file = sys.argv.pop()
main()
with open(file, "w") as file:
    json.dump(sorted(sys.modules), file)
"""


def paint_seconds(code: str, argument: str, text: str) -> float:
    """Start a program on a pty, wait until `text` is on its screen, and end it with Ctrl+Q."""
    screen = pyte.Screen(80, 24)
    stream = pyte.ByteStream(screen)
    seconds = 0.0
    started = time.perf_counter()
    child = pexpect.spawn(sys.executable, ["-c", code, argument], dimensions=(24, 80), timeout=30)
    while not any(text in line for line in screen.display):
        if time.perf_counter() - started > 30:
            sys.exit(f"{text!r} did not appear within 30 s")
        data = child.read_nonblocking(65536, timeout=30)
        seconds = time.perf_counter() - started  # before the emulator, slower than any terminal, looks at it
        stream.feed(data)
    child.sendcontrol("q")
    while True:
        try:
            child.read_nonblocking(65536, timeout=10)
        except pexpect.EOF:
            break
    child.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # both run from cached byte code, as installed programs do
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(TUITUNE_RUNS=f"{folder}/runs", XDG_RUNTIME_DIR=folder, XDG_CONFIG_HOME=folder)
        modules = Path(folder) / "modules.json"
        ratios, ours, theirs = [], [], []
        for pair in range(pairs + 1):
            while any(Path(folder).glob("tuitune/*.sock")):  # the last pair's session would slow this one down
                time.sleep(0.1)
            label = paint_seconds(ONE_LABEL, "", "just one label")
            app = paint_seconds(TUITUNE, str(modules), "Model")
            if pair:  # the first pair warms the disk cache
                ours.append(app)
                theirs.append(label)
                ratios.append(app / label)
        imported = [module for module in json.loads(modules.read_text()) if module.partition(".")[0] in HEAVY]
    result = {
        "what": "seconds from start to first paint on an 80x24 pty",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "pairs": pairs,
        "tuitune_median_s": round(statistics.median(ours), 3),
        "one_label_median_s": round(statistics.median(theirs), 3),
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "heavy_modules_in_the_app": imported,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
