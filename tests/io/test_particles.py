"""Particle sets: coordinates, names, optics; what is wrong is explained."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from project_copy import REAL

from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io.particles import (
    find_halves,
    make_particle_set,
    read_particle_table,
    write_particle_file,
)
from relion_pseudosubtomo.io.star import StarTable, read_star
from relion_pseudosubtomo.io.tomograms import read_tomogram_set
from relion_pseudosubtomo.options import JobOptions

PARTICLES = "particles.star"
OPTICS = """data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnTomoTiltSeriesPixelSize #6
95\tb\t300\t2.7\t0.07\t2.7
69\ta\t300\t2.7\t0.07\t2.7

"""


def read(findings, only_tomogram=None, path=PARTICLES, tomograms="tomograms.star"):
    table = read_particle_table(path, findings)
    if table is None:
        return None
    wanted = table.tomogram_names() if only_tomogram is None else {only_tomogram}
    tomogram_set = read_tomogram_set(
        tomograms, Findings(), wanted=wanted, options=JobOptions("out", 48, 24)
    )
    return make_particle_set(table, tomogram_set, findings, only_tomogram=only_tomogram)


def codes(findings):
    return [finding.code for finding in findings]


def add_optics(case, text=OPTICS, groups=("69", "69", "95", "95", "95")):
    """Put an optics table into a particle file, and each particle's group."""
    path = case.path / PARTICLES
    lines = path.read_text().split("\n")
    rows = [i for i, line in enumerate(lines) if line.startswith("TS_")]
    for row, group in zip(rows, groups, strict=False):
        lines[row] += f"\t{group}"
    lines.insert(rows[0], "_rlnOpticsGroup #99")
    path.write_text(text + "\n".join(lines))


def test_centred_and_corner_coordinates_agree(project, findings, tmp_path):
    project("legacy_relion4_2d")
    old = read(findings)
    shutil.rmtree(tmp_path / "case")
    (tmp_path / "frames").unlink()
    project("basic_2d")
    new = read(findings)
    assert not findings.items
    np.testing.assert_allclose(old.coordinate, new.coordinate, atol=1e-5)
    assert list(old.names) == list(new.names) == [
        "TS_01/1", "TS_01/2", "TS_03/1", "TS_03/2", "TS_03/3",
    ]  # fmt: skip


def test_centred_coordinates_count_from_the_real_half(project, findings):
    project("odd_sizes_2d")
    particles = read(findings)
    text = particles.columns["rlnCenteredCoordinateZAngst"][0]
    size = read_tomogram_set(
        "tomograms.star", Findings(), wanted=None, options=JobOptions("out", 48, 24)
    ).tomograms[0].size_xyz  # fmt: skip
    assert size[2] % 2 == 1
    assert particles.coordinate[0, 2] == pytest.approx(float(text) / 2.7 + size[2] / 2)


def test_centred_coordinates_win(project, findings):
    case = project()
    expected = read(findings).coordinate
    case.rename_label(PARTICLES, "rlnAngleRot", "rlnCoordinateX")
    case.rename_label(PARTICLES, "rlnAngleTilt", "rlnCoordinateY")
    case.rename_label(PARTICLES, "rlnAnglePsi", "rlnCoordinateZ")
    np.testing.assert_array_equal(read(findings).coordinate, expected)


def test_offsets_and_angles(project, findings):
    project("rotated_trajectories")
    particles = read(findings)
    assert list(particles.offset[0]) == [2.563970, 4.252795, -1.674352]
    assert list(particles.subtomogram_angles[0]) == [177.112898, 128.951477, 31.346316]
    assert list(particles.angles[0]) == [-150.952664, 81.302303, 63.681971]


def test_defaults(project, findings):
    case = project()
    for label in ("Rot", "Tilt", "Psi"):
        case.rename_label(PARTICLES, f"rlnAngle{label}", f"rlnNo{label}")
    particles = read(findings)
    assert not particles.offset.any()
    assert not particles.subtomogram_angles.any()
    assert not particles.angles.any()
    assert list(particles.tomogram) == [0, 0, 1, 1, 1]


def test_a_triple_that_lacks_a_column(project, findings, only):
    """Rows of a 2D classification have shifts in the plane of an image, which mean nothing here."""
    case = project("rotated_trajectories")
    case.rename_label(PARTICLES, "rlnOriginZAngst")
    assert list(read(findings).offset[0]) == [2.563970, 4.252795, 0]
    only(
        "missing-column",
        "warning",
        "0 is taken for what is missing of rlnOriginXAngst, rlnOriginYAngst, rlnOriginZAngst",
        "expected all three or none, found rlnOriginXAngst, rlnOriginYAngst",
    )


