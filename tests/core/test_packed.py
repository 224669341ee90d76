"""The way from a packed volume back to real space."""

from __future__ import annotations

import numpy as np
import pytest

from relion_pseudosubtomo.core.packed import CubeTransform


@pytest.mark.parametrize("n", [2, 6, 16, 22, 32])
def test_cube_transform(n: int) -> None:
    """NumPy's transform, twice with other data; also of a last plane that is not Hermitian."""
    rng = np.random.default_rng(n)
    transform = CubeTransform(n)
    for _ in range(2):
        data_fs = rng.normal(size=(2, n, n, n // 2 + 1))
        transform.data_fs[:] = data_fs[0] + 1j * data_fs[1]
        expected = np.fft.irfftn(transform.data_fs, (n, n, n), (0, 1, 2), norm="forward")
        transform.execute()
        np.testing.assert_allclose(transform.data, expected, atol=1e-6 * np.abs(expected).max())
