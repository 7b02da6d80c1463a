"""Which files are documents, and what is in each of them; a hostile or broken one is left out with its reason."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from charset_normalizer import from_bytes

from tuitune.documents.block import Block, Unreadable
from tuitune.documents.html import html_blocks
from tuitune.documents.markdown import markdown_blocks, text_blocks
from tuitune.documents.names import is_document, kind_of
from tuitune.documents.source import python_blocks, source_blocks
from tuitune.errors import UnusableInput, explain
from tuitune.text import one_line
from tuitune.units import size

MAX_FILES = 200_000
MAX_TEXT_BYTES = 32 * 2**20
MAX_PDF_BYTES = 512 * 2**20

_SKIPPED = {"node_modules", "__pycache__", "site-packages", "venv", "target", "dist", "build"}
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_-]{2,30})""", re.IGNORECASE)

Readers = Callable[[str], list[Block]]


def files_of(paths: list[Path]) -> Iterator[tuple[Path, str]]:
    """Every document below the paths, each once, with the name that it is shown under. Raises UnusableInput.

    Hidden files, folders of installed or built things, and links that lead out of a folder are not looked into.
    """
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise UnusableInput("There are no documents at {path}: give a file or a folder.", path=one_line(path))
        if not path.is_dir():
            files: Iterator[Path] = iter([path])
        else:
            files = _below(path)
        for file in files:
            real = file.resolve()
            if real in seen:
                continue
            seen.add(real)
            if len(seen) > MAX_FILES:
                raise UnusableInput(
                    "{path} holds over {limit:,} documents: give a folder within it.",
                    path=one_line(path),
                    limit=MAX_FILES,
                )
            yield file, str(file.relative_to(path)) if path.is_dir() else file.name


def _below(folder: Path) -> Iterator[Path]:
    root = folder.resolve()
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED)
        for name in sorted(names):
            file = Path(parent) / name
            if name.startswith(".") or not is_document(file):
                continue
            if file.is_symlink() and not file.resolve().is_relative_to(root):
                continue
            yield file


def content_of(path: Path) -> bytes:
    """A document's bytes. Raises Unreadable, also for what is no file: reading a pipe would not end."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Unreadable("it cannot be read ({reason})", reason=explain(error)) from None
    with os.fdopen(handle, "rb") as file:
        file_status = os.fstat(file.fileno())
        if not stat.S_ISREG(file_status.st_mode):
            raise Unreadable("it is no file")
        limit_bytes = MAX_PDF_BYTES if kind_of(path) == "pdf" else MAX_TEXT_BYTES
        if file_status.st_size > limit_bytes:
            raise Unreadable("it is larger than {limit}", limit=size(limit_bytes))
        try:
            return file.read(limit_bytes + 1)
        except OSError as error:
            raise Unreadable("it cannot be read ({reason})", reason=explain(error)) from None


def blocks_of(path: Path, content: bytes) -> list[Block]:
    """What is in a document that is no PDF. Raises Unreadable."""
    kind = kind_of(path)
    text = text_of(content, html=kind == "html")
    readers: dict[str | None, Readers] = {
        "html": html_blocks,
        "markdown": markdown_blocks,
        "python": python_blocks,
        "source": source_blocks,
    }
    return readers.get(kind, text_blocks)(text)


def text_of(content: bytes, *, html: bool = False) -> str:
    """Bytes as text, by their mark, as UTF-8, as the page says, or by what they most likely are. Raises Unreadable."""
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(mark):
            return content.decode(encoding, "replace")
    if b"\0" in content[:8192]:
        raise Unreadable("it is no text")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        pass
    if html and (named := _CHARSET.search(content[:4096])):
        try:
            return content.decode(named[1].decode("ascii"), "replace")
        except LookupError:
            pass
    for encoding in ("cp932", "euc_jp"):  # short Japanese text is mistaken for many others
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if _reads_as_japanese(text):
            return text
    guess = from_bytes(content[: 2**18]).best()
    return content.decode(guess.encoding if guess else "latin-1", "replace")


def _reads_as_japanese(text: str) -> bool:
    """Whether most of what is not ASCII are kana and usual ideographs."""
    foreign = [letter for letter in text[:20_000] if ord(letter) > 0x7F]
    kana = sum("\u3040" <= letter <= "\u30ff" for letter in foreign)
    usual = sum("\u3000" <= letter <= "\u9fff" or "\uff01" <= letter <= "\uff60" for letter in foreign)
    return bool(foreign) and kana > len(foreign) * 0.2 and usual > len(foreign) * 0.95
