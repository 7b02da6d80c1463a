"""What a run can be exported as: each kind's name, what it is for, and what making it needs."""

from dataclasses import dataclass
from pathlib import Path

from tuitune.errors import TuituneError, UnusableInput
from tuitune.text import one_line


@dataclass(frozen=True)
class Kind:
    """One form of a finished run. `what_for` and `needs` are sentences for the user.

    `bytes_per_weight` is 0 where the base model's weights are not in it; `gguf` is the type of the GGUF in it, if any.
    """

    name: str
    what_for: str
    needs: str
    bytes_per_weight: float = 0.0
    gguf: str | None = None


_Q8_0 = 34 / 32  # 32 weights in 34 bytes
_GGUF_NEEDS = "What merged_16bit needs, and llama.cpp's converter (a 77 MB download, once)."

KINDS: tuple[Kind, ...] = (
    Kind(
        "adapter",
        "The trained LoRA weights alone, a few megabytes: for PEFT, vLLM and anyone who has the base model.",
        "Nothing beyond the finished run.",
    ),
    Kind(
        "merged_16bit",
        "A whole model in 16-bit safetensors with the adapter merged in: for transformers, vLLM and further training.",
        "The base model, and memory and disk for its 16-bit weights.",
        2.0,
    ),
    Kind(
        "gguf:f16",
        "One 16-bit GGUF file, as exact as the merged model: for llama.cpp, LM Studio and making smaller ones.",
        _GGUF_NEEDS,
        2.0,
        "f16",
    ),
    Kind(
        "gguf:q8_0",
        "One 8-bit GGUF file of about half that size and hardly any loss: for llama.cpp and LM Studio.",
        _GGUF_NEEDS,
        _Q8_0,
        "q8_0",
    ),
    Kind(
        "ollama",
        "A folder with an 8-bit GGUF and the Modelfile that gives Ollama this model's own template and stop tokens.",
        _GGUF_NEEDS,
        _Q8_0,
        "q8_0",
    ),
    Kind(
        "script",
        "A folder with a Python script that trains this adapter again without tuitune, its rows and pinned versions.",
        "The dataset and the base model's tokenizer.",
    ),
)


@dataclass(frozen=True)
class Command:
    """A line to paste into a shell, and what it does."""

    what: str
    line: str


@dataclass(frozen=True)
class Exported:
    """One finished, proven export: a file or folder of `bytes` bytes."""

    kind: str
    path: Path
    bytes: int
    commands: tuple[Command, ...]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class NotExported:
    """A kind that could not be made, and the error that says why."""

    kind: str
    error: TuituneError


class Cancelled(TuituneError):
    """The user stopped the export; nothing half made is left."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("The export was stopped: what was finished before is kept, and nothing half made is left.")


def require_known(names: list[str]) -> list[Kind]:
    """The kinds of these names without repetition, in their order. Raises UnusableInput where one is not in KINDS."""
    known = {kind.name: kind for kind in KINDS}
    for name in names:
        if name not in known:
            raise UnusableInput(
                f"{one_line(name, max_length=60)!r} is not a kind of export: choose from {', '.join(known)}."
            )
    if not names:
        raise UnusableInput(f"Say what to export to: choose from {', '.join(known)}.")
    return [known[name] for name in dict.fromkeys(names)]
