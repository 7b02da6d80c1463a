"""Programs of Python that begin with the libraries imported: forked from a process that has imported them before.

A program so started runs its own code in a process of its own, and takes 2 to 4 s of CPU less. Tests use it whose point
is not how a program starts; those marked `cold` start theirs as users do, as all do where there is a GPU (CUDA cannot
be forked).
"""

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import reduction
from pathlib import Path
from typing import IO, Any

from tuitune.machine.hardware import gpus

CAN_FORK = not gpus()
_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(
    [
        *("pytest", "torch", "bitsandbytes", "datasets", "peft", "sentencepiece", "transformers.modeling_utils"),
        *("transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama", "transformers.trainer"),
        *("trl.trainer.sft_trainer", "trl.trainer.dpo_trainer", "trl.trainer.grpo_trainer"),
    ]
)


class ForkedProgram:
    """What is used of a `subprocess.Popen` of `python -P FILE ARGUMENTS…` or `python -P -c CODE`."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: IO[bytes],
        stderr: IO[bytes],
        env: Mapping[str, str],
        cwd: Path,
    ) -> None:
        reading, writing = os.pipe()
        self.stdin = os.fdopen(writing, "wb") if stdin == subprocess.PIPE else None
        if self.stdin is None:
            os.close(writing)
        begun, begins = os.pipe()
        descriptors = [_Descriptor(number) for number in (reading, stdout.fileno(), stderr.fileno(), begins)]
        self._process = _FORKING.Process(target=_become, args=(argv[2:], descriptors, dict(env), cwd))
        self._process.start()
        os.close(reading)
        os.close(begins)
        os.read(begun, 1)  # until it has a process group of its own
        os.close(begun)
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        return self.returncode


def run_forked(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, at most 300 s, with its output captured."""
    if not CAN_FORK:
        return subprocess.run(argv, cwd=cwd, env=env, timeout=300, capture_output=True, text=True, check=False)
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        code = ForkedProgram(argv, stdout=stdout, stderr=stderr, env=env, cwd=cwd).wait(300)
        told = []
        for file in (stdout, stderr):
            file.seek(0)
            told.append(file.read().decode())
    return subprocess.CompletedProcess(argv, code, *told)


class _Descriptor:
    """An open file that the child gets."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _number_of, (reduction.DupFd(self._number),)


def _number_of(duplicate: Any) -> int:
    number: int = duplicate.detach()
    return number


def _become(argv: Sequence[str], descriptors: Sequence[int], environment: Mapping[str, str], folder: Path) -> None:
    gc.freeze()
    os.setsid()
    *standard, begins = descriptors
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.close(begins)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # What `-P` leaves, without what the tests put in front.
    sys.path[:] = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
    program, *arguments = map(str, argv)
    if program == "-c":
        code, *arguments = arguments
        sys.argv = ["-c", *arguments]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - as `python -c` does
    else:
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")
