"""The machine: GPUs through NVML, memory and disk through psutil, library versions; never slow, never raising."""

import os
import platform
import shutil
import sys
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuitune.errors import UnusableInput
from tuitune.language import N_
from tuitune.machine.precision import is_ampere_or_later
from tuitune.runs.events import Sample
from tuitune.text import one_line

# NVML's bits of `nvmlDeviceGetCurrentClocksEventReasons`, and what they say of a card that works.
_SLOWED_BY = {
    N_("heat"): 0x20 | 0x40,  # SwThermalSlowdown, HwThermalSlowdown
    N_("power limit"): 0x04,  # SwPowerCap
    N_("power brake"): 0x80,  # HwPowerBrakeSlowdown: what feeds the machine cannot give more
}

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "unsloth", "unsloth_zoo", "triton")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA card as NVML reports it. Memory in bytes; `compute_capability` like (9, 0)."""

    index: int
    name: str
    uuid: str
    total_bytes: int
    used_bytes: int
    driver: str
    compute_capability: tuple[int, int]

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.used_bytes

    @property
    def has_bf16(self) -> bool:
        """Ampere and later."""
        return is_ampere_or_later(self.compute_capability)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run is made on. Sizes in bytes; `libraries` are installed versions, without those that are absent."""

    system: str
    processor: str
    cpu_cores: int
    ram_bytes: int
    ram_available_bytes: int
    disk_free_bytes: int
    python: str
    libraries: dict[str, str]
    gpus: tuple[Gpu, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_nvml: Any = None
_nvml_lock = threading.Lock()


def _connected() -> Any:
    """The pynvml module, initialised once; None where there is no driver."""
    global _nvml  # noqa: PLW0603  (one connection for the process, as NVML itself keeps one)
    with _nvml_lock:
        if _nvml is None:
            try:
                import pynvml

                pynvml.nvmlInit()
                _nvml = pynvml
            except Exception:  # no package, no driver, or a driver that does not match
                return None
        return _nvml


def gpus() -> list[Gpu]:
    """The NVIDIA cards of this machine, in NVML's order; empty without one. A card that cannot be read is left out."""
    nvml = _connected()
    if nvml is None:
        return []
    cards = []
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError:
        return []
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            capability = nvml.nvmlDeviceGetCudaComputeCapability(handle)
            cards.append(
                Gpu(
                    index=index,
                    name=_text(nvml.nvmlDeviceGetName(handle)),
                    uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
                    total_bytes=int(memory.total),
                    used_bytes=int(memory.used),
                    driver=driver,
                    compute_capability=(int(capability[0]), int(capability[1])),
                )
            )
        except nvml.NVMLError:
            continue
    return cards


_USERS_CHOICE = "TUITUNE_VISIBLE_GPUS"
"""What CUDA_VISIBLE_DEVICES was before one card of several was chosen; empty where it was not set."""


def visible_gpus() -> list[Gpu]:
    """The cards that whoever started tuitune lets it use (as CUDA_VISIBLE_DEVICES says), in NVML's order."""
    cards = gpus()
    visible = os.environ.get(_USERS_CHOICE) or None
    if _USERS_CHOICE not in os.environ:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return cards
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return [card for card in cards if any(name == str(card.index) or card.uuid.startswith(name) for name in names)]


def chosen_gpu() -> Gpu | None:
    """The card that CUDA would use in this process: the first in CUDA_VISIBLE_DEVICES, else the first; or None."""
    cards = gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not cards:
        return cards[0] if cards else None
    first = visible.split(",")[0].strip()
    return next((card for card in cards if str(card.index) == first or (first and card.uuid.startswith(first))), None)


def choose_gpu(index: int | None = None) -> None:
    """Show CUDA one card alone, in this process and those it starts: `index`, or the emptiest if the user chose none.

    Seeing several, transformers' trainer would spread every batch over all of them. Call it before CUDA starts. Raises
    UnusableInput for a card that is not there.
    """
    if index is None and "CUDA_VISIBLE_DEVICES" in os.environ:
        return
    cards = gpus()
    if index is not None:
        chosen = next((card for card in cards if card.index == index), None)
        if chosen is None:
            if not cards:
                raise UnusableInput(
                    "There is no GPU {index}: this machine has none; `nvidia-smi` lists them.", index=index
                )
            raise UnusableInput(
                "There is no GPU {index}: this machine has {cards}; `nvidia-smi` lists them.",
                index=index,
                cards=[card.index for card in cards],
            )
    elif len(cards) > 1:
        chosen = max(cards, key=lambda card: card.free_bytes)
    else:
        return
    os.environ.setdefault(_USERS_CHOICE, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    os.environ["CUDA_VISIBLE_DEVICES"] = chosen.uuid


def sample(pid: int | None = None, folder: Path | None = None, card: Gpu | None = None) -> Sample:
    """The machine now, and the process `pid` (this one by default) with its GPU memory where NVML tells it.

    The GPU is `card`, or the one that this process works on. The free disk space is that of the file system `folder`
    is on; without a folder it is left out.
    """
    import psutil  # as below: not for the first paint, which asks for no memory

    pid = pid or os.getpid()
    host = psutil.virtual_memory()
    try:
        process_bytes = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        process_bytes = 0
    return Sample(
        process_bytes=process_bytes,
        host_used_bytes=host.total - host.available,
        host_total_bytes=host.total,
        disk_free_bytes=disk_free_bytes(folder) if folder else None,
        cpu_percent=psutil.cpu_percent(),
        **_gpu_sample(pid, card),
    )


def _gpu_sample(pid: int, card: Gpu | None) -> dict[str, Any]:
    nvml = _connected()
    card = next((gpu for gpu in gpus() if gpu.uuid == card.uuid), None) if card else chosen_gpu()
    if nvml is None or card is None:
        return {}
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(card.index)
    except nvml.NVMLError:
        return {}

    def read(call: Any) -> Any:
        try:
            return call()
        except Exception:  # a reading that this card, driver or package does not give
            return None

    running = read(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    bytes_by_pid: Counter[int] = Counter()
    for process in running or ():
        bytes_by_pid[process.pid] += process.usedGpuMemory or 0
    by_torch = _held_by_torch(pid)
    own_pid = _own_pid(bytes_by_pid, pid, by_torch) if running is not None else None
    utilization = read(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    milliwatts = read(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    reasons = read(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    if reasons is None:  # drivers before 535 have the older name
        reasons = read(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    slowed_by = tuple(word for word, bits in _SLOWED_BY.items() if (reasons or 0) & bits)
    return {
        "gpu_index": card.index,
        "gpu_used_bytes": card.used_bytes,
        "gpu_total_bytes": card.total_bytes,
        "gpu_process_bytes": bytes_by_pid[pid] or by_torch,
        "gpu_percent": float(utilization.gpu) if utilization else None,
        "gpu_celsius": read(lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
        "gpu_watts": milliwatts / 1000 if milliwatts is not None else None,
        "gpu_others_bytes": None if own_pid is None else bytes_by_pid.total() - bytes_by_pid[own_pid],
        "gpu_slowed_by": slowed_by,
        "gpu_clock_share": read(lambda: _clock_share(nvml, handle)) if slowed_by else None,
    }


def _clock_share(nvml: Any, handle: Any) -> float:
    clock = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
    return float(clock / nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM))


def _own_pid(bytes_by_pid: dict[int, int], pid: int, by_torch: int | None) -> int | None:
    """The pid in `bytes_by_pid` under which NVML knows the process `pid`; None where that cannot be told.

    In a container NVML tells the host's pids: there it is the only process, if there is one, that holds at least what
    torch says.
    """
    if pid in bytes_by_pid:
        return pid
    if not by_torch:
        return pid if pid == os.getpid() else None
    candidates = [other for other, held_bytes in bytes_by_pid.items() if held_bytes >= by_torch]
    return candidates[0] if len(candidates) == 1 else None


def _held_by_torch(pid: int) -> int | None:
    """GPU memory of this process by torch's own count, for containers, where NVML knows it under another pid."""
    torch = sys.modules.get("torch")
    if pid != os.getpid() or torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.memory_reserved())


def machine(folder: Path) -> Machine:
    """A summary of this machine without its name; the disk is the one that `folder` is on or would be made on."""
    import psutil

    memory = psutil.virtual_memory()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        processor=_processor(),
        cpu_cores=usable_cores(),
        ram_bytes=memory.total,
        ram_available_bytes=memory.available,
        disk_free_bytes=disk_free_bytes(folder),
        python=platform.python_version(),
        libraries=installed_versions(),
        gpus=tuple(gpus()),
    )


def usable_cores() -> int:
    """Processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def disk_free_bytes(folder: Path) -> int:
    """Free bytes where `folder` is or would be made; 0 where that cannot be told."""
    for parent in (folder, *folder.parents):
        try:
            return shutil.disk_usage(parent).free
        except OSError:
            continue
    return 0


def installed_versions(names: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Installed versions by distribution name, read from their metadata; absent ones are left out."""
    from importlib.metadata import PackageNotFoundError, version  # which itself imports much, for what is asked once

    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return one_line(line.partition(":")[2], max_length=80)
    except OSError:
        pass
    return one_line(platform.processor() or platform.machine(), max_length=80)


def _text(value: str | bytes) -> str:
    return one_line(value.decode(errors="replace") if isinstance(value, bytes) else value, max_length=80)
