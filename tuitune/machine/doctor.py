"""Whether this machine can train: each check with what was found, and what to do where something is missing."""

import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

import psutil
from packaging.requirements import Requirement

from tuitune.hub.reach import has_token
from tuitune.language import N_, _
from tuitune.machine.environment import install_line
from tuitune.machine.hardware import Gpu, disk_free_bytes, gpus, installed_versions
from tuitune.machine.torch_build import Card, fitting_tags, install_command
from tuitune.text import one_line
from tuitune.units import gib

Status = Literal["ok", "warn", "fail"]
STATUSES: dict[Status, str] = {"ok": N_("ok"), "warn": N_("warn"), "fail": N_("fail")}
"""As they are shown."""
GIB = 2**30
# What is installed where there is no torch at all; the versions that constraints.txt has.
_TESTED = {"torch": "2.13.0", "torchvision": "0.28.0"}

# Runs in a process of its own: importing torch takes seconds, and a broken build may take the process down.
_PROBE = """
import json, sys
found = {}
try:
    import torch
    found["torch"] = torch.__version__
    found["cuda"] = torch.version.cuda
    found["cuda_available"] = torch.cuda.is_available()
    if found["cuda_available"]:
        torch.ones(8, device="cuda").sum().item()
        found["device"] = torch.cuda.get_device_name()
except BaseException as error:
    found["error"] = f"{type(error).__name__}: {error}"
if "bitsandbytes" in sys.argv:
    try:
        import torch, bitsandbytes
        from bitsandbytes.functional import quantize_4bit
        quantize_4bit(torch.ones(64, 64, device="cuda" if found.get("device") else "cpu"), quant_type="nf4")
        found["nf4"] = bitsandbytes.__version__
    except BaseException as error:
        found["nf4_error"] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(found))
"""
_UNSLOTH_PROBE = """
import json
try:
    import unsloth
    found = {"unsloth": unsloth.__version__}
except BaseException as error:
    found = {"error": f"{type(error).__name__}: {error}"}
print("\\n" + json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `remedy` says what to do where `status` is not `ok`."""

    name: str
    status: Status
    text: str
    remedy: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(runs_folder: Path | None = None) -> list[Finding]:
    """Every check, in reading order; takes some seconds, as libraries are imported in processes of their own."""
    from tuitune.runs.folder import default_runs_folder

    cards = gpus()
    probe = _probe(_PROBE, "bitsandbytes")
    return [
        Finding("Python", "ok", platform.python_version()),
        _versions(),
        *_gpu(cards),
        _torch(probe, cards),
        _four_bit(probe),
        _unsloth(cards),
        _memory(),
        _disk(runs_folder or default_runs_folder()),
        _runs(runs_folder or default_runs_folder()),
        _hub_token(),
        _terminal(),
    ]


def _versions() -> Finding:
    """Installed libraries against what this version of tuitune asks for."""
    unmet: dict[str, Requirement] = {}
    try:
        requirements = [Requirement(line) for line in requires("tuitune") or []]
    except PackageNotFoundError:
        return Finding(_("Libraries"), "warn", _("tuitune is not installed as a package"), _("Install it with pip."))
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            unmet[_("{library} is missing", library=requirement.name)] = requirement
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            text = _(
                "{library} {installed} is not {wanted}",
                library=requirement.name,
                installed=installed,
                wanted=str(requirement.specifier),
            )
            unmet[text] = requirement
    if unmet:
        return Finding(_("Libraries"), "fail", "; ".join(unmet), _install_command(*unmet.values()))
    names = ("torch", "transformers", "trl", "peft", "datasets")
    return Finding(_("Libraries"), "ok", ", ".join(f"{name} {version(name)}" for name in names))


def _install_command(*requirements: Requirement) -> str:
    return install_line(*(f"{requirement.name}{requirement.specifier}" for requirement in requirements))


