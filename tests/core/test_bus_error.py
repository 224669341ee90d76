"""A tilt image that is truncated while it is mapped fails alone, not the whole process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from relion_pseudosubtomo.core import kernels
from relion_pseudosubtomo.core.inputs import view_bytes
from relion_pseudosubtomo.core.noise import noise_weight
from relion_pseudosubtomo.core.realspace import cut_sphere
from relion_pseudosubtomo.core.windows import WindowTransform
from relion_pseudosubtomo.report.collect import shrink


@pytest.mark.skipif(not kernels.IS_COMPILED, reason="the guard is in the compiled kernels")
def test_a_truncated_mapped_image_is_an_error(tmp_path: Path) -> None:
    """Reading past the new end raises OSError; what is still there is read as before."""
    path = tmp_path / "image.raw"
    np.ones((2048, 2048), np.float32).tofile(path)
    image = np.memmap(path, np.float32, "r", shape=(2048, 2048)).view(np.ndarray).view(np.uint8)
    rows, top = np.empty((8, 64), np.float32), np.zeros(2, np.int64)
    taps, binned = np.full(5, 0.2, np.float32), np.ones((1024, 1024), np.float32)
    window, transform = np.empty((16, 16), np.float32), WindowTransform(64, 16)
    with open(path, "r+b") as file:
        file.truncate(1 << 20)
    for _ in range(2):
        with pytest.raises(OSError, match="truncated or lost"):
            kernels.copy_rows(image, 2, top, 2000, rows)
        with pytest.raises(OSError, match="truncated or lost"):
            transform.transform(image, 2, top + 2000)
        with pytest.raises(OSError, match="truncated or lost"):
            kernels.bin_image(image, 2, taps, 2, 0, np.empty((1024, 1024), np.float32))
        with pytest.raises(OSError, match="truncated or lost"):
            kernels.cut_binned(image, 2, binned, top + 1900, taps, 2, 0, window)
    assert kernels.copy_rows(image, 2, top, 0, rows) == 0
    assert np.all(rows == 1)
    assert transform.transform(image, 2, top) == 0
    np.testing.assert_allclose(transform.columns[0, 0], 64 * 64)
    kernels.cut_binned(image, 2, binned, top, taps, 2, 0, window)
    np.testing.assert_allclose(window, 1, rtol=1e-6)


@pytest.mark.skipif(not kernels.IS_COMPILED, reason="the guard is in the compiled kernels")
def test_whatever_reads_mapped_pixels_is_guarded(tmp_path: Path) -> None:
    """Noise spectra, boxes of reconstructed volumes, and the report's small pictures."""
    path, pixels = tmp_path / "images.raw", np.ones((64, 256, 256), np.float32)
    pixels.tofile(path)
    mapped = np.memmap(path, np.float32, "r", shape=pixels.shape).view(np.ndarray)
    with open(path, "r+b") as file:
        file.truncate(1 << 20)
    first, last = view_bytes(mapped[0]), view_bytes(mapped[-1])
    assert noise_weight(*first, 64)[0] > 0
    assert shrink(mapped[0], 32)[0].min() == 1
    centre = np.full(3, 50.0)
    for _ in range(2):
        with pytest.raises(OSError, match="truncated or lost"):
            noise_weight(*last, 64)
        with pytest.raises(OSError, match="truncated or lost"):
            shrink(mapped[-1], 32)
        with pytest.raises(OSError, match="truncated or lost"):
            cut_sphere(mapped, centre, 16, invert=True)
