"""What HDF5 containers, and the file that joins them, are made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.model import Task, Tomogram
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.options import JobOptions, real_box_size


@dataclass(frozen=True)
class Content:
    """What a container is made from.

    Attributes
    ----------
    options : JobOptions
    tomogram : Tomogram
    task : Task
        The tomogram's whole task.
    columns : Columns
        The rows of particles.star.
    fingerprint : str
        Of the task.
    """

    options: JobOptions
    tomogram: Tomogram
    task: Task
    columns: Columns
    fingerprint: str

    @property
    def binning(self) -> float:
        """Of the images."""
        if self.options.real_subtomo:
            return self.tomogram.tomogram_binning or 1.0
        return self.options.binning

    @property
    def image_size(self) -> int:
        """Of the images, pixels."""
        if self.options.real_subtomo:
            return real_box_size(self.options.crop, self.options.binning, self.binning)
        return self.options.crop

    @property
    def is_stack(self) -> bool:
        """Whether a particle has an image a visible frame."""
        return not self.options.is_3d

    def starts(self) -> NDArray[np.int64]:
        """Return the units before each particle, shape (n + 1,): images of stacks, else volumes."""
        n_units = self.task.visible.sum(axis=1) if self.is_stack else np.ones(len(self.task), int)
        return np.concatenate([[0], np.cumsum(n_units)]).astype(np.int64)

    def unit_shape(self, suffix: str) -> tuple[int, ...]:
        """Return the shape of one image or volume."""
        n = self.image_size
        if self.is_stack:
            return n, n
        return (2, n, n, n // 2 + 1) if suffix == "_weights.mrc" else (n, n, n)


@dataclass(frozen=True)
class Tables:
    """The tables of particles.star beside its rows.

    Attributes
    ----------
    general : dict of str to str
        `data_general`.
    optics : Columns
        `data_optics`.
    columns : tuple of str
        Labels of `data_particles`, in order.
    """

    general: dict[str, str]
    optics: Columns
    columns: tuple[str, ...]
