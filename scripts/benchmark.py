"""Measure how fast the program is, how much memory it takes, and how far it is from the floor.

    python scripts/benchmark.py                 # A to G and P, floor, other program, start, STAR
    python scripts/benchmark.py A B floor       # only these
    python scripts/benchmark.py --quick         # once, few particles, to try it out
    python scripts/benchmark.py headline        # the tutorial's job, in full

The data, noise of the size of real tilt images (2.3 GB a tomogram), are made once and kept. The
benchmark writes benchmark.md, benchmark.json and benchmark.png. Times are medians of interleaved
runs in fresh processes; leave the machine alone meanwhile. Ctrl-C ends it with the repeats that are
whole.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarking import checked, containers, sections
from benchmarking.checks import Check, check_all
from benchmarking.data import Size, default_directory
from benchmarking.machine import describe_machine
from benchmarking.processes import BenchmarkError
from benchmarking.report import write_results
from benchmarking.scaling import Scaling
from benchmarking.session import Session, Settings

SECTIONS = {
    "A": "192/96/4, 3D",
    "B": "the same, 2D stacks",
    "C": "A's smaller number of particles, from process start to exit",
    "D": "96/64/2, 3D",
    "E": "256/128/1, 3D",
    "F": "192/96/6, 2D, float16, dose up to 50 e/A^2; and with all frames",
    "G": "A with float16 tilt images",
    "P": "A and B with --prebin, and how far that is from exact",
    "V": "A with --average",
    "floor": "the transforms that nothing can avoid, for each chosen job",
    "zarr": "zarr-particle-tools 1.0.1 on B",
    "startup": "--help, and one small tomogram",
    "star": "200,000 particles, 20,000 trajectories",
    "check": "check of 1,000 tomograms and 200,000 particles, verify of 10,000 particles",
    "hdf5": "containers against MRC files: written, and 1,000 random particles read",
    "scaling": "efficiency of 2 threads and 2 ranks, by single particles too; only if asked for",
    "headline": "the tutorial's first extraction, and the older manual's; only if asked for",
}
ONLY_ON_DEMAND = {"headline", "scaling"}
#: Sections whose figures are compared with those of another.
NEEDS = {"C": "A", "G": "A", "P": "A", "V": "A", "zarr": "B"}

PARTICLES, QUICK_PARTICLES = (40, 200), (4, 16)
REPEATS = 5
QUICK_SHRINK = 100


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="sections (all but scaling and headline where none is named):\n"
        + "\n".join(f"  {name:10} {text}" for name, text in SECTIONS.items()),
    )
    size = Size()
    add = parser.add_argument
    add("sections", nargs="*", metavar="SECTION", help="what to measure: see below")
    add("--data", type=Path, default=default_directory(), help="where data are made and kept")
    add("--out", type=Path, help="where results are written for a while (beside the data)")
    add("--results", type=Path, default=Path("benchmark_results"), help="where the tables go")
    add("--particles", type=int, nargs=2, metavar="N", help="two particle numbers (40 200)")
    add("--repeats", type=int, help=f"runs of each ({REPEATS})")
    add("--quick", action="store_true", help="one run each, few particles, to try it out")
    add(
        "--versus",
        metavar="COMMAND",
        help="another program's command line with {particles}, {tomograms} and {out}; "
        "it starts in the project's folder",
    )
    add("--image_size", type=int, nargs=2, default=size.image_size_xy, help="x, y in pixels")
    add("--tilts", type=int, default=size.n_tilts, help="images of a tilt series")
    add("--thickness", type=int, default=size.thickness, help="of a tomogram, pixels")
    return parser


def choose_sections(names: Sequence[str]) -> set[str]:
    """Return the sections that are measured, those included that others are compared with.

    Raises
    ------
    BenchmarkError
        For an unknown name.
    """
    unknown = sorted(set(names) - SECTIONS.keys())
    if unknown:
        raise BenchmarkError(f"sections: expected some of {', '.join(SECTIONS)}, found {unknown}")
    chosen = set(names) or SECTIONS.keys() - ONLY_ON_DEMAND
    return chosen | {NEEDS[name] for name in chosen if name in NEEDS}


def make_settings(given: argparse.Namespace) -> Settings:
    """Return the settings of a command line."""
    few, many = given.particles or (QUICK_PARTICLES if given.quick else PARTICLES)
    if not 0 < few < many:
        raise BenchmarkError(f"--particles: expected two ascending numbers, found {few} {many}")
    out = given.out or given.data / "out"
    for folder in (given.data, out):
        folder.mkdir(parents=True, exist_ok=True)
    width, height = given.image_size
    return Settings(
        size=Size((width, height), given.tilts, given.thickness),
        particles=(few, many),
        repeats=given.repeats or (1 if given.quick else REPEATS),
        data=given.data.absolute(),
        out=out.absolute(),
    )


def measure(session: Session, chosen: set[str], versus: str | None, shrink: int) -> list[Check]:
    """Measure the chosen sections; return what is required, with what was found."""
    sections.add_configurations(session, chosen)
    if "floor" in chosen:
        sections.add_floors(session, chosen)
    if "zarr" in chosen:
        sections.add_zarr(session)
    if versus:
        sections.add_versus(session, versus)
    if "startup" in chosen:
        sections.add_startup(session)
    if "star" in chosen:
        sections.add_star(session, shrink)
    if "check" in chosen:
        checked.add_checks(session, shrink)
    if "hdf5" in chosen:
        containers.add_writing(session)
    scaling = Scaling(session)
    if "scaling" in chosen:
        scaling.add()
    session.run()
    checks = check_all(session) + scaling.check()
    session.tables += scaling.lines()
    if "hdf5" in chosen:
        checks += containers.check_writing(session)
        checks += containers.compare_reading(session, shrink)
    if "P" in chosen and sections.has_prebin(session):
        checks += sections.compare_prebin(session)
    checks += sections.check_startup(session) + sections.check_star(session)
    checks += checked.check_checks(session)
    if "headline" in chosen:
        checks += sections.run_headline(session, shrink)
    return checks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    given = build_parser().parse_args(arguments)
    try:
        chosen = choose_sections(given.sections)
        session = Session(make_settings(given))
        machine = describe_machine()
        checks = measure(session, chosen, given.versus, QUICK_SHRINK if given.quick else 1)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    print(write_results(given.results, session, machine, checks))
    return 1 if session.failed else 0


if __name__ == "__main__":
    sys.exit(main())
