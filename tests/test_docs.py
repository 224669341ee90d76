"""The documentation names what the program has."""

from __future__ import annotations

from pathlib import Path

import pytest

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.findings import ADVICE
from relion_pseudosubtomo.plan import DROP_REASONS

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("code", sorted(ADVICE))
def test_every_code_is_documented(code: str) -> None:
    """docs/messages.md has a line with the code and what to do."""
    assert f"| `{code}` | {ADVICE[code]} |" in (DOCS / "messages.md").read_text()


@pytest.mark.parametrize("reason", DROP_REASONS)
def test_every_drop_reason_is_documented(reason: str) -> None:
    """docs/messages.md explains each reason."""
    assert f"Dropped N: {reason}`" in (DOCS / "messages.md").read_text()


@pytest.mark.parametrize(
    "label", sorted(v for v in vars(labels).values() if str(v).startswith("rlnPseudoSubtomo"))
)
def test_every_own_label_is_documented(label: str) -> None:
    """RELION's documentation has no word of them."""
    assert any(label in path.read_text() for path in DOCS.glob("*.md"))


@pytest.mark.parametrize(
    "path", [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md"], ids=lambda path: path.name
)
def test_refinements_that_split_the_data_use_mpi(path: Path) -> None:
    """RELION refuses to split the data into random halves in one process."""
    commands = path.read_text().replace("\\\n", " ").split("\n")
    refining = [line for line in commands if "--auto_refine" in line]
    assert all("mpirun -n 3 relion_refine_mpi" in line for line in refining)
