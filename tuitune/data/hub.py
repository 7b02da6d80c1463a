"""Datasets of the Hugging Face Hub, which `datasets` downloads and a process of its own reads."""

import re
from pathlib import Path

from tuitune.data.files import Container
from tuitune.errors import UnusableInput
from tuitune.recipe import HUB, DataSection
from tuitune.text import one_line

_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def hub_container(data: DataSection) -> Container:
    """The recipe's Hub dataset as something to read rows from. Raises UnusableInput for what is no dataset id."""
    name = data.path.removeprefix(HUB)
    if not _ID.fullmatch(name):
        raise UnusableInput(f"{one_line(name, max_length=120)!r} is no Hub dataset id: write hub:owner/name.")
    options = (data.config or "", data.split, data.revision or "")
    return Container(Path(name), "hub", options=options)
