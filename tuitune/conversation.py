"""What a row of a dataset holds and a chat template takes: messages, conversations, and why a row cannot be used."""

import re
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from tuitune.errors import TuituneError
from tuitune.language import _

THINKING = re.compile(r"(</?think>|</?thinking>|</?thought>|\[/?THINK\])")
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class Message(TypedDict):
    """One turn, in the shape that chat templates take."""

    role: str
    content: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    weight: NotRequired[int]
    """0 where a reply is context alone and not trained, as in OpenAI's fine-tuning format; no template sees it."""


Conversation = list[Message]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one row of a dataset holds: a conversation with its tools, or plain text.

    Of a pair, `messages` is the conversation with the chosen reply.
    """

    messages: Conversation | None = None
    tools: list[Any] | None = None
    text: str | None = None
    rejected: Conversation | None = None
    """The conversation with the rejected reply, where the row is a pair."""
    desirable: bool | None = None
    """Whether the reply is marked good (True) or bad (False); None where it bears no mark."""
    columns: dict[str, Any] | None = None
    """The whole row as it stands in the dataset, for rewards."""


class UnusableRow(TuituneError):
    """A row that cannot be trained on; the message is `reason: remedy` and does not name the row."""

    def __init__(self, reason: str, remedy: str, *, over_length: bool = False) -> None:
        super().__init__(_("{reason}: {remedy}", reason=reason, remedy=remedy))
        self.over_length = over_length
        """Whether it is only too long for max_length."""
