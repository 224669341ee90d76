"""Read, merge and write the STAR files of a large job as the program does, without its images.

Prints the seconds of each as JSON. With --mot the reading of the trajectories alone is timed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io.trajectories import read_trajectories
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.preflight import read_and_check
from relion_pseudosubtomo.results import write_tables


def measure_tables(options: JobOptions) -> dict[str, float]:
    """Return the seconds of reading with checks and plan, and of merging and writing."""
    started = time.perf_counter()
    job, plan = read_and_check(options)
    read = time.perf_counter()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    write_tables(options, job, plan)
    written = time.perf_counter()
    return {"read": read - started, "merge and write": written - read}


def measure_trajectories(options: JobOptions, path: str) -> dict[str, float]:
    """Return the seconds of reading trajectories."""
    job, _ = read_and_check(options)
    findings = Findings()
    started = time.perf_counter()
    trajectories = read_trajectories(path, job.particle_set, job.tomogram_set, findings)
    seconds = time.perf_counter() - started
    if trajectories is None:
        raise SystemExit(f"{path} could not be read")
    return {"read": seconds}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time the STAR files of a large job.")
    for name in ("--p", "--t", "--o"):
        parser.add_argument(name, required=True)
    parser.add_argument("--mot", help="time the reading of this trajectory file instead")
    given = parser.parse_args()
    options = JobOptions(
        output=given.o, particles=given.p, tomograms=given.t, box=16, crop=8, binning=1.0
    )
    measured = measure_trajectories(options, given.mot) if given.mot else measure_tables(options)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
