"""Decoded JSON held against the types of a dataclass's fields."""

import dataclasses
import math
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tuitune.language import Sentence

_LARGEST_INTEGER = 2**63 - 1


_field_types: dict[Any, dict[str, Any]] = {}


def field_types(cls: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, with the types that their annotations mean."""
    if cls not in _field_types:
        hints = get_type_hints(cls)
        _field_types[cls] = {declared.name: hints[declared.name] for declared in dataclasses.fields(cls)}
    return _field_types[cls]


def checked(value: Any, hint: Any) -> Any:
    """The value as a field of the type `hint` holds it. Raises TypeError, ValueError, OverflowError.

    Types may be float (finite), int (of 64 bits), other classes, Any, Literal, `… | None`, and tuple, list and dict
    of those; where None may stand, so may a number that is not finite.
    """
    if hint is Any:
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or _not_finite(value):
            raise TypeError("not a finite number")
        return float(value)
    if get_origin(hint) in (Union, types.UnionType):  # each of them is `… | None`
        hint = next(option for option in get_args(hint) if option is not type(None))
        return None if value is None or _not_finite(value) else checked(value, hint)
    if get_origin(hint) in (tuple, list):
        if not isinstance(value, list):
            raise TypeError("not a list")
        return get_origin(hint)(checked(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise TypeError("not `name: value` pairs")
        return {str(key): checked(entry, get_args(hint)[1]) for key, entry in value.items()}
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError("not one of the words that may stand here")
    elif type(value) is not hint and not (hint is str and isinstance(value, Sentence)):
        raise TypeError(f"not of type {hint}")
    elif hint is int and abs(value) > _LARGEST_INTEGER:
        raise OverflowError("too large a number")
    return value


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
