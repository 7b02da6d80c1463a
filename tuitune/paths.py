"""Paths as people write them."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with `~` as its user's home; as it is where there is no such user, so that it is said not to exist."""
    return Path(os.path.expanduser(path))
