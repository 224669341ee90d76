"""Names of tomograms and particles, which become parts of output paths (spec 3.1)."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from urllib.parse import quote

from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.atomic import TEMPORARY_PATTERN
from relion_pseudosubtomo.io.star import StarTable

#: Bytes of a file's name that a particle's or tomogram's may take; suffixes come behind.
_LONGEST_PART = 180

#: A tomogram's records lie in a folder of its name, with every special byte written as %XX.
_LONGEST_QUOTED = 255

#: Characters of a bad name that are shown.
_SHOWN = 60


def leads_outside(name: str) -> bool:
    """Return whether a file of this name could lie outside its folder."""
    has_dots = ".." in name and ".." in name.split("/")  # splitting every name takes longer
    return has_dots or name.startswith("/") or not name.isprintable()


def _looks_temporary(name: str) -> bool:
    """Return whether files of this name would be removed as left half-written."""
    return ".tmp-" in name and any(fnmatch(p, f"{TEMPORARY_PATTERN}*") for p in name.split("/"))


def is_too_long(name: str) -> bool:
    """Return whether file systems may refuse a file or a record of this name."""
    if name.isascii() and len(name) <= _LONGEST_QUOTED // 3:  # quoting takes three bytes at most
        return False
    longest_part = max(len(os.fsencode(part)) for part in name.split("/"))
    return longest_part > _LONGEST_PART or len(quote(name, safe="")) > _LONGEST_QUOTED


def _are_plain(names: Sequence[str]) -> bool:
    """Return whether there is nothing about any of the names; quick, as it looks at all at once."""
    text = " ".join(["", *names])
    return (
        text.isascii()
        and text.isprintable()
        and not any(part in text for part in ("..", " /", ".tmp-"))
        and max(map(len, names), default=0) <= _LONGEST_QUOTED // 3
    )


def report_unsafe_names(
    table: StarTable, kind: str, names: Sequence[str], findings: Findings
) -> None:
    """Add errors for names that cannot be, or must not become, parts of output paths.

    `unsafe-name` for names with `..`, absolute ones, control characters and names of temporary
    files; `long-name`.
    """
    if _are_plain(names):
        return
    names = list(dict.fromkeys(names))
    unsafe = [name for name in names if leads_outside(name) or _looks_temporary(name)]
    if unsafe:
        findings.error(
            "unsafe-name",
            f"unsafe {kind} name",
            file=table.path,
            table=table.name,
            expected="names that stay inside the output directory, and not .*.tmp-*-*",
            found=list_first((repr(name[:_SHOWN]) for name in unsafe), 3),
        )
    long = [name for name in names if is_too_long(name)]
    if long:
        findings.error(
            "long-name",
            f"long {kind} name",
            file=table.path,
            table=table.name,
            expected=f"at most {_LONGEST_PART} bytes between slashes, {_LONGEST_QUOTED} in all",
            found=list_first((f"{name[:_SHOWN]}..." for name in long), 3),
        )


def find_duplicates(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once, also where `a//b` and `./a/b` are one path."""
    paths = list(map(_as_path, names))
    if len(set(paths)) == len(paths):
        return []
    return [name for name, count in Counter(paths).items() if count > 1]


def _as_path(name: str) -> str:
    is_plain = "//" not in name and "/." not in name and not name.startswith("./")
    return name if is_plain else posixpath.normpath(name)


def make_unique(names: Sequence[str]) -> list[str]:
    """Return names of which no two are one path: `_2`, `_3`, ... behind those that come again."""
    taken = {_as_path(name) for name in names}
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        path = _as_path(name)
        seen[path] += 1
        if seen[path] > 1:
            while (path_of_new := f"{path}_{seen[path]}") in taken:
                seen[path] += 1
            taken.add(path_of_new)
            name = path_of_new
        unique.append(name)
    return unique