def test_made_names_count_within_each_tomogram_in_file_order(project, findings):
    case = project()
    case.set_value(PARTICLES, "rlnTomoName", 0, "TS_03")
    particles = read(findings)
    expected = ["TS_03/1", "TS_01/1", "TS_03/2", "TS_03/3", "TS_03/4"]
    assert list(particles.names) == expected
    assert list(particles.columns["rlnTomoParticleName"]) == expected


def test_text_is_kept(project, findings):
    case = project()
    case.rename_label(PARTICLES, "rlnAnglePsi", "rlnClassName")
    case.set_value(PARTICLES, "rlnClassName", 1, "007")
    case.set_value(PARTICLES, "rlnAngleRot", 2, "1e5")
    particles = read(findings)
    assert particles.columns["rlnClassName"][1] == "007"
    assert particles.columns["rlnAngleRot"][2] == "1e5"
    assert particles.angles[2, 0] == 1e5


@pytest.mark.parametrize(("name", "code"), [("", "table-name"), ("my_set", "table-name")])
def test_other_table_names(project, findings, only, name, code):
    project().replace(PARTICLES, "data_particles", f"data_{name}")
    assert len(read(findings)) == 5
    only(code, "warning", "expected data_particles", f"found data_{name}")


def test_no_particle_table(project, findings, only):
    case = project()
    (case.path / "other.star").write_text("data_a\n_x 1\ndata_\n_y 1\n")
    assert read_particle_table("other.star", findings) is None
    only("missing-table", "error", "other.star", "data_particles", "tables a, (unnamed)")


def test_empty_table(project, findings, only):
    case = project()
    text = (case.path / PARTICLES).read_text()
    (case.path / PARTICLES).write_text(text[: text.index("TS_01")])
    assert read(findings) is None
    only("no-particles", "error", "table particles")


def test_missing_tomogram_names(project, findings, only):
    project().rename_label(PARTICLES, "rlnTomoName")
    table = read_particle_table(PARTICLES, findings)
    assert table.tomogram_names() is None
    assert make_particle_set(table, None, findings) is None
    only("missing-column", "error", "no column rlnTomoName")


def test_missing_coordinates(project, findings, only):
    project().rename_label(PARTICLES, "rlnCenteredCoordinateYAngst")
    read(findings)
    only("missing-column", "error", "no coordinates", "or rlnCoordinateX")


@pytest.mark.parametrize("label", ["rlnCenteredCoordinateXAngst", "rlnAngleTilt"])
@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("nan", "not-finite"),
        ("inf", "not-finite"),
        ("None", "missing-value"),
        ("a", "not-a-number"),
        ("1_5", "not-a-number"),
        ("１２", "not-a-number"),  # noqa: RUF001
    ],
)
def test_bad_numbers_name_the_row(project, findings, only, label, value, code):
    project().set_value(PARTICLES, label, 3, value)
    read(findings)
    only(code, "error", label, f"in {PARTICLES}, table particles, row 4", f"found '{value}'")


def test_many_bad_rows_are_one_finding(project, findings, only):
    case = project()
    for row in range(5):
        case.set_value(PARTICLES, "rlnCenteredCoordinateXAngst", row, "nan")
    read(findings)
    only("not-finite", "error", "row 1, 2, 3, 4, 5")


def test_unknown_tomogram(project, findings, only):
    case = project()
    case.set_value(PARTICLES, "rlnTomoName", 0, "TS_99")
    case.set_value(PARTICLES, "rlnCenteredCoordinateXAngst", 0, "nan")
    particles = read(findings)
    assert list(particles.tomogram) == [-1, 0, 1, 1, 1]
    assert np.isnan(particles.coordinate[0]).all()
    only("unknown-tomogram", "warning", "1 particle of unknown tomograms", "found TS_99")


def test_no_particle_belongs_to_a_tomogram(project, findings, only):
    project().replace(PARTICLES, "TS_0", "TS_9")
    assert read(findings) is None
    only("no-particles", "error", "(TS_01, TS_03)", "found TS_91, TS_93")


def test_tomogram_without_particles(project, findings, only):
    project().replace(PARTICLES, "TS_03", "TS_01")
    assert len(read(findings)) == 5
    only("unused-tomogram", "warning", "1 tomogram without particles", "found TS_03")


