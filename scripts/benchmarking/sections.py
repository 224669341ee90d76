"""What the sections of the command line measure, beside the plain configurations."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from relion_pseudosubtomo.io.mrc import read_volume
from relion_pseudosubtomo.io.trajectories import write_trajectories

from .checks import ZARR, Check
from .configurations import (
    CONFIGURATIONS,
    ONE_THREAD,
    TWO_THREADS,
    TWO_THREADS_WRITTEN,
    WAYS,
    Configuration,
)
from .data import Project, Size
from .machine import free_bytes, measure_disk
from .processes import BenchmarkError, Usage, run_command
from .session import PROGRAM, Key, Session

#: Ways of the configurations that are compared with another one only.
FEW_WAYS = (ONE_THREAD, TWO_THREADS, TWO_THREADS_WRITTEN)

ZARR_PACKAGE = "zarr-particle-tools==1.0.1"
ZARR_OPTIONS = (
    "local --particles-starfile {{particles}} --tomograms-starfile {{tomograms}} "
    "--output-dir {{out}} --box-size {box} --crop-size {crop} --bin {binning}"
)
#: It holds the windows of all particles in memory, so it gets fewer.
ZARR_FEWER = 4

#: Particles that are compared with and without --prebin.
N_COMPARED = 8
PREBIN_RMS_LIMIT = 0.0005

SMALL_SIZE = Size(image_size_xy=(512, 480), n_tilts=41, thickness=200)
SMALL_JOB = Configuration("small", "64/32/4, 3D", 64, 32, 4)
SMALL_PARTICLES = 10
HELP_SECONDS, SMALL_SECONDS = 0.3, 1.5
HELP, SMALL = "--help", "one small tomogram"

STAR_SIZE = Size(image_size_xy=(64, 48), n_tilts=41, thickness=20)
STAR_JOB = Configuration("star", "16/8/1", 16, 8, 1)
STAR_TOMOGRAMS, STAR_COLUMNS = 20, 30
STAR_PARTICLES, STAR_TRAJECTORIES = 200_000, 20_000
STAR_SECONDS, STAR_GB, TRAJECTORY_SECONDS = 10.0, 1.5, 5.0
STAR_SCALE = str(Path(__file__).with_name("star_scale.py"))
MERGED, MOVED = "tables read, merged and written", "trajectories read"

HEADLINE_TOMOGRAMS, HEADLINE_PARTICLES = 5, 6120
HEADLINE_SECONDS = 15 * 60.0
#: 30,600 stacks of at most 17 float16 images of 96 x 96; the other job writes less.
HEADLINE_OUTPUT_BYTES = HEADLINE_TOMOGRAMS * HEADLINE_PARTICLES * 17 * 2 * 96 * 96
MANUAL_PARTICLES, MANUAL_WRITTEN = 6000, 1000


def add_configurations(session: Session, names: set[str]) -> None:
    """Let the chosen configurations A to G wait."""
    for name in ("A", "B", "D", "E"):
        if name in names:
            session.add_configuration(CONFIGURATIONS[name], WAYS)
    if "C" in names:
        add_start_to_exit(session)
    if "F" in names:
        session.add_configuration(CONFIGURATIONS["F"], FEW_WAYS)
        session.add_configuration(CONFIGURATIONS["F all"], FEW_WAYS)
    if "G" in names:
        session.add_configuration(CONFIGURATIONS["G"], FEW_WAYS)
    if "V" in names:
        session.add_configuration(CONFIGURATIONS["V"], (ONE_THREAD, TWO_THREADS))
    if "P" in names and has_prebin(session):
        session.add_configuration(CONFIGURATIONS["P"], (ONE_THREAD, TWO_THREADS))
        session.add_configuration(CONFIGURATIONS["P 2D"], (ONE_THREAD, TWO_THREADS))


def add_floors(session: Session, names: set[str]) -> None:
    """Let the floors of the chosen configurations wait."""
    for name, configuration in CONFIGURATIONS.items():
        # no floor of their own: --prebin avoids some of the transforms, --average does A's job
        if name[0] in names and name[0] not in "PV":
            session.add_floor(configuration)


def add_start_to_exit(session: Session) -> None:
    """Let C wait: the smaller number of A's particles, written."""
    job, n = CONFIGURATIONS["A"], session.settings.particles[0]
    session.add_job(job, TWO_THREADS_WRITTEN, session.project(), n, section="C")


def add_versus(session: Session, template: str) -> None:
    """Let another program wait, on A's data."""
    project, job = session.project(), CONFIGURATIONS["A"]
    tomograms = project.make_tomograms()
    for n in session.settings.particles:
        picks = project.make_picks(job, n).path
        session.add_command("versus", "the other program", template, n, picks, tomograms)
    session.note(f"The other program: {template}")


