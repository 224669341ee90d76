"""A real SLURM of emulated nodes on this machine, and the jobs that the tests give it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"

#: Seconds to start it, with the installation of Debian's packages; to stop it; for one command.
START_SECONDS, STOP_SECONDS, COMMAND_SECONDS = 240, 60, 30
POLL_SECONDS = 0.2

#: A requeued job waits two minutes. It must wait a little: a node refuses to start a job with
#: credentials as old as the second in which it stopped it.
RESTART_SECONDS = 3

#: States from which a job does not come back.
FINAL_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

#: What this process's own launcher or shell may have set, and what would mislead a job.
MISLEADING = ("SLURM_", "SBATCH_", "OMPI_", "PMI", "PMIX_", "MPI4PY_", "OMP_NUM_THREADS")


#: What slurm_up.sh says where SLURM cannot be installed.
CANNOT_INSTALL = 77


class CannotInstallError(Exception):
    """SLURM cannot be installed on this machine; the message says why."""


@dataclass(frozen=True)
class JobEnd:
    """How a job ended.

    Attributes
    ----------
    state : str
        SLURM's word for it.
    status : int
        Exit status of the batch script.
    restarts : int
        How often the job was put back in the queue.
    """

    state: str
    status: int
    restarts: int


class Cluster:
    """SLURM with some emulated nodes.

    Parameters
    ----------
    folder : Path
        For its files.
    n_nodes, n_cpus : int
        Nodes, and processors of each.
    """

    def __init__(self, folder: Path, n_nodes: int, n_cpus: int) -> None:
        self.n_nodes = n_nodes
        self.n_cpus = n_cpus
        clean = {k: v for k, v in os.environ.items() if not k.startswith(MISLEADING)}
        self._environment = {
            **clean,
            "SLURM_TEST_DIR": str(folder),
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    def start(self) -> None:
        """Install and start it.

        Raises
        ------
        CannotInstallError
            Without root or Debian's packages.
        """
        words = ["bash", str(SCRIPTS / "slurm_up.sh"), str(self.n_nodes), str(self.n_cpus)]
        try:
            done = self._try(words, START_SECONDS)
            if done.returncode == CANNOT_INSTALL:
                raise CannotInstallError(done.stderr.strip())
            assert done.returncode == 0, done.stdout + done.stderr
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it, and every job."""
        self._run(["bash", str(SCRIPTS / "slurm_down.sh")], STOP_SECONDS)

    def _try(
        self,
        words: list[str],
        seconds: float = COMMAND_SECONDS,
        folder: Path | None = None,
        more: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            cwd=folder,
            env={**self._environment, **(more or {})},
            timeout=seconds,
            capture_output=True,
            text=True,
            check=False,
        )

    def _run(
        self,
        words: list[str],
        seconds: float = COMMAND_SECONDS,
        folder: Path | None = None,
        more: Mapping[str, str] | None = None,
    ) -> str:
        done = self._try(words, seconds, folder, more)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, script: Path, folder: Path, environment: Mapping[str, str]) -> int:
        """Submit a batch script from a folder; return the job's number."""
        return int(
            self._run(["sbatch", "--parsable", str(script)], folder=folder, more=environment)
        )

    def cancel(self, job: int) -> None:
        """Cancel a job as a user does."""
        self._run(["scancel", str(job)])

    def wait(self, job: int, seconds: float) -> JobEnd:
        """Wait until a job has ended for good; a requeued one need not wait for its start time."""
        deadline = time.monotonic() + seconds
        hurried = ""
        while True:
            facts = self._look(job)
            if facts["JobState"] in FINAL_STATES:
                status, _, _ = facts["ExitCode"].partition(":")
                return JobEnd(facts["JobState"], int(status), int(facts["Restarts"]))
            if facts["Reason"] == "BeginTime" and facts["Restarts"] != hurried:
                hurried = facts["Restarts"]
                when = f"StartTime=now+{RESTART_SECONDS}"
                self._run(["scontrol", "update", f"JobId={job}", when])
            self._check_time(deadline, f"job {job} still {facts['JobState']}")

    def wait_until(self, condition: Callable[[], bool], job: int, seconds: float) -> None:
        """Wait until a condition holds while a job runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            state = self._look(job)["JobState"]
            assert state in {"PENDING", "CONFIGURING", "RUNNING"}, f"job {job} is {state} already"
            self._check_time(deadline, f"job {job} never got so far")

    def _look(self, job: int) -> dict[str, str]:
        text = self._run(["scontrol", "show", "job", "--oneliner", str(job)])
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def _check_time(self, deadline: float, problem: str) -> None:
        assert time.monotonic() < deadline, problem
        time.sleep(POLL_SECONDS)
