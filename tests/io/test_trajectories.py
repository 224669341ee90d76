"""Trajectories: found by name, whatever their order; what is wrong names the particles."""

from __future__ import annotations

import numpy as np
import pytest

from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io.particles import make_particle_set, read_particle_table
from relion_pseudosubtomo.io.tomograms import read_tomogram_set
from relion_pseudosubtomo.io.trajectories import (
    check_trajectory_file,
    read_trajectories,
    write_trajectories,
)
from relion_pseudosubtomo.options import JobOptions

NAMES = ["TS_01/1", "TS_01/2", "TS_03/1", "TS_03/2", "TS_03/3"]
LABELS = "_rlnOriginXAngst #1\n_rlnOriginYAngst #2\n_rlnOriginZAngst #3\n"


def shifts_of(seed=0, n=5, n_frames=7):
    return np.random.default_rng(seed).normal(size=(n, n_frames, 3)).round(6)


@pytest.fixture
def sets(project):
    """Return particle and tomogram set of a case with trajectories, as current directory."""
    project("rotated_trajectories")
    table = read_particle_table("particles.star", Findings())
    tomogram_set = read_tomogram_set(
        "tomograms.star", Findings(), wanted=None, options=JobOptions("out", 48, 24)
    )
    return make_particle_set(table, tomogram_set, Findings()), tomogram_set


def test_reference_file_goes_by_name(sets, findings):
    trajectories = read_trajectories("motion.star", *sets, findings)
    assert not findings.items
    assert [shift.shape for shift in trajectories.shifts] == [(7, 3)] * 5
    assert list(trajectories.shifts[2][0]) == [2.412715, -4.188751, -0.263923]


def test_written_file_is_read_again(sets, findings, tmp_path):
    shifts = shifts_of()
    order = [3, 0, 4, 1, 2]
    write_trajectories(tmp_path / "m", [NAMES[i] for i in order], [shifts[i] for i in order])
    trajectories = read_trajectories(str(tmp_path / "m"), *sets, findings)
    assert not findings.items
    np.testing.assert_array_equal(trajectories.shifts, shifts)
    text = (tmp_path / "m").read_text()
    assert text.startswith("\n# version 50001\n\ndata_general\n\n_rlnParticleNumber")
    assert text.count("# version 50001\n") == 6


def write(names, tables):
    with open("m.star", "w", newline="") as file:
        for name, table in zip(names, tables, strict=True):
            file.write(f"data_{name}\n\n{table}\n")


def table_text(shift, labels=LABELS, line_end="\n"):
    rows = "".join(" ".join(map(str, row)) + "\n" for row in np.asarray(shift).tolist())
    return f"loop_ \n{labels}{rows}".replace("\n", line_end)


def test_very_old_files_go_by_order(sets, findings, only):
    write(range(5), [table_text(s) for s in shifts_of()])
    trajectories = read_trajectories("m.star", *sets, findings)
    np.testing.assert_array_equal(trajectories.shifts, shifts_of())
    only("trajectory-order", "warning", "m.star", "in the order of particles.star")


def test_very_old_file_of_another_set(sets, findings):
    write(range(4), [table_text(s) for s in shifts_of(n=4)])
    assert read_trajectories("m.star", *sets, findings) is None
    assert "expected 5 tables, one a particle, found 4" in findings.items[0].message


def test_missing_particles(sets, findings, only):
    write(NAMES[:3], [table_text(s) for s in shifts_of(n=3)])
    assert read_trajectories("m.star", *sets, findings) is None
    only("trajectory-missing", "error", "in m.star, particle TS_03/2, TS_03/3", "expected a table")


def test_wrong_number_of_frames(sets, findings, only):
    tables = [table_text(s) for s in shifts_of()]
    tables[1] = table_text(shifts_of(n_frames=6)[0])
    write(NAMES, tables)
    assert read_trajectories("m.star", *sets, findings) is None
    only("trajectory-frames", "error", "particle TS_01/2", "expected 7, found 6")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(sets, findings, only, value):
    shifts = shifts_of()
    shifts[4, 2, 1] = value
    write(NAMES, [table_text(s) for s in shifts])
    assert read_trajectories("m.star", *sets, findings) is None
    only("not-finite", "error", "particle TS_03/3", "expected finite numbers")


