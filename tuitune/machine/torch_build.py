"""Which build of torch fits this machine's driver, and the pip commands that install it.

It imports the standard library alone: `install.py` reads it before anything is installed, the doctor afterwards.
"""

import os
import platform
import shlex
import subprocess
import sys
import urllib.request
from dataclasses import dataclass

# PyTorch's own index has a folder per build; $TUITUNE_TORCH_INDEX names a mirror of it.
TORCH_INDEX = "https://download.pytorch.org/whl"
# The oldest drivers for Linux that CUDA 13.x and CUDA 12.x programs run on (NVIDIA, CUDA Toolkit Release Notes, minor
# version compatibility).
CUDA_13_DRIVER = (580,)
CUDA_12_DRIVER = (525, 60, 13)
# CUDA 13 builds have no code for cards before Turing; the builds for CUDA 12.6 have none for Blackwell.
_TURING = (7, 5)
_BLACKWELL = (10, 0)
_ANSWER_S = 10


@dataclass(frozen=True, slots=True)
class Card:
    """What decides: the driver's version, like "570.86.15", and the card's compute capability, like (9, 0)."""

    driver: str
    compute_capability: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """A build of torch by its tag ("cu126", "cpu"), or the one that pip's own index has (None); `reason` is a sentence.

    `uses_gpu` is False where training will run on the CPU.
    """

    tag: str | None
    reason: str
    uses_gpu: bool

    def requirements(self, torch: str, torchvision: str) -> list[str]:
        """What to ask pip for, where `torch` and `torchvision` are versions like "2.13.0".

        A CPU build comes without torchvision: only Unsloth wants it, which needs a GPU.
        """
        if self.tag is None:
            return []
        pins = [f"torch=={torch}+{self.tag}"]
        return pins if self.tag == "cpu" else [*pins, f"torchvision=={torchvision}+{self.tag}"]

    def options(self) -> list[str]:
        """Where pip looks, besides its own index."""
        return [] if self.tag is None else ["--extra-index-url", f"{torch_index()}/{self.tag}"]


def torch_index() -> str:
    return os.environ.get("TUITUNE_TORCH_INDEX", TORCH_INDEX).rstrip("/")


def visible_card() -> Card | None:
    """The first card that `nvidia-smi` tells of; None where it is missing, fails or names none."""
    try:
        process = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = process.stdout.strip().splitlines()
    if process.returncode != 0 or not lines:
        return None
    driver, _, capability = (part.strip() for part in lines[0].partition(","))
    numbers = version_numbers(capability)
    known = (numbers[0], numbers[1]) if len(numbers) == 2 else None
    return Card(driver, known) if version_numbers(driver) else None


def version_numbers(text: str) -> tuple[int, ...]:
    """`text` like "570.86.15" as numbers; empty where it is nothing of that kind."""
    parts = text.strip().split(".")
    return tuple(map(int, parts)) if all(part.isascii() and part.isdigit() for part in parts) else ()


def fitting_tags(card: Card | None) -> list[str]:
    """Tags of the builds on PyTorch's index that run on this card, the best first; empty where pip's own index has it.

    Those for CUDA 12.6 come first where both fit, as they are what every torch since 2.6 was built for.
    """
    if card is None or version_numbers(card.driver) < CUDA_12_DRIVER:
        return ["cpu"]
    capability = card.compute_capability or _TURING
    if version_numbers(card.driver) >= CUDA_13_DRIVER and capability >= _TURING:
        return []
    return ["cu129", "cu128"] if capability >= _BLACKWELL else ["cu126", "cu129", "cu128"]


def choose_build(card: Card | None, torch: str) -> TorchBuild:
    """The build of `torch` (a version like "2.13.0") for `card`; asks PyTorch's index what it has."""
    tags = fitting_tags(card)
    tag = next((tag for tag in tags if has_wheel(tag, torch)), None) if platform.system() == "Linux" else None
    default = "the package index's own build of torch is taken"
    if card is None:
        chosen = "torch for the CPU is taken" if tag else default
        return TorchBuild(tag, f"`nvidia-smi` finds no NVIDIA GPU: {chosen}.", uses_gpu=False)
    if tags == ["cpu"]:
        needed = ".".join(map(str, CUDA_12_DRIVER))
        reason = (
            f"The NVIDIA driver {card.driver} is too old for any torch of today, which needs {needed}: training "
            f"will run on the CPU until it is updated, and {'torch for the CPU is taken' if tag else default}."
        )
        return TorchBuild(tag, reason, uses_gpu=False)
    if not tags:
        return TorchBuild(None, f"The NVIDIA driver {card.driver} runs CUDA 13: {default}.", uses_gpu=True)
    reason = (
        f"The NVIDIA driver {card.driver} runs CUDA 12 (13 needs {CUDA_13_DRIVER[0]} or newer)"
        if version_numbers(card.driver) < CUDA_13_DRIVER
        else "This GPU is older than those that torch's builds for CUDA 13 are made for"
    )
    if tag is not None:
        return TorchBuild(tag, f"{reason}: the {tag} build of torch is taken, from {torch_index()}.", uses_gpu=True)
    reason = (
        f"{reason}, but {torch_index()} cannot be reached or has no such build of torch {torch}: {default}, which "
        "cannot use this GPU. Update the driver, or give a Python that has a CUDA build of torch (PYTHON=… make demo)."
    )
    return TorchBuild(None, reason, uses_gpu=False)


def has_wheel(tag: str, torch: str) -> bool:
    """Whether PyTorch's index can be reached and has this build for this Python and processor."""
    address = f"{torch_index()}/{tag}/torch/"
    if not address.startswith(("https://", "http://")):
        return False
    try:
        with urllib.request.urlopen(address, timeout=_ANSWER_S) as answer:
            page = answer.read(8 << 20).decode(errors="replace")
    except (OSError, ValueError):
        return False
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    names = (
        line for line in page.replace("%2B", "+").splitlines() if f"torch-{torch}+{tag}-{python}-{python}-" in line
    )
    return any(f"{platform.machine()}.whl" in name for name in names)


def install_command(card: Card | None, torch: str, torchvision: str) -> str:
    """The line for a shell that puts the fitting build in place of the torch that is installed.

    `torch` and `torchvision` are the versions to keep, like "2.13.0".
    """
    tag = (fitting_tags(card) or ["cu130"])[0]
    build = TorchBuild(tag, "", uses_gpu=tag != "cpu")
    return shlex.join(
        [sys.executable, "-m", "pip", "install", *build.options(), *build.requirements(torch, torchvision)]
    )
