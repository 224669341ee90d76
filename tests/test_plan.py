"""Which particles survive, why the others do not, and where files go (spec 2.1 to 2.3, 3.1)."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from oracle import spec_extraction as oracle
from small_models import make_options, make_particle_set, make_tomogram, make_tomogram_set

from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.model import Deformation, Task, TomogramSet, Trajectories
from relion_pseudosubtomo.placement import place_particles
from relion_pseudosubtomo.plan import (
    DROP_REASONS,
    FAILED_TOMOGRAM,
    FEW_VISIBLE,
    FEW_WITHIN_DOSE,
    MANY_MISSING,
    NOT_COMMON,
    OUTSIDE,
    UNKNOWN_TOMOGRAM,
    Plan,
    common_tilts,
    leave_out_tasks,
    make_plan,
    output_stems,
    within_dose,
)

#: Positions in the default tomogram, 200 x 180 x 60 pixels with tilts of -30, 0 and 30 degrees,
#: for the default cropped box, whose half is 16 pixels.
CENTRE = (100.0, 90.0, 30.0)
OUT_OF_ALL = (100.0, 5.0, 30.0)
IN_TILTED_ONLY = (10.0, 90.0, 30.0)  # x is 22.1 at 30 degrees, 10 untilted


def reason_of(plan: Plan) -> dict[int, str]:
    """Return row -> reason."""
    return dict(zip(plan.dropped_rows.tolist(), plan.dropped_reasons, strict=True))


# Who is dropped, and why


@pytest.mark.parametrize(
    ("place", "position", "options", "reason"),
    [
        (0, CENTRE, {}, None),
        (-1, CENTRE, {}, UNKNOWN_TOMOGRAM),
        (1, CENTRE, {}, FAILED_TOMOGRAM),
        (0, OUT_OF_ALL, {}, OUTSIDE),
        (0, OUT_OF_ALL, {"min_frames": 3, "max_dose": 1.0}, OUTSIDE),
        (0, IN_TILTED_ONLY, {}, None),
        (0, IN_TILTED_ONLY, {"min_frames": 2}, None),
        (0, IN_TILTED_ONLY, {"min_frames": 3}, FEW_VISIBLE),
        (0, IN_TILTED_ONLY, {"min_frames": 3, "max_dose": 1.0}, FEW_VISIBLE),
        (0, IN_TILTED_ONLY, {"min_frames": 2, "max_dose": 4.0}, FEW_WITHIN_DOSE),
        (0, CENTRE, {"min_frames": 2, "max_dose": 2.9}, FEW_WITHIN_DOSE),
        (0, CENTRE, {"min_frames": 2, "max_dose": 3.0}, None),
        (0, CENTRE, {"min_frames": 4}, FEW_VISIBLE),
        (0, CENTRE, {"min_frames": 3, "max_dose": 0.0}, None),
        (0, CENTRE, {"min_frames": 3, "max_dose": -1.0}, None),
        (0, CENTRE, {"common_tilts": 3}, None),
        (0, CENTRE, {"common_tilts": 4}, NOT_COMMON),  # there are only three
        (0, CENTRE, {"common_tilts": 2, "max_dose": 2.9}, NOT_COMMON),
        (0, IN_TILTED_ONLY, {"common_tilts": 1}, None),
        (0, IN_TILTED_ONLY, {"common_tilts": 2}, NOT_COMMON),
        (0, IN_TILTED_ONLY, {"common_tilts": 3, "min_frames": 3}, FEW_VISIBLE),
        (0, OUT_OF_ALL, {"common_tilts": 1, "max_missing": 0}, OUTSIDE),
        (0, CENTRE, {"max_missing": 0}, None),
        (0, IN_TILTED_ONLY, {"max_missing": 1}, None),
        (0, IN_TILTED_ONLY, {"max_missing": 0}, MANY_MISSING),
        (0, IN_TILTED_ONLY, {"max_missing": 0, "max_dose": 2.9}, None),
        (0, IN_TILTED_ONLY, {"max_missing": 0, "max_dose": 3.0}, MANY_MISSING),
        (0, IN_TILTED_ONLY, {"max_missing": 0, "common_tilts": 2}, MANY_MISSING),
    ],
)
def test_the_reason_of_each_dropped_particle(
    place: int, position: tuple[float, ...], options: dict[str, float], reason: str | None
) -> None:
    """The first reason that holds; a particle beside it is kept."""
    tomogram_set = TomogramSet(
        "tomograms.star", (make_tomogram(), make_tomogram("TS_02")), failed={"TS_02": "unreadable"}
    )
    particle_set = make_particle_set([position, CENTRE], [place, 0])
    plan = make_plan(make_options(**options), tomogram_set, particle_set, None)
    assert reason_of(plan).get(0) == reason
    kept = set(plan.kept_rows.tolist())
    assert kept | set(reason_of(plan)) == {0, 1}
    assert not kept & set(reason_of(plan))


def test_every_particle_is_kept_or_has_one_reason() -> None:
    """A mix of all: rows ascending, each reason as often as it should be."""
    tomograms = (make_tomogram(), make_tomogram("TS_02"), make_tomogram("TS_03"))
    tomogram_set = TomogramSet("tomograms.star", tomograms, failed={"TS_03": "truncated"})
    positions = [CENTRE, OUT_OF_ALL, CENTRE, IN_TILTED_ONLY, CENTRE, OUT_OF_ALL, CENTRE]
    particle_set = make_particle_set(positions, [1, 0, -1, 1, 0, 2, 2])
    options = make_options(min_frames=2, max_dose=4.0)
    plan = make_plan(options, tomogram_set, particle_set, None)
    assert plan.kept_rows.tolist() == [4, 0]
    assert plan.dropped_rows.tolist() == [1, 2, 3, 5, 6]
    assert Counter(plan.dropped_reasons) == {
        OUTSIDE: 1,
        UNKNOWN_TOMOGRAM: 1,
        FEW_WITHIN_DOSE: 1,
        FAILED_TOMOGRAM: 2,
    }
    assert set(plan.dropped_reasons) <= set(DROP_REASONS)
    assert len(set(DROP_REASONS)) == len(DROP_REASONS)


def test_nothing_survives() -> None:
    """No task, no kept row, a reason for each; the run says so, not the plan."""
    plan = make_plan(
        make_options(), make_tomogram_set(), make_particle_set([OUT_OF_ALL, OUT_OF_ALL]), None
    )
    assert plan.tasks == ()
    assert plan.kept_rows.tolist() == []
    assert plan.dropped_reasons == (OUTSIDE, OUTSIDE)
    assert plan.position.shape == (0, 3)


def test_visible_frames() -> None:
    """One flag a frame, of the cropped box, with the dose."""
    particle_set = make_particle_set([CENTRE, IN_TILTED_ONLY])
    visible = make_plan(make_options(), make_tomogram_set(), particle_set, None).tasks[0].visible
    assert visible.tolist() == [[True, True, True], [True, False, True]]
    options = make_options(max_dose=3.0)
    visible = make_plan(options, make_tomogram_set(), particle_set, None).tasks[0].visible
    assert visible.tolist() == [[True, True, False], [True, False, False]]
    # half the cropped box counts, not half the box
    options = make_options(box=80, crop=8)
    visible = make_plan(options, make_tomogram_set(), particle_set, None).tasks[0].visible
    assert visible.all()


@pytest.mark.parametrize(
    ("max_dose", "flags"),
    [(-1, [1, 1, 1]), (0, [1, 1, 1]), (2.5, [1, 0, 0]), (3, [1, 1, 0]), (100, [1, 1, 1])],
)
def test_within_dose(max_dose: float, flags: list[int]) -> None:
    """At most the maximum; 0 or less means all."""
    found = within_dose(make_options(max_dose=max_dose), make_tomogram())
    assert found.tolist() == [bool(flag) for flag in flags]


@pytest.mark.parametrize(
    ("n", "flags"),
    [
        (None, [1, 1, 1, 1, 1]),
        (1, [0, 1, 0, 0, 0]),
        (2, [0, 1, 0, 1, 0]),
        (3, [1, 1, 0, 1, 0]),
        (5, [1, 1, 1, 1, 1]),
        (9, [1, 1, 1, 1, 1]),
    ],
)
def test_common_tilts(n: int | None, flags: list[int]) -> None:
    """The lowest doses, of equal ones the first; only these are visible, and in all particles."""
    tomogram = make_tomogram(
        tilts=(-20.0, 0.0, 20.0, 10.0, 30.0), pre_exposure=np.array([3.0, 0.0, 3.0, 0.0, 6.0])
    )
    options = make_options(common_tilts=n)
    assert common_tilts(options, tomogram).tolist() == [bool(flag) for flag in flags]
    if n is not None and n <= tomogram.n_frames:
        particle_set = make_particle_set([CENTRE, (101.0, 91.0, 31.0)])
        plan = make_plan(options, make_tomogram_set(tomogram), particle_set, None)
        assert plan.tasks[0].visible.tolist() == [[bool(flag) for flag in flags]] * 2


# Order and files


def test_rows_are_grouped_by_tomogram_in_the_tomogram_sets_order() -> None:
    """Inside a tomogram in input order; tomograms without particles have no task."""
    tomograms = [make_tomogram(f"TS_0{i}") for i in (1, 2, 3, 4)]
    particle_set = make_particle_set([CENTRE] * 6, [3, 1, 3, 0, 1, 3])
    plan = make_plan(make_options(), make_tomogram_set(*tomograms), particle_set, None)
    assert plan.kept_rows.tolist() == [3, 1, 4, 0, 2, 5]
    assert [task.number for task in plan.tasks] == [0, 1, 2]
    assert [task.tomogram for task in plan.tasks] == [0, 1, 3]
    for task in plan.tasks:
        assert len(task) == len(task.stems) == len(task.visible)
        assert list(task.stems) == [f"Subtomograms/{particle_set.names[r]}" for r in task.rows]


def test_names_with_a_slash_are_paths() -> None:
    """The first row of the input decides, before anything is dropped."""
    particle_set = make_particle_set([CENTRE] * 2, names=["TS_01/1", "TS_01/2"])
    stems = output_stems(particle_set, make_tomogram_set())
    assert stems == ["Subtomograms/TS_01/1", "Subtomograms/TS_01/2"]
    mixed = make_particle_set([OUT_OF_ALL, CENTRE], names=["a/1", "2"])
    plan = make_plan(make_options(), make_tomogram_set(), mixed, None)
    assert plan.tasks[0].stems == ("Subtomograms/2",)


def test_names_without_a_slash_get_the_tomograms_folder() -> None:
    """Also those of later rows that have one; unknown tomograms have no folder."""
    tomograms = make_tomogram_set(make_tomogram(), make_tomogram("TS_02"))
    particle_set = make_particle_set(
        [CENTRE] * 4, [0, 1, 1, -1], names=["p1", "p1", "odd/p2", "p3"]
    )
    assert output_stems(particle_set, tomograms) == [
        "Subtomograms/TS_01/p1",
        "Subtomograms/TS_02/p1",
        "Subtomograms/TS_02/odd/p2",
        "",
    ]


def test_two_particles_with_one_file_are_refused() -> None:
    """Tomogram T with particle 1/a, and tomogram T/1 with particle a, meet in one path."""
    tomograms = make_tomogram_set(make_tomogram("T"), make_tomogram("T/1"))
    particle_set = make_particle_set([CENTRE] * 3, [0, 0, 1], names=["0", "1/a", "a"])
    with pytest.raises(InputError, match=r"particles\.star.*same file"):
        make_plan(make_options(), tomograms, particle_set, None)
    # apart from that the particles are fine
    apart = make_particle_set([CENTRE] * 3, [0, 0, 1], names=["0", "1/a", "b"])
    assert len(make_plan(make_options(), tomograms, apart, None).kept_rows) == 3


def test_unknown_tomograms_do_not_collide() -> None:
    """Two particles that are dropped anyway need no file."""
    particle_set = make_particle_set([CENTRE] * 3, [0, -1, -1], names=["a", "b", "b"])
    assert make_plan(make_options(), make_tomogram_set(), particle_set, None).kept_rows == [0]


def test_a_plan_without_failed_tasks() -> None:
    """With --allow_failures a failed tomogram's particles join the dropped ones, in row order."""
    tomograms = [make_tomogram(f"TS_0{i}") for i in (1, 2, 3)]
    particle_set = make_particle_set([CENTRE, OUT_OF_ALL, CENTRE, CENTRE, CENTRE], [1, 0, 0, 2, 1])
    plan = make_plan(make_options(), make_tomogram_set(*tomograms), particle_set, None)
    assert leave_out_tasks(plan, set()) is plan
    rest = leave_out_tasks(plan, {1})
    assert rest.kept_rows.tolist() == [2, 3]
    assert [task.tomogram for task in rest.tasks] == [0, 2]
    assert reason_of(rest) == {0: FAILED_TOMOGRAM, 1: OUTSIDE, 4: FAILED_TOMOGRAM}
    assert rest.dropped_rows.tolist() == [0, 1, 4]
    np.testing.assert_array_equal(rest.position, plan.position[[0, 3]])
    np.testing.assert_array_equal(rest.particle_rotation, plan.particle_rotation[[0, 3]])


