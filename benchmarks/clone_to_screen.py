"""How long it takes from a clone to the first screen of the demo: cloning, installing, starting.

    python benchmarks/clone_to_screen.py [--out FILE]

Clones this repository into a temporary folder and does there what `make demo` does, with the package index that pip is
set up for and an empty cache. The network and other work on the machine decide most of it.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from datetime import date
from pathlib import Path

import pexpect

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "clone_to_screen.json")
    out = parser.parse_args().out
    place = Path(tempfile.mkdtemp(prefix="clone-"))
    environment = {**os.environ, "PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        began = time.monotonic()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), "tuitune"], cwd=place, check=True)
        subprocess.run(["make", ".venv/installed"], cwd=place / "tuitune", env=environment, check=True)
        installed = time.monotonic()
        app = pexpect.spawn(
            str(place / "tuitune" / ".venv" / "bin" / "tuitune"),
            ["demo", "--runs", str(place / "runs")],
            dimensions=(24, 80),
            env={**environment, "TERM": "xterm-256color"},
        )
        app.expect("Choose what to start from", timeout=60)
        shown = time.monotonic()
        app.close(force=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    result = {
        "what": "seconds from `git clone` of a local repository to the first screen of `make demo`, pip's cache empty",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[1], 1),
        "install_s": round(installed - began),
        "first_screen_s": round(shown - installed, 2),
        "whole_s": round(shown - began),
    }
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
