"""How many threads a rank gets (spec 4.2)."""

from __future__ import annotations

import os
from collections.abc import Mapping


def usable_cores() -> int:
    """Return the number of cores this process may run on."""
    return len(os.sched_getaffinity(0))


def resolve_threads(
    wanted: int | None, environment: Mapping[str, str], cores: int
) -> tuple[int, str]:
    """Return the number of threads, and a warning or an empty text.

    Parameters
    ----------
    wanted : int or None
        `--j`; None takes OMP_NUM_THREADS, else SLURM_CPUS_PER_TASK, else the cores.
    environment : mapping of str to str
        The environment variables.
    cores : int
        Cores in the process's affinity mask: the most that is useful.
    """
    source = "--j"
    if wanted is None:
        wanted, source = cores, "the cores available"
        for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
            text = environment.get(name, "").split(",")[0].strip()
            if text.isdigit() and int(text) > 0:
                wanted, source = int(text), name
                break
    if wanted <= cores:
        return wanted, ""
    return cores, (
        f"{source} asks for {wanted} threads, but this process may use {cores} cores only: "
        f"{cores} threads are used. Under mpirun, launch with --bind-to none or --map-by "
        "slot:PE=T to give each rank more cores."
    )