# Positions


def test_offsets_move_the_particle_unless_told_otherwise() -> None:
    """--dont_apply_offsets leaves it, --apply_orientations wins over that."""
    particle_set = make_particle_set(
        [CENTRE],
        offset=np.array([[8.0, 0.0, 0.0]]),
        subtomogram_angles=np.array([[0.0, 0.0, 90.0]]),
    )
    moved = [100, 90 + 4, 30]  # the box is turned by 90 degrees about z; 8 A are 4 pixels
    for changes, expected in (
        ({}, moved),
        ({"dont_apply_offsets": True}, list(CENTRE)),
        ({"apply_orientations": True}, moved),
        ({"apply_orientations": True, "dont_apply_offsets": True}, moved),
    ):
        plan = make_plan(make_options(**changes), make_tomogram_set(), particle_set, None)
        np.testing.assert_allclose(plan.position, [expected], atol=1e-9)


def test_trajectories_move_the_particle_in_each_frame() -> None:
    """In Angstrom, looked up by row; the position itself stays."""
    particle_set = make_particle_set([CENTRE, CENTRE])
    away = np.zeros((3, 3))
    away[1, 1] = -2 * 80.0
    trajectories = Trajectories("motion.star", (np.zeros((3, 3)), away), 2)
    plan = make_plan(make_options(), make_tomogram_set(), particle_set, trajectories)
    assert plan.tasks[0].visible.tolist() == [[True] * 3, [True, False, True]]
    np.testing.assert_array_equal(plan.position, [CENTRE, CENTRE])


