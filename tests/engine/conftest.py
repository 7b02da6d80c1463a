"""What makes every test of the engine quicker, and proves no less."""

import gc
import sys
from collections.abc import Iterator

import pytest

_MANY_MODULES = 100
_kept_out: set[str] = set()
"""The modules that collections are spared."""


def pytest_collection_finish() -> None:
    """What the files of the tests imported stays for good: later collections leave it out, as in a session."""
    _keep_out()


@pytest.fixture(autouse=True)
def libraries_out_of_collections() -> Iterator[None]:
    """As for the files of the tests, for what a test, or a fixture of its file, is the first to import."""
    _keep_out_if_many()
    yield
    _keep_out_if_many()


def _keep_out_if_many() -> None:
    if len(sys.modules.keys() - _kept_out) > _MANY_MODULES:
        gc.collect()
        _keep_out()


def _keep_out() -> None:
    gc.freeze()
    _kept_out.update(sys.modules)
