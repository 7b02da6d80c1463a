"""Runs beside each other: in which fields their recipes differ, and whether their losses can be compared at all."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuitune.language import _
from tuitune.runs.folder import Run


@dataclass(frozen=True, slots=True)
class Difference:
    """A recipe field (`train.learning_rate`) with its value in each of the runs, as text."""

    field: str
    values: tuple[str, ...]


def differences(runs: Sequence[Run]) -> list[Difference]:
    """The fields in which what the runs trained differs, in the order of the recipe. Raises UnusableInput."""
    recipes = [_fields(run.resolved().model_dump(mode="json")) for run in runs]
    fields = dict.fromkeys(field for recipe in recipes for field in recipe)
    differences = [Difference(field, tuple(recipe.get(field, "") for recipe in recipes)) for field in fields]
    return [difference for difference in differences if len(set(difference.values)) > 1]


def why_not_comparable(differences: Sequence[Difference]) -> str | None:
    """Why the losses of runs with these differences are not of the same tokens; None where they are."""
    fields = {difference.field for difference in differences}
    if fields & {"model.name", "model.chat_template", "model.new_tokens"}:
        return _("Their models differ: the losses may be of different tokens.")
    if any(field.startswith("data.") and field != "data.bad_rows" for field in fields):
        return _("Their data differ: the losses are of different tokens.")
    if "train.seed" in fields:
        return _("Their seeds differ: so do the order of the rows, and which share of them is held out.")
    return None


def _fields(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested sections as dotted field names with the text of their values."""
    fields: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            fields |= _fields(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return fields
