"""One particle, start to end: from tilt images to a 2D stack or a 3D pseudo-subtomogram."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import fft, kernels
from relion_pseudosubtomo.core.average import SliceTarget
from relion_pseudosubtomo.core.exact_windows import ScaledWindowTransform
from relion_pseudosubtomo.core.frames import FrameTables
from relion_pseudosubtomo.core.masks import ImageMask, image_mask
from relion_pseudosubtomo.core.packed import CubeTransform, make_packed_volume
from relion_pseudosubtomo.core.prebin import BinnedImages, filter_response, filter_taps
from relion_pseudosubtomo.core.windows import (
    WindowTransform,
    frames_at_once,
    shift_cycles,
    window_corners,
)

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class ExtractionSettings:
    """What is done to every particle; the symbols are those of spec 2.

    Attributes
    ----------
    box, crop, window : int
        s and n in binned, s0 in unbinned pixels.
    binning : float
        b.
    stack2d : bool
        2D stacks rather than 3D.
    apply_ctf, invert_contrast, circle_crop, circle_precrop, grid_precorr : bool
        Steps of spec 2.4 and 2.6.
    cone : tuple of float or None
        (opening angle in degrees, width at the origin in voxels) of the cone weight (spec 2.9).
    exact_scale : bool
        For windows where b s is no whole number: exact in scale and centre, unlike RELION.
    prebin : int
        q: windows are cut from binned images (`core.prebin`), for windows of b s pixels; 1: from
        the tilt images themselves.
    average : bool
        Slices can be inserted into an average too; they need a circle crop.
    """

    box: int
    crop: int
    window: int
    binning: float
    stack2d: bool = False
    apply_ctf: bool = True
    invert_contrast: bool = True
    circle_crop: bool = True
    circle_precrop: bool = False
    grid_precorr: bool = False
    cone: tuple[float, float] | None = None
    exact_scale: bool = False
    prebin: int = 1
    average: bool = False

    @property
    def real_space_round_trip(self) -> bool:
        """Whether images go back to real space at all (spec 2.6)."""
        return self.stack2d or self.circle_crop or self.grid_precorr

    @property
    def inserts_slices(self) -> bool:
        """Whether slices are inserted into any volume."""
        return self.average or not self.stack2d

    @property
    def average_scale(self) -> float:
        """Factor on masked slices: an average's projections have the grey values of 2D stacks."""
        return 1.0 if self.stack2d else self.box / self.binning


@dataclass(frozen=True)
class TiltImages:
    """The tilt images of one tomogram, in memory or memory-mapped.

    Attributes
    ----------
    image_bytes : sequence of ndarray, shape (height, width * itemsize), uint8
        One a frame.
    modes : sequence of int
        MRC mode of each image's bytes: 0, 1, 2, 6 or 12.
    binned : BinnedImages or None
        The same images made smaller, if windows are to be cut from them.
    """

    image_bytes: Sequence[NDArray[np.uint8]]
    modes: Sequence[int]
    binned: BinnedImages | None = None

    @property
    def prebin(self) -> int:
        """Factor q of the binned images; 1 where there are none."""
        return 1 if self.binned is None else self.binned.factor

    @classmethod
    def from_arrays(cls, images: Sequence[NDArray[Any]]) -> TiltImages:
        """Return images of shape (height, width); other byte orders and layouts are converted."""
        native = [
            np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("=")) for image in images
        ]
        modes = {np.dtype(dtype): mode for mode, dtype in kernels.IMAGE_DTYPES.items()}
        image_bytes = [image.view(np.uint8) for image in native]
        return cls(image_bytes, [modes[i.dtype] for i in native])


@dataclass(frozen=True)
class Aberrations:
    """Optical aberrations of one optics group on a slice, [kx, ky] (spec 2.5).

    Attributes
    ----------
    even_turns : ndarray, shape (s/2 + 1, s), float64, or None
        Phase of the CTF in turns.
    odd_factor : ndarray, shape (s/2 + 1, s), complex64, or None
        exp(-i phase) on the image.
    """

    even_turns: NDArray[np.floating] | None = None
    odd_factor: NDArray[np.complex64] | None = None


