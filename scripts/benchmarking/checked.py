"""Projects for `check` and `verify`: many tomograms of which only headers exist, many particles."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from relion_pseudosubtomo import labels

from .checks import Check
from .processes import run_command
from .session import PROGRAM, Key, Session

CHECKED_TOMOGRAMS, CHECKED_PARTICLES, VERIFIED_PARTICLES = 1000, 200_000, 10_000
CHECK_SECONDS, CHECK_GB, VERIFY_SECONDS = 30.0, 2.0, 60.0
CHECK = "check of 1,000 tomograms x 41 tilts"
VERIFY, VERIFY_DEEP = "verify", "verify --deep"
JOB = ("--p", "particles.star", "--t", "tomograms.star", "--o", "out", "--stack2d")
CHECKED_BOX = ("--b", "192", "--crop", "96", "--bin", "4")
VERIFIED_BOX = ("--b", "16", "--bin", "2")
SMALL_IMAGE_SIZE_XY = (160, 160)
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


def add_checks(session: Session, shrink: int = 1) -> None:
    """Let `check` of a large project, and `verify` of many particles, wait.

    Parameters
    ----------
    session : Session
    shrink : int
        Divides the numbers of tomograms and particles, to try it out.
    """
    n_tomograms, n_particles = CHECKED_TOMOGRAMS // shrink, CHECKED_PARTICLES // shrink
    folder = session.settings.data / f"checked-{n_tomograms}x{n_particles}"
    if not (folder / "particles.star").exists():
        make_project(folder, n_tomograms, n_particles, IMAGE_SIZE_XY)
    _add(session, CHECK, n_particles, folder, ["check", *JOB, *CHECKED_BOX])
    n_verified = VERIFIED_PARTICLES // shrink
    folder = session.settings.data / f"verified-{n_verified}"
    if not (folder / "out/particles.star").exists():
        shutil.rmtree(folder, ignore_errors=True)
        make_project(folder, 10, n_verified, SMALL_IMAGE_SIZE_XY, sparse=False)
        run_command([*PROGRAM, *JOB, *VERIFIED_BOX], folder)
    _add(session, VERIFY, n_verified, folder, ["verify", "out"])
    _add(session, VERIFY_DEEP, n_verified, folder, ["verify", "out", "--deep"])


def _add(session: Session, what: str, n: int, folder: Path, words: list[str]) -> None:
    session.add(Key("check", what, n), lambda: run_command([*PROGRAM, *words], folder)[0])


def check_checks(session: Session) -> list[Check]:
    """Return what is required of `check` and `verify`, for the full numbers."""
    checks = []
    usage = session.median(Key("check", CHECK, CHECKED_PARTICLES))
    if usage is not None:
        text = f"{CHECK}, {CHECKED_PARTICLES:,} particles"
        checks.append(Check(f"{text}: seconds", usage.wall, CHECK_SECONDS))
        checks.append(Check(f"{text}: GB", usage.rss / 1e9, CHECK_GB))
    for what in (VERIFY, VERIFY_DEEP):
        usage = session.median(Key("check", what, VERIFIED_PARTICLES))
        if usage is not None:
            text = f"{what}, {VERIFIED_PARTICLES:,} particles: seconds"
            checks.append(Check(text, usage.wall, VERIFY_SECONDS))
    return checks
