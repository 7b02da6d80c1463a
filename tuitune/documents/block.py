"""What every kind of document is read into: its pieces in order, each with its place and what it stands under."""

from dataclasses import dataclass

from tuitune.errors import TuituneError


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, a list, a table, a function: what is not taken apart unless it is long.

    Lines count from 1. `path` are the headings, or the names of class and function, that it stands under.
    """

    text: str
    start_line: int
    end_line: int
    path: tuple[str, ...] = ()
    page: int | None = None


class Unreadable(TuituneError):
    """A file that is left out; the message is the reason, as a clause."""
