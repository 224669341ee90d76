"""Every compiled kernel computes what its NumPy twin computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from relion_pseudosubtomo.core import kernels
from relion_pseudosubtomo.core.kernels import numpy_twin
from relion_pseudosubtomo.core.windows import (
    column_factors,
    factor_pairs,
    join_factors,
    split_column,
    split_row,
)

if not kernels.IS_COMPILED:
    pytest.skip(
        "no compiled kernels: no C compiler, or their build failed", allow_module_level=True
    )

MODES = tuple(kernels.IMAGE_DTYPES)
WIDTH, HEIGHT = 23, 17
#: Windows inside, across each edge and corner, larger than the image, and beyond it on each side.
WINDOWS = [
    (x, y, width, rows)
    for x, width in ((4, 9), (-3, 9), (WIDTH - 4, 9), (-5, 40), (-30, 9), (WIDTH + 6, 9), (-9, 9))
    for y, rows in ((3, 6), (-2, 6), (HEIGHT - 3, 6), (-4, 30), (-20, 6), (HEIGHT + 5, 6))
]
#: (s, n): binned box and crop.
SIZES = [(4, 2), (10, 6), (16, 16), (24, 14), (38, 20)]
TOLERANCE = 2e-6


def random_image(mode: int, shape: tuple[int, int], seed: int) -> NDArray[Any]:
    """Return random pixels over a type's whole range."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(kernels.IMAGE_DTYPES[mode])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    return rng.normal(0, 100, shape).astype(dtype)


def random_complex(rng: np.random.Generator, *shape: int) -> NDArray[np.complex64]:
    """Return normally distributed complex numbers."""
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def assert_close(found: NDArray[Any], expected: NDArray[Any], tolerance: float) -> None:
    """Check that the largest difference is small beside the values' size."""
    size = np.abs(expected).max()
    assert size > 0, "nothing to compare"
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * size)


# copy_rows


def copy_window(
    module: Any,
    image_bytes: NDArray[np.uint8],
    mode: int,
    x: int,
    y: int,
    rows: NDArray[np.float32],
    parts: int = 1,
) -> int:
    """Copy rows of a window by `copy_rows` of a module."""
    return module.copy_rows(image_bytes, mode, np.array([x, y]), 0, rows, parts)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("x", "y", "width", "rows"), WINDOWS)
def test_copy_rows_reads_every_type_and_place(
    mode: int, x: int, y: int, width: int, rows: int
) -> None:
    """The same pixels, bit for bit, wherever the window lies."""
    image_bytes = random_image(mode, (HEIGHT, WIDTH), seed=mode).view(np.uint8)
    found, expected = (np.full((rows, width), np.nan, np.float32) for _ in range(2))
    n_found = copy_window(kernels, image_bytes, mode, x, y, found)
    n_expected = copy_window(numpy_twin, image_bytes, mode, x, y, expected)
    np.testing.assert_array_equal(found, expected)
    assert n_found == n_expected == 0


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize(("x", "y"), [(3, 4), (-7, -5), (WIDTH - 8, HEIGHT - 3)])
def test_copy_rows_deals_pairs(parts: int, x: int, y: int) -> None:
    """Pair parts * j + r of a row becomes number j of part r."""
    image = random_image(2, (HEIGHT, WIDTH), seed=parts).view(np.uint8)
    found, plain, twin = (np.empty((4, 60), np.float32) for _ in range(3))
    copy_window(kernels, image, 2, x, y, found, parts)
    copy_window(kernels, image, 2, x, y, plain)
    for row, dealt in zip(plain, found, strict=True):
        pairs = row.view(np.complex64)
        expected = np.concatenate([pairs[r::parts] for r in range(parts)])
        np.testing.assert_array_equal(dealt.view(np.complex64), expected)
    copy_window(numpy_twin, image, 2, x, y, twin, parts)
    np.testing.assert_array_equal(twin, found)


@pytest.mark.parametrize("module", [kernels, numpy_twin])
def test_copy_rows_from_a_row_on(module: Any) -> None:
    """As if the window began there."""
    image = random_image(2, (HEIGHT, WIDTH), seed=2).view(np.uint8)
    found, expected = (np.empty((3, 9), np.float32) for _ in range(2))
    module.copy_rows(image, 2, np.array([-4, 3]), 5, found)
    copy_window(module, image, 2, -4, 8, expected)
    np.testing.assert_array_equal(found, expected)


def test_copy_rows_converts_every_half_precision_number() -> None:
    """All 65536 patterns of float16: normal, subnormal, zeros, infinite and not a number."""
    image = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    # 251 columns leave a rest behind blocks of eight
    for width in (256, 251):
        rows = np.empty((256, width), np.float32)
        n_bad = copy_window(kernels, image.view(np.uint8), 12, 0, 0, rows)
        expected = image[:, :width].astype(np.float32)
        np.testing.assert_array_equal(rows, expected)
        assert np.array_equal(np.signbit(rows), np.signbit(expected))
        assert n_bad == np.count_nonzero(~np.isfinite(expected)) > 0


@pytest.mark.parametrize("mode", [2, 12])
def test_copy_rows_counts_what_is_not_finite(mode: int) -> None:
    """NaN and both infinities count, once each time they are copied."""
    image = random_image(mode, (HEIGHT, WIDTH), seed=3)
    image[0, 5], image[4, 6], image[8, 7] = np.nan, np.inf, -np.inf
    for x, y in ((0, 0), (3, -2), (6, 3)):
        found, expected = (np.empty((9, 11), np.float32) for _ in range(2))
        n_found = copy_window(kernels, image.view(np.uint8), mode, x, y, found)
        n_expected = copy_window(numpy_twin, image.view(np.uint8), mode, x, y, expected)
        np.testing.assert_array_equal(found, expected)
        assert n_found == n_expected == np.count_nonzero(~np.isfinite(expected)) > 0


