"""What a model is before its weights are loaded: its config, its tokenizer, and where they come from."""

import re
from pathlib import Path
from typing import Any

from tuitune.chat_template.named import give_template
from tuitune.errors import UnusableInput
from tuitune.hub.reach import explained, refusal
from tuitune.language import N_, _
from tuitune.model.new_tokens import add_new_tokens
from tuitune.recipe import Recipe
from tuitune.recipe_sections import ModelSection
from tuitune.text import one_line

_TOWER = re.compile(r"vision|visual|audio|image|speech|multi_modal|projector")


def is_folder(name: str) -> bool:
    """Whether a model name means a folder on this machine rather than a Hub id."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).is_dir()


def load_config(model: ModelSection) -> Any:
    """The model's transformers config; no weights are read. Raises UnusableInput."""
    from transformers import AutoConfig

    return _load(AutoConfig, model, "config.json")


def training_config(recipe: Recipe) -> Any:
    """The model's config with room for `data.max_length` tokens, as the run's base is loaded everywhere.

    Beyond the model's own context its rotary positions are scaled linearly (position interpolation, Chen et al. 2023).
    Raises UnusableInput, also where a model's positions cannot be scaled so.
    """
    config, max_length = load_config(recipe.model), recipe.data.max_length
    text = config.get_text_config()
    own_positions = getattr(text, "max_position_embeddings", None)
    if not own_positions or max_length <= own_positions:
        return config
    rotary = getattr(text, "rope_parameters", None) or {}
    if rotary.get("rope_type") != "default":
        raise UnusableInput(
            "{model} reads {positions:,} tokens at most, and its positions cannot be scaled for more: "
            "set data.max_length to {positions} or less, or choose a model with a longer context.",
            model=one_line(recipe.model.name, max_length=200),
            positions=own_positions,
        )
    text.rope_parameters = {**rotary, "rope_type": "linear", "factor": max_length / own_positions}
    text.max_position_embeddings = max_length
    return config


def auto_class(config: Any) -> Any:
    """The transformers auto class that loads every weight of a model, those that read images among them."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    multimodal = config.get_text_config() is not config and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if multimodal else AutoModelForCausalLM


def reads_other_than_text(name: str) -> bool:
    """Whether a module or weight of a multimodal model is, by its name, of a vision or audio tower or its projector."""
    return _TOWER.search(name) is not None


def load_tokenizer(model: ModelSection) -> Any:
    """The model's tokenizer with the recipe's new tokens; no weights are read. Raises UnusableInput."""
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, model, N_("tokenizer"))
    if model.chat_template is not None:
        give_template(tokenizer, model.chat_template)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = _padding(tokenizer)
    add_new_tokens(tokenizer, model.new_tokens)
    return tokenizer


def require_weights(model: ModelSection) -> None:
    """Refuse a model folder without safetensors weights before anything is loaded. Raises UnusableInput."""
    if not is_folder(model.name):
        return
    folder = _model_folder(model)
    if not any(folder.glob("*.safetensors")):
        raise UnusableInput(
            "The model folder {folder} holds no .safetensors weights: give the folder of a whole model, or "
            "a Hugging Face Hub id.",
            folder=one_line(folder),
        )


def _model_folder(model: ModelSection) -> Path:
    """The folder that a model's name means. Raises UnusableInput where it holds no model."""
    folder = Path(model.name)
    if not folder.is_dir():
        raise UnusableInput(
            "There is no model folder {folder}: give a folder or a Hugging Face Hub id.", folder=one_line(folder)
        )
    if not (folder / "config.json").is_file():
        raise UnusableInput(
            "{folder} is not a model folder, for it holds no config.json: give the folder of a whole "
            "model, or a Hugging Face Hub id.",
            folder=one_line(folder),
        )
    return folder


def _padding(tokenizer: Any) -> str:
    """The token to fill short rows with: one made for it, else the unknown or the end token.

    No token is added, since the model has no weights for it. The end token is safe to take, because labels are
    masked by position and never by token.
    """
    vocabulary = tokenizer.get_vocab()
    made_for_it = ("<|finetune_right_pad_id|>", "<|vision_pad|>", "<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<unk>")
    known = next((token for token in made_for_it if token in vocabulary), None)
    return known or tokenizer.unk_token or tokenizer.eos_token or next(iter(vocabulary))


def _load(loader: Any, model: ModelSection, what: str) -> Any:
    name = one_line(model.name, max_length=200)
    problem = None
    if is_folder(model.name):
        _model_folder(model)
    else:
        problem = refusal(model.name, "model")
    try:
        return loader.from_pretrained(
            model.name,
            revision=model.revision or "main",
            trust_remote_code=False,
            local_files_only=problem is not None,  # what was downloaded before needs no Hub
        )
    except Exception as error:  # transformers raises a dozen kinds for the same few causes
        if is_folder(model.name):
            raise UnusableInput(
                "The {what} in {folder} cannot be read ({reason}): give the folder of a whole model, or a "
                "Hugging Face Hub id.",
                what=_(what),
                folder=name,
                reason=one_line(error, max_length=200),
            ) from error
        raise UnusableInput(explained(problem or error, model.name, "model", model.revision)) from error
