"""What makes every test of the engine quicker, and proves no less."""

import gc
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.forked_programs import CAN_FORK, ForkedProgram
from tuitune.export import child

_MANY_MODULES = 200
_START_AS_USERS_DO = child._spawn


def pytest_collection_finish() -> None:
    """What the files of the tests imported stays for good: later collections leave it out, as in a session."""
    gc.freeze()


def _start(argv: list[str], **how: Any) -> Any:
    """llama.cpp's converter, which imports the libraries, is forked; the other programs of an export start quickly."""
    is_converter = argv[0] == sys.executable and argv[2].endswith("convert.py")
    return (ForkedProgram if is_converter and CAN_FORK else _START_AS_USERS_DO)(argv, **how)


@pytest.fixture(scope="session", autouse=True)
def forked_converter() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "_spawn", _start)
        yield


@pytest.fixture(autouse=True)
def cold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is marked so starts every program as users do."""
    if request.node.get_closest_marker("cold"):
        monkeypatch.setattr(child, "_spawn", _START_AS_USERS_DO)


@pytest.fixture(autouse=True)
def libraries_out_of_collections() -> Iterator[None]:
    """As for the files of the tests, for what a test is the first to import."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + _MANY_MODULES:
        gc.collect()
        gc.freeze()
