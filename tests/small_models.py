"""Small models for tests, built without files: options, tomograms, particles, image arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.core.geometry import projection_matrices
from relion_pseudosubtomo.model import (
    FrameImage,
    OpticsGroups,
    ParticleSet,
    Tomogram,
    TomogramSet,
)
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.options import JobOptions

Floats = NDArray[np.floating]


def make_options(**changes: object) -> JobOptions:
    """Return options of a small job; the crop is 16 binned pixels of 2 unbinned ones."""
    values: dict[str, object] = {"output": "out/", "box": 24, "crop": 16, "binning": 2.0}
    return JobOptions(**{**values, **changes})  # type: ignore[arg-type]


def make_tomogram(
    name: str = "TS_01", tilts: Sequence[float] = (-30.0, 0.0, 30.0), **changes: object
) -> Tomogram:
    """Return a tomogram of 200 x 180 x 60 pixels of 2 A, tilted about y, 3 e/A^2 a frame."""
    n_frames = len(tilts)
    zero = np.zeros(n_frames)
    values: dict[str, object] = {
        "name": name,
        "size_xyz": np.array([200.0, 180.0, 60.0]),
        "pixel_size": 2.0,
        "hand": -1.0,
        "voltage": 300.0,
        "spherical_aberration": 2.7,
        "amplitude_contrast": 0.07,
        "optics_group_name": "optics1",
        "defocus_slope": 1.0,
        "bfactor_per_dose": 0.0,
        "pre_exposure": 3.0 * np.arange(n_frames),
        "defocus_u": np.full(n_frames, 20000.0),
        "defocus_v": np.full(n_frames, 19000.0),
        "defocus_angle": zero,
        "ctf_scale": np.ones(n_frames),
        "ctf_bfactor": zero,
        "phase_shift": zero,
        "frames": tuple(FrameImage(f"{name}_{f}.mrc", 0) for f in range(n_frames)),
        "image_size_xy": (200, 180),
        **changes,
    }
    if "projections" not in changes:
        values["projections"] = projection_matrices(
            zero,
            np.asarray(tilts),
            zero,
            np.zeros((n_frames, 2)),
            values["pixel_size"],  # type: ignore[arg-type]
            values["image_size_xy"],  # type: ignore[arg-type]
            values["size_xyz"],  # type: ignore[arg-type]
        )
    return Tomogram(**values)  # type: ignore[arg-type]


def make_tomogram_set(*tomograms: Tomogram) -> TomogramSet:
    """Return a tomogram set, of one default tomogram where none is given."""
    return TomogramSet("tomograms.star", tomograms or (make_tomogram(),))


def make_optics(pixel_size: Sequence[float] = (2.0,), **changes: object) -> OpticsGroups:
    """Return one optics group a pixel size, numbered from 1, without aberrations."""
    n = len(pixel_size)
    values: dict[str, object] = {
        "columns": {labels.OPTICS_GROUP: text([str(i + 1) for i in range(n)])},
        "numbers": np.arange(1, n + 1),
        "pixel_size": np.asarray(pixel_size, dtype=np.float64),
        "even_zernike": (np.zeros(0),) * n,
        "odd_zernike": (np.zeros(0),) * n,
    }
    return OpticsGroups(**{**values, **changes})  # type: ignore[arg-type]


def make_particle_set(
    coordinate: Sequence[Sequence[float]] | Floats,
    tomogram: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    **changes: object,
) -> ParticleSet:
    """Return particles at positions in unbinned pixels from the tomogram's corner.

    Parameters
    ----------
    coordinate : sequence of (x, y, z)
        One a particle.
    tomogram : sequence of int
        Place of each one's tomogram; all in the first where it is not given. The table calls
        tomogram 0 TS_01, and an unknown one (-1) TS_none.
    names : sequence of str
        Particle names; `TS_xx/n` where they are not given.
    changes
        Other attributes; `columns` are added to those of the table.
    """
    n = len(coordinate)
    places = np.asarray([0] * n if tomogram is None else tomogram, dtype=np.int64)
    tomogram_names = ["TS_none" if place < 0 else f"TS_{place + 1:02d}" for place in places]
    particle_names = text(
        [f"{t}/{i + 1}" for i, t in enumerate(tomogram_names)] if names is None else names
    )
    columns = {
        labels.TOMO_NAME: text(tomogram_names),
        labels.PARTICLE_NAME: particle_names,
        labels.OPTICS_GROUP: text(["1"] * n),
        **changes.pop("columns", {}),  # type: ignore[dict-item]
    }
    values: dict[str, object] = {
        "path": "particles.star",
        "columns": columns,
        "general": {},
        "optics": make_optics(),
        "tomogram": places,
        "names": particle_names,
        "coordinate": np.asarray(coordinate, dtype=np.float64).reshape(n, 3),
        "offset": np.zeros((n, 3)),
        "subtomogram_angles": np.zeros((n, 3)),
        "angles": np.zeros((n, 3)),
        "optics_row": np.zeros(n, dtype=np.int64),
        "half": np.arange(n) % 2,
    }
    return ParticleSet(**{**values, **changes})  # type: ignore[arg-type]


def text(values: Sequence[str]) -> NDArray[np.object_]:
    """Return a column of text."""
    column = np.empty(len(values), dtype=object)
    column[:] = list(values)
    return column


def text_columns(**columns: Sequence[str]) -> Columns:
    """Return columns of text by label."""
    return {label: text(values) for label, values in columns.items()}
