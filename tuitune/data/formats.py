"""Recognises how a dataset writes its conversations, by looking at rows, and reads each row as messages."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tuitune.conversation import REASONING_FIELDS, Conversation, Message, Sample, UnusableRow
from tuitune.errors import UnusableInput
from tuitune.text import one_line

FormatName = Literal[
    "messages", "sharegpt", "alpaca", "prompt-completion", "columns", "preference", "labelled", "prompt", "text"
]
Raw = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
MAPPABLE = (
    *("user", "assistant", "system"),
    *("messages", "tools", "instruction", "input", "output", "prompt", "completion", "chosen", "rejected", "label"),
    "text",
)
"""What `data.columns` may map to a column."""

# The role names in use (ShareGPT, FastChat, Axolotl, LLaMA-Factory, Gemini exports), each as a chat template's role.
_ROLE_OF = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "question", "customer"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bing", "bard", "ai", "answer"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
_PAIRS = (
    *(("question", "answer"), ("query", "response"), ("query", "answer"), ("question", "response")),
    *(("prompt", "response"), ("instruction", "response"), ("input", "output"), ("user", "assistant")),
    *(("human", "assistant"), ("problem", "solution"), ("source", "target")),
)

_PROMPTS = ("prompt", "question", "query", "problem")
"""Columns that hold what is asked, where no other column is known to hold a reply."""

_CHOSEN_REJECTED = (
    *(("chosen", "rejected"), ("preferred", "rejected"), ("preferred", "dispreferred"), ("accepted", "rejected")),
    *(("chosen_response", "rejected_response"), ("preferred_output", "non_preferred_output"), ("winner", "loser")),
    *(("better", "worse"), ("response_chosen", "response_rejected"), ("answer_chosen", "answer_rejected")),
)
"""Names of the two columns of a pair, the chosen reply's first."""
_ASKED = (*_PROMPTS, "instruction", "input", "messages", "conversations", "context")
"""Columns that hold what a pair answers."""
_LABELS = ("label", "kto_tag", "thumbs_up", "thumb", "thumbs", "desirable", "is_good", "feedback")
_GOOD = frozenset(("true", "yes", "good", "up", "thumbs_up", "thumbs up", "👍", "1", "+1", "desirable", "chosen"))
_BAD = frozenset(
    ("false", "no", "bad", "down", "thumbs_down", "thumbs down", "👎", "0", "-1", "undesirable", "rejected")
)
_LABELLED: tuple[set[str], ...] = (
    *({"messages"}, {"prompt", "completion"}, {"user", "assistant"}, {"instruction", "output"}),
)
"""Roles that a mark may stand beside."""

TURN_FIELDS = frozenset(
    (
        *("role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id", "name"),
        *("weight", "train", "training"),
        *REASONING_FIELDS,
    )
)
"""What is read of a turn."""
TURN_ROLES = ("messages", "prompt", "completion", "chosen", "rejected")
"""Roles of the columns that may hold turns."""


@dataclass(frozen=True)
class Format:
    """How the rows write conversations. `reason` is a sentence; `columns` maps roles to the columns they come from."""

    name: FormatName
    reason: str
    columns: dict[str, str]


