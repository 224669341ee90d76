"""Which files a job uses, from an optimisation set and from options."""

from __future__ import annotations

import pytest
from project_copy import REAL

from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io.optimisation_set import (
    read_optimisation_set,
    resolve,
    write_optimisation_set,
)
from relion_pseudosubtomo.model import OptimisationSet
from relion_pseudosubtomo.options import JobOptions

LIST = """
data_

_rlnTomoParticlesFile     p.star
_rlnTomoTomogramsFile     t.star
_rlnTomoTrajectoriesFile  m.star
_rlnTomoManifoldsFile     None
_rlnTomoReferenceMap1File "my map.mrc"
"""
LOOP = """
data_optimisation_set

loop_
_rlnTomoParticlesFile #1
_rlnTomoTomogramsFile #2
p.star\tt.star
"""


def resolve_text(tmp_path, text, **options):
    path = tmp_path / "o.star"
    path.write_text(text)
    findings = Findings()
    options = JobOptions("out", 32, 32, optimisation_set=str(path), **options)
    return resolve(options, findings), findings


def test_list_form(tmp_path):
    files, findings = resolve_text(tmp_path, LIST)
    assert not findings.items
    others = {"rlnTomoManifoldsFile": "None", "rlnTomoReferenceMap1File": "my map.mrc"}
    assert files == OptimisationSet("p.star", "t.star", "m.star", others)


def test_loop_form_of_another_name(tmp_path):
    files, findings = resolve_text(tmp_path, LOOP)
    assert not findings.items
    assert files == OptimisationSet("p.star", "t.star", None, {})


@pytest.mark.parametrize("text", ['""', "None", ""])
def test_absent_trajectories(tmp_path, text):
    files, _ = resolve_text(tmp_path, LIST.replace("m.star", text))
    assert files.trajectories is None


def test_options_win(tmp_path):
    files, _ = resolve_text(tmp_path, LIST, particles="x.star", trajectories="y.star")
    assert (files.particles, files.tomograms, files.trajectories) == ("x.star", "t.star", "y.star")


@pytest.mark.parametrize(("word", "expected"), [("None", None), ("", "m.star")])
def test_no_trajectories(tmp_path, word, expected):
    """None leaves out what may be left out; an empty option is none, as in RELION."""
    files, findings = resolve_text(tmp_path, LIST, particles=word, trajectories=word)
    assert (files.particles, files.trajectories) == ("p.star", expected)
    assert not findings.items


def test_options_alone(findings):
    options = JobOptions("out", 32, 32, particles="x.star", tomograms="y.star")
    assert resolve(options, findings) == OptimisationSet("x.star", "y.star", None, {})
    assert not findings.items


def test_neither_option_nor_entry(tmp_path):
    files, findings = resolve_text(tmp_path, LIST.replace("p.star", '""'))
    assert files is None
    assert [finding.code for finding in findings] == ["missing-input"]
    assert "no particles in" in findings.items[0].message
    assert "--p FILE" in findings.items[0].message


def test_no_input_at_all(findings):
    assert resolve(JobOptions("out", 32, 32), findings) is None
    assert [finding.message.split(":")[0] for finding in findings] == [
        "no particles",
        "no tomograms",
    ]


def test_missing_file(tmp_path, findings, only):
    options = JobOptions("out", 32, 32, optimisation_set=str(tmp_path / "o.star"))
    assert resolve(options, findings) is None
    only("missing-file", "error", "o.star")


def test_more_than_one_row(tmp_path):
    files, findings = resolve_text(tmp_path, LOOP + "q.star u.star\n")
    assert files is None
    assert findings.items[0].code == "optimisation-set"
    assert "expected one row, found 2 rows" in findings.items[0].message


@pytest.mark.parametrize("path", sorted(REAL.rglob("*optimisation_set.star")), ids=lambda p: p.name)
def test_real_files(path, findings):
    entries = read_optimisation_set(str(path), findings)
    assert not findings.items
    assert entries["rlnTomoParticlesFile"].endswith(".star")


def test_written_set_is_read_again(tmp_path, findings):
    others = {"rlnTomoManifoldsFile": "", "rlnTomoReferenceFscFile": "a b.star"}
    files = OptimisationSet("p.star", "t.star", "m.star", others)
    write_optimisation_set(tmp_path / "o.star", files)
    options = JobOptions("out", 32, 32, optimisation_set=str(tmp_path / "o.star"))
    assert resolve(options, findings) == files
    assert "\n# version 50001\n\ndata_\n\n" in (tmp_path / "o.star").read_text()