MALFORMED = {
    "text": table_text([[1, 2, 3]] * 6) + "1 2 x\n",
    "short row": table_text([[1, 2, 3]] * 6) + "1 2\n",
    "rows of other lengths that add up": table_text([[1, 2, 3]] * 5) + "1 2\n3 4 5 6\n",
    "number of Python's": table_text([[1, 2, 3]] * 6) + "1 2 1_5\n",
    "digits of another script": table_text([[1, 2, 3]] * 6) + "1 2 \u0663\n",
    "no labels": "loop_\n1 2 3\n",
    "other labels": table_text([[1, 2, 3]] * 7, LABELS.replace("XAngst", "X")),
    "nothing": "",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_malformed_table(sets, findings, only, text):
    tables = [table_text(s) for s in shifts_of()]
    tables[3] = text
    write(NAMES, tables)
    assert read_trajectories("m.star", *sets, findings) is None
    only("star-syntax", "error", "malformed trajectory in m.star, particle TS_03/2")


def with_more_columns(shift):
    rows = "".join(f"{i} {x} {y} {z} x{i}\n" for i, (x, y, z) in enumerate(shift.tolist()))
    return f"loop_\n_a\n{LABELS}_b\n{rows}"


LAYOUTS = {
    "windows": lambda shift: table_text(shift, line_end="\r\n"),
    "tabs": lambda shift: table_text(shift).replace(" ", "\t"),
    "no numbers": lambda shift: table_text(shift, LABELS.replace(" #1", "").replace(" #2", "")),
    "comments": lambda shift: "# c\n" + table_text(shift).replace("\n", " # c\n"),
    "comments of any kind": lambda shift: (
        "#\n\t## c # d\n" + table_text(shift).replace("\n", "\t#c #\n", 6) + "#"
    ),
    "values with a hash": lambda shift: (
        with_more_columns(shift).replace(" x", " x#").replace("\n0 ", " # c\n0# ")
    ),
    "more columns": with_more_columns,
    "other order": lambda shift: table_text(
        shift[:, ::-1], "_rlnOriginZAngst\n_rlnOriginYAngst\n_rlnOriginXAngst\n"
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(sets, findings, layout):
    write(NAMES, [layout(shift) for shift in shifts_of()])
    trajectories = read_trajectories("m.star", *sets, findings)
    assert not findings.items
    np.testing.assert_array_equal(trajectories.shifts, shifts_of())


def test_one_frame_as_a_list(sets, findings, only):
    tables = [table_text(s) for s in shifts_of()]
    tables[0] = "_rlnOriginXAngst 1\n_rlnOriginYAngst 2\n_rlnOriginZAngst 3\n"
    write(NAMES, tables)
    read_trajectories("m.star", *sets, findings)
    only("trajectory-frames", "error", "particle TS_01/1", "expected 7, found 1")


def test_repeated_table(sets, findings, only):
    write([*NAMES, "TS_01/1"], [table_text(s) for s in shifts_of(n=6)])
    assert read_trajectories("m.star", *sets, findings) is None
    only("star-syntax", "error", "table names repeated: TS_01/1")


def test_particles_of_unknown_tomograms_need_none(sets, findings):
    particle_set, tomogram_set = sets
    particle_set.tomogram[1] = -1
    write([NAMES[i] for i in (0, 2, 3, 4)], [table_text(s) for s in shifts_of(n=4)])
    trajectories = read_trajectories("m.star", particle_set, tomogram_set, findings)
    assert not findings.items
    assert trajectories.shifts[1].shape == (0, 3)


def test_missing_file(sets, findings, only):
    assert read_trajectories("absent.star", *sets, findings) is None
    only("missing-file", "error", "absent.star")


def test_file_alone(tmp_path, findings, only):
    (tmp_path / "m.star").write_text("nothing\n")
    check_trajectory_file(str(tmp_path / "m.star"), findings)
    only("star-syntax", "error", "no table in", "m.star")
