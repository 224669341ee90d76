"""What the log says of dropped particles, and the figures of a run."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from small_models import make_options, make_particle_set, make_tomogram, make_tomogram_set

from relion_pseudosubtomo.model import ParticleSet, TaskResult
from relion_pseudosubtomo.plan import (
    FAILED_TOMOGRAM,
    MANY_MISSING,
    OUTSIDE,
    Plan,
    leave_out_tasks,
    make_plan,
)
from relion_pseudosubtomo.summary import (
    RunSummary,
    count_dropped,
    drop_lines,
    judge_coordinates,
    plan_lines,
    start_summary,
)

#: The default tomogram.
SIZE = np.array([200.0, 180.0, 60.0])
CENTRE = (100.0, 90.0, 30.0)
OUT_OF_ALL = (100.0, 5.0, 30.0)


def plan_of(particle_set: ParticleSet, **changes: object) -> Plan:
    """Return the plan of particles in the default tomogram."""
    return make_plan(make_options(**changes), make_tomogram_set(), particle_set, None)


def true_positions(n: int = 200) -> np.ndarray:
    """Return positions all over the tomogram, from its corner."""
    return np.random.default_rng(1).uniform(0.1, 0.9, (n, 3)) * SIZE


# Dropped particles


def test_nothing_dropped_nothing_said() -> None:
    """No line at all."""
    plan = plan_of(make_particle_set([CENTRE] * 5))
    assert drop_lines(plan) == []
    assert judge_coordinates(plan, 5) is None


def test_one_line_a_reason() -> None:
    """With the count; below a fifth of the particles no diagnosis."""
    particle_set = make_particle_set(
        [CENTRE] * 10 + [OUT_OF_ALL, (10.0, 90, 30)] + [CENTRE] * 3, [0] * 12 + [-1] * 3
    )
    plan = plan_of(particle_set, min_frames=3)
    assert judge_coordinates(plan, 15) is None
    assert drop_lines(plan) == [
        "Dropped 3: tomogram not in the tomogram set",
        "Dropped 1: outside the image in all frames",
        "Dropped 1: too few visible frames",
    ]


def test_what_options_ask_for_is_not_suspicious() -> None:
    """Particles that --max_missing leaves out say nothing about the coordinates."""
    particle_set = make_particle_set([CENTRE] * 10 + [(10.0, 90, 30)] * 5)
    plan = plan_of(particle_set, max_missing=0)
    assert drop_lines(plan) == [f"Dropped 5: {MANY_MISSING}"]
    assert judge_coordinates(plan, 15) is None


@pytest.mark.parametrize(("n_dropped", "has_diagnosis"), [(2, False), (3, True)])
def test_diagnosis_above_a_fifth(n_dropped: int, has_diagnosis: bool) -> None:
    """Exactly a fifth is not above; particles of unknown tomograms do not count."""
    positions = [CENTRE] * (10 - n_dropped) + [OUT_OF_ALL] * n_dropped + [CENTRE] * 20
    particle_set = make_particle_set(positions, [0] * 10 + [-1] * 20)
    text = judge_coordinates(plan_of(particle_set), 30)
    assert (text is not None) == has_diagnosis
    if text is not None:
        assert text.endswith("0% of the particles outside them, 30% dropped")
        assert "(100, 90) in tilt images of 200 x 180 pixels" in text


def diagnosis(positions: np.ndarray, **changes: object) -> str:
    """Return the diagnosis of a plan that drops many particles."""
    text = judge_coordinates(plan_of(make_particle_set(positions), **changes), len(positions))
    assert text is not None
    return text


def test_coordinates_from_the_corner_read_as_centred() -> None:
    """They lie around the tomogram's far corner."""
    assert "look not centred" in diagnosis(true_positions() + SIZE / 2)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_coordinates_from_the_centre_read_as_from_the_corner(share: float) -> None:
    """The mirror of that, also where particles fill a part of the tomogram only: not binned."""
    text = diagnosis(share * (true_positions() - SIZE / 2))
    assert "from the tomogram's centre where they are taken to count from its corner" in text


@pytest.mark.parametrize("binning", [4, 8])
def test_binned_coordinates(binning: int) -> None:
    """They fill one corner."""
    assert "look binned" in diagnosis(true_positions() / binning)


@pytest.mark.parametrize("factor", [1.8, 4.0])
def test_scaled_coordinates(factor: float) -> None:
    """Centred ones times a wrong factor spread over more than the tomogram."""
    positions = SIZE / 2 + factor * (true_positions() - SIZE / 2)
    assert "look scaled" in diagnosis(positions)


def test_good_coordinates_with_a_large_box() -> None:
    """All over the tomogram: the coordinates are not to blame."""
    text = diagnosis(true_positions(), box=64, crop=64)
    assert "neither binned nor off centre" in text
    assert "--crop" in text


def test_missing_tomogram_sizes() -> None:
    """Nothing can be said of shares of a size that is not known."""
    tomogram = make_tomogram(size_xyz=np.full(3, -999.0))
    particle_set = make_particle_set([OUT_OF_ALL] * 4)
    plan = make_plan(make_options(), make_tomogram_set(tomogram), particle_set, None)
    assert "cannot be judged" in str(judge_coordinates(plan, 4))


def test_no_known_tomogram_no_diagnosis() -> None:
    """With nothing placed there is nothing to divide by."""
    plan = plan_of(make_particle_set([CENTRE] * 2, [-1, -1]))
    assert judge_coordinates(plan, 2) is None
    assert drop_lines(plan) == ["Dropped 2: tomogram not in the tomogram set"]


# Figures of a run


