"""Files and folders that are wholly there under their name or not at all, also after a kill or a power cut."""

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

# No names that a user may have given to something else in the folder.
_PREVIOUS = ".tuitune-previous-"
_REMOVING = ".tuitune-removing-"


def write_atomic(path: Path, data: str | bytes, *, lasting: bool = True) -> None:
    """Write a file so that it is either wholly there under its name or not at all (temporary name, fsync, rename).

    What can be made again need not be `lasting`: it is not waited for, and a power cut may leave it empty or old.
    """
    raw = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if lasting:
        flush(path.parent)


def publish(staged: Path, final: Path) -> None:
    """Give a finished file or folder its name; what had the name is removed only after that.

    Everything is flushed to disk first. Where it fails, the former one keeps its name; should the process end between
    the two renames, `recover` brings it back. Raises OSError.
    """
    for path in [*staged.rglob("*"), staged] if staged.is_dir() else [staged]:
        flush(path)
    previous = final.with_name(_PREVIOUS + final.name)
    replaces_folder = final.is_dir()  # or a link to a folder that was moved to another disk: the link alone goes
    if replaces_folder:
        remove(previous)  # a killed process may have left it
        os.replace(final, previous)
    try:
        os.replace(staged, final)
    except OSError:
        if replaces_folder:
            os.replace(previous, final)
        raise
    flush(final.parent)
    if replaces_folder:
        remove(previous)


def remove(folder: Path) -> None:
    """Delete a folder, or a link to one, so that no half of it is ever seen under its name.

    What cannot be deleted stays: it costs room, and nothing else.
    """
    with suppress(OSError):
        if folder.is_symlink():
            folder.unlink()
            return
        removing = folder.with_name(_REMOVING + folder.name)
        shutil.rmtree(removing, ignore_errors=True)
        os.replace(folder, removing)
        shutil.rmtree(removing, ignore_errors=True)


def recover(folder: Path) -> None:
    """Finish in `folder` what `publish` and `remove` began in a process that was killed. Raises OSError."""
    for removing in folder.glob(f"{_REMOVING}*"):
        shutil.rmtree(removing, ignore_errors=True)
    for previous in folder.glob(f"{_PREVIOUS}*"):
        final = folder / previous.name.removeprefix(_PREVIOUS)
        if final.exists():
            remove(previous)
        else:
            os.replace(previous, final)


def flush(path: Path) -> None:
    """Have a file's content, or a folder's list of names, on disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():  # a file system without it
            raise
    finally:
        os.close(handle)