def test_copy_rows_reads_images_that_are_not_aligned() -> None:
    """An extended header of an odd length puts the pixels at odd addresses."""
    for mode in MODES:
        image = random_image(mode, (HEIGHT, WIDTH), seed=5)
        buffer = np.zeros(image.nbytes + 1, np.uint8)
        shifted = buffer[1:].reshape(HEIGHT, -1)
        shifted[:] = image.view(np.uint8)
        rows = np.empty((HEIGHT, WIDTH), np.float32)
        copy_window(kernels, shifted, mode, 0, 0, rows)
        np.testing.assert_array_equal(rows, image.astype(np.float32))


# bin_image and cut_binned

#: (q, M, n): even and odd numbers of samples, more than a vector of them and fewer; windows hardly
#: longer than the filter.
BINNINGS = [(2, 7, 20), (2, 5, 41), (3, 11, 15), (3, 8, 8), (4, 14, 9), (5, 18, 14)]


def make_taps(reach: int) -> NDArray[np.float32]:
    """Return a symmetric filter of 2 M + 1 taps."""
    half = np.random.default_rng(reach).normal(size=reach + 1).astype(np.float32)
    return np.concatenate([half[:0:-1], half])


def bin_any_image(
    module: Any, image: NDArray[Any], mode: int, taps: NDArray[np.float32], factor: int, margin: int
) -> tuple[NDArray[np.float32], int]:
    """Return the binned image, with as much after the image as before it, and what is counted."""
    ny, nx = ((size + 2 * margin) // factor + 1 for size in image.shape)
    binned = np.full((ny, nx), np.nan, np.float32)
    return binned, module.bin_image(image.view(np.uint8), mode, taps, factor, margin, binned)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("factor", "reach", "n"), BINNINGS)
@pytest.mark.parametrize("margin", [0, 2])
def test_bin_image(mode: int, factor: int, reach: int, n: int, margin: int) -> None:
    """Images of every type, smaller than the filter and larger, with and without a margin."""
    taps = make_taps(reach)
    for shape in ((HEIGHT, WIDTH), (1, 3), (4 * n, 7 * n)):
        arguments = (random_image(mode, shape, seed=n), mode, taps, factor, margin * factor)
        found, n_found = bin_any_image(kernels, *arguments)
        expected, n_expected = bin_any_image(numpy_twin, *arguments)
        assert_close(found, expected, TOLERANCE)
        assert n_found == n_expected == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (7, 9), (WIDTH - 1, HEIGHT - 1)])
def test_bin_image_counts_what_is_not_finite(bad: float, x: int, y: int) -> None:
    """A bad pixel anywhere is noticed, also where its tap is zero."""
    image, taps = random_image(2, (HEIGHT, WIDTH), seed=3), make_taps(7)
    taps[::2] = 0
    image[y, x] = bad
    _, n_found = bin_any_image(kernels, image, 2, taps, 2, 4)
    with np.errstate(invalid="ignore"):
        _, n_expected = bin_any_image(numpy_twin, image, 2, taps, 2, 4)
    assert n_found == n_expected > 0


def cut_all(
    module: Any, mode: int, factor: int, reach: int, n: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return windows at every place within the margin, and what the definition says."""
    margin, taps = factor * (n // 2), make_taps(reach)
    images = [random_image(mode, (3 * n + 1, 4 * n + 2), seed) for seed in range(7)]
    low, right, bottom = -margin, 4 * n + margin - factor * n, 3 * n + margin - factor * n
    places = [(low, low), (right, bottom), (low + 1, 3), (4, bottom), (right, 1), (2, 5), (5, 4)]
    windows = np.empty((len(images), n, n), np.float32)
    for image, place, window in zip(images, places, windows, strict=True):
        binned = bin_any_image(numpy_twin, image, mode, taps, factor, margin)[0]
        corner, how = np.array(place), (taps, factor, margin)
        module.cut_binned(image.view(np.uint8), mode, binned, corner, *how, window)
    return windows, np.stack(
        [filter_window(*each, taps, factor, n) for each in zip(images, places, strict=True)]
    )


def filter_window(
    image: NDArray[Any],
    corner: tuple[int, int],
    taps: NDArray[np.float32],
    factor: int,
    n: int,
) -> NDArray[np.float32]:
    """Return a window's circular convolution, by Fourier transforms, at every q-th pixel."""
    size, reach = factor * n, len(taps) // 2
    window = np.empty((size, size), np.float32)
    mode = next(m for m, dtype in kernels.IMAGE_DTYPES.items() if image.dtype == dtype)
    copy_window(numpy_twin, image.view(np.uint8), mode, *corner, window)
    ring = np.zeros(size)
    np.add.at(ring, np.arange(-reach, reach + 1) % size, taps)
    product = np.fft.fft2(window) * np.outer(np.fft.fft(ring), np.fft.fft(ring))
    x, y = (-place % factor for place in corner)
    return np.fft.ifft2(product).real[y::factor, x::factor].astype(np.float32)


@pytest.mark.parametrize("module", [kernels, numpy_twin])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("factor", "reach", "n"), BINNINGS)
def test_cut_binned_is_the_window_filtered_alone(
    module: Any, mode: int, factor: int, reach: int, n: int
) -> None:
    """Samples far from the ends too: those of all windows are those of the image."""
    found, expected = cut_all(module, mode, factor, reach, n)
    assert_close(found, expected, TOLERANCE)


