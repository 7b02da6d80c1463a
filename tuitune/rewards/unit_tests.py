"""The share of a row's tests that a reply's Python code passes, in a process that can reach nothing."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tuitune.rewards.form import fenced

_LOCKDOWN = Path(__file__).with_name("lockdown.py")
_MOST_BYTES = 65_536


def unit_tests(options: dict[str, Any], reply: str, tests: Any) -> float:
    """Run the first fenced block of the reply, or the whole of it, and then each test.

    0 where the code fails, or time or memory run out. Raises ValueError where the row has no tests, and RuntimeError
    where this machine cannot lock the code in.
    """
    statements = [tests] if isinstance(tests, str) else tests
    if not isinstance(statements, list) or not statements or not all(isinstance(test, str) for test in statements):
        raise ValueError("the row's tests are no Python statements: give a text, or a list of texts")
    block = fenced(reply)
    work = {
        "code": reply if block is None else block,
        "tests": statements,
        "seconds": options["seconds"],
        "memory_mb": options["memory_mb"],
        "parent": os.getpid(),
    }
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-X", "utf8", str(_LOCKDOWN)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"PATH": os.defpath},
        start_new_session=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin as order:  # it may have ended already
                order.write(json.dumps(work).encode())
            process.wait(options["seconds"] + 5)
        except subprocess.TimeoutExpired:
            return 0.0
        finally:
            process.kill()
        verdicts = os.read(process.stdout.fileno(), _MOST_BYTES)  # not before: code that floods the pipe waits at it
    if not verdicts.startswith(b"locked "):
        raise RuntimeError("the code of replies cannot be locked in on this machine, which needs Linux with seccomp")
    return verdicts[len(b"locked ") :][: len(statements)].count(b".") / len(statements)
