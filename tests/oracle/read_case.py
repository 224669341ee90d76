"""Read a reference case's folder into the oracle's inputs.

Section numbers are those of the specification's page on the data model. Only what the reference
cases contain is read, and nothing is checked: this is not a model for the program's own reader.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import starfile
from numpy.typing import NDArray

from .spec_extraction import (
    FloatArray,
    Frame,
    Options,
    Particle,
    Tomogram,
    euler_to_matrix,
    projection_matrix,
)

TEXT_LABELS = [
    "rlnTomoName",
    "rlnTomoParticleName",
    "rlnTomoTiltSeriesStarFile",
    "rlnTomoTiltSeriesName",
    "rlnMicrographName",
    "rlnOpticsGroupName",
    "rlnEvenZernike",
    "rlnOddZernike",
    "rlnTomoDeformationCoefficients",
]
MISSING_SIZE = -999.0
"""What stands for a tomogram size that is not given (1.3)."""


@dataclass(frozen=True)
class Case:
    """One reference case: its command line, options and, in output order, its particles."""

    folder: Path
    words: list[str]
    options: Options
    use_float16: bool
    tomograms: dict[str, Tomogram]
    particles: list[tuple[Tomogram, Particle]]


def read_case(folder: Path) -> Case:
    """Read the reference case in `folder` (its case.json, STAR files and images)."""
    words = json.loads((folder / "case.json").read_text())["options"]
    arguments = parse_options(words)
    tomograms = read_tomograms(folder)
    trajectories = read_trajectories(folder / arguments.mot) if arguments.mot else {}
    rows = read_particle_rows(folder / "particles.star")
    particles = [
        (tomogram, read_particle(row, tomogram, trajectories))
        for tomogram in tomograms.values()
        for row in rows
        if row["rlnTomoName"] == tomogram.name
    ]
    option_names = Options.__dataclass_fields__
    options = Options(**{k: v for k, v in vars(arguments).items() if k in option_names})
    return Case(folder, words, options, arguments.float16, tomograms, particles)


def parse_options(words: list[str]) -> argparse.Namespace:
    """Parse a case's command line; options that change no numbers are accepted and ignored."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--mot")
    parser.add_argument("--b", dest="box", type=int, required=True)
    parser.add_argument("--crop", type=int)
    parser.add_argument("--bin", dest="binning", type=float, default=1.0)
    parser.add_argument("--SNR", dest="snr", type=float, default=0.0)
    parser.add_argument("--taper", type=float, default=5.0)
    parser.add_argument("--min_frames", type=int, default=1)
    parser.add_argument("--max_dose", type=float, default=0.0)
    parser.add_argument("--cutoff_fract", type=float, default=0.01)
    parser.add_argument("--cone_angle", type=float, default=10.0)
    parser.add_argument("--cone_sig0", type=float, default=2.0)
    flags = (
        "stack2d real_subtomo circle_precrop no_circle_crop grid_precorr no_ctf no_ic whiten"
        " dont_apply_offsets apply_orientations cone_weight no_center float16"
        " ctf multi div nrm no_comb sum no_writing"
    )
    for flag in flags.split():
        parser.add_argument(f"--{flag}", action="store_true")
    return parser.parse_args(words)


def read_star(path: Path) -> dict[str, pd.DataFrame]:
    """Read all tables of a STAR file; a list table becomes a table of one row (1.1)."""
    blocks = starfile.read(path, always_dict=True, parse_as_string=TEXT_LABELS)
    return {
        name: pd.DataFrame([block]) if isinstance(block, dict) else block
        for name, block in blocks.items()
    }


def rows_of(table: pd.DataFrame) -> list[pd.Series]:
    """Return the rows of a table."""
    return [row for _, row in table.iterrows()]


def parse_vector(text: str) -> FloatArray:
    """Return the numbers of a vector written [1,2,3] (1.1)."""
    return np.array([float(word) for word in text.strip("[]").split(",")])