# join_rows


@pytest.mark.parametrize(
    ("window", "n_columns"),
    [(768, 97), (1152, 97), (576, 97), (192, 49), (256, 129), (10, 6), (40, 3), (75, 26)],
)
def test_joined_parts_are_the_transform_of_the_row(window: int, n_columns: int) -> None:
    """Whole, dealt to 2, 3 or more parts, odd: the first frequencies of the real transform."""
    rng = np.random.default_rng(window)
    rows = rng.normal(size=(11, window)).astype(np.float32)
    parts, length = split_row(window, 2 * n_columns - 2)
    packed = rows.astype(np.complex64) if window % 2 else rows.view(np.complex64)
    dealt = np.ascontiguousarray(packed.reshape(11, length, parts).swapaxes(1, 2))
    parts_fs = np.fft.fft(dealt).astype(np.complex64)
    factors = join_factors(window, n_columns, parts)
    expected = random_complex(rng, n_columns, 20)
    found = np.zeros((n_columns, 28), np.complex64)[:, :20]
    found[:] = twin = expected.copy()
    expected[:, 5:16] = np.fft.rfft(rows)[:, :n_columns].T
    kernels.join_rows(parts_fs, factors, 5, found)
    numpy_twin.join_rows(parts_fs, factors, 5, twin)
    assert_close(found, expected, 1e-6)
    assert_close(twin, expected, 1e-6)


@pytest.mark.parametrize("first_row", [13, 18])
def test_joined_rows_that_do_not_fit_are_left_out(first_row: int) -> None:
    """The last block of rows may reach past the end."""
    rng = np.random.default_rng(1)
    parts_fs, factors = random_complex(rng, 7, 2, 12), join_factors(48, 7, 2)
    found = np.zeros((7, 20), np.complex64)
    twin = found.copy()
    kernels.join_rows(parts_fs, factors, first_row, found)
    numpy_twin.join_rows(parts_fs, factors, first_row, twin)
    assert_close(found, twin, 1e-6)
    assert not found[:, :first_row].any()


# join_columns