def test_deformations_move_the_image_point() -> None:
    """A stretch of the second image by 2 takes a particle out of it."""
    coefficients = np.zeros((3, 3))
    coefficients[1, 0] = 1.0
    tomogram = make_tomogram(deformation=Deformation("linear", (0, 0), coefficients))
    particle_set = make_particle_set([(150.0, 90.0, 30.0), CENTRE])
    plan = make_plan(make_options(), make_tomogram_set(tomogram), particle_set, None)
    assert plan.tasks[0].visible.tolist() == [[True, False, True], [True] * 3]


@pytest.mark.parametrize("kind", ["", "linear", "Fourier", "spline"])
@pytest.mark.parametrize("apply_orientations", [False, True])
def test_placement_agrees_with_the_specification(kind: str, apply_orientations: bool) -> None:
    """Offsets, orientations, movement, deformation and odd sizes together (2.1, 2.2)."""
    rng = np.random.default_rng(1)
    n, tilts = 4, (-40.0, -10.0, 20.0)
    size = np.array([201.0, 180.0, 61.0])
    n_coefficients = {"": 0, "linear": 3, "Fourier": 28, "spline": 96}[kind]
    coefficients = rng.normal(0, 0.2, (len(tilts), n_coefficients))
    model = Deformation(kind, (4, 3), coefficients) if kind else None
    tomogram = make_tomogram(tilts=tilts, size_xyz=size, deformation=model)
    angles = rng.uniform(-180, 180, (2, n, 3))
    shifts = rng.normal(0, 10, (n, len(tilts), 3))
    particle_set = make_particle_set(
        rng.uniform(30, 150, (n, 3)),
        offset=rng.normal(0, 5, (n, 3)),
        subtomogram_angles=angles[0],
        angles=angles[1],
    )
    options = make_options(apply_orientations=apply_orientations)
    rows = np.array([2, 0])
    moving = Trajectories("motion.star", tuple(shifts), len(shifts))
    placed = place_particles(options, tomogram, particle_set, moving.stack(rows), rows)
    plain = oracle.Tomogram(
        name="TS_01",
        frames=[
            oracle.Frame(
                image=np.zeros((180, 200)),
                projection=tomogram.projections[f],
                dose=0,
                defocus_u=0,
                defocus_v=0,
                defocus_angle=0,
                deformation=coefficients[f] if kind else None,
            )
            for f in range(len(tilts))
        ],
        size_xyz=size,
        pixel_size=2.0,
        hand=1,
        voltage=300,
        spherical_aberration=2.7,
        amplitude_contrast=0.1,
        deformation_type=kind,
        deformation_grid=(4, 3),
    )
    plain_options = oracle.Options(
        box=24, crop=16, binning=2, apply_orientations=apply_orientations
    )
    for i, row in enumerate(rows):
        particle = oracle.Particle(
            "p",
            particle_set.coordinate[row],
            particle_set.offset[row],
            oracle.euler_to_matrix(*angles[0, row]),
            oracle.euler_to_matrix(*angles[1, row]),
            shifts[row],
        )
        position = oracle.particle_position(particle, plain, plain_options)
        np.testing.assert_allclose(placed.position[i], position, atol=1e-9)
        for f in range(len(tilts)):
            point = oracle.image_point(particle, plain, f, plain_options)
            np.testing.assert_allclose(placed.image_point[i, f], point, atol=1e-9)
        box = particle.a_full if apply_orientations else particle.a_sub
        np.testing.assert_allclose(placed.box_rotation[i], box, atol=1e-12)
        np.testing.assert_allclose(placed.particle_rotation[i], particle.a_full, atol=1e-12)


