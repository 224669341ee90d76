"""Read random particles of a directory once, from its container or its MRC files; print seconds.

The time is that of opening the data set and reading, without the start of Python.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from relion_pseudosubtomo.api.dataset import open_dataset


def measure(path: Path, n_particles: int) -> dict[str, float]:
    """Return the seconds of opening a data set, and of reading so many particles of it."""
    started = time.perf_counter()
    dataset = open_dataset(path)
    opened = time.perf_counter()
    rows = np.random.default_rng(0).choice(len(dataset), min(n_particles, len(dataset)), False)
    total = 0.0
    for row in rows.tolist():
        total += float(dataset[row].images[0, 0, 0])  # so that nothing is left to be read
    return {"open": opened - started, "read": time.perf_counter() - opened}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time the reading of random particles.")
    parser.add_argument("path", type=Path, help="particles.h5 or particles.star")
    parser.add_argument("particles", type=int)
    given = parser.parse_args()
    print(json.dumps(measure(given.path, given.particles)))


if __name__ == "__main__":
    main()
