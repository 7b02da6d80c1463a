"""What libraries print, as lines."""

import io
import sys
from contextlib import redirect_stdout

from tuitune.session.output import printed


def test_whole_lines_are_told_and_passed_on_and_progress_bars_are_not_told() -> None:
    stream = io.StringIO()
    lines: list[str] = []
    with redirect_stdout(stream), printed(lines.append):
        print("Fast Llama", end=" ")
        print("patching.\n\n  2 GPUs")
        sys.stdout.write("\r 10%\r100%\nready\nand no end")
        print("a warning", file=sys.stderr)
    assert lines == ["Fast Llama patching.", "  2 GPUs", "ready", "a warning"]
    assert stream.getvalue().startswith("Fast Llama patching.") and stream.getvalue().endswith("and no end")


def test_a_line_without_an_end_takes_no_memory() -> None:
    lines: list[str] = []
    with redirect_stdout(io.StringIO()), printed(lines.append):
        for _ in range(1000):
            sys.stdout.write("x" * 10_000)
        print()
    assert lines == ["x" * 400]
