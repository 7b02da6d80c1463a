"""What has been proven to train right, by architecture and backend."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tuitune.language import N_, _

LIMITS = (
    N_("Trained on text alone; what reads images is kept by the merge and left out of a GGUF."),
    N_("The experts get no adapter."),
    N_("Proven with heads of 64; the wider heads of the published models were only checked before the first step."),
    N_("llama.cpp's converter did not take the tiny model."),
    N_(
        "Proven in 16-bit. In 4-bit Unsloth wants files that are stored in 4-bit; a load that would begin with random "
        "experts is refused."
    ),
    N_("Mamba's out_proj gets no adapter."),
)
"""Every limit that proven.yaml tells, to be translated."""


@dataclass(frozen=True, slots=True)
class Proof:
    """An architecture that went from loading to the merged model on one backend."""

    rows: str
    """How a batch holds its rows: `end to end` or `padded`."""
    attention: str
    """The attention kernel's name."""
    targets: tuple[str, ...]
    """Layers that `lora.target_modules: auto` adapts."""
    gguf: bool | None
    """Whether llama.cpp's converter took the merged model; None where that was not tried."""
    limits: tuple[str, ...]
    first_step_s: tuple[float, float] | None
    """Seconds to the first step with an empty and with a filled compile cache."""

    def as_text(self) -> str:
        """One line for a screen."""
        gguf = {True: "GGUF", False: _("no GGUF"), None: _("GGUF not tried")}[self.gguf]
        rows = _("rows end to end") if self.rows == "end to end" else _("rows padded")
        attention = _("attention {kernel}", kernel=self.attention)
        return " · ".join((rows, attention, gguf, *map(_, self.limits)))


def proof(architecture: str, backend: str) -> Proof | None:
    """What is proven of an architecture (`model_type` in config.json) on a backend; None where nothing is."""
    record = _recorded().get(architecture, {})
    ran = record.get("backends", {}).get(backend)
    if ran is None:
        return None
    first_step = ran.get("first_step_s")
    return Proof(
        rows=ran["rows"],
        attention=ran["attention"],
        targets=tuple(record["targets"]),
        gguf=record.get("gguf"),
        limits=(*record.get("limits", ()), *ran.get("limits", ())),
        first_step_s=(first_step[0], first_step[1]) if first_step else None,
    )


def architectures() -> tuple[str, ...]:
    """Every architecture of which something is proven."""
    return tuple(_recorded())


@cache
def _recorded() -> dict[str, Any]:
    text = (Path(__file__).parent / "proven.yaml").read_text(encoding="utf-8")
    recorded: dict[str, Any] = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return recorded
