"""Noise whitening agrees with the plain statement of the specification (2.7)."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import spec_extraction as oracle

from relion_pseudosubtomo.core import noise
from relion_pseudosubtomo.core.inputs import view_bytes
from relion_pseudosubtomo.errors import InputError


def coloured_image(height: int, width: int, dtype: type = np.float32) -> np.ndarray:
    """Return noise that is weaker at high frequencies."""
    white = np.random.default_rng(height).normal(0, 50, (height, width))
    return (white + np.roll(white, 1, 0) + np.roll(white, 1, 1)).astype(dtype)


@pytest.mark.parametrize(
    ("box", "binning"), [(24, 1.0), (24, 2.0), (16, 3.0), (50, 1.5), (10, 2.3), (20, 1.7)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_agrees_with_the_specification(box: int, binning: float, dtype: type) -> None:
    """The weight on a binned slice, from even and odd windows."""
    image = coloured_image(96, 107, dtype)
    options = oracle.Options(box=box, binning=binning)
    expected = oracle.noise_weight(image, options)
    weight = noise.noise_weight(*view_bytes(image), options.s0)
    assert weight.shape == (options.s0 // 2 + 1,)
    found = noise.spread_noise_weight(weight, box, binning)
    assert found.shape == (box // 2 + 1, box)
    np.testing.assert_allclose(found, expected.T, rtol=2e-5)


def test_white_noise_gets_a_flat_weight() -> None:
    """One over the standard deviation, at every frequency."""
    image = np.random.default_rng(3).normal(0, 4, (256, 256)).astype(np.float32)
    weight = noise.noise_weight(*view_bytes(image), 32)
    np.testing.assert_allclose(weight[1:], 0.25, rtol=0.1)


def test_whitened_noise_is_white() -> None:
    """The power of coloured noise times the squared weight is the same at all frequencies."""
    image = coloured_image(256, 256)
    weight = noise.noise_weight(*view_bytes(image), 32)
    blocks = image.reshape(8, 32, 8, 32).swapaxes(1, 2).astype(np.float64)
    power = np.mean(np.abs(np.fft.rfft2(blocks, norm="ortho")) ** 2, axis=(0, 1))
    profile = noise.radial_average(power)
    assert profile[1] > 3 * profile[-1]
    np.testing.assert_allclose(profile * weight**2, 1, atol=0.35)


@pytest.mark.parametrize(("window", "size"), [(33, (32, 40)), (33, (40, 32)), (64, (20, 20))])
def test_an_image_smaller_than_the_window_is_refused(window: int, size: tuple[int, int]) -> None:
    """No block fits: the message has both sizes."""
    image = coloured_image(*size)
    expected = rf"--whiten.*{window} x {window}.*found {size[1]} x {size[0]}"
    with pytest.raises(InputError, match=expected):
        noise.noise_weight(*view_bytes(image), window)


def test_bad_pixels_are_left_out() -> None:
    """Blocks that hold one do not count; with no block left the image is refused."""
    image = coloured_image(96, 96)
    good = noise.noise_weight(*view_bytes(image[:, 32:].copy()), 32)
    image[[5, 90], [16, 15]] = np.nan, np.inf
    image[50, 20] = np.nan
    np.testing.assert_allclose(noise.noise_weight(*view_bytes(image), 32), good, rtol=0.1)
    image[::20, ::20] = np.nan
    with pytest.raises(InputError, match="32 x 32 pixels of each tilt image without NaN"):
        noise.noise_weight(*view_bytes(image), 32)


def test_a_window_of_the_image_size_fits() -> None:
    """One block is enough."""
    assert np.all(noise.noise_weight(*view_bytes(coloured_image(32, 32)), 32) > 0)


def test_an_empty_image_gets_no_weight() -> None:
    """No power, no weight: 0, not infinite."""
    image = view_bytes(np.zeros((40, 40), np.int16))
    np.testing.assert_array_equal(noise.noise_weight(*image, 16), 0)


@pytest.mark.parametrize("shape", [(8, 5), (9, 5), (8, 8, 5), (9, 9, 5)])
def test_radial_average(shape: tuple[int, ...]) -> None:
    """Linear splatting over shells, in two and three dimensions."""
    values = np.random.default_rng(4).uniform(1, 2, shape)
    radius = noise.half_complex_radius(shape)
    expected = oracle.radial_average(values.ravel(), radius.ravel(), shape[-1] - 1)
    np.testing.assert_allclose(noise.radial_average(values), expected, rtol=1e-12)
    np.testing.assert_allclose(noise.radial_average(np.full(shape, 3.0)), 3.0)


def test_half_complex_radius() -> None:
    """Signed frequencies along all axes but the last."""
    found = noise.half_complex_radius((4, 4, 3))
    assert found.shape == (4, 4, 3)
    assert found[0, 0, 0] == 0
    assert found[3, 0, 0] == found[0, 3, 0] == found[0, 0, 1] == 1
    assert found[2, 1, 2] == 3
