"""Reads Parquet and Arrow files in a process of its own: a file that crashes the reader ends only that process."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tuitune.data.container import Container
from tuitune.data.lines import ROW, TOO_LONG, Record, lines, parse, unusable
from tuitune.language import _
from tuitune.text import one_line


def columnar_records(container: Container) -> Iterator[Record]:
    """Every row, written as JSON lines by a child process that is ended when the reader stops early."""
    with subprocess.Popen(
        _command(container),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout and child.stderr
        try:
            for number, line in lines(child.stdout):
                yield unusable(TOO_LONG, ROW, number) if line is None else parse(line, ROW, number)
            error_text = child.stderr.read(4096).decode("utf-8", "replace").strip()
            code = child.wait()
            if code:
                reason = (
                    one_line(error_text.splitlines()[-1], max_length=160)
                    if error_text and code > 0
                    else _("its reader crashed")
                )
                problem = _(
                    "the {kind} file cannot be read beyond here ({reason}): fetch it again, or write it anew",
                    kind=container.kind,
                    reason=reason,
                )
                yield Record(None, problem)
        finally:
            child.kill()


def columnar_count(container: Container) -> int | None:
    """How many rows the file says it holds, without reading them; None where it cannot be read."""
    child = subprocess.run(
        [*_command(container), "count"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return int(child.stdout) if child.returncode == 0 and child.stdout.strip().isdigit() else None


def _command(container: Container) -> list[str]:
    program = Path(__file__).with_name("columnar_reader.py")
    return [sys.executable, "-P", str(program), container.kind, str(container.path), container.compression or ""]
