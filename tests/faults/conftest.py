"""Every test here injects faults, and records them for the totals."""

from collections.abc import Callable
from dataclasses import asdict

import pytest

from tests.faults.sweep import Record


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/faults/" in item.path.as_posix():
            item.add_marker("fault")
    if not config.getoption("sweep", False):
        left_out = [item for item in items if item.get_closest_marker("sweep")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether every fault is injected, as `make faults` does, instead of a quick subset."""
    return bool(request.config.getoption("sweep", False))


@pytest.fixture
def survived(record_property: Callable[[str, object], None]) -> Callable[[list[Record]], None]:
    """Counts the records, and requires that each fault left the state that was expected."""

    def count(records: list[Record]) -> None:
        record_property("faults", [asdict(record) for record in records])
        lost = [f"{record.case}: {record.fault}: {record.problems}" for record in records if record.problems]
        assert records and not lost, "\n".join(lost)

    return count
