"""The output tables follow from the input tables and the plan (spec 3.3, 3.4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_models import (
    make_optics,
    make_options,
    make_particle_set,
    make_tomogram,
    make_tomogram_set,
    text,
    text_columns,
)

from relion_pseudosubtomo import labels, merge
from relion_pseudosubtomo.core.geometry import euler_to_matrix
from relion_pseudosubtomo.model import OptimisationSet, ParticleSet, TomogramSet, Trajectories
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.plan import OUTSIDE, make_plan

CENTRE = (100.0, 90.0, 30.0)
OUT_OF_ALL = (100.0, 5.0, 30.0)
OFFSETS = np.array([[2.0, 4.0, -6.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
ANGLES = np.array([[10.0, 20.0, 30.0], [0.0, 0.0, 0.0], [-70.0, 110.0, 5.0]])
BOX_ANGLES = np.array([[40.0, 50.0, 60.0], [0.0, 0.0, 0.0], [15.0, 25.0, -35.0]])
CENTRED = [[" 1.50", "9", "0"], ["8", "8", "8"], ["-4e0", "5", "6"]]


def make_particles(**more: list[str]) -> ParticleSet:
    """Return three particles, the second of them off the images, with all columns of poses."""
    columns: dict[str, list[str]] = {}
    for names, values in (
        (labels.CENTERED_COORDINATE_XYZ, CENTRED),
        (labels.ORIGIN_XYZ, OFFSETS.astype(str).tolist()),
        (labels.ANGLES, ANGLES.astype(str).tolist()),
        (labels.SUBTOMOGRAM_ANGLES, BOX_ANGLES.astype(str).tolist()),
    ):
        for axis, name in enumerate(names):
            columns[name] = [row[axis] for row in values]
    return make_particle_set(
        [CENTRE, OUT_OF_ALL, (80.0, 100.0, 20.0)],
        offset=OFFSETS,
        angles=ANGLES,
        subtomogram_angles=BOX_ANGLES,
        columns=text_columns(**columns, **more),
    )


def merge_rows(
    particle_set: ParticleSet, tomogram_set: TomogramSet | None = None, **changes: Any
) -> Columns:
    """Return the merged particle table."""
    options = make_options(**changes)
    tomogram_set = tomogram_set or make_tomogram_set()
    plan = make_plan(options, tomogram_set, particle_set, None)
    return merge.merge_particles(options, particle_set, tomogram_set, plan)


def numbers(columns: Columns, names: tuple[str, ...]) -> np.ndarray:
    """Return columns as numbers, shape (rows, columns)."""
    return np.array([[float(value) for value in columns[name]] for name in names]).T


# data_particles


def test_kept_rows_keep_their_text() -> None:
    """Unknown columns, and numbers as they are written, survive; dropped rows are gone."""
    rows = merge_rows(make_particles(rlnSomething=["007", "x", "1e5"], rlnOther=["a b", "", "é"]))
    assert rows["rlnSomething"].tolist() == ["007", "1e5"]
    assert rows["rlnOther"].tolist() == ["a b", "é"]
    assert rows[labels.TOMO_NAME].tolist() == ["TS_01", "TS_01"]
    assert rows[labels.PARTICLE_NAME].tolist() == ["TS_01/1", "TS_01/3"]
    assert {len(values) for values in rows.values()} == {2}


def test_columns_of_3d_volumes() -> None:
    """Images and weights; an old list of visible frames goes, the micrograph stays."""
    rows = merge_rows(
        make_particles(
            **{
                labels.VISIBLE_FRAMES: ["[1,1,1]"] * 3,
                labels.IMAGE_NAME: ["old.mrc"] * 3,
                labels.MICROGRAPH_NAME: ["m.mrc"] * 3,
            }
        )
    )
    assert labels.VISIBLE_FRAMES not in rows
    assert rows[labels.MICROGRAPH_NAME].tolist() == ["m.mrc"] * 2
    assert rows[labels.IMAGE_NAME].tolist() == [
        "out/Subtomograms/TS_01/1_data.mrc",
        "out/Subtomograms/TS_01/3_data.mrc",
    ]
    assert rows[labels.CTF_IMAGE].tolist() == [
        "out/Subtomograms/TS_01/1_weights.mrc",
        "out/Subtomograms/TS_01/3_weights.mrc",
    ]
    # RELION's table names the weights even where no such files are written
    assert labels.CTF_IMAGE in merge_rows(make_particles(), no_comb=True)


def test_columns_of_2d_stacks() -> None:
    """Visible frames as a vector without spaces; no weights, no micrograph."""
    rows = merge_rows(
        make_particles(
            **{
                labels.VISIBLE_FRAMES: ["[0]"] * 3,
                labels.CTF_IMAGE: ["old.mrc"] * 3,
                labels.MICROGRAPH_NAME: ["m.mrc"] * 3,
            }
        ),
        stack2d=True,
        max_dose=3.0,
    )
    assert rows[labels.VISIBLE_FRAMES].tolist() == ["[1,1,0]", "[1,1,0]"]
    assert rows[labels.IMAGE_NAME][1] == "out/Subtomograms/TS_01/3_stack2d.mrcs"
    assert labels.CTF_IMAGE not in rows
    assert labels.MICROGRAPH_NAME not in rows


@pytest.mark.parametrize(
    ("output", "start"),
    [("Job/job007/", "Job/job007/"), ("Job/job007", "Job/job007/"), ("./x", "./x/")],
)
def test_paths_start_with_the_directory_as_given(output: str, start: str) -> None:
    """Plus a slash where there is none."""
    options = make_options(output=output)
    assert merge.output_path(options, "particles.star") == start + "particles.star"
    rows = merge_rows(make_particles(), output=output)
    assert rows[labels.IMAGE_NAME][0] == start + "Subtomograms/TS_01/1_data.mrc"


def test_offsets_are_applied() -> None:
    """Coordinates move by -A_sub offset, from the real half of the size; offsets become 0."""
    tomogram = make_tomogram(size_xyz=np.array([201.0, 180.0, 60.0]))
    rows = merge_rows(make_particles(), make_tomogram_set(tomogram))
    coordinate = np.array([CENTRE, (80.0, 100.0, 20.0)])
    moved = coordinate * 2 - np.einsum(
        "nij,nj->ni", euler_to_matrix(BOX_ANGLES[[0, 2]]), OFFSETS[[0, 2]]
    )
    expected = moved - np.array([201.0, 180.0, 60.0])
    found = numbers(rows, labels.CENTERED_COORDINATE_XYZ)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(numbers(rows, labels.ORIGIN_XYZ), 0)
    # the poses stay, as text
    assert rows[labels.ANGLES[0]].tolist() == ["10.0", "-70.0"]
    assert rows[labels.SUBTOMOGRAM_ANGLES[2]].tolist() == ["60.0", "-35.0"]


def test_zero_offsets_are_written_where_the_input_has_none() -> None:
    """RELION's refinement expects the columns."""
    rows = merge_rows(make_particle_set([CENTRE]))
    np.testing.assert_array_equal(numbers(rows, labels.ORIGIN_XYZ), 0)
    np.testing.assert_array_equal(numbers(rows, labels.CENTERED_COORDINATE_XYZ), 0)


