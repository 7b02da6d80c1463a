"""LoftQ: an adapter that begins as what the base model lost when it was loaded in 4-bit."""

from pathlib import Path
from typing import Any

from tuitune.backends.loaded import LoadedModel
from tuitune.backends.loading import weights_folder
from tuitune.errors import UnusableInput
from tuitune.model.config import load_config
from tuitune.recipe import Recipe
from tuitune.text import one_line

# Further singular values than the rank are computed, so that those of the rank come out exactly.
_OVERSAMPLED = 16


def require_loftq(recipe: Recipe) -> None:
    """Refuse LoftQ where nothing was lost, or where the whole weights are not at hand. Raises UnusableInput."""
    if recipe.lora.init_lora_weights != "loftq":
        return
    if not recipe.model.load_in_4bit:
        raise UnusableInput(
            "lora.init_lora_weights: loftq makes up for what 4-bit loading loses, and model.load_in_4bit is false: "
            "set one of them back to true."
        )
    if recipe.lora.use_dora:
        raise UnusableInput(
            "lora.init_lora_weights: loftq and lora.use_dora exclude each other, as DoRA takes its magnitudes from "
            "untouched weights: set one of them back."
        )
    if getattr(load_config(recipe.model), "quantization_config", None) is not None:
        name = one_line(recipe.model.name, max_length=200)
        raise UnusableInput(
            "lora.init_lora_weights: loftq needs the weights as they were before 4-bit, and {name} is "
            "stored quantised: choose the model that it was made from, or set it to true.",
            name=name,
        )


def begin_with_loftq(loaded: LoadedModel) -> None:
    """Set each adapter layer to the best low-rank copy of W - Q, W being its stored and Q its 4-bit weight.

    One iteration of LoftQ (Li et al. 2023), the 4-bit weights left as they are, as in peft's
    `replace_lora_weights_loftq`; unlike that it runs on a CPU too, and counts the adapter's scale. Draws random
    numbers. Raises UnusableInput where a layer's weight is not among the model's files.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from safetensors import safe_open

    folder = weights_folder(loaded.recipe.model)
    files = _files_by_name(folder)
    with torch.no_grad():
        for name, layer in loaded.model.named_modules():
            if not getattr(layer, "lora_A", None):
                continue
            key = f"{name.removeprefix('base_model.model.')}.weight"
            if key not in files:
                raise UnusableInput(
                    "lora.init_lora_weights: loftq finds no weight named {key} in {folder}: set it to true.",
                    key=one_line(key, max_length=120),
                    folder=one_line(folder, max_length=200),
                )
            with safe_open(files[key], framework="pt") as file:
                stored = file.get_tensor(key)
            weight = layer.get_base_layer().weight
            quantisation_error = (
                stored.to(weight.device, torch.float32) - dequantize_4bit(weight.data, weight.quant_state).float()
            )
            rank = layer.r["default"]
            u, s, v = torch.svd_lowrank(
                quantisation_error, q=min(rank + _OVERSAMPLED, *quantisation_error.shape), niter=4
            )
            root = (s[:rank] / layer.scaling["default"]).sqrt()
            layer.lora_A["default"].weight[: len(root)].copy_(root[:, None] * v[:, :rank].T)
            layer.lora_B["default"].weight[:, : len(root)].copy_(u[:, :rank] * root)


def _files_by_name(folder: Path) -> dict[str, Path]:
    """Weight name to the safetensors file that holds it."""
    from safetensors import safe_open

    files: dict[str, Path] = {}
    for path in [*folder.glob("model*.safetensors")] or folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    return files


def base_in_4bit(recipe: Recipe) -> dict[str, Any]:
    """What to load the base with, so that it is the one that a LoftQ adapter belongs to; nothing for other adapters."""
    from tuitune.backends.quantization import quantization

    return quantization(recipe) if recipe.lora.init_lora_weights == "loftq" else {}
