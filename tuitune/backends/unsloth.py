"""The Unsloth backend: FastLanguageModel loads, attaches and switches, on NVIDIA GPUs."""

import os
from typing import Any

from tuitune.backends.attention import attention_of, lay_end_to_end, varlen_kernel
from tuitune.backends.compiling import compiles_in_seconds, set_compiling, tune_less
from tuitune.backends.dequantized import keep_dequantized
from tuitune.backends.loaded import LoadedModel
from tuitune.backends.loading import explained, freeze, require_adapter, require_all_attached
from tuitune.backends.loftq import begin_with_loftq, require_loftq
from tuitune.backends.rotary import turn_in_one_pass
from tuitune.backends.trained_head import leave_out_untrained
from tuitune.errors import TuituneError
from tuitune.language import N_
from tuitune.machine.environment import prepare_environment
from tuitune.model.config import load_config, load_tokenizer, require_weights, training_config
from tuitune.model.targets import resolve
from tuitune.recipe import Recipe
from tuitune.text import one_line

_CHAT_TOKENS = 8192
_WORD_OF_ITS_ERRORS = "architecture"


class UnslothBackend:
    """Needs an NVIDIA GPU. Unsloth must be imported before transformers, trl and peft: see `environment.warm_up`."""

    name = "unsloth"

    def load(self, recipe: Recipe) -> LoadedModel:
        """The base model, frozen, on the current GPU. Raises TuituneError, UnusableInput.

        The tokenizer is the model's own, as the preview used it: Unsloth's changes to it would move the mask.
        """
        require_weights(recipe.model)
        _require_readable_name(recipe)
        config = training_config(recipe)
        rotary = getattr(config.get_text_config(), "rope_parameters", None)
        setting = recipe.train.compile
        compiled = compiles_in_seconds(config) if setting == "auto" else setting
        fast = _fast_language_model()
        import torch

        tokenizer = load_tokenizer(recipe.model)
        with explained(recipe, N_("loading")):
            torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every new length
            model, _tokenizer = fast.from_pretrained(
                model_name=recipe.model.name,
                revision=recipe.model.revision,
                max_seq_length=_context_tokens(recipe),
                dtype=None,
                load_in_4bit=recipe.model.load_in_4bit,
                load_in_8bit=recipe.model.load_in_8bit,
                load_in_16bit=not (recipe.model.load_in_4bit or recipe.model.load_in_8bit),
                # Unsloth takes a pre-quantised Hub copy of a named model unless told not to, but a recipe's
                # model is exactly the one that it names.
                use_exact_model_name=True,
                trust_remote_code=False,
                use_gradient_checkpointing="unsloth",
                random_state=recipe.train.seed,
                device_map={"": torch.cuda.current_device()},
                attn_implementation=attention_of(config, compiled=compiled),
            )
            freeze(model)
        scaled = getattr(model.config.get_text_config(), "rope_parameters", None)
        if (rotary or {}).get("factor") != (scaled or {}).get("factor"):
            raise TuituneError("Unsloth does not scale its positions for data.max_length as exports would.")
        kernel = varlen_kernel()
        keep_dequantized(False)
        turn_in_one_pass()
        set_compiling(compiled)
        return LoadedModel(
            model,
            tokenizer,
            self,
            recipe,
            gradient_checkpointing=recipe.train.gradient_checkpointing is not False,
            padding_free=kernel is not None and recipe.train.padding_free is not False,
            attention=kernel or "sdpa",
            compiled=compiled,
            dequantize_once=recipe.train.dequantize_once is True,
        )

    def attach(self, loaded: LoadedModel) -> None:
        """Add the recipe's LoRA adapter, its first values drawn from the recipe's seed. Raises UnusableInput."""
        fast, lora = _fast_language_model(), loaded.recipe.lora
        loaded.targets = resolve(loaded.model, loaded.recipe)
        require_loftq(loaded.recipe)
        checkpointing: bool | str = "unsloth" if loaded.gradient_checkpointing else False
        if lora.modules_to_save:
            # Asked for its own kind here, Unsloth moves the base's embeddings to a file, and the base answers no more.
            checkpointing = loaded.gradient_checkpointing
        with explained(loaded.recipe, N_("attaching an adapter to")):
            loaded.model = fast.get_peft_model(
                loaded.model,
                r=lora.r,
                lora_alpha=lora.lora_alpha,
                lora_dropout=lora.lora_dropout,
                target_modules=loaded.targets.as_unsloth(),
                bias=lora.bias,
                use_rslora=lora.use_rslora,
                use_dora=lora.use_dora,
                modules_to_save=list(lora.modules_to_save) or None,
                use_gradient_checkpointing=checkpointing,
                random_state=loaded.recipe.train.seed,
                max_seq_length=_context_tokens(loaded.recipe),
            )
            if lora.init_lora_weights == "loftq":  # Unsloth's own would need the whole base in 16-bit
                begin_with_loftq(loaded)
            tune_less()  # whatever imported these kernels, before the first one runs
            loaded.padding_free = loaded.padding_free and lay_end_to_end(loaded.model)
            loaded.trained_head = loaded.padding_free and leave_out_untrained(loaded.model)

    def attach_saved(self, loaded: LoadedModel, folder: str) -> None:
        """Add the adapter saved in `folder`, frozen. Raises TuituneError, UnusableInput."""
        fast = _class_of_model(loaded.recipe)
        from peft import PeftModel

        require_adapter(folder)
        with explained(loaded.recipe, N_("attaching the saved adapter to")):
            model = PeftModel.from_pretrained(loaded.model, folder, is_trainable=False)
            require_all_attached(model, folder)
            tune_less()
            patch = fast.patch_peft_model if hasattr(fast, "patch_peft_model") else fast.post_patch_model
            loaded.model = patch(model, use_gradient_checkpointing=False)

    def for_training(self, loaded: LoadedModel) -> None:
        checkpointing = "unsloth" if loaded.gradient_checkpointing else False
        # Unsloth's trainer goes back to what the adapter was attached with, unless it is changed here too.
        loaded.model._unsloth_gradient_checkpointing = checkpointing
        _class_of_model(loaded.recipe).for_training(loaded.model, use_gradient_checkpointing=checkpointing)
        set_compiling(loaded.compiled)
        keep_dequantized(loaded.dequantize_once)

    def for_inference(self, loaded: LoadedModel) -> None:
        if not loaded.dequantize_once:
            keep_dequantized(False)
        _class_of_model(loaded.recipe).for_inference(loaded.model)