def test_offsets_stay_where_they_are_not_applied() -> None:
    """--dont_apply_offsets keeps coordinates and offsets, to the letter."""
    rows = merge_rows(make_particles(), dont_apply_offsets=True)
    for axis in range(3):
        column = [CENTRED[0][axis], CENTRED[2][axis]]
        assert rows[labels.CENTERED_COORDINATE_XYZ[axis]].tolist() == column
        assert rows[labels.ORIGIN_XYZ[axis]].tolist() == OFFSETS[[0, 2], axis].astype(str).tolist()


def test_centred_coordinates_come_from_layout_4_too() -> None:
    """Coordinates from the corner go; centred ones are there, offset applied or not."""
    columns = text_columns(
        **{name: ["77", "88"] for name in labels.COORDINATE_XYZ},
        **{name: ["4", "0"] for name in labels.ORIGIN_XYZ},
    )
    offset = np.array([[4.0, 4.0, 4.0], [0.0, 0.0, 0.0]])
    particle_set = make_particle_set([(110.0, 90, 30), CENTRE], offset=offset, columns=columns)
    for changes, x in (({}, 20.0 - 4.0), ({"dont_apply_offsets": True}, 20.0)):
        rows = merge_rows(particle_set, **changes)
        assert not set(labels.COORDINATE_XYZ) & set(rows)
        assert numbers(rows, labels.CENTERED_COORDINATE_XYZ)[0, 0] == pytest.approx(x)
    assert rows[labels.ORIGIN_XYZ[0]].tolist() == ["4", "0"]