def test_only_tomogram(project, findings):
    project()
    particles = read(findings, only_tomogram="TS_03")
    assert list(particles.tomogram) == [-1, -1, 1, 1, 1]
    assert not findings.items
    kept = particles.take(np.flatnonzero(particles.tomogram >= 0))
    assert list(kept.names) == ["TS_03/1", "TS_03/2", "TS_03/3"]
    assert list(kept.columns["rlnTomoName"]) == ["TS_03"] * 3
    # the number that the group has among all particles
    assert set(kept.columns["rlnOpticsGroup"]) == {"2"}
    assert list(kept.optics.columns["rlnOpticsGroup"]) == ["2"]
    assert list(kept.optics.columns["rlnOpticsGroupName"]) == ["optics2"]
    assert list(kept.optics.pixel_size[kept.optics_row]) == [2.7] * 3


@pytest.mark.parametrize("other", ["TS_03//1", "./TS_03/1", "TS_03/./1"])
def test_duplicate_names(project, findings, only, other):
    case = project("rotated_trajectories")
    case.set_value(PARTICLES, "rlnTomoParticleName", 1, "TS_01/1")
    case.set_value(PARTICLES, "rlnTomoParticleName", 3, other)
    read(findings)
    only("duplicate-particle", "error", "2 particle names repeated", "found TS_01/1, TS_03/1")


@pytest.mark.parametrize("name", ["../1", "TS_01/../../1", "/tmp/1", "TS_01/\x07"])
def test_unsafe_particle_names(project, findings, only, name):
    project("rotated_trajectories").set_value(PARTICLES, "rlnTomoParticleName", 1, name)
    read(findings)
    only("unsafe-name", "error", "unsafe particle name", repr(name))


def test_unsafe_tomogram_name(project, findings, only):
    project().set_value(PARTICLES, "rlnTomoName", 1, "..")
    read(findings)
    only("unsafe-name", "error", "unsafe tomogram name", "'..'")


@pytest.mark.parametrize("name", ["None", '""'])
def test_absent_particle_name(project, findings, only, name):
    project("rotated_trajectories").set_value(PARTICLES, "rlnTomoParticleName", 1, name)
    read(findings)
    only("missing-value", "error", "no rlnTomoParticleName", "row 2")


# Optics


def test_optics_are_made_in_order_of_appearance(project, findings):
    case = project()
    case.set_value(PARTICLES, "rlnTomoName", 0, "TS_03")
    particles = read(findings)
    assert {k: list(v) for k, v in particles.optics.columns.items()} == {
        "rlnVoltage": ["300.000000"] * 2,
        "rlnSphericalAberration": ["2.700000"] * 2,
        "rlnAmplitudeContrast": ["0.070000"] * 2,
        "rlnTomoTiltSeriesPixelSize": ["2.700000"] * 2,
        "rlnOpticsGroup": ["1", "2"],
        "rlnOpticsGroupName": ["optics2", "optics1"],
    }
    assert list(particles.columns["rlnOpticsGroup"]) == ["1", "2", "1", "1", "1"]
    assert list(particles.optics_row) == [0, 1, 0, 0, 0]
    assert [len(c) for c in particles.optics.even_zernike] == [0, 0]


def test_one_group_of_several_tomograms(project, findings):
    project("mixed_order_one_optics")
    particles = read(findings)
    assert list(particles.optics.numbers) == [1]
    assert set(particles.columns["rlnOpticsGroup"]) == {"1"}


def test_tomograms_without_a_group_are_groups_of_their_own(project, findings):
    project().rename_label("tomograms.star", "rlnOpticsGroupName")
    assert list(read(findings).optics.columns["rlnOpticsGroupName"]) == ["TS_01", "TS_03"]


@pytest.mark.parametrize("text", ["data_optics\n\n", "data_optics\n\nloop_\n_rlnOpticsGroup\n\n"])
def test_empty_optics_table(project, findings, text):
    case = project()
    case.replace(PARTICLES, "data_particles", f"{text}data_particles")
    assert list(read(findings).optics.numbers) == [1, 2]
    assert not findings.items


def test_groups_go_by_number(project, findings):
    add_optics(project())
    particles = read(findings)
    assert not findings.items
    assert list(particles.optics.numbers) == [95, 69]
    assert list(particles.optics_row) == [1, 1, 0, 0, 0]
    assert list(particles.optics.pixel_size) == [2.7, 2.7]
    assert list(particles.columns["rlnOpticsGroup"]) == ["69", "69", "95", "95", "95"]


