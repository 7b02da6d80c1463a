"""Recognises how a dataset writes its conversations, by looking at rows, and reads each row as messages."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tuitune.conversation import Conversation, Sample, UnusableRow
from tuitune.data.turns import as_turns, continued, kind_of, tools_of, turn_of, turns_of
from tuitune.errors import UnusableInput
from tuitune.language import N_, _
from tuitune.text import one_line

FormatName = Literal[
    "messages", "sharegpt", "alpaca", "prompt-completion", "columns", "preference", "labelled", "prompt", "text"
]
Raw = Mapping[str, Any]

MAPPABLE = (
    *("user", "assistant", "system"),
    *("messages", "tools", "instruction", "input", "output", "prompt", "completion", "chosen", "rejected", "label"),
    "text",
)
"""What `data.columns` may map to a column."""

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
        if form := _format_of(row):
            name, columns = form
            votes[name, tuple(columns.items())] += 1
    if not votes:
        if listed := next((name for name in names for row in rows if _is_python_list(row.get(name))), None):
            raise UnusableInput(
                "The column {column} of {where} holds lists as Python prints them, not as JSON: write them "
                "with json.dumps, or save the rows as JSONL or Parquet.",
                column=one_line(listed, max_length=40),
                where=where,
            )
        shown = ", ".join(one_line(name, max_length=40) for name in names[:12]) or _("none")
        raise UnusableInput(
            "The rows of {where} are in no known format (columns: {names}): say which column is which in "
            "the recipe, for example data.columns: {{user: question, assistant: answer}}.",
            where=where,
            names=shown,
        )
    (name, pairs), count = votes.most_common(1)[0]
    listed = ", ".join(dict.fromkeys(one_line(column, max_length=40) for _role, column in pairs))
    evidence = _(_EVIDENCE[name], columns=listed)
    reason = (
        _("{count} of the first {rows} rows have {evidence}", count=count, rows=len(rows), evidence=evidence)
        if len(rows) > 1
        else _("the only row has {evidence}", evidence=evidence)
    )
    return Format(name, reason, dict(pairs))


_EVIDENCE: dict[FormatName, str] = {
    "messages": N_("a list {columns} of turns with role and content (OpenAI format)"),
    "sharegpt": N_("a list {columns} of turns with from and value (ShareGPT format)"),
    "alpaca": N_("the columns {columns} (Alpaca format)"),
    "prompt-completion": N_("the columns {columns}"),
    "preference": N_("the columns {columns} (preference pairs)"),
    "columns": N_("the columns {columns}: a question and its answer"),
    "labelled": N_("the columns {columns}: replies that are marked good or bad"),
    "prompt": N_("the columns {columns}: prompts without replies"),
    "text": N_("one text column, {columns}: every token is trained"),
}


def _mapped(mapping: dict[str, str], names: list[str], where: str) -> Format:
    for role, column in mapping.items():
        if role not in MAPPABLE:
            raise UnusableInput(
                "data.columns maps {role!r}, which is no role: use {roles}.",
                role=one_line(role, max_length=60),
                roles=", ".join(MAPPABLE),
            )
        if column not in names:
            known = ", ".join(one_line(name, max_length=40) for name in names[:12])
            raise UnusableInput(
                "data.columns takes {role} from {column!r}, but the columns of {where} are {known}: name one of them.",
                role=role,
                column=one_line(column, max_length=60),
                where=where,
                known=known,
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
            taken = [
                _("{role} from {column}", role=role, column=one_line(column, max_length=40))
                for role, column in mapping.items()
            ]
            return Format(name, _("the recipe's data.columns takes {columns}", columns=taken), dict(mapping))
    raise UnusableInput(
        "data.columns maps only {given}: give both user and assistant, or messages, or prompt and "
        "completion, or chosen and rejected, or text; prompt alone where the model answers.",
        given=", ".join(sorted(given)),
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
            columns = {"user": plain[user], "assistant": plain[assistant]}
            return "columns", columns | ({"system": plain["system"]} if "system" in plain else {})
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
    turns = turns_of(_value(row, columns["messages"]), columns["messages"])
    return Sample(_with_system(turns, row, columns), tools_of(row.get(columns.get("tools", ""))))


def _alpaca(row: Raw, columns: dict[str, str]) -> Sample:
    asked = _text(row, columns["instruction"])
    extra = _optional(row, columns.get("input"))
    return _dialog(row, columns, f"{asked}\n\n{extra}" if extra else asked, _text(row, columns["output"]))


def _pair(row: Raw, columns: dict[str, str]) -> Sample:
    return _dialog(row, columns, _text(row, columns["user"]), _text(row, columns["assistant"]))


def _prompt_completion(row: Raw, columns: dict[str, str]) -> Sample:
    prompt = as_turns(_value(row, columns["prompt"]), "user", columns["prompt"])
    completion = as_turns(_value(row, columns["completion"]), "assistant", columns["completion"])
    return Sample(_with_system(continued(prompt, completion), row, columns))


def _preference(row: Raw, columns: dict[str, str]) -> Sample:
    prompt = as_turns(_value(row, columns["prompt"]), "user", columns["prompt"]) if "prompt" in columns else []
    chosen, rejected = (_reply(row, columns[side], prompt) for side in ("chosen", "rejected"))
    if not prompt and all(turn["role"] == "assistant" for turn in chosen):
        raise UnusableRow(_("it has a chosen and a rejected reply but no prompt"), _("add it as a column prompt"))
    return Sample(
        _with_system(continued(prompt, chosen), row, columns),
        tools_of(row.get(columns.get("tools", ""))),
        rejected=_with_system(continued(prompt, rejected), row, columns),
    )


def _reply(row: Raw, column: str, prompt: Conversation) -> Conversation:
    """One side of a pair: a reply, a turn, or all turns; without a prompt also a transcript (Bai et al. 2022)."""
    value = _value(row, column)
    if isinstance(value, dict):
        return [turn_of(value, 1)]
    if isinstance(value, str) and not prompt and _SPEAKER.match(value):
        parts = _SPEAKER.split(value)[1:]
        return [
            {"role": "user" if speaker == "Human" else "assistant", "content": text.strip()}
            for speaker, text in zip(parts[::2], parts[1::2], strict=True)
        ]
    return as_turns(value, "assistant", column)


_SPEAKER = re.compile(r"(?:\A|\n)\s*\n?(Human|Assistant): ?")


def _labelled(row: Raw, columns: dict[str, str]) -> Sample:
    kinds: list[tuple[str, Callable[[Raw, dict[str, str]], Sample]]] = [
        *(("messages", _messages), ("completion", _prompt_completion), ("assistant", _pair), ("output", _alpaca)),
    ]
    reader = next(reader for role, reader in kinds if role in columns)
    mark = _mark_of(_value(row, columns["label"]))
    if mark is None:
        shown = one_line(columns["label"], max_length=40)
        raise UnusableRow(_("its {column} says neither good nor bad", column=shown), _("write true or false"))
    return replace(reader(row, columns), desirable=mark)


def _prompt(row: Raw, columns: dict[str, str]) -> Sample:
    column = columns.get("prompt") or columns["user"]
    turns = as_turns(_value(row, column), "user", column)
    return Sample(_with_system(turns, row, columns), tools_of(row.get(columns.get("tools", ""))))


def _plain_text(row: Raw, columns: dict[str, str]) -> Sample:
    text = _text(row, columns["text"])
    if not text.strip():
        raise UnusableRow(
            _("its {column} is empty", column=one_line(columns["text"], max_length=40)),
            _("fill it in, or take the row out"),
        )
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


def _value(row: Raw, column: str) -> Any:
    value = row.get(column)
    if value is None:
        raise UnusableRow(
            _("it has no {column}", column=one_line(column, max_length=40)), _("fill it in, or take the row out")
        )
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
    return UnusableRow(
        _("its {column} is {kind}, not text", column=one_line(column, max_length=40), kind=kind_of(value)),
        _("write it as text"),
    )
