"""STAR files: text in, text out (spec 1.1).

The `starfile` package reads the values, all of them as text. A scan of the lines before that says
where a file is malformed, and hands over a plain copy without what the package would misread.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.errors import OutputError
from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.atomic import write_text
from relion_pseudosubtomo.model.particle_set import Columns

#: One value of a row: "quoted", 'quoted', a comment up to the end of the line, or plain.
_VALUE = re.compile(r"""\s*(?:"(.*?)"(?=\s|$)|'(.*?)'(?=\s|$)|(\#.*)|(\S+))""")

#: Words that starfile turns into missing values.
_NAN_WORDS = frozenset({"nan", "NaN", "<NA>"})

#: White space besides blanks, tabs and line ends.
_OTHER_SPACES = "\v\f\x1c\x1d\x1e\x1f"

#: What no line has that is for certain a row, and one that starfile can read as it is.
_NOT_IN_PLAIN_ROWS = ('"', "'", "#", *_NAN_WORDS, "data_", "loop_")

#: Lines that are looked at together.
_BLOCK = 1000

#: Stands for a value that starfile would change.
_PLACEHOLDER = "?"

#: What has to be quoted in a column whose values are joined, and enclosed, by tabs.
_UNPLAIN_ASCII = (*" \n\r\v\f\x1c\x1d\x1e\x1f\"'#", "\t\t", "\t_", "\tdata_", "\tloop_")
_UNPLAIN = re.compile(r"""[^\S\t]|["'#]|\t(?:\t|_|data_|loop_)""")


@dataclass(frozen=True)
class StarTable:
    """One table of a STAR file. A list table and a loop of one row mean the same.

    Attributes
    ----------
    name : str
        What stands behind `data_`; empty for an unnamed table.
    columns : Columns
        Label (without the leading underscore) -> text of every row, exactly as in the file.
    is_list : bool
        Whether it stands in the file as label-value pairs.
    path : str
        The file it was read from.
    line : int
        The line of its heading, from 1.
    """

    name: str
    columns: Columns
    is_list: bool = False
    path: str = ""
    line: int = 0

    @property
    def n_rows(self) -> int:
        """Number of rows; 0 for a table without labels."""
        return len(next(iter(self.columns.values()), ()))

    def first_row(self) -> dict[str, str]:
        """Return label -> text of the first row; empty where there is none."""
        return {label: values[0] for label, values in self.columns.items() if len(values)}


@dataclass(frozen=True)
class StarFile:
    """The tables of one STAR file by name, in file order."""

    path: str
    tables: dict[str, StarTable]


def list_table(name: str, values: dict[str, str]) -> StarTable:
    """Return a list table of label-value pairs."""
    return StarTable(name, {k: _as_column([v]) for k, v in values.items()}, is_list=True)


def _as_column(values: list[str]) -> NDArray[np.object_]:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def read_star(
    path: str, findings: Findings, labels: Container[str] | None = None
) -> StarFile | None:
    """Read all tables of a STAR file as text.

    Parameters
    ----------
    path : str
        The file.
    findings : Findings
        Gets errors: `missing-file`, `unreadable-file`, `star-syntax`.
    labels : container of str, optional
        The columns that are wanted; all by default.

    Returns
    -------
    StarFile or None
        None where there was an error.
    """
    return read_stars([path], findings, labels)[path]


def read_stars(
    paths: Iterable[str], findings: Findings, labels: Container[str] | None = None
) -> dict[str, StarFile | None]:
    """Read many STAR files, in much less time than one by one; parameters as for `read_star`.

    Returns
    -------
    dict of str to (StarFile or None)
        Path -> file, or None where there was an error.
    """
    outlines: dict[str, list[_Outline] | None] = {}
    for path in paths:
        if path not in outlines:
            outlines[path] = _outline(path, findings, labels)
    columns = iter(_read_values([o for tables in outlines.values() for o in tables or ()]))

    def fill(path: str, tables: list[_Outline]) -> StarFile:
        filled = (StarTable(o.name, next(columns), o.is_list, path, o.line) for o in tables)
        return StarFile(path, {table.name: table for table in filled})

    return {p: None if tables is None else fill(p, tables) for p, tables in outlines.items()}


def _outline(path: str, findings: Findings, labels: Container[str] | None) -> list[_Outline] | None:
    text = read_text(path, findings)
    if text is None:
        return None
    scanner = _Scanner(path, labels)
    scanner.scan(text)
    findings.extend(scanner.findings)
    return None if scanner.findings.items else scanner.outlines


def read_text(path: str, findings: Findings) -> str | None:
    r"""Return the text of a STAR file with line ends "\n", or None and an error."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        findings.error("missing-file", "STAR file missing", file=path)
        return None
    except OSError as error:
        findings.error("unreadable-file", f"STAR file not readable: {error.strerror}", file=path)
        return None
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        findings.error(
            "star-syntax", "not a text file", file=path, expected="UTF-8 text, uncompressed"
        )
        return None
    return text


@dataclass
class _Outline:
    """What the scan found of one table.

    starfile replaces ' by ", reads `nan` as a missing value, cuts values at a #, fails at comments
    in a loop without rows, and takes the next table for one that is empty. So it is given
    `plain_rows`, values separated by one space, with placeholders for the rows in `special`.
    """

    name: str
    line: int
    is_list: bool = True
    labels: list[str] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    n_rows: int = 0
    plain_rows: list[str] = field(default_factory=list)
    special: dict[int, list[str]] = field(default_factory=dict)
    wrong: list[tuple[int, int, int]] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)

    @property
    def takes_lines(self) -> bool:
        """Whether rows follow, of which all values are wanted."""
        return self.n_rows > 0 and 0 < len(self.kept) == len(self.labels) and not self.is_list

    def kept_labels(self) -> tuple[str, ...]:
        """Return the labels of the wanted columns."""
        return tuple(self.labels[i] for i in self.kept)

    def add_row(self, values: list[str], is_special: bool, line: str | None = None) -> None:
        """Note the wanted values of a row; the line itself where starfile can read it as it is."""
        values = [values[i] for i in self.kept] if len(self.kept) < len(values) else values
        # first in its row it would be taken for a table's name
        is_special = is_special or (bool(values) and values[0].startswith("data_"))
        if line is not None and not is_special and len(self.kept) == len(self.labels):
            self.plain_rows.append(line)
            return
        if is_special:
            self.special[len(self.plain_rows)] = values
            values = [_PLACEHOLDER] * len(values)
        self.plain_rows.append(" ".join(values))


class _Scanner:
    """Walks through the lines of a STAR file and notes tables, labels, rows and errors."""

    def __init__(self, path: str, labels: Container[str] | None) -> None:
        self.path = path
        self.wanted = labels
        self.findings = Findings()
        self.outlines: list[_Outline] = []
        self.names: set[str] = set()
        self._is_plain = False

    def scan(self, text: str) -> None:
        """Fill `outlines` and `findings`."""
        # Python takes more characters for white space than starfile does
        self._is_plain = text.isascii() and not any(space in text for space in _OTHER_SPACES)
        lines = text.split("\n")
        for start in range(0, len(lines), _BLOCK):
            block = lines[start : start + _BLOCK]
            if self._add_plain_rows(block):
                continue
            for number, line in enumerate(map(str.strip, block), start + 1):
                if line and line[0] != "#" and not self._read_line(line, number):
                    return
        for table in self.outlines:
            self._finish_table(table)
        if not self.outlines and not self.findings.items:
            what = "no table" if text.strip() else "empty file"
            self._error(what, expected="a line data_<name>")

    def _error(
        self, what: str, line: int | None = None, text: str | None = None, **place: object
    ) -> None:
        if text is not None:
            place["found"] = repr(text if len(text) <= 60 else f"{text[:57]}...")
        self.findings.error("star-syntax", what, file=self.path, line=line, **place)

    def _add_plain_rows(self, lines: list[str]) -> bool:
        """Add lines to the table at once where each is a plain row, as nearly all are."""
        table = self.outlines[-1] if self.outlines else None
        if not self._is_plain or table is None or not table.takes_lines:
            return False
        text = "\n".join(lines)
        if any(part in text for part in _NOT_IN_PLAIN_ROWS):
            return False
        if set(map(len, map(str.split, lines))) != {len(table.labels)}:
            return False
        table.plain_rows += lines
        table.n_rows += len(lines)
        return True

    def _read_line(self, line: str, number: int) -> bool:
        """Read a line that is no comment; False where it makes no sense to go on."""
        if line.startswith("data_") and not self._is_row(line):
            self._start_table(line, number)
        elif self.outlines:
            self._read_content(self.outlines[-1], line, number)
        else:
            self._error("value before any table", number, expected="data_<name>", text=line)
        return bool(self.outlines)

    def _is_row(self, line: str) -> bool:
        """Return whether a line that begins as a heading does has all values of a loop's row."""
        labels = [] if not self.outlines or self.outlines[-1].is_list else self.outlines[-1].labels
        words = line.split()
        return len(labels) > 1 and len(words) == len(labels) and words[1][0] != "#"

    def _start_table(self, line: str, number: int) -> None:
        heading, *rest = line.split()
        name = heading.removeprefix("data_")
        if rest and rest[0][0] != "#":
            self._error("text behind a table's name", number, table=name, text=rest[0])
        if name in self.names:
            self._error("table name repeated", number, table=name)
        self.names.add(name)
        self.outlines.append(_Outline(name, number))

    def _read_content(self, table: _Outline, line: str, number: int) -> None:
        if line.startswith("loop_") and line.split(None, 1)[0] == "loop_":
            if table.labels or not table.is_list:
                self._error("loop_ within a table", number, table=table.name)
            table.is_list = False
        elif line[0] == "_" and (table.is_list or not table.n_rows):
            self._read_label(table, line, number)
        elif table.is_list:
            if not table.n_rows:
                what = "value without a label" if table.labels else "row without loop_ and labels"
                self._error(what, number, table=table.name, text=line)
            table.n_rows += 1
        else:
            self._read_row(table, line, number)

    def _read_label(self, table: _Outline, line: str, number: int) -> None:
        values, _ = self._split(line, table, number)
        label = values[0][1:]
        most = 2 if table.is_list else 1
        if not label or label in table.labels:
            what = f"label {label} repeated" if label else "label without a name"
            self._error(what, number, table=table.name)
        elif len(values) > most:
            self._error(
                f"wrong number of values behind label {label}",
                number,
                table=table.name,
                expected=most - 1,
                text=" ".join(values[1:]),
            )
        if self.wanted is None or label in self.wanted:
            table.kept.append(len(table.labels))
        table.labels.append(label)
        table.pairs.append("".join(values[1:2]))

    def _read_row(self, table: _Outline, line: str, number: int) -> None:
        if not table.labels and not table.n_rows:
            self._error("row without labels", number, table=table.name, text=line)
        table.n_rows += 1
        values, is_special = self._split(line, table, number)
        if len(values) == len(table.labels):
            table.add_row(values, is_special, line if self._is_plain else None)
        elif table.labels:
            table.wrong.append((table.n_rows, number, len(values)))

    def _split(self, line: str, table: _Outline, number: int) -> tuple[list[str], bool]:
        """Return the values of a line without comments, and whether starfile would change one."""
        if '"' not in line and "'" not in line and "#" not in line:
            values = line.split()
            may_be_nan = "nan" in line or "NaN" in line or "<NA>" in line
            return values, may_be_nan and not _NAN_WORDS.isdisjoint(values)
        values = []
        for double, single, comment, plain in _VALUE.findall(line):
            if comment:
                break
            if plain and plain[0] in "\"'":
                self._error("quotation mark not closed", number, table=table.name, text=plain)
            values.append(plain or single or double)
        return values, True

    def _finish_table(self, table: _Outline) -> None:
        if table.is_list:
            if table.labels:
                table.add_row(table.pairs, is_special=True)
        elif table.wrong:
            rows = [f"{row} (line {line})" for row, line, _ in table.wrong]
            self._error(
                "wrong number of values",
                table=table.name,
                row=list_first(rows),
                expected=f"{len(table.labels)} values",
                found=list_first(sorted({count for _, _, count in table.wrong})),
            )


def _read_values(outlines: list[_Outline]) -> list[Columns]:
    """Return the columns of every outlined table; those with the same labels are read as one."""
    groups: dict[tuple[str, ...], list[_Outline]] = {}
    for outline in outlines:
        if outline.kept:
            groups.setdefault(outline.kept_labels(), []).append(outline)
    columns: dict[int, Columns] = {}
    for joined, members in zip(_read_plain_copy(groups), groups.values(), strict=True):
        start = 0
        for outline in members:
            stop = start + len(outline.plain_rows)
            columns[id(outline)] = _own_columns(outline, joined, slice(start, stop))
            start = stop
    return [columns.get(id(outline), {}) for outline in outlines]


def _read_plain_copy(groups: dict[tuple[str, ...], list[_Outline]]) -> list[Columns]:
    """Return the joined columns of each group, read by starfile from a file it cannot misread.

    A table starts with a row of placeholders: words in every column end the package's attempt to
    make numbers of them, which costs as much as the reading. Each table has its price too, which
    is why they are joined.
    """
    import starfile  # it loads pandas, which takes half a second: of the ranks only rank 0 reads

    try:
        with tempfile.NamedTemporaryFile("w", suffix=".star", encoding="utf-8") as copy:
            for number, (labels, members) in enumerate(groups.items()):
                copy.write(f"data_{number}\nloop_\n")
                copy.writelines(f"_{label}\n" for label in labels)
                copy.write(" ".join([_PLACEHOLDER] * len(labels)) + "\n")
                for outline in members:
                    copy.write("\n".join([*outline.plain_rows, ""]))
            copy.flush()
            all_labels = sorted({label for labels in groups for label in labels})
            frames = starfile.read(copy.name, always_dict=True, parse_as_string=all_labels)
    except OSError as error:
        folder = tempfile.gettempdir()
        raise OutputError(f"no temporary file in {folder}: {error.strerror}") from error
    return [
        {label: frame[label].to_numpy(dtype=object)[1:] for label in labels}
        for labels, frame in zip(groups, frames.values(), strict=True)
    ]


def _own_columns(outline: _Outline, joined: Columns, rows: slice) -> Columns:
    """Return the columns of one table, with the values that starfile would have changed."""
    columns = {label: values[rows] for label, values in joined.items()}
    if outline.special:
        columns = {label: values.copy() for label, values in columns.items()}
    for place, column in enumerate(columns.values()):
        for row, values in outline.special.items():
            column[row] = values[place]
    return columns


def write_star(path: str | os.PathLike[str], tables: Iterable[StarTable]) -> None:
    """Write tables as text, whole or not at all.

    Each is preceded by the line `# version 50001`, and there is no date, so that equal tables make
    equal bytes. (starfile's own writer dates its files and knows no quotation mark in a value.)

    Parameters
    ----------
    path : str or path-like
        The file.
    tables : iterable of StarTable
        In the order of the file; `is_list` chooses label-value pairs.

    Raises
    ------
    OutputError
        Where the file cannot be written.
    """
    write_text(path, "".join(_table_text(table) for table in tables))


def _table_text(table: StarTable) -> str:
    head = f"\n# version 50001\n\ndata_{table.name}\n\n"
    if table.is_list:
        pairs = ((label, _quote(text)) for label, text in table.first_row().items())
        return head + "".join(f"_{label:<40} {text}\n" for label, text in pairs) + "\n"
    labels = "".join(f"_{label} #{i}\n" for i, label in enumerate(table.columns, 1))
    rows = zip(*map(_quote_column, table.columns.values()), strict=True)
    body = "\n".join(map("\t".join, rows))
    return f"{head}loop_\n{labels}{body}\n\n"


def _quote_column(column: NDArray[np.object_]) -> Iterable[str]:
    text = "\t".join(["", *column, ""])
    # nearly all columns are plain, and looking for fixed texts is far faster than the pattern
    if text.isascii() and not any(part in text for part in _UNPLAIN_ASCII):
        return column
    return map(_quote, column)


def _quote(text: str) -> str:
    """Return a value as it stands in a file: in quotes where it would not be read back else."""
    if _UNPLAIN.search(f"\t{text}\t") is None and "\t" not in text:
        return text
    quote = "'" if '"' in text and "'" not in text else '"'
    return f"{quote}{text}{quote}"
