"""Show how many milliseconds of one thread each stage of a particle takes.

    python scripts/profile_stages.py            # the job A of benchmark.py, 40 particles
    python scripts/profile_stages.py B --particles 100

The program itself runs, in this process and on the benchmark's data; its kernels, its plans and its
writer are replaced by ones that look at the clock. Which of them belongs to which stage stands in
three tables below: a kernel or plan that they do not know gets a row of its own. What the program
does in one call is done in several here, so that each can be timed. Looking at the clock takes a
microsecond each time, some 2 ms a particle, and is part of the last row but two.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarking.configurations import CONFIGURATIONS, Configuration
from benchmarking.data import Project, Size, default_directory

from relion_pseudosubtomo import cli
from relion_pseudosubtomo.core import fft, kernels, packed, subtomogram
from relion_pseudosubtomo.core.frame_loop import FrameLoop
from relion_pseudosubtomo.core.windows import WindowTransform
from relion_pseudosubtomo.io import mrc

CUT = "cut windows"
ROWS = "row transforms"
COLUMNS = "column transforms"
WEIGHT = "crop, shift, CTF, dose"
BACK = "back to real space"
FORTH = "forward again"
INSERTION = "insertion"
UNPACK = "unpack, scale, sign"
VOLUME = "3D c2r"
WRITE = "write"
REST = "Python between the stages"
STAGES = (CUT, ROWS, COLUMNS, WEIGHT, BACK, FORTH, INSERTION, UNPACK, VOLUME)

#: Kernel -> stage; those with a new name are added here.
KERNEL_STAGES = {
    "copy_rows": CUT,
    "cut_binned": CUT,
    "join_rows": ROWS,
    "join_columns": COLUMNS,
    "make_ramps": WEIGHT,
    "weight_slice": WEIGHT,
    "weight_cone": WEIGHT,
    "pack_rows": BACK,
    "mask_pairs": BACK,
    "crop_pairs": BACK,
    "unpack_rows": FORTH,
    "insert_slice": INSERTION,
    "unpack_volume": UNPACK,
}
#: Attribute of the extractor, or of what it holds, where a plan is kept -> stage.
PLAN_STAGES = {
    "row_plan": ROWS,
    "column_plan": COLUMNS,
    "to_columns": BACK,
    "to_rows": BACK,
    "from_rows": FORTH,
    "from_columns": FORTH,
}

#: What plans are looked for in.
WITH_PLANS = (FrameLoop, WindowTransform)

#: Particles before the clock counts: they heat caches and touch memory for the first time.
N_WARM = 3


class Clock:
    """Adds up the seconds of each stage, particle by particle."""

    def __init__(self) -> None:
        self.particles: list[dict[str, float]] = []
        self.totals: list[float] = []
        self.writing: list[float] = []
        self._now: dict[str, float] = defaultdict(float)

    def time(self, action: Callable[..., Any], stage: Callable[[], str]) -> Callable[..., Any]:
        """Return the action with its time added to a stage."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            result = action(*arguments, **keywords)
            seconds = time.perf_counter() - started
            self._now[stage()] += seconds
            return result

        return timed

    def time_particle(self, action: Callable[..., Any]) -> Callable[..., Any]:
        """Return the action that makes a whole particle, timed as such."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            self._now.clear()
            started = time.perf_counter()
            result = action(*arguments, **keywords)
            self.totals.append(time.perf_counter() - started)
            self.particles.append(dict(self._now))
            self.writing.append(0.0)
            return result

        return timed

    def time_writer(self, action: Callable[..., Any]) -> Callable[..., Any]:
        """Return the writer, its time added to the particle just made."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            result = action(*arguments, **keywords)
            self.writing[-1] += time.perf_counter() - started
            return result

        return timed

    def medians(self) -> dict[str, float]:
        """Return the median milliseconds a particle of each stage, in order."""
        kept = self.particles[N_WARM:] or self.particles
        totals = self.totals[-len(kept) :]
        found = dict.fromkeys((*STAGES, *(name for each in kept for name in each)))
        table = {name: [each.get(name, 0.0) for each in kept] for name in found}
        table[REST] = [total - sum(each.values()) for total, each in zip(totals, kept, strict=True)]
        table["sum without write"] = totals
        table[WRITE] = self.writing[-len(kept) :]
        return {name: 1e3 * statistics.median(values) for name, values in table.items()}


class TimedPlan:
    """A plan that looks at the clock; its stage is known once its owner is complete."""

    def __init__(self, plan: Any, clock: Clock) -> None:
        self._plan = plan
        self.stage = "plan"
        self.execute = clock.time(plan.execute, lambda: self.stage)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plan, name)


