"""Export the merged model: the base in 16-bit with the adapter added to its weights."""

import contextlib
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tuitune.backends.loading import download_weights, explained, require_all_attached, weights_folder
from tuitune.backends.loftq import base_in_4bit
from tuitune.backends.new_rows import add_rows, ids_of
from tuitune.chat_template.turn_end import end_of_turn_id
from tuitune.errors import TuituneError
from tuitune.export import shards
from tuitune.export.card import mark, model_card
from tuitune.export.kinds import Cancelled
from tuitune.language import N_, _
from tuitune.model.config import auto_class, require_weights, training_config
from tuitune.recipe import Recipe
from tuitune.recipe_sections import ModelSection
from tuitune.runs.folder import Run
from tuitune.text import one_line

# What bitsandbytes stores beside a 4-bit weight.
_QUANTISATION = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format")


def merge(
    run: Run,
    tokenizer: Any,
    folder: Path,
    progress: Callable[..., None],
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[str, ...]:
    """Write the merged model and the tokenizer into the new `folder` and prove it; returns notices for the user.

    Each target weight becomes W + lora_alpha/r · B·A (Hu et al. 2021, `peft` merge_and_unload). Raises TuituneError.
    """
    recipe = run.resolved()
    recipe, notices = sixteen_bit(recipe)
    with explained(recipe, N_("merging the adapter into")), quiet():
        config = training_config(recipe)
        by_shard = None if base_in_4bit(recipe) else shards.plan(config, weights_folder(recipe.model), run.adapter)
    if by_shard is not None:
        with explained(recipe, N_("merging the adapter into")):
            shards.merge(by_shard, run.adapter, folder, progress, cancelled)
        unread = set(by_shard.unread)
        _save_settings(by_shard, config, recipe, tokenizer, folder)
    else:
        unread, merge_notices = _merge_in_memory(run, recipe, tokenizer, folder, progress, cancelled)
        notices += merge_notices
    (folder / "README.md").write_text(model_card(run, "merged_16bit"), encoding="utf-8")
    mark(folder, run, "merged_16bit")
    if unread:
        first = one_line(sorted(unread)[0])
        notices += (
            _(
                "{count} weights of the base ({first}, …) are left out: replies do not use them, and transformers does "
                "not load them.",
                count=len(unread),
                first=first,
            ),
        )
    return notices


def _save_settings(merging: shards.Plan, config: Any, recipe: Recipe, tokenizer: Any, folder: Path) -> None:
    """Write everything but the weights into the folder of the merged model."""
    from transformers import GenerationConfig

    model = merging.model
    with contextlib.suppress(OSError):  # not every model has settings of its own for generating
        model.generation_config = GenerationConfig.from_pretrained(
            recipe.model.name, revision=recipe.model.revision or "main"
        )
    _end_where_the_template_ends(model, tokenizer)
    config.dtype, config.architectures = merging.dtype, [type(model).__name__]
    config.get_text_config().vocab_size = merging.vocabulary
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _copy_sentencepiece(recipe.model, folder)


def sixteen_bit(recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with the 16-bit model that a 4-bit repository was made from as its base, where that can be had.

    Such repositories bear the name of the 16-bit one with an ending. A LoftQ adapter belongs to the 4-bit weights.
    """
    name = re.sub(r"(-unsloth)?-bnb-4bit$", "", recipe.model.name)
    if name == recipe.model.name or base_in_4bit(recipe):
        return recipe, ()
    model = recipe.model.model_copy(update={"name": name, "revision": None})
    try:
        require_weights(model)
        own, other = training_config(recipe), training_config(recipe.model_copy(update={"model": model}))
        if getattr(other, "quantization_config", None) is not None or not _same_shape(own, other):
            return recipe, ()
        download_weights(model)
    except (OSError, TuituneError):
        return recipe, ()
    shown = one_line(name, max_length=200)
    return recipe.model_copy(update={"model": model}), (
        _("The adapter was trained on a 4-bit copy and is merged into the 16-bit weights of {name}.", name=shown),
    )


def _same_shape(one: Any, other: Any) -> bool:
    names = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size")
    texts = one.get_text_config(), other.get_text_config()
    return all(getattr(texts[0], name, None) == getattr(texts[1], name, None) for name in names)


def _merge_in_memory(
    run: Run,
    recipe: Recipe,
    tokenizer: Any,
    folder: Path,
    progress: Callable[..., None],
    cancelled: Callable[[], bool],
) -> tuple[set[str], tuple[str, ...]]:
    """Merge with the whole model in memory; the weights left out, and notices for the user."""
    progress(_("Loading the base model in 16-bit"))
    with explained(recipe, N_("loading the base model for the merge")), quiet():
        model, notices = _base(recipe)
        add_rows(model, recipe.model)
    _stop_if(cancelled)
    progress(_("Merging the adapter"))
    with explained(recipe, N_("merging the adapter into")):
        model, before = _merged(model, run.adapter)
        after = {name: _checksum(weight) for name, weight in model.state_dict().items()}
    _stop_if(cancelled)
    _end_where_the_template_ends(model, tokenizer)
    progress(_("Saving the merged model"))
    with explained(recipe, N_("saving the merged model of")), quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _copy_sentencepiece(recipe.model, folder)
    tied = set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
    del model
    _stop_if(cancelled)
    progress(_("Checking every weight"))
    with explained(recipe, N_("reopening the merged model of")), quiet():
        unread = _prove(folder, before, after, _base_keys(recipe.model), tied)
    return unread, notices


def _base(recipe: Recipe) -> tuple[Any, tuple[str, ...]]:
    """The base model on the CPU in the 16-bit type of its config; bfloat16 where that is wider or not named.

    For an adapter that began with LoftQ these are its 4-bit weights again, for which it makes up.
    """
    import torch

    model, in_4bit = recipe.model, base_in_4bit(recipe)
    config = training_config(recipe)
    dtype = torch.float16 if config.dtype == torch.float16 else torch.bfloat16
    base = auto_class(config).from_pretrained(
        model.name,
        config=config,
        revision=model.revision or "main",
        dtype=dtype,
        device_map="cpu",
        use_safetensors=True,
        trust_remote_code=False,
        **in_4bit,
    )
    if not in_4bit and getattr(config, "quantization_config", None) is None:
        return base, ()
    base = base.dequantize().to(dtype)
    # What loading did to the quantised tensors, which saving would undo; there is nothing to undo any more.
    base.__dict__.pop("_weight_conversions", None)
    if in_4bit:
        return base, ()
    name = one_line(model.name, max_length=200)
    return base, (
        _(
            "{name} is stored quantised, so its weights were dequantised before the merge; a merge into the "
            "unquantised model would be a little more exact.",
            name=name,
        ),
    )


def _merged(base: Any, adapter: Path) -> tuple[Any, dict[str, int]]:
    """The merged model, and the checksum of each weight that the merge must change, as it was before."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(base, str(adapter), is_trainable=False)
    require_all_attached(model, str(adapter))
    before = {}
    for name, module in model.get_base_model().named_modules():
        lora_b = getattr(module, "lora_B", None)
        if lora_b and any(bool(layer.weight.count_nonzero()) for layer in lora_b.values()):
            before[f"{name}.weight"] = _checksum(module.get_base_layer().weight)
    return model.merge_and_unload(safe_merge=True), before


def _end_where_the_template_ends(model: Any, tokenizer: Any) -> None:
    """Make `generate` stop at the token that the chat template ends a turn with, whatever the base stopped at."""
    end = end_of_turn_id(tokenizer)
    config = model.generation_config
    stops = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if end is not None and end not in stops:
        config.eos_token_id = [end, *(stop for stop in stops if stop is not None)]
    if not config.do_sample:  # transformers refuses to save settings of sampling that is off; models come with such
        config.temperature = config.top_p = config.top_k = config.min_p = config.typical_p = None


def _prove(
    folder: Path, before: dict[str, int], after: dict[str, int], base_keys: set[str], tied: set[str]
) -> set[str]:
    """Reopen what was saved: whole, finite, as merged, and changed wherever the adapter says so.

    `before` and `after` are checksums of weights before and after the merge. Gives the weights among `base_keys` that
    transformers does not load, such as layers that predict further tokens. Raises TuituneError.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    saved, loading = auto_class(config).from_pretrained(
        folder, dtype="auto", device_map="cpu", use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    patterns = [
        pattern
        for module in saved.modules()
        for pattern in getattr(module, "_keys_to_ignore_on_load_unexpected", ()) or ()
    ]
    stored = _stored_keys(folder)
    unread = {key for key in base_keys - stored if any(re.search(pattern, key) for pattern in patterns)}
    differing = {str(name) for names in loading.values() for name in names} | ((stored ^ base_keys) - tied - unread)
    if differing:
        raise TuituneError(
            "The merged model and its base differ in what weights they have ({names}): nothing was exported.",
            names=one_line(", ".join(sorted(differing)[:3])),
        )
    weights = saved.state_dict()
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise TuituneError(
                "The merged weight {name} holds NaN or infinity: nothing was exported.", name=one_line(name)
            )
        if _checksum(weight) != after.get(name):
            raise TuituneError(
                "The merged weight {name} is not the same when it is opened again: nothing was exported.",
                name=one_line(name),
            )
    for name, checksum in before.items():
        if after[name] == checksum:
            raise TuituneError(
                "The merge left {name} as it was, since the adapter's change is too small for 16-bit "
                "weights: export the adapter instead, or train longer.",
                name=one_line(name),
            )
    return unread


def _copy_sentencepiece(model: ModelSection, folder: Path) -> None:
    """Put the base's tokenizer.model beside the merged model: llama.cpp's converter asks for it, and only it.

    New tokens are not in it; the converter finds them in the file where slow tokenizers keep theirs.
    """
    source = weights_folder(model) / "tokenizer.model"
    if source.is_file():
        shutil.copyfile(source, folder / source.name)
        if model.new_tokens:
            added = dict(zip(model.new_tokens, ids_of(model), strict=True))
            (folder / "added_tokens.json").write_text(json.dumps(added, indent=2, ensure_ascii=False) + "\n")


def _base_keys(model: ModelSection) -> set[str]:
    """Names of the weights in the base model's own files; what quantisation stored beside them is left out."""
    return {
        key
        for key in _stored_keys(weights_folder(model))
        if not key.endswith(_QUANTISATION) and ".quant_state." not in key
    }


def _stored_keys(folder: Path) -> set[str]:
    from safetensors import safe_open

    keys: set[str] = set()
    # Beside transformers' own `model*` files, some repositories hold the same weights in another layout.
    for path in [*folder.glob("model*.safetensors")] or folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            keys |= set(file.keys())
    return keys


def _checksum(tensor: Any) -> int:
    import torch

    return zlib.crc32(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())


def _stop_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars that transformers draws on the terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
