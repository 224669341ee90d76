"""Every SLURM template runs on a real SLURM, and what it writes is what one process writes.

Needs `--system`, root and Debian's packages. Nodes are emulated: all are this machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from cluster import Cluster, JobEnd
from projects import INPUT, OUTPUT, Project
from templates import SHIM, edit_template, fill_in_as_relion, relion_command

pytestmark = pytest.mark.timeout(400)

ON_ONE_NODE = pytest.mark.parametrize("slurm", [1], indirect=True, ids=["1node"])
ON_THREE_NODES = pytest.mark.parametrize("slurm", [3], indirect=True, ids=["3nodes"])
ON_BOTH = pytest.mark.parametrize("slurm", [1, 3], indirect=True, ids=["1node", "3nodes"])

SHORT_SECONDS, LONG_SECONDS = 60, 240

#: Debian's Open MPI 4, which SLURM's pmix fits; emulated nodes have only the loopback interface.
DEBIAN = {
    "MPI4PY_LIBMPI": "/usr/lib/x86_64-linux-gnu/libmpi.so.40",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "self,tcp",
    "OMPI_MCA_btl_tcp_if_include": "lo",
}
#: Open MPI's mpirun refuses to work for root unless told twice.
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

#: With its default network, UCX, MPICH 5 talks so much to SLURM 22.05's pmi2 that now and then it
#: cannot start between nodes.
MPICH_ON_OLD_SLURM = {"MPIR_CVAR_CH4_NETMOD": "ofi"}

#: Time limits are whole minutes, so the signal comes early: seconds after the start, or up to half
#: a minute later, when SLURM looks at time limits.
SIGNAL_SOON = {"#SBATCH --signal": "B:USR1@55"}

DONE = JobEnd("COMPLETED", 0, restarts=0)
USAGE = 2


@pytest.fixture
def small(small_project: Project, tmp_path: Path) -> Project:
    """Copy the small project to work in."""
    return small_project.copy(tmp_path)


@pytest.fixture
def long(long_project: Project, tmp_path: Path) -> Project:
    """Copy the long project to work in."""
    return long_project.copy(tmp_path)


def job_size(nodes: int, tasks_per_node: int, threads: int) -> dict[str, str]:
    """Return the lines of a template that say how large a job of many nodes is."""
    return {
        "#SBATCH --nodes": str(nodes),
        "#SBATCH --ntasks-per-node": str(tasks_per_node),
        "#SBATCH --cpus-per-task": str(threads),
    }


def submit(
    slurm: Cluster,
    project: Project,
    template: str,
    changes: Mapping[str, str],
    environment: Mapping[str, str],
    options: Sequence[str] = (),
) -> int:
    """Submit a template in a project, edited as a user edits it; return the job's number."""
    script = edit_template(
        template,
        {
            "#SBATCH --time": "00:10:00",
            "#SBATCH --output": "extract.log",
            "environment": sys.prefix,
            "input": INPUT,
            "output": OUTPUT,
            "options": f"({' '.join([*project.options, *options])})",
            **changes,
        },
    )
    return submit_text(slurm, project, script, environment)


def submit_text(
    slurm: Cluster, project: Project, script: str, environment: Mapping[str, str]
) -> int:
    """Submit a script in a project."""
    path = project.path / "job.sh"
    path.write_text(script)
    return slurm.submit(path, project.path, environment)


def submit_as_relion(
    slurm: Cluster, project: Project, n_mpi: int, n_threads: int, options: Sequence[str] = ()
) -> int:
    """Submit an extraction as RELION's interface does, with the queue script of this program."""
    changes = {
        "#SBATCH --time": "00:10:00",
        "shim": str(SHIM),
        "environment": sys.prefix,
    }
    words = ["--i", INPUT, *project.options, *options]
    script = fill_in_as_relion(
        edit_template("relion_queue.sh", changes),
        relion_command(words, OUTPUT, n_mpi, n_threads),
        OUTPUT,
        n_mpi,
        n_threads,
        n_dedicated=slurm.n_cpus,
    )
    project.output.mkdir(parents=True, exist_ok=True)
    return submit_text(slurm, project, script, DEBIAN)


def log_of(project: Project) -> str:
    """Return what a job printed."""
    names = ("extract.log", f"{OUTPUT}run.out", f"{OUTPUT}run.err")
    paths = [project.path / name for name in names]
    return "\n".join(path.read_text() for path in paths if path.exists())


