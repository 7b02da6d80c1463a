"""What a recipe's dataset is and which tokens of its rows are trained, without loading a model."""

from collections.abc import Iterator
from typing import Any

from tuitune.data.dataset import open_dataset
from tuitune.masking import IGNORED, Masker, UnusableRow, token_texts
from tuitune.model import load_tokenizer
from tuitune.recipe import Recipe
from tuitune.text import one_line


def inspect_rows(recipe: Recipe, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """For each row `{"row", "tokens": [{"id", "text", "trained"}], "trained_tokens", "total_tokens"}`.

    A row that cannot be used gives `{"row", "error"}`. The token texts of a row, joined, are its decoded text; a
    character made of several tokens stands at the last of them. Raises UnusableInput.
    """
    dataset = open_dataset(recipe.data)
    tokenizer = load_tokenizer(recipe.model)
    masker = Masker(tokenizer, recipe.data.train_on, recipe.data.max_length)
    for row in dataset.rows(start, stop):
        if row.sample is None:
            yield {"row": row.index, "error": row.error}
            continue
        try:
            masked = masker.encode_sample(row.sample)
        except UnusableRow as error:
            yield {"row": row.index, "error": str(error)}
            continue
        texts = token_texts(tokenizer, masked.input_ids)
        yield {
            "row": row.index,
            "tokens": [
                {"id": token, "text": text, "trained": label != IGNORED}
                for token, text, label in zip(masked.input_ids, texts, masked.labels, strict=True)
            ],
            "trained_tokens": masked.trained_tokens,
            "total_tokens": len(masked.input_ids),
        }


def summary(recipe: Recipe) -> dict[str, Any]:
    """File, format and size of the recipe's dataset, for a person or as JSON. Raises UnusableInput."""
    dataset = open_dataset(recipe.data)
    return {
        "file": str(dataset.path),
        "kind": dataset.container.text,
        "format": dataset.format.name,
        "reason": dataset.format.reason,
        "columns": {one_line(role): one_line(name) for role, name in dataset.format.columns.items()},
        "rows": len(dataset),
        "bytes": dataset.path.stat().st_size,
    }
