"""What a run can be exported as: each kind's name, what it is for, and what making it needs."""

from dataclasses import dataclass
from pathlib import Path

from tuitune.errors import TuituneError, UnusableInput
from tuitune.language import N_, Sentence, _
from tuitune.text import one_line


@dataclass(frozen=True)
class Kind:
    """One form of a finished run. `what_for` and `needs` are sentences for the user, in the language of their making.

    `bytes_per_weight` is 0 where the base model's weights are not in it; `gguf` is the type of the GGUF in it, if any;
    `of` is the kind that is uploaded, for those of the Hub.
    """

    name: str
    what_for: str
    needs: str
    bytes_per_weight: float = 0.0
    gguf: str | None = None
    of: "Kind | None" = None

    @property
    def form(self) -> str:
        """The name before the colon: `gguf` of `gguf:q8_0`."""
        return self.name.partition(":")[0]

    @property
    def whole_model(self) -> bool:
        """Whether the base model's weights are in it."""
        return self.bytes_per_weight > 0


GGUF_BITS: dict[str, float] = {
    **{"f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.57, "q5_k_m": 5.7, "q4_k_m": 4.85},
    **{"q5_k_s": 5.55, "q5_1": 6.0, "q5_0": 5.5, "q4_k_s": 4.6, "q4_1": 5.0, "q4_0": 4.6},
    **{"q3_k_l": 4.3, "q3_k_m": 3.95, "q3_k_s": 3.5, "q2_k": 3.0, "q2_k_s": 2.8},
    **{"iq4_nl": 4.6, "iq4_xs": 4.35, "iq3_m": 3.7, "iq3_s": 3.5, "iq3_xs": 3.35, "iq3_xxs": 3.15},
    **{"iq2_m": 2.8, "iq2_s": 2.6, "iq2_xs": 2.4, "iq2_xxs": 2.2, "iq1_m": 1.9, "iq1_s": 1.7},
    **{"tq2_0": 2.4, "tq1_0": 2.0},
}
"""Types of GGUF as llama-quantize names them, and about how many bits a weight takes in each."""

USUAL_GGUF = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")
_GGUF_FOR = {
    "f16": N_("as exact as the merged model"),
    "bf16": N_("as exact as the merged model, with its range"),
    "q8_0": N_("about half of 16-bit and hardly any loss"),
    "q6_k": N_("two fifths of 16-bit, very little loss"),
    "q5_k_m": N_("a third of 16-bit, little loss"),
    "q4_k_m": N_("under a third of 16-bit, some loss: the usual choice for small machines"),
}
_GGUF_NEEDS = N_("What merged_16bit needs, and llama.cpp's converter (a 77 MB download, once).")


def _purpose(type_: str) -> Sentence:
    known = _GGUF_FOR.get(type_)
    return _(known) if known else _("about {bits:g} bits a weight", bits=GGUF_BITS[type_])


def _gguf_kind(type_: str) -> Kind:
    text = _("One GGUF file, {purpose}: for llama.cpp, LM Studio and GPT4All.", purpose=_purpose(type_))
    return Kind(f"gguf:{type_}", text, _(_GGUF_NEEDS), GGUF_BITS[type_] / 8, type_)


def _ollama_kind(type_: str) -> Kind:
    text = _(
        "A folder with such a GGUF ({purpose}) and the Modelfile with this model's own template and stop tokens.",
        purpose=_purpose(type_),
    )
    return Kind(f"ollama:{type_}", text, _(_GGUF_NEEDS), GGUF_BITS[type_] / 8, type_)


def _hub_kind(of: Kind) -> Kind:
    text = _("What {kind} makes, uploaded to a private repository of yours on the Hugging Face Hub.", kind=of.name)
    needs = _("What {kind} needs, a token that may write, and a name for the repository.", kind=of.name)
    return Kind(f"hub:{of.name}", text, needs, of.bytes_per_weight, of.gguf, of)


_ADAPTER = Kind(
    "adapter",
    _("The trained LoRA weights alone, a few megabytes: for PEFT, vLLM and anyone who has the base model."),
    _("Nothing beyond the finished run."),
)
_MERGED_16BIT = Kind(
    "merged_16bit",
    _("A whole model in 16-bit safetensors with the adapter merged in: for transformers, vLLM and further training."),
    _("The base model, and disk for its 16-bit weights."),
    2.0,
)

KINDS: tuple[Kind, ...] = (
    _ADAPTER,
    Kind(
        "adapter_gguf",
        _("The LoRA weights as a GGUF file: for llama.cpp's --lora beside the base model's GGUF."),
        _("Llama.cpp's converter (a 77 MB download, once)."),
    ),
    _MERGED_16BIT,
    Kind(
        "merged_4bit",
        _("The merged model quantised by bitsandbytes (nf4), about a third of the size: for transformers and vLLM."),
        _("What merged_16bit needs, and bitsandbytes."),
        0.62,
    ),
    *(_gguf_kind(type_) for type_ in USUAL_GGUF),
    *(_ollama_kind(type_) for type_ in USUAL_GGUF),
    Kind(
        "script",
        _(
            "A folder with a Python script that trains this adapter again without tuitune, its rows and pinned "
            "versions."
        ),
        _("The dataset and the base model's tokenizer."),
    ),
    Kind(
        "notebook",
        _("The same as a Jupyter notebook, its cells in the order of the well-known Unsloth notebooks."),
        _("The dataset and the base model's tokenizer."),
    ),
    _hub_kind(_ADAPTER),
    _hub_kind(_MERGED_16BIT),
    _hub_kind(_gguf_kind("q8_0")),
    _hub_kind(_gguf_kind("q4_k_m")),
)
"""The usual kinds, each before what is made from it; `kind_named` knows more types of GGUF."""

_ALIASES = {"ollama": "ollama:q8_0"}


def kind_named(name: str) -> Kind | None:
    """The kind of this name, among them every type of GGUF that llama-quantize knows; None where there is none."""
    name = _ALIASES.get(name, name)
    for kind in KINDS:
        if kind.name == name:
            return kind
    form, _colon, rest = name.partition(":")
    if form == "hub" and (of := kind_named(rest)) and of.form in ("adapter", "merged_16bit", "gguf"):
        return _hub_kind(of)
    if form in ("gguf", "ollama") and rest in GGUF_BITS:
        return _gguf_kind(rest) if form == "gguf" else _ollama_kind(rest)
    return None


def in_order(kinds: list[Kind]) -> list[Kind]:
    """What others are made from comes before them."""
    forms = list(dict.fromkeys(kind.form for kind in KINDS))
    types = list(GGUF_BITS)
    return sorted(kinds, key=lambda kind: (forms.index(kind.form), types.index(kind.gguf) if kind.gguf else -1))


@dataclass(frozen=True)
class ExportOptions:
    """What may be said of an export beside its kinds.

    `hub_repo` is the repository for kinds of the Hub (`name` or `owner/name`), public where `hub_public` says so.
    `tar` puts each folder into one uncompressed tar beside it, too; `split_bytes` has each file, and the tar of each
    folder, in parts of that size beside it as well, where it is not 0. `imatrix` has GGUFs under 8 bits rounded by what
    the weights see in training rows.
    """

    hub_repo: str | None = None
    hub_public: bool = False
    tar: bool = False
    split_bytes: int = 0
    imatrix: bool = False


@dataclass(frozen=True)
class Command:
    """A line to paste into a shell, and what it does."""

    what: str
    line: str


@dataclass(frozen=True)
class Exported:
    """One finished, proven export: a file or folder of `bytes` bytes; `proof` says in a sentence how it was proven."""

    kind: str
    path: Path
    bytes: int
    commands: tuple[Command, ...]
    notices: tuple[str, ...] = ()
    proof: str = ""


@dataclass(frozen=True)
class NotExported:
    """A kind that could not be made, and the error that says why."""

    kind: str
    error: TuituneError


class Cancelled(TuituneError):
    """The user stopped the export; nothing half made is left."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__(_("The export was stopped: what was finished before is kept, and nothing half made is left."))


def require_known(names: list[str]) -> list[Kind]:
    """The kinds of these names without repetition, in their order. Raises UnusableInput where there is none."""
    known = f"{', '.join(kind.name for kind in KINDS if kind.form != 'hub')}, hub:KIND"
    kinds = {}
    for name in names:
        kind = kind_named(name)
        if kind is None:
            raise UnusableInput(
                "{name!r} is not a kind of export: choose from {known}.",
                name=one_line(name, max_length=60),
                known=known,
            )
        kinds[kind.name] = kind
    if not kinds:
        raise UnusableInput("Say what to export to: choose from {known}.", known=known)
    return list(kinds.values())
