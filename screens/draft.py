"""The recipe while it is being chosen: plain data that may still be incomplete or wrong."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuitune.recipe import Recipe


class Draft:
    """Every choice on every screen, by dotted field name (`train.max_steps`). Fields left out have their default."""

    def __init__(self, recipe: "Recipe | None" = None) -> None:
        self.data: dict[str, Any] = recipe.model_dump(mode="json") if recipe else {}

    def get(self, field: str) -> Any:
        """The chosen value, or the field's default; None where there is neither."""
        section, _, name = field.partition(".")
        chosen = self.data.get(section) or {}
        if isinstance(chosen, dict) and name in chosen:
            return chosen[name]
        from tuitune.recipe import Recipe

        info = Recipe.model_fields[section].annotation.model_fields[name]  # type: ignore[union-attr]
        return None if info.is_required() else info.get_default(call_default_factory=True)

    def set(self, field: str, value: Any) -> None:
        section, _, name = field.partition(".")
        self.data.setdefault(section, {})[name] = value

    def recipe(self) -> "Recipe":
        """The validated recipe, with paths taken from the working folder. Raises UnusableInput."""
        from tuitune.recipe import Recipe

        return Recipe.from_data({"model": {}, "data": {}, **copy.deepcopy(self.data)}, folder=Path.cwd())

    def as_data(self) -> dict[str, Any]:
        """The validated recipe as it travels to the session. Raises UnusableInput."""
        return self.recipe().model_dump(mode="json")

    def errors(self) -> dict[str, str]:
        """Dotted field name to what is wrong with its value; empty when the recipe can be used."""
        from pydantic import ValidationError

        from tuitune.recipe import Recipe, field_errors

        try:
            Recipe.model_validate({"model": {}, "data": {}, **self.data})
        except ValidationError as error:
            return field_errors(error)
        return {}