@pytest.mark.parametrize(
    ("window", "box", "parts"),
    [(768, 192, 4), (768, 192, 2), (1152, 192, 6), (230, 16, 10), (36, 10, 3), (90, 22, 3)],
)
def test_joined_parts_are_the_transform_of_the_column(window: int, box: int, parts: int) -> None:
    """At the frequencies next to 0, also where a part has more than the box."""
    rng = np.random.default_rng(window)
    columns = random_complex(rng, 5, window)
    dealt = columns.reshape(5, window // parts, parts).swapaxes(1, 2)
    parts_fs = np.ascontiguousarray(np.fft.fft(dealt).astype(np.complex64))
    factors = column_factors(window, box, parts)
    expected = np.fft.fft(columns)[:, np.r_[0 : box // 2, window - box // 2 : window]]
    found, twin = (empty(5, box, dtype=np.complex64) for _ in range(2))
    kernels.join_columns(parts_fs, factors, found)
    numpy_twin.join_columns(parts_fs, factors, twin)
    assert_close(found, expected.astype(np.complex64), 1e-6)
    assert_close(twin, expected.astype(np.complex64), 1e-6)


@pytest.mark.parametrize(
    ("window", "box", "parts", "column_parts"),
    [
        (768, 192, 1, 4),
        (1152, 192, 3, 6),
        (576, 192, 2, 3),
        (720, 180, 3, 3),
        (432, 144, 2, 3),
        (384, 96, 1, 1),
        (640, 160, 1, 1),
        (512, 256, 1, 1),
        (896, 224, 2, 1),
        (192, 192, 1, 1),
        (14, 14, 1, 1),
        (601, 16, 1, 1),
    ],
)
def test_into_which_parts_windows_are_dealt(
    window: int, box: int, parts: int, column_parts: int
) -> None:
    """Lengths that FFTW is fast at, with all frequencies that are kept; few parts."""
    length = window if window % 2 else window // (2 * parts)
    assert split_row(window, box) == (parts, length)
    assert split_column(window, box) == column_parts


# make_ramps


@pytest.mark.parametrize("s", [4, 10, 16, 38, 256, 4096])
def test_make_ramps(s: int) -> None:
    """Small and large shifts; as exact after many steps as after few."""
    rng = np.random.default_rng(s)
    gain = rng.uniform(0.5, 2, s // 2 + 1)
    for cycles in (*rng.uniform(-0.5, 0.5, (3, 2)), *rng.uniform(-400, 400, (3, 2))):
        found, expected = (
            [empty(s // 2 + 1, dtype=np.complex64), empty(s, dtype=np.complex64)] for _ in range(2)
        )
        kernels.make_ramps(cycles, gain, 0.3, *found)
        numpy_twin.make_ramps(cycles, gain, 0.3, *expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, 2e-7)


# fold_rows


def fold_factors(n: int) -> NDArray[np.float32]:
    """Return the factors of rows of n real numbers."""
    turn = 1j * np.exp(2j * np.pi * np.arange(n // 2) / n)
    return factor_pairs(1 + turn, 1 - turn)


@pytest.mark.parametrize("n", [2, 4, 16, 22, 64])
@pytest.mark.parametrize("module", [kernels, numpy_twin])
def test_folded_rows_transform_to_the_real_row(module: Any, n: int) -> None:
    """Also where the first and last number are not real."""
    rows_fs = random_complex(np.random.default_rng(n), 5, n // 2 + 1)
    rows = np.empty((5, n // 2), np.complex64)
    module.fold_rows(rows_fs, fold_factors(n), rows)
    found = np.fft.ifft(rows, norm="forward").astype(np.complex64).view(np.float32)
    assert_close(found, np.fft.irfft(rows_fs, n, norm="forward").astype(np.float32), 1e-6)


# add_power


@pytest.mark.parametrize(("n_columns", "n"), [(1, 1), (5, 8), (7, 33)])
def test_add_power_adds_to_sums(n_columns: int, n: int) -> None:
    """The squares of columns that lie apart, bit for bit in float64."""
    columns = random_complex(np.random.default_rng(n), n_columns, n + 3)[:, :n]
    found, expected = np.full((n_columns, n), 2.0), np.full((n_columns, n), 2.0)
    for _ in range(2):
        kernels.add_power(columns, found)
        numpy_twin.add_power(columns, expected)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, 2 + 2 * np.abs(columns.astype(complex)) ** 2, rtol=1e-12)


# weight_slice

#: Places of arguments of `weight_slice`.
CTF, GAIN, NOISE, SLICE, WEIGHT = 4, 7, 10, 11, 12


def slice_arguments(s: int, window: int, seed: int, **left_out: bool) -> list[Any]:
    """Return random arguments of `weight_slice`, None for those that are left out."""
    rng = np.random.default_rng(seed)
    half, pixel_size = s // 2 + 1, 4.0
    kx = np.arange(half) / (s * pixel_size)
    ky = np.fft.fftfreq(s, pixel_size)
    optional = {
        "ctf": np.array([0.137, -190.0, 12.0, -210.0, 0.7e4]),
        "gain": rng.uniform(0.1, 1, (half, s)).astype(np.float32),
        "even": rng.normal(0, 3, (half, s)),
        "odd": np.exp(1j * rng.normal(size=(half, s))).astype(np.complex64),
        "noise": rng.uniform(0.1, 2, (half, s)).astype(np.float32),
        "weight": empty(half, s),
    }
    values = {k: None if left_out.get(k) else v for k, v in optional.items()}
    return [
        random_complex(rng, half, window),
        np.exp(1j * rng.normal(size=half)).astype(np.complex64),
        (0.3 * np.exp(1j * rng.normal(size=s))).astype(np.complex64),
        -1.0,
        values["ctf"],
        kx,
        ky,
        values["gain"],
        values["even"],
        values["odd"],
        values["noise"],
        empty(half, s, dtype=np.complex64),
        values["weight"],
    ]


@pytest.mark.parametrize(("s", "window"), [(4, 4), (10, 10), (16, 25), (24, 50), (38, 41)])
@pytest.mark.parametrize(
    "left_out",
    [
        (),
        ("weight",),
        ("even",),
        ("odd",),
        ("noise",),
        ("even", "odd", "noise"),
        ("ctf", "gain"),
        ("ctf", "gain", "even", "odd", "noise"),
        ("ctf", "gain", "odd", "noise", "weight"),
    ],
)
def test_weight_slice(s: int, window: int, left_out: tuple[str, ...]) -> None:
    """The same slice and weight with every choice of what is multiplied in."""
    flags = dict.fromkeys(left_out, True)
    found = slice_arguments(s, window, seed=s + window, **flags)
    expected = slice_arguments(s, window, seed=s + window, **flags)
    kernels.weight_slice(*found)
    numpy_twin.weight_slice(*expected)
    assert_close(found[SLICE], expected[SLICE], TOLERANCE)
    if "weight" not in left_out:
        assert_close(found[WEIGHT], expected[WEIGHT], TOLERANCE)


def test_weight_slice_keeps_the_phase_of_many_turns() -> None:
    """A phase of hundreds of turns loses no digits: it is reduced in float64."""
    arguments = slice_arguments(24, 24, seed=1, odd=True, noise=True, even=True)
    arguments[CTF][:] = (1000.25, -5e4, 3e3, 4e4, 1e6)
    arguments[GAIN][:] = 1
    twin = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    kernels.weight_slice(*arguments)
    numpy_twin.weight_slice(*twin)
    np.testing.assert_allclose(arguments[WEIGHT], twin[WEIGHT], rtol=0, atol=TOLERANCE)


# pack_rows, unpack_rows, mask_pairs, crop_pairs


@pytest.mark.parametrize(("s", "n"), SIZES)
def test_packed_rows_are_the_transforms_of_pairs(s: int, n: int) -> None:
    """Packed, transformed back and forth, unpacked: the rows and their half-complex transforms."""
    rng = np.random.default_rng(s + n)
    edge, n_pairs = (s - n) // 2, min(n + 2, s) // 2
    rows = rng.normal(size=(s + 8, s))
    columns = np.fft.rfft(rows).astype(np.complex64).T.copy()
    found, twin = (np.empty((n_pairs, s), np.complex64) for _ in range(2))
    kernels.pack_rows(columns[:, :s], edge, found)
    numpy_twin.pack_rows(columns, edge, twin)
    assert_close(found, twin, 1e-6)
    pairs_rs = np.fft.ifft(found)
    assert_close(pairs_rs.real, rows[edge : edge + 2 * n_pairs : 2], 1e-5)
    assert_close(pairs_rs.imag, rows[edge + 1 : edge + 2 * n_pairs : 2], 1e-5)
    back, twin_back = (np.zeros((s // 2 + 1, s + 8), np.complex64) for _ in range(2))
    kernels.unpack_rows(found, edge, back[:, :s])
    numpy_twin.unpack_rows(found, edge, twin_back)
    assert_close(back, twin_back, 1e-6)
    reach = slice(edge, edge + 2 * n_pairs)
    assert_close(back[:, reach], columns[:, reach], 1e-5)


@pytest.mark.parametrize(("s", "n"), SIZES)
@pytest.mark.parametrize("extra_pair", [0, 1])
@pytest.mark.parametrize("subtract", [True, False])
def test_mask_pairs(s: int, n: int, extra_pair: int, subtract: bool) -> None:
    """The same masked rows, with and without a mean, also where no pixel lies outside."""
    rng = np.random.default_rng(s * n)
    inside = rng.integers(-1, s // 2 + 1, n + 1).astype(np.int32)
    taper = rng.uniform(0, 1, (n, n)).astype(np.float32)
    for n_outside in (0, 41):
        found = random_complex(rng, n // 2 + extra_pair, s) + np.complex64(5 + 5j)
        expected = found.copy()
        kernels.mask_pairs(found, n, 1234.5, inside, n_outside, subtract, taper)
        numpy_twin.mask_pairs(expected, n, 1234.5, inside, n_outside, subtract, taper)
        assert_close(found, expected, TOLERANCE)


@pytest.mark.parametrize(("s", "n"), SIZES)
def test_crop_pairs(s: int, n: int) -> None:
    """The central pixels, bit for bit."""
    rows = np.random.default_rng(s).normal(size=(n + 2, s)).astype(np.float32)
    pairs = rows[::2] + 1j * rows[1::2]
    found, twin = (np.empty((n, n), np.float32) for _ in range(2))
    kernels.crop_pairs(pairs, found)
    numpy_twin.crop_pairs(pairs, twin)
    edge = (s - n) // 2
    np.testing.assert_array_equal(found, rows[:n, edge : edge + n])
    np.testing.assert_array_equal(twin, found)


# insert_slice, unpack_volume


def random_axes(rng: np.random.Generator, length: float) -> NDArray[np.float64]:
    """Return two random perpendicular vectors of one length."""
    return np.ascontiguousarray(length * np.linalg.qr(rng.normal(size=(3, 3)))[0][:2])


def kept_voxels(volume: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """Return the packed voxels without the border that is never read."""
    return volume[1 : n + 1, 1 : n + 1, : n // 2 + 1]


@pytest.mark.parametrize(("s", "n"), SIZES)
@pytest.mark.parametrize("stretch", [1.0, 0.7, 1.9])
@pytest.mark.parametrize("seed", range(3))
def test_insert_slice(s: int, n: int, stretch: float, seed: int) -> None:
    """The same sums at every voxel that is kept, also of a slice that reaches beyond the box."""
    rng = np.random.default_rng([s, n, seed])
    given = (
        random_complex(rng, s // 2 + 1, s),
        rng.uniform(0, 1, (s // 2 + 1, s)).astype(np.float32),
        rng.integers(-1, s // 2 + 1, s).astype(np.int32),
        random_axes(rng, stretch * n / s),
        rng.uniform(0.5, 1),
    )
    start = rng.normal(size=(n + 3, n + 3, n // 2 + 2, 4)).astype(np.float32)
    found, expected = start.copy(), start.copy()
    kernels.insert_slice(*given, found)
    numpy_twin.insert_slice(*given, expected)
    assert_close(kept_voxels(found, n), kept_voxels(expected, n), 2 * TOLERANCE)
    assert not np.array_equal(found, start)


def test_insert_slice_along_the_axes() -> None:
    """Samples that fall exactly on voxels, with axes of every sign, go nowhere else."""
    s = n = 8
    slice_fs = random_complex(np.random.default_rng(2), s // 2 + 1, s)
    weight = np.abs(slice_fs).astype(np.float32)
    last_x = np.full(s, s // 2, np.int32)
    for uv in (((1, 0, 0), (0, 1, 0)), ((0, 0, -1), (0, 1, 0)), ((-1, 0, 0), (0, 0, 1))):
        given = slice_fs, weight, last_x, np.array(uv, np.float64), 1.0
        found, expected = (np.zeros((n + 3, n + 3, n // 2 + 2, 4), np.float32) for _ in range(2))
        kernels.insert_slice(*given, found)
        numpy_twin.insert_slice(*given, expected)
        assert_close(kept_voxels(found, n), kept_voxels(expected, n), TOLERANCE)
        assert set(np.unique(found[..., 3])) <= {0, 1, 2}


@pytest.mark.parametrize("n", [2, 6, 14, 20])
def test_unpack_volume(n: int) -> None:
    """The same three arrays, and an empty packed volume afterwards."""
    rng = np.random.default_rng(n)
    packed = rng.normal(size=(n + 3, n + 3, n // 2 + 2, 4)).astype(np.float32)
    outputs = []
    for unpack in (kernels.unpack_volume, numpy_twin.unpack_volume):
        volume = packed.copy()
        data = np.full((n, n * (n // 2 + 1) + 8), 7, np.complex64)
        data = data[:, :-8].reshape(n, n, n // 2 + 1)
        weight, multiplicity = (np.full(data.shape, 7, np.float32) for _ in range(2))
        unpack(volume, 0.37, data, weight, multiplicity)
        assert not volume.any()
        outputs.append((data, weight, multiplicity))
    for found, expected in zip(*outputs, strict=True):
        assert_close(found, expected, TOLERANCE)


# weight_cone


@pytest.mark.parametrize("n", [2, 6, 14, 20])
def test_weight_cone(n: int) -> None:
    """The same three arrays for a tilted cone."""
    rng = np.random.default_rng(n)
    rotation = np.ascontiguousarray(np.linalg.qr(rng.normal(size=(3, 3)))[0])
    data = random_complex(rng, n, n * (n // 2 + 1) + 8)[:, :-8].reshape(n, n, n // 2 + 1)
    weight, multiplicity = (rng.uniform(size=data.shape).astype(np.float32) for _ in range(2))
    expected = [a.copy() for a in (data, weight, multiplicity)]
    found = [data, weight.copy(), multiplicity.copy()]
    kernels.weight_cone(*found, rotation, 0.4, 1.5)
    numpy_twin.weight_cone(*expected, rotation, 0.4, 1.5)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, TOLERANCE)
    assert not np.allclose(found[1], weight)


# arrays that do not fit


def empty(*shape: int, dtype: type = np.float32) -> NDArray[Any]:
    """Return an array of zeros."""
    return np.zeros(shape, dtype)


def call_copy_rows(
    image: tuple[int, int] = (4, 8),
    rows: tuple[int, int] = (2, 2),
    mode: int = 0,
    corner: int = 2,
    parts: int = 1,
) -> None:
    """Call `copy_rows` with given shapes; the defaults fit."""
    pixels, place = empty(*image, dtype=np.uint8), empty(corner, dtype=np.int64)
    kernels.copy_rows(pixels, mode, place, 0, empty(*rows), parts)


def call_mask_pairs(
    n: int = 6, n_pairs: int = 4, n_inside: int = 7, taper: tuple[int, int] = (6, 6)
) -> None:
    """Call `mask_pairs` with given sizes; the defaults fit."""
    inside = np.ones(n_inside, np.int32)
    pairs = empty(n_pairs, 10, dtype=np.complex64)
    kernels.mask_pairs(pairs, n, 0, inside, 1, True, empty(*taper))


def call_pack_rows(
    columns: tuple[int, int] = (6, 10), first: int = 2, pairs: tuple[int, int] = (4, 10)
) -> None:
    """Call `pack_rows` with given sizes; the defaults fit."""
    kernels.pack_rows(empty(*columns, dtype=np.complex64), first, empty(*pairs, dtype=np.complex64))


def call_insert_slice(**shapes: tuple[int, ...]) -> None:
    """Call `insert_slice` with given shapes; the defaults fit."""
    s, n = 8, 6
    sizes = {
        "slice_fs": (s // 2 + 1, s),
        "weight": (s // 2 + 1, s),
        "last_x": (s,),
        "axes": (2, 3),
        "volume": (n + 3, n + 3, n // 2 + 2, 4),
        **shapes,
    }
    kernels.insert_slice(
        empty(*sizes["slice_fs"], dtype=np.complex64),
        empty(*sizes["weight"]),
        empty(*sizes["last_x"], dtype=np.int32),
        empty(*sizes["axes"], dtype=np.float64),
        1.0,
        empty(*sizes["volume"]),
    )


def call_fold_rows(
    rows_fs: tuple[int, ...] = (4, 6),
    factors: tuple[int, ...] = (4, 5, 2),
    rows: tuple[int, ...] = (4, 5),
) -> None:
    """Call `fold_rows` with given shapes; the defaults fit."""
    given, folded = (empty(*shape, dtype=np.complex64) for shape in (rows_fs, rows))
    kernels.fold_rows(given, empty(*factors), folded)


def call_add_power(columns: tuple[int, int] = (4, 6), power: tuple[int, int] = (4, 6)) -> None:
    """Call `add_power` with given shapes; the defaults fit."""
    kernels.add_power(empty(*columns, dtype=np.complex64), empty(*power, dtype=np.float64))


def call_unpack_volume(
    volume: tuple[int, ...] = (9, 9, 5, 4),
    data: tuple[int, ...] = (6, 6, 4),
    weight: tuple[int, ...] = (6, 6, 4),
    multiplicity: tuple[int, ...] = (6, 6, 4),
) -> None:
    """Call `unpack_volume` with given shapes; the defaults fit."""
    kernels.unpack_volume(
        empty(*volume), 1.0, empty(*data, dtype=np.complex64), empty(*weight), empty(*multiplicity)
    )


def call_weight_cone(
    data: tuple[int, ...] = (6, 6, 4),
    weight: tuple[int, ...] = (6, 6, 4),
    multiplicity: tuple[int, ...] = (6, 6, 4),
    rotation: tuple[int, int] = (3, 3),
) -> None:
    """Call `weight_cone` with given shapes; the defaults fit."""
    kernels.weight_cone(
        empty(*data, dtype=np.complex64),
        empty(*weight),
        empty(*multiplicity),
        empty(*rotation, dtype=np.float64),
        0.1,
        1.0,
    )


def call_weight_slice(place: int, shape: tuple[int, ...]) -> None:
    """Call `weight_slice` with one array of another shape."""
    arguments = slice_arguments(10, 20, seed=0)
    arguments[place] = empty(*shape, dtype=arguments[place].dtype)
    kernels.weight_slice(*arguments)


def call_bin_image(
    taps: int = 15, factor: int = 2, margin: int = 4, binned: tuple[int, int] = (12, 14)
) -> None:
    """Call it with arrays of some shapes."""
    image = empty(HEIGHT, 4 * WIDTH, dtype=np.uint8)
    kernels.bin_image(image, 2, np.zeros(taps, np.float32), factor, margin, empty(*binned))


def call_cut_binned(
    corner: tuple[int, ...] = (-4, -3),
    binned: tuple[int, int] = (12, 15),
    window: tuple[int, int] = (10, 10),
    taps: int = 15,
    margin: int = 4,
) -> None:
    """Call it with arrays of some shapes."""
    image, filter_taps = empty(HEIGHT, 4 * WIDTH, dtype=np.uint8), empty(taps)
    place = np.array(corner)
    kernels.cut_binned(image, 2, empty(*binned), place, filter_taps, 2, margin, empty(*window))


def call_join_rows(
    parts_fs: tuple[int, ...] = (4, 2, 6),
    factors: tuple[int, ...] = (2, 4, 5, 2),
    first_row: int = 0,
    columns: tuple[int, int] = (5, 10),
) -> None:
    """Call `join_rows` with given shapes."""
    kernels.join_rows(
        empty(*parts_fs, dtype=np.complex64),
        empty(*factors),
        first_row,
        empty(*columns, dtype=np.complex64),
    )


def call_join_columns(
    parts_fs: tuple[int, ...] = (5, 3, 8),
    factors: tuple[int, ...] = (3, 2, 6, 2),
    columns: tuple[int, int] = (5, 6),
) -> None:
    """Call `join_columns` with given shapes; the defaults fit."""
    given, joined = (empty(*shape, dtype=np.complex64) for shape in (parts_fs, columns))
    kernels.join_columns(given, empty(*factors), joined)


def call_make_ramps(cycles: int = 2, gain: int = 6, ramp_x: int = 6, ramp_y: int = 10) -> None:
    """Call `make_ramps` with given sizes; the defaults fit."""
    ramps = (empty(size, dtype=np.complex64) for size in (ramp_x, ramp_y))
    kernels.make_ramps(empty(cycles, dtype=np.float64), np.ones(gain), 1.0, *ramps)


# Wrong shapes are larger than right ones wherever a kernel that does not check would still stay
# inside its arrays.
MISFITS: dict[str, Callable[[], None]] = {
    "no image": lambda: call_copy_rows(image=(0, 8)),
    "image narrower than a pixel": lambda: call_copy_rows(image=(4, 3), mode=2),
    "corner in space": lambda: call_copy_rows(corner=3),
    "no rows": lambda: call_copy_rows(rows=(0, 2)),
    "a row that cannot be dealt": lambda: call_copy_rows(rows=(2, 10), parts=3),
    "joined row before the start": lambda: call_join_rows(first_row=-1),
    "joined row behind the end": lambda: call_join_rows(first_row=10),
    "factors of other parts": lambda: call_join_rows(factors=(3, 4, 5, 2)),
    "factors of other columns": lambda: call_join_rows(factors=(2, 4, 6, 2)),
    "factors that are no pairs": lambda: call_join_rows(factors=(2, 4, 5, 3)),
    "columns that lie across": lambda: kernels.join_rows(
        empty(4, 2, 6, dtype=np.complex64),
        empty(2, 4, 5, 2),
        0,
        empty(10, 5, dtype=np.complex64).T,
    ),
    "cycles in space": lambda: call_make_ramps(cycles=3),
    "gain of another box": lambda: call_make_ramps(gain=7),
    "gain of no box": lambda: call_make_ramps(gain=1, ramp_x=1, ramp_y=0),
    "ramp along x": lambda: call_make_ramps(ramp_x=7),
    "ramp along y": lambda: call_make_ramps(ramp_y=11),
    "window smaller than the box": lambda: call_weight_slice(0, (6, 8)),
    "columns of another box": lambda: call_weight_slice(0, (7, 20)),
    "ramp_x": lambda: call_weight_slice(1, (7,)),
    "ramp_y": lambda: call_weight_slice(2, (11,)),
    "ctf": lambda: call_weight_slice(CTF, (6,)),
    "kx": lambda: call_weight_slice(5, (7,)),
    "ky": lambda: call_weight_slice(6, (11,)),
    "gain": lambda: call_weight_slice(GAIN, (7, 10)),
    "even": lambda: call_weight_slice(8, (7, 10)),
    "odd": lambda: call_weight_slice(9, (7, 10)),
    "noise": lambda: call_weight_slice(NOISE, (6, 12)),
    "slice of another box": lambda: call_weight_slice(SLICE, (7, 12)),
    "weight": lambda: call_weight_slice(WEIGHT, (6, 12)),
    "crop larger than the box": lambda: call_mask_pairs(n=12, n_pairs=6, taper=(12, 12)),
    "fewer rows than the crop": lambda: call_mask_pairs(n_pairs=2),
    "more rows than the crop and two": lambda: call_mask_pairs(n_pairs=5),
    "reach of fewer rows": lambda: call_mask_pairs(n_inside=6),
    "taper": lambda: call_mask_pairs(taper=(6, 7)),
    "packed rows of another box": lambda: call_pack_rows(columns=(7, 10)),
    "packed row before the start": lambda: call_pack_rows(first=-1),
    "packed row behind the end": lambda: call_pack_rows(first=4),
    "unpacked row behind the end": lambda: kernels.unpack_rows(
        empty(4, 10, dtype=np.complex64), 4, empty(6, 10, dtype=np.complex64)
    ),
    "cropped image that is no square": lambda: kernels.crop_pairs(
        empty(4, 10, dtype=np.complex64), empty(6, 8)
    ),
    "cropped image of too many rows": lambda: kernels.crop_pairs(
        empty(4, 10, dtype=np.complex64), empty(10, 10)
    ),
    "even number of taps": lambda: call_bin_image(taps=14),
    "longest filter": lambda: call_bin_image(taps=129),
    "factor beyond the filter": lambda: call_bin_image(factor=9),
    "margin inside the image": lambda: call_bin_image(margin=-2),
    "binned image of no rows": lambda: call_bin_image(binned=(0, 14)),
    "binned window before the margin": lambda: call_cut_binned((-5, -3)),
    "binned window above the margin": lambda: call_cut_binned((-4, -5)),
    "binned window right of the samples": lambda: call_cut_binned((7, 0)),
    "binned window below the samples": lambda: call_cut_binned((6, 1)),
    "binned window's corner in space": lambda: call_cut_binned((-4, -3, 0)),
    "binned window that is no square": lambda: call_cut_binned(window=(10, 9)),
    "binned window shorter than the filter": lambda: call_cut_binned(window=(7, 7)),
    "frame that was not binned": lambda: call_cut_binned(binned=(0, 0)),
    "margin of half a sample": lambda: call_cut_binned((-4, -3), margin=5),
    "inserted weight": lambda: call_insert_slice(weight=(5, 9)),
    "inserted slice": lambda: call_insert_slice(slice_fs=(6, 8)),
    "last_x": lambda: call_insert_slice(last_x=(9,)),
    "axes": lambda: call_insert_slice(axes=(2, 4)),
    "three axes": lambda: call_insert_slice(axes=(3, 3)),
    "volume that is no cube": lambda: call_insert_slice(volume=(9, 10, 5, 4)),
    "volume without half": lambda: call_insert_slice(volume=(9, 9, 9, 4)),
    "volume of other values": lambda: call_insert_slice(volume=(9, 9, 5, 5)),
    "joined columns, fewer": lambda: call_join_columns(columns=(4, 6)),
    "joined columns, longer than a part": lambda: call_join_columns(
        factors=(3, 2, 10, 2), columns=(5, 10)
    ),
    "joined columns of odd length": lambda: call_join_columns(factors=(3, 2, 5, 2), columns=(5, 5)),
    "column factors of other parts": lambda: call_join_columns(factors=(4, 2, 6, 2)),
    "column factors of other frequencies": lambda: call_join_columns(factors=(3, 2, 8, 2)),
    "folded rows, fewer": lambda: call_fold_rows(rows_fs=(3, 6)),
    "folded rows, longer": lambda: call_fold_rows(rows_fs=(4, 7)),
    "folding factors": lambda: call_fold_rows(factors=(4, 6, 2)),
    "power of other columns": lambda: call_add_power(power=(3, 6)),
    "power of longer columns": lambda: call_add_power(columns=(4, 7)),
    "power of nothing": lambda: call_add_power((0, 6), (0, 6)),
    "power of columns that lie across": lambda: kernels.add_power(
        empty(6, 4, dtype=np.complex64).T, empty(4, 6, dtype=np.float64)
    ),
    "unpacked data": lambda: call_unpack_volume(data=(6, 6, 5)),
    "unpacked weight, y": lambda: call_unpack_volume(weight=(6, 7, 4)),
    "unpacked weight, z": lambda: call_unpack_volume(weight=(7, 6, 4)),
    "unpacked multiplicity, y": lambda: call_unpack_volume(multiplicity=(6, 7, 4)),
    "packed volume that is no cube": lambda: call_unpack_volume(volume=(9, 10, 5, 4)),
    "packed volume without half": lambda: call_unpack_volume(volume=(9, 9, 9, 4)),
    "packed volume of other values": lambda: call_unpack_volume(volume=(9, 9, 5, 5)),
    "cone data that is no cube": lambda: call_weight_cone(data=(6, 7, 4)),
    "cone weight": lambda: call_weight_cone(weight=(6, 7, 4)),
    "cone multiplicity": lambda: call_weight_cone(multiplicity=(7, 6, 4)),
    "cone rotation": lambda: call_weight_cone(rotation=(3, 4)),
}


@pytest.mark.parametrize("call", MISFITS.values(), ids=MISFITS.keys())
def test_arrays_that_do_not_fit_are_refused(call: Callable[[], None]) -> None:
    """A bug in the caller ends in an error, not in memory that is not ours."""
    with pytest.raises(ValueError, match=r"do not fit|dimensions|shape"):
        call()


def test_sizes_that_fit_are_accepted() -> None:
    """The callers above fail for the reason they name, not for another."""
    call_mask_pairs()
    call_pack_rows()
    call_insert_slice()
    call_copy_rows()
    call_fold_rows()
    call_add_power()
    call_unpack_volume()
    call_weight_cone()
    call_bin_image()
    call_cut_binned()
    call_cut_binned((6, 0))
    call_join_columns()
    call_join_rows()
    call_make_ramps()
    call_weight_slice(0, (6, 20))


def test_an_unknown_mode_is_refused() -> None:
    """No other mode than those of the table is read as if it were one of them."""
    with pytest.raises(ValueError, match="mode"):
        call_copy_rows(mode=4)


def test_the_twins_have_the_compiled_names() -> None:
    """Every kernel has a twin of the same name, and is the active one."""
    names = {name for name in kernels.__all__ if name.islower() and name != "numpy_twin"}
    assert names == {
        "add_power",
        "bin_image",
        "copy_rows",
        "crop_pairs",
        "cut_binned",
        "fold_rows",
        "insert_slice",
        "join_columns",
        "join_rows",
        "make_ramps",
        "mask_pairs",
        "pack_rows",
        "unpack_rows",
        "unpack_volume",
        "weight_cone",
        "weight_slice",
    }
    for name in names:
        assert getattr(kernels, name) is not getattr(numpy_twin, name)