def test_where_the_particles_lie() -> None:
    """Median point and image size; shares of the tomogram, of dropped particles too."""
    positions = np.stack(
        [np.linspace(0, 200, 21), np.linspace(90, 90, 21), np.full(21, 30.0)], axis=1
    )
    plan = make_plan(make_options(), make_tomogram_set(), make_particle_set(positions), None)
    where = plan.projected
    assert where.median_point == pytest.approx((100, 90))
    assert where.median_image_size == (200, 180)
    assert where.low == pytest.approx((0.05, 0.5))
    assert where.high == pytest.approx((0.95, 0.5))
    assert len(plan.dropped_rows) > 0


def test_a_part_of_a_task() -> None:
    """A range of particles knows its place among the tomogram's."""
    particle_set = make_particle_set([CENTRE] * 5)
    task = make_plan(make_options(), make_tomogram_set(), particle_set, None).tasks[0]
    part = task.part(1, 4).part(1, 3)
    assert part.first == 2
    assert part.rows.tolist() == [2, 3]
    assert part.stems == task.stems[2:4]
    assert replace(part, first=0, rows=task.rows).number == task.number


def test_a_task_survives_pickling() -> None:
    """What is sent to another rank, packed, comes out as it went in."""
    rng = np.random.default_rng(4)
    task = Task(3, 1, 7, np.arange(5), tuple("abcde"), rng.random((5, 13)) < 0.5)
    copy = pickle.loads(pickle.dumps(task))
    assert (copy.number, copy.tomogram, copy.first, copy.stems) == (3, 1, 7, task.stems)
    np.testing.assert_array_equal(copy.rows, task.rows)
    np.testing.assert_array_equal(copy.visible, task.visible)
    assert copy.visible.dtype == bool


def test_output_paths_do_not_depend_on_which_rows_are_taken() -> None:
    """The first row of the file decides, also where only other rows are extracted."""
    tomograms = make_tomogram_set(make_tomogram())
    whole = make_particle_set(np.full((2, 3), 100.0), names=["folder/a", "b"])
    whole = replace(whole, first_name="folder/a")
    assert output_stems(whole.take(np.array([1])), tomograms) == ["Subtomograms/b"]
