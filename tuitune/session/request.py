"""What a request to a session is: a dataclass whose fields are the message's arguments, and whose reply is declared.

Recipes travel as `Recipe.model_dump(mode="json")` makes them, so that the app needs no pydantic to ask; runs travel as
their folders.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypedDict, TypeVar, dataclass_transform

from tuitune.typed import field_types

VERSION = 6
"""Of these messages: each side tells it first, and does not go on with a side of another version."""

ReplyT = TypeVar("ReplyT")
T = TypeVar("T")
RecipeData = dict[str, Any]


class Nothing(TypedDict):
    """The reply of what is only done."""


@dataclass_transform(eq_default=False, frozen_default=True, field_specifiers=(field,))
def request(cls: type[T]) -> type[T]:
    """A dataclass that the type checker holds frozen, with no more than is used: the app starts by making them all."""
    return dataclass(slots=True, eq=False, repr=False)(cls)


@request
class Request(Generic[ReplyT]):
    """One of the classes below; `command` is its name on the wire."""

    command: ClassVar[str]

    def arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in field_types(type(self))}