def test_summary_adds_up() -> None:
    """Counts, times and failures, in the log's lines and as JSON."""
    particle_set = make_particle_set([CENTRE] * 6 + [OUT_OF_ALL] * 2)
    plan = plan_of(particle_set)
    assert count_dropped(plan) == {"outside the image in all frames": 2}
    summary = start_summary(plan, make_tomogram_set(), particle_set, ranks=2, threads=4)
    for rank, first in ((0, 0), (1, 4)):
        result = TaskResult(
            number=0,
            first=first,
            n_particles=3,
            bytes_written=1_500_000,
            seconds_loading=0.5,
            n_clipped=7,
            n_not_finite=11,
        )
        summary.add("TS_01", rank, result)
    summary.private_memory.update({0: 1_000_000_000, 1: 2_000_000_000})
    summary.failures["TS_02"] = "no such file"
    summary.close(seconds=5.0, extracting_seconds=4.0, busy={0: 4.0, 1: 2.0})
    assert (summary.n_clipped, summary.n_not_finite) == (14, 22)
    bad_pixels, clipped = summary.warnings()
    assert bad_pixels.startswith("TS_01: 22 pixels read were NaN or infinite")
    assert clipped == "TS_01: 14 values beyond float16's range were clipped"
    assert summary.particles_per_second == 1.5
    assert summary.efficiency == 0.75
    text = "\n".join(summary.lines())
    for part in (
        "8 particles in, 6 kept, 2 dropped, in 1 tomogram",
        "3.0 MB",
        "1.5 particles/s",
        "2 ranks x 4 threads",
        "efficiency 75%",
        "2.00 GB",
        "Dropped 2: outside the image in all frames",
        "TS_02: no such file",
    ):
        assert part in text
    again = json.loads(json.dumps(asdict(summary)))
    assert [item["first"] for item in again["tomograms"]] == [0, 4]
    assert again["dropped"] == {"outside the image in all frames": 2}
    assert again["by_tomogram"] == {"TS_01": {"kept": 6, "dropped": 2}}
    assert [(item["kept"], item["dropped"]) for item in again["tomograms"]] == [(6, 2)] * 2


def test_a_summary_of_nothing_done() -> None:
    """No division by zero."""
    particle_set = make_particle_set([CENTRE])
    summary = start_summary(
        plan_of(particle_set), make_tomogram_set(), particle_set, ranks=1, threads=1
    )
    summary.close(seconds=0.0, extracting_seconds=0.0, busy={})
    assert "0.0 particles/s" in "\n".join(summary.lines())


def plan_of_three() -> tuple[Plan, RunSummary]:
    """Return a plan of three tomograms, of the last of which nothing is kept, and its summary."""
    tomogram_set = make_tomogram_set(*(make_tomogram(f"TS_0{i}") for i in (1, 2, 3)))
    positions = [CENTRE] * 5 + [OUT_OF_ALL] * 3 + [CENTRE]
    particle_set = make_particle_set(positions, [0, 1, 1, 1, 0, 1, 2, 2, -1])
    plan = make_plan(make_options(), tomogram_set, particle_set, None)
    return plan, start_summary(plan, tomogram_set, particle_set, ranks=4, threads=1)


def test_plan_lines() -> None:
    """The dry run: each tomogram's particles kept and dropped, and bytes, and the sums."""
    plan, summary = plan_of_three()
    lines = plan_lines(plan, ["TS_01", "TS_02"], [2_000_000, 3_000_000], [10.0, 30.0], summary)
    assert lines == [
        "  TS_01: 2 kept, 0 dropped, 2.0 MB, 10 thread seconds",
        "  TS_02: 3 kept, 1 dropped, 3.0 MB, 30 thread seconds",
        "  TS_03: 0 kept, 2 dropped",
        "5 particles kept, 4 dropped, 2 tomograms, 5000000 bytes of images",
        "Estimated work: 40 thread seconds, 10 a rank on 4 ranks",
    ]


def test_plan_lines_of_what_is_left() -> None:
    """A part of a tomogram is told with the whole it belongs to."""
    plan, summary = plan_of_three()
    left = replace(plan, tasks=(plan.tasks[1].part(1, 3),))
    line = plan_lines(left, ["TS_02"], [2_000_000], [20.0], summary)[0]
    assert line == "  TS_02: 2 left of 3 kept, 1 dropped, 2.0 MB, 20 thread seconds"


def test_counts_without_a_tomogram_that_failed() -> None:
    """Its particles are dropped then; a piece of it that was done says so too."""
    tomogram_set = make_tomogram_set(make_tomogram("TS_01"), make_tomogram("TS_02"))
    particle_set = make_particle_set([CENTRE] * 3 + [OUT_OF_ALL], [0, 1, 1, 1])
    plan = make_plan(make_options(), tomogram_set, particle_set, None)
    summary = start_summary(plan, tomogram_set, particle_set, ranks=1, threads=1)
    summary.add("TS_02", 0, TaskResult(number=1, n_particles=1))
    summary.count_again(leave_out_tasks(plan, {1}), tomogram_set, particle_set)
    assert (summary.n_kept, summary.n_tomograms) == (1, 1)
    assert summary.n_done_before == 1  # TS_01, of which this run did nothing
    assert summary.dropped == {FAILED_TOMOGRAM: 2, OUTSIDE: 1}
    assert summary.by_tomogram["TS_02"] == {"kept": 0, "dropped": 3}
    assert (summary.tomograms[0]["kept"], summary.tomograms[0]["dropped"]) == (0, 3)
    assert summary.nothing_kept_lines() == ["TS_02: 0 kept, 3 dropped"]
