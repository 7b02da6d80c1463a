"""The process that computes rewards: a file of the user's own may hang or crash it, and not the training.

Reads one JSON object a line from standard input and answers with lines of JSON on what was standard output; what
rewards print goes to the log. Before each thing that can hang it says what it begins with.
"""

import inspect
import json
import math
import os
import sys
from collections.abc import Callable
from typing import Any

from tuitune.language import Sentence, _, said
from tuitune.parent import end_with_parent
from tuitune.rewards.answer import exact_match, numeric_match
from tuitune.rewards.form import format_match, json_of_schema, length_within
from tuitune.rewards.unit_tests import unit_tests

Row = dict[str, Any]
"""An answer to judge: `prompt` (messages), `reply`, `tokens`, and `columns`, the row of the data."""


class Misbehaved(Exception):
    """A reward gave no number; the message is a clause."""

    def __init__(self, clause: Sentence) -> None:
        super().__init__(clause)
        self.clause = clause


def value_of(options: dict[str, Any], row: Row) -> Any:
    """What one of the rewards that come with tuitune says of one answer."""
    reply = row["reply"]
    match options["name"]:
        case "exact_match":
            return exact_match(options, reply, _column(options, row))
        case "numeric_match":
            return numeric_match(options, reply, _column(options, row))
        case "format":
            return format_match(options, reply)
        case "length":
            return length_within(options, reply, row["tokens"])
        case "json_schema":
            return json_of_schema(options, reply)
        case "unit_tests":
            return unit_tests(options, reply, _column(options, row))
    raise Misbehaved(_("there is no reward {name}", name=options["name"]))


def _column(options: dict[str, Any], row: Row) -> Any:
    name = options["column"]
    if row["columns"].get(name) is None:
        columns = sorted(map(str, row["columns"]))[:20]
        if not columns:
            raise Misbehaved(_("needs the column {column}, which the row lacks (it has none)", column=name))
        raise Misbehaved(
            _("needs the column {column}, which the row lacks (it has {columns})", column=name, columns=columns)
        )
    return row["columns"][name]


def function_of(options: dict[str, Any], source: str) -> Callable[..., Any]:
    """The function of a user's file, whose text is `source`."""
    path, _colon, name = options["function"].rpartition(":")
    names: dict[str, Any] = {"__name__": "rewards", "__file__": path}
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    exec(compile(source, path, "exec"), names)  # noqa: S102  # the user has seen it and confirmed it
    function = names.get(name)
    if not callable(function):
        raise Misbehaved(_("there is no function {name} in {file}", name=name, file=path))
    return function  # type: ignore[no-any-return]


def call(function: Callable[..., Any], rows: list[Row]) -> list[Any]:
    """The values of a user's function for these answers, which gets the arguments that it names."""
    columns = {name: [row["columns"].get(name) for row in rows] for row in rows[:1] for name in row["columns"]}
    arguments = {
        **columns,
        "prompts": [row["prompt"] for row in rows],
        "completions": [row["reply"] for row in rows],
        "completion_tokens": [row["tokens"] for row in rows],
    }
    parameters = inspect.signature(function).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        arguments = {name: value for name, value in arguments.items() if name in parameters}
    values = function(**arguments)
    try:
        return list(values)
    except TypeError:
        raise Misbehaved(_("returned {value} instead of a list of numbers", value=type(values).__name__)) from None


def checked(value: Any) -> float:
    """Raises Misbehaved for what is no finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise Misbehaved(_("returned {value}, which is no number", value=repr(str(value)[:60]))) from None
    if not math.isfinite(number):
        raise Misbehaved(_("returned {value}", value=str(number)))
    return number


class Worker:
    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self._say = say
        self._functions: dict[int, Callable[..., Any]] = {}

    def work(self, request: dict[str, Any]) -> None:
        """Answer one request with the values of each reward, or with what went wrong."""
        values: list[list[float]] = []
        place = row = 0
        try:
            for place, reward in enumerate(request["rewards"]):
                row = 0
                options = reward["options"]
                if options["name"] == "python":
                    values.append(self._by_function(place, reward, request["rows"]))
                    continue
                numbers = []
                for row, answer in enumerate(request["rows"]):
                    self._say({"at": [place, row]})
                    numbers.append(checked(value_of(options, answer)))
                values.append(numbers)
        except BaseException as error:  # a user's file may even raise SystemExit
            clause = (
                error.clause
                if isinstance(error, Misbehaved)
                else _("raised {error}: {text}", error=type(error).__name__, text=str(error)[:500])
            )
            failed = [place, getattr(error, "row", row)]
            self._say({"failed": failed, "clause": clause.english, "said": said(clause)})
            return
        self._say({"values": values})

    def _by_function(self, place: int, reward: dict[str, Any], rows: list[Row]) -> list[float]:
        self._say({"at": [place, None]})
        if place not in self._functions:
            self._functions[place] = function_of(reward["options"], reward["source"])
        values = call(self._functions[place], rows)
        if len(values) != len(rows):
            raise Misbehaved(_("returned {values} values for {replies} replies", values=len(values), replies=len(rows)))
        numbers = []
        for row, value in enumerate(values):
            try:
                numbers.append(checked(value))
            except Misbehaved as error:
                error.row = row  # type: ignore[attr-defined]
                raise
        return numbers


def main() -> None:
    end_with_parent()  # which alone ends a function, or a pattern, that takes for ever
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    worker = Worker(say)
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for line in requests:
        worker.work(json.loads(line))


if __name__ == "__main__":
    main()