@pytest.mark.parametrize("dont_apply_offsets", [False, True])
def test_orientations_are_applied(dont_apply_offsets: bool) -> None:
    """The box takes the particle's orientation, its own becomes 0; offsets are always applied."""
    rows = merge_rows(
        make_particles(), apply_orientations=True, dont_apply_offsets=dont_apply_offsets
    )
    full = euler_to_matrix(BOX_ANGLES[[0, 2]]) @ euler_to_matrix(ANGLES[[0, 2]])
    found = euler_to_matrix(numbers(rows, labels.SUBTOMOGRAM_ANGLES))
    np.testing.assert_allclose(found, full, atol=1e-7)
    np.testing.assert_array_equal(numbers(rows, labels.ANGLES), 0)
    np.testing.assert_array_equal(numbers(rows, labels.ORIGIN_XYZ), 0)


def test_coordinates_have_enough_digits() -> None:
    """Six decimals: a millionth of an Angstrom."""
    rows = merge_rows(make_particle_set([(100.12345678, 90.0, 30.0)]))
    assert rows[labels.CENTERED_COORDINATE_XYZ[0]].tolist() == ["0.246914"]


def test_each_tomogram_has_its_own_centre_and_pixel_size() -> None:
    """Rows of two tomograms, which differ in both, in the input's mixed order."""
    tomogram_set = make_tomogram_set(
        make_tomogram(), make_tomogram("TS_02", size_xyz=np.array([180.0, 180, 60]), pixel_size=3.0)
    )
    particle_set = make_particle_set([CENTRE, (80.0, 90, 30), CENTRE], [1, 0, 0])
    rows = merge_rows(particle_set, tomogram_set)
    assert rows[labels.TOMO_NAME].tolist() == ["TS_01", "TS_01", "TS_02"]
    x = numbers(rows, labels.CENTERED_COORDINATE_XYZ)[:, 0]
    np.testing.assert_allclose(x, [(80 - 100) * 2, 0, (100 - 90) * 3])


# data_general and data_optics


@pytest.mark.parametrize(("changes", "value"), [({}, "0"), ({"stack2d": True}, "1")])
def test_general(changes: dict[str, bool], value: str) -> None:
    """The input's other labels are kept."""
    general = {"rlnSomething": "5", labels.ARE_2D_STACKS: "9", "rlnLast": "x"}
    particle_set = make_particle_set([CENTRE], general=general)
    found = merge.merge_general(make_options(**changes), particle_set)
    assert found == {**general, labels.ARE_2D_STACKS: value}
    empty = merge.merge_general(make_options(**changes), make_particle_set([CENTRE]))
    assert empty == {labels.ARE_2D_STACKS: value}


def make_two_groups() -> ParticleSet:
    """Return a particle of the first of two optics groups, numbered 69 and 95."""
    columns = text_columns(
        rlnOpticsGroup=["69", "95"],
        rlnOpticsGroupName=["a", "b"],
        rlnImageSize=["7", "7"],
        rlnMtfFileName=["mtf.star", "mtf.star"],
    )
    optics = make_optics([2.0, 3.5], columns=columns, numbers=np.array([69, 95]))
    return make_particle_set([CENTRE], optics=optics)


@pytest.mark.parametrize(
    ("changes", "premultiplied", "dimension"),
    [
        ({}, "1", "3"),
        ({"no_ctf": True}, "1", "3"),
        ({"stack2d": True}, "1", "2"),
        ({"stack2d": True, "no_ctf": True}, "0", "2"),
    ],
)
def test_optics(changes: dict[str, bool], premultiplied: str, dimension: str) -> None:
    """What is true of the new images, for every group; no group is dropped."""
    particle_set = make_two_groups()
    options = make_options(binning=1.5, **changes)
    optics = merge.merge_optics(options, particle_set, make_tomogram_set())
    assert optics["rlnOpticsGroup"].tolist() == ["69", "95"]
    assert optics["rlnOpticsGroupName"].tolist() == ["a", "b"]
    assert optics["rlnMtfFileName"].tolist() == ["mtf.star"] * 2
    assert optics[labels.CTF_PREMULTIPLIED].tolist() == [premultiplied] * 2
    assert optics[labels.IMAGE_DIMENSIONALITY].tolist() == [dimension] * 2
    assert optics[labels.IMAGE_SIZE].tolist() == ["16", "16"]
    np.testing.assert_allclose(numbers(optics, (labels.SUBTOMOGRAM_BINNING,)), 1.5)
    pixel_size = numbers(optics, (labels.IMAGE_PIXEL_SIZE,))[:, 0]
    np.testing.assert_allclose(pixel_size, [3.0, 5.25], atol=1e-6)
    assert labels.CTF_CORRECTED not in optics
    # the input's own table is left alone
    assert particle_set.optics.columns[labels.IMAGE_SIZE].tolist() == ["7", "7"]