def vector(row: pd.Series, stem: str, axes: str = "XYZ", suffix: str = "") -> FloatArray:
    """Return the values of the labels stem + X/Y/Z + suffix."""
    return np.array([float(row[f"{stem}{axis}{suffix}"]) for axis in axes])


def read_mrc(path: Path) -> NDArray[np.generic]:
    """Read an MRC file's array, whatever its header's small faults."""
    with mrcfile.open(path, permissive=True) as mrc:
        return np.array(mrc.data)


# Tomograms and tilt series (1.3)


def read_tomograms(folder: Path) -> dict[str, Tomogram]:
    """Read tomograms.star with its tilt series and images, RELION 4 or 5 layout (1.3)."""
    tables = read_star(folder / "tomograms.star")
    return {
        row["rlnTomoName"]: read_tomogram(folder, row, tables) for row in rows_of(tables["global"])
    }


def read_tomogram(folder: Path, row: pd.Series, tables: dict[str, pd.DataFrame]) -> Tomogram:
    """Read one row of the global table, its per-tilt table and its images (1.3)."""
    name = row["rlnTomoName"]
    if "rlnTomoTiltSeriesStarFile" in row:
        tables = read_star(folder / row["rlnTomoTiltSeriesStarFile"])
    tilts = rows_of(tables[name])
    images = read_tilt_images(folder, row, tilts)
    size_xyz = np.array([float(row.get(f"rlnTomoSize{axis}", MISSING_SIZE)) for axis in "XYZ"])
    pixel_size = float(row["rlnTomoTiltSeriesPixelSize"])
    grid_x, grid_y = (int(row.get(f"rlnTomoDeformationGridSize{axis}", 0)) for axis in "XY")
    return Tomogram(
        name=name,
        frames=[
            read_frame(tilt, image, size_xyz, pixel_size)
            for tilt, image in zip(tilts, images, strict=True)
        ],
        size_xyz=size_xyz,
        pixel_size=pixel_size,
        hand=float(row["rlnTomoHand"]),
        voltage=float(row["rlnVoltage"]),
        spherical_aberration=float(row["rlnSphericalAberration"]),
        amplitude_contrast=float(row["rlnAmplitudeContrast"]),
        defocus_slope=float(row.get("rlnTomoDefocusSlope", 1.0)),
        bfactor_per_dose=float(row.get("rlnCtfBfactorPerElectronDose", 0.0)),
        deformation_type=row.get("rlnTomoDeformationType", ""),
        deformation_grid=(grid_x, grid_y),
        volume=read_volume(folder, row),
        volume_binning=float(row.get("rlnTomoTomogramBinning", 1.0)),
    )


def read_tilt_images(
    folder: Path, row: pd.Series, tilts: list[pd.Series]
) -> list[NDArray[np.generic]]:
    """Read all images of a series: one stack, single files or n@stack (1.3)."""
    if "rlnTomoTiltSeriesName" in row:
        return list(read_mrc(folder / row["rlnTomoTiltSeriesName"].removesuffix(":mrc")))
    images: list[NDArray[np.generic]] = []
    stacks: dict[str, NDArray[np.generic]] = {}
    for tilt in tilts:
        number, at, path = tilt["rlnMicrographName"].rpartition("@")
        if path not in stacks:
            stacks[path] = read_mrc(folder / path)
        images.append(stacks[path][int(number) - 1] if at else stacks[path])
    return images


