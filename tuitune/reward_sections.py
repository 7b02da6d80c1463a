"""The recipe's rewards: what an answer that the model gives itself is judged by, each with its own options."""

import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tuitune.language import _


class Reward(BaseModel):
    """What every reward has."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    name: str
    weight: float = Field(1.0, ge=-1000, le=1000)
    """What its value is multiplied by before the values are added."""

    @property
    def title(self) -> str:
        """What tells it from others, for figures and tables."""
        return self.name

    def with_path(self, change: Callable[[str], str]) -> Self:
        """The same reward with `change` done to the path of its file, where it has one."""
        return self


class ExactMatch(Reward):
    """1 where the answer is the one in the data, else 0."""

    name: Literal["exact_match"]
    """The answer's text is that of the column: what stands behind ####, in \\boxed{} or in <answer>, else all of it."""
    column: str = "answer"
    """The column of the data that holds the right answer."""
    ignore_case: bool = True
    """Whether capital letters count as small ones."""


class NumericMatch(Reward):
    """1 where the answer's number is the one in the data, else 0."""

    name: Literal["numeric_match"]
    """The last number of the answer equals that of the column, as gsm8k gives it behind ####."""
    column: str = "answer"
    """The column of the data that holds the right answer."""
    tolerance: float = Field(1e-6, ge=0)
    """How far the numbers may differ, as a share of the right one."""


class Format(Reward):
    """1 where the reply matches a regular expression, else 0."""

    name: Literal["format"]
    """The reply is of the form that a regular expression describes."""
    pattern: str = Field(min_length=1, max_length=10_000)
    """The expression, as Python's re takes it, with . matching newlines; it must match the whole reply."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern, re.DOTALL)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(_("should be a regular expression ({error})", error=str(error))) from None
        return pattern


class Length(Reward):
    """1 where the reply's length is within bounds, else 0."""

    name: Literal["length"]
    """The reply is neither too short nor too long."""
    unit: Literal["tokens", "words", "characters"] = "tokens"
    """What is counted."""
    least: int = Field(0, ge=0)
    """The shortest reply that is within bounds."""
    most: int | None = Field(None, ge=1)
    """The longest one; empty sets no limit."""

    @model_validator(mode="after")
    def _some_bound(self) -> Self:
        if self.most is None and self.least == 0:
            raise ValueError(_("length needs least or most"))
        if self.most is not None and self.most < self.least:
            raise ValueError(_("most should not be less than least"))
        return self


class JSONSchema(Reward):
    """1 where the reply is JSON of a schema, else 0."""

    name: Literal["json_schema"]
    """The reply, or the first fenced block in it, is JSON that the schema takes."""
    json_schema: dict[str, Any]
    """The JSON schema, draft 2020-12 unless it names another."""

    @field_validator("json_schema")
    @classmethod
    def _is_plain(cls, schema: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(_("should be a schema as JSON writes it ({error})", error=str(error))) from None
        return schema


class UnitTests(Reward):
    """The share of a row's tests that the reply's Python code passes; the code runs in a locked-down process."""

    name: Literal["unit_tests"]
    """The reply's Python code passes the tests of the column."""
    run_code: Literal[True]
    """Must be true: code that the model writes is run on this machine, with no network and no file to write to."""
    column: str = "tests"
    """The column of the data with the tests: a list of Python statements such as asserts, or one text of them."""
    seconds: float = Field(5.0, gt=0, le=600)
    """How long one reply's code may run."""
    memory_mb: int = Field(512, ge=64, le=65_536)
    """How much memory it may take."""


class PythonFile(Reward):
    """What a function of your own returns; it runs only once you have seen its file and confirmed it."""

    name: Literal["python"]
    """A function in a Python file of your own."""
    function: str = Field(pattern=r"^.+\.py:[A-Za-z_][A-Za-z0-9_]*$")
    """`rewards.py:function`; called as function(prompts=…, completions=…, **columns), it returns a number for each."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Digest of the file as it was confirmed, which a run writes down; another content is refused."""
    seconds: float = Field(30.0, gt=0, le=3600)
    """How long it may take for the replies of one step."""

    @property
    def path(self) -> str:
        return self.function.rpartition(":")[0]

    def with_path(self, change: Callable[[str], str]) -> Self:
        return self.model_copy(update={"function": f"{change(self.path)}:{self.title}"})

    @property
    def title(self) -> str:
        return self.function.rpartition(":")[2]


RewardSection = Annotated[
    ExactMatch | NumericMatch | Format | Length | JSONSchema | UnitTests | PythonFile, Field(discriminator="name")
]
REWARDS: dict[str, type[Reward]] = {
    get_args(kind.model_fields["name"].annotation)[0]: kind
    for kind in (ExactMatch, NumericMatch, Format, Length, JSONSchema, UnitTests, PythonFile)
}
"""Name of each reward to its section."""


def titles(rewards: "list[Any]") -> list[str]:
    """A title for each, told apart by a number where two are alike."""
    named = [reward.title for reward in rewards]
    return [
        title if named.count(title) == 1 else f"{title}_{named[: place + 1].count(title)}"
        for place, title in enumerate(named)
    ]