def test_optics_of_true_subtomograms() -> None:
    """The reconstruction's binning and box; already corrected for the CTF (2.11)."""
    tomograms = make_tomogram_set(make_tomogram(), make_tomogram("TS_02", tomogram_binning=4.0))
    options = make_options(real_subtomo=True, crop=26)
    optics = merge.merge_optics(options, make_two_groups(), tomograms)
    assert optics[labels.CTF_CORRECTED].tolist() == ["1", "1"]
    assert optics[labels.CTF_PREMULTIPLIED].tolist() == ["0", "0"]
    assert optics[labels.IMAGE_DIMENSIONALITY].tolist() == ["2", "2"]
    assert optics[labels.IMAGE_SIZE].tolist() == ["14", "14"]
    np.testing.assert_allclose(numbers(optics, (labels.SUBTOMOGRAM_BINNING,)), 4.0)
    pixel_size = numbers(optics, (labels.IMAGE_PIXEL_SIZE,))[:, 0]
    np.testing.assert_allclose(pixel_size, [8.0, 14.0], atol=1e-6)


def test_the_least_tilted_projection() -> None:
    """particles_for_class2d.star: image k of the visible frames, without weights (2.11)."""
    tomogram = make_tomogram(nominal_tilt=np.array([-28.0, 2.0, 29.0]), tomogram_binning=4.0)
    particle_set = make_particle_set([CENTRE, (10.0, 90.0, 30.0)])
    options = make_options(real_subtomo=True)
    tomogram_set = make_tomogram_set(tomogram)
    plan = make_plan(options, tomogram_set, particle_set, None)
    rows = merge.merge_particles(options, particle_set, tomogram_set, plan)
    class2d = merge.merge_class2d(tomogram_set, plan, rows)
    # the second particle is not visible in the untilted frame
    assert class2d[labels.IMAGE_NAME].tolist() == [
        "2@out/Subtomograms/TS_01/1_data.mrc",
        "1@out/Subtomograms/TS_01/2_data.mrc",
    ]
    assert plan.tasks[0].visible.tolist() == [[True] * 3, [True, False, True]]
    assert set(rows) - set(class2d) == {labels.CTF_IMAGE}


# dropped.star, optimisation_set.star


def test_dropped() -> None:
    """Tomogram, particle and one reason."""
    particle_set = make_particles()
    plan = make_plan(make_options(), make_tomogram_set(), particle_set, None)
    dropped = merge.merge_dropped(particle_set, plan)
    assert {label: list(values) for label, values in dropped.items()} == {
        labels.TOMO_NAME: ["TS_01"],
        labels.PARTICLE_NAME: ["TS_01/2"],
        labels.DROP_REASON: [OUTSIDE],
    }


@pytest.mark.parametrize(
    ("file", "n_tables", "by_order", "positions", "expected"),
    [
        (None, 0, False, [CENTRE, OUT_OF_ALL], None),
        ("motion.star", 2, False, [CENTRE, CENTRE], "motion.star"),
        ("motion.star", 2, False, [CENTRE, OUT_OF_ALL], "out/motion.star"),
        ("motion.star", 3, False, [CENTRE, CENTRE], "out/motion.star"),
        ("motion.star", 2, True, [CENTRE, CENTRE], "out/motion.star"),
    ],
)
def test_optimisation_set(
    file: str | None,
    n_tables: int,
    by_order: bool,
    positions: list[tuple[float, ...]],
    expected: str | None,
) -> None:
    """New trajectories only where those that are given do not fit; other entries stay."""
    plan = make_plan(make_options(), make_tomogram_set(), make_particle_set(positions), None)
    given = OptimisationSet("p.star", "t.star", file, {"rlnTomoReferenceFscFile": "f.star"})
    trajectories = None if file is None else Trajectories(file, (), n_tables, by_order)
    own_trajectories = merge.needs_trajectory_file(trajectories, plan)
    merged = merge.merge_optimisation_set(make_options(), given, own_trajectories)
    assert merged == OptimisationSet(
        "out/particles.star", "t.star", expected, {"rlnTomoReferenceFscFile": "f.star"}
    )


def test_text_column() -> None:
    """An object array of text, also of one value."""
    column = merge.text_column([1.0], "{:.2f}")
    assert column.dtype == object
    assert column.tolist() == text(["1.00"]).tolist()