def name_plans(owner: Any) -> None:
    """Give the plans of an object, and of what it holds, the stage of their attribute's name."""
    for attribute, value in vars(owner).items():
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, TimedPlan):
                each.stage = PLAN_STAGES.get(attribute, f"plan {attribute}")
            elif isinstance(each, WITH_PLANS):
                name_plans(each)


def with_plain_plans(make: Callable[..., None]) -> Callable[..., None]:
    """Return what makes an object whose plans are not timed one by one: it is timed as a whole."""
    plan_backward = fft.plan_backward

    def make_with_plain_plans(*arguments: Any, **keywords: Any) -> None:
        with patch.object(fft, "plan_backward", plan_backward):
            make(*arguments, **keywords)

    return make_with_plain_plans


def instrument(clock: Clock, patches: ExitStack) -> None:
    """Replace kernels, plans, the extractor's methods and the writer by timed ones."""
    enter = patches.enter_context
    enter(patch.object(kernels, "FrameRunner", None))  # kernel by kernel, not all in one call
    for name in kernels.__all__:
        kernel = getattr(kernels, name)
        if name.islower() and callable(kernel):
            find_stage = functools.partial(KERNEL_STAGES.get, name, f"kernel {name}")
            enter(patch.object(kernels, name, clock.time(kernel, find_stage)))
    cube = packed.CubeTransform
    enter(patch.object(cube, "__init__", with_plain_plans(cube.__init__)))
    enter(patch.object(cube, "execute", clock.time(cube.execute, lambda: VOLUME)))
    for name in ("plan_forward", "plan_backward"):
        make = getattr(fft, name)

        def make_timed(*arguments: Any, make: Any = make, **keywords: Any) -> TimedPlan:
            return TimedPlan(make(*arguments, **keywords), clock)

        enter(patch.object(fft, name, make_timed))
    extractor = subtomogram.ParticleExtractor
    make_extractor = extractor.__init__

    def make_named(self: Any, *arguments: Any, **keywords: Any) -> None:
        make_extractor(self, *arguments, **keywords)
        name_plans(self)

    enter(patch.object(extractor, "__init__", make_named))
    for name in ("extract_stack", "extract_subtomogram"):
        enter(patch.object(extractor, name, clock.time_particle(getattr(extractor, name))))
    enter(patch.object(mrc, "write_mrc", clock.time_writer(mrc.write_mrc)))


def run_job(configuration: Configuration, project: Project, n_particles: int) -> Clock:
    """Run a job in this process with one thread; return the times."""
    tomograms = project.make_tomograms()
    project.fill_page_cache()
    picks = project.make_picks(configuration, n_particles + N_WARM).path
    clock = Clock()
    with tempfile.TemporaryDirectory(dir=project.directory) as out, ExitStack() as patches:
        os.chdir(project.directory)  # paths in STAR files are relative to it
        words = ["--p", picks, "--t", tomograms]
        words += [*configuration.options(), "--j", "1", "--o", f"{out}/", "--log_level", "error"]
        instrument(clock, patches)
        status = cli.main(words)
    if status or not clock.particles:
        raise SystemExit(f"the job ended with {status}")
    return clock


def make_table(configuration: Configuration, clock: Clock) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    medians = clock.medians()
    total = medians["sum without write"]
    yield f"{configuration.name}: {configuration.title}, one thread"
    yield ""
    yield "| stage | ms a particle | share |"
    yield "|---|---|---|"
    for name, milliseconds in medians.items():
        share = "" if name == WRITE else f"{milliseconds / total:.0%}"
        yield f"| {name} | {milliseconds:.2f} | {share} |"


def main() -> None:
    """Measure and print."""
    size = Size()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("job", nargs="?", default="A", choices=CONFIGURATIONS, help="of benchmark.py (A)")
    add("--particles", type=int, default=40, help="particles that are timed (40)")
    add("--data", type=Path, default=default_directory(), help="where data are made and kept")
    add("--image_size", type=int, nargs=2, default=size.image_size_xy, help="x, y in pixels")
    add("--tilts", type=int, default=size.n_tilts, help="images of a tilt series")
    add("--thickness", type=int, default=size.thickness, help="of a tomogram, pixels")
    given = parser.parse_args()
    width, height = given.image_size
    size = Size((width, height), given.tilts, given.thickness)
    configuration = CONFIGURATIONS[given.job]
    project = Project(given.data.absolute(), size, configuration.image_type)
    for line in make_table(configuration, run_job(configuration, project, given.particles)):
        print(line)


if __name__ == "__main__":
    main()
