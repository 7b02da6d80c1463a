"""The rows of embeddings and head that the recipe's new tokens need: what they begin as, and how peft trains them."""

from typing import Any

from tuitune.errors import UnusableInput
from tuitune.model.config import load_tokenizer
from tuitune.recipe import Recipe
from tuitune.recipe_sections import ModelSection
from tuitune.text import one_line


def add_rows(model: Any, section: ModelSection) -> None:
    """Give each of `section.new_tokens` its row in a base model, the mean of the rows of the tokens it was before.

    Rows that the model has beyond its tokenizer are used first; further ones are added to it. The rows follow from the
    recipe and the base alone, so that an adapter finds them again wherever the base is loaded. Raises UnusableInput.
    """
    import torch

    if not section.new_tokens:
        return
    name = one_line(section.name, max_length=200)
    ids = ids_of(section)
    tokenizer = load_tokenizer(section.model_copy(update={"new_tokens": ()}))
    parts = [tokenizer.encode(text, add_special_tokens=False) for text in section.new_tokens]
    rows = model.get_input_embeddings().weight.shape[0]
    if min(ids) > rows:
        raise UnusableInput(
            "{model} has {rows:,} rows for tokens, and its tokenizer more tokens than that: new tokens cannot follow "
            "them, so take out model.new_tokens.",
            model=name,
            rows=rows,
        )
    if max(ids) >= rows:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
        if layer.weight.element_size() < 2:
            raise UnusableInput(
                "The embeddings of {model} are stored quantised, and new tokens need rows in 16-bit: choose the model "
                "that it was made from, or take out model.new_tokens.",
                model=name,
            )
        with torch.no_grad():
            means = torch.stack([layer.weight[part].float().mean(0) for part in parts])
            layer.weight[ids] = means.to(layer.weight.dtype)


def ids_of(section: ModelSection) -> list[int]:
    """The id of each of `section.new_tokens`. Raises UnusableInput."""
    ids: list[int] = load_tokenizer(section).convert_tokens_to_ids(list(section.new_tokens))
    return ids


def trained_rows(model: Any, recipe: Recipe) -> dict[str, list[int]] | None:
    """The rows of a base model that peft trains beside LoRA: names of layers, with the ids of the new tokens.

    None where there are none, or where embeddings and head are trained whole anyway. Those that are tied count once.
    Raises UnusableInput.
    """
    if not recipe.model.new_tokens:
        return None
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers = {name: module for name, module in model.named_modules() if module is embeddings or module is head}
    whole = {name for name in layers if trained_whole(name, recipe)}
    if are_tied(model):
        layers = {} if whole else {name: module for name, module in layers.items() if module is embeddings}
    layers = {name: module for name, module in layers.items() if name not in whole}
    if layers and getattr(head, "bias", None) is not None:
        raise UnusableInput(
            "The output layer of {model} has a bias, which PEFT leaves out where it trains single rows: set "
            "lora.modules_to_save: [{names}], which trains all rows, or take out model.new_tokens.",
            model=one_line(recipe.model.name, max_length=200),
            names=", ".join(sorted(name.rpartition(".")[2] for name in layers)),
        )
    return dict.fromkeys(layers, ids_of(recipe.model)) or None


def are_tied(model: Any) -> bool:
    """Whether embeddings and head of a base model are one weight."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def trained_whole(name: str, recipe: Recipe) -> bool:
    """Whether `lora.modules_to_save` means the module of this name, by peft's rule."""
    return any(name == wanted or name.endswith(f".{wanted}") for wanted in recipe.lora.modules_to_save)


def settle_head(model: Any, *, tied: bool) -> None:
    """Let the head of a model whose new rows are trained be read as any other. Raises UnusableInput where it is `tied`
    to the embeddings and does not follow them."""
    head = model.get_output_embeddings()
    if hasattr(head, "token_adapter"):
        head.bias = None  # TRL's loss asks for it, and peft's layer around the head knows of its weight alone
    elif tied:
        raise UnusableInput(
            "PEFT does not keep the new rows of this model's head tied to those of its embeddings: set "
            "lora.modules_to_save: [embed_tokens, lm_head], which trains all rows, or take out model.new_tokens."
        )