def test_aberrations(project, findings):
    project("aberrations_3d")
    optics = read(findings).optics
    assert [len(c) for c in optics.even_zernike] == [9, 9]
    assert optics.odd_zernike[1][0] == -1.6127552


def test_group_that_does_not_exist(project, findings, only):
    add_optics(project(), groups=("69", "7", "95", "8", "95"))
    read(findings)
    only("optics-group", "error", "row 2, 4", "(95, 69), found 7, 8")


def test_group_number_repeated(project, findings, only):
    add_optics(project(), OPTICS.replace("95\tb", "69\tb"), ["69"] * 5)
    read(findings)
    only("optics-group", "error", "table optics", "found 69")


def test_particles_without_a_number_where_there_is_one_group(project, findings):
    case = project()
    case.replace(PARTICLES, "data_particles", OPTICS.replace("95\tb", "#") + "data_particles")
    particles = read(findings)
    assert not findings.items
    assert list(particles.columns["rlnOpticsGroup"]) == ["69"] * 5


def test_particles_without_a_number_where_there_are_more(project, findings, only):
    project().replace(PARTICLES, "data_particles", OPTICS + "data_particles")
    read(findings)
    only("missing-column", "error", "no column rlnOpticsGroup", "table particles")


@pytest.mark.parametrize(
    ("old", "new", "label", "words"),
    [
        ("95\tb\t300", "95\tb\t200", "rlnVoltage", "expected 300 as in tomograms.star for TS_03"),
        ("2.7\t0.07\t2.7\n69", "2.7\t0.1\t2.7\n69", "rlnAmplitudeContrast", "found 0.1"),
        ("2.7\t0.07\t2.7\n69", "2.0\t0.07\t2.7\n69", "rlnSphericalAberration", "found 2"),
        ("0.07\t2.7\n69", "0.07\t2.702\n69", "rlnTomoTiltSeriesPixelSize", "found 2.702"),
    ],
)
def test_optics_that_disagree(project, findings, only, old, new, label, words):
    add_optics(project(), OPTICS.replace(old, new))
    read(findings)
    only("optics-disagree", "error", f"{label} of optics group 95", "tomogram TS_03", words)


def test_groups_written_otherwise_are_filled_from_their_own_tomograms(project, findings):
    case = project()
    case.set_value("tomograms.star", "rlnTomoTiltSeriesPixelSize", 0, "1.35")
    text = OPTICS.replace("_rlnTomoTiltSeriesPixelSize", "_rlnOther")
    add_optics(case, text, ["69.0", "69.0", "95.0", "95.0", "95.0"])
    assert list(read(findings).optics.pixel_size) == [2.7, 1.35]
    assert codes(findings) == ["optics-filled"]


OPTICS_VALUES = {
    "rlnVoltage": "300",
    "rlnSphericalAberration": "2.7",
    "rlnAmplitudeContrast": "0.07",
}


@pytest.mark.parametrize(
    ("text", "code"), [("None", None), ("abc", "not-a-number"), ("nan", "not-finite")]
)
@pytest.mark.parametrize("label", OPTICS_VALUES)
def test_optics_are_numbers_or_absent(project, findings, only, label, text, code):
    """What would be copied is checked by itself, also without tomograms to compare it with."""
    values = {**OPTICS_VALUES, label: text}
    old, new = ("69\ta\t" + "\t".join(v.values()) for v in (OPTICS_VALUES, values))
    add_optics(project(), OPTICS.replace(old, new))
    make_particle_set(read_particle_table(PARTICLES, findings), None, findings)
    if code is None:
        assert not findings.items
    else:
        only(code, "error", label, "table optics, row 2", f"found '{text}'")


def test_optics_that_nearly_agree(project, findings):
    add_optics(project(), OPTICS.replace("0.07\t2.7\n69", "0.07\t2.7009\n69"))
    read(findings)
    assert not findings.items


def test_tomograms_of_one_group_that_disagree(project, findings, only):
    case = project("mixed_order_one_optics")
    case.set_value("tomograms.star", "rlnTomoTiltSeriesPixelSize", 0, "1.35")
    read(findings)
    only(
        "optics-mixed",
        "error",
        "rlnTomoTiltSeriesPixelSize of rlnOpticsGroupName shared in tomograms.star",
        "expected one value, found 2.7 for TS_03; 1.35 for TS_01",
    )


