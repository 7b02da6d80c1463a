"""What commands write on stdout, which carries the answer alone."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tuitune.language import N_, _
from tuitune.text import one_line, safe_text


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what libraries print, C code included, to stderr, so that stdout carries the answer alone."""
    from tuitune.machine.environment import prepare_environment

    prepare_environment()
    sys.stdout.flush()
    saved_stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved_stdout, 1)
        os.close(saved_stdout)


def complain(text: str) -> None:
    """A line on standard error, behind the program's name."""
    sys.stderr.write(f"tuitune: {safe_text(text)}\n")
    sys.stderr.flush()


def print_json(data: Any) -> None:
    print(json.dumps(data, ensure_ascii=True), flush=True)


_NAMES = (
    N_("file"),
    N_("kind"),
    N_("format"),
    N_("reason"),
    N_("columns"),
    N_("rows"),
    N_("rows estimated"),
    N_("bytes"),
    N_("sources"),
    N_("method"),
)
"""Of what a table of figures has, the names in words."""


def print_table(data: dict[str, Any]) -> None:
    for name, value in data.items():
        print(f"{_(name.replace('_', ' '))}{_(': ')}{one_line(value, max_length=400)}")