def add_zarr(session: Session) -> None:
    """Let zarr-particle-tools wait on B's data, where it can be installed."""
    program = _install_zarr(session)
    if program is None:
        return
    project, job = session.project(), CONFIGURATIONS["B"]
    options = ZARR_OPTIONS.format(box=job.box, crop=job.crop, binning=job.binning)
    few, many = (max(1, n // ZARR_FEWER) for n in session.settings.particles)
    for n in (few, max(many, few + 1)):
        picks = project.make_picks(job, n).path
        tomograms = project.make_tomograms()
        session.add_command("B", ZARR, f"{program} {options}", n, picks, tomograms)


def _install_zarr(session: Session) -> Path | None:
    """Return its program, in a virtual environment of its own beside the data."""
    environment = session.settings.data / "zarr-particle-tools"
    program = environment / "bin" / "zarr-particle-extract"
    if program.exists():
        return program
    print(f"Installing {ZARR_PACKAGE}", flush=True)
    for command in (
        [sys.executable, "-m", "venv", str(environment)],
        [str(environment / "bin" / "python"), "-m", "pip", "install", "-q", ZARR_PACKAGE],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            session.note(f"{ZARR} skipped, it cannot be installed: {reason}")
            return None
    return program


def has_prebin(session: Session) -> bool:
    """Return whether the program has --prebin; a note says so where it has not."""
    _, text = run_command([*PROGRAM, "--help"], session.settings.data)
    if "--prebin" not in text:
        session.note("P skipped: the program has no option --prebin")
        return False
    return True


def compare_prebin(session: Session) -> list[Check]:
    """Return the rms difference of --prebin from exact, of the worst of a few particles."""
    checks = []
    for name, exact in (("P", "A"), ("P 2D", "B")):
        worst = _measure_difference(session, CONFIGURATIONS[name], CONFIGURATIONS[exact])
        if worst == 0:
            session.note(f"{name}: equal to exact, so --prebin was not used: too few particles?")
        else:
            text = f"{name}: rms difference from exact / standard deviation"
            checks.append(Check(text, worst, PREBIN_RMS_LIMIT))
    return checks


def _measure_difference(session: Session, job: Configuration, exact: Configuration) -> float:
    # as many as are measured, because the program uses --prebin only where it pays
    project, n = session.project(), session.settings.particles_of(job)[0]
    picks, tomograms = project.make_picks(exact, n).path, project.make_tomograms()
    with tempfile.TemporaryDirectory(dir=session.settings.out) as out:
        for each in (job, exact):
            options = [*each.options(), "--j", "2", "--o", f"{out}/{each.name[0]}/"]
            command = [*PROGRAM, "--p", picks, "--t", tomograms, *options]
            run_command(command, project.directory)
        pattern = "*_stack2d.mrcs" if job.stack2d else "*_data.mrc"
        folder = Path(out, exact.name[0])
        worst = 0.0
        for path in sorted(folder.rglob(pattern))[:N_COMPARED]:
            expected = read_volume(str(path)).astype(np.float64)
            mine = Path(out, job.name[0], path.relative_to(folder))
            found = read_volume(str(mine)).astype(np.float64)
            worst = max(worst, float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std()))
    return worst


def add_startup(session: Session) -> None:
    """Let --help and one small tomogram wait."""
    data = session.settings.data
    session.add(Key("startup", HELP, 0), lambda: run_command([*PROGRAM, "--help"], data)[0])
    project = Project(data, SMALL_SIZE)
    session.add_job(SMALL_JOB, TWO_THREADS_WRITTEN, project, SMALL_PARTICLES, section=SMALL)


def check_startup(session: Session) -> list[Check]:
    """Return what is required of the start."""
    limits = {
        Key("startup", HELP, 0): HELP_SECONDS,
        Key(SMALL, TWO_THREADS_WRITTEN.name, SMALL_PARTICLES): SMALL_SECONDS,
    }
    found = ((key, session.median(key), limit) for key, limit in limits.items())
    return [
        Check(f"{key.section}, {key.way}: seconds", usage.wall, limit)
        for key, usage, limit in found
        if usage is not None
    ]


def add_star(session: Session, shrink: int = 1) -> None:
    """Let the STAR files of large jobs wait.

    Parameters
    ----------
    session : Session
    shrink : int
        Divides the numbers of particles, to try it out.
    """
    project = Project(session.settings.data, STAR_SIZE)
    tomograms = project.make_tomograms(STAR_TOMOGRAMS)
    for what, n in ((MERGED, STAR_PARTICLES // shrink), (MOVED, STAR_TRAJECTORIES // shrink)):
        columns = STAR_COLUMNS if what == MERGED else 0
        share = n // STAR_TOMOGRAMS
        picks = project.make_picks(STAR_JOB, share, STAR_TOMOGRAMS, columns)
        command = [sys.executable, STAR_SCALE, "--p", picks.path, "--t", tomograms]
        if what == MOVED:
            command += ["--mot", _write_motion(project, share)]

        def measure(command: list[str] = command) -> Usage:
            with tempfile.TemporaryDirectory(dir=session.settings.out) as out:
                usage, output = run_command([*command, "--o", f"{out}/"], project.directory)
            seconds = json.loads(output.splitlines()[-1])
            parts = ", ".join(f"{part} {value:.2f} s" for part, value in seconds.items())
            print(parts, flush=True)
            # the work alone, without the start of Python; memory is that of the process
            return Usage(sum(seconds.values()), usage.user, usage.system, usage.private, usage.rss)

        session.add(Key("star", what, share * STAR_TOMOGRAMS), measure)


def _write_motion(project: Project, n_particles: int) -> str:
    name = f"Polish/motion_{STAR_TOMOGRAMS}x{n_particles}.star"
    path = project.directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    series = [project.tilt_series(i).name for i in range(STAR_TOMOGRAMS)]
    names = [f"{one}/{i + 1}" for one in series for i in range(n_particles)]
    rng = np.random.default_rng(0)
    write_trajectories(path, names, rng.normal(0, 2, (len(names), STAR_SIZE.n_tilts, 3)))
    return name


def check_star(session: Session) -> list[Check]:
    """Return what is required of STAR files, for the full numbers."""
    checks = []
    merged = session.median(Key("star", MERGED, STAR_PARTICLES))
    if merged is not None:
        text = f"{STAR_PARTICLES:,} particles x {STAR_COLUMNS} columns {MERGED[7:]}"
        checks.append(Check(f"{text}: seconds", merged.wall, STAR_SECONDS))
        checks.append(Check(f"{text}: GB", merged.rss / 1e9, STAR_GB))
    moved = session.median(Key("star", MOVED, STAR_TRAJECTORIES))
    if moved is not None:
        text = f"{STAR_TRAJECTORIES:,} trajectories x {STAR_SIZE.n_tilts} frames read: seconds"
        checks.append(Check(text, moved.wall, TRAJECTORY_SECONDS))
    return checks


def run_headline(session: Session, shrink: int = 1) -> list[Check]:
    """Run the jobs of RELION's tutorial and of its older manual, once each.

    Parameters
    ----------
    session : Session
    shrink : int
        Divides the numbers of particles, to try it out.
    """
    project = session.project()
    needed = project.missing_bytes(HEADLINE_TOMOGRAMS) + HEADLINE_OUTPUT_BYTES // shrink
    if needed > min(map(free_bytes, (session.settings.data, session.settings.out))):
        raise BenchmarkError(f"headline: expected {needed / 1e9:.0f} GB of free disk")
    rate = measure_disk(session.settings.out) / 1e6
    session.note(f"The disk takes {rate:.0f} MB/s: a file of 1 GB, until it is on the disk")
    first = _add_headline(
        session, "F", HEADLINE_PARTICLES // shrink, HEADLINE_TOMOGRAMS, written=True
    )
    whole = _add_headline(session, "A", MANUAL_PARTICLES // shrink, 1, written=False)
    written = _add_headline(session, "A", MANUAL_WRITTEN // shrink, 1, written=True)
    session.run(repeats=1)
    if not {first, whole, written} <= session.runs.keys():
        return []
    seconds = session.runs[first][0].wall
    manual = session.runs[whole][0].wall
    run = session.runs[written][0]
    session.note(
        f"Older manual's job: {whole.particles:,} particles of one tomogram in {manual:.0f} s "
        f"without writing, so {HEADLINE_TOMOGRAMS} tomograms in "
        f"{HEADLINE_TOMOGRAMS * manual / 60:.1f} minutes. {written.particles:,} particles written: "
        f"{session.bytes_written[written] / 1e6:.0f} MB in {run.wall:.1f} s, "
        f"{session.bytes_written[written] / 1e6 / run.wall:.0f} MB/s"
    )
    if shrink > 1:
        return []
    text = f"headline: F's options, {first.particles:,} particles written: minutes"
    return [Check(text, seconds / 60, HEADLINE_SECONDS / 60)]


def _add_headline(
    session: Session, name: str, n_particles: int, n_tomograms: int, *, written: bool
) -> Key:
    """Let one of the headline's jobs wait; `n_particles` are those of each tomogram."""
    way = TWO_THREADS_WRITTEN if written else TWO_THREADS
    return session.add_job(
        CONFIGURATIONS[name],
        way,
        session.project(),
        n_particles,
        n_tomograms,
        f"headline, {name}'s options",
    )
