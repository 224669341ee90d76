"""Shared by all tests: a simulated project, and a table of the reference cases' worst errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from reference_comparison import SUMMARY_PROPERTY

from relion_pseudosubtomo.simulate import Settings, make_dataset, write_project

COLUMNS = ("compared", "case", "file", "kind", "error", "tolerance", "measure")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the switch of the tests that need root and Debian packages."""
    parser.addoption(
        "--system", action="store_true", help="run tests that need root and Debian packages"
    )


@pytest.fixture(scope="session")
def noisy_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the default data set: 240 particles, noise of over 10 times their variance."""
    directory = tmp_path_factory.mktemp("noisy")
    write_project(make_dataset(Settings()), directory)
    return directory


def recorded_rows(reports: list[pytest.TestReport]) -> Iterator[list[object]]:
    """Yield what the tests recorded: one row a case, in the order of COLUMNS."""
    for report in reports:
        for name, value in report.user_properties:
            if name == SUMMARY_PROPERTY and isinstance(value, list):
                yield value


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each reference case's worst file, by error over tolerance, as a table."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call"
    ]
    rows = sorted(recorded_rows(reports), key=lambda row: row[:2])
    if not rows:
        return
    terminalreporter.section("worst file of each reference case")
    terminalreporter.write_line(
        f"{'compared':<9}{'case':<27}{'error':>9}{'tolerance':>11}  measure      file"
    )
    for row in rows:
        values = dict(zip(COLUMNS, row, strict=True))
        terminalreporter.write_line(
            f"{values['compared']:<9}{values['case']:<27}{values['error']:>9.1e}"
            f"{values['tolerance']:>11.0e}  {values['measure']:<12} {values['file']}"
        )
