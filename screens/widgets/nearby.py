"""What a folder and the ones in it have to offer, for a screen that has nothing yet."""

import heapq
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_LOOKED_AT = 2000
_FOLDERS = 40
_NO_DATA = ("config.json", "adapter_config.json", "recipe.yaml", "pyvenv.cfg")
"""What a folder holds that is a model, an adapter, a run or an environment."""


def nearby_files(folder: Path, suits: Callable[[Path], bool], most: int) -> list[Path]:
    """The files that suit in `folder` and the folders in it, the most recently changed first, relative to `folder`."""
    return heapq.nlargest(most, _files(folder, suits), key=lambda path: _changed_at(folder / path))


def _files(folder: Path, suits: Callable[[Path], bool]) -> Iterator[Path]:
    folders = [Path()]
    for place, within in enumerate(folders):
        try:
            with os.scandir(folder / within) as entries:
                first_entries = [entry for entry, _ in zip(entries, range(_LOOKED_AT), strict=False)]
                if any(entry.name in _NO_DATA for entry in first_entries):
                    continue
                for entry in first_entries:
                    if entry.name.startswith((".", "__")):
                        continue
                    if not place and len(folders) <= _FOLDERS and entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.name))
                    elif suits(Path(entry.name)) and entry.is_file():
                        yield within / entry.name
        except OSError:
            continue


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
