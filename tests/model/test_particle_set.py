"""Particle sets: what is sent of one to another rank."""

from __future__ import annotations

import pickle

import numpy as np
from small_models import make_optics, make_particle_set

N_GROUPS = 1000


def test_a_part_for_extraction_does_not_grow_with_the_optics_groups() -> None:
    """Ranks are given the groups once; each message says only which rows of them are meant."""
    rows = np.arange(2)
    few, many = (
        make_particle_set(
            np.zeros((4, 3)), optics=make_optics([2.0] * n), optics_row=np.full(4, n - 1)
        )
        for n in (1, N_GROUPS)
    )
    assert len(pickle.dumps(many.take(rows))) > len(pickle.dumps(few.take(rows))) + N_GROUPS
    part = many.take_numbers(rows)
    assert len(pickle.dumps(part)) == len(pickle.dumps(few.take_numbers(rows)))
    assert part.optics_row.tolist() == [N_GROUPS - 1] * 2