def check_complete(project: Project, reference: Project, end: JobEnd) -> None:
    """Check that a job ended well and wrote, to the byte, what one process writes."""
    assert end == DONE, log_of(project)
    found, expected = project.results(), reference.results()
    assert sorted(found) == sorted(expected), log_of(project)
    assert [name for name in expected if found[name] != expected[name]] == []


@ON_BOTH
def test_one_node(slurm: Cluster, small: Project, small_project: Project) -> None:
    job = submit(slurm, small, "one_node.sh", {"#SBATCH --cpus-per-task": "2"}, {})
    check_complete(small, small_project, slurm.wait(job, SHORT_SECONDS))
    assert small.summary()["ranks"] == 1
    assert small.summary()["threads"] == 2


@ON_BOTH
def test_many_nodes_srun_with_open_mpi(
    slurm: Cluster, small: Project, small_project: Project
) -> None:
    size = job_size(slurm.n_nodes, tasks_per_node=2, threads=1)
    job = submit(slurm, small, "many_nodes_srun.sh", size, DEBIAN)
    check_complete(small, small_project, slurm.wait(job, SHORT_SECONDS))
    assert small.summary()["ranks"] == 2 * slurm.n_nodes


@ON_BOTH
def test_many_nodes_srun_with_mpich(
    slurm: Cluster, small: Project, small_project: Project, mpich: Path
) -> None:
    changes = {**job_size(slurm.n_nodes, tasks_per_node=1, threads=2), "mpi": "pmi2"}
    environment = {"MPI4PY_LIBMPI": str(mpich), **MPICH_ON_OLD_SLURM}
    job = submit(slurm, small, "many_nodes_srun.sh", changes, environment)
    check_complete(small, small_project, slurm.wait(job, SHORT_SECONDS))
    assert small.summary()["ranks"] == slurm.n_nodes


@ON_BOTH
@pytest.mark.parametrize("binding", ["(--bind-to none)", "(--map-by slot:PE=2)"])
def test_many_nodes_mpirun(
    slurm: Cluster, small: Project, small_project: Project, pip_mpirun: None, binding: str
) -> None:
    changes = {**job_size(slurm.n_nodes, tasks_per_node=1, threads=2), "binding": binding}
    job = submit(slurm, small, "many_nodes_mpirun.sh", changes, AS_ROOT)
    check_complete(small, small_project, slurm.wait(job, SHORT_SECONDS))
    assert small.summary()["ranks"] == slurm.n_nodes


@ON_BOTH
def test_resumable_that_is_not_interrupted(
    slurm: Cluster, small: Project, small_project: Project
) -> None:
    size = job_size(slurm.n_nodes, tasks_per_node=1, threads=2)
    job = submit(slurm, small, "resumable.sh", size, DEBIAN)
    check_complete(small, small_project, slurm.wait(job, SHORT_SECONDS))


@ON_BOTH
@pytest.mark.parametrize(("n_mpi", "n_threads"), [(1, 2), (2, 1)])
def test_relion_queue(
    slurm: Cluster, small: Project, small_project: Project, n_mpi: int, n_threads: int
) -> None:
    job = submit_as_relion(slurm, small, n_mpi, n_threads)
    check_complete(small, small_project, slurm.wait(job, SHORT_SECONDS))
    assert small.summary()["ranks"] == n_mpi
    assert (small.output / "RELION_JOB_EXIT_SUCCESS").exists()
    assert "Wrote" in (small.output / "run.out").read_text()


@ON_THREE_NODES
def test_srun_that_does_not_fit_open_mpi_is_refused(
    slurm: Cluster, small: Project, pip_mpirun: None
) -> None:
    changes = {**job_size(slurm.n_nodes, tasks_per_node=1, threads=2), "mpi": "pmi2"}
    check_refused(slurm, small, submit(slurm, small, "many_nodes_srun.sh", changes, {}))


@ON_THREE_NODES
def test_srun_that_does_not_fit_mpich_is_refused(
    slurm: Cluster, small: Project, mpich: Path
) -> None:
    changes = {**job_size(slurm.n_nodes, tasks_per_node=1, threads=2), "mpi": "none"}
    environment = {"MPI4PY_LIBMPI": str(mpich)}
    check_refused(slurm, small, submit(slurm, small, "many_nodes_srun.sh", changes, environment))


def check_refused(slurm: Cluster, project: Project, job: int) -> None:
    """Check that each of several ranks that know nothing of the others refused to work."""
    end = slurm.wait(job, SHORT_SECONDS)
    assert (end.state, end.status) == ("FAILED", USAGE), log_of(project)
    assert log_of(project).count("each is alone") == 1  # one rank speaks for all
    assert not project.output.exists()


