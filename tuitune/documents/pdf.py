"""PDF through pdfium, in a process of its own: what a hostile file does to the parser ends that process alone.

Run as `python -m tuitune.documents.pdf`: reads a path a line, writes for each a line of JSON with `pages` or a
`reason`: one of `_REASONS`, or `library` where pdfium is not installed.
"""

import contextlib
import json
import resource
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from tuitune.documents.block import Block, Unreadable
from tuitune.language import N_, _
from tuitune.machine.environment import install_line
from tuitune.parent import end_with_parent

MAX_PAGES = 20_000
MAX_PAGE_CHARACTERS = 100_000
_SECONDS = 120.0
_MEMORY_BYTES = 4 * 2**30
_REASONS = {
    "password": N_("it needs a password"),
    "no text": N_("it holds no text, only pictures"),
    "other": N_("it is no PDF"),
}


class PdfReader:
    """Reads PDFs in a child process, which is started with the first one and replaced where one ends it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def blocks_of(self, path: Path) -> list[Block]:
        """A block for each page with text. Raises Unreadable."""
        if "\n" in str(path):
            raise Unreadable("its name has a line break")
        child = self._child = self._child or _started()
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(f"{path.absolute()}\n".encode(errors="surrogateescape"))
            child.stdin.flush()
            ready, _writable, _failed = select.select([child.stdout], [], [], _SECONDS)
            answer = child.stdout.readline() if ready else b""
        except OSError:
            answer = b""
        if not answer.endswith(b"\n"):
            self.close()
            raise Unreadable("the PDF reader did not get through it")
        result = json.loads(answer)
        if result.get("reason") == "library":
            command = install_line("pypdfium2")
            raise Unreadable(_("PDF needs pypdfium2, which is not installed here: `{command}`", command=command))
        if "reason" in result:
            raise Unreadable(_(_REASONS.get(result["reason"], _REASONS["other"])))
        return [
            Block(text, 0, 0, (), number)
            for number, page in enumerate(result["pages"], 1)
            if (text := "\n".join(line.strip() for line in page.splitlines() if line.strip()))
        ]

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tuitune.documents.pdf"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _pages(path: str) -> list[str]:
    """The text of each page. Raises whatever pdfium does."""
    import pypdfium2

    with contextlib.closing(pypdfium2.PdfDocument(path)) as document:
        pages = []
        for number in range(min(len(document), MAX_PAGES)):
            page = document[number]
            pages.append(page.get_textpage().get_text_range()[:MAX_PAGE_CHARACTERS])
            page.close()
        return pages


def main() -> None:
    """Answer each path that is asked for, until nobody asks."""
    end_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    for line in sys.stdin.buffer:
        try:
            pages = _pages(line.rstrip(b"\n").decode(errors="surrogateescape"))
            if not any(page.strip() for page in pages):
                raise ValueError("no text")
            answer: dict[str, Any] = {"pages": pages}
        except ImportError:
            answer = {"reason": "library"}
        except Exception as error:
            words = str(error).lower()
            answer = {"reason": next((known for known in ("password", "no text") if known in words), "other")}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