@dataclass(frozen=True)
class ParticleView:
    """How one particle is seen in the frames of its tomogram.

    Attributes
    ----------
    visible : ndarray, shape (n_frames,), bool
        Frames that are used.
    image_point : ndarray, shape (n_frames, 2), float64
        Projected position (x, y) in pixels of the tilt image.
    extra_defocus : ndarray, shape (n_frames,), float64
        Defocus beyond that of the tomogram's centre, Angstrom.
    slice_axes : ndarray, shape (n_frames, 2, 3), float64
        First two rows of the projection times the box's orientation: the slice's x and y axes in
        the box, (x, y, z), before the factor n/s.
    particle_rotation : ndarray, shape (3, 3), float64
        A_full, for the cone weight.
    """

    visible: NDArray[np.bool_]
    image_point: Floats
    extra_defocus: Floats
    slice_axes: Floats
    particle_rotation: Floats


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
        s, n = settings.box, settings.crop
        half = s // 2 + 1
        self.settings = settings
        self.n_not_finite = 0
        self._window = _make_window_transform(settings)
        self._n_frames = len(self._window.columns)
        self._gain = np.ones(half)
        if settings.prebin > 1:
            taps = filter_taps(settings.prebin, settings.binning)
            self._gain = settings.prebin / filter_response(
                taps, np.arange(float(half)), settings.window
            )
        self._slices_fs = self._zeros(half, s)
        self._mask: ImageMask | None = None
        if settings.real_space_round_trip:
            self._make_image_plans(s, n, half)
        if settings.inserts_slices:
            self._weights = fft.zeros((self._n_frames, half, s), np.float32)
        if not settings.stack2d:
            self._volume = make_packed_volume(n)
            self._cube = CubeTransform(n)
            self._result = Subtomogram(
                self._cube.data, fft.zeros((2 * n, n, n // 2 + 1), np.float32)
            )

    def _zeros(self, *shape: int) -> NDArray[np.complex64]:
        """Return complex zeros for as many frames as are done at once."""
        return fft.zeros((self._n_frames, *shape), np.complex64)

    def _make_image_plans(self, s: int, n: int, half: int) -> None:
        settings = self.settings
        self._edge = (s - n) // 2
        n_pairs = min(n + 2, s) // 2  # the circle reaches n + 1 rows
        self._columns_rs = fft.padded_columns(self._n_frames, half, s)
        self._pairs_fs, self._pairs_rs = self._zeros(n_pairs, s), self._zeros(n_pairs, s)
        plan, backward = fft.plan_frames, fft.plan_backward
        self._to_columns = plan(backward, self._slices_fs, self._columns_rs)
        self._to_rows = plan(backward, self._pairs_fs, self._pairs_rs)
        if settings.circle_crop or settings.grid_precorr:
            self._mask = image_mask(
                s, n, circle_crop=settings.circle_crop, grid_precorr=settings.grid_precorr
            )
        if settings.inserts_slices:
            self._gathered = fft.padded_columns(self._n_frames, half, s)
            self._masked_fs = self._zeros(half, s)
            self._from_rows = plan(fft.plan_forward, self._pairs_rs, self._pairs_fs)
            self._from_columns = plan(fft.plan_forward, self._gathered, self._masked_fs)

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
        s, n = self.settings.box, self.settings.crop
        stack = np.empty((int(view.visible.sum()), n, n), np.float32)
        scale = 1.0 / (self.settings.window * self.settings.binning**2 * s)
        weights = None if average is None else self._weights
        both = without_ctf is not None
        done = 0
        slices = self._weighted_slices(
            images, tables, view, aberrations, scale, weights, and_without_ctf=both
        )
        for frames in slices:
            here = slice(done, done + len(frames))
            done = here.stop
            self._to_real_space(len(frames))
            kernels.crop_pairs(self._pairs_rs, stack[here])
            if average is not None:
                self._to_fourier_space(len(frames))
                average.insert(self._masked_fs, self._weights, frames, tables.last_x)
            if without_ctf is not None:
                next(slices)
                self._to_real_space(len(frames))
                kernels.crop_pairs(self._pairs_rs, without_ctf[here])
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
        axes = view.slice_axes * (n / s)
        scales = np.linalg.norm(axes, axis=2).prod(axis=1)
        slices_fs = self._slices_fs
        scale = 1.0 / (self.settings.window * b)
        if self.settings.real_space_round_trip:
            slices_fs, scale = self._masked_fs, scale / (s * s)
        slices = self._weighted_slices(images, tables, view, aberrations, scale, self._weights)
        try:
            for frames in slices:
                if self.settings.real_space_round_trip:
                    self._to_real_space(len(frames))
                    self._to_fourier_space(len(frames))
                kernels.insert_slices(
                    slices_fs, self._weights, frames, tables.last_x, axes, scales, self._volume
                )
                if average is not None:
                    average.insert(slices_fs, self._weights, frames, tables.last_x)
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

    def _weighted_slices(
        self,
        images: TiltImages,
        tables: FrameTables,
        view: ParticleView,
        aberrations: Aberrations,
        scale: float,
        weights: NDArray[np.float32] | None,
        *,
        and_without_ctf: bool = False,
    ) -> Iterator[NDArray[np.int64]]:
        """Yield visible frames, a few at a time, with their weighted slices in `_slices_fs`.

        The origin is the corner. With `and_without_ctf` the same frames are yielded once more, with
        the slices of the same windows but without CTF and dose weight.
        """
        settings = self.settings
        s, window, all_frames = settings.box, settings.window, np.flatnonzero(view.visible)
        points, binning = view.image_point[all_frames], settings.binning
        corners = window_corners(points, window)
        cycles = shift_cycles(points, window, s, binning, exact_scale=settings.exact_scale) - 0.5
        cycles -= (-corners % settings.prebin) / window  # to the first pixel that is sampled
        ramp_x, ramp_y = _ramps(cycles, self._gain, scale)
        ctf = tables.ctf_phase[all_frames]
        ctf[:, [1, 3]] += tables.defocus_to_turns * view.extra_defocus[all_frames, None]
        sign = -1.0 if settings.invert_contrast else 1.0
        kinds = (settings.apply_ctf, False) if and_without_ctf else (settings.apply_ctf,)
        for first in range(0, len(all_frames), self._n_frames):
            here = slice(first, first + self._n_frames)
            frames = all_frames[here]
            self._transform_windows(images, frames, corners[here])
            for apply_ctf in kinds:
                kernels.weight_slices(
                    self._window.columns,
                    frames,
                    ramp_x[here],
                    ramp_y[here],
                    sign,
                    ctf[here] if apply_ctf else None,
                    tables.kx,
                    tables.ky,
                    tables.gain,
                    aberrations.even_turns,
                    aberrations.odd_factor,
                    tables.noise,
                    self._slices_fs,
                    weights,
                )
                yield frames

    def _transform_windows(
        self, images: TiltImages, frames: NDArray[np.int64], corners: NDArray[np.int64]
    ) -> None:
        image_bytes = [images.image_bytes[f] for f in frames]
        modes = [images.modes[f] for f in frames]
        if images.binned is not None:
            assert isinstance(self._window, WindowTransform)
            images.binned.cut(image_bytes, modes, frames, corners, self._window.windows)
            self._window.transform_windows(len(frames))
        else:
            self.n_not_finite += self._window.transform(image_bytes, modes, corners)

    def _to_real_space(self, n_frames: int) -> None:
        """Fill `_pairs_rs` with the central rows of images, masked; origin at (s/2, s/2)."""
        s = self.settings.box
        totals = self._slices_fs[:n_frames, 0, 0].real * np.float64(s * s)
        kernels.pack_rows(
            self._columns_rs,
            self._edge,
            self._pairs_fs[:n_frames],
            before=self._to_columns[n_frames],
            after=self._to_rows[n_frames],
        )
        mask = self._mask
        if mask is not None:
            kernels.mask_pairs(
                self._pairs_rs[:n_frames],
                self.settings.crop,
                totals,
                mask.inside,
                mask.n_outside,
                mask.subtract_mean,
                mask.taper,
            )

    def _to_fourier_space(self, n_frames: int) -> None:
        """Fill `_masked_fs` from the masked central rows; the other rows are zero."""
        kernels.unpack_rows(
            self._pairs_fs[:n_frames],
            self._edge,
            self._gathered,
            before=self._from_rows[n_frames],
            after=self._from_columns[n_frames],
        )

    def _weight_cone(self, particle_rotation: Floats) -> None:
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


def _make_window_transform(settings: ExtractionSettings) -> WindowTransform | ScaledWindowTransform:
    box, precrop = settings.box, settings.circle_precrop
    window = settings.window // settings.prebin
    if settings.exact_scale:
        return ScaledWindowTransform(window, box, settings.binning, circle_precrop=precrop)
    return WindowTransform(
        (window, window),
        box,
        circle_precrop=precrop,
        n_frames=frames_at_once(window, box),
        cut_before=settings.prebin > 1,
    )


def _ramps(
    cycles: Floats, gain: Floats, factor: float
) -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
    """Return gain exp(2 pi i cycles k) along x, (n_frames, s/2 + 1), and factor times that along y.

    The gain is that at k = 0 .. s/2, and the same at -k.
    """
    ramps = gain * np.exp(2j * np.pi * cycles[:, :, None] * np.arange(len(gain)))
    x, y = ramps[:, 0], factor * ramps[:, 1]
    whole_y = np.concatenate([y[:, :-1], y[:, :0:-1].conj()], axis=1)
    return x.astype(np.complex64), whole_y.astype(np.complex64)
