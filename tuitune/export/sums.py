"""SHA-256 sums that `sha256sum -c` reads, and a folder as one tar file: what a copy elsewhere is checked by."""

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from tuitune.export.card import MARK
from tuitune.export.kinds import Cancelled

FILE = "SHA256SUMS"
_CHUNK_BYTES = 1 << 22


def sum_file(export: Path) -> Path:
    """Where an export's sums stand: in a folder of it, else beside the file."""
    return export / FILE if export.is_dir() else export.with_name(f"{export.name}.sha256")


def tar_file(folder: Path) -> Path:
    """Where the tar of an exported folder lies."""
    return folder.with_name(f"{folder.name}.tar")


def write_sums(export: Path, cancelled: Callable[[], bool]) -> Path:
    """Write the sums of a file, or of every file in a folder, and return where. Raises Cancelled, OSError."""
    sums = sum_file(export)
    sums.unlink(missing_ok=True)
    files = _files(export) if export.is_dir() else [export]
    names = (file.relative_to(sums.parent).as_posix() for file in files)
    lines = [line_of(_digest(file, cancelled), name) for file, name in zip(files, names, strict=True)]
    sums.write_text("".join(lines), encoding="utf-8")
    return sums


def write_tar(folder: Path, tar: Path, cancelled: Callable[[], bool]) -> None:
    """Write an exported folder into `tar`, uncompressed; its mark comes first, by which `is_our_tar` knows it.

    Who made it is left out. Raises Cancelled, OSError.
    """

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for file in sorted(_files(folder), key=lambda file: file != folder / MARK):
            member = archive.gettarinfo(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
            member.type, member.linkname = tarfile.REGTYPE, ""  # also where it is a second name of an earlier file
            member.size = file.stat().st_size
            with file.open("rb") as content:
                archive.addfile(anonymous(member), cast(BinaryIO, _Stoppable(content, cancelled)))


def is_our_tar(tar: Path) -> bool:
    """Whether a file is the tar of an export."""
    if not tar.is_file():
        return False
    try:
        with tarfile.open(tar, "r:") as archive:
            first = archive.next()
    except (OSError, tarfile.TarError):
        return False
    return first is not None and first.name.count("/") == 1 and first.name.endswith(f"/{MARK}")


class _Stoppable:
    """A file that is read until the user stops it."""

    def __init__(self, file: BinaryIO, cancelled: Callable[[], bool]) -> None:
        self._file = file
        self._cancelled = cancelled

    def read(self, size: int = -1) -> bytes:
        if self._cancelled():
            raise Cancelled
        return self._file.read(size)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path, cancelled: Callable[[], bool]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        reader = _Stoppable(file, cancelled)
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def line_of(digest: str, name: str) -> str:
    """A line as sha256sum writes it: a name that would break it is escaped, and a backslash before the sum says so."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"
