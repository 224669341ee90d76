"""One run of the benchmark: what is to be measured, in which order, and what came out."""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .configurations import FLOAT32, WRITTEN, Configuration, Way
from .data import Picks, Project, Size
from .processes import BenchmarkError, Usage, median_usage, run_command

PROGRAM = (sys.executable, "-m", "relion_pseudosubtomo")
FLOOR = (sys.executable, str(Path(__file__).with_name("floor.py")))

#: Open MPI refuses root, and more ranks than cores, unless it is told.
MPI_ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
MPI_OPTIONS = ("--bind-to", "none", "--map-by", ":OVERSUBSCRIBE")


@dataclass(frozen=True)
class Key:
    """Names a measurement.

    Attributes
    ----------
    section : str
        Letter of a configuration, or another section.
    way : str
        How it was run.
    particles : int
        Particles of the run; 1 where the figures are those of one particle.
    """

    section: str
    way: str
    particles: int = 1


@dataclass(frozen=True)
class Settings:
    """What the command line chose.

    Attributes
    ----------
    size : Size
    particles : tuple of int
        The two particle numbers of a slope.
    repeats : int
    data, out : Path
        Folders of the data, and of what is extracted for a while.
    """

    size: Size
    particles: tuple[int, int]
    repeats: int
    data: Path
    out: Path

    def particles_of(self, configuration: Configuration) -> tuple[int, int]:
        """Return the two particle numbers of a configuration."""
        few, many = (max(1, round(n * configuration.share)) for n in self.particles)
        return few, max(many, few + 1)


