"""What a recipe's dataset is and which tokens of its rows are trained, without loading a model."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

from tuitune.data.dataset import Dataset, container_of, eval_section, open_dataset, sections, told_apart
from tuitune.data.files import records
from tuitune.data.formats import MAPPABLE
from tuitune.data.prepare import encode_row
from tuitune.data.proposal import proposal
from tuitune.errors import code_of
from tuitune.masking import IGNORED, Masker, token_texts
from tuitune.methods import Part, method_of
from tuitune.model.config import load_tokenizer
from tuitune.recipe import Recipe
from tuitune.recipe_sections import DataSection, ModelSection
from tuitune.text import one_line


def inspect_rows(recipe: Recipe, start: int, stop: int, source: int = 0) -> Iterator[dict[str, Any]]:
    """For each row from index `start` up to, not including, `stop` (from 0) `{"row", "parts": [{"title", "tokens": [{
    "id", "text", "trained"}]}], "tokens", "trained_tokens", "total_tokens"}`; `row` is its number, from 1, and `tokens`
    are those of all its parts.

    A row that cannot be used gives `{"row", "error", "code", "raw"}`, with what stands in the file. The token texts of
    a part, joined, are its decoded text; a character made of several tokens stands at the last of them. A row that is
    split gives one for each row that is trained in its place. `source` is a place in `summary`'s `sources`. Raises
    UnusableInput.
    """
    dataset = open_dataset(_sources(recipe.data)[source])
    data = recipe.data
    method = method_of(recipe)
    tokenizer, masker = _masker(recipe.model, method.train_on(recipe), data.max_length)
    for row in dataset.rows(start, stop):
        encoded = encode_row(method, masker, row, data.over_length)
        if isinstance(encoded, str):
            yield {"row": row.index + 1, "error": encoded, "code": code_of(encoded), "raw": row.as_in_file()}
            continue
        for trained in encoded:
            parts = [{"title": part.title, "tokens": _tokens(tokenizer, part)} for part in method.parts(trained)]
            yield {
                "row": row.index + 1,
                "parts": parts,
                "tokens": [token for part in parts for token in part["tokens"]],
                "trained_tokens": trained.trained_tokens,
                "total_tokens": trained.tokens,
            }


def _tokens(tokenizer: Any, part: Part) -> list[dict[str, Any]]:
    texts = token_texts(tokenizer, part.input_ids)
    return [
        {"id": token, "text": text, "trained": label != IGNORED}
        for token, text, label in zip(part.input_ids, texts, part.labels, strict=True)
    ]


def unusable_rows(recipe: Recipe, among: int) -> dict[str, Any]:
    """`unusable`: of the first `among` rows of each dataset those that cannot be used, `{"source", "row", "error",
    "code"}`; `looked_at`: how many rows that were. `source` is a place in `summary`'s `sources`. Raises UnusableInput.
    """
    data = recipe.data
    method = method_of(recipe)
    _tokenizer, masker = _masker(recipe.model, method.train_on(recipe), data.max_length)
    looked_at, unusable = 0, []
    for source, section in enumerate(_sources(data)):
        for row in open_dataset(section).rows(0, among):
            looked_at += 1
            if isinstance(error := encode_row(method, masker, row, data.over_length), str):
                unusable.append({"source": source, "row": row.index + 1, "error": error, "code": code_of(error)})
    return {"looked_at": looked_at, "unusable": unusable}


@lru_cache(maxsize=1)
def _masker(model: ModelSection, train_on: Literal["assistant", "last", "all"], max_length: int) -> tuple[Any, Masker]:
    """Kept from row to row: a large vocabulary takes seconds to load."""
    tokenizer = load_tokenizer(model)
    return tokenizer, Masker(tokenizer, train_on, max_length)


def summary(recipe: Recipe) -> dict[str, Any]:
    """File, format and size of the recipe's dataset, for a person or as JSON; no file is read for longer than a moment.

    `rows` is an estimate where `rows_estimated` is true. `sources` are all datasets of the recipe, each with its name,
    rows, weight and share of the rows drawn in training; the one that the loss is measured on comes last, with neither
    weight nor share. Raises UnusableInput.
    """
    datasets = [open_dataset(section) for section in _sources(recipe.data)]
    dataset, parts = datasets[0], _parts(recipe.data, datasets)
    return {
        "file": str(dataset.path),
        "kind": dataset.container.text,
        "format": dataset.format.name,
        "reason": dataset.format.reason,
        "columns": {one_line(role): one_line(name) for role, name in dataset.format.columns.items()},
        "rows": parts[0]["rows"],
        "rows_estimated": parts[0]["rows_estimated"],
        "bytes": None if dataset.container.hub else dataset.path.stat().st_size,
        "sources": parts,
        **proposal(dataset),
    }


def _sources(data: DataSection) -> list[DataSection]:
    """The datasets that are trained on, then the one that the loss is measured on, where it is one of its own."""
    elsewhere = eval_section(data)
    return sections(data) + ([] if elsewhere is None else [elsewhere])


def _parts(data: DataSection, datasets: list[Dataset]) -> list[dict[str, Any]]:
    trained = len(sections(data))
    names = told_apart([dataset.name for dataset in datasets[:trained]])
    parts: list[dict[str, Any]] = []
    for place, (section, dataset) in enumerate(zip(_sources(data), datasets, strict=True)):
        rows, estimated = dataset.quick_rows()
        name, weight = (names[place], section.weight) if place < trained else (dataset.name, None)
        parts.append({"name": name, "rows": rows, "rows_estimated": estimated, "weight": weight, "share": None})
    weighted_rows = sum(part["rows"] * part["weight"] for part in parts[:trained])
    for part in parts[:trained]:
        part["share"] = part["rows"] * part["weight"] / max(1, weighted_rows)
    return parts


def columns(recipe: Recipe) -> dict[str, Any]:
    """`columns`: name to an example value, from the first rows as they stand in the file; `mappable`: what
    `data.columns` takes. For a format that was not recognised. Raises UnusableInput.
    """
    examples: dict[str, str] = {}
    for record in islice(records(container_of(recipe.data)), 20):
        for name, value in (record.value or {}).items():
            if not examples.get(name):
                examples[name] = one_line(value if isinstance(value, str) else repr(value), max_length=200)
    return {"columns": examples, "mappable": list(MAPPABLE)}
