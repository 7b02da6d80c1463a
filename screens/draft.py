"""The recipe while it is being chosen: plain data that may still be incomplete or wrong."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from tuitune.method_sections import MethodFields
    from tuitune.recipe import Recipe


def default_of(info: "FieldInfo") -> Any:
    """A field's default as plain data: sections in it (rewards) as a recipe's file has them."""
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(info.get_default(call_default_factory=True))


class Draft:
    """Every choice on every screen, by dotted field name (`train.max_steps`). Fields left out have their default."""

    def __init__(self, recipe: "Recipe | None" = None) -> None:
        self.data: dict[str, Any] = recipe.model_dump(mode="json") if recipe else {}
        self.rows: int | None = None
        """About how many rows there are to train on; None until the data was looked at."""

    def get(self, field: str) -> Any:
        """The chosen value, or the field's default; None where there is neither."""
        section, _, name = field.partition(".")
        chosen = self.data.get(section) or {}
        if isinstance(chosen, dict) and name in chosen:
            return chosen[name]
        from tuitune.recipe import section_of

        if field == "method.name":
            return "sft"
        if field == "train.learning_rate":
            return self.fields.usual_learning_rate
        info = section_of(section, self.get("method.name") if section == "method" else "").model_fields.get(name)
        return None if info is None or info.is_required() else default_of(info)

    @property
    def fields(self) -> "type[MethodFields]":
        """Those of the chosen method."""
        from tuitune.method_sections import fields_of

        return fields_of(self.get("method.name"))

    def set(self, field: str, value: Any) -> None:
        section, _, name = field.partition(".")
        if field == "method.name":
            self._set_method(value)
        else:
            self.data.setdefault(section, {})[name] = value

    def _set_method(self, name: str) -> None:
        """Change the method: its fields get their defaults, and so does a learning rate that was the old one's."""
        train = self.data.get("train")
        if name == self.get("method.name"):
            return
        if isinstance(train, dict) and train.get("learning_rate") == self.fields.usual_learning_rate:
            train.pop("learning_rate")
        self.data["method"] = {"name": name}

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
