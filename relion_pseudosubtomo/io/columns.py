"""From columns of text to checked numbers: findings name the file, the table and the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.star import StarTable

Floats = NDArray[np.float64]

_ABSENT = frozenset({"", "None"})


def is_absent(text: str | None) -> bool:
    """Return whether a value counts as not there: an empty string, or the word None."""
    return text is None or text in _ABSENT


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
    return [None if is_absent(text) else text for text in column]


def report_rows(
    findings: Findings, code: str, what: str, table: StarTable, rows: Sequence[int], **place: object
) -> None:
    """Add one error for some rows of a table, counted from 0; nothing where there are none."""
    if len(rows):
        numbers = list_first(int(row) + 1 for row in rows)
        findings.error(code, what, file=table.path, table=table.name, row=numbers, **place)


def numbers(
    table: StarTable,
    label: str,
    findings: Findings,
    *,
    default: float | None = None,
    rows: NDArray[np.bool_] | None = None,
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
    try:
        values = column.astype(np.float64)
    except ValueError:
        values = _numbers_one_by_one(table, label, findings, default, checked)
    else:
        absent_or_not = np.flatnonzero(~np.isfinite(values) & checked)
        _report_not_finite(table, label, findings, absent_or_not)
    return values


def _numbers_one_by_one(
    table: StarTable,
    label: str,
    findings: Findings,
    default: float | None,
    checked: NDArray[np.bool_],
) -> Floats:
    column = table.columns[label]
    values = np.full(len(column), np.nan)
    absent, wrong, not_finite = [], [], []
    for row, text in enumerate(column):
        if is_absent(text):
            absent.append(row)
            values[row] = np.nan if default is None else default
            continue
        try:
            values[row] = float(text)
        except ValueError:
            wrong.append(row)
            continue
        if not np.isfinite(values[row]):
            not_finite.append(row)
    if default is None:
        absent = [row for row in absent if checked[row]]
        report_rows(findings, "missing-value", f"no {label}", table, absent, expected="a number",
                    found=repr(column[absent[0]]) if absent else None)
    wrong = [row for row in wrong if checked[row]]
    report_rows(findings, "not-a-number", label, table, wrong, expected="a number",
                found=list_first((repr(column[row]) for row in wrong), 3))
    _report_not_finite(table, label, findings, [row for row in not_finite if checked[row]])
    return values


def _report_not_finite(
    table: StarTable, label: str, findings: Findings, rows: Sequence[int]
) -> None:
    report_rows(
        findings, "not-finite", label, table, rows, expected="a finite number",
        found=list_first((table.columns[label][row] for row in rows), 3),
    )


def triples(
    table: StarTable,
    labels: Sequence[str],
    findings: Findings,
    *,
    default: float | None = None,
    rows: NDArray[np.bool_] | None = None,
) -> Floats:
    """Return three columns as finite numbers, shape (n_rows, 3); parameters as for `numbers`."""
    parts = [numbers(table, label, findings, default=default, rows=rows) for label in labels]
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
    values, absent, wrong, not_finite = [], [], [], []
    for row, text in enumerate(table.columns[label]):
        vector = None if is_absent(text) else _parse_vector(text)
        values.append(np.empty(0) if vector is None else vector)
        if is_absent(text):
            absent.append(row)
        elif vector is None or not is_good(len(vector)):
            wrong.append(row)
        elif not np.isfinite(vector).all():
            not_finite.append(row)
    if required:
        report_rows(findings, "missing-value", f"no {label}", table, absent, expected=expected)
    found = [_describe_vector(table.columns[label][row], values[row]) for row in wrong[:1]]
    report_rows(findings, "bad-vector", label, table, wrong, expected=expected,
                found="".join(found))
    _report_not_finite(table, label, findings, not_finite)
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
