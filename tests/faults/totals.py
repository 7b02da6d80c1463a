"""Counts what was injected, survived and lost, and writes it as a dated JSON (`make faults`).

A plugin for pytest: `-p tests.faults.totals --sweep`, and then `--add` for more. A test marked `fault` is one fault, or
as many as it records.
"""

import datetime
import json
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "faults.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sweep", action="store_true", help="inject every fault instead of a quick subset")
    parser.addoption("--add", action="store_true", help="add to what was counted last")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "test_sweeps" not in item.nodeid)  # the longest first


class Totals:
    """Cases by name, each with its expected state and how often it was injected and held."""

    def __init__(self) -> None:
        self.cases: dict[str, dict[str, Any]] = defaultdict(lambda: {"injected": 0, "survived": 0, "lost": 0})
        self.lost: list[dict[str, Any]] = []

    def add(self, case: str, expected: str, where: str, problems: list[str]) -> None:
        counts = self.cases[case]
        counts["expected"] = expected
        counts["injected"] += 1
        counts["lost" if problems else "survived"] += 1
        if problems:
            self.lost.append({"case": case, "where": where, "problems": problems})

    def of(self, name: str) -> int:
        return sum(counts[name] for counts in self.cases.values())


_totals = Totals()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if (report.when != "call" and not report.failed) or report.skipped or "fault" not in report.keywords:
        return
    properties: dict[str, Any] = dict(report.user_properties)
    for record in properties.get("faults", []):
        _totals.add(record["case"], record["expected"], record["fault"], record["problems"])
    if "faults" not in properties:
        file, _, name = report.nodeid.partition("::")
        name, _, parameters = name.partition("[")
        problems = [report.longreprtext[-300:]] if report.failed else []
        _totals.add(
            f"{Path(file).stem}: {name.removeprefix('test_').replace('_', ' ')}",
            "as its name says",
            parameters,
            problems,
        )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not _totals.cases:
        return
    if config.getoption("add"):
        before = json.loads(RESULTS.read_text())
        _totals.cases.update(before["cases"])
        _totals.lost[:0] = before["what_was_lost"]
    injected, survived, lost = (_totals.of(name) for name in ("injected", "survived", "lost"))
    result = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "injected": injected,
        "survived": survived,
        "lost": lost,
        "cases": _totals.cases,
        "what_was_lost": _totals.lost,
    }
    if config.getoption("sweep") or config.getoption("add"):
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    terminalreporter.section("faults")
    for case, counts in sorted(_totals.cases.items()):
        terminalreporter.write_line(f"{counts['injected']:6,} injected {counts['survived']:6,} survived  {case}")
    terminalreporter.write_line(f"{injected:,} faults injected, {survived:,} survived, {lost:,} lost")
