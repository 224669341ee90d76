"""How many threads a rank gets (spec 4.2)."""

from __future__ import annotations

import pytest

from relion_pseudosubtomo.parallel.threads import resolve_threads


@pytest.mark.parametrize(
    ("wanted", "environment", "expected"),
    [
        (3, {}, 3),
        (3, {"OMP_NUM_THREADS": "2", "SLURM_CPUS_PER_TASK": "5"}, 3),
        (None, {"OMP_NUM_THREADS": "2", "SLURM_CPUS_PER_TASK": "5"}, 2),
        (None, {"SLURM_CPUS_PER_TASK": "5"}, 5),
        (None, {}, 8),
        (8, {}, 8),
        (None, {"OMP_NUM_THREADS": "4,2"}, 4),
        (None, {"OMP_NUM_THREADS": " 4 "}, 4),
    ],
)
def test_who_decides(wanted: int | None, environment: dict[str, str], expected: int) -> None:
    """--j, else OMP_NUM_THREADS, else SLURM_CPUS_PER_TASK, else the cores; no warning."""
    assert resolve_threads(wanted, environment, 8) == (expected, "")


@pytest.mark.parametrize("text", ["", "0", "-3", "many", "2.5", ","])
def test_nonsense_in_the_environment_is_passed_over(text: str) -> None:
    """The next in line decides."""
    environment = {"OMP_NUM_THREADS": text, "SLURM_CPUS_PER_TASK": "3"}
    assert resolve_threads(None, environment, 8) == (3, "")


@pytest.mark.parametrize(
    ("wanted", "environment", "source"),
    [
        (5, {}, "--j"),
        (None, {"OMP_NUM_THREADS": "5"}, "OMP_NUM_THREADS"),
        (None, {"SLURM_CPUS_PER_TASK": "5"}, "SLURM_CPUS_PER_TASK"),
    ],
)
def test_never_more_than_the_cores(
    wanted: int | None, environment: dict[str, str], source: str
) -> None:
    """The warning says who asked, how many there are, and how to launch."""
    threads, warning = resolve_threads(wanted, environment, 4)
    assert threads == 4
    for part in (f"{source} asks for 5 threads", "4 cores", "--bind-to none", "--map-by slot:PE="):
        assert part in warning


@pytest.mark.parametrize(("cores", "n_sharing", "expected"), [(8, 2, 4), (7, 2, 3), (2, 5, 1)])
def test_ranks_of_a_node_share_its_cores(cores: int, n_sharing: int, expected: int) -> None:
    """Only where nobody asked for a number; at least one thread each."""
    assert resolve_threads(None, {}, cores, n_sharing) == (expected, "")
    assert resolve_threads(2, {}, cores, n_sharing) == (2, "")
