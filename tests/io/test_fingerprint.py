"""Fingerprints of results: what they depend on, and what they must not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from small_models import make_optics, make_options, make_particle_set, make_tomogram

from relion_pseudosubtomo.io import fingerprint as module
from relion_pseudosubtomo.io.fingerprint import fingerprint_task
from relion_pseudosubtomo.model import Task
from relion_pseudosubtomo.options import JobOptions


def fingerprint(pixel_size: Sequence[float], optics_row: Sequence[int]) -> str:
    """Return that of three particles with these groups, the last of another task."""
    n = len(optics_row)
    particle_set = make_particle_set(
        np.zeros((n, 3)), optics=make_optics(pixel_size), optics_row=np.array(optics_row)
    )
    rows = np.arange(n - 1)
    task = Task(0, 0, 0, rows, ("a", "b"), np.ones((n - 1, 3), dtype=bool))
    return fingerprint_task(make_options(), make_tomogram(), particle_set, None, task)


def test_other_optics_groups_do_not_count() -> None:
    """Those of other tasks, and where in the table the task's own stand."""
    one = fingerprint([2.0, 3.0], [0, 0, 1])
    assert fingerprint([3.0, 4.0, 2.0], [2, 2, 0]) == one
    assert fingerprint([2.0], [0, 0, 0]) == one
    two = fingerprint([2.0, 3.0], [0, 1, 1])
    assert fingerprint([3.0, 4.0, 2.0], [2, 0, 1]) == two
    assert fingerprint([3.0, 2.0], [0, 1, 1]) != two
    assert len({one, two, fingerprint([2.0, 3.0], [1, 0, 1]), fingerprint([3.0], [0, 0, 0])}) == 4


@dataclasses.dataclass(frozen=True)
class LaterOptions(JobOptions):
    """Those of a later version, which has one more."""

    sharpen: bool = False


def test_an_upgrade_counts_only_where_results_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new option at its default changes nothing; one that is used does, or new mathematics."""

    def fingerprint_of(options: JobOptions) -> str:
        task = Task(0, 0, 0, np.arange(1), ("a",), np.ones((1, 3), dtype=bool))
        return fingerprint_task(
            options, make_tomogram(), make_particle_set(np.zeros((1, 3))), None, task
        )

    options = make_options()
    later = LaterOptions(**dataclasses.asdict(options))
    before = fingerprint_of(options)
    assert fingerprint_of(later) == before
    assert fingerprint_of(dataclasses.replace(later, sharpen=True)) != before
    assert fingerprint_of(dataclasses.replace(options, whiten=True)) != before
    monkeypatch.setattr(module, "MATHEMATICS", module.MATHEMATICS + 1)
    assert fingerprint_of(options) != before
