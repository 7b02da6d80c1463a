"""Reads a value of a row as the turns of a conversation, as chat formats and tools write them down."""

import json
import re
from collections.abc import Mapping
from typing import Any

from tuitune.conversation import REASONING_FIELDS, Conversation, Message, UnusableRow
from tuitune.text import one_line

ROLES = ("system", "user", "assistant", "tool")

# The role names in use (ShareGPT, FastChat, Axolotl, LLaMA-Factory, Gemini exports), each as a chat template's role.
_ROLE_OF = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "question", "customer"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bing", "bard", "ai", "answer"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
TURN_FIELDS = frozenset(
    (
        *("role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id", "name"),
        *("weight", "train", "training"),
        *REASONING_FIELDS,
    )
)
"""What is read of a turn."""


def continued(prompt: Conversation, reply: Conversation) -> Conversation:
    """`reply` behind `prompt`; some datasets begin the reply with the turns of the prompt, which are kept once."""
    if reply[0]["role"] == "system" and prompt and prompt[0]["role"] != "system":
        prompt = [reply[0], *prompt]
    for kept in range(len(prompt)):
        repeated = prompt[kept:]
        if list(map(_said, reply[: len(repeated)])) == list(map(_said, repeated)):
            return prompt[:kept] + reply
    return prompt + reply


def _said(turn: Message) -> tuple[str, str]:
    return turn["role"], (turn["content"] or "").strip()


def as_turns(value: Any, role: str, column: str) -> Conversation:
    return [{"role": role, "content": value}] if isinstance(value, str) else turns_of(value, column)


_AS_TURNS = 'write it as JSON: [{"role": …, "content": …}, …]'


def turns_of(value: Any, column: str) -> Conversation:
    shown = one_line(column, max_length=40)
    value = _decoded(value, f"its {shown} is text, not a list of turns", _AS_TURNS)
    if not isinstance(value, list):
        raise UnusableRow(f"its {shown} is {kind_of(value)}, not a list of turns", _AS_TURNS)
    if not value:
        raise UnusableRow(f"its {shown} is an empty list", "add its turns, or take the row out")
    return [turn_of(turn, place) for place, turn in enumerate(value, 1)]


def turn_of(turn: Any, place: int) -> Message:
    if not isinstance(turn, dict):
        raise UnusableRow(f"turn {place} is {kind_of(turn)}, not an object", 'write it as {"role": …, "content": …}')
    role = _role(_first(turn, "role", "from"), place)
    value = _first(turn, "content", "value")
    if role == "call" and value is not None:
        return {"role": "assistant", "content": "", "tool_calls": _calls(value, place)}
    calls = _calls(_first(turn, "tool_calls", "function_call") or [], place)
    content = _content(value, place)
    if content is None and not calls:
        raise UnusableRow(f"turn {place} ({role}) has no content", "write it, or take the turn out")
    message: Message = {"role": "assistant" if role == "call" else role, "content": content or ""}
    if calls:
        message["tool_calls"] = calls
    if message["role"] == "assistant" and any(turn.get(name) in (0, False) for name in ("weight", "train", "training")):
        message["weight"] = 0
    reasoning = next((turn[name] for name in REASONING_FIELDS if isinstance(turn.get(name), str)), "")
    if reasoning and message["role"] == "assistant":
        message["reasoning_content"] = reasoning
    if isinstance(turn.get("tool_call_id"), str):
        message["tool_call_id"] = turn["tool_call_id"]
    if isinstance(turn.get("name"), str) and turn["name"]:
        message["name"] = turn["name"]
    return message


def _first(turn: Mapping[str, Any], *names: str) -> Any:
    """The first of these fields that holds something: a table gives every turn the fields of all, filled with null."""
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _role(named: Any, place: int) -> str:
    if not isinstance(named, str):
        raise UnusableRow(f"turn {place} has no role", f"give it one of {', '.join(ROLES)}")
    role = _ROLE_OF.get(re.sub(r"[\s-]+", "_", named.strip().lower()))
    if role is None:
        shown = one_line(named, max_length=40)
        raise UnusableRow(f"turn {place} has the unknown role {shown!r}", f"name it one of {', '.join(ROLES)}")
    return role


def _content(value: Any, place: int) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = []
        for part in value:
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                kind = one_line(part.get("type"), max_length=40) if isinstance(part, dict) else kind_of(part)
                raise UnusableRow(
                    f"turn {place} has content of type {kind}", "take it out, for only text can be trained"
                )
            texts.append(part["text"])
        return "".join(texts)
    raise UnusableRow(f"turn {place} has content that is {kind_of(value)}, not text", "write it as text")


_AS_CALL = 'write it as {"name": …, "arguments": {…}}'


def _calls(value: Any, place: int) -> list[dict[str, Any]]:
    """Tool calls, one or a list of them, as objects or as JSON text."""
    value = _decoded(value, f"turn {place} has a tool call that is not JSON", _AS_CALL)
    return [_call(call, place) for call in (value if isinstance(value, list) else [value])]


def _call(call: Any, place: int) -> dict[str, Any]:
    call = _decoded(call, f"turn {place} has a tool call that is not JSON", _AS_CALL)
    function = _first(call, "function") or call if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UnusableRow(f"turn {place} has a tool call without a function name", _AS_CALL)
    # The OpenAI wire format writes arguments as JSON text; templates expect the object.
    arguments = _decoded(
        function.get("arguments", {}) or {},
        f"turn {place} has tool call arguments that are not JSON",
        "write them as a JSON object",
    )
    message = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return message | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def tools_of(value: Any) -> list[Any] | None:
    remedy = "write them as a JSON list of function descriptions"
    value = _decoded(value or None, "its tools are not JSON", remedy)
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UnusableRow(f"its tools are {kind_of(value)}, not a list of objects", remedy)
    return value


def _decoded(value: Any, reason: str, remedy: str) -> Any:
    """The value, read from JSON where it is text. Raises UnusableRow."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise UnusableRow(reason, remedy) from None


def kind_of(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
