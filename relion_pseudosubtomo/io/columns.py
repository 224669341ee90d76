"""From columns of text to checked numbers: findings name the file, the table and the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.star import StarTable

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_ABSENT = frozenset({"", "None", None})


def is_absent(text: str | None) -> bool:
    """Return whether a value counts as not there: an empty string, or the word None."""
    return text in _ABSENT


def has_columns(table: StarTable, labels: Sequence[str]) -> bool:
    """Return whether a table has all of the columns."""
    return all(label in table.columns for label in labels)


def report_missing_columns(table: StarTable, labels: Sequence[str], findings: Findings) -> None:
    """Add an error `missing-column` for each of the labels that a table lacks."""
    for label in labels:
        if label not in table.columns:
            findings.error(
                "missing-column", f"no column {label}", file=table.path, table=table.name
            )


def texts(table: StarTable, label: str) -> list[str | None]:
    """Return the values of a column, None where the value or the column is absent."""
    column = table.columns.get(label)
    if column is None:
        return [None] * table.n_rows
    return [None if text in _ABSENT else text for text in column]


def report_rows(
    findings: Findings, code: str, what: str, table: StarTable, rows: ArrayLike, **place: Any
) -> None:
    """Add one error for some rows of a table, counted from 0; nothing where there are none."""
    places = np.asarray(rows, dtype=np.int64) + 1
    if len(places):
        place["row"] = list_first(places)
        findings.error(code, what, file=table.path, table=table.name, **place)


def numbers(
    table: StarTable,
    label: str,
    findings: Findings,
    *,
    default: float | None = None,
    rows: Flags | None = None,
) -> Floats:
    """Return a column as finite numbers.

    Parameters
    ----------
    table : StarTable
        The table.
    label : str
        The column.
    findings : Findings
        Gets `missing-column`, `missing-value`, `not-a-number` and `not-finite` errors.
    default : float, optional
        For an absent column or value; without it both are errors.
    rows : ndarray of bool, optional
        Rows that are checked; all by default.

    Returns
    -------
    ndarray, shape (n_rows,), float64
        NaN where a value could not be had.
    """
    column = table.columns.get(label)
    if column is None:
        if default is None:
            report_missing_columns(table, [label], findings)
        return np.full(table.n_rows, np.nan if default is None else default)
    checked = np.ones(len(column), dtype=bool) if rows is None else rows
    values, absent, wrong = _parse(column)
    if default is None:
        _report(findings, "missing-value", f"no {label}", table, label, absent & checked)
    else:
        values[absent] = default
    _report(findings, "not-a-number", label, table, label, wrong & checked)
    not_finite = ~np.isfinite(values) & ~absent & ~wrong
    _report(findings, "not-finite", label, table, label, not_finite & checked)
    return values


def to_number(text: str) -> float:
    """Return the number that a text says; ValueError where only Python would read one."""
    if "_" in text or not text.isascii():  # 1_5, or digits of other scripts
        raise ValueError(f"no number: {text!r}")
    return float(text)


def to_numbers(texts: Sequence[str] | NDArray[np.object_]) -> Floats:
    """Return the numbers of many texts, as `to_number` does of each."""
    joined = " ".join(texts)
    if "_" in joined or not joined.isascii():
        raise ValueError("no numbers")
    return np.fromiter(map(float, texts), np.float64, len(texts))


def _parse(column: NDArray[np.object_]) -> tuple[Floats, Flags, Flags]:
    """Return the numbers, NaN where there is none, and which texts are absent and which wrong."""
    absent = np.zeros(len(column), dtype=bool)
    wrong = np.zeros(len(column), dtype=bool)
    try:
        return to_numbers(column), absent, wrong
    except ValueError:
        values = np.full(len(column), np.nan)
    for row, text in enumerate(column):
        try:
            values[row] = to_number(text)
        except ValueError:
            absent[row] = is_absent(text)
            wrong[row] = not absent[row]
    return values, absent, wrong


def _report(
    findings: Findings, code: str, what: str, table: StarTable, label: str, bad: Flags
) -> None:
    rows = np.flatnonzero(bad)
    found = list_first((repr(table.columns[label][row]) for row in rows), 3)
    expected = "a finite number" if code == "not-finite" else "a number"
    report_rows(findings, code, what, table, rows, expected=expected, found=found)


def triples(
    table: StarTable,
    labels: Sequence[str],
    findings: Findings,
    *,
    default: float | None = None,
    rows: Flags | None = None,
) -> Floats:
    """Return three columns as finite numbers, shape (n_rows, 3).

    Parameters as for `numbers`, but `default` is for absent columns only, with a warning where
    just some of the three are there: an absent value among coordinates or angles is an error.
    """
    present = [label for label in labels if label in table.columns]
    if default is not None and 0 < len(present) < len(labels):
        findings.warning(
            "missing-column",
            f"{default:g} is taken for what is missing of {', '.join(labels)}",
            file=table.path,
            table=table.name,
            expected="all three or none",
            found=", ".join(present),
        )
    parts = [
        numbers(
            table,
            label,
            findings,
            default=None if label in table.columns else default,
            rows=rows,
        )
        for label in labels
    ]
    return np.stack(parts, axis=1)


def vectors(
    table: StarTable,
    label: str,
    findings: Findings,
    *,
    is_good: Callable[[int], bool],
    expected: str,
    required: bool = True,
) -> list[Floats]:
    """Return a column of vectors, `[1,2,3]`.

    Parameters
    ----------
    table : StarTable
        The table.
    label : str
        The column; an absent one is reported where it is required.
    findings : Findings
        Gets `missing-column`, `missing-value`, `bad-vector` and `not-finite` errors.
    is_good : callable
        Tells whether a vector may have so many values.
    expected : str
        That in words.
    required : bool, optional
        Whether an absent value is an error.

    Returns
    -------
    list of ndarray, float64
        One a row; empty where there is none.
    """
    if label not in table.columns:
        if required:
            report_missing_columns(table, [label], findings)
        return [np.empty(0)] * table.n_rows
    column = table.columns[label]
    absent = np.array([is_absent(text) for text in column], dtype=bool)
    parsed = [None if is_absent(text) else _parse_vector(text) for text in column]
    values = [np.empty(0) if vector is None else vector for vector in parsed]
    good = np.array([v is not None and is_good(len(v)) for v in parsed], dtype=bool)
    wrong = ~good & ~absent
    not_finite = np.array([not np.isfinite(v).all() for v in values], dtype=bool)
    if required:
        _report(findings, "missing-value", f"no {label}", table, label, absent)
    rows = np.flatnonzero(wrong)
    found = "".join(_describe_vector(column[row], values[row]) for row in rows[:1])
    report_rows(findings, "bad-vector", label, table, rows, expected=expected, found=found)
    _report(findings, "not-finite", label, table, label, not_finite & ~wrong)
    return values


def _parse_vector(text: str) -> Floats | None:
    inner = text.strip()
    if not (inner.startswith("[") and inner.endswith("]")):
        return None
    parts = inner[1:-1].split(",")
    try:
        return np.array([float(part) for part in parts] if inner != "[]" else [])
    except ValueError:
        return None


def _describe_vector(text: str, vector: Floats) -> str:
    return f"{len(vector)} values" if len(vector) else repr(text[:60])
