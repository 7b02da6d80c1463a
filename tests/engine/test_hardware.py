"""The machine as NVML and psutil tell it; only NVML itself is stood in for."""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tuitune.errors import UnusableInput
from tuitune.machine import hardware
from tuitune.machine.environment import unsloth_is_usable
from tuitune.runs.events import Sample, from_json, to_json

GIB = 2**30


class FakeNvml:
    """The part of NVML's Python interface that is used, for two cards: an idle H200 and a busy T4."""

    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.reasons = 0x01  # idle
        self.processes = [(os.getpid(), GIB), (1, 5)]

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("nvml") and name in super().__getattribute__("broken"):

            def fails(*_: Any) -> Any:
                raise FakeNvml.NVMLError("Not Supported")

            return fails
        return value

    def nvmlInit(self) -> None: ...

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.159.03"

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return (SimpleNamespace(total=140 * GIB, used=2 * GIB), SimpleNamespace(total=15 * GIB, used=14 * GIB))[handle]

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return ((9, 0), (7, 5))[handle]

    def nvmlDeviceGetName(self, handle: int) -> str:
        return ("NVIDIA H200", "Tesla \x1b[31mT4")[handle]

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return ("GPU-aaaa", "GPU-bbbb")[handle]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in self.processes]

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=87)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 412_500

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 61

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        return self.reasons

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return self.reasons

    def nvmlDeviceGetClockInfo(self, handle: int, clock: int) -> int:
        return 990

    def nvmlDeviceGetMaxClockInfo(self, handle: int, clock: int) -> int:
        return 1_980


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(hardware, "_nvml", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_cards_are_read_and_their_names_made_safe(nvml: FakeNvml) -> None:
    first, second = hardware.gpus()
    assert (first.name, first.driver, first.total_bytes) == ("NVIDIA H200", "580.159.03", 140 * GIB)
    assert first.has_bf16
    assert not second.has_bf16
    assert "\x1b" not in second.name


@pytest.mark.parametrize(
    ("visible", "name"), [("1", 1), ("GPU-bbbb", 1), ("1,0", 1), ("0", 0), ("", None), ("7", None)]
)
def test_the_chosen_card_is_the_one_cuda_would_use(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str, name: int | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    card = hardware.chosen_gpu()
    assert (card.index if card else None) == name


@pytest.mark.parametrize(
    ("visible", "usable"), [(None, True), ("1", True), ("MIG-4f2a", True), ("", False), ("-1", False)]
)
def test_unsloth_is_left_out_where_every_card_is_hidden(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str | None, usable: bool
) -> None:
    (tmp_path / "unsloth.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert unsloth_is_usable() == usable


def test_the_emptiest_card_is_taken_unless_the_user_chose(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    hardware.choose_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    hardware.choose_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_card_is_chosen_by_its_number(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    hardware.choose_gpu(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb"
    with pytest.raises(UnusableInput, match="no GPU 7: this machine has 0, 1"):
        hardware.choose_gpu(7)


@pytest.mark.fault
def test_a_card_that_is_lost_between_two_readings_ends_no_sampling(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter(range(100))

    def handle(index: int) -> int:
        if next(asked) == 2:  # both cards are there when they are counted
            raise FakeNvml.NVMLError("GPU is lost")
        return index

    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByIndex", handle)
    lost = hardware.sample()
    assert lost.host_total_bytes and lost.gpu_used_bytes is None
    assert hardware.sample().gpu_used_bytes == 2 * GIB


def test_a_sample_tells_this_process_apart(nvml: FakeNvml) -> None:
    sample = hardware.sample()
    assert (sample.gpu_process_bytes, sample.gpu_used_bytes) == (GIB, 2 * GIB)
    assert (sample.gpu_percent, sample.gpu_celsius, sample.gpu_watts) == (87.0, 61.0, 412.5)
    assert sample.process_bytes > 10 * 2**20


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (0x00, ()),
        (0x01, ()),
        (0x20, ("heat",)),
        (0x08 | 0x40, ("heat",)),
        (0x04, ("power limit",)),
        (0x80, ("power brake",)),
    ],
)
@pytest.mark.parametrize("driver", ["new", "old"])
def test_what_holds_the_clock_down_is_told_in_words(
    nvml: FakeNvml, driver: str, reasons: int, words: tuple[str, ...]
) -> None:
    nvml.reasons = reasons
    nvml.broken = {"nvmlDeviceGetCurrentClocksEventReasons"} if driver == "old" else set()
    sample = hardware.sample()
    assert sample.gpu_slowed_by == words
    assert sample.gpu_clock_share == (0.5 if words else None)


def test_what_a_sample_tells_comes_back_from_a_record(nvml: FakeNvml) -> None:
    nvml.reasons = 0x60 | 0x04
    sample = hardware.sample()
    assert sample.gpu_slowed_by == ("heat", "power limit")
    assert from_json(to_json(sample)) == sample
    older = {
        name: value
        for name, value in json.loads(to_json(sample)).items()
        if name not in ("gpu_slowed_by", "gpu_others_bytes")
    }
    read = from_json(json.dumps(older))
    assert isinstance(read, Sample) and (read.gpu_slowed_by, read.gpu_others_bytes) == ((), None)


HOST_PIDS = [(4001, 3 * GIB), (4002, GIB // 2)]


@pytest.mark.parametrize(
    ("processes", "by_torch", "others"),
    [
        ([(os.getpid(), GIB), (1, 7 * GIB)], None, 7 * GIB),
        ([(1, 7 * GIB)], None, 7 * GIB),  # nothing of ours is on the card yet
        ([(os.getpid(), GIB), (os.getpid(), GIB)], None, 0),  # two instances of a card
        (HOST_PIDS, 2 * GIB, GIB // 2),  # in a container: the first is ours
        (HOST_PIDS, GIB // 4, None),  # either may be ours
        ([], 2 * GIB, None),
        ([(1, None)], None, 0),
    ],
)
def test_what_other_processes_hold_is_told_where_ours_is_known(
    nvml: FakeNvml,
    monkeypatch: pytest.MonkeyPatch,
    processes: list[tuple[int, int]],
    by_torch: int | None,
    others: int | None,
) -> None:
    nvml.processes = processes
    torch = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True, memory_reserved=lambda: by_torch))
    if by_torch is not None:
        monkeypatch.setitem(sys.modules, "torch", torch)
    assert hardware.sample().gpu_others_bytes == others


READINGS = [
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetMaxClockInfo",
]


@pytest.mark.parametrize("error", [FakeNvml.NVMLError("GPU is lost"), AttributeError("an older package"), OSError()])
def test_no_reading_that_fails_breaks_a_sample(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any) -> Any:
        raise error

    nvml.reasons = 0x20
    for broken in READINGS:
        with monkeypatch.context() as patch:
            patch.setattr(nvml, broken, fails)
            assert hardware.sample().gpu_used_bytes == 2 * GIB, broken
    for broken in READINGS:
        monkeypatch.setattr(nvml, broken, fails)
    sample = hardware.sample()
    assert (sample.gpu_others_bytes, sample.gpu_slowed_by, sample.gpu_clock_share) == (None, (), None)


def test_a_reading_that_the_card_does_not_give_is_none(nvml: FakeNvml) -> None:
    nvml.broken = {"nvmlDeviceGetPowerUsage", "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetUtilizationRates"}
    sample = hardware.sample()
    assert (sample.gpu_watts, sample.gpu_percent, sample.gpu_process_bytes) == (None, None, None)
    assert sample.gpu_celsius == 61.0


@pytest.mark.fault
def test_a_card_that_fell_off_the_bus_does_not_raise(nvml: FakeNvml) -> None:
    nvml.broken = {"nvmlDeviceGetMemoryInfo"}
    assert hardware.gpus() == []
    assert hardware.sample().gpu_index is None


def test_without_a_driver_there_is_no_card(nvml: FakeNvml) -> None:
    nvml.broken = {"nvmlInit"}
    assert hardware.gpus() == []
    assert hardware.sample().gpu_total_bytes is None


def test_the_machine_names_versions_and_never_itself(tmp_path: Path) -> None:
    machine = hardware.machine(tmp_path)
    assert machine.cpu_cores >= 1
    assert machine.libraries["torch"].startswith("2.")
    assert os.uname().nodename not in str(machine.as_dict())


def test_a_sample_takes_milliseconds() -> None:
    hardware.sample()
    began = time.perf_counter()
    for _ in range(5):
        hardware.sample()
    assert (time.perf_counter() - began) / 5 < 0.05
