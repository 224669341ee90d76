"""What is constant for the frames of one tomogram, computed once (spec 2.4, 2.8)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core.ctf import ctf_envelope
from relion_pseudosubtomo.core.dose import dose_weight

Floats = NDArray[np.floating]


def slice_frequencies(box: int, binned_pixel_size: float) -> tuple[Floats, Floats]:
    """Return kx, shape (s/2 + 1,), and ky, shape (s,) in FFT order, of a slice in 1/A."""
    kx = np.arange(box // 2 + 1) / (box * binned_pixel_size)
    ky = np.fft.fftfreq(box, binned_pixel_size)
    return kx, ky


@dataclass(frozen=True)
class FrameTables:
    """Weights of every used frame of one tomogram.

    Attributes
    ----------
    kx, ky : ndarray, shape (s/2 + 1,) and (s,), float64
        Frequencies of a slice in 1/A, ky in FFT order.
    ctf_phase : ndarray, shape (n_frames, 5), float64
        CTF phase coefficients in turns at the tomogram's centre (`ctf.ctf_phase_coefficients`).
    defocus_to_turns : float
        Change of the kx^2 and ky^2 coefficients an Angstrom of extra defocus.
    gain : ndarray, shape (n_frames, s/2 + 1, s), float32
        CTF envelope times dose weight.
    last_x : ndarray, shape (n_frames, s), int32
        Largest kx inserted in each row ky; -1 for none.
    noise : ndarray, shape (n_frames, s/2 + 1, s), float32, or None
        Noise weights.
    """

    kx: Floats
    ky: Floats
    ctf_phase: Floats
    defocus_to_turns: float
    gain: NDArray[np.float32]
    last_x: NDArray[np.int32]
    noise: NDArray[np.float32] | None


def make_frame_tables(
    *,
    box: int,
    binned_pixel_size: float,
    used: NDArray[np.bool_],
    dose: Floats,
    bfactor_per_dose: float,
    ctf_phase: Floats,
    wavelength: float,
    ctf_scale: Floats,
    ctf_bfactor: Floats,
    cutoff: float,
    noise: NDArray[np.float32] | None = None,
) -> FrameTables:
    """Compute the tables of one tomogram; rows of frames that are not used stay empty.

    Parameters
    ----------
    box : int
        s, binned pixels.
    binned_pixel_size : float
        Angstrom.
    used : ndarray, shape (n_frames,), bool
        Frames in which any particle is visible.
    dose, ctf_scale, ctf_bfactor : ndarray, shape (n_frames,)
        e/A^2, factor, A^2.
    bfactor_per_dose : float
        Above 0, selects the B-factor dose weight.
    ctf_phase : ndarray, shape (n_frames, 5)
        Phase coefficients in turns.
    wavelength : float
        Of the electrons, Angstrom.
    cutoff : float
        Dose weight below which nothing is inserted.
    noise : ndarray, shape (n_frames, s/2 + 1, s), or None
        Noise weights.
    """
    kx, ky = slice_frequencies(box, binned_pixel_size)
    k2 = kx[:, None] ** 2 + ky[None, :] ** 2
    k = np.sqrt(k2)
    gain = np.zeros((len(dose), *k.shape), dtype=np.float32)
    last_x = np.full((len(dose), box), -1, dtype=np.int32)
    for f in np.flatnonzero(used):
        weight = dose_weight(k, dose[f], bfactor_per_dose)
        gain[f] = ctf_envelope(k2, ctf_scale[f], ctf_bfactor[f]) * weight
        last_x[f] = last_inserted_x(weight, cutoff)
    return FrameTables(kx, ky, ctf_phase, -wavelength / 2, gain, last_x, noise)


def last_inserted_x(weight: Floats, cutoff: float) -> NDArray[np.int32]:
    """Return the largest kx inside the slice's circle and above the cutoff in each row (spec 2.8).

    Parameters
    ----------
    weight : ndarray, shape (s/2 + 1, s)
        Dose weight, [kx, ky].
    cutoff : float
        Samples need a weight above it.

    Returns
    -------
    ndarray, shape (s,), int32
        -1 where there is none.
    """
    half, box = weight.shape
    x = np.arange(half)[:, None]
    y = np.fft.fftfreq(box, 1 / box)[None, :]
    ok = (4 * (x * x + y * y) <= box * box) & (weight > cutoff)
    return np.max(np.where(ok, x, -1), axis=0).astype(np.int32)