def _gpu(cards: list[Gpu]) -> list[Finding]:
    if not cards:
        return [
            Finding(
                "GPU",
                "warn",
                _("no NVIDIA GPU is visible: training runs on the CPU, which suits small models only"),
                _("On a GPU machine, check that `nvidia-smi` works and that CUDA_VISIBLE_DEVICES is not empty."),
            )
        ]
    findings = []
    for card in cards:
        busy = card.used_bytes > 0.1 * card.total_bytes
        findings.append(
            Finding(
                f"GPU {card.index}",
                "warn" if busy else "ok",
                _(
                    "{card}, {free} of {total} free, {format}",
                    card=card.name,
                    free=gib(card.free_bytes),
                    total=gib(card.total_bytes),
                    format="bf16" if card.has_bf16 else _("fp16 only"),
                ),
                _("Another program holds memory on it: `nvidia-smi` shows which.") if busy else None,
            )
        )
    return [*findings, _driver(cards[0])]


def _driver(card: Gpu) -> Finding:
    """Which builds of torch the driver runs; whether the installed one is among them is for `_torch` to say."""
    tags = fitting_tags(Card(card.driver, card.compute_capability))
    driver = card.driver
    if tags == ["cpu"]:
        text = _("{driver} is too old for any torch of today", driver=driver)
        return Finding(_("NVIDIA driver"), "fail", text, _("Update the NVIDIA driver."))
    if tags:
        text = _("{driver} runs torch built for CUDA 12 ({builds})", driver=driver, builds=tags)
    else:
        text = _("{driver} runs torch built for CUDA 12 and 13", driver=driver)
    return Finding(_("NVIDIA driver"), "ok", text)


def _torch(probe: dict[str, Any], cards: list[Gpu]) -> Finding:
    if "torch" not in probe or "error" in probe:
        text = one_line(probe.get("error", _("torch did not start")), max_length=200)
        uninstall = f"{shlex.quote(sys.executable)} -m pip uninstall --yes torch"
        return Finding("PyTorch", "fail", text, f"{uninstall} && {_torch_command(cards)}")
    torch = probe["torch"]
    if probe.get("device"):
        device = one_line(probe["device"], max_length=80)
        return Finding("PyTorch", "ok", _("{torch} computes on {device}", torch=torch, device=device))
    if not cards:
        return Finding("PyTorch", "ok", _("{torch} computes on the CPU", torch=torch))
    if probe.get("cuda") is None:
        text = _("{torch} is a CPU build", torch=torch)
    else:
        text = _("{torch} (CUDA {cuda}) cannot use the GPU", torch=torch, cuda=probe["cuda"])
    return Finding("PyTorch", "fail", text, _torch_command(cards))


def _torch_command(cards: list[Gpu]) -> str:
    """The line for a shell that installs the build of torch that fits this machine."""
    installed = {**_TESTED, **installed_versions(("torch", "torchvision"))}
    torch, torchvision = (installed[name].partition("+")[0] for name in ("torch", "torchvision"))
    card = Card(cards[0].driver, cards[0].compute_capability) if cards else None
    return install_command(card, torch, torchvision)


def _four_bit(probe: dict[str, Any]) -> Finding:
    if "nf4" in probe:
        return Finding(_("4-bit weights"), "ok", _("bitsandbytes {version} quantises to nf4", version=probe["nf4"]))
    text = one_line(probe.get("nf4_error", _("bitsandbytes did not start")), max_length=200)
    command = f"{_install_command(Requirement('bitsandbytes'))} --force-reinstall --no-deps"
    return Finding(_("4-bit weights"), "warn", text, _("Set model.load_in_4bit: false, or: {command}", command=command))


