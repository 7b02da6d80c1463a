"""What libraries print, as lines."""

import errno
import io
import sys
from contextlib import redirect_stdout, suppress

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


def test_a_full_disk_fails_no_library_for_what_it_prints() -> None:
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        raise OSError(errno.ENOSPC, "No space left on device")

    log = open("/dev/full", "w", buffering=1)  # noqa: SIM115 - closing it fails, too
    with redirect_stdout(log), printed(tell):
        print("a line")
        print("another one", flush=True)
    with suppress(OSError):
        log.close()
    assert lines == ["a line", "another one"]
