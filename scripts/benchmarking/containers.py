"""HDF5 containers against MRC files: what writing costs, and how fast random particles are read."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from .checks import Check
from .configurations import CONFIGURATIONS, TWO_THREADS_WRITTEN
from .processes import Usage, run_command
from .session import PROGRAM, Key, Session

#: Jobs whose output is compared: volumes with weights, and stacks.
WRITTEN = ("A", "B")
CPU_LIMIT = 1.1

#: What is read: stacks as the tutorial's job makes them, about 0.3 MB each.
READ, N_READ = "F", 1000
READ_LIMIT = 1.0
READ_RANDOM = str(Path(__file__).with_name("read_random.py"))
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
FILES = {"container": "particles.h5", "MRC files": "particles.star"}
SECTION = "hdf5"


def add_writing(session: Session) -> None:
    """Let jobs wait that write MRC files, and the same that write containers."""
    project = session.project()
    for name in WRITTEN:
        job = CONFIGURATIONS[name]
        packed = replace(job, switches=(*job.switches, "--hdf5", "--no_mrc"))
        for n in session.settings.particles_of(job):
            for section, each in zip(_sections(name), (job, packed), strict=True):
                session.add_job(each, TWO_THREADS_WRITTEN, project, n, section=section)


def _sections(name: str) -> tuple[str, str]:
    return f"{SECTION}: {name}, MRC files", f"{SECTION}: {name}, containers"


def check_writing(session: Session) -> Iterator[Check]:
    """Yield the processor time that containers cost, relative to MRC files."""
    for name in WRITTEN:
        files, packed = (
            session.slope(section, TWO_THREADS_WRITTEN.name) for section in _sections(name)
        )
        if files is not None and packed is not None:
            ratio = (packed.user + packed.system) / (files.user + files.system)
            text = f"{SECTION}: CPU a particle of {name} to containers / to MRC files"
            yield Check(text, ratio, CPU_LIMIT)


def compare_reading(session: Session, shrink: int = 1) -> list[Check]:
    """Return how long random particles take from a container, relative to MRC files.

    Parameters
    ----------
    session : Session
    shrink : int
        Divides the number of particles, to try it out.
    """
    project, job, n = session.project(), CONFIGURATIONS[READ], N_READ // shrink
    picks, tomograms = project.make_picks(job, n).path, project.make_tomograms()
    with tempfile.TemporaryDirectory(dir=session.settings.out) as out:
        directory = f"{out}/job/"
        words = ["--p", picks, "--t", tomograms, *job.options(), "--hdf5", "--j", "2"]
        run_command([*PROGRAM, *words, "--o", directory], project.directory)
        # a trial leaves the system's page cache alone
        for warmth in ("warm", "cold") if shrink == 1 else ("warm",):
            if warmth == "cold" and not drop_caches():
                session.note(f"{SECTION}: nothing read cold: the page cache cannot be dropped")
                continue
            for what, file in FILES.items():
                key = Key(SECTION, f"random particles, {what}, {warmth}", n)
                path = Path(directory, file)
                session.add(key, _reader(path, n, project.directory, is_cold=warmth == "cold"))
        session.run()
    return list(_check_reading(session, n))


def _reader(path: Path, n: int, directory: Path, *, is_cold: bool) -> Callable[[], Usage]:
    command = [sys.executable, READ_RANDOM, str(path), str(n)]

    def measure() -> Usage:
        if is_cold:
            drop_caches()
        else:  # a cold reading may have come between
            run_command(command, directory)
        usage, output = run_command(command, directory)
        seconds = json.loads(output.splitlines()[-1])
        # the work alone, without the start of Python
        return Usage(sum(seconds.values()), usage.user, usage.system, usage.private, usage.rss)

    return measure


def drop_caches() -> bool:
    """Empty the system's page cache; return whether that is allowed."""
    os.sync()
    try:
        DROP_CACHES.write_text("1")
    except OSError:
        return False
    return True


def _check_reading(session: Session, n: int) -> Iterator[Check]:
    for warmth in ("warm", "cold"):
        packed, files = (
            session.median(Key(SECTION, f"random particles, {what}, {warmth}", n)) for what in FILES
        )
        if packed is not None and files is not None:
            session.note(
                f"{SECTION}: {n} random particles {warmth}: container {packed.wall:.3f} s, "
                f"MRC files {files.wall:.3f} s"
            )
            text = f"{SECTION}: {n} random particles {warmth}, container / MRC files"
            yield Check(text, packed.wall / files.wall, READ_LIMIT)