def _unsloth(cards: list[Gpu]) -> Finding:
    installed = importlib.util.find_spec("unsloth") is not None
    if not cards:
        text = _("not used without an NVIDIA GPU: the transformers backend trains instead")
        remedy = f"{shlex.quote(sys.executable)} -m pip uninstall unsloth unsloth_zoo" if installed else None
        return Finding("Unsloth", "warn" if installed else "ok", text, remedy)
    if not installed:
        text = _("not installed: the transformers backend trains instead, several times slower")
        return Finding("Unsloth", "warn", text, _unsloth_command())
    probe = _probe(_UNSLOTH_PROBE)
    if "unsloth" in probe:
        return Finding("Unsloth", "ok", one_line(probe["unsloth"], max_length=40))
    problem = one_line(probe.get("error", _("it did not start")), max_length=200)
    return Finding("Unsloth", "fail", problem, f"{_unsloth_command()} --force-reinstall --no-deps")


def _unsloth_command() -> str:
    lines = [Requirement(line) for line in requires("tuitune") or [] if line.startswith("unsloth")]
    return _install_command(*lines)


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    is_low = memory.available < 4 * GIB
    text = _("{available} of {total} available", available=gib(memory.available), total=gib(memory.total))
    remedy = _("Close other programs: merging and exporting hold a whole model in memory.") if is_low else None
    return Finding(_("Memory"), "warn" if is_low else "ok", text, remedy)


def _disk(folder: Path) -> Finding:
    free_bytes = disk_free_bytes(folder)
    is_low = free_bytes < 20 * GIB
    remedy = (
        _("A merged 8B model takes 16 GiB and its GGUF as much again: free some, or use --runs.") if is_low else None
    )
    return Finding(
        _("Disk"),
        "warn" if is_low else "ok",
        _("{free} free for {folder}", free=gib(free_bytes), folder=one_line(folder)),
        remedy,
    )


def _runs(folder: Path) -> Finding:
    """Whether runs can be written, found out without leaving anything behind."""
    at = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if at.is_dir() and os.access(at, os.W_OK | os.X_OK):
        return Finding(_("Runs folder"), "ok", one_line(folder))
    remedy = _("Choose another with --runs, or set TUITUNE_RUNS.")
    return Finding(_("Runs folder"), "fail", _("{folder} cannot be written", folder=one_line(folder)), remedy)


def _hub_token() -> Finding:
    """Whether a Hub token is there; what it is goes nowhere."""
    if has_token():
        return Finding(_("Hugging Face token"), "ok", _("present (not shown)"))
    return Finding(_("Hugging Face token"), "ok", _("none: gated models and uploads need one, from `hf auth login`"))


def _terminal() -> Finding:
    kind = os.environ.get("TERM", "")
    stdout = sys.__stdout__  # the app captures sys.stdout
    if stdout is None or not stdout.isatty():
        return Finding(
            _("Terminal"), "ok", _("standard output is not a terminal: `tuitune run` works, the app does not")
        )
    size = os.get_terminal_size(stdout.fileno())
    encoding = (stdout.encoding or "").lower().replace("-", "")
    text = _(
        "{kind}, {columns}×{lines}, {encoding}",
        kind=kind or _("unknown"),
        columns=size.columns,
        lines=size.lines,
        encoding=encoding or _("unknown encoding"),
    )
    if kind in ("", "dumb"):
        return Finding(_("Terminal"), "fail", text, _("Set TERM, for example to xterm-256color."))
    if encoding != "utf8":
        return Finding(_("Terminal"), "warn", text, _("Set a UTF-8 locale, for example LANG=C.UTF-8."))
    if size.columns < 80 or size.lines < 20:
        return Finding(_("Terminal"), "warn", text, _("Make the window at least 80×20."))
    return Finding(_("Terminal"), "ok", text)


def _probe(code: str, *arguments: str) -> dict[str, Any]:
    """What the code's last line says, as JSON; an `error` where the process was killed or did not end."""
    from tuitune.machine.environment import prepare_environment

    prepare_environment()
    try:
        process = subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error), "nf4_error": str(error)}
    lines = process.stdout.strip().splitlines()
    try:
        report = json.loads(lines[-1]) if lines else None
    except ValueError:
        report = None
    if isinstance(report, dict):
        return report
    message = _("it ended with status {status}", status=process.returncode)
    return {"error": message, "nf4_error": message}
