"""How the next token is chosen: single fields, and the combinations of them that have a name."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tuitune.errors import UnusableInput
from tuitune.recipe import field_errors
from tuitune.text import in_a_row, one_line


class Sampling(BaseModel):
    """How the next token is chosen; the defaults always take the likeliest one."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    temperature: float = Field(0.0, ge=0, le=10)
    """0 takes the likeliest token; higher values vary more."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Choose among the likeliest tokens that together have this probability."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Leave out tokens less likely than this share of the likeliest one."""
    top_k: int = Field(0, ge=0)
    """Choose among this many likeliest tokens; 0 sets no limit."""
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    """Above 1, tokens that were said before become less likely (Keskar et al. 2019)."""
    max_new_tokens: int = Field(512, ge=1, le=131_072)
    """Longest reply in tokens."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Start of the random choice: the same seed gives the same reply."""

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "Sampling":
        """Raises UnusableInput naming the field."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise UnusableInput(
                "The sampling settings cannot be used: {problems}.",
                problems=in_a_row(field_errors(error, cls).values()),
            ) from None


PRESETS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0},
    "precise": {"temperature": 0.3, "top_p": 0.9, "min_p": 0.0, "top_k": 0},
    "balanced": {"temperature": 0.7, "top_p": 0.9, "min_p": 0.0, "top_k": 0},
    "creative": {"temperature": 1.0, "top_p": 1.0, "min_p": 0.05, "top_k": 0},
    "notebook": {"temperature": 1.5, "top_p": 1.0, "min_p": 0.1, "top_k": 0},
}
"""The fields that each named way of choosing sets; `notebook` is what Unsloth's notebooks chat with."""


def preset(name: str) -> dict[str, Any]:
    """The fields of a preset. Raises UnusableInput for a name there is not."""
    if name not in PRESETS:
        raise UnusableInput(
            "There is no preset {name}: choose one of {presets}.",
            name=one_line(name, max_length=40),
            presets=list(PRESETS),
        )
    return PRESETS[name]


def preset_of(fields: dict[str, Any]) -> str | None:
    """The preset that these fields mean, whatever the others are; None where they mean none."""
    sampling = Sampling.model_validate(fields)
    return next(
        (name for name, values in PRESETS.items() if all(getattr(sampling, k) == values[k] for k in values)), None
    )


def with_fields(fields: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """The fields with `field=value` texts taken in. Raises UnusableInput naming the field."""
    changed = dict(fields)
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise UnusableInput(
                "{change} is not FIELD=VALUE, as in temperature=0.7.", change=one_line(change, max_length=80)
            )
        changed[name.strip()] = value.strip()
    return Sampling.parse(changed).model_dump(exclude_defaults=True)
