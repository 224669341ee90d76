"""What a task will cost: times, of which only ratios count, bytes and memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_models import make_options, make_particle_set, make_tomogram

from relion_pseudosubtomo.estimate import (
    MRC_HEADER_BYTES,
    choose_prebin,
    container_bytes,
    particle_bytes,
    seconds_beside,
    table_memory,
    task_bytes,
    task_seconds,
)
from relion_pseudosubtomo.model import Task, Trajectories


def make_task(n_particles: int, visible: float = 1.0) -> Task:
    """Return a task of three frames, of which a share is visible."""
    seen = np.zeros((n_particles, 3), dtype=bool)
    seen[:, : round(3 * visible)] = True
    stems = tuple(f"Subtomograms/TS_01/{i + 1}" for i in range(n_particles))
    return Task(0, 0, 0, np.arange(n_particles), stems, seen)


def test_beside_another_rank_mapped_images_cost_nothing_again() -> None:
    """What is left is a small constant, however large the images."""
    options = make_options()
    small, large = make_tomogram(), make_tomogram(image_size_xy=(8000, 8000))
    beside = [seconds_beside(options, tomogram, make_task(5)) for tomogram in (small, large)]
    start = [task_seconds(options, tomogram, make_task(5))[0] for tomogram in (small, large)]
    assert 0 < beside[0] == beside[1] < start[0] < start[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"preload": True},
        {"whiten": True},
        {"prebin": True, "binning": 4.0, "box": 192, "crop": 96},
    ],
)
def test_images_of_its_own_cost_a_rank_the_same_anywhere(changes: dict[str, object]) -> None:
    """Read in full, or made smaller, by every rank for itself."""
    options, tomogram = make_options(**changes), make_tomogram(image_size_xy=(3000, 3000))
    task = make_task(500)
    assert (choose_prebin(options, tomogram, task) > 1) == ("prebin" in changes)
    assert seconds_beside(options, tomogram, task) == task_seconds(options, tomogram, task)[0]


def test_the_noise_of_an_image_costs_more_than_reading_it() -> None:
    """Its spectra are averaged by each rank that starts the tomogram."""
    tomogram, task = make_tomogram(image_size_xy=(3000, 3000)), make_task(5)
    plain, whitened = (
        task_seconds(make_options(whiten=whiten), tomogram, task) for whiten in (False, True)
    )
    assert whitened[0] > 2 * plain[0]
    assert whitened[1] == plain[1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"float16": True, "ctf": True, "multi": True, "div": True, "nrm": True},
        {"no_comb": True, "hdf5": True},
        {"stack2d": True, "hdf5": True, "no_mrc": True},
        {"stack2d": True, "dialects": ("tomodrgn", "cryodrgn")},
        {"real_subtomo": True, "hdf5": True},
        {"sum": True, "no_writing": True},
    ],
    ids=str,
)
def test_a_task_writes_what_its_particles_write(changes: dict[str, object]) -> None:
    """The bytes of the whole task are those of its particles added up, to the last one."""
    options, tomogram = make_options(**changes), make_tomogram(tomogram_binning=1.5)
    seen = np.random.default_rng(1).random((20, 3)) < 0.6
    task = Task(0, 0, 0, np.arange(20), ("1",) * 20, seen)
    files = sum(sum(particle_bytes(options, tomogram, int(n))) for n in seen.sum(axis=1))
    alone = replace(options, hdf5=False, no_mrc=False, dialects=())
    n_headers = MRC_HEADER_BYTES * len(alone.image_suffixes)
    values = [sum(particle_bytes(alone, tomogram, int(n))) - n_headers for n in seen.sum(axis=1)]
    contained = sum(values) if options.hdf5 else 0
    assert container_bytes(options, tomogram, task) == contained
    assert task_bytes(options, tomogram, task) == files + contained


def test_rank_0_holds_the_trajectories_too() -> None:
    """More memory than for the particles alone, by the numbers and by the text they are read of."""
    particles = make_particle_set(np.zeros((50, 3)))
    shifts = tuple(np.zeros((n_frames, 3)) for n_frames in (41, 0) * 25)
    n_bytes = sum(shift.nbytes for shift in shifts)
    text = 13 * 3 * 41 * 25  # as they are written
    alone = table_memory(particles, None)
    more = table_memory(particles, Trajectories("motion.star", shifts, len(shifts))) - alone
    assert alone > 0
    assert n_bytes + text < more < 2 * (n_bytes + text)


def test_a_particle_costs_by_what_is_seen_of_it() -> None:
    """Two thirds of the frames, two thirds of the windows; a volume costs the same."""
    tomogram = make_tomogram()
    stack = make_options(stack2d=True)
    whole, part = (task_seconds(stack, tomogram, make_task(5, share))[1] for share in (1, 2 / 3))
    assert part == pytest.approx(2 / 3 * whole)
    volume = task_seconds(make_options(), tomogram, make_task(5))[1]
    assert volume > whole
