"""The SLURM templates, filled in as a user, or RELION's interface, fills them in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "slurm"
SHIM = ROOT / "scripts" / "relion-shim"

FIRST_MARK, LAST_MARK = "# ---- edit these lines ----", "# ---- down to here ----"


def edit_template(name: str, changes: Mapping[str, str]) -> str:
    """Return a template with values replaced in its marked block, or above it.

    Parameters
    ----------
    name : str
        File name of the template.
    changes : mapping of str to str
        New values by what stands before the `=`, such as `#SBATCH --time` or `input`. Each has to
        be there once.
    """
    lines = (TEMPLATES / name).read_text().splitlines()
    last = lines.index(LAST_MARK)
    for key, value in changes.items():
        places = [i for i in range(last) if lines[i].startswith(f"{key}=")]
        assert len(places) == 1, f"{key}= stands {len(places)} times in {name}"
        lines[places[0]] = f"{key}={value}"
    return "\n".join([*lines, ""])


def fill_in_as_relion(
    script: str, command: str, job_name: str, n_mpi: int, n_threads: int, n_dedicated: int
) -> str:
    """Return a submission script with RELION's variables replaced, as its interface does it.

    Parameters
    ----------
    script : str
        The template.
    command : str
        What RELION makes of a job: its program and arguments.
    job_name : str
        Output directory of the job, with a slash at its end.
    n_mpi, n_threads, n_dedicated : int
        Fields of the Running tab.
    """
    values = {
        "mpinodes": str(n_mpi),
        "threads": str(n_threads),
        "cores": str(n_mpi * n_threads),
        "dedicated": str(n_dedicated),
        "nodes": str(math.ceil(n_mpi * n_threads / n_dedicated)),
        "name": job_name,
        "errfile": f"{job_name}run.err",
        "outfile": f"{job_name}run.out",
        "queue": "main",
        "command": command,
    }
    for name, value in values.items():
        script = script.replace(f"XXX{name}XXX", value)
    return script


def relion_command(words: Sequence[str], job_name: str, n_mpi: int, n_threads: int) -> str:
    """Return the command line that RELION's interface makes for an extraction."""
    program = "relion_tomo_subtomo_mpi" if n_mpi > 1 else "relion_tomo_subtomo"
    rest = ["--theme", "classic", "--o", job_name, *words, "--j", str(n_threads)]
    return f"`which {program}` {' '.join(rest)}  --pipeline_control {job_name}"
