"""How many threads a rank gets (spec 4.2)."""

from __future__ import annotations

from collections.abc import Mapping


def resolve_threads(
    wanted: int | None, environment: Mapping[str, str], cores: int, n_sharing: int = 1
) -> tuple[int, str]:
    """Return the number of threads, and a warning or an empty text.

    Parameters
    ----------
    wanted : int or None
        `--j`; None takes OMP_NUM_THREADS, else SLURM_CPUS_PER_TASK, else a part of the cores.
    environment : mapping of str to str
        The environment variables.
    cores : int
        Cores in the process's affinity mask: the most that is useful.
    n_sharing : int
        Ranks of this node that may run on these cores.
    """
    source = "--j"
    if wanted is None:
        wanted, source = max(1, cores // n_sharing), "the cores available"
        for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
            text = environment.get(name, "").split(",")[0].strip()
            if text.isdigit() and int(text) > 0:
                wanted, source = int(text), name
                break
    if wanted <= cores:
        return wanted, ""
    return cores, (
        f"{source} asks for {wanted} threads, but this process may use {cores} cores: so many "
        "threads are used. Where a launcher binds ranks to fewer cores than there are: under "
        "Open MPI, launch with --bind-to none or --map-by slot:PE=T to give a rank T cores; under "
        "SLURM, with srun -c T."
    )
