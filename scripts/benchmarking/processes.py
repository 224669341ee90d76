"""Run a command in a process of its own and measure it: time from the system, memory by looking."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

#: Seconds between two looks at the memory: often enough for a run of a second, hardly any work.
SAMPLE_SECONDS = 0.05
#: Programs that start ranks; their own memory is not that of a rank.
LAUNCHERS = ("mpirun", "mpiexec", "orterun", "prterun", "prte", "prted", "hydra_pmi_proxy")
#: Characters of a failed command's output that are shown.
SHOWN_OUTPUT = 3000


@dataclass(frozen=True)
class Usage:
    """What one run took.

    Attributes
    ----------
    wall, user, system : float
        Seconds; processor time of all processes together.
    private, rss : float
        Largest memory in bytes, summed over the ranks: RssAnon, and VmHWM, which counts mapped
        files and counts them once for each rank.
    """

    wall: float
    user: float
    system: float = 0.0
    private: float = 0.0
    rss: float = 0.0


class BenchmarkError(Exception):
    """The benchmark cannot go on."""


def median_usage(runs: Iterable[Usage]) -> Usage:
    """Return the median of every figure."""
    listed = list(runs)
    return Usage(
        **{
            field.name: statistics.median(getattr(run, field.name) for run in listed)
            for field in fields(Usage)
        }
    )


def run_command(
    command: Sequence[str], directory: Path, environment: Mapping[str, str] | None = None
) -> tuple[Usage, str]:
    """Run a command to its end.

    Parameters
    ----------
    command : sequence of str
    directory : Path
        Where it starts.
    environment : mapping, optional
        Variables beside those of this process.

    Returns
    -------
    usage : Usage
    output : str
        What it printed.

    Raises
    ------
    BenchmarkError
        Where it cannot be started or its exit status is not 0.
    """
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        try:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            raise BenchmarkError(f"{command[0]} cannot be started: {error}") from error
        with _MemoryWatch(process.pid) as memory:
            try:
                # wait4 tells the time of this child, and of the children that it waited for
                _, status, usage = os.wait4(process.pid, 0)
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise
            wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode != 0:
        tail = text[-SHOWN_OUTPUT:]
        raise BenchmarkError(f"{' '.join(command)}\nended with {process.returncode}:\n{tail}")
    return Usage(wall, usage.ru_utime, usage.ru_stime, memory.private, memory.rss), text


class _MemoryWatch:
    """Looks at the memory of a process and all below it while it runs."""

    def __init__(self, pid: int) -> None:
        self.private = 0.0
        self.rss = 0.0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            states = [_read_memory(pid) for pid in _list_processes(self._pid)]
            self.private = max(self.private, sum(private for private, _ in states))
            self.rss = max(self.rss, sum(rss for _, rss in states))


def _list_processes(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    with contextlib.suppress(OSError):  # it ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # or one of its threads
                for child in (task / "children").read_text().split():
                    found += _list_processes(int(child))
    return found


def _read_memory(pid: int) -> tuple[int, int]:
    """Return private and peak resident bytes; 0 for a launcher and for what has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    if values["Name"].strip() in LAUNCHERS:
        return 0, 0
    private, rss = (int(values.get(name, "0 kB").split()[0]) for name in ("RssAnon", "VmHWM"))
    return 1024 * private, 1024 * rss
