"""What loading a model and attaching an adapter have in common, whichever library does it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuitune.backends.loaded import LoadedModel
from tuitune.backends.new_rows import ids_of
from tuitune.errors import TuituneError, UnusableInput
from tuitune.language import N_, Sentence, _
from tuitune.model.config import is_folder
from tuitune.recipe import Recipe
from tuitune.recipe_sections import ModelSection
from tuitune.text import one_line


class MemoryRanOut(TuituneError):
    """The card or the machine has too little memory for what was asked."""


class WeightsMissing(TuituneError):
    """The files do not hold all the weights that the model would be loaded with."""


@contextmanager
def explained(recipe: Recipe, what: str) -> Iterator[None]:
    """Turn a library's exception while doing `what` (N_("loading"), before the model's name) into a sentence."""
    import torch

    name = one_line(recipe.model.name, max_length=200)
    try:
        yield
    except TuituneError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MemoryRanOut(out_of_memory(what, name, recipe)) from error
    except Exception as error:  # these libraries raise every kind there is, and one of their own each
        if "can't allocate memory" in str(error) or "out of memory" in str(error).lower():
            raise MemoryRanOut(out_of_memory(what, name, recipe)) from error
        lines = str(error).strip().splitlines()
        reason = one_line(lines[0] if lines else type(error).__name__, max_length=300)
        beginning = Sentence(what.capitalize(), what, "", {})
        raise TuituneError(
            "{what} {model} failed: {reason}.", what=beginning, model=name, reason=reason.rstrip(".")
        ) from error


@contextmanager
def no_weights_missing(recipe: Recipe) -> Iterator[None]:
    """Refuse a model that was loaded inside with weights its files do not hold. Raises WeightsMissing.

    transformers draws such weights at random and only logs it; Unsloth's layout of some mixtures in 4-bit asks for
    weights that files in 16-bit do not have.
    """
    from transformers import modeling_utils

    missing: set[str] = set()
    report = modeling_utils.log_state_dict_report

    def noted(*arguments: Any, **options: Any) -> Any:
        missing.update(options["loading_info"].missing_keys)
        return report(*arguments, **options)

    modeling_utils.log_state_dict_report = noted
    try:
        yield
    finally:
        modeling_utils.log_state_dict_report = report
    if missing:
        precise = recipe.model.load_in_4bit or recipe.model.load_in_8bit
        remedy = (
            _("set model.load_in_4bit: false and model.load_in_8bit: false, or give a model whose files hold them")
            if precise
            else _("give a model whose files hold them")
        )
        raise WeightsMissing(
            "The files of {model} do not hold {missing:,} of the weights that it would be loaded with "
            "({first}), which would be random: {remedy}.",
            model=one_line(recipe.model.name, max_length=200),
            missing=len(missing),
            first=one_line(min(missing), max_length=120),
            remedy=remedy,
        )


def out_of_memory(what: str, name: str, recipe: Recipe) -> str:
    """The sentence for memory that ran out, with the choices that would help this recipe."""
    if recipe.model.load_in_4bit:
        return _(
            "Memory ran out while {what} {model}: free the memory that other programs hold, or choose a smaller model.",
            what=_(what),
            model=name,
        )
    return _(
        "Memory ran out while {what} {model}: free the memory that other programs hold, or set model.load_in_4bit: "
        "true or choose a smaller model.",
        what=_(what),
        model=name,
    )


def weights_folder(model: ModelSection) -> Path:
    """The folder that holds the model's safetensors files; for a Hub model it must have been downloaded before."""
    if is_folder(model.name):
        return Path(model.name)
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors*", "tokenizer.model"]
    return Path(snapshot_download(model.name, revision=model.revision, allow_patterns=patterns, local_files_only=True))


def download_weights(model: ModelSection) -> None:
    """Get a Hub model's configuration and weights, from its cache where they are there. Raises OSError and its like."""
    if not is_folder(model.name):
        from huggingface_hub import snapshot_download

        patterns = ["*.safetensors*", "*.json", "tokenizer.model"]
        snapshot_download(model.name, revision=model.revision, allow_patterns=patterns)


