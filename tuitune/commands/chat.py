"""Chatting on plain output: one question to one side or several, or a conversation."""

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tuitune.chat.conversation import Dialogue, Side, Turn
from tuitune.commands.converse import converse
from tuitune.commands.status import DONE
from tuitune.commands.talk import Talk
from tuitune.errors import UnusableInput
from tuitune.runs.folder import Run
from tuitune.session.client import Session


def chat(
    run: Run,
    sides: list[Side],
    *,
    prompt: str | None,
    system: str,
    sampling: dict[str, Any],
    docs: list[Path],
    runs_folder: Path,
    as_json: bool,
) -> int:
    """Each side's reply to `prompt`, or to standard input where that is no terminal; else a conversation."""
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
    if prompt is None and as_json:
        raise UnusableInput("--json answers one prompt: give it with --prompt TEXT or on standard input.")
    if prompt is not None and not prompt.strip():
        raise UnusableInput("The prompt is empty: give some text with --prompt TEXT or on standard input.")
    talk = Talk(run, sides, Dialogue(system), sampling, docs, quiet=as_json)
    if prompt is None:
        return converse(talk, runs_folder)
    return asyncio.run(_answer(talk, prompt, as_json=as_json))


async def _answer(talk: Talk, prompt: str, *, as_json: bool) -> int:
    """One question, answered by every side."""
    talk.session = await Session.start()
    try:
        await talk.attach()
        turn = talk.dialogue.say(prompt)
        await talk.answer(turn)
    finally:
        await talk.session.close()
    if as_json:
        print(json.dumps(_as_data(talk, turn)), flush=True)
    return DONE


def _as_data(talk: Talk, turn: Turn) -> dict[str, Any]:
    """The first side's reply, and under `sides` everybody's; `passages` with their scores."""
    sides = []
    for side, reply in turn.replies.items():
        fields = {"reply": reply.text, **asdict(reply)}
        for name in ("text", "kept", "stopped"):
            fields.pop(name)
        fields["passages_seen"] = fields.pop("passages")
        side_fields = {
            "side": talk.label(side),
            "run": str(side.run),
            "adapter": side.adapter,
            "checkpoint": side.checkpoint,
        }
        sides.append({**side_fields, "documents": side.documents and bool(turn.passages), **fields})
    passages = [
        {"number": number, "place": passage.place, **asdict(passage)} for number, passage in enumerate(turn.passages, 1)
    ]
    return {"prompt": turn.said, **sides[0], "passages": passages, "sides": sides}