@ON_THREE_NODES
def test_a_killed_rank_ends_the_job(slurm: Cluster, long: Project, mpich: Path) -> None:
    """Also where srun starts ranks by pmi2, which does not end the others of itself."""
    changes = {**job_size(slurm.n_nodes, tasks_per_node=1, threads=1), "mpi": "pmi2"}
    environment = {"MPI4PY_LIBMPI": str(mpich), **MPICH_ON_OLD_SLURM}
    job = submit(slurm, long, "many_nodes_srun.sh", changes, environment)
    slurm.wait_until(lambda: long.n_records() > 0, job, SHORT_SECONDS)
    os.kill(find_rank(job, slurm.n_nodes - 1), signal.SIGKILL)
    end = slurm.wait(job, SHORT_SECONDS)
    assert (end.state, end.status) == ("FAILED", 128 + signal.SIGKILL), log_of(long)


def find_rank(job: int, rank: int) -> int:
    """Return the process of a rank of a job."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "environ").read_bytes().split(b"\0")
            wanted = {b"SLURM_JOB_ID=%d" % job, b"SLURM_PROCID=%d" % rank}
            if wanted <= set(words) and b"relion_pseudosubtomo" in (entry / "cmdline").read_bytes():
                return int(entry.name)
    raise AssertionError(f"rank {rank} of job {job} does not run")


@ON_THREE_NODES
@pytest.mark.parametrize(
    ("template", "environment"),
    [("many_nodes_srun.sh", DEBIAN), ("many_nodes_mpirun.sh", AS_ROOT)],
    ids=["srun", "mpirun"],
)
def test_cancelled_job_can_be_continued(
    slurm: Cluster,
    long: Project,
    long_project: Project,
    pip_mpirun: None,
    template: str,
    environment: Mapping[str, str],
) -> None:
    size = job_size(slurm.n_nodes, tasks_per_node=1, threads=1)
    cancel_midway(slurm, long, submit(slurm, long, template, size, environment))

    job = submit(slurm, long, template, size, environment, ["--only_do_unfinished"])
    check_complete(long, long_project, slurm.wait(job, LONG_SECONDS))
    check_some_was_kept(long)


@ON_THREE_NODES
def test_relion_continues_a_cancelled_job(
    slurm: Cluster, long: Project, long_project: Project
) -> None:
    cancel_midway(slurm, long, submit_as_relion(slurm, long, n_mpi=3, n_threads=2))
    assert (long.output / "RELION_JOB_EXIT_FAILURE").exists()

    job = submit_as_relion(slurm, long, 3, 2, ["--only_do_unfinished"])
    check_complete(long, long_project, slurm.wait(job, LONG_SECONDS))
    check_some_was_kept(long)
    exits = sorted(path.name for path in long.output.glob("RELION_JOB_EXIT_*"))
    assert exits == ["RELION_JOB_EXIT_SUCCESS"]


def cancel_midway(slurm: Cluster, project: Project, job: int) -> None:
    """Cancel a job once a rank has finished a tomogram."""
    slurm.wait_until(lambda: project.n_records() > 0, job, SHORT_SECONDS)
    slurm.cancel(job)
    end = slurm.wait(job, SHORT_SECONDS)
    assert (end.state, end.restarts) == ("CANCELLED", 0), log_of(project)
    assert not (project.output / "particles.star").exists()


def check_some_was_kept(project: Project) -> None:
    """Check that a continued run did not do everything again."""
    figures = project.summary()
    assert 0 < int(str(figures["n_done_before"])) < int(str(figures["n_kept"]))


@ON_THREE_NODES
def test_job_goes_on_after_its_time_limit(
    slurm: Cluster, long: Project, long_project: Project
) -> None:
    changes = {**job_size(nodes=1, tasks_per_node=1, threads=1), "#SBATCH --time": "1"}
    job = submit(slurm, long, "resumable.sh", {**changes, **SIGNAL_SOON}, DEBIAN)
    end = slurm.wait(job, LONG_SECONDS)
    assert end.restarts >= 1, log_of(long)
    check_complete(long, long_project, replace(end, restarts=0))
    check_some_was_kept(long)
    assert "Stopped by a signal, start 1: back to the queue" in log_of(long)


@ON_THREE_NODES
def test_cancelled_resumable_job_stays_cancelled(slurm: Cluster, long: Project) -> None:
    size = job_size(slurm.n_nodes, tasks_per_node=1, threads=1)
    cancel_midway(slurm, long, submit(slurm, long, "resumable.sh", size, DEBIAN))
    assert "back to the queue" not in log_of(long)
