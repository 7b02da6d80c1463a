"""What makes every test of the engine quicker, and proves no less."""

import gc
import sys
from collections.abc import Iterator

import pytest

_MANY_MODULES = 200


def pytest_collection_finish() -> None:
    """What the files of the tests imported stays for good: later collections leave it out, as in a session."""
    gc.freeze()


@pytest.fixture(autouse=True)
def libraries_out_of_collections() -> Iterator[None]:
    """As for the files of the tests, for what a test is the first to import."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + _MANY_MODULES:
        gc.collect()
        gc.freeze()
