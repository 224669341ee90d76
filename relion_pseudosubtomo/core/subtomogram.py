"""One particle, start to end: from tilt images to a 2D stack or a 3D pseudo-subtomogram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import kernels, scratch
from relion_pseudosubtomo.core.average import SliceTarget
from relion_pseudosubtomo.core.frame_loop import FrameLoop, Targets
from relion_pseudosubtomo.core.frames import FrameTables
from relion_pseudosubtomo.core.inputs import (
    Aberrations,
    ExtractionSettings,
    ParticleView,
    TiltImages,
)
from relion_pseudosubtomo.core.packed import CubeTransform, make_packed_volume


@dataclass
class Subtomogram:
    """A pseudo-subtomogram; the arrays belong to the extractor and last until its next particle.

    Attributes
    ----------
    data : ndarray, shape (n, n, n), float32
        Real-space volume, [z, y, x].
    weight, multiplicity : ndarray, shape (n, n, n/2 + 1), float32
        Half-complex, FFTW order.
    weights : ndarray, shape (2 n, n, n/2 + 1), float32
        Weight, then multiplicity, in one array.
    """

    data: NDArray[np.float32]
    weights: NDArray[np.float32]

    @property
    def weight(self) -> NDArray[np.float32]:
        """CTF^2 weights."""
        return self.weights[: len(self.data)]

    @property
    def multiplicity(self) -> NDArray[np.float32]:
        """Sum of the insertion weights."""
        return self.weights[len(self.data) :]


class ParticleExtractor:
    """Plans and scratch arrays of one thread, made once and used for every particle.

    Parameters
    ----------
    settings : ExtractionSettings
        Sizes and switches.

    Attributes
    ----------
    n_not_finite : int
        Pixels read so far that were NaN or infinite.
    """

    def __init__(self, settings: ExtractionSettings) -> None:
        n = settings.crop
        self.settings = settings
        self.n_not_finite = 0
        self._loop = FrameLoop(settings)
        if not settings.stack2d:
            self._volume = make_packed_volume(n)
            self._cube = CubeTransform(n)
            self._result = Subtomogram(
                self._cube.data, scratch.zeros((2 * n, n, n // 2 + 1), np.float32)
            )

    def extract_stack(
        self,
        images: TiltImages,
        tables: FrameTables,
        view: ParticleView,
        aberrations: Aberrations,
        average: SliceTarget | None = None,
        without_ctf: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return the 2D images of the visible frames (spec 2.6).

        Parameters
        ----------
        images, tables, view, aberrations
            The tomogram's and the particle's.
        average : SliceTarget, optional
            Gets the slices too.
        without_ctf : ndarray, shape (n_visible, n, n), float32, optional
            Filled with the images without CTF and dose weight, from the same windows.

        Returns
        -------
        ndarray, shape (n_visible, n, n), float32
            In frame order.
        """
        settings, n = self.settings, self.settings.crop
        stack = np.empty((int(view.visible.sum()), n, n), np.float32)
        scale = 1.0 / (settings.window * settings.binning**2 * settings.box)
        targets = Targets(average=average, stack=stack, without_ctf=without_ctf)
        self.n_not_finite += self._loop.run(images, tables, view, aberrations, scale, targets)
        return stack

    def extract_subtomogram(
        self,
        images: TiltImages,
        tables: FrameTables,
        view: ParticleView,
        aberrations: Aberrations,
        average: SliceTarget | None = None,
    ) -> Subtomogram:
        """Return the 3D pseudo-subtomogram of a particle (spec 2.8, 2.9).

        Parameters
        ----------
        images, tables, view, aberrations
            The tomogram's and the particle's.
        average : SliceTarget, optional
            Gets the slices too.

        Returns
        -------
        Subtomogram
            Valid until the next particle.
        """
        s, n, b = self.settings.box, self.settings.crop, self.settings.binning
        scale = 1.0 / (self.settings.window * b)
        if self.settings.real_space_round_trip:
            scale /= s * s
        targets = Targets(volume=self._volume, average=average)
        try:
            self.n_not_finite += self._loop.run(images, tables, view, aberrations, scale, targets)
        except BaseException:
            self._volume[:] = 0  # the next particle starts from nothing
            raise
        result = self._result
        unitary = s / (n * np.sqrt(b)) * n**-1.5
        kernels.unpack_volume(
            self._volume, unitary, self._cube.data_fs, result.weight, result.multiplicity
        )
        if self.settings.cone is not None:
            self._weight_cone(view.particle_rotation)
        self._cube.execute()
        return result

    def _weight_cone(self, particle_rotation: NDArray[np.floating]) -> None:
        assert self.settings.cone is not None
        angle, sig0 = self.settings.cone
        kernels.weight_cone(
            self._cube.data_fs,
            self._result.weight,
            self._result.multiplicity,
            np.ascontiguousarray(particle_rotation),
            float(np.sin(np.deg2rad(angle) / 2)),
            sig0,
        )
