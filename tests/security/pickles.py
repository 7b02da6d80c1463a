"""A pickle that leaves a file when it is loaded: whoever finds the file has run code from outside."""

import pickle
from pathlib import Path


class _Canary:
    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._file,)


def plant(file: Path, canary: Path) -> None:
    """Write a pickle to `file` that makes the file `canary` when it is loaded."""
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(pickle.dumps(_Canary(canary)))
