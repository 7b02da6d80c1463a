"""What a decoder is asked, what it answers, and the protocol of those that can decode."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tuitune.chat.choice import Choice


@dataclass(frozen=True, kw_only=True)
class DecodeRequest:
    """Prompts, each to be gone on with until a token of `ends`, which is kept, or `max_new_tokens`."""

    prompts: Sequence[Sequence[int]]
    choice: Choice
    seeds: Sequence[int]
    """One of each prompt."""
    max_new_tokens: int
    ends: set[int]
    adapter: bool = True
    on_token: Callable[[int, int], None] | None = None
    """Gets the prompt's number and each new token at once, which costs a wait for the GPU a token."""
    cancelled: Callable[[], bool] = lambda: False
    """When it turns true every sequence ends where it is."""


@dataclass
class Decoded:
    """What one sequence went on with; `ended` is False where it was stopped or reached the most tokens."""

    ids: list[int]
    logprobs: list[float]
    """Of each of `ids`, at the temperature but before anything was left out."""
    ended: bool = False


class CanDecode(Protocol):
    def decode(self, request: DecodeRequest) -> list[Decoded]:
        """What each prompt was gone on with, in their order."""
        ...

    def forget(self) -> None:
        """Give back the memory that is kept for the next decoding."""
        ...
