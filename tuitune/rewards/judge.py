"""What an answer is worth by each of a recipe's rewards, computed in a process that can be ended."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tuitune.errors import TuituneError
from tuitune.language import _, reworded
from tuitune.reward_sections import PythonFile, Reward, UnitTests, titles
from tuitune.rewards.confirmed import require_confirmed
from tuitune.text import one_line

_SECONDS = 10.0
"""What one of tuitune's own rewards may take for one reply; a regular expression can take for ever."""
_START_SECONDS = 60.0
_LOOK_SECONDS = 0.1
_ROUNDING = 1e-9
"""Sums of weighted rewards that are equal differ by less."""


class RewardFailed(TuituneError):
    """A reward that gave no number, or none in time, and on which reply."""


class Cancelled(Exception):
    """The judging was left because that was asked."""


@dataclass(frozen=True)
class Answer:
    """A reply to judge, with the prompt's messages and the row of the data that it is from."""

    prompt: list[dict[str, Any]]
    reply: str
    tokens: int
    columns: dict[str, Any]

    def as_row(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "reply": self.reply, "tokens": self.tokens, "columns": self.columns}


def differ(rewards: Sequence[float]) -> bool:
    """Whether the answers to one prompt are worth different amounts: without that nothing is learned from it."""
    return max(rewards) - min(rewards) > _ROUNDING


class Judge:
    """Holds the process while rewards are needed; close it, or use it in a `with`."""

    def __init__(self, rewards: Sequence[Reward]) -> None:
        """Raises UnusableInput for a file of the user's that is not there, or was not confirmed as it is."""
        self.rewards = list(rewards)
        self.titles = titles(self.rewards)
        self._requests = [
            {
                "options": reward.model_dump(mode="json"),
                "source": require_confirmed(reward) if isinstance(reward, PythonFile) else None,
            }
            for reward in self.rewards
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def values(self, answers: Sequence[Answer], cancelled: Callable[[], bool] = lambda: False) -> list[list[float]]:
        """The value of each answer by each reward: one list a reward. Raises RewardFailed, Cancelled."""
        if not answers:
            return [[] for _reward in self.rewards]
        try:
            return self._ask(answers, cancelled)
        except _Failure as failure:
            place, row = failure.reward, failure.row
            if row is None and len(answers) > 1:  # a function that was called for all: find the one that does it
                for number, answer in enumerate(answers):
                    try:
                        self._ask([answer], cancelled)
                    except _Failure as alone:
                        raise self._failed(alone.reward, answers[number], alone.clause) from None
            raise self._failed(place, answers[row or 0], failure.clause) from None

    def totals(self, values: Sequence[Sequence[float]]) -> list[float]:
        """Each answer's weighted sum over all rewards."""
        weights = [reward.weight for reward in self.rewards]
        return [
            sum(weight * value for weight, value in zip(weights, column, strict=True))
            for column in zip(*values, strict=True)
        ]

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _failed(self, place: int, answer: Answer, clause: str) -> RewardFailed:
        title = one_line(self.titles[place], max_length=60)
        reply = one_line(repr(answer.reply), max_length=160)
        prompt = one_line(repr(str(answer.prompt[-1].get("content", "")) if answer.prompt else ""), max_length=100)
        return RewardFailed(
            "The reward {title} {clause} for the reply {reply} to {prompt}: mend it, or take it out of method.rewards.",
            title=title,
            clause=one_line(clause, max_length=300),
            reply=reply,
            prompt=prompt,
        )

    def _ask(self, answers: Sequence[Answer], cancelled: Callable[[], bool]) -> list[list[float]]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        request = {"rewards": self._requests, "rows": [answer.as_row() for answer in answers]}
        place: int = 0
        row: int | None = None
        try:
            process.stdin.write(json.dumps(request, default=str).encode() + b"\n")
            process.stdin.flush()
            reader = _Lines(process.stdout.fileno())
            allowed = _START_SECONDS
            while True:
                line = reader.next(allowed, cancelled)
                if line is None:
                    self.close()
                    raise _Failure(place, row, _("did not end within {seconds:g} s", seconds=allowed))
                answer = json.loads(line)
                if "values" in answer:
                    values: list[list[float]] = answer["values"]
                    return values
                if "failed" in answer:
                    place, row = answer["failed"]
                    by_function = isinstance(self.rewards[place], PythonFile)
                    fails_for_all = by_function and "returned" not in answer["clause"]
                    clause = reworded(answer["clause"], answer.get("said"))
                    raise _Failure(place, None if fails_for_all else row, clause)
                place, row = answer["at"]
                allowed = self._seconds_of(self.rewards[place])
        except (EOFError, BrokenPipeError):
            self.close()
            raise _Failure(place, row, _("ended its process")) from None
        except Cancelled:
            self.close()
            raise

    @staticmethod
    def _seconds_of(reward: Reward) -> float:
        if isinstance(reward, PythonFile):
            return reward.seconds
        return _SECONDS + (reward.seconds if isinstance(reward, UnitTests) else 0)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            package_folder = str(Path(__file__).parents[2])
            path = os.pathsep.join(filter(None, [package_folder, os.environ.get("PYTHONPATH", "")]))
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tuitune.rewards.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
                start_new_session=True,
            )
        return self._process


class _Failure(Exception):
    def __init__(self, reward: int, row: int | None, clause: str) -> None:
        super().__init__(clause)
        self.reward, self.row, self.clause = reward, row, clause


class _Lines:
    """Lines of a pipe, waited for no longer than allowed."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._held = b""

    def next(self, seconds: float, cancelled: Callable[[], bool]) -> bytes | None:
        """The next line; None where there is none in time. Raises EOFError, Cancelled."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._held:
            if cancelled():
                raise Cancelled
            seconds_left = deadline - time.monotonic()
            if seconds_left <= 0:
                return None
            ready, _, _ = select.select([self._pipe], [], [], min(seconds_left, _LOOK_SECONDS))
            if ready:
                part = os.read(self._pipe, 1 << 16)
                if not part:
                    raise EOFError
                self._held += part
        line, _, self._held = self._held.partition(b"\n")
        return line