def recognise(rows: Sequence[Raw], mapping: dict[str, str] | None, where: str) -> Format:
    """The format of a dataset from its first rows, or as `mapping` (the recipe's data.columns) says.

    Raises UnusableInput, naming the columns, where nothing fits.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if mapping:
        return _mapped(mapping, names, where)
    votes: Counter[tuple[FormatName, tuple[tuple[str, str], ...]]] = Counter()
    for row in rows:
        found = _format_of(row)
        if found:
            votes[(found[0], tuple(found[1].items()))] += 1
    if not votes:
        if listed := next((name for name in names for row in rows if _is_python_list(row.get(name))), None):
            raise UnusableInput(
                f"The column {one_line(listed, max_length=40)} of {where} holds lists as Python prints them, not as "
                "JSON: write them with json.dumps, or save the rows as JSONL or Parquet."
            )
        shown = ", ".join(one_line(name, max_length=40) for name in names[:12]) or "none"
        raise UnusableInput(
            f"The rows of {where} are in no known format (columns: {shown}): say which column is which in the recipe, "
            "for example data.columns: {user: question, assistant: answer}."
        )
    (name, columns), count = votes.most_common(1)[0]
    listed = ", ".join(dict.fromkeys(one_line(column, max_length=40) for _, column in columns))
    share = f"{count} of the first {len(rows)} rows have" if len(rows) > 1 else "the only row has"
    return Format(name, f"{share} {_EVIDENCE[name].format(columns=listed)}", dict(columns))


_EVIDENCE: dict[FormatName, str] = {
    "messages": "a list {columns} of turns with role and content (OpenAI format)",
    "sharegpt": "a list {columns} of turns with from and value (ShareGPT format)",
    "alpaca": "the columns {columns} (Alpaca format)",
    "prompt-completion": "the columns {columns}",
    "preference": "the columns {columns} (preference pairs)",
    "columns": "the columns {columns}: a question and its answer",
    "labelled": "the columns {columns}: replies that are marked good or bad",
    "prompt": "the columns {columns}: prompts without replies",
    "text": "one text column, {columns}: every token is trained",
}


def _mapped(mapping: dict[str, str], names: list[str], where: str) -> Format:
    for role, column in mapping.items():
        if role not in MAPPABLE:
            raise UnusableInput(
                f"data.columns maps {one_line(role, max_length=60)!r}, which is no role: use {', '.join(MAPPABLE)}."
            )
        if column not in names:
            known = ", ".join(one_line(name, max_length=40) for name in names[:12])
            raise UnusableInput(
                f"data.columns takes {role} from {one_line(column, max_length=60)!r}, "
                f"but the columns of {where} are {known}: name one of them."
            )
    given = set(mapping)
    kinds: list[tuple[FormatName, set[str]]] = [
        *(("labelled", {"label", *roles}) for roles in _LABELLED),
        ("preference", {"chosen", "rejected"}),
        ("messages", {"messages"}),
        ("columns", {"user", "assistant"}),
        ("alpaca", {"instruction", "output"}),
        ("prompt-completion", {"prompt", "completion"}),
        ("text", {"text"}),
        ("prompt", {"prompt"}),
        ("prompt", {"user"}),
    ]
    for name, needed in kinds:
        if needed <= given:
            if needed == {"user"}:
                mapping = {"prompt" if role == "user" else role: column for role, column in mapping.items()}
            pairs = ", ".join(f"{role} from {one_line(column, max_length=40)}" for role, column in mapping.items())
            return Format(name, f"the recipe's data.columns takes {pairs}", dict(mapping))
    raise UnusableInput(
        f"data.columns maps only {', '.join(sorted(given))}: give both user and assistant, "
        "or messages, or prompt and completion, or chosen and rejected, or text; prompt alone where the model answers."
    )


def _format_of(row: Raw) -> tuple[FormatName, dict[str, str]] | None:
    if pair := _pair_columns(row):
        return "preference", pair
    label = next((name for name in _LABELS if _mark_of(row.get(name), strictly=name == "label") is not None), None)
    if label is not None:
        unmarked = _format_of({name: value for name, value in row.items() if name != label})
        if unmarked is not None and any(roles <= set(unmarked[1]) for roles in _LABELLED):
            return "labelled", {**unmarked[1], "label": label}
    for name, value in row.items():
        turn = _first_turn(value)
        if name in ("prompt", "completion") or turn is None:
            continue
        tools = {"tools": "tools"} if "tools" in row else {}
        system = {"system": "system"} if isinstance(row.get("system"), str) else {}
        if "role" in turn:
            return "messages", {"messages": name, **tools, **system}
        if "from" in turn and "value" in turn:
            return "sharegpt", {"messages": name, **tools, **system}
    if "instruction" in row and "output" in row:
        return "alpaca", {name: name for name in ("system", "instruction", "input", "output") if name in row}
    if "prompt" in row and "completion" in row:
        return "prompt-completion", {name: name for name in ("system", "prompt", "completion") if name in row}
    plain = {name.lower(): name for name in row}
    for user, assistant in _PAIRS:
        if user in plain and assistant in plain:
            found = {"user": plain[user], "assistant": plain[assistant]}
            return "columns", found | ({"system": plain["system"]} if "system" in plain else {})
    if isinstance(row.get("text"), str):
        return "text", {"text": "text"}
    prompt = next((plain[name] for name in _PROMPTS if name in plain), None)
    return (
        None if prompt is None else ("prompt", {"prompt": prompt} | ({"system": "system"} if "system" in row else {}))
    )


def _pair_columns(row: Raw) -> dict[str, str] | None:
    """Role to column of a row with a chosen and a rejected reply; None for another row."""
    names = {name.lower(): name for name in row}
    chosen, rejected = next((pair for pair in _CHOSEN_REJECTED if names.keys() >= set(pair)), (None, None))
    if chosen is None or rejected is None:
        return None
    columns = {name: names[name] for name in ("system", "tools") if name in names}
    prompt = next((names[name] for name in _ASKED if name in names and _is_prompt(row[names[name]])), None)
    return {**columns, **({"prompt": prompt} if prompt else {}), "chosen": names[chosen], "rejected": names[rejected]}


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) or _first_turn(value) is not None


def _mark_of(value: Any, *, strictly: bool = False) -> bool | None:
    """Whether a mark says good or bad; None where it says neither. Of a name that classes have too, only `strictly`
    true and false count.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.strip().lower()
        return True if word in _GOOD else False if word in _BAD else None
    if isinstance(value, int | float) and not strictly:
        return {1: True, 0: False, -1: False}.get(int(value)) if value == int(value) else None
    return None


