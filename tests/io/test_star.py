"""STAR files: every text is kept, every malformed file is explained."""

from __future__ import annotations

import re

import numpy as np
import pytest
from project_copy import REAL, REFERENCE

from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io import star as star_module
from relion_pseudosubtomo.io.star import (
    StarTable,
    list_table,
    read_star,
    read_stars,
    write_star,
)

STAR_FILES = sorted([*REAL.rglob("*.star"), *REFERENCE.glob("*/*.star")])


@pytest.fixture(autouse=True, params=[1, 3, star_module._BLOCK])
def lines_together(request, monkeypatch):
    """Read lines in blocks of several sizes: what is read must not depend on that."""
    monkeypatch.setattr(star_module, "_BLOCK", request.param)


def read_text(tmp_path, text, **options):
    path = tmp_path / "a.star"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    findings = Findings()
    star = read_star(str(path), findings, **options)
    return star, findings


def tables_of(tmp_path, text, **options):
    star, findings = read_text(tmp_path, text, **options)
    assert star is not None, [str(finding) for finding in findings]
    assert not findings.items
    return {
        name: {label: list(column) for label, column in table.columns.items()}
        for name, table in star.tables.items()
    }


LOOP = "data_t\n\nloop_\n_a #1\n_b #2\n"

MALFORMED = {
    "short row": (LOOP + "1 2\n3\n4 5\n6\n", "wrong number", "table t, row 2 (line 7), 4 (line 9)",
                  "expected 2 values, found 1"),
    "long row": (LOOP + "1 2\n3 4 5\n", "row 2 (line 7)", "expected 2 values, found 3"),
    "value first": ("1 2\ndata_t\n", "value before any table", "line 1", "found '1 2'"),
    "label first": ("_a 1\n", "value before any table", "line 1"),
    "repeated label": ("data_t\nloop_\n_a\n_b\n_a\n1 2 3\n", "label a repeated", "line 5"),
    "repeated label in list": ("data_t\n_a 1\n_a 2\n", "label a repeated", "line 3"),
    "repeated table": (LOOP + "1 2\n" + LOOP + "1 2\n", "table name repeated", "line 7"),
    "no labels": ("data_t\nloop_\n1 2\n", "row without labels", "line 3"),
    "no loop": ("data_t\n1 2\n3 4\n", "row without loop_ and labels", "line 2"),
    "lost label": ("data_t\n_a 1\n2\n", "value without a label", "line 3"),
    "nameless label": ("data_t\nloop_\n_ #1\n1\n", "label without a name", "line 3"),
    "two values": ("data_t\n_a 1 2\n", "behind label a", "expected 1, found '1 2'"),
    "row as label": ("data_t\nloop_\n_a\n_b 1\n", "behind label b", "expected 0, found '1'"),
    "second loop": (LOOP + "1 2\nloop_\n_c\n3\n", "loop_ within a table", "line 7"),
    "heading with value": ("data_t 1 2\n_a 1\n", "text behind a table's name", "found '1'"),
    "open quote": (LOOP + "1 'x\n", "quotation mark not closed", "line 6", "found \"'x\""),
    "empty": ("", "empty file", "expected a line data_<name>"),
    "blank": ("\n \n", "empty file"),
    "comments only": ("# version 50001\n", "no table", "expected a line data_<name>"),
    "binary": (b"data_t\n\0\1\2", "not a text file"),
    "other encoding": ("data_t\n_a Å\n".encode("latin-1"), "not a text file", "UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), [(v[0], v[1:]) for v in MALFORMED.values()],
                         ids=MALFORMED)  # fmt: skip
def test_malformed_file_is_explained(tmp_path, text, words):
    star, findings = read_text(tmp_path, text)
    assert star is None
    assert {(finding.code, finding.severity) for finding in findings} == {("star-syntax", "error")}
    for word in ("a.star", *words):
        assert word in str(findings.items[0])


def test_all_errors_of_a_file_come_together(tmp_path):
    text = "data_s\n_a 1 2\n" + LOOP + "1\n" + "data_u\nloop_\n_x\n_x\n1 2\n"
    _, findings = read_text(tmp_path, text)
    assert len(findings.errors) == 3


def test_many_wrong_rows_are_summarised(tmp_path):
    _, findings = read_text(tmp_path, LOOP + "1\n" * 25)
    assert "10 (line 15), ... (25 in all)" in findings.items[0].message


@pytest.mark.parametrize(
    ("make", "code"),
    [(lambda path: None, "missing-file"), (lambda p: p.mkdir(), "unreadable-file")],
)
def test_file_that_cannot_be_read(tmp_path, findings, only, make, code):
    make(tmp_path / "a.star")
    assert read_star(str(tmp_path / "a.star"), findings) is None
    only(code, "error", "a.star")


TEXTS = ["007", "1e5", "1.50", "nan", "NaN", "<NA>", "None", "inf", "[1,0,1]", "x[10.00]A/a.mrc",
         "1@stack.mrcs", "True", "it's", "a#b", "a\\b", "-0", "1E+5", "NA", "Å"]  # fmt: skip


def test_text_is_kept(tmp_path):
    rows = "".join(f"{text} {i}\n" for i, text in enumerate(TEXTS))
    assert tables_of(tmp_path, LOOP + rows)["t"]["a"] == TEXTS


@pytest.mark.parametrize("text", TEXTS)
def test_text_of_a_list_is_kept(tmp_path, text):
    assert tables_of(tmp_path, f"data_t\n_a {text}\n_b 2\n") == {"t": {"a": [text], "b": ["2"]}}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('"a b"', "a b"),
        ("'a b'", "a b"),
        ('""', ""),
        ("''", ""),
        ('"it\'s here"', "it's here"),
        ("'5\" disk'", '5" disk'),
        ('"# no comment"', "# no comment"),
        ('"nan"', "nan"),
        ('"_a"', "_a"),
    ],
)
def test_quoted_values(tmp_path, written, read):
    expected = {"t": {"a": ["0", read], "b": ["1", "2"]}}
    assert tables_of(tmp_path, LOOP + f"0 1\n{written} 2\n") == expected
    assert tables_of(tmp_path, f"data_t\n_a {written}\n")["t"]["a"] == [read]


