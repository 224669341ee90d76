"""Particles: the table as text, and the columns the program computes with as numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Columns = dict[str, NDArray[np.object_]]
"""Label -> values as text (object arrays of str), all of one length, in file order."""


@dataclass(frozen=True)
class OpticsGroups:
    """The optics table of a particle set (spec 1.4).

    Attributes
    ----------
    columns : Columns
        The table as text, every input column.
    numbers : ndarray, shape (n_groups,), int64
        rlnOpticsGroup of each row.
    pixel_size : ndarray, shape (n_groups,), float64
        rlnTomoTiltSeriesPixelSize, Angstrom.
    even_zernike, odd_zernike : tuple of ndarray
        Aberration coefficients of each group; empty arrays where there are none (spec 2.5).
    """

    columns: Columns
    numbers: NDArray[np.int64]
    pixel_size: NDArray[np.floating]
    even_zernike: tuple[NDArray[np.floating], ...]
    odd_zernike: tuple[NDArray[np.floating], ...]

    @classmethod
    def none(cls) -> OpticsGroups:
        """Return a table without groups."""
        return cls({}, np.empty(0, dtype=np.int64), np.empty(0), (), ())


@dataclass(frozen=True)
class ParticleSet:
    """All particles of a particle file, in file order (spec 1.4).

    Attributes
    ----------
    path : str
        The file they were read from.
    columns : Columns
        `data_particles` as text: every column of the input, plus rlnTomoParticleName and
        rlnOpticsGroup where the input has none.
    general : dict of str to str
        `data_general` as text; empty where the input has none.
    optics : OpticsGroups
        Read, or made from the tomograms.
    tomogram : ndarray, shape (n,), int64
        Place of each particle's tomogram in the tomogram set; -1 where it is unknown.
    names : ndarray, shape (n,), object
        rlnTomoParticleName.
    coordinate : ndarray, shape (n, 3), float64
        Position in unbinned pixels from the tomogram's corner, without the offset (x, y, z).
    offset : ndarray, shape (n, 3), float64
        rlnOriginX/Y/ZAngst, Angstrom.
    subtomogram_angles, angles : ndarray, shape (n, 3), float64
        (rot, tilt, psi) in degrees of the box, and of the particle in its box.
    optics_row : ndarray, shape (n,), int64
        Row of each particle's group in `optics`.
    half : ndarray, shape (n,), int64
        Half set of each particle, 0 or 1.
    first_name : str
        Name in the first row of the file, whichever rows are here: output paths go by it.
    former_names : ndarray, shape (n,), object, or None
        The names in the file, where `--rename_duplicates` changed some.
    """

    path: str
    columns: Columns
    general: dict[str, str]
    optics: OpticsGroups
    tomogram: NDArray[np.int64]
    names: NDArray[np.object_]
    coordinate: NDArray[np.floating]
    offset: NDArray[np.floating]
    subtomogram_angles: NDArray[np.floating]
    angles: NDArray[np.floating]
    optics_row: NDArray[np.int64]
    half: NDArray[np.int64]
    first_name: str = ""
    former_names: NDArray[np.object_] | None = None

    def __len__(self) -> int:
        """Return the number of particles."""
        return len(self.names)

    def take_numbers(self, rows: NDArray[np.int64]) -> ParticleSet:
        """Return the particles of these rows without any text: what extraction needs.

        Without the optics groups too, which every rank is given once for all its tasks:
        `optics_row` counts in those.
        """
        no_names = np.broadcast_to(np.array("", dtype=object), len(self))  # of no size
        bare = replace(
            self,
            columns={},
            general={},
            names=no_names,
            former_names=None,
            optics=OpticsGroups.none(),
        )
        return bare.take(rows)

    def take(self, rows: NDArray[np.int64]) -> ParticleSet:
        """Return the particles of these rows, in this order, with the same optics groups."""
        return replace(
            self,
            columns={label: values[rows] for label, values in self.columns.items()},
            tomogram=self.tomogram[rows],
            names=self.names[rows],
            former_names=None if self.former_names is None else self.former_names[rows],
            coordinate=self.coordinate[rows],
            offset=self.offset[rows],
            subtomogram_angles=self.subtomogram_angles[rows],
            angles=self.angles[rows],
            optics_row=self.optics_row[rows],
            half=self.half[rows],
        )
