"""Names of tomograms and particles, which become parts of output paths (spec 3.1)."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Sequence

from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.star import StarTable


def leads_outside(name: str) -> bool:
    """Return whether a file of this name could lie outside its folder."""
    return name.startswith("/") or ".." in name.split("/") or not name.isprintable()


def report_unsafe_names(
    table: StarTable, kind: str, names: Sequence[str], findings: Findings
) -> None:
    """Add one error `unsafe-name` for names with `..`, absolute ones and control characters."""
    unsafe = [name for name in dict.fromkeys(names) if leads_outside(name)]
    if unsafe:
        findings.error(
            "unsafe-name",
            f"unsafe {kind} name",
            file=table.path,
            table=table.name,
            expected="names that stay inside the output directory",
            found=list_first(map(repr, unsafe)),
        )


def find_duplicates(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once, also where `a//b` and `a/b` are one path."""
    paths = (posixpath.normpath(n) if "//" in n or "/./" in n else n for n in names)
    return [name for name, count in Counter(paths).items() if count > 1]
