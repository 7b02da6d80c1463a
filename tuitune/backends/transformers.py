"""The plain backend: transformers loads the model, bitsandbytes holds it in 4-bit, PEFT attaches the adapter."""

from functools import partial
from typing import Any

from tuitune.backends.loaded import LoadedModel
from tuitune.backends.loading import explained, freeze, require_adapter, require_all_attached
from tuitune.backends.loftq import begin_with_loftq, require_loftq
from tuitune.backends.new_rows import add_rows, are_tied, settle_head, trained_rows
from tuitune.backends.quantization import quantization
from tuitune.language import N_
from tuitune.machine.precision import compute_dtype
from tuitune.model.config import auto_class, load_tokenizer, require_weights, training_config
from tuitune.model.targets import Targets, resolve
from tuitune.recipe import Recipe

# Below this a CPU holds every activation easily, and recomputing them would only cost time.
_CHECKPOINTING_FROM_PARAMETERS = 500_000_000


class TransformersBackend:
    """Runs wherever torch does; on a CPU it is the only one."""

    name = "transformers"

    def load(self, recipe: Recipe) -> LoadedModel:
        """The base model, frozen, on the current GPU or the CPU. Raises TuituneError, UnusableInput."""
        from peft import prepare_model_for_kbit_training

        require_weights(recipe.model)
        tokenizer = load_tokenizer(recipe.model)
        config = training_config(recipe)
        prequantized = getattr(config, "quantization_config", None) is not None
        with explained(recipe, N_("loading")):
            attention = _attention_of(config)
            model = auto_class(config).from_pretrained(
                recipe.model.name,
                config=config,
                revision=recipe.model.revision or "main",
                dtype=compute_dtype(load_in_4bit=recipe.model.load_in_4bit),
                device_map={"": device()},
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
                # A model saved in 4-bit is taken as it is; even None would hide its own configuration.
                **({} if prequantized else quantization(recipe)),
            )
            add_rows(model, recipe.model)
            freeze(model)
            checkpointing = uses_checkpointing(recipe, model.num_parameters())
            if prequantized or recipe.model.load_in_4bit or recipe.model.load_in_8bit:
                _keep_cpu_weights_as_loaded(model)
                model = prepare_model_for_kbit_training(
                    model,
                    use_gradient_checkpointing=checkpointing,
                    gradient_checkpointing_kwargs={"use_reentrant": False},
                )
            _use_flash_attention()
        text = model.config.get_text_config()
        if text.pad_token_id is None:
            text.pad_token_id = tokenizer.pad_token_id
        return LoadedModel(model, tokenizer, self, recipe, gradient_checkpointing=checkpointing, attention=attention)

    def attach(self, loaded: LoadedModel) -> None:
        """Add the recipe's LoRA adapter, its first values drawn from the recipe's seed. Raises UnusableInput."""
        import torch
        from peft import get_peft_model

        loaded.targets = resolve(loaded.model, loaded.recipe)
        require_loftq(loaded.recipe)
        tied = bool(getattr(loaded.model.config.get_text_config(), "tie_word_embeddings", False))
        rows, rows_tied = trained_rows(loaded.model, loaded.recipe), are_tied(loaded.model)
        with explained(loaded.recipe, N_("attaching an adapter to")), torch.random.fork_rng():
            torch.manual_seed(loaded.recipe.train.seed)
            loaded.model = get_peft_model(
                loaded.model, lora_config(loaded.recipe, loaded.targets, tied=tied, rows=rows)
            )
            if rows:
                settle_head(loaded.model, tied=rows_tied)
            if loaded.recipe.model.new_tokens:
                # Of a model that was given rows, peft would save all of them with each checkpoint.
                loaded.model.save_pretrained = partial(loaded.model.save_pretrained, save_embedding_layers=False)
            if loaded.recipe.lora.init_lora_weights == "loftq":
                begin_with_loftq(loaded)

    def attach_saved(self, loaded: LoadedModel, folder: str) -> None:
        """Add the adapter saved in `folder`, frozen. Raises TuituneError, UnusableInput."""
        from peft import PeftModel

        require_adapter(folder)
        with explained(loaded.recipe, N_("attaching the saved adapter to")):
            loaded.model = PeftModel.from_pretrained(loaded.model, folder, is_trainable=False)
            require_all_attached(loaded.model, folder)

    def for_training(self, loaded: LoadedModel) -> None:
        model = loaded.model
        model.config.use_cache = False
        if loaded.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        model.train()

    def for_inference(self, loaded: LoadedModel) -> None:
        model = loaded.model
        model.gradient_checkpointing_disable()
        model.config.use_cache = True
        model.eval()


def _attention_of(config: Any) -> str:
    """torch's own kernels, or plain matrix products where they cannot do what the architecture does (gpt-oss)."""
    architecture = auto_class(config)._model_mapping[type(config)]
    return "sdpa" if architecture._supports_sdpa else "eager"


def device() -> str:
    """Where models go: the current CUDA device (the one the session was started for), else the CPU."""
    import torch

    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def lora_config(
    recipe: Recipe, targets: Targets, *, tied: bool = False, rows: dict[str, list[int]] | None = None
) -> Any:
    """The recipe's adapter on the resolved layers, as a peft LoraConfig; `tied` embeddings and head stay so.

    `rows` are those of `trained_rows`.
    """
    from peft import LoraConfig

    lora = recipe.lora
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets.as_peft(),
        bias=lora.bias,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        modules_to_save=list(lora.modules_to_save) or None,
        ensure_weight_tying=tied and bool({"embed_tokens", "lm_head"} & set(lora.modules_to_save)),
        trainable_token_indices=rows,
    )


def uses_checkpointing(recipe: Recipe, parameters: int) -> bool:
    """Whether this backend computes activations again: as the recipe says, else for models that are not small."""
    setting = recipe.train.gradient_checkpointing
    return parameters >= _CHECKPOINTING_FROM_PARAMETERS if setting == "auto" else setting


def _keep_cpu_weights_as_loaded(model: Any) -> None:
    """Turn off bitsandbytes' repacking of 4-bit CPU weights at the first forward pass in eval mode.

    It rewrites the weights in place with scales rounded to bf16, so training after a sample reply would go on
    from other weights than before it, and it refuses layers whose width is no multiple of 32.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _use_flash_attention() -> None:
    """cuDNN attention plans anew for every new shape, about 20 ms a call, and rows come in every length."""
    import torch

    if torch.cuda.is_available():
        torch.backends.cuda.enable_cudnn_sdp(False)
