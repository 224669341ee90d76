"""A writable copy of a reference case's input, for tests that spoil it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from relion_pseudosubtomo.options import JobOptions

TESTS = Path(__file__).parent
REFERENCE = TESTS / "reference"
REAL = TESTS / "real"


class ProjectCopy:
    """STAR files of a case in `<folder>/case`; `<folder>/frames` links to the shared images.

    Parameters
    ----------
    folder : Path
        An empty directory.
    case : str
        Name of the reference case.
    """

    def __init__(self, folder: Path, case: str) -> None:
        self.path = folder / "case"
        source = REFERENCE / case
        shutil.copytree(source, self.path, ignore=shutil.ignore_patterns("relion"))
        (folder / "frames").symlink_to(REFERENCE / "frames")

    def replace(self, file: str, old: str, new: str, count: int = -1) -> None:
        """Change text in a file; it has to be there."""
        path = self.path / file
        text = path.read_text()
        assert old in text, f"no {old!r} in {path}"
        path.write_text(text.replace(old, new, count))

    def set_value(self, file: str, label: str, row: int, value: str) -> None:
        """Change one value of a file's only table; rows count from 0."""
        path = self.path / file
        lines = path.read_text().split("\n")
        labels = [line.split()[0][1:] for line in lines if line.startswith("_")]
        first = max(i for i, line in enumerate(lines) if line.startswith("_")) + 1
        words = lines[first + row].split("\t")
        words[labels.index(label)] = value
        lines[first + row] = "\t".join(words)
        path.write_text("\n".join(lines))

    def rename_label(self, file: str, label: str, new: str = "rlnSomethingElse") -> None:
        """Take a column's label away."""
        self.replace(file, f"_{label} ", f"_{new} ")

    def options(self, **changes: Any) -> JobOptions:
        """Return options of a small job; paths are relative to the case's folder."""
        values: dict[str, Any] = {
            "output": "out",
            "box": 48,
            "crop": 24,
            "binning": 2.0,
            "particles": "particles.star",
            "tomograms": "tomograms.star",
        }
        return JobOptions(**{**values, **changes})
