"""The visible frames of a particle, from windows to images and into volumes (spec 2.4 to 2.8)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import fft, kernels
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
from relion_pseudosubtomo.core.windows import (
    WindowTransform,
    frames_at_once,
    shift_cycles,
    window_corners,
)

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Targets:
    """What the frames of one particle go into; None: nothing of that kind is made.

    Attributes
    ----------
    volume : ndarray, shape (n + 3, n + 3, n/2 + 2, 4), float32, or None
        Packed volume of the particle.
    average : SliceTarget or None
        Gets the slices too.
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
    """Plans and scratch arrays for a few frames at a time, and the loop over a particle's frames.

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
        (images, view, frames) -> pixels that are not finite; fills the window's columns where they
        are more than the transforms of windows as they are cut.
    gain : ndarray, shape (s/2 + 1,), float64
        Factor on the frequencies kx and ky of a window.
    ramp_x, ramp_y : ndarray, shape (k, s/2 + 1) and (k, s), complex64
        Phase ramps.
    slices_fs : ndarray, shape (k, s/2 + 1, s), complex64
        Weighted slices, origin at the corner.
    weights : ndarray, shape (k, s/2 + 1, s), float32, or None
        Their weights, where slices are inserted.
    edge : int
        Rows before the central ones.
    mask : ImageMask or None
    columns_rs, pairs_fs, pairs_rs : ndarray
        Columns of the images, and their central rows two by two before and after the transform.
    gathered, masked_fs : ndarray
        The way back: columns of the masked rows, and their slices.
    to_columns, to_rows, from_rows, from_columns : list
        Plans between them, for each number of frames.
    """

    def __init__(self, settings: ExtractionSettings) -> None:
        s, half = settings.box, settings.box // 2 + 1
        self.settings = settings
        self.sign = -1.0 if settings.invert_contrast else 1.0
        self.window = _make_window_transform(settings)
        is_plain = isinstance(self.window, WindowTransform) and not settings.circle_precrop
        self.fill = None if is_plain else self._transform_windows
        self.gain = _window_gain(settings)
        self.n_at_once = k = len(self.window.columns)
        self.ramp_x = fft.zeros((k, half), np.complex64)
        self.ramp_y = fft.zeros((k, s), np.complex64)
        self.slices_fs = fft.zeros((k, half, s), np.complex64)
        self.weights: NDArray[np.float32] | None = None
        if settings.inserts_slices:
            self.weights = fft.zeros((k, half, s), np.float32)
        self.mask: ImageMask | None = None
        if settings.real_space_round_trip:
            self._make_image_plans(s, settings.crop, half)
        self._runner = kernels.FrameRunner and kernels.FrameRunner(self)

    def _make_image_plans(self, s: int, n: int, half: int) -> None:
        settings, k = self.settings, self.n_at_once
        self.edge = (s - n) // 2
        n_pairs = min(n + 2, s) // 2  # the circle reaches n + 1 rows
        self.columns_rs = fft.padded_columns(k, half, s)
        self.pairs_fs, self.pairs_rs = (fft.zeros((k, n_pairs, s), np.complex64) for _ in range(2))
        plan, backward = fft.plan_frames, fft.plan_backward
        self.to_columns = plan(backward, self.slices_fs, self.columns_rs)
        self.to_rows = plan(backward, self.pairs_fs, self.pairs_rs)
        if settings.circle_crop or settings.grid_precorr:
            self.mask = image_mask(
                s, n, circle_crop=settings.circle_crop, grid_precorr=settings.grid_precorr
            )
        if settings.inserts_slices:
            self.gathered = fft.padded_columns(k, half, s)
            self.masked_fs = fft.zeros((k, half, s), np.complex64)
            self.from_rows = plan(fft.plan_forward, self.pairs_rs, self.pairs_fs)
            self.from_columns = plan(fft.plan_forward, self.gathered, self.masked_fs)

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
        apply_ctf, n_bad = self.settings.apply_ctf, 0
        for first in range(0, len(frames), self.n_at_once):
            here = slice(first, first + self.n_at_once)
            few, k = frames[here], len(frames[here])
            n_bad += self._transform_windows(images, view, few)
            cycles = self._shift_cycles(view.image_point[few])
            kernels.make_ramps(cycles, self.gain, scale, self.ramp_x, self.ramp_y)
            weights = self.weights if targets.takes_slices else None
            self._weight(few, tables, view, aberrations, apply_ctf=apply_ctf, weights=weights)
            if self.settings.real_space_round_trip:
                self._to_real_space(k)
            if targets.stack is not None:
                kernels.crop_pairs(self.pairs_rs, targets.stack[here])
            if targets.takes_slices:
                self._insert(few, tables, view, targets)
            if targets.without_ctf is not None:
                self._weight(few, tables, view, aberrations, apply_ctf=False, weights=None)
                self._to_real_space(k)
                kernels.crop_pairs(self.pairs_rs, targets.without_ctf[here])
        return n_bad

    def _shift_cycles(self, points: Floats) -> Floats:
        """Return the cycles that move particles to the centre of the box."""
        settings, window = self.settings, self.settings.window
        cycles = shift_cycles(
            points, window, settings.box, settings.binning, exact_scale=settings.exact_scale
        )
        # from the first pixel that is sampled
        return cycles - 0.5 - (-window_corners(points, window) % settings.prebin) / window

    def _transform_windows(
        self, images: TiltImages, view: ParticleView, frames: NDArray[np.int64]
    ) -> int:
        image_bytes = [images.image_bytes[f] for f in frames]
        modes = [images.modes[f] for f in frames]
        corners = window_corners(view.image_point[frames], self.settings.window)
        binned = images.binned
        if binned is None:
            return self.window.transform(image_bytes, modes, corners)
        assert isinstance(self.window, WindowTransform)
        samples = [binned.samples[f] for f in frames]
        kernels.cut_binned(
            image_bytes,
            modes,
            samples,
            corners,
            binned.taps,
            binned.factor,
            binned.margin,
            self.window.rows,
        )
        self.window.transform_rows(len(frames), 0)
        self.window.transform_columns(len(frames))
        return 0

    def _weight(
        self,
        frames: NDArray[np.int64],
        tables: FrameTables,
        view: ParticleView,
        aberrations: Aberrations,
        *,
        apply_ctf: bool,
        weights: NDArray[np.float32] | None,
    ) -> None:
        ctf = tables.ctf_phase[frames]
        ctf[:, [1, 3]] += tables.defocus_to_turns * view.extra_defocus[frames, None]
        kernels.weight_slices(
            self.window.columns,
            frames,
            self.ramp_x,
            self.ramp_y,
            self.sign,
            ctf if apply_ctf else None,
            tables.kx,
            tables.ky,
            tables.gain,
            aberrations.even_turns,
            aberrations.odd_factor,
            tables.noise,
            self.slices_fs,
            weights,
        )

    def _to_real_space(self, k: int) -> None:
        """Fill `pairs_rs` with the central rows of images, masked; origin at (s/2, s/2)."""
        s, mask = self.settings.box, self.mask
        totals = self.slices_fs[:k, 0, 0].real * np.float64(s * s)
        self.to_columns[k].execute()
        kernels.pack_rows(self.columns_rs, self.edge, self.pairs_fs[:k])
        self.to_rows[k].execute()
        if mask is not None:
            kernels.mask_pairs(
                self.pairs_rs[:k],
                self.settings.crop,
                totals,
                mask.inside,
                mask.n_outside,
                mask.subtract_mean,
                mask.taper,
            )

    def _insert(
        self,
        frames: NDArray[np.int64],
        tables: FrameTables,
        view: ParticleView,
        targets: Targets,
    ) -> None:
        k, slices_fs, settings = len(frames), self.slices_fs, self.settings
        if settings.real_space_round_trip:
            slices_fs = self.masked_fs
            self.from_rows[k].execute()
            kernels.unpack_rows(self.pairs_fs[:k], self.edge, self.gathered)
            self.from_columns[k].execute()
        slices = (slices_fs, self.weights, frames, tables.last_x)
        if targets.volume is not None:
            axes = view.slice_axes * (settings.crop / settings.box)
            scales = np.linalg.norm(axes, axis=2).prod(axis=1)
            kernels.insert_slices(*slices, axes, scales, targets.volume)
        if targets.average is not None:
            # without the scale of spec 2.8, which divides out
            axes = targets.average.axes * (settings.crop / settings.box)
            kernels.insert_slices(*slices, axes, np.ones(len(axes)), targets.average.volume)


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
    return WindowTransform(
        (window, window),
        box,
        circle_precrop=precrop,
        n_frames=frames_at_once(window, box),
        cut_before=settings.prebin > 1,
    )
