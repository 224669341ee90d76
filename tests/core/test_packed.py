"""The way from a packed volume back to real space."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from relion_pseudosubtomo.core import kernels
from relion_pseudosubtomo.core.packed import CubeTransform

#: Powers of two, whose lines are transformed where they lie, and others, in one block and in two.
SIZES = [2, 4, 6, 16, 22, 32, 64, 72]


def fill(transform: CubeTransform, seed: int) -> NDArray[np.complex64]:
    """Fill the transform's input, its last plane not Hermitian; return it."""
    real, imaginary = np.random.default_rng(seed).normal(size=(2, *transform.data_fs.shape))
    transform.data_fs[:] = real + 1j * imaginary
    return transform.data_fs.copy()


@pytest.mark.parametrize("n", SIZES)
def test_cube_transform(n: int) -> None:
    """NumPy's transform, twice with other data; also of a last plane that is not Hermitian."""
    transform = CubeTransform(n)
    for seed in (n, n + 1):
        expected = np.fft.irfftn(fill(transform, seed), (n, n, n), (0, 1, 2), norm="forward")
        transform.execute()
        np.testing.assert_allclose(transform.data, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.skipif(kernels.CubeRunner is None, reason="no compiled kernels to compare with")
@pytest.mark.parametrize("n", SIZES)
def test_one_call_does_what_many_do(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits, and again with the next data."""
    at_once = CubeTransform(n)
    with monkeypatch.context() as patched:
        patched.setattr(kernels, "CubeRunner", None)
        one_by_one = CubeTransform(n)
    for seed in (3, 4):
        fill(at_once, seed)
        fill(one_by_one, seed)
        at_once.execute()
        one_by_one.execute()
        np.testing.assert_array_equal(at_once.data, one_by_one.data)
        assert at_once.data.any()


@pytest.mark.skipif(kernels.CubeRunner is None, reason="no compiled kernels to compare with")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("data", (12, 12, 10)),
        ("data_fs", (12, 11, 7)),
        ("lines", (7, 10)),
        ("lines_fs", (6, 12)),
        ("rows_fs", (11, 7)),
        ("folded", (12, 5)),
        ("rows", (11, 12)),
        ("factors", (4, 5, 2)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...]) -> None:
    """A bug in the caller ends in an error, not in memory that is not ours."""
    cube = CubeTransform(12)
    setattr(cube, name, np.zeros(shape, getattr(cube, name).dtype))
    with pytest.raises(ValueError, match="do not fit"):
        kernels.CubeRunner(cube)