def _context_tokens(recipe: Recipe) -> int:
    """Unsloth cuts off what is longer, in chat too, where a conversation outgrows the rows it was trained on."""
    positions = getattr(load_config(recipe.model).get_text_config(), "max_position_embeddings", None) or 0
    return max(recipe.data.max_length, min(positions, _CHAT_TOKENS))


def _class_of_model(recipe: Recipe) -> Any:
    """What switches the modes of the model that was loaded last: its architecture may have kernels of its own or not.

    Unsloth tells by this variable, which each of its loads sets.
    """
    fast = _fast_language_model()
    if os.environ.get("UNSLOTH_USE_NEW_MODEL") != "1":
        return fast
    from unsloth.models.vision import FastBaseModel

    return FastBaseModel


def _require_readable_name(recipe: Recipe) -> None:
    """Refuse a path with a word in it that Unsloth looks for in errors, which name the path. Raises TuituneError."""
    name = recipe.model.name
    if _WORD_OF_ITS_ERRORS in name:
        raise TuituneError(
            "Unsloth cannot load a model from a path with the word {word} in it ({model}): rename the folder, or set "
            "model.backend to transformers.",
            word=_WORD_OF_ITS_ERRORS,
            model=one_line(name, max_length=200),
        )


def _fast_language_model() -> Any:
    """unsloth.FastLanguageModel, imported in a settled environment. Raises TuituneError."""
    prepare_environment()
    try:
        from unsloth import FastLanguageModel
    except ImportError as error:
        raise TuituneError(
            "Unsloth is not installed or does not match the other libraries: "
            "`pip install 'tuitune[gpu]'`, or set model.backend: transformers."
        ) from error
    return FastLanguageModel
