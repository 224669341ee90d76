"""Measure `check` on 1,000 tomograms, and `verify` on 10,000 particles.

    python scripts/measure_checks.py [--folder DIR] [--tomograms N] [--particles N] [--verified N]

Makes the projects in a temporary folder (tilt images are headers with nothing behind them, in
sparse files), runs each command once and prints seconds and peak memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from relion_pseudosubtomo import labels

N_TILTS = 41
IMAGE_SIZE_XY = (3838, 3710)
PIXEL_SIZE = 1.35
SIZE_XYZ = (4000, 4000, 2000)
GLOBAL_LABELS = (
    labels.TOMO_NAME,
    labels.TILT_SERIES_STAR_FILE,
    *labels.TOMO_SIZE_XYZ,
    labels.HAND,
    labels.TILT_SERIES_PIXEL_SIZE,
    labels.VOLTAGE,
    labels.SPHERICAL_ABERRATION,
    labels.AMPLITUDE_CONTRAST,
)
TILT_LABELS = (
    labels.MICROGRAPH_NAME,
    labels.PRE_EXPOSURE,
    labels.X_TILT,
    labels.Y_TILT,
    labels.Z_ROT,
    labels.X_SHIFT,
    labels.Y_SHIFT,
    labels.DEFOCUS_U,
    labels.DEFOCUS_V,
    labels.DEFOCUS_ANGLE,
)


def write_table(path: Path, name: str, table_labels: tuple[str, ...], rows: list[str]) -> None:
    """Write one loop table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = "".join(f"_{label}\n" for label in table_labels)
    path.write_text(f"data_{name}\nloop_\n{head}" + "\n".join(rows) + "\n")


def write_image(path: Path, size_xy: tuple[int, int], noise: np.random.Generator | None) -> None:
    """Write a header, then noise, or nothing to the full length."""
    header = np.zeros((), HEADER_DTYPE)
    header["nx"], header["ny"], header["nz"] = *size_xy, 1
    header["mx"], header["my"], header["mz"] = *size_xy, 1
    header["cella"]["x"] = size_xy[0] * PIXEL_SIZE
    header["mode"], header["map"] = 2, b"MAP "
    header["machst"][:2] = 0x44
    with open(path, "wb") as file:
        file.write(header.tobytes())
        if noise is not None:
            file.write(noise.normal(size=size_xy[::-1]).astype(np.float32).tobytes())
        file.truncate(1024 + 4 * size_xy[0] * size_xy[1])


def make_project(
    folder: Path,
    n_tomograms: int,
    n_particles: int,
    size_xy: tuple[int, int],
    *,
    sparse: bool = True,
) -> None:
    """Write tomograms.star, the tilt tables and images, and particles.star."""
    rng = np.random.default_rng(0)
    names = [f"TS_{i:04d}" for i in range(n_tomograms)]
    sizes = f"{size_xy[0]} {size_xy[1]} {SIZE_XYZ[2] * size_xy[0] // SIZE_XYZ[0] // 2 * 2}"
    rows = [f"{n} tilt_series/{n}.star {sizes} -1 {PIXEL_SIZE} 300 2.7 0.07" for n in names]
    write_table(folder / "tomograms.star", "global", GLOBAL_LABELS, rows)
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    for name in names:
        rows = []
        for i, tilt in enumerate(np.linspace(-60, 60, N_TILTS)):
            image = f"frames/{name}_{i:02d}.mrc"
            write_image(folder / image, size_xy, None if sparse else rng)
            values = (3.0 * i, 0.1, tilt, 85.0, 1.5, -2.5, 30000.0, 29000.0, 45.0)
            rows.append(" ".join([image, *(f"{value:.6f}" for value in values)]))
        write_table(folder / f"tilt_series/{name}.star", name, TILT_LABELS, rows)
    extent = 0.3 * PIXEL_SIZE * np.array([*size_xy, size_xy[0] / 4])
    places = rng.uniform(-extent, extent, (n_particles, 3))
    angles = rng.uniform(-180, 180, (n_particles, 3))
    particle_labels = (labels.TOMO_NAME, *labels.CENTERED_COORDINATE_XYZ, *labels.ANGLES)
    rows = [
        " ".join([names[i * n_tomograms // n_particles], *(f"{v:.6f}" for v in (*place, *angle))])
        for i, (place, angle) in enumerate(zip(places, angles, strict=True))
    ]
    write_table(folder / "particles.star", "particles", particle_labels, rows)


def measure(folder: Path, *words: str) -> None:
    """Run the program in a folder; print what it took."""
    command = [sys.executable, "-m", "relion_pseudosubtomo", *words]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds, megabytes = time.perf_counter() - started, usage.ru_maxrss / 1024
    print(output.strip().splitlines()[-1])
    what = "extraction" if words[0].startswith("--") else words[0]
    print(f"{what}: {seconds:.1f} s, {megabytes:.0f} MB, status {status >> 8}", flush=True)


def main() -> None:
    """Make the projects and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", help="where the projects go (a temporary folder)")
    parser.add_argument("--tomograms", type=int, default=1000)
    parser.add_argument("--particles", type=int, default=200_000)
    parser.add_argument("--verified", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name, "check")
        make_project(folder, options.tomograms, options.particles, IMAGE_SIZE_XY)
        job = ("--p", "particles.star", "--t", "tomograms.star", "--o", "out", "--stack2d")
        measure(folder, "check", *job, "--b", "192", "--crop", "96", "--bin", "4")
        folder = Path(name, "verify")
        make_project(folder, 10, options.verified, (160, 160), sparse=False)
        measure(folder, *job, "--b", "16", "--bin", "2")
        measure(folder, "verify", "out")
        measure(folder, "verify", "out", "--deep")


if __name__ == "__main__":
    main()
