"""Simulated RELION projects, their extraction by one process, and comparison with that."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cluster import MISLEADING

#: As in the templates, where a user finds them.
INPUT, OUTPUT = "Picks/job007/optimisation_set.star", "PseudoSubtomo/job009/"
PARTICLES = "Picks/job007/particles.star"

#: A small set, so that the jobs are short.
SIMULATION = shlex.split("--tomograms 6 --particles 60 --tilts 11 --tilt_step 6 --size 512 512")
SMALL_OPTIONS = tuple(shlex.split("--b 64 --crop 24 --bin 4"))

#: Windows of 1024 pixels: much to compute for each particle, and little to write.
LONG_OPTIONS = tuple(shlex.split("--b 256 --crop 24 --bin 4 --stack2d"))

PROCESS_SECONDS = 150
RESULT_SUFFIXES = (".mrc", ".mrcs", ".star")


@dataclass(frozen=True)
class Project:
    """A RELION project directory whose extraction by one process is known.

    Attributes
    ----------
    path : Path
        The directory; after `extract_reference` it has the results of one process.
    options : tuple of str
        Boxes and binning.
    """

    path: Path
    options: tuple[str, ...]

    def extract_reference(self, threads: int = 2) -> None:
        """Extract in one process."""
        words = ["--i", INPUT, "--o", OUTPUT, "--j", str(threads), *self.options]
        run_python("relion_pseudosubtomo", words, self.path)

    def copy(self, folder: Path) -> Project:
        """Return a project in an empty folder, with the same input and no results."""
        for path in self.path.iterdir():
            if path.name != Path(OUTPUT).parts[0]:
                (folder / path.name).symlink_to(path)
        return Project(folder, self.options)

    @property
    def output(self) -> Path:
        """The output directory of its job."""
        return self.path / OUTPUT

    def results(self) -> dict[str, bytes]:
        """Return the content of every image and STAR file of the job by its path."""
        return {
            str(path.relative_to(self.output)): path.read_bytes()
            for path in self.output.rglob("*")
            if path.suffix in RESULT_SUFFIXES
        }

    def summary(self) -> dict[str, object]:
        """Return the figures of the last run."""
        return dict(json.loads((self.output / "run_summary.json").read_text()))

    def n_records(self) -> int:
        """Return how many completion records there are by now."""
        return sum(1 for _ in self.output.glob(".completed/*/*"))


def run_python(module: str, words: list[str], folder: Path) -> None:
    """Run a module of the package in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(MISLEADING)}
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env=clean,
        timeout=PROCESS_SECONDS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def write_small_project(folder: Path) -> Project:
    """Simulate a project of a few dozen particles."""
    run_python("relion_pseudosubtomo.simulate", ["--o", str(folder), *SIMULATION], folder)
    return Project(folder, SMALL_OPTIONS)


def write_long_project(folder: Path, source: Project, seconds: float) -> Project:
    """Return a project that keeps one thread busy for some time: every particle many times over."""
    trial_folder = folder / "trial"
    trial_folder.mkdir()
    trial = Project(source.copy(trial_folder).path, LONG_OPTIONS)
    trial.extract_reference(threads=1)
    figures = trial.summary()
    n_repeats = round(seconds * float(str(figures["particles_per_second"])) / len_kept(figures))

    project_folder = folder / "project"
    project_folder.mkdir()
    project = Project(source.copy(project_folder).path, LONG_OPTIONS)
    picks = project.path / Path(PARTICLES).parts[0]
    picks.unlink()
    for name in (INPUT, PARTICLES):
        text = (source.path / name).read_text()
        path = project.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(repeat_particles(text, n_repeats) if name == PARTICLES else text)
    return project


def len_kept(figures: dict[str, object]) -> int:
    """Return how many particles a run kept."""
    return int(str(figures["n_kept"]))


def repeat_particles(text: str, n_repeats: int) -> str:
    """Return a particle table with every particle repeated under names of its own."""
    head, _, table = text.partition("data_particles")
    lines = table.splitlines()
    labels = [line.split()[0] for line in lines if line.startswith("_")]
    name = labels.index("_rlnTomoParticleName")
    rows = [line.split() for line in lines if len(line.split()) == len(labels)]
    start = [line for line in lines if line.startswith("_") or line == "loop_"]
    repeated = [
        "\t".join([*row[:name], f"{row[name]}{repeat:04d}", *row[name + 1 :]])
        for row in rows
        for repeat in range(n_repeats)
    ]
    return "\n".join([f"{head}data_particles", "", *start, *repeated, ""])
