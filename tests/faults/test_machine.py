"""The driver of the card fails at any of its calls, once or from then on: what it would have told is left out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_hardware import FakeNvml, nvml  # noqa: F401 - a fixture
from tests.faults.sweep import Record
from tests.faults.test_sweeps import Survived
from tuitune.machine import hardware
from tuitune.runs.events import Sample, from_json, to_json


class FailingNvml(FakeNvml):
    """Raises at the call with the number `at`, and with `lasting` at every later one."""

    def __init__(self, at: int, lasting: bool) -> None:
        super().__init__()
        self.at, self.lasting, self.calls = at, lasting, 0

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("nvml"):
            return value

        def call(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self.at or (self.lasting and self.calls > self.at > 0):
                raise FakeNvml.NVMLError("GPU is lost")
            return value(*arguments)

        return call


def asked(at: int, lasting: bool, ask: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    failing = FailingNvml(at, lasting)
    monkeypatch.setitem(hardware.sys.modules, "pynvml", failing)  # type: ignore[attr-defined]
    monkeypatch.setattr(hardware, "_nvml", None)
    return ask(), failing.calls


def test_nvml_fails_at_any_call(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, survived: Survived) -> None:  # noqa: F811
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aaaa")
    questions: dict[str, Callable[[], Any]] = {
        "a sample": hardware.sample,
        "the cards": hardware.gpus,
        "the machine": lambda: hardware.machine(Path.home()),
    }
    records = []
    for question, ask in questions.items():
        _, calls = asked(0, False, ask, monkeypatch)
        assert calls > 2
        for lasting in (False, True):
            for at in range(1, calls + 1):
                problems = []
                try:
                    answer, _ = asked(at, lasting, ask, monkeypatch)
                    if isinstance(answer, Sample) and (
                        from_json(to_json(answer)) != answer or not answer.process_bytes
                    ):
                        problems = [f"the sample cannot be recorded: {answer}"]
                except Exception as error:
                    problems = [repr(error)]
                where = f"{question}, call {at} of {calls}{' and later ones' if lasting else ''}"
                records.append(Record("NVML fails", where, "an answer without what it would have told", problems))
    survived(records)
