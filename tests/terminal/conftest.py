"""What the terminal tests share: terminals that are closed when a test ends."""

from collections.abc import Iterator

import pytest

from tests.terminal.terminal import Terminal


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


@pytest.fixture(autouse=True)
def start_quickly(warm_sessions: None) -> None:
    """How a session starts is the point of few tests here."""
