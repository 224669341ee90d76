"""Averages of extracted particles in the axes of the structure.

Works on what extraction makes: images or pseudo-subtomograms that are multiplied by the CTF and
the dose weight, and the weights (CTF times dose weight, squared) that go with them. A `SliceTarget`
takes slices while they are extracted, a `FourierAverage` also what was written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import kernels
from relion_pseudosubtomo.core.noise import half_complex_radius

Floats = NDArray[np.floating]
Complexes = NDArray[np.complexfloating]

REGULARISATION = 0.01
"""What is added to the weight before dividing, as a fraction of the mean weight of its shell."""


class FourierAverage:
    """Data and weight of an average, summed in Fourier space, origin at the box centre.

    Parameters
    ----------
    box : int
        Voxels along each side, even.

    Attributes
    ----------
    data : ndarray, shape (box, box, box // 2 + 1), complex128
        Half-complex [z, y, x], FFTW order.
    weight : ndarray, same shape, float64
    n_interpolations : int
        How many trilinear interpolations the data went through; `finish` undoes their fall-off.
    """

    def __init__(self, box: int) -> None:
        if box < 4 or box % 2:
            raise ValueError(f"box: expected an even number of 4 or more, found {box}")
        self.box = box
        self.data: Complexes = np.zeros((box, box, box // 2 + 1), dtype=np.complex128)
        self.weight: Floats = np.zeros(self.data.shape)
        self.n_interpolations = 0

    @classmethod
    def of_slices(cls, data: Complexes, weight: Floats) -> FourierAverage:
        """Return an average of slices that takes over these arrays, the sums of several's."""
        average = cls(len(data))
        average.data, average.weight = data, weight
        average.n_interpolations = 1
        return average

    @cached_property
    def _radius(self) -> Floats:
        return half_complex_radius(self.data.shape)

    @cached_property
    def _inside(self) -> NDArray[np.int64]:
        """Flat places of the voxels that subtomograms are read at."""
        return np.flatnonzero(self._radius <= self.box // 2 - 1)

    @cached_property
    def _k_xyz(self) -> Floats:
        k = np.fft.fftfreq(self.box, 1 / self.box)
        z, y, x = np.meshgrid(k, k, np.arange(self.box // 2 + 1), indexing="ij")
        return np.stack([a.ravel()[self._inside] for a in (x, y, z)], axis=-1)

    def add_subtomogram(
        self, volume: NDArray, weight: NDArray, rotation: Floats, shift_px: Floats | None = None
    ) -> None:
        """Add one pseudo-subtomogram, turned into the structure's axes.

        Parameters
        ----------
        volume : ndarray, shape (box, box, box)
            Real, [z, y, x].
        weight : ndarray, shape (box, box, box // 2 + 1)
            Its weight C, half-complex, FFTW order (spec 2.8).
        rotation : ndarray, shape (3, 3)
            A_part, from the structure's axes to those of the box.
        shift_px : ndarray, shape (3,), optional
            Where the structure's centre lies, (x, y, z) in voxels from the box centre.
        """
        self.n_interpolations = 2
        k = self._k_xyz @ rotation.T
        data_fs = np.fft.rfftn(np.fft.ifftshift(volume.astype(np.float64)))
        value, value_weight = _interpolate(data_fs, weight, k, self.box)
        if shift_px is not None:
            value *= np.exp(2j * np.pi / self.box * (k @ shift_px))
        self.data.ravel()[self._inside] += value
        self.weight.ravel()[self._inside] += value_weight

    def add_stack(
        self,
        images: NDArray,
        weights: NDArray,
        rotations: Floats,
        shifts_px: Floats | None = None,
    ) -> None:
        """Add the images of one particle as slices through the structure's transform.

        Parameters
        ----------
        images : ndarray, shape (n_images, box, box)
            Multiplied by CTF and dose weight, [y, x], particle at pixel (box // 2, box // 2).
        weights : ndarray, shape (n_images, box, box // 2 + 1)
            CTF squared times dose weight squared, half-complex, FFTW order.
        rotations : ndarray, shape (n_images, 3, 3)
            From the structure's axes to the image's (x, y, depth): P_f A_full.
        shifts_px : ndarray, shape (n_images, 2), optional
            Where the structure's centre lies, (x, y) in pixels from the image centre.
        """
        self.n_interpolations = 1
        k = np.fft.fftfreq(self.box, 1 / self.box)
        y, x = np.meshgrid(k, np.arange(self.box // 2 + 1), indexing="ij")
        keep = (np.hypot(x, y) <= self.box // 2 - 1) & ((x > 0) | (y >= 0))
        k_xy = np.stack([x[keep], y[keep]], axis=-1)
        centred = np.fft.ifftshift(images.astype(np.float64), axes=(1, 2))
        values = np.fft.rfft2(centred)[:, keep]
        if shifts_px is not None:
            values *= np.exp(2j * np.pi / self.box * (shifts_px @ k_xy.T))
        places = np.einsum("kc,fcx->fkx", k_xy, rotations[:, :2, :])
        _insert(self.data, self.weight, values.ravel(), weights[:, keep].ravel(), places)

    def add_packed(self, volume: NDArray[np.float32], scale: float) -> None:
        """Add the slices that `SliceTarget` inserted into a packed volume, and clear it.

        Parameters
        ----------
        volume : ndarray, shape (box + 3, box + 3, box // 2 + 2, 4), float32
            Zero afterwards.
        scale : float
            Factor on the data.
        """
        self.n_interpolations = 1
        data = np.empty(self.data.shape, np.complex64)
        weight, multiplicity = (np.empty(self.data.shape, np.float32) for _ in range(2))
        kernels.unpack_volume(volume, scale, data, weight, multiplicity)
        sign = (1 - 2 * (np.arange(self.box) % 2)).astype(np.float32)
        data *= sign[:, None, None] * sign[:, None] * sign[: self.box // 2 + 1]  # as unpacked
        self.data += data
        self.weight += weight

    def __iadd__(self, other: FourierAverage) -> FourierAverage:
        """Add another average of the same kind, such as the other half of the particles."""
        self.data += other.data
        self.weight += other.weight
        self.n_interpolations = max(self.n_interpolations, other.n_interpolations)
        return self

    def finish(self, regularisation: float = REGULARISATION) -> Floats:
        """Divide data by weight and return the volume.

        Parameters
        ----------
        regularisation : float
            Added to the weight, as a fraction of the mean weight of its shell.

        Returns
        -------
        ndarray, shape (box, box, box), float64, [z, y, x]
            Centre at voxel box // 2, limited to frequencies of box // 2 - 1, corrected for the
            fall-off of trilinear interpolation (a division by sinc squared for each) inside the
            sphere that touches the box, and zero outside it.
        """
        shell = np.rint(self._radius).astype(np.int64)
        total = np.bincount(shell.ravel(), weights=self.weight.ravel())
        mean = total / np.maximum(np.bincount(shell.ravel()), 1)
        denominator = self.weight + regularisation * mean[shell]
        usable = (denominator > 0) & (self._radius <= self.box // 2 - 1)
        volume_fs = np.divide(self.data, denominator, out=np.zeros_like(self.data), where=usable)
        volume = np.fft.fftshift(np.fft.irfftn(volume_fs, s=(self.box,) * 3, axes=(0, 1, 2)))
        axis = np.arange(self.box) - self.box // 2
        r = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis**2)
        fall_off = np.sinc(np.minimum(r / self.box, 0.5)) ** (2 * self.n_interpolations)
        return np.where(r < self.box / 2, volume / fall_off, 0.0)


@dataclass(frozen=True)
class SliceTarget:
    """Where the slices of one particle go while it is extracted.

    Attributes
    ----------
    volume : ndarray, shape (n + 3, n + 3, n/2 + 2, 4), float32
        Packed volume, as from `packed.make_packed_volume`.
    axes : ndarray, shape (n_frames, 2, 3), float64
        First two rows of P_f A_full: the slices' x and y axes in the structure, (x, y, z).
    """

    volume: NDArray[np.float32]
    axes: Floats


def _corners(places_xyz: Floats, box: int) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """Yield, for each of the 8 grid neighbours, its flat half-complex index and its share.

    `places_xyz` has x >= 0 and lies within box // 2 - 1 of the origin, so x + 1 is on the grid.
    """
    base = np.floor(places_xyz).astype(np.int64)
    rest = places_xyz - base
    for corner in range(8):
        steps = [(corner >> axis) & 1 for axis in range(3)]
        share = np.prod([rest[:, a] if steps[a] else 1 - rest[:, a] for a in range(3)], axis=0)
        x, y, z = (base[:, a] + steps[a] for a in range(3))
        yield ((z % box) * box + y % box) * (box // 2 + 1) + x, share


def _interpolate(
    data_fs: Complexes, weight: NDArray, k_xyz: Floats, box: int
) -> tuple[Complexes, Floats]:
    """Return data and weight at frequencies between the samples, by trilinear interpolation."""
    is_other_half = k_xyz[:, 0] < 0
    places = np.where(is_other_half[:, None], -k_xyz, k_xyz)
    data_flat, weight_flat = data_fs.ravel(), weight.ravel()
    value = np.zeros(len(places), dtype=np.complex128)
    value_weight = np.zeros(len(places))
    for index, share in _corners(places, box):
        value += share * data_flat[index]
        value_weight += share * weight_flat[index]
    return np.where(is_other_half, value.conj(), value), value_weight


def _insert(
    data: Complexes, weight: Floats, values: Complexes, value_weights: NDArray, k_xyz: Floats
) -> None:
    """Add samples to the grid, trilinear, as in spec 2.8 (without its scale, which divides out)."""
    k_xyz = k_xyz.reshape(-1, 3)
    is_other_half = k_xyz[:, 0] < 0
    places = np.where(is_other_half[:, None], -k_xyz, k_xyz)
    values = np.where(is_other_half, values.conj(), values)
    real, imaginary, weights = (np.zeros(data.size) for _ in range(3))
    for index, share in _corners(places, len(data)):
        real += np.bincount(index, share * values.real, data.size)
        imaginary += np.bincount(index, share * values.imag, data.size)
        weights += np.bincount(index, share * value_weights, data.size)
    new_data = (real + 1j * imaginary).reshape(data.shape)
    new_weight = weights.reshape(weight.shape)
    for new, is_complex in ((new_data, True), (new_weight, False)):
        plane = new[:, :, 0]
        opposite = np.roll(plane[::-1, ::-1], 1, axis=(0, 1))
        new[:, :, 0] = plane + (opposite.conj() if is_complex else opposite)
    data += new_data
    weight += new_weight
