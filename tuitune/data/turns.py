"""Reads a value of a row as the turns of a conversation, as chat formats and tools write them down."""

import json
import re
from collections.abc import Mapping
from typing import Any

from tuitune.conversation import REASONING_FIELDS, Conversation, Message, UnusableRow
from tuitune.language import N_, _
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


_AS_TURNS = N_('write it as JSON: [{"role": …, "content": …}, …]')


def turns_of(value: Any, column: str) -> Conversation:
    shown = one_line(column, max_length=40)
    value = _decoded(value, _("its {column} is text, not a list of turns", column=shown), _(_AS_TURNS))
    if not isinstance(value, list):
        raise UnusableRow(
            _("its {column} is {kind}, not a list of turns", column=shown, kind=kind_of(value)), _(_AS_TURNS)
        )
    if not value:
        raise UnusableRow(_("its {column} is an empty list", column=shown), _("add its turns, or take the row out"))
    return [turn_of(turn, place) for place, turn in enumerate(value, 1)]


def turn_of(turn: Any, place: int) -> Message:
    if not isinstance(turn, dict):
        raise UnusableRow(
            _("turn {place} is {kind}, not an object", place=place, kind=kind_of(turn)),
            _('write it as {"role": …, "content": …}'),
        )
    role = _role(_first(turn, "role", "from"), place)
    value = _first(turn, "content", "value")
    if role == "call" and value is not None:
        return {"role": "assistant", "content": "", "tool_calls": _calls(value, place)}
    calls = _calls(_first(turn, "tool_calls", "function_call") or [], place)
    content = _content(value, place)
    if content is None and not calls:
        raise UnusableRow(
            _("turn {place} ({role}) has no content", place=place, role=role), _("write it, or take the turn out")
        )
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
        raise UnusableRow(_("turn {place} has no role", place=place), _("give it one of {roles}", roles=list(ROLES)))
    role = _ROLE_OF.get(re.sub(r"[\s-]+", "_", named.strip().lower()))
    if role is None:
        shown = one_line(named, max_length=40)
        raise UnusableRow(
            _("turn {place} has the unknown role {role!r}", place=place, role=shown),
            _("name it one of {roles}", roles=list(ROLES)),
        )
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
                    _("turn {place} has content of type {kind}", place=place, kind=kind),
                    _("take it out, for only text can be trained"),
                )
            texts.append(part["text"])
        return "".join(texts)
    raise UnusableRow(
        _("turn {place} has content that is {kind}, not text", place=place, kind=kind_of(value)),
        _("write it as text"),
    )


_AS_CALL = N_('write it as {"name": …, "arguments": {…}}')


def _calls(value: Any, place: int) -> list[dict[str, Any]]:
    """Tool calls, one or a list of them, as objects or as JSON text."""
    value = _decoded(value, _("turn {place} has a tool call that is not JSON", place=place), _(_AS_CALL))
    return [_call(call, place) for call in (value if isinstance(value, list) else [value])]


def _call(call: Any, place: int) -> dict[str, Any]:
    call = _decoded(call, _("turn {place} has a tool call that is not JSON", place=place), _(_AS_CALL))
    function = _first(call, "function") or call if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UnusableRow(_("turn {place} has a tool call without a function name", place=place), _(_AS_CALL))
    # The OpenAI wire format writes arguments as JSON text; templates expect the object.
    arguments = _decoded(
        function.get("arguments", {}) or {},
        _("turn {place} has tool call arguments that are not JSON", place=place),
        _("write them as a JSON object"),
    )
    message = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return message | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def tools_of(value: Any) -> list[Any] | None:
    remedy = _("write them as a JSON list of function descriptions")
    value = _decoded(value or None, _("its tools are not JSON"), remedy)
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UnusableRow(_("its tools are {kind}, not a list of objects", kind=kind_of(value)), remedy)
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
    kinds = {
        dict: N_("an object"),
        list: N_("a list"),
        str: N_("text"),
        bool: N_("true or false"),
        type(None): N_("null"),
    }
    return _(kinds.get(type(value), N_("a number")))
