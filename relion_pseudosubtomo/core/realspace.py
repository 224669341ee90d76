"""True subtomograms: a box of a reconstructed volume, re-projected along the tilts (spec 2.11)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import fft, kernels
from relion_pseudosubtomo.core.inputs import view_bytes

Floats = NDArray[np.floating]

#: Width of the soft edge of the sphere, and of the shell the background is taken from, voxels.
EDGE_WIDTH = 4


def cut_sphere(volume: NDArray, centre: Floats, size: int, *, invert: bool) -> NDArray[np.float32]:
    """Cut a sphere out of a volume, subtract its background, soften its edge.

    Parameters
    ----------
    volume : ndarray, shape (D, H, W)
        Reconstructed volume, of a type that MRC files have; mapped or in memory.
    centre : ndarray, shape (3,)
        Position (x, y, z) in voxels.
    size : int
        Box d, even.
    invert : bool
        Multiply by -1.

    Returns
    -------
    ndarray, shape (d, d, d), float32
        [z, y, x]; 0 outside the sphere and outside the volume.

    Raises
    ------
    OSError
        If the volume cannot be read any more.
    """
    k = np.arange(-size // 2, size // 2)
    index = [np.trunc(k + c).astype(np.int64) for c in centre[::-1]]  # z, y, x
    valid = [(i > 0) & (i < n) for i, n in zip(index, volume.shape, strict=True)]
    r2 = (k * k)[:, None, None] + (k * k)[:, None] + k * k
    selected = r2 <= np.floor(size**2 / 4 + 0.5)
    selected &= valid[0][:, None, None] & valid[1][:, None] & valid[2]
    clipped = [np.clip(i, 0, n - 1) for i, n in zip(index, volume.shape, strict=True)]
    box = _read_voxels(volume, clipped) * np.float32(-1 if invert else 1)
    shell = selected & (r2 >= np.floor((size - EDGE_WIDTH) ** 2 / 4 + 0.5))
    if shell.any():
        box -= np.float32(box[shell].mean(dtype=np.float64))
    edge = (size / 2 - np.sqrt(r2[shell])) / (EDGE_WIDTH / 2)
    box[shell] *= edge.astype(np.float32)
    box[~selected] = 0
    return box


def _read_voxels(volume: NDArray, index: list[NDArray[np.int64]]) -> NDArray[np.float32]:
    """Return the voxels at ascending places along z, y and x, shape (d, d, d)."""
    (z0, y0, x0), (_, y1, _) = ([int(i[end]) for i in index] for end in (0, -1))
    block = np.empty([i[-1] - i[0] + 1 for i in index], np.float32)
    for z, plane in enumerate(block, start=z0):
        rows = view_bytes(volume[z, y0 : y1 + 1])  # of another byte order these alone are converted
        kernels.copy_rows(*rows, np.array([x0, 0]), 0, plane)
    return block[np.ix_(*(i - i[0] for i in index))]


def project_box(box: NDArray[np.float32], slice_axes: Floats) -> NDArray[np.float32]:
    """Project a box along given directions through its padded transform.

    Parameters
    ----------
    box : ndarray, shape (d, d, d)
        [z, y, x], centred on (d/2, d/2, d/2).
    slice_axes : ndarray, shape (n_frames, 2, 3)
        The image's x and y axes in the box, (x, y, z).

    Returns
    -------
    ndarray, shape (n_frames, d, d), float32
        Line integrals, centred on (d/2, d/2).
    """
    d = box.shape[0]
    transform = _padded_transform(box)
    kx = np.arange(d // 2 + 1)
    ky = np.fft.fftfreq(d, 1 / d)
    # samples exactly on the rim count half: RELION takes or leaves them as its rounding falls
    rim = 4 * (kx[None, :] ** 2 + ky[:, None] ** 2) - d * d
    share = np.where(rim < 0, 1.0, np.where(rim == 0, 0.5, 0.0))
    share *= 1 - 2 * ((kx[None, :] + ky[:, None]) % 2)
    out = np.empty((len(slice_axes), d, d), np.float32)
    for i, (u, v) in enumerate(slice_axes):
        points = 2 * (kx[None, :, None] * u + ky[:, None, None] * v)
        out[i] = np.fft.irfft2(share * _sample(transform, points), s=(d, d))
    return out


def _padded_transform(box: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Return the half-complex transform (2d, 2d, d + 1) about the box's centre, within radius d."""
    d = box.shape[0]
    x = np.arange(d) - d // 2
    radius = np.sqrt((x * x)[:, None, None] + (x * x)[:, None] + x * x)
    padded = np.zeros((2 * d, 2 * d, 2 * d), np.float32)
    middle = slice(d // 2, d // 2 + d)
    padded[middle, middle, middle] = box / np.sinc(radius / (2 * d)) ** 2
    transform = fft.forward_3d(np.fft.ifftshift(padded)) * np.float32((2 * d) ** 1.5)
    k = np.fft.fftfreq(2 * d, 1 / (2 * d))
    kx = np.arange(d + 1)
    transform[(k * k)[:, None, None] + (k * k)[:, None] + kx * kx > d * d] = 0
    return transform


def _sample(transform: NDArray[np.complex64], points: Floats) -> NDArray[np.complex128]:
    """Return trilinear samples of a half-complex transform at points (..., (x, y, z))."""
    size = transform.shape[0]
    flip = points[..., 0] < 0
    points = np.where(flip[..., None], -points, points)
    low = np.floor(points).astype(np.int64)
    fraction = points - low
    out = np.zeros(points.shape[:-1], np.complex128)
    for corner in np.ndindex(2, 2, 2):
        j = low + corner
        share = np.prod(np.where(corner, fraction, 1 - fraction), axis=-1)
        x = np.minimum(j[..., 0], transform.shape[2] - 1)
        out += share * transform[j[..., 2] % size, j[..., 1] % size, x]
    return np.where(flip, out.conj(), out)
