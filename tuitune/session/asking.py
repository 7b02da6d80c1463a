"""What clients send for a turn of a chat: the same from the app and from the command."""

from typing import Any

from tuitune.chat.conversation import Dialogue, Side, Turn
from tuitune.session.result_requests import Chat


def chat_request(dialogue: Dialogue, turn: Turn, side: Side, sampling: dict[str, Any], *, beside: bool) -> Chat:
    """Ask one side of a turn. All sides have one seed, and each time the same is asked again the next one.

    `beside`: the models of the other sides stay in memory.
    """
    return Chat(
        str(side.run),
        dialogue.asked(turn, side),
        side.adapter,
        {**sampling, "seed": seed_of(turn, sampling)},
        side.checkpoint,
        [passage.sent for passage in turn.passages] if side.documents else [],
        beside,
        side.engine,
    )


def seed_of(turn: Turn, sampling: dict[str, Any]) -> int:
    """The seed that a turn is answered with."""
    return (int(sampling.get("seed", 0)) + turn.draw) % 2**32