@pytest.mark.parametrize("name", ["TS_01", "TS_03"])
def test_one_tomogram_of_a_group_that_disagrees(project, findings, name):
    """Alone it makes a group of its own values."""
    case = project("mixed_order_one_optics")
    case.set_value("tomograms.star", "rlnTomoTiltSeriesPixelSize", 0, "1.35")
    particles = read(findings, only_tomogram=name)
    assert not findings.items
    assert list(particles.optics.pixel_size) == [1.35 if name == "TS_01" else 2.7]


def test_aberrations_that_are_no_vector(project, findings, only):
    case = project("aberrations_3d")
    case.replace(PARTICLES, "[-0.12959532,", "[x,")
    read(findings)
    only("bad-vector", "error", "rlnEvenZernike", "table optics, row 1")


@pytest.mark.parametrize("text", ["None", '""'])
def test_absent_aberrations(project, findings, text):
    add_optics(project(), OPTICS.replace("_rlnVoltage", "_rlnOddZernike").replace("300", text))
    assert [len(c) for c in read(findings).optics.odd_zernike] == [0, 0]
    assert [finding.code for finding in findings] == ["optics-filled"]  # rlnVoltage


def test_findings_come_together(project, findings):
    case = project("rotated_trajectories")
    case.rename_label(PARTICLES, "rlnCenteredCoordinateXAngst")
    case.set_value(PARTICLES, "rlnTomoParticleName", 1, "TS_01/1")
    case.set_value(PARTICLES, "rlnAngleRot", 1, "nan")
    case.set_value(PARTICLES, "rlnTomoName", 4, "TS_99")
    read(findings)
    assert sorted(codes(findings)) == [
        "duplicate-particle",
        "missing-column",
        "not-finite",
        "unknown-tomogram",
    ]


def test_file_is_checked_without_tomograms(project, findings):
    case = project("rotated_trajectories")
    case.set_value(PARTICLES, "rlnTomoParticleName", 1, "TS_01/1")
    case.set_value(PARTICLES, "rlnAngleRot", 1, "nan")
    table = read_particle_table(PARTICLES, findings)
    assert make_particle_set(table, None, findings) is None
    assert codes(findings) == ["duplicate-particle", "not-finite"]


# Real files, and writing


def test_real_tables(findings):
    root = REAL / "empiar-10164"
    table = read_particle_table(str(root / "Select/job018/particles.star"), findings)
    assert not findings.items
    assert table.particles.n_rows == 9442
    assert table.general == {"rlnTomoSubTomosAre2DStacks": "1"}
    assert table.optics.n_rows == 1
    assert table.tomogram_names() == {"TS_01", "TS_03", "TS_43", "TS_45", "TS_54"}
    picks = read_particle_table(str(root / "Picks/job019/particles.star"), findings)
    assert picks.optics is None
    assert picks.general == {}


def test_written_file_has_three_tables_in_order(tmp_path, project, findings):
    add_optics(project())
    particles = read(findings)
    path = tmp_path / "out.star"
    write_particle_file(path, {"rlnX": "1"}, particles.optics.columns, particles.columns)
    star = read_star(str(path), findings)
    assert list(star.tables) == ["general", "optics", "particles"]
    assert [table.is_list for table in star.tables.values()] == [True, False, False]
    assert path.read_text().count("# version 50001\n") == 3
    for label, values in particles.columns.items():
        assert list(star.tables["particles"].columns[label]) == list(values)


@pytest.mark.parametrize(
    ("subsets", "halves", "found"),
    [
        (["1", "2", "2", "1"], [0, 1, 1, 0], ""),
        (["2.000", "1.0", "1", "1"], [1, 0, 0, 0], ""),
        (["1", "1", "1", "1"], [0, 1, 0, 1], ""),
        (["0", "0", "0", "0"], [0, 1, 0, 1], ""),
        (["0", "1", "2", "1"], [0, 1, 0, 1], "of 1 particle in p.star, table particles, row 1: "),
        (["1", "2", "None", "half"], [0, 1, 0, 1], "row 3, 4: expected 1 or 2, found 'None', 'h"),
        (None, [0, 1, 0, 1], ""),
    ],
)
def test_half_sets(findings, subsets, halves, found):
    """By rlnRandomSubset where it divides all particles in two, else rows in turn."""
    names = np.array(["a", "b", "c", "d"], dtype=object)
    columns = {"rlnTomoParticleName": names}
    if subsets is not None:
        columns["rlnRandomSubset"] = np.array(subsets, dtype=object)
    table = StarTable("particles", columns, path="p.star")
    assert find_halves(table, findings).tolist() == halves
    assert [item.code for item in findings] == ["half-sets"] * bool(found)
    assert found in str(findings.items)
