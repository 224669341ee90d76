"""What `--average` leaves: half maps, their average, and how far they agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.accumulate import make_halves
from relion_pseudosubtomo.core.fsc import NO_RESOLUTION, fourier_shell_correlation, resolution_at
from relion_pseudosubtomo.io import mrc, star
from relion_pseudosubtomo.merge import output_path, text_column
from relion_pseudosubtomo.model import Sums
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.options import JobOptions

Floats = NDArray[np.floating]

HALF_MAPS = ("average_half1.mrc", "average_half2.mrc")
AVERAGE_MAP, FSC_FILE = "average.mrc", "average_fsc.star"

#: Thresholds of the FSC at which the resolution is told.
LEVELS = (0.143, 0.5)


def write_average(options: JobOptions, voxel_size: float, sums: Sums) -> dict[str, float | None]:
    """Write the half maps, the average of all particles and the FSC curve.

    Parameters
    ----------
    options : JobOptions
    voxel_size : float
        Of the maps, Angstrom.
    sums : Sums
        Of all particles.

    Returns
    -------
    dict of str to float or None
        Resolution in Angstrom at each of `LEVELS`; None where the curve starts below.
    """
    first, second = make_halves(sums)
    halves = first.finish(), second.finish()
    first += second
    for name, volume in zip((*HALF_MAPS, AVERAGE_MAP), (*halves, first.finish()), strict=True):
        path = Path(options.output, name)
        values = volume.astype(np.float32)
        mrc.write_mrc(path, values, voxel_size=voxel_size, is_stack=False, float16=False)
    fsc = fourier_shell_correlation(*halves)
    resolutions = [resolution_at(fsc, voxel_size, level) for level in LEVELS]
    shown = [f"{value if np.isfinite(value) else NO_RESOLUTION:.6f}" for value in resolutions]
    general = dict(zip((labels.FINAL_RESOLUTION, labels.RESOLUTION_AT_HALF), shown, strict=True))
    for label, name in zip(labels.UNFILTERED_HALVES, HALF_MAPS, strict=True):
        general[label] = output_path(options, name)
    shells = star.StarTable("fsc", list_shells(fsc, voxel_size))
    star.write_star(Path(options.output, FSC_FILE), [star.list_table("general", general), shells])
    return {
        f"{level:g}": round(resolution, 3) if np.isfinite(resolution) else None
        for level, resolution in zip(LEVELS, resolutions, strict=True)
    }


def list_shells(fsc: Floats, voxel_size: float) -> Columns:
    """Return the FSC curve as RELION's table: one row a shell, the mean alone first."""
    shells = np.arange(len(fsc))
    frequency = shells / (2 * (len(fsc) - 1) * voxel_size)
    length = np.divide(1, frequency, out=np.full(len(fsc), NO_RESOLUTION), where=frequency > 0)
    return {
        labels.SPECTRAL_INDEX: text_column(shells),
        labels.RESOLUTION: text_column(frequency, "{:.6f}"),
        labels.ANGSTROM_RESOLUTION: text_column(length, "{:.6f}"),
        labels.FSC: text_column(fsc, "{:.6f}"),
    }