def _is_python_list(value: Any) -> bool:
    return isinstance(value, str) and re.match(r"\s*\[\s*\{\s*'", value) is not None


def _first_turn(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str) and value[:200].lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return value[0]
    return None


def read(row: Raw, form: Format) -> Sample:
    """One row in the dataset's format. Raises UnusableRow with the reason."""
    return _READERS[form.name](row, form.columns)


def _messages(row: Raw, columns: dict[str, str]) -> Sample:
    turns = _turns(_value(row, columns["messages"]), columns["messages"])
    return Sample(_with_system(turns, row, columns), _tools(row.get(columns.get("tools", ""))))


def _alpaca(row: Raw, columns: dict[str, str]) -> Sample:
    asked = _text(row, columns["instruction"])
    extra = _optional(row, columns.get("input"))
    return _dialog(row, columns, f"{asked}\n\n{extra}" if extra else asked, _text(row, columns["output"]))


def _pair(row: Raw, columns: dict[str, str]) -> Sample:
    return _dialog(row, columns, _text(row, columns["user"]), _text(row, columns["assistant"]))


def _prompt_completion(row: Raw, columns: dict[str, str]) -> Sample:
    prompt = _as_turns(_value(row, columns["prompt"]), "user", columns["prompt"])
    completion = _as_turns(_value(row, columns["completion"]), "assistant", columns["completion"])
    return Sample(_with_system(_continued(prompt, completion), row, columns))


def _preference(row: Raw, columns: dict[str, str]) -> Sample:
    prompt = _as_turns(_value(row, columns["prompt"]), "user", columns["prompt"]) if "prompt" in columns else []
    chosen, rejected = (_reply(row, columns[side], prompt) for side in ("chosen", "rejected"))
    if not prompt and all(turn["role"] == "assistant" for turn in chosen):
        raise UnusableRow("it has a chosen and a rejected reply but no prompt", "add it as a column prompt")
    return Sample(
        _with_system(_continued(prompt, chosen), row, columns),
        _tools(row.get(columns.get("tools", ""))),
        rejected=_with_system(_continued(prompt, rejected), row, columns),
    )


def _reply(row: Raw, column: str, prompt: Conversation) -> Conversation:
    """One side of a pair: a reply, a turn, or all turns; without a prompt also a transcript (Bai et al. 2022)."""
    value = _value(row, column)
    if isinstance(value, dict):
        return [_turn(value, 1)]
    if isinstance(value, str) and not prompt and _SPEAKER.match(value):
        parts = _SPEAKER.split(value)[1:]
        return [
            {"role": "user" if speaker == "Human" else "assistant", "content": text.strip()}
            for speaker, text in zip(parts[::2], parts[1::2], strict=True)
        ]
    return _as_turns(value, "assistant", column)


_SPEAKER = re.compile(r"(?:\A|\n)\s*\n?(Human|Assistant): ?")


def _labelled(row: Raw, columns: dict[str, str]) -> Sample:
    kinds: list[tuple[str, Callable[[Raw, dict[str, str]], Sample]]] = [
        *(("messages", _messages), ("completion", _prompt_completion), ("assistant", _pair), ("output", _alpaca)),
    ]
    reader = next(reader for role, reader in kinds if role in columns)
    mark = _mark_of(_value(row, columns["label"]))
    if mark is None:
        shown = one_line(columns["label"], max_length=40)
        raise UnusableRow(f"its {shown} says neither good nor bad", "write true or false")
    return replace(reader(row, columns), desirable=mark)