@dataclass
class Session:
    """Measurements that wait, and the figures of those that are done.

    Attributes
    ----------
    settings : Settings
    runs : dict of Key to list of Usage
        One a repeat.
    bytes_written : dict of Key to int
        Of runs that wrote.
    notes : list of str
        What was skipped and why, and facts of the data.
    tables : list of str
        Lines of further tables, as Markdown.
    failed : bool
        Whether a measurement failed; a note says which.
    """

    settings: Settings
    runs: dict[Key, list[Usage]] = field(default_factory=dict)
    bytes_written: dict[Key, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    failed: bool = False
    _waiting: dict[Key, Callable[[], Usage]] = field(default_factory=dict)
    _projects: dict[str, Project] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Print a remark and keep it for the report."""
        if text not in self.notes:
            print(text, flush=True)
            self.notes.append(text)

    def project(self, image_type: str = FLOAT32) -> Project:
        """Return the project with images of a type."""
        if image_type not in self._projects:
            made = Project(self.settings.data, self.settings.size, image_type)
            self._projects[image_type] = made
        return self._projects[image_type]

    def add(self, key: Key, measure: Callable[[], Usage]) -> None:
        """Let a measurement wait for `run`."""
        self._waiting[key] = measure

    def run(self, repeats: int | None = None) -> None:
        """Do all that waits, one after the other, and that again for every repeat.

        Interleaved, because the speed of a machine drifts: what is compared is measured within
        the same minutes. An interrupt (Ctrl-C) leaves it at the repeats that are whole.
        """
        n = self.settings.repeats if repeats is None else repeats
        sections = list(dict.fromkeys(key.section for key in self._waiting))

        def place(key: Key) -> tuple[int, bool]:
            # a section's floor and rivals right after it; what writes last, as its deleted files
            # keep the disk busy for a while
            return sections.index(key.section), key.way.endswith(WRITTEN)

        ordered = sorted(self._waiting.items(), key=lambda item: place(item[0]))
        for repeat in range(n):
            try:
                self._run_each(ordered, f"{repeat + 1}/{n}")
            except KeyboardInterrupt:
                if not repeat:
                    raise
                self.note(f"stopped after {repeat} of {n} repeats")
                self.settings = replace(self.settings, repeats=repeat)
                for key in self._waiting:
                    del self.runs.get(key, [])[repeat:]
                break
        self._waiting.clear()

    def _run_each(self, ordered: list[tuple[Key, Callable[[], Usage]]], repeat: str) -> None:
        for key, measure in ordered:
            os.sync()  # the disk is at rest
            try:
                usage = measure()
            except BenchmarkError as error:  # the other figures are still worth having
                self.failed = True
                self.note(f"FAILED {key.section}, {key.way}, {key.particles}: {error}")
                continue
            self.runs.setdefault(key, []).append(usage)
            print(
                f"{repeat}  {key.section}, {key.way}, {key.particles}: "
                f"wall {usage.wall:.3f} s, user {usage.user:.3f} s",
                flush=True,
            )

    def median(self, key: Key) -> Usage | None:
        """Return the medians of a measurement; None where it was not done."""
        return median_usage(self.runs[key]) if key in self.runs else None

    def slope(self, section: str, way: str) -> Usage | None:
        """Return what one more particle takes, between the two particle numbers.

        Memory is that of the larger number.
        """
        counts = sorted({k.particles for k in self.runs if (k.section, k.way) == (section, way)})
        if len(counts) < 2:
            return None
        few, many = (median_usage(self.runs[Key(section, way, n)]) for n in counts[:2])
        n = counts[1] - counts[0]
        return Usage(
            (many.wall - few.wall) / n,
            (many.user - few.user) / n,
            (many.system - few.system) / n,
            many.private,
            many.rss,
        )

    def efficiency(self, section: str, way: Way) -> float | None:
        """Return the wall of one thread over twice that of two, for a particle of the same job."""
        one, two = self.slope(section, way.alone.name), self.slope(section, way.name)
        return None if one is None or two is None else one.wall / (2 * two.wall)

    def paired_efficiency(self, section: str, way: Way) -> tuple[float, float] | None:
        """Return the efficiency by the means of the repeats, and its standard error.

        The error is the jackknife's: how much the figure owes to single repeats.
        """
        one, two = self._slopes(section, way.alone.name), self._slopes(section, way.name)
        n = len(one)
        if n < 2 or n != len(two):
            return None
        without = [(sum(one) - a) / (2 * (sum(two) - b)) for a, b in zip(one, two, strict=True)]
        error = (n - 1) ** 0.5 * statistics.pstdev(without)
        return sum(one) / (2 * sum(two)), error

    def _slopes(self, section: str, way: str) -> list[float]:
        """Return what one more particle takes in wall time, by repeat."""
        counts = sorted({k.particles for k in self.runs if (k.section, k.way) == (section, way)})
        if len(counts) < 2:
            return []
        few, many = (self.runs[Key(section, way, n)] for n in counts[:2])
        if len(few) != len(many):  # one of them failed once
            return []
        n = counts[1] - counts[0]
        return [(more.wall - less.wall) / n for less, more in zip(few, many, strict=True)]

    # What is measured

    def add_configuration(self, configuration: Configuration, ways: Sequence[Way]) -> None:
        """Let a configuration wait, with both particle numbers, in several ways."""
        project = self.project(configuration.image_type)
        for n in self.settings.particles_of(configuration):
            self.note_picks(configuration, project.make_picks(configuration, n))
            for way in ways:
                self.add_job(configuration, way, project, max(1, n // way.tomograms), way.tomograms)

    def note_picks(self, configuration: Configuration, picks: Picks) -> None:
        """Say what the particles of a configuration look like."""
        self.note(
            f"{configuration.name}: {len(picks.n_visible)} particles, "
            f"{picks.n_visible.mean():.1f} frames each, "
            f"{picks.crossing:.1%} of the windows reach past an edge"
        )

    def add_job(
        self,
        configuration: Configuration,
        way: Way,
        project: Project,
        n_particles: int,
        n_tomograms: int = 1,
        section: str | None = None,
        *,
        program: Sequence[str] = PROGRAM,
        on_done: Callable[[Path], None] | None = None,
    ) -> Key:
        """Let one job of the program wait.

        Parameters
        ----------
        configuration : Configuration
        way : Way
        project : Project
        n_particles : int
            In each tomogram.
        n_tomograms : int
        section : str, optional
            Its name in the tables, if not that of the configuration.
        program : sequence of str
            What is started.
        on_done : callable, optional
            Called with the folder of the output directory before that is removed.

        Returns
        -------
        Key
        """
        key = Key(section or configuration.name, way.name, n_particles * n_tomograms)
        launcher = launcher_words(way.ranks)
        if launcher is None:
            self.note(f"{way.name} skipped: no mpirun beside the interpreter or in PATH")
            return key
        tomograms = project.make_tomograms(n_tomograms)
        picks = project.make_picks(configuration, n_particles, n_tomograms).path
        words = ["--p", picks, "--t", tomograms, *configuration.options(), "--j", str(way.threads)]
        if not way.writing:
            words.append("--no_writing")
        environment = MPI_ENVIRONMENT if way.ranks > 1 else {}

        def measure() -> Usage:
            with tempfile.TemporaryDirectory(dir=self.settings.out) as out:
                command = [*launcher, *program, *words, "--o", f"{out}/job/"]
                project.fill_page_cache(n_tomograms)
                usage, _ = run_command(command, project.directory, environment)
                self.bytes_written[key] = _image_bytes(Path(out))
                if on_done is not None:
                    on_done(Path(out))
            return usage

        self.add(key, measure)
        return key

    def add_floor(self, configuration: Configuration) -> None:
        """Let the floor of a configuration wait, on 1 and on 2 threads."""
        few, many = self.settings.particles_of(configuration)
        picks = self.project(configuration.image_type).make_picks(configuration, many)
        # the particles that make the slope, each with its own number of frames
        frames = np.random.default_rng(0).permutation(picks.n_visible[few:])
        words = ["--b", configuration.box, "--crop", configuration.crop]
        words += ["--bin", configuration.binning, "--frames", *frames]
        if configuration.stack2d:
            words.append("--stack2d")
        for threads in (1, 2):
            command = [*FLOOR, *map(str, words), "--threads", str(threads)]

            def measure(command: list[str] = command) -> Usage:
                _, output = run_command(command, self.settings.data)
                return Usage(**json.loads(output))

            self.add(Key(configuration.name, floor_way(threads)), measure)

    def add_command(
        self, section: str, way: str, template: str, n: int, picks: str, tomograms: str
    ) -> None:
        """Let another program's command line wait.

        Parameters
        ----------
        section, way : str
            Its names in the tables.
        template : str
            The command line with {particles}, {tomograms} and {out}.
        n : int
            Particles.
        picks, tomograms : str
            Paths of the STAR files in the float32 project, where it is started.
        """
        project = self.project()

        def measure() -> Usage:
            with tempfile.TemporaryDirectory(dir=self.settings.out) as out:
                words = [
                    word.format(particles=picks, tomograms=tomograms, out=f"{out}/job")
                    for word in shlex.split(template)
                ]
                project.fill_page_cache()
                return run_command(words, project.directory)[0]

        self.add(Key(section, way, n), measure)


def floor_way(threads: int) -> str:
    """Return the floor's name among the ways."""
    return f"floor, {threads} thread{'s' if threads > 1 else ''}"


def launcher_words(ranks: int) -> list[str] | None:
    """Return what starts several ranks; empty for one, None where there is nothing to do it."""
    if ranks == 1:
        return []
    beside = Path(sys.executable).with_name("mpirun")
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    if mpirun is None:
        return None
    options = MPI_OPTIONS if _is_open_mpi(mpirun) else ()
    return [mpirun, "-n", str(ranks), *options]


@functools.cache
def _is_open_mpi(mpirun: str) -> bool:
    told = subprocess.run(
        [mpirun, "--version"],
        capture_output=True,
        text=True,
        env={**os.environ, **MPI_ENVIRONMENT},
        check=False,
    )
    return "open" in told.stdout.lower()


def _image_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.mrc*") if path.is_file())