SAME = {
    "loop": LOOP + "1 x\n",
    "list": "data_t\n_a 1\n_b x\n",
    "trailing blank": "data_t\n\nloop_ \n_a #1 \n_b #2 \n  1   x \n \n",
    "tabs": "data_t\n\nloop_\n_a\t#1\n_b\t#2\n\t1\t\tx\t\n",
    "no numbers": "data_t\nloop_\n_a\n_b\n1 x\n",
    "no line end": "data_t\nloop_\n_a\n_b\n1 x",
    "windows": LOOP.replace("\n", "\r\n") + "1 x\r\n",
    "old mac": LOOP.replace("\n", "\r") + "1 x\r",
    "byte order mark": "\ufeff" + LOOP + "1 x\n",
    "comments": "# c\ndata_t # c\n# c\nloop_ # c\n# c\n_a #1\n# c\n_b # 2\n# c\n1 x # c\n# c\n",
    "list with comment": "data_t\n_a 1 # c\n_b x\n",
    "blank lines": "\n\ndata_t\n\n\nloop_\n\n_a\n\n_b\n\n1 x\n\n",
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_layouts_that_mean_the_same(tmp_path, text):
    assert tables_of(tmp_path, text) == {"t": {"a": ["1"], "b": ["x"]}}


def test_tables_without_rows(tmp_path):
    text = (
        "data_e\n\ndata_l\n\nloop_\n_a\n_b\n\n# version 50001\n\ndata_t\n\nloop_\n_c\n1\ndata_z\n"
    )
    star, _ = read_text(tmp_path, text)
    assert {name: table.n_rows for name, table in star.tables.items()} == {
        "e": 0, "l": 0, "t": 1, "z": 0,
    }  # fmt: skip
    assert list(star.tables["l"].columns) == ["a", "b"]
    assert star.tables["l"].columns["a"].dtype == object


def test_list_label_without_value_is_empty(tmp_path):
    assert tables_of(tmp_path, "data_\n_a\n_b 1\n") == {"": {"a": [""], "b": ["1"]}}


def test_order_lines_and_kinds(tmp_path):
    star, _ = read_text(tmp_path, "data_z\n_a 1\n\ndata_\nloop_\n_a\n1\n2\ndata_b/1\n_a 1\n")
    assert [(t.name, t.line, t.is_list, t.n_rows) for t in star.tables.values()] == [
        ("z", 1, True, 1),
        ("", 4, False, 2),
        ("b/1", 9, True, 1),
    ]
    assert star.tables["z"].first_row() == {"a": "1"}


def test_tables_with_equal_labels_keep_their_rows(tmp_path):
    text = "".join(f"data_{i}\nloop_\n_a\n_b\n" + f"{i} nan\n" * i for i in range(4))
    assert tables_of(tmp_path, text) == {
        str(i): {"a": [str(i)] * i, "b": ["nan"] * i} for i in range(4)
    }


def test_wanted_columns_only(tmp_path):
    text = LOOP + "1 x\n'a b' y\n"
    assert tables_of(tmp_path, text, labels={"a", "c"}) == {"t": {"a": ["1", "a b"]}}
    assert tables_of(tmp_path, text, labels={"c"}) == {"t": {}}


def test_a_kept_value_may_look_like_a_heading(tmp_path):
    text = LOOP + "x data_1\ny 2\nz data_\n"
    label = LOOP.split("_")[-1].split()[0]
    assert tables_of(tmp_path, text, labels={label}) == {"t": {label: ["data_1", "2", "data_"]}}


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_row_may_begin_as_a_heading_does(tmp_path, end):
    """As with frames in data_frames/; a heading has no value for each label behind it."""
    text = LOOP + f"data_frames/1.mrc x\ny 2\ndata_2 z{end}\ndata_u # v\n_a 1\n"
    columns = {"a": ["data_frames/1.mrc", "y", "data_2"], "b": ["x", "2", "z"]}
    assert tables_of(tmp_path, text) == {"t": columns, "u": {"a": ["1"]}}
    assert tables_of(tmp_path, text, labels={"b"})["t"] == {"b": ["x", "2", "z"]}


def test_many_files_at_once(tmp_path, findings):
    paths = [str(tmp_path / name) for name in ("a", "b", "c")]
    (tmp_path / "a").write_text(LOOP + "1 2\n")
    (tmp_path / "c").write_text(LOOP + "3 4\n5 6\n")
    files = read_stars([*paths, paths[0]], findings)
    assert list(files) == paths
    assert files[paths[1]] is None
    assert [finding.code for finding in findings] == ["missing-file"]
    assert list(files[paths[2]].tables["t"].columns["b"]) == ["4", "6"]


@pytest.mark.parametrize("path", STAR_FILES, ids=lambda path: str(path.relative_to(REAL.parent)))
def test_real_files_survive_reading_and_writing(tmp_path, findings, path):
    star = read_star(str(path), findings)
    write_star(tmp_path / "b.star", star.tables.values())
    again = read_star(str(tmp_path / "b.star"), findings)
    assert not findings.items
    assert list(again.tables) == list(star.tables)
    for name, table in star.tables.items():
        assert again.tables[name].is_list == table.is_list
        assert {k: list(v) for k, v in again.tables[name].columns.items()} == {
            k: list(v) for k, v in table.columns.items()
        }


def as_table(name, **columns):
    return StarTable(name, {k: np.array(v, dtype=object) for k, v in columns.items()})


@pytest.mark.parametrize(
    "text", [*TEXTS, "", "a b", "it's here", '5" disk', "#1", "'x", '"x', "_a", "data_1", "loop_"]
)
def test_written_text_is_read_again(tmp_path, text):
    tables = [as_table("t", a=["1", text], b=["2", "3"]), list_table("u", {"c": text})]
    write_star(tmp_path / "a.star", tables)
    findings = Findings()
    star = read_star(str(tmp_path / "a.star"), findings)
    assert not findings.items
    assert list(star.tables["t"].columns["a"]) == ["1", text]
    assert star.tables["u"].first_row() == {"c": text}


def test_written_layout(tmp_path):
    write_star(tmp_path / "a", [list_table("general", {"x": "1"}), as_table("", a=["1"], b=["2"])])
    text = (tmp_path / "a").read_text()
    assert re.sub(" +", " ", text) == (
        "\n# version 50001\n\ndata_general\n\n_x 1\n\n"
        "\n# version 50001\n\ndata_\n\nloop_\n_a #1\n_b #2\n1\t2\n\n"
    )


def test_equal_tables_make_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_star(tmp_path / name, [as_table("t", a=["1"])])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
