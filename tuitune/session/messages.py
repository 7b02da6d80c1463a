"""Every request that a session takes, and one as it is read from a message, its arguments checked."""

from typing import Any

from tuitune.errors import UnusableInput
from tuitune.language import _
from tuitune.session.preparing_requests import (
    Audit,
    Columns,
    DatasetSplits,
    Estimate,
    HubAccess,
    PreviewRewards,
    Rows,
    SearchDatasets,
    Summary,
    Unusable,
)
from tuitune.session.request import Request
from tuitune.session.result_requests import (
    Attach,
    Chat,
    Export,
    Preflight,
    Retrieve,
)
from tuitune.session.run_requests import (
    Cancel,
    Change,
    Follow,
    Pause,
    Resume,
    Save,
    SetPrice,
    SetThen,
    Status,
    Stop,
    Train,
)
from tuitune.text import one_line
from tuitune.typed import checked, field_types

REQUESTS: dict[str, type[Request[Any]]] = {
    request.command: request
    for request in (
        *(Status, Stop, Pause, Change, Save, SetPrice, SetThen, Cancel, Follow),
        *(Summary, Rows, Unusable, Columns, SearchDatasets, DatasetSplits, Audit, PreviewRewards, Estimate, HubAccess),
        *(Train, Resume, Chat, Attach, Retrieve, Export, Preflight),
    )
}


def request_from(command: Any, arguments: Any) -> Request[Any]:
    """The request in a message. Raises UnusableInput for one there is not, and for wrong arguments."""
    cls = REQUESTS.get(command) if isinstance(command, str) else None
    if cls is None:
        raise UnusableInput("The session knows no command {command}.", command=one_line(command, max_length=40))
    types, arguments_given = field_types(cls), arguments or {}
    if not isinstance(arguments_given, dict) or (unknown := arguments_given.keys() - types.keys()):
        problem = (
            _("unknown: {names}", names=one_line(", ".join(unknown), max_length=80))
            if isinstance(arguments_given, dict)
            else _("not named")
        )
        raise UnusableInput(
            "The command {command} was given wrong arguments ({problem}).", command=command, problem=problem
        )
    try:
        return cls(**{name: checked(value, types[name]) for name, value in arguments_given.items()})
    except (TypeError, ValueError, OverflowError) as error:
        raise UnusableInput(
            "The command {command} was given wrong arguments ({problem}).",
            command=command,
            problem=one_line(error, max_length=80),
        ) from None
