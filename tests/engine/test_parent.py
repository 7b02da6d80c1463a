"""What reads a PDF, judges a reply or runs its code ends with the process that started it, though that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tuitune.reward_sections import PythonFile
from tuitune.rewards.confirmed import confirm

HELPERS = {
    "reward": """
from tuitune.reward_sections import PythonFile
from tuitune.rewards.judge import Answer, Judge
reward = PythonFile(name="python", function=f"{folder}/rewards.py:score")
Judge([reward]).values([Answer([], "a reply", 1, {})])
""",
    "code of a reply": """
from tuitune.rewards.unit_tests import unit_tests
unit_tests({"seconds": 600, "memory_mb": 512}, f"open({fifo!r}).read()", ["1"])
""",
    "PDF": """
import os
from pathlib import Path
os.environ["PYTHONPATH"] = folder  # where the library is one that hangs
Path(folder, "pypdfium2.py").write_text(f"open({fifo!r}).read()")
from tuitune.documents.pdf import PdfReader
PdfReader().blocks_of(Path(fifo))
""",
}
"""Each waits in its helper for what a pipe holds."""


@pytest.mark.cold
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
@pytest.mark.parametrize("helper", HELPERS)
def test_it_ends_with_what_started_it(helper: str, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    rewards = tmp_path / "rewards.py"
    rewards.write_text(f"def score(completions):\n    open({str(fifo)!r}).read()\n    return [1.0]\n")
    confirm(PythonFile(name="python", function=f"{rewards}:score"))
    program = f"fifo, folder = {str(fifo)!r}, {str(tmp_path)!r}\n{HELPERS[helper]}"
    with subprocess.Popen([sys.executable, "-P", "-c", program], start_new_session=True) as starter:
        writer = opened_once_read(fifo, starter)
        helpers = psutil.Process(starter.pid).children(recursive=True)
        starter.send_signal(signal.SIGKILL)
    _ended, alive = psutil.wait_procs(helpers, timeout=30)
    for process in alive:
        process.kill()
    os.close(writer)
    assert helpers and not alive


def opened_once_read(fifo: Path, starter: subprocess.Popen[bytes]) -> int:
    """The pipe, opened to be written, once somebody waits to read it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and starter.poll() is None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.05)
    raise AssertionError("nobody reads the pipe")
