"""The program reproduces RELION's output on every reference case.

Each case is run as a user would run it: in a copy of the case's folder, with the case's options,
writing to ``relion/`` there; then everything it wrote is compared with RELION's own files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import pytest
from reference_comparison import (
    SUMMARY_PROPERTY,
    TOLERANCE_FLOAT32,
    FileComparison,
    compare_case,
)

REFERENCE = Path(__file__).parent / "reference"
CASES = sorted(path.parent.name for path in REFERENCE.glob("*/case.json"))
OUTPUT_NAME = "relion/"
LARGEST_DIFFERENCE = 3e-5
"""What README.md and docs/agreement.md promise of images in float32, which is less than the
tolerance; volumes divided by the multiplicity divide by small numbers and may have all of that."""


def copy_inputs(case_dir: Path, parent: Path) -> Path:
    """Copy a case's inputs below `parent`, with the tilt images beside it; return the copy."""
    (parent / "frames").symlink_to(REFERENCE / "frames", target_is_directory=True)
    copy = parent / case_dir.name
    shutil.copytree(case_dir, copy, ignore=shutil.ignore_patterns("relion", "case.json"))
    return copy


def is_promised_less(file: FileComparison) -> bool:
    """Say whether a file's difference is bound by `LARGEST_DIFFERENCE`."""
    is_difference = file.measure == "difference" and file.tolerance == TOLERANCE_FLOAT32
    return is_difference and file.kind != "data_nrm"


@pytest.mark.parametrize("name", CASES)
def test_program_agrees_with_relion(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """The program's files, tables and numbers are RELION's within the tolerances."""
    # Imported here so that the other tests run where the program cannot be imported.
    from relion_pseudosubtomo.cli import main

    case_dir = REFERENCE / name
    options = json.loads((case_dir / "case.json").read_text())["options"]
    project_dir = copy_inputs(case_dir, tmp_path)
    monkeypatch.chdir(project_dir)

    status = main(
        ["--p", "particles.star", "--t", "tomograms.star", *options, "--o", OUTPUT_NAME, "--j", "2"]
    )
    assert status == 0

    comparison = compare_case(case_dir, project_dir / OUTPUT_NAME, OUTPUT_NAME)
    if comparison.worst_file is not None:
        record_property(SUMMARY_PROPERTY, ["program", name, *astuple(comparison.worst_file)])
    assert comparison.problems == []
    promised = [file for file in comparison.files if is_promised_less(file)]
    assert [file for file in promised if not file.error < LARGEST_DIFFERENCE] == []