def require_adapter(folder: str) -> None:
    """Refuse a folder that holds no safetensors adapter. Raises UnusableInput."""
    if (
        not (Path(folder) / "adapter_model.safetensors").is_file()
        or not (Path(folder) / "adapter_config.json").is_file()
    ):
        raise UnusableInput(
            "{folder} holds no adapter (adapter_config.json and adapter_model.safetensors): choose a run "
            "whose training has saved one.",
            folder=one_line(folder),
        )


def attach_beside(loaded: LoadedModel, folder: str, adapter: str) -> None:
    """Add the adapter saved in `folder` to a model that has one, under the name `adapter`; it is not active yet.

    Raises TuituneError, UnusableInput; the model is then as it was.
    """
    require_adapter(folder)
    try:
        with explained(loaded.recipe, N_("attaching the saved adapter to")):
            loaded.model.load_adapter(folder, adapter_name=adapter, is_trainable=False)
            require_all_attached(loaded.model, folder, adapter)
    except BaseException:
        if adapter in loaded.model.peft_config:
            loaded.model.delete_adapter(adapter)
        raise


def require_all_attached(model: Any, folder: str, adapter: str = "default") -> None:
    """Refuse an adapter with weights for layers that the model does not have: peft would leave these out silently.

    Raises UnusableInput.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(Path(folder) / "adapter_model.safetensors", framework="pt") as file:
        saved = set(file.keys())
    lacking = sorted(saved - set(get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)))
    lora = [name for name in lacking if ".lora_" in name]
    if lora:
        raise UnusableInput(
            "The adapter in {folder} is for other layers than the model's ({layer}): give the model that it "
            "was trained on.",
            folder=one_line(folder),
            layer=one_line(lora[0], max_length=200),
        )


def begin_with_adapter(loaded: LoadedModel, folder: str) -> None:
    """Give the new adapter of `loaded` the weights of the one saved in `folder`. Raises UnusableInput.

    Both must be on the same layers and of the same rank.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    require_adapter(folder)
    weights = load_file(Path(folder) / "adapter_model.safetensors")
    own_weights = get_peft_model_state_dict(loaded.model, save_embedding_layers=False)
    trained = {name for name in weights if ".lora_" in name or name.endswith(".trainable_tokens_delta")}
    for name in sorted(own_weights.keys() | trained):
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (weights, own_weights)]
        if shapes[0] != shapes[1]:
            saved_shape, recipe_shape = (
                _("absent") if shape is None else "×".join(map(str, shape)) for shape in shapes
            )
            raise UnusableInput(
                "The adapter in {folder} cannot be begun with, because it differs from what the recipe's "
                "lora section makes ({layer}: {saved} there, {own} here): take the lora "
                "section and the base model of its run.",
                folder=one_line(folder),
                layer=one_line(name, max_length=160),
                saved=saved_shape,
                own=recipe_shape,
            )
    _require_same_tokens(loaded.recipe.model, folder)
    set_peft_model_state_dict(loaded.model, weights)


def _require_same_tokens(model: ModelSection, folder: str) -> None:
    """Refuse an adapter whose new rows are those of other texts than the recipe's new tokens. Raises UnusableInput."""
    from transformers import AutoTokenizer

    if not model.new_tokens:
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        ids = tokenizer.convert_tokens_to_ids(list(model.new_tokens))
    except Exception:  # there is none, or whatever transformers raises for one that it cannot read
        ids = None
    if ids != ids_of(model):
        raise UnusableInput(
            "The adapter in {folder} cannot be begun with, because its tokenizer does not have the recipe's "
            "model.new_tokens in the same places: take the list of its run.",
            folder=one_line(folder),
        )


def freeze(model: Any) -> None:
    """Stop every weight of the base model from being trained."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