def read_frame(
    tilt: pd.Series, image: NDArray[np.generic], size_xyz: FloatArray, pixel_size: float
) -> Frame:
    """Join one row of a per-tilt table with its image (1.3)."""
    if "rlnTomoProjX" in tilt:
        matrix = np.array([parse_vector(tilt[f"rlnTomoProj{axis}"]) for axis in "XYZW"])
    else:
        shift_px = vector(tilt, "rlnTomo", "XY", "ShiftAngst") / pixel_size
        matrix = projection_matrix(
            float(tilt.get("rlnTomoXTilt", 0.0)),
            float(tilt["rlnTomoYTilt"]),
            float(tilt["rlnTomoZRot"]),
            (shift_px[0], shift_px[1]),
            (image.shape[1], image.shape[0]),
            size_xyz,
        )
    coefficients = tilt.get("rlnTomoDeformationCoefficients")
    return Frame(
        image=image.astype(np.float64),
        projection=matrix,
        dose=float(tilt["rlnMicrographPreExposure"]),
        defocus_u=float(tilt["rlnDefocusU"]),
        defocus_v=float(tilt["rlnDefocusV"]),
        defocus_angle=float(tilt["rlnDefocusAngle"]),
        ctf_scale=float(tilt.get("rlnCtfScalefactor", 1.0)),
        ctf_bfactor=float(tilt.get("rlnCtfBfactor", 0.0)),
        phase_shift=float(tilt.get("rlnPhaseShift", 0.0)),
        deformation=None if coefficients is None else parse_vector(coefficients),
        nominal_tilt=float(tilt.get("rlnTomoNominalStageTiltAngle", 0.0)),
    )


def read_volume(folder: Path, row: pd.Series) -> FloatArray | None:
    """Read the reconstructed volume, or the sum of its halves (2.11); None where there is none."""
    labels = (
        ["rlnTomoReconstructedTomogram"],
        ["rlnTomoReconstructedTomogramHalf1", "rlnTomoReconstructedTomogramHalf2"],
    )
    for group in labels:
        if all(label in row for label in group):
            return np.sum([read_mrc(folder / row[label]) for label in group], axis=0, dtype=float)
    return None


# Particles (1.4) and trajectories (1.5)


def read_particle_rows(path: Path) -> list[pd.Series]:
    """Read the particle table's rows, each joined with its optics group's and named (1.4)."""
    tables = read_star(path)
    particles = tables["particles"]
    if "rlnTomoParticleName" not in particles:
        number = particles.groupby("rlnTomoName").cumcount() + 1
        particles["rlnTomoParticleName"] = particles["rlnTomoName"] + "/" + number.astype(str)
    if "optics" in tables:
        particles = particles.merge(tables["optics"], on="rlnOpticsGroup", how="left")
    return rows_of(particles)


def read_particle(
    row: pd.Series, tomogram: Tomogram, trajectories: dict[str, FloatArray]
) -> Particle:
    """Turn a particle's row into the oracle's particle (1.4)."""
    if "rlnCenteredCoordinateXAngst" in row:
        centred = vector(row, "rlnCenteredCoordinate", suffix="Angst")
        coordinate = centred / tomogram.pixel_size + tomogram.centre_xyz
    else:
        coordinate = vector(row, "rlnCoordinate")
    offset = np.zeros(3)
    if "rlnOriginXAngst" in row:
        offset = vector(row, "rlnOrigin", suffix="Angst")

    def orientation(stem: str) -> FloatArray:
        return euler_to_matrix(
            *(float(row.get(stem + angle, 0)) for angle in ("Rot", "Tilt", "Psi"))
        )

    def zernike(label: str) -> FloatArray:
        return parse_vector(row[label]) if label in row else np.zeros(0)

    return Particle(
        name=row["rlnTomoParticleName"],
        coordinate_px=coordinate,
        offset_angstrom=offset,
        a_sub=orientation("rlnTomoSubtomogram"),
        a_part=orientation("rlnAngle"),
        trajectory_angstrom=trajectories.get(row["rlnTomoParticleName"]),
        optics_pixel_size=float(row.get("rlnTomoTiltSeriesPixelSize", tomogram.pixel_size)),
        even_zernike=zernike("rlnEvenZernike"),
        odd_zernike=zernike("rlnOddZernike"),
    )


def read_trajectories(path: Path) -> dict[str, FloatArray]:
    """Return (frames, 3) displacements in Angstrom by particle name (1.5)."""
    labels = [f"rlnOrigin{axis}Angst" for axis in "XYZ"]
    return {
        name: table[labels].to_numpy(dtype=float)
        for name, table in read_star(path).items()
        if name != "general"
    }
