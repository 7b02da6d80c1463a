"""Whether a reply is of the form asked for: a regular expression, a length, a JSON schema."""

import json
import re
from typing import Any

_FENCED = re.compile(r"```[A-Za-z0-9_+-]*\n(.*?)```", re.DOTALL)


def format_match(options: dict[str, Any], reply: str) -> float:
    """1 where the whole reply matches the pattern."""
    return float(re.fullmatch(options["pattern"], reply, re.DOTALL) is not None)


def length_within(options: dict[str, Any], reply: str, tokens: int) -> float:
    """1 where the reply's length is within the bounds."""
    counts = {"tokens": tokens, "words": len(reply.split()), "characters": len(reply)}
    count, limit = counts[options["unit"]], options["most"]
    return float(count >= options["least"] and (limit is None or count <= limit))


def json_of_schema(options: dict[str, Any], reply: str) -> float:
    """1 where the reply, or the first fenced block in it, is JSON that the schema takes; no reference is fetched."""
    import jsonschema
    import referencing

    schema = options["json_schema"]
    block = fenced(reply)
    try:
        value = json.loads(reply if block is None else block)
    except (ValueError, RecursionError):
        return 0.0
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    kind.check_schema(schema)
    validator: Any = kind(schema, registry=referencing.Registry())
    try:
        return float(validator.is_valid(value))
    except RecursionError:
        return 0.0


def fenced(reply: str) -> str | None:
    """The first block between ``` fences; None where there is none."""
    block = _FENCED.search(reply)
    return None if block is None else block[1]
