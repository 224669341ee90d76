"""Starting real launchers, changing projects, comparing output directories."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io.star import StarFile, read_star, write_star
from relion_pseudosubtomo.model.particle_set import Columns

TIME_LIMIT = 120
#: What a launcher prints that could not start its own server, before there is any rank; it happens
#: once in some hundred starts, more often after jobs that were killed.
LAUNCHER_FAILED = "The PMIx server's listener thread failed to start"
N_STARTS = 5
#: Particles left in each tomogram: sizes as unequal as in real projects.
PARTICLES_KEPT = (40, 8, 22, 3, 30)
OPTIMISATION_SET = ["--i", "Picks/job007/optimisation_set.star"]
#: 192/96/4 scaled down.
BOX = ["--b", "48", "--crop", "24", "--bin", "4"]


@dataclass(frozen=True)
class Launcher:
    """How ranks are started with the MPI library of this Python environment.

    Attributes
    ----------
    name : str
        "Open MPI" or "MPICH".
    mpirun : Path
        Its launcher.
    scratch : Path
        Folder for temporary files; its path is short, as names of sockets must be.
    """

    name: str
    mpirun: Path
    scratch: Path

    def command(self, n_ranks: int, *options: str) -> list[str]:
        """Return the words that start the program on ranks."""
        words = [str(self.mpirun), *options, "-n", str(n_ranks)]
        if self.name == "Open MPI":
            words += ["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
        return [*words, sys.executable, "-P", "-m", "relion_pseudosubtomo"]

    @property
    def environment(self) -> dict[str, str]:
        """Return an environment that allows root, as in containers, with a folder of its own.

        A launcher keeps its sockets and session files in TMPDIR, also those of a killed job.
        """
        allow = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return {**os.environ, **allow, "TMPDIR": tempfile.mkdtemp(dir=self.scratch)}


def keep_some_particles(path: Path) -> None:
    """Cut a particle file down to `PARTICLES_KEPT` in each tomogram."""
    table = read_tables(path).tables["particles"]
    seen: dict[str, int] = {}
    rows = []
    limits = dict(zip(sorted(set(table.columns["rlnTomoName"])), PARTICLES_KEPT, strict=True))
    for row, name in enumerate(table.columns["rlnTomoName"]):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] <= limits[name]:
            rows.append(row)
    rewrite_particles(path, lambda columns: {k: v[rows] for k, v in columns.items()})


def read_tables(path: Path) -> StarFile:
    """Return the tables of a STAR file."""
    star = read_star(str(path), Findings())
    assert star is not None
    return star


def rewrite_particles(path: Path, change: Callable[[Columns], Columns]) -> None:
    """Change the columns of `data_particles` in a file."""
    rewrite_table(path, "particles", change)


def rewrite_table(path: Path, name: str, change: Callable[[Columns], Columns]) -> None:
    """Change the columns of a table in a file."""
    tables = dict(read_tables(path).tables)
    old = tables[name]
    tables[name] = type(old)(name, change(old.columns))
    write_star(path, tables.values())


def run(
    words: Sequence[str], environment: dict[str, str] | None = None, limit: float = TIME_LIMIT
) -> subprocess.CompletedProcess[str]:
    """Run a command with a time limit; nothing of it is left behind.

    A launcher that fails before there is a rank is started again: that is not what is tested.
    """
    for attempt in range(1, N_STARTS + 1):
        done = _run_once(words, environment, limit)
        if done.returncode == 0 or LAUNCHER_FAILED not in done.stdout or attempt == N_STARTS:
            break
        print(f"start {attempt} of the launcher failed: {LAUNCHER_FAILED}")
    return done


def _run_once(
    words: Sequence[str], environment: dict[str, str] | None, limit: float
) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        words,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(list(words), process.returncode, output, "")


def run_serial(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program in one process."""
    return run([sys.executable, "-P", "-m", "relion_pseudosubtomo", *arguments])


#: Files that tell of the run itself; everything else is the same for any number of ranks.
OF_THE_RUN = ("note.txt", "run_summary.json", ".lock")


def list_contents(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file that may not differ from run to run, with the directory's name taken out."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name not in OF_THE_RUN:
            content = path.read_bytes()
            if path.suffix in (".star", ".json"):
                content = content.replace(directory.name.encode(), b"JOB")
            yield name, content


def assert_same_results(one: Path, other: Path) -> None:
    """Compare two output directories file by file, byte by byte."""
    first, second = dict(list_contents(one)), dict(list_contents(other))
    assert sorted(first) == sorted(second)
    different = [name for name in first if first[name] != second[name]]
    assert different == []
    assert not [name for name in first if ".tmp-" in name]
