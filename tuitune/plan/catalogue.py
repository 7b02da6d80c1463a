"""The models to choose from: known ones, those on this machine, those the Hub finds; and whether they fit."""

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tuitune.errors import TuituneError
from tuitune.hub.reach import hub_cache
from tuitune.machine.hardware import Gpu, visible_gpus
from tuitune.plan import sharding
from tuitune.plan.memory import Memory, Shape, memory_of
from tuitune.recipe import Recipe
from tuitune.text import one_line

_TIMEOUT_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """A model of `models.yaml`. `parameters` is a count, `context` in tokens."""

    name: str
    family: str
    parameters: int
    context: int
    licence: str
    gated: bool
    base: bool
    architecture: str
    """`model_type` in its config.json."""
    unchecked: bool
    """Whether its sizes are from one source only."""
    shape: Shape


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the Hub, as its API describes it."""

    name: str
    gated: bool
    downloads: int


@cache
def known_models() -> tuple[CatalogueModel, ...]:
    """The catalogue, family by family."""
    text = (Path(__file__).parent / "models.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    families = yaml.load(text, Loader=loader)
    return tuple(_catalogue_model(family, model) for family in families for model in family["models"])


def _catalogue_model(family: dict[str, Any], model: dict[str, Any]) -> CatalogueModel:
    hidden, intermediate, layers, key_value, vocabulary = model["shape"]
    parameters = int(model["size"] * 1e9)
    embeddings = vocabulary * hidden * (1 if model.get("tied") else 2)
    if "embeddings" in model:
        embeddings = int(model["embeddings"] * 1e9)
    return CatalogueModel(
        name=model["name"],
        family=family["family"],
        parameters=parameters,
        context=model["context"],
        licence=model.get("licence", family["licence"]),
        gated=model.get("gated", False),
        base=model.get("base", False),
        architecture=model.get("architecture", family["architecture"]),
        unchecked=model.get("unchecked", False),
        shape=Shape(
            hidden=hidden,
            intermediate=intermediate,
            key_value=key_value,
            layers=layers,
            vocabulary=vocabulary,
            total_parameters=parameters,
            linear_parameters=max(0, parameters - embeddings),
            adapter_parameters=_adapter_parameters(1, hidden, intermediate, layers, key_value),
        ),
    )


def _adapter_parameters(r: int, hidden: int, intermediate: int, layers: int, key_value: int) -> int:
    """Of LoRA on all seven projections of each layer (Hu et al. 2021): r (inputs + outputs) each."""
    attention = 2 * (hidden + hidden) + 2 * (hidden + key_value)
    return r * layers * (attention + 3 * (hidden + intermediate))


def memory_for(model: CatalogueModel, recipe: Recipe, card: Gpu | None) -> Memory:
    """What training this model with the recipe's settings takes at its peak, from its shape alone."""
    tokens = recipe.train.per_device_train_batch_size * min(recipe.data.max_length, model.context)
    card_bytes = card.total_bytes if card else None
    return memory_of(recipe, _shape_of(model, recipe), tokens, backend=backend_for(recipe, card), card_bytes=card_bytes)


def cards_for(model: CatalogueModel, recipe: Recipe, card: Gpu | None) -> int:
    """How many of this machine's cards a run shares the model's weights out to, where one does not hold them; else 1.

    One that holds them beside a single row does: the run makes its passes smaller there.
    """
    if card is None:
        return 1
    data = recipe.data.model_copy(update={"max_length": min(recipe.data.max_length, model.context)})
    needed = sharding.cards_needed(
        recipe.model_copy(update={"data": data}),
        _shape_of(model, recipe),
        None,
        backend=backend_for(recipe, card),
        card=card,
        cards=len(visible_gpus()),
    )
    return 1 if needed is None else needed[0]


def _shape_of(model: CatalogueModel, recipe: Recipe) -> Shape:
    """With the adapter that the recipe says, on all seven projections."""
    return replace(model.shape, adapter_parameters=recipe.lora.r * model.shape.adapter_parameters)


def backend_for(recipe: Recipe, card: Gpu | None) -> str:
    """The backend that a recipe would be trained with on this card, where its libraries are installed."""
    return "unsloth" if card is not None and recipe.model.backend != "transformers" else "transformers"


_TRIED_TOKENS = 60 * 8 * 300
"""Of a quick try: 60 steps of 8 rows of 300 tokens."""
_CORE_FLOPS = 15e9
"""Operations a second that one core of a server's CPU does in torch's matrix products, in 32 bits."""
_DAY = 86_400.0


