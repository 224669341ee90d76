"""What the report needs beyond the program's own dependencies."""

from __future__ import annotations

from importlib.util import find_spec

from relion_pseudosubtomo.errors import UsageError

#: Module -> the package it comes with.
_NEEDED = {"jinja2": "Jinja2", "PIL": "Pillow"}

INSTALL = "pip install 'relion_pseudosubtomo[report]'"


def missing_packages() -> list[str]:
    """Return the packages that the report needs and that are not installed."""
    return [package for module, package in _NEEDED.items() if find_spec(module) is None]


def require_packages() -> None:
    """Refuse to go on without the packages of the report.

    Raises
    ------
    UsageError
    """
    missing = missing_packages()
    if missing:
        raise UsageError(f"The report needs {', '.join(missing)}, found none: {INSTALL}")
