"""A machine that is the same wherever the tests run, as its edges tell it: NVML, psutil, the disk, torch, the clock."""

import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.screens import histories
from tuitune.machine import hardware

GIB = 2**30
NAME = "NVIDIA RTX 4090"

_NVML = f"""
from types import SimpleNamespace


class NVMLError(Exception):
    pass


def nvmlInit(): pass
def nvmlSystemGetDriverVersion(): return "580.95"
def nvmlDeviceGetCount(): return {{cards}}
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetMemoryInfo(handle): return SimpleNamespace(total=24 * 2**30, used=2**30)
def nvmlDeviceGetCudaComputeCapability(handle): return (8, 9)
def nvmlDeviceGetName(handle): return {NAME!r}
def nvmlDeviceGetUUID(handle): return f"GPU-{{{{handle}}}}"
"""
_LIBRARIES = {
    "torch.py": f"""
from types import SimpleNamespace

__version__ = "2.11.0"
version = SimpleNamespace(cuda="13.0")
cuda = SimpleNamespace(is_available=lambda: True, get_device_name=lambda: {NAME!r})


def ones(*shape, device):
    return SimpleNamespace(sum=lambda: SimpleNamespace(item=lambda: 8.0))
""",
    "bitsandbytes/__init__.py": '__version__ = "0.50.0"\n',
    "bitsandbytes/functional.py": "def quantize_4bit(tensor, quant_type): pass\n",
    "unsloth.py": '__version__ = "2026.10.7"\n',
}


def write_nvml(folder: Path, cards: int = 1) -> None:
    """Cards with 23 of 24 GiB free each, for a process that has `folder` on its PYTHONPATH."""
    (folder / "pynvml.py").write_text(_NVML.format(cards=cards))


def write_libraries(folder: Path) -> None:
    """Libraries that say they compute on that card, for a process that has `folder` on its PYTHONPATH."""
    for name, text in _LIBRARIES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def be_the_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process see the card of `write_nvml`, fixed memory, little disk, and a clock that stands still."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setattr(hardware, "_nvml", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    disk = SimpleNamespace(total=1024 * GIB, used=1012 * GIB, free=12 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk)
    monkeypatch.setattr(psutil, "disk_usage", lambda path: disk)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=48 * GIB))
    monkeypatch.setattr(psutil, "cpu_count", lambda: 16)
    monkeypatch.setattr(time, "time", lambda: histories.NOW)


def see_libraries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the processes that are started, but not this one, import the libraries of `write_libraries`."""
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])  # found, and after what is installed