def _prompt(row: Raw, columns: dict[str, str]) -> Sample:
    column = columns.get("prompt") or columns["user"]
    turns = _as_turns(_value(row, column), "user", column)
    return Sample(_with_system(turns, row, columns), _tools(row.get(columns.get("tools", ""))))


def _plain_text(row: Raw, columns: dict[str, str]) -> Sample:
    text = _text(row, columns["text"])
    if not text.strip():
        raise UnusableRow(f"its {one_line(columns['text'], max_length=40)} is empty", "fill it in, or take the row out")
    return Sample(text=text)


_READERS: dict[FormatName, Callable[[Raw, dict[str, str]], Sample]] = {
    "messages": _messages,
    "sharegpt": _messages,
    "alpaca": _alpaca,
    "prompt-completion": _prompt_completion,
    "columns": _pair,
    "prompt": _prompt,
    "preference": _preference,
    "labelled": _labelled,
    "text": _plain_text,
}


def _dialog(row: Raw, columns: dict[str, str], user: str, assistant: str) -> Sample:
    turns: Conversation = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return Sample(_with_system(turns, row, columns))


def _with_system(turns: Conversation, row: Raw, columns: dict[str, str]) -> Conversation:
    """The turns behind the system message of the row's own column, where they have none."""
    system = _optional(row, columns.get("system"))
    if not system or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": system}, *turns]


def _continued(prompt: Conversation, reply: Conversation) -> Conversation:
    """`reply` behind `prompt`; some datasets begin the reply with the turns of the prompt, which are kept once."""
    if reply[0]["role"] == "system" and prompt and prompt[0]["role"] != "system":
        prompt = [reply[0], *prompt]
    for kept in range(len(prompt)):
        again = prompt[kept:]
        if list(map(_said, reply[: len(again)])) == list(map(_said, again)):
            return prompt[:kept] + reply
    return prompt + reply


def _said(turn: Message) -> tuple[str, str]:
    return turn["role"], (turn["content"] or "").strip()


def _as_turns(value: Any, role: str, column: str) -> Conversation:
    return [{"role": role, "content": value}] if isinstance(value, str) else _turns(value, column)


_AS_TURNS = 'write it as JSON: [{"role": …, "content": …}, …]'


def _turns(value: Any, column: str) -> Conversation:
    shown = one_line(column, max_length=40)
    value = _decoded(value, f"its {shown} is text, not a list of turns", _AS_TURNS)
    if not isinstance(value, list):
        raise UnusableRow(f"its {shown} is {_kind(value)}, not a list of turns", _AS_TURNS)
    if not value:
        raise UnusableRow(f"its {shown} is an empty list", "add its turns, or take the row out")
    return [_turn(turn, place) for place, turn in enumerate(value, 1)]


def _turn(turn: Any, place: int) -> Message:
    if not isinstance(turn, dict):
        raise UnusableRow(f"turn {place} is {_kind(turn)}, not an object", 'write it as {"role": …, "content": …}')
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


def _first(turn: Raw, *names: str) -> Any:
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
                kind = one_line(part.get("type"), max_length=40) if isinstance(part, dict) else _kind(part)
                raise UnusableRow(
                    f"turn {place} has content of type {kind}", "take it out, for only text can be trained"
                )
            texts.append(part["text"])
        return "".join(texts)
    raise UnusableRow(f"turn {place} has content that is {_kind(value)}, not text", "write it as text")


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
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return made | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def _tools(value: Any) -> list[Any] | None:
    remedy = "write them as a JSON list of function descriptions"
    value = _decoded(value or None, "its tools are not JSON", remedy)
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UnusableRow(f"its tools are {_kind(value)}, not a list of objects", remedy)
    return value


def _decoded(value: Any, reason: str, remedy: str) -> Any:
    """The value, read from JSON where it is text. Raises UnusableRow."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise UnusableRow(reason, remedy) from None


def _value(row: Raw, column: str) -> Any:
    value = row.get(column)
    if value is None:
        raise UnusableRow(f"it has no {one_line(column, max_length=40)}", "fill it in, or take the row out")
    return value


def _text(row: Raw, column: str) -> str:
    value = _value(row, column)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _not_text(value, column)
    return str(value)


def _optional(row: Raw, column: str | None) -> str:
    value = row.get(column) if column else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _not_text(value, column)
    return value.strip()


def _not_text(value: Any, column: str | None) -> UnusableRow:
    return UnusableRow(f"its {one_line(column, max_length=40)} is {_kind(value)}, not text", "write it as text")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
