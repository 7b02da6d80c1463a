"""Which linear layers get an adapter: the recipe's `lora.target_modules`, resolved on the model itself."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tuitune.errors import UnusableInput
from tuitune.language import _
from tuitune.model.config import reads_other_than_text
from tuitune.recipe import Recipe
from tuitune.text import one_line

_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
# Linear layers that choose an expert: with an adapter on them the choice itself would be trained.
_ROUTERS = {"gate", "router", "router_gate", "shared_expert_gate"}
# Per-layer embeddings (Gemma 3n and 4): not among the layers that are usually adapted, so only `all` takes them.
_PER_LAYER = {"per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"}
# Mamba's kernels read the weights of these themselves, past any adapter on them.
_READ_BY_MAMBA = {"out_proj", "dt_proj"}
_MAMBA_TYPES = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}


@dataclass(frozen=True, slots=True)
class Targets:
    """The linear layers of one model that get an adapter."""

    features: dict[str, int]
    """Name as in a recipe (`q_proj`, `conv.out_proj`) to the inputs plus outputs of all its layers: LoRA of rank r
    adds r parameters for each."""
    pattern: str
    """Matches the full names of these layers, and of no other module of the model."""
    unambiguous: bool
    """Whether the names alone mean these layers too, so that they can be written instead of the pattern."""
    left_out: tuple[str, ...]
    """What stays as it is although a user may expect an adapter there, one sentence each."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.features)

    def as_peft(self) -> list[str] | str:
        """What a peft LoraConfig takes as `target_modules`."""
        return list(self.names) if self.unambiguous else self.pattern

    def as_unsloth(self) -> list[str] | str:
        """The same for Unsloth, which drops the less usual names of a list, and takes a pattern as it is."""
        return list(self.names) if self.unambiguous and _PROJECTIONS.issuperset(self.names) else self.pattern

    def parameters(self, r: int) -> dict[str, int]:
        """Name to the number of LoRA parameters of rank r on its layers."""
        return {name: r * features for name, features in self.features.items()}


def resolve(model: Any, recipe: Recipe) -> Targets:
    """The layers that `lora.target_modules` means in this model, which has no adapter yet, and maybe no values either.

    Never the output head, a router, the experts of a mixture, or anything outside the text decoder. Raises
    UnusableInput where a name is not in the model: libraries attach to the names that match and keep silent about the
    others.
    """
    setting = recipe.lora.target_modules
    linears = linear_layers(model)
    if isinstance(setting, str):
        chosen = [name for name in _usable(model, linears) if setting == "all" or _ending(name, 1) not in _PER_LAYER]
        if setting == "attention":
            chosen = [name for name in chosen if _in_attention(name)]
        if not chosen:
            raise UnusableInput(
                "The model has no layers that lora.target_modules: {setting} means: name them, among {layers}.",
                setting=setting,
                layers=_listed(linears),
            )
        left_out = tuple(_left_out(model, linears, chosen))
    else:
        missing = [target for target in setting if not any(_means(target, name) for name in linears)]
        if missing:
            raise UnusableInput(
                "The model has no layer named {missing}: choose lora.target_modules among {layers}.",
                missing=one_line(", ".join(missing), max_length=200),
                layers=_listed(linears),
            )
        chosen = [name for name in linears if any(_means(target, name) for target in setting)]
        left_out = ()
    others = {name for name, _module in model.named_modules()} - set(chosen)
    inside = _name_of(model.get_decoder(), model)
    layer_names = {_ending(name, 1) for name in others if name.startswith(inside)}
    features: dict[str, int] = {}
    for name in chosen:
        shown = _ending(name, 2 if _ending(name, 1) in layer_names else 1)
        features[shown] = features.get(shown, 0) + linears[name]
    return Targets(
        features=features,
        pattern=_pattern(chosen, others),
        unambiguous=features.keys().isdisjoint(_ending(name, parts) for name in others for parts in (1, 2)),
        left_out=left_out,
    )


def linear_layers(model: Any) -> dict[str, int]:
    """Full names of the text decoder's linear layers, the output head left out, each with its inputs plus outputs."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    decoder = model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    features: dict[str, int] = {}
    for name, module in model.named_modules():
        if module is head or id(module) not in inside or reads_other_than_text(name):
            continue
        if isinstance(module, torch.nn.Linear):
            features[name] = module.in_features + module.out_features
        elif isinstance(module, Conv1D):  # GPT-2's linear layer
            features[name] = module.nx + module.nf
    return features


def _usable(model: Any, linears: dict[str, int]) -> Iterator[str]:
    """The linear layers that an adapter can train, and that are safe to train with one."""
    mamba = model.config.get_text_config().model_type in _MAMBA_TYPES
    for name in linears:
        *parents, last = name.split(".")
        in_mamba = mamba or any("mamba" in parent for parent in parents)
        if last not in _ROUTERS and "experts" not in parents and not (in_mamba and last in _READ_BY_MAMBA):
            yield name


def _left_out(model: Any, linears: dict[str, int], chosen: list[str]) -> Iterator[str]:
    import torch

    experts = [name for name, _weight in model.named_parameters() if "experts" in name.split(".")]
    if experts:
        yield _("The experts get no adapter and stay as they are: only layers that every token passes are trained.")
    if any(_ending(name, 1) in _READ_BY_MAMBA for name in set(linears) - set(chosen) - set(_usable(model, linears))):
        yield _("Mamba's out_proj gets no adapter, because its kernel would read past it.")
    head = model.get_output_embeddings()
    outside = (
        n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head and n not in linears
    )
    if next(outside, None) is not None:
        yield _("The model also takes images or sound: what reads them gets no adapter and stays as it is.")


def _in_attention(name: str) -> bool:
    return any("attn" in parent or "attention" in parent for parent in name.split(".")[:-1])


def _means(target: str, name: str) -> bool:
    """Whether a name in a recipe means a module, by peft's rule."""
    return name == target or name.endswith(f".{target}")


def _ending(name: str, parts: int) -> str:
    return ".".join(name.split(".")[-parts:])


def _name_of(module: Any, model: Any) -> str:
    return next((name for name, candidate in model.named_modules() if candidate is module), "")


def _pattern(chosen: list[str], others: set[str]) -> str:
    """A regular expression over full names: one branch for each place in a layer, whatever the layer's number."""
    places: dict[str, list[str]] = {}
    for name in chosen:
        parent, _dot, last = name.rpartition(".")
        place = re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(f"{parent}." if parent else ""))
        if last not in places.setdefault(place, []):
            places[place].append(last)
    pattern = "|".join(f"{place}(?:{'|'.join(map(re.escape, lasts))})" for place, lasts in places.items())
    if any(re.fullmatch(pattern, other) for other in others):  # layers that are numbered one by one
        return "|".join(map(re.escape, chosen))
    return pattern


def _listed(linears: dict[str, int]) -> str:
    return one_line(", ".join(sorted({_ending(name, 1) for name in linears})), max_length=400)
