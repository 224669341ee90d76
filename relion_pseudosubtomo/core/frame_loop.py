"""The visible frames of a particle, from windows to images and into volumes (spec 2.4 to 2.8)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import fft, kernels, scratch
from relion_pseudosubtomo.core.average import SliceTarget
from relion_pseudosubtomo.core.exact_windows import ScaledWindowTransform
from relion_pseudosubtomo.core.frames import FrameTables
from relion_pseudosubtomo.core.inputs import (
    Aberrations,
    ExtractionSettings,
    ParticleView,
    TiltImages,
)
from relion_pseudosubtomo.core.masks import ImageMask, image_mask
from relion_pseudosubtomo.core.prebin import filter_response, filter_taps
from relion_pseudosubtomo.core.windows import WindowTransform, shift_cycles, window_corners

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Targets:
    """What the frames of one particle go into; None: nothing of that kind is made.

    Attributes
    ----------
    volume : ndarray, shape (n + 3, n + 3, n/2 + 2, 4), float32, or None
        Packed volume of the particle.
    average : SliceTarget or None
        Gets the slices too, but for those of windows with pixels that are not finite.
    stack, without_ctf : ndarray, shape (n_visible, n, n), float32, or None
        Filled with the images, and with those without CTF and dose weight.
    """

    volume: NDArray[np.float32] | None = None
    average: SliceTarget | None = None
    stack: NDArray[np.float32] | None = None
    without_ctf: NDArray[np.float32] | None = None

    @property
    def takes_slices(self) -> bool:
        """Whether slices are inserted anywhere."""
        return self.volume is not None or self.average is not None


class FrameLoop:
    """Plans and scratch arrays for a frame, and the loop over a particle's frames.

    The loop is here in Python, a kernel or a plan a call. The compiled `kernels.FrameRunner` takes
    the same arrays and plans, and does all frames in one call without the GIL: threads wait for
    each other between calls, and Python between them costs each thread a tenth of a small box.

    Parameters
    ----------
    settings : ExtractionSettings

    Attributes
    ----------
    settings : ExtractionSettings
    sign : float
        -1 inverts the contrast.
    window : WindowTransform or ScaledWindowTransform
    fill : callable or None
        (images, view, frame) -> pixels that are not finite; fills the window's columns where they
        are more than the transform of a window as it is cut.
    gain : ndarray, shape (s/2 + 1,), float64
        Factor on the frequencies kx and ky of a window.
    ramp_x, ramp_y : ndarray, shape (s/2 + 1,) and (s,), complex64
        Phase ramps.
    slice_fs : ndarray, shape (s/2 + 1, s), complex64
        Weighted slice, origin at the corner.
    weight : ndarray, shape (s/2 + 1, s), float32, or None
        Its weight, where slices are inserted.
    edge : int
        Rows before the central ones.
    mask : ImageMask or None
    columns_rs, pairs_fs, pairs_rs : ndarray
        Columns of the image, and its central rows two by two before and after the transform.
    gathered, masked_fs : ndarray
        The way back: columns of the masked rows, and their slice.
    to_columns, to_rows, from_rows, from_columns : plan
        Between them.
    """

    def __init__(self, settings: ExtractionSettings) -> None:
        s, half = settings.box, settings.box // 2 + 1
        self.settings = settings
        self.sign = -1.0 if settings.invert_contrast else 1.0
        self.window = _make_window_transform(settings)
        is_plain = isinstance(self.window, WindowTransform) and not settings.circle_precrop
        self.fill = None if is_plain else self._transform_window
        self.gain = _window_gain(settings)
        self.ramp_x = scratch.zeros((half,), np.complex64)
        self.ramp_y = scratch.zeros((s,), np.complex64)
        self.slice_fs = scratch.zeros((half, s), np.complex64)
        self.weight: NDArray[np.float32] | None = None
        if settings.inserts_slices:
            self.weight = scratch.zeros((half, s), np.float32)
        self.mask: ImageMask | None = None
        if settings.real_space_round_trip:
            self._make_image_plans(s, settings.crop, half)
        self._runner = kernels.FrameRunner and kernels.FrameRunner(self)

    def _make_image_plans(self, s: int, n: int, half: int) -> None:
        settings = self.settings
        self.edge = (s - n) // 2
        n_pairs = min(n + 2, s) // 2  # the circle reaches n + 1 rows
        self.columns_rs = fft.padded_columns(half, s)
        self.pairs_fs, self.pairs_rs = (scratch.zeros((n_pairs, s), np.complex64) for _ in range(2))
        self.to_columns = fft.plan_backward(self.slice_fs, self.columns_rs)
        self.to_rows = fft.plan_backward(self.pairs_fs, self.pairs_rs)
        if settings.circle_crop or settings.grid_precorr:
            self.mask = image_mask(
                s, n, circle_crop=settings.circle_crop, grid_precorr=settings.grid_precorr
            )
        if settings.inserts_slices:
            self.gathered = fft.padded_columns(half, s)
            self.masked_fs = scratch.zeros((half, s), np.complex64)
            self.from_rows = fft.plan_forward(self.pairs_rs, self.pairs_fs)
            # only the image's rows are ever filled: the zeros beside them have to last
            self.from_columns = fft.plan_forward(self.gathered, self.masked_fs, keeps_source=True)

    def run(
        self,
        images: TiltImages,
        tables: FrameTables,
        view: ParticleView,
        aberrations: Aberrations,
        scale: float,
        targets: Targets,
    ) -> int:
        """Take all visible frames of a particle to its targets.

        Parameters
        ----------
        images, tables, view, aberrations
            The tomogram's and the particle's.
        scale : float
            Factor on the slices.
        targets : Targets

        Returns
        -------
        int
            Pixels of its windows that are not finite.

        Raises
        ------
        OSError
            If an image cannot be read any more; the targets are left half done.
        """
        frames = np.flatnonzero(view.visible)
        if self._runner is not None:
            return self._runner.run(frames, images, tables, view, aberrations, scale, targets)
        n_bad = 0
        weight = self.weight if targets.takes_slices else None
        for i, f in enumerate(frames.tolist()):
            found = self._transform_window(images, view, f)
            n_bad += found
            cycles = self._shift_cycles(view.image_point[f])
            kernels.make_ramps(cycles, self.gain, scale, self.ramp_x, self.ramp_y)
            ctf = self._ctf_phase(tables, view, f) if self.settings.apply_ctf else None
            self._weight(f, tables, aberrations, ctf, weight)
            if self.settings.real_space_round_trip:
                self._to_real_space()
            if targets.stack is not None:
                kernels.crop_pairs(self.pairs_rs, targets.stack[i])
            if targets.takes_slices:
                # one image with NaN would spoil the average of all
                here = targets if found == 0 else replace(targets, average=None)
                self._insert(f, tables, view, here)
            if targets.without_ctf is not None:
                self._weight(f, tables, aberrations, None, None)
                self._to_real_space()
                kernels.crop_pairs(self.pairs_rs, targets.without_ctf[i])
        return n_bad

    def _shift_cycles(self, point: Floats) -> Floats:
        """Return the cycles that move a particle to the centre of the box."""
        settings, window = self.settings, self.settings.window
        cycles = shift_cycles(
            point, window, settings.box, settings.binning, exact_scale=settings.exact_scale
        )
        # from the first pixel that is sampled
        return cycles - 0.5 - (-window_corners(point, window) % settings.prebin) / window

    def _transform_window(self, images: TiltImages, view: ParticleView, f: int) -> int:
        image = images.image_bytes[f], images.modes[f]
        corner = window_corners(view.image_point[f], self.settings.window)
        binned, window = images.binned, self.window
        if binned is None:
            return window.transform(*image, corner)
        assert isinstance(window, WindowTransform)
        how = binned.taps, binned.factor, binned.margin
        kernels.cut_binned(*image, binned.samples[f], corner, *how, window.rows)
        window.transform_rows()
        return 0

    @staticmethod
    def _ctf_phase(tables: FrameTables, view: ParticleView, f: int) -> Floats:
        ctf = tables.ctf_phase[f].copy()
        ctf[[1, 3]] += tables.defocus_to_turns * view.extra_defocus[f]
        return ctf

    def _weight(
        self,
        f: int,
        tables: FrameTables,
        aberrations: Aberrations,
        ctf: Floats | None,
        weight: NDArray[np.float32] | None,
    ) -> None:
        kernels.weight_slice(
            self.window.columns,
            self.ramp_x,
            self.ramp_y,
            self.sign,
            ctf,
            tables.kx,
            tables.ky,
            tables.gain[f],
            aberrations.even_turns,
            aberrations.odd_factor,
            None if tables.noise is None else tables.noise[f],
            self.slice_fs,
            weight,
        )

    def _to_real_space(self) -> None:
        """Fill `pairs_rs` with the central rows of the image, masked; origin at (s/2, s/2)."""
        s, mask = self.settings.box, self.mask
        total = self.slice_fs[0, 0].real * np.float64(s * s)  # the transform may overwrite it
        self.to_columns.execute()
        kernels.pack_rows(self.columns_rs, self.edge, self.pairs_fs)
        self.to_rows.execute()
        if mask is not None:
            kernels.mask_pairs(
                self.pairs_rs,
                self.settings.crop,
                total,
                mask.inside,
                mask.n_outside,
                mask.subtract_mean,
                mask.taper,
            )

    def _insert(self, f: int, tables: FrameTables, view: ParticleView, targets: Targets) -> None:
        slice_fs, settings = self.slice_fs, self.settings
        if settings.real_space_round_trip:
            slice_fs = self.masked_fs
            self.from_rows.execute()
            kernels.unpack_rows(self.pairs_fs, self.edge, self.gathered)
            self.from_columns.execute()
        given, step = (slice_fs, self.weight, tables.last_x[f]), settings.crop / settings.box
        if targets.volume is not None:
            axes = view.slice_axes[f] * step
            scale = np.linalg.norm(axes, axis=1).prod()
            kernels.insert_slice(*given, axes, scale, targets.volume)
        if targets.average is not None:
            axes = targets.average.axes[f] * step  # without the scale, which divides out
            kernels.insert_slice(*given, axes, 1.0, targets.average.volume)


def _window_gain(settings: ExtractionSettings) -> Floats:
    k = np.arange(settings.box // 2 + 1.0)
    if settings.prebin == 1:
        return np.ones(len(k))
    taps = filter_taps(settings.prebin, settings.binning)
    return settings.prebin / filter_response(taps, k, settings.window)


def _make_window_transform(settings: ExtractionSettings) -> WindowTransform | ScaledWindowTransform:
    box, precrop = settings.box, settings.circle_precrop
    window = settings.window // settings.prebin
    if settings.exact_scale:
        return ScaledWindowTransform(window, box, settings.binning, circle_precrop=precrop)
    return WindowTransform(window, box, circle_precrop=precrop, cut_before=settings.prebin > 1)
