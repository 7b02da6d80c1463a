"""Paths as people write them, and the folders that are this user's alone."""

import errno
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from tuitune.errors import TuituneError, UnusableInput, explain


def expanded(path: str | Path) -> Path:
    """The path with `~` as its user's home; as it is where there is no such user, so that it is said not to exist."""
    return Path(os.path.expanduser(path))


def require_home() -> None:
    """Refuse where no home folder is known, as in a container: libraries would make a folder named `~`."""
    try:
        Path.home()
    except RuntimeError:
        raise UnusableInput(
            "There is no home folder: HOME is not set, and this user is unknown to the system. Set HOME to a folder "
            "that can be written."
        ) from None


def keep_others_out() -> None:
    """Where everybody may write what this process makes, as in many containers, let only its owner do so."""
    mask = os.umask(0o077)
    os.umask(mask if mask & 0o002 else mask | 0o022)


def own_folder(folder: Path) -> Path:
    """The folder, made if it is not there, with nobody else let in. Raises TuituneError, also if it is not ours."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise TuituneError(
                "{folder} belongs to someone else: remove it, or set XDG_RUNTIME_DIR to a folder of yours.",
                folder=folder,
            )
        folder.chmod(0o700)
    except OSError as error:
        raise TuituneError(
            "{folder} cannot be made ({reason}): set XDG_RUNTIME_DIR to a folder of yours.",
            folder=folder,
            reason=explain(error),
        ) from None
    return folder


def open_own(file: Path, flags: int) -> int:
    """A handle of a file that is written in a folder of the user's. Raises OSError.

    A link, a pipe or a device that somebody put in its place is refused: a run folder may come from elsewhere.
    """
    handle = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a file", str(file))
    return handle


def open_file(file: Path) -> BinaryIO:
    """A file of the user's, to be read. Raises OSError, also for what is no file: reading a pipe would not end."""
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a file", str(file))
    return os.fdopen(handle, "rb")


def temporary_folder() -> Path:
    """Where this user's sessions may leave what a restart of the machine may take. Raises TuituneError."""
    import tempfile  # not before it is needed: the paths are imported by every command

    try:
        return own_folder(Path(tempfile.gettempdir()) / f"tuitune-{os.getuid()}")
    except FileNotFoundError:
        raise TuituneError("There is no folder for temporary files: set TMPDIR to one.") from None


def cache_folder(name: str) -> Path:
    """Where what can be made or downloaded again is kept; not made here."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("tuitune")) / name


def key_of(*parts: Any) -> str:
    """A file name for what these parts make; a Path stands for its file's content."""
    import hashlib
    import json

    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()
