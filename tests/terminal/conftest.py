"""What the terminal tests share: terminals that are closed when a test ends."""

from collections.abc import Iterator

import pytest

from tests.forking import Forker
from tests.terminal.terminal import Terminal


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


@pytest.fixture(autouse=True)
def libraries_imported(forker: Forker) -> None:
    """No app waits for that."""
    forker.warm_up()
