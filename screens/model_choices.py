"""The models to choose from, what is known of each, and why one cannot be had."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tuitune.errors import TuituneError, explain
from tuitune.hub.reach import has_token
from tuitune.language import _
from tuitune.machine.hardware import Gpu, usable_cores
from tuitune.paths import expanded
from tuitune.plan import catalogue
from tuitune.plan.catalogue import CatalogueModel
from tuitune.plan.memory import Memory
from tuitune.plan.proven import Proof, proof
from tuitune.recipe import Recipe
from tuitune.text import one_line


@dataclass(frozen=True)
class Choice:
    """A line of the list: a model's name, under which heading, and what is known of it."""

    name: str
    heading: str
    known: CatalogueModel | None = None
    memory_4bit: Memory | None = None
    memory_16bit: Memory | None = None
    cards_4bit: int = 1
    """How many of this machine's cards hold it in 4-bit, sharing its weights, where one does not."""
    cards_16bit: int = 1
    proven: Proof | None = None
    note: str = ""
    is_here: bool = False
    """Whether its weights need not be downloaded."""
    days: float = 0.0
    """About how long a quick try takes where no GPU is."""


def choices(recipe: Recipe, card: Gpu | None) -> Iterator[Choice]:
    """Every model to choose from, but a folder that the user types into the field."""
    known = {model.name: model for model in catalogue.known_models()}
    backend = catalogue.backend_for(recipe, card)

    cached = catalogue.cached_models()

    def described(name: str, heading: str) -> Choice:
        model = known.get(name)
        is_here = name in cached
        if model is None:
            return Choice(name, heading, note=_("on this machine"), is_here=True)
        recipes = [
            recipe.model_copy(update={"model": recipe.model.model_copy(update={"load_in_4bit": in_4bit})})
            for in_4bit in (True, False)
        ]
        memories = [catalogue.memory_for(model, variant, card) for variant in recipes]
        cards = [catalogue.cards_for(model, variant, card) for variant in recipes]
        days = 0.0 if card is not None else catalogue.days_on_cpu(model, usable_cores())
        return Choice(
            name,
            heading,
            model,
            memory_4bit=memories[0],
            memory_16bit=memories[1],
            cards_4bit=cards[0],
            cards_16bit=cards[1],
            proven=proof(model.architecture, backend),
            is_here=is_here,
            days=days,
        )

    here = Path.cwd()
    for folder in catalogue.model_folders(here, here / "models", Path.home() / "models"):
        yield Choice(str(folder), _("Model folders here"), note=_("a folder on this machine"), is_here=True)
    for name in cached:
        yield described(name, _("Downloaded already"))
    for name, model in known.items():
        if name not in cached:
            yield described(name, model.family)


def is_path(text: str) -> bool:
    """Whether what is being typed is a path: it begins like one, or there is a model at it."""
    if text.startswith(("/", ".", "~")):
        return True
    try:
        return bool(text) and catalogue.is_model_folder(expanded(text))
    except OSError:
        return False


def kind_of(path: str) -> str:
    """What stands at a path that is being typed, in a few words."""
    folder = expanded(path)
    try:
        if catalogue.is_model_folder(folder):
            return _("a model folder")
        if folder.is_dir():
            return _("a folder without a model in it")
        return _("a file") if folder.exists() else _("nothing is there")
    except OSError:
        return _("nothing is there")


def why_not_folder(name: str) -> str | None:
    folder = expanded(name)
    if catalogue.is_model_folder(folder):
        return None
    shown = one_line(folder, max_length=200)
    if folder.is_dir():
        return _(
            "{folder} holds no config.json with .safetensors weights: give the folder of a whole model.", folder=shown
        )
    if folder.exists():
        return _("{folder} is a file: give the folder of a whole model.", folder=shown)
    return _("{folder} does not exist: give the folder of a whole model.", folder=shown)


def why_not_from_hub(name: str) -> str | None:
    """One sentence where a Hub model cannot be downloaded here, None where it can."""
    shown = one_line(name, max_length=120)
    try:
        model = catalogue.look_up(name)
    except TuituneError as error:
        return _(
            "{model} is not on this machine, and cannot be downloaded: {reason} Give a model folder instead.",
            model=shown,
            reason=explain(error),
        )
    if model is None and not has_token():
        return _(
            "The Hub shows no model {model}: check the spelling, or run `hf auth login` if it is private.", model=shown
        )
    if model is not None and model.gated and not has_token():
        return _(
            "{model} is gated: accept its licence at huggingface.co/{model}, then run `hf auth login`.", model=shown
        )
    return None