def days_on_cpu(model: CatalogueModel, cores: int) -> float:
    """About how many days a quick try of this model takes on a CPU: 6 operations a parameter and token (Kaplan et al.
    2020), so right to a factor of three at best.
    """
    return 6 * model.parameters * _TRIED_TOKENS / (cores * _CORE_FLOPS) / _DAY


def download_bytes(model: CatalogueModel) -> int:
    """About what its weights take to download: 2 bytes a parameter."""
    return 2 * model.parameters


def cached_models() -> list[str]:
    """Hub ids of the models in the cache that have a config and weights; newest first."""
    return [name for _changed_at, name in sorted(_in_cache(hub_cache()), reverse=True)]


def _in_cache(folder: Path) -> Iterator[tuple[float, str]]:
    for model_folder in folder.glob("models--*--*"):
        snapshots = model_folder / "snapshots"
        if any(snapshots.glob("*/config.json")) and any(snapshots.glob("*/*.safetensors")):
            owner, _dashes, name = model_folder.name.removeprefix("models--").partition("--")
            yield model_folder.stat().st_mtime, f"{owner}/{name}"


def model_folders(*places: Path) -> list[Path]:
    """Model folders directly inside the places, and the places themselves where they are one."""
    folders = []
    for place in places:
        try:
            inside = sorted(folder for folder in place.iterdir() if folder.is_dir())[:500]
        except OSError:
            continue
        folders += [folder for folder in (place, *inside) if is_model_folder(folder)]
    return list(dict.fromkeys(folders))


def is_model_folder(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def is_offline_by_choice() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def search_hub(words: str) -> list[HubModel]:
    """Text-generation models that the Hub finds, most downloaded first. Raises TuituneError when it is not reached."""
    query = urllib.parse.urlencode(
        {"search": words, "pipeline_tag": "text-generation", "sort": "downloads", "direction": -1, "limit": 20}
    )
    try:
        answer = _ask(f"/api/models?{query}")
    except _Refused as refused:
        if refused.status == 404:
            raise TuituneError(
                "The Hugging Face Hub refuses to search (error {status}): check HF_ENDPOINT, or type a model's id.",
                status=refused.status,
            ) from None
        raise TuituneError(
            "The Hugging Face Hub refuses to search (error {status}): try again later, or type a model's id.",
            status=refused.status,
        ) from None
    return [_hub_model(model) for model in answer if isinstance(model, dict)] if isinstance(answer, list) else []


def look_up(name: str) -> HubModel | None:
    """The Hub's model of this id, None where there is none. Raises TuituneError when the Hub is not reached."""
    try:
        answer = _ask(f"/api/models/{urllib.parse.quote(name)}")
    except _Refused:
        return None
    return _hub_model(answer) if isinstance(answer, dict) else None


class _Refused(Exception):
    """The Hub answered that it has no such thing, or none that may be seen (HTTP status 401, 403 or 404)."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _hub_model(raw: dict[str, Any]) -> HubModel:
    downloads = raw.get("downloads")
    return HubModel(
        name=one_line(raw.get("id", ""), max_length=120),
        gated=bool(raw.get("gated")),
        downloads=downloads if isinstance(downloads, int) else 0,
    )


def _ask(path: str) -> Any:
    if is_offline_by_choice():
        raise TuituneError(
            "HF_HUB_OFFLINE is set, so the Hugging Face Hub is not asked: unset it, or give a model's folder.",
            code="hf-hub-offline-is-set-the",
        )
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not endpoint.startswith(("https://", "http://")):
        raise TuituneError(
            "HF_ENDPOINT is {endpoint}: give an https address.", endpoint=one_line(endpoint, max_length=80)
        )
    try:
        with urllib.request.urlopen(endpoint.rstrip("/") + path, timeout=_TIMEOUT_SECONDS) as answer:
            return json.loads(answer.read(4 * 2**20))
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):
            raise _Refused(error.code) from None
        raise TuituneError(
            "The Hugging Face Hub answered with error {status}: try again later.", status=error.code
        ) from None
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        reason = one_line(getattr(error, "reason", error), max_length=120)
        raise TuituneError(
            "The Hugging Face Hub cannot be reached ({reason}): check the network, or give a model's folder.",
            reason=reason,
        ) from None
