"""Fixtures of the tests of reading and writing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from project_copy import ProjectCopy

from relion_pseudosubtomo.findings import Finding, Findings


@pytest.fixture
def findings() -> Findings:
    """Return an empty list of findings."""
    return Findings()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ProjectCopy]:
    """Return a function that copies a reference case and makes it the current directory."""

    def copy(case: str = "basic_2d") -> ProjectCopy:
        made = ProjectCopy(tmp_path, case)
        monkeypatch.chdir(made.path)
        return made

    return copy


@pytest.fixture
def only(findings: Findings) -> Callable[..., Finding]:
    """Return a function that asserts one finding of a code, its severity and its words."""

    def check(code: str, severity: str, *words: str) -> Finding:
        found = [finding for finding in findings if finding.code == code]
        assert len(found) == 1, [str(finding) for finding in findings]
        assert found[0].severity == severity
        for word in words:
            assert word in str(found[0])
        return found[0]

    return check
