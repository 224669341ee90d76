"""One particle, start to end: properties that hold whatever the data, and the oracle's numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle import spec_extraction as oracle

from relion_pseudosubtomo.core import kernels
from relion_pseudosubtomo.core.aberrations import aberration_phase
from relion_pseudosubtomo.core.ctf import ctf_phase_coefficients, electron_wavelength
from relion_pseudosubtomo.core.frames import FrameTables, make_frame_tables, slice_frequencies
from relion_pseudosubtomo.core.geometry import euler_to_matrix
from relion_pseudosubtomo.core.inputs import (
    Aberrations,
    ExtractionSettings,
    ParticleView,
    TiltImages,
    view_bytes,
)
from relion_pseudosubtomo.core.noise import noise_weight, spread_noise_weight
from relion_pseudosubtomo.core.subtomogram import ParticleExtractor
from relion_pseudosubtomo.core.windows import (
    WindowTransform,
    shift_cycles,
    split_column,
    window_corners,
)

Floats = NDArray[np.floating]

HEIGHT, WIDTH = 120, 132
TILTS = (-50.0, -20.0, 0.0, 25.0, 55.0)
TOLERANCE_FLOAT32 = 3e-5
"""Largest difference between the program and the double-precision oracle, in deviations."""


# Extraction without files


def random_images(seed: int, n: int = len(TILTS)) -> list[NDArray[np.float32]]:
    """Return noise images with a mean far from zero."""
    rng = np.random.default_rng(seed)
    return [rng.normal(30, 5, (HEIGHT, WIDTH)).astype(np.float32) for _ in range(n)]


def make_settings(
    box: int = 24, crop: int = 16, binning: float = 2.0, **changes: Any
) -> ExtractionSettings:
    """Return settings with the window that belongs to box and binning."""
    return ExtractionSettings(box, crop, int(np.floor(binning * box + 0.5)), binning, **changes)


def make_tables(
    settings: ExtractionSettings, n_frames: int = len(TILTS), **changes: Any
) -> FrameTables:
    """Return tables of astigmatic frames of 3 e/A^2 each, 2 A pixels before binning."""
    ones = np.ones(n_frames)
    arguments: dict[str, Any] = {
        "box": settings.box,
        "binned_pixel_size": 2.0 * settings.binning,
        "used": np.ones(n_frames, dtype=bool),
        "dose": 3.0 * np.arange(n_frames),
        "bfactor_per_dose": 0.0,
        "ctf_phase": ctf_phase_coefficients(
            2e4 * ones, 1.8e4 * ones, 30 * ones, 0 * ones, 300, 2.7, 0.1
        ),
        "wavelength": electron_wavelength(300),
        "ctf_scale": ones,
        "ctf_bfactor": 20 * ones,
        "cutoff": 0.01,
    }
    return make_frame_tables(**{**arguments, **changes})


def make_view(
    angles: tuple[float, float, float] = (0, 0, 0), seed: int | None = None, n: int = len(TILTS)
) -> ParticleView:
    """Return a particle near the image centre, in a box turned by Euler angles.

    With a seed it lies between pixels, elsewhere in each frame.
    """
    points = np.tile([WIDTH / 2, HEIGHT / 2], (n, 1))
    if seed is not None:
        points = points + np.random.default_rng(seed).uniform(-3, 3, (n, 2))
    tilts = euler_to_matrix(np.array([(0, tilt, 0) for tilt in TILTS[:n]]))
    box_rotation = euler_to_matrix(np.array(angles, dtype=float))
    slice_axes = np.einsum("fij,jk->fik", tilts[:, :2], box_rotation)
    return ParticleView(
        np.ones(n, dtype=bool), points, np.linspace(-300, 300, n), slice_axes, box_rotation
    )


def extract(
    settings: ExtractionSettings,
    images: list[NDArray[np.float32]],
    view: ParticleView,
    tables: FrameTables | None = None,
    extractor: ParticleExtractor | None = None,
) -> dict[str, Floats]:
    """Extract one particle; return copies of all that comes of it."""
    extractor = extractor or ParticleExtractor(settings)
    tables = tables or make_tables(settings, len(images))
    arguments = (TiltImages.from_arrays(images), tables, view, Aberrations())
    if settings.stack2d:
        return {"stack": extractor.extract_stack(*arguments)}
    result = extractor.extract_subtomogram(*arguments)
    return {
        "data": result.data.copy(),
        "weight": result.weight.copy(),
        "multiplicity": result.multiplicity.copy(),
    }


def mirror(plane: NDArray[Any]) -> NDArray[Any]:
    """Return a plane (z, y) read at (-z, -y), modulo its size."""
    return np.roll(plane[::-1, ::-1], 1, axis=(0, 1))


def assert_close(found: NDArray[Any], expected: NDArray[Any], tolerance: float) -> None:
    """Check the largest difference against the standard deviation."""
    deviation = expected.std()
    assert deviation > 0, "nothing to compare"
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() < tolerance * deviation


# Symmetry


@pytest.mark.parametrize("angles", [(0, 0, 0), (35, 70, -120)])
@pytest.mark.parametrize("changes", [{}, {"apply_ctf": False}, {"circle_crop": False}])
def test_first_plane_has_friedel_symmetry(
    angles: tuple[float, float, float], changes: dict[str, bool]
) -> None:
    """Weight and multiplicity at x = 0 are the same at (y, z) and (-y, -z)."""
    settings = make_settings(**changes)
    result = extract(settings, random_images(1), make_view(angles, seed=1))
    for name in ("weight", "multiplicity"):
        plane = result[name][:, :, 0]
        assert np.ptp(plane) > 0
        np.testing.assert_array_equal(plane, mirror(plane))
        assert np.all(result[name] >= 0)


def test_multiplicity_is_what_was_inserted() -> None:
    """Each sample adds |u| |v| in all, shared between its neighbours; no_ctf weighs them all 1."""
    settings = make_settings(apply_ctf=False, box=24, crop=16)
    tables = make_tables(settings, cutoff=-1.0)
    view = make_view((20, 40, 60), seed=2)
    result = extract(settings, random_images(2), view, tables)
    # without the samples near the rim, whose neighbours may lie outside the box
    n_samples = 0
    s = settings.box
    for x in range(s // 2 + 1):
        for y in range(-s // 2, s // 2):
            n_samples += (x > 0 or y >= 0) and x * x + y * y <= s * s // 4
    scale = (settings.crop / s) ** 2
    total = result["multiplicity"][:, :, 1:].sum() + result["multiplicity"][:, :, 0].sum() / 2
    assert total == pytest.approx(n_samples * scale * len(TILTS), rel=0.01)
    np.testing.assert_allclose(result["weight"], result["multiplicity"], rtol=1e-6)


def test_invisible_frames_contribute_nothing() -> None:
    """Not even when they are full of NaN; the result is that of the other frames alone."""
    visible = np.array([True, False, True, True, False])
    for settings in (make_settings(), make_settings(stack2d=True)):
        tables = make_tables(settings)
        view = replace(make_view((10, 20, 30), seed=3), visible=visible)
        images = random_images(3)
        expected = extract(settings, images, view, tables)
        spoilt = [
            image if flag else np.full_like(image, np.nan)
            for image, flag in zip(images, visible, strict=True)
        ]
        found = extract(settings, spoilt, view, tables)
        fewer = replace(
            view,
            visible=visible[visible],
            image_point=view.image_point[visible],
            extra_defocus=view.extra_defocus[visible],
            slice_axes=view.slice_axes[visible],
        )
        alone = extract(
            settings,
            [images[f] for f in np.flatnonzero(visible)],
            fewer,
            replace(
                tables,
                ctf_phase=tables.ctf_phase[visible],
                gain=tables.gain[visible],
                last_x=tables.last_x[visible],
            ),
        )
        for name, value in expected.items():
            assert np.isfinite(value).all()
            np.testing.assert_array_equal(found[name], value)
            np.testing.assert_array_equal(alone[name], value)


def test_one_extractor_serves_many_particles() -> None:
    """Nothing of a particle is left for the next one of the same thread."""
    for changes in ({}, {"stack2d": True}, {"circle_crop": False}, {"cone": (20.0, 2.0)}):
        settings = make_settings(**changes)
        extractor = ParticleExtractor(settings)
        images, view = random_images(4), make_view(seed=4)
        first = extract(settings, images, view, extractor=extractor)
        extract(settings, random_images(5), make_view((50, 60, 70), seed=5), extractor=extractor)
        again = extract(settings, images, view, extractor=extractor)
        for name, value in first.items():
            np.testing.assert_array_equal(again[name], value)


@pytest.mark.skipif(not kernels.IS_COMPILED, reason="the guard is in the compiled kernels")
def test_a_failed_particle_leaves_nothing_behind(tmp_path: Path) -> None:
    """An error in the fourth frame; what the first three inserted is not in the next particle."""
    settings = make_settings(96, 40, 4.0)
    extractor = ParticleExtractor(settings)
    images, view, tables = random_images(4), make_view(seed=4), make_tables(settings)
    expected = extract(settings, images, view, tables)
    spoilt, path = random_images(5), tmp_path / "image.raw"
    spoilt[3].tofile(path)
    spoilt[3] = np.memmap(path, np.float32, "r", shape=(HEIGHT, WIDTH)).view(np.ndarray)
    with path.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(OSError, match="truncated or lost"):
        extract(settings, spoilt, view, tables, extractor)
    found = extract(settings, images, view, tables, extractor)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


# Numbers that must not appear, and linearity


@pytest.mark.parametrize("value", [0.0, 250.0])
@pytest.mark.parametrize(
    "changes",
    [{}, {"stack2d": True}, {"circle_precrop": True}, {"circle_crop": False}, {"apply_ctf": False}],
)
def test_constant_images_give_finite_numbers(value: float, changes: dict[str, bool]) -> None:
    """No division by a deviation or a mean; cropped to a circle a flat image becomes 0."""
    settings = make_settings(**changes)
    images = [np.full((HEIGHT, WIDTH), value, np.float32)] * len(TILTS)
    result = extract(settings, images, make_view(seed=6))
    for array in result.values():
        assert np.isfinite(array).all()
    if settings.circle_crop:
        image = result["stack" if settings.stack2d else "data"]
        assert np.abs(image).max() <= 1e-4 * value


@pytest.mark.parametrize("changes", [{}, {"stack2d": True}, {"grid_precorr": True}])
def test_extraction_is_linear(changes: dict[str, bool]) -> None:
    """Twice the image: exactly twice the data, the same weights; sums of images add up."""
    settings, view = make_settings(**changes), make_view((5, 15, 25), seed=7)
    first, second = random_images(7), random_images(8)
    name = "stack" if settings.stack2d else "data"
    one = extract(settings, first, view)
    double = extract(settings, [2 * image for image in first], view)
    np.testing.assert_array_equal(double[name], 2 * one[name])
    both = extract(settings, [a + b for a, b in zip(first, second, strict=True)], view)
    other = extract(settings, second, view)
    assert_close(both[name], one[name] + other[name], 1e-5)
    for weight in set(one) - {name}:
        np.testing.assert_array_equal(double[weight], one[weight])
        np.testing.assert_array_equal(other[weight], one[weight])


def test_contrast_inversion_is_a_sign() -> None:
    """`--no_ic` gives the same numbers with the other sign."""
    images, view = random_images(9), make_view(seed=9)
    inverted = extract(make_settings(), images, view)
    kept = extract(make_settings(invert_contrast=False), images, view)
    np.testing.assert_array_equal(inverted["data"], -kept["data"])
    np.testing.assert_array_equal(inverted["weight"], kept["weight"])


# Places


def blob_images(points: Floats, sigma: float, weights: Floats | None = None) -> list[NDArray]:
    """Return images of one Gaussian each, at points (x, y)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return [
        np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)).astype(np.float32)
        for px, py in points
    ]


def centre_of_mass(array: Floats) -> Floats:
    """Return the centre of mass of the squares, (x, y, z) in pixels from the box centre.

    The first plane of each axis, n/2 from the centre, has no counterpart and does not count.
    """
    squares = array[(slice(1, None),) * array.ndim].astype(np.float64) ** 2
    grids = np.meshgrid(*(np.arange(1, n) - n // 2 for n in array.shape), indexing="ij")
    return np.array([(g * squares).sum() / squares.sum() for g in grids])[::-1]


@pytest.mark.parametrize("angles", [(0, 0, 0), (90, 90, 0), (33, 77, -141), (0, 180, 12)])
def test_a_centred_blob_stays_centred_in_any_box(angles: tuple[float, float, float]) -> None:
    """The rotation centre is voxel (n/2, n/2, n/2), however the box is turned."""
    settings = make_settings(invert_contrast=False, apply_ctf=False)
    view = make_view(angles, seed=10)
    data = extract(settings, blob_images(view.image_point, 4.0), view)["data"]
    assert np.unravel_index(data.argmax(), data.shape) == (8, 8, 8)
    np.testing.assert_allclose(centre_of_mass(data), 0, atol=0.02)


@pytest.mark.parametrize("angles", [(0, 0, 0), (120, 45, -60)])
def test_the_origin_of_each_slice_goes_to_the_origin(angles: tuple[float, float, float]) -> None:
    """Whole, however the box is turned: alone it gives a flat volume, the same in any box."""
    settings = make_settings(apply_ctf=False, circle_crop=False)
    tables = make_tables(settings)
    last_x = np.full_like(tables.last_x, -1)
    last_x[:, 0] = 0
    tables = replace(tables, last_x=last_x)
    images, view = random_images(11), make_view(seed=11)
    upright = extract(settings, images, view, tables)
    turned = extract(settings, images, make_view(angles, seed=11), tables)
    for name, value in upright.items():
        np.testing.assert_allclose(turned[name], value, rtol=1e-6)
    assert np.ptp(np.abs(upright["data"])) < 1e-5 * np.abs(upright["data"]).max()
    assert np.count_nonzero(upright["multiplicity"]) == 1
    assert upright["multiplicity"][0, 0, 0] > 0


@pytest.mark.parametrize(
    ("box", "binning"), [(24, 2.0), (30, 1.0), (26, 2.5), (50, 1.5), (30, 2.3), (36, 1.7)]
)
def test_a_blob_is_centred_in_the_stack(box: int, binning: float) -> None:
    """Between pixels, with even and odd windows (1.5 x 50 = 75, 2.3 x 30 = 69, 61 for 1.7 x 36)."""
    settings = make_settings(
        box, box, binning, stack2d=True, apply_ctf=False, invert_contrast=False
    )
    view = make_view(seed=12)
    images = blob_images(view.image_point, 2.5)
    for image in extract(settings, images, view)["stack"]:
        np.testing.assert_allclose(centre_of_mass(image), 0, atol=0.01)


def test_a_window_of_another_size_is_displaced_as_in_relion() -> None:
    """1.7 x 48 = 81.6 pixels, cut as 82: 82/3.4 - 24 = 0.118 binned pixels, kept on purpose."""
    settings = make_settings(48, 48, 1.7, stack2d=True, apply_ctf=False, invert_contrast=False)
    view = make_view(seed=13)
    found = [
        centre_of_mass(image)
        for image in extract(settings, blob_images(view.image_point, 3.0), view)["stack"]
    ]
    np.testing.assert_allclose(np.abs(found), 82 / 3.4 - 24, atol=0.01)


@pytest.mark.parametrize("move", [(1, 0), (-7, 4), (0, -11)])
@pytest.mark.parametrize("stack2d", [True, False])
@pytest.mark.parametrize(("box", "binning"), [(24, 2.0), (20, 1.5), (22, 1.5)])
def test_moving_image_and_particle_together_changes_nothing(
    move: tuple[int, int], stack2d: bool, box: int, binning: float
) -> None:
    """Whole pixels are a matter of the window's corner alone."""
    settings = make_settings(box, 16, binning, stack2d=stack2d)
    images, view = random_images(14), make_view((10, 20, 30), seed=14)
    moved_images = [np.roll(image, move[::-1], axis=(0, 1)) for image in images]
    expected = extract(settings, images, view)
    found = extract(settings, moved_images, replace(view, image_point=view.image_point + move))
    for name, value in expected.items():
        assert_close(found[name], value, 1e-6)


@pytest.mark.parametrize("move", [(1, 0), (0, -2), (3, 1)])
@pytest.mark.parametrize(("box", "binning"), [(24, 2.0), (20, 1.0), (16, 3.0)])
def test_a_shift_by_binned_pixels_moves_the_image_by_them(
    move: tuple[int, int], box: int, binning: float
) -> None:
    """Seen from a point m binned pixels further, the same object lies m pixels before."""
    settings = make_settings(box, box, binning, stack2d=True, circle_crop=False, apply_ctf=False)
    view = make_view(seed=15)
    rng = np.random.default_rng(15)
    images = []
    for x, y in view.image_point:
        # noise near the particle only, far from the edges of both windows
        image = np.zeros((HEIGHT, WIDTH), np.float32)
        image[int(y) - 3 : int(y) + 3, int(x) - 3 : int(x) + 3] = rng.normal(size=(6, 6))
        images.append(image)
    expected = extract(settings, images, view)["stack"]
    moved_view = replace(view, image_point=view.image_point + binning * np.array(move))
    found = extract(settings, images, moved_view)["stack"]
    assert_close(np.roll(found, move[::-1], axis=(1, 2)), expected, 1e-5)


def test_window_corners_round_halves_away_from_zero() -> None:
    """round(q) - s0/2, with the whole part of half an odd window."""
    points = np.array([10.4, 10.5, 11.5, -0.4, -0.5, -10.5, -11.5])
    expected = [10, 11, 12, 0, -1, -11, -12]
    np.testing.assert_array_equal(window_corners(points, 8), np.array(expected) - 4)
    np.testing.assert_array_equal(window_corners(points, 9), np.array(expected) - 4)


@pytest.mark.parametrize(("window", "box", "binning"), [(48, 24, 2.0), (82, 48, 1.7)])
def test_shift_cycles_of_even_windows(window: int, box: int, binning: float) -> None:
    """(q - o) / (b s), as in RELION, also where b s is not the window."""
    points = np.array([[50.3, 41.9]])
    inside = points - window_corners(points, window)
    np.testing.assert_allclose(shift_cycles(points, window, box, binning), inside / (binning * box))


@pytest.mark.parametrize(
    ("window", "box", "binning"), [(75, 50, 1.5), (115, 50, 2.3), (61, 36, 1.7)]
)
def test_shift_cycles_of_odd_windows(window: int, box: int, binning: float) -> None:
    """A particle on a pixel is at the origin after a shift by the window's centre pixel alone."""
    points = np.array([[50.0, 41.0], [50.25, 40.5]])
    cycles = shift_cycles(points, window, box, binning)
    centre = (window // 2) / window
    np.testing.assert_allclose(cycles[0], centre)
    np.testing.assert_allclose(cycles[1] - centre, np.array([0.25, -0.5]) / (binning * box))


# Windows

#: (window, box) where the columns of windows are dealt out, to 2 to 16 parts.
DEALT_OUT = [
    (768, 192),
    (1152, 192),
    (576, 192),
    (432, 144),
    (288, 72),
    (576, 144),
    (360, 90),
    (768, 384),
    (1536, 96),
]


@pytest.mark.parametrize("window", [20, 25, 230, 460, 601])
def test_window_transform(window: int) -> None:
    """The low columns of the window's transform, at once and in blocks of rows."""
    images, box = [image - 30 for image in random_images(16)[:3]], 16
    transform = WindowTransform(window, box)
    assert transform.columns.shape[1] == window
    for image, corner in zip(images, ((-3, -2), (40, 35), (-400, 10)), strict=True):
        assert transform.transform(image.view(np.uint8), 2, np.array(corner)) == 0
        expected = np.fft.fft2(oracle.cut_window(image, corner, window))[:, : box // 2 + 1].T
        size = np.abs(expected).max()
        np.testing.assert_allclose(transform.columns, expected, rtol=0, atol=2e-6 * size)


@pytest.mark.parametrize(("window", "box"), DEALT_OUT)
def test_transform_of_a_window_whose_columns_are_dealt_out(window: int, box: int) -> None:
    """The box's frequencies of NumPy's transform in double precision, of noise all over it."""
    assert split_column(window, box) > 1
    transform = WindowTransform(window, box)
    image = np.random.default_rng(window).normal(size=(window - 8, window + 20)).astype(np.float32)
    for corner in np.array([(-6, -3), (15, 4)]):
        assert transform.transform(image.view(np.uint8), 2, corner) == 0
        cut = oracle.cut_window(image.astype(np.float64), corner, window)
        whole = np.fft.fft2(cut)[:, : box // 2 + 1]
        expected = np.concatenate([whole[: box // 2], whole[-box // 2 :]]).T
        assert transform.columns.shape == expected.shape
        assert_close(transform.columns, expected, 5e-6)


@pytest.mark.parametrize("window", [20, 230, 460, 601])
def test_windows_that_are_cut_before(window: int) -> None:
    """The same as if they were cut here, again and again."""
    image = random_images(16)[0].view(np.uint8)
    given = WindowTransform(window, 16, cut_before=True)
    whole = WindowTransform(window, 16)
    for corner in (np.array([-3, -2]), np.array([10, 20])):
        kernels.copy_rows(image, 2, corner, 0, given.rows)
        given.transform_rows()
        whole.transform(image, 2, corner)
        size = np.abs(whole.columns).max()
        np.testing.assert_allclose(given.columns, whole.columns, rtol=0, atol=1e-6 * size)
    assert size > 0


@pytest.mark.parametrize("window", [20, 230, 460, 601])
@pytest.mark.parametrize("circle_precrop", [False, True])
def test_window_transform_counts_what_is_not_finite(window: int, circle_precrop: bool) -> None:
    """Each pixel of the window once, however many blocks the window is transformed in."""
    image = np.zeros((700, 700), np.float32)
    image[50 + window // 2, 60] = np.nan
    # the first row below the window, and the first column behind it
    image[50 + window, :] = image[:, 60 + window] = np.nan
    transform = WindowTransform(window, 16, circle_precrop=circle_precrop)
    assert transform.transform(image.view(np.uint8), 2, np.array([60, 50])) == 1


# Insertion is the adjoint of slice extraction


def sample_slices(
    volume_fs: NDArray[np.complex128], use: NDArray[np.bool_], u: Floats, v: Floats, scale: float
) -> NDArray[np.complex128]:
    """Return trilinear samples of a half-complex volume on a slice, as 2.8 read backwards.

    Voxels of the plane x = 0 count with their mirrored conjugates, as insertion writes both.
    """
    s, n = use.shape[1], len(volume_fs)
    extended = volume_fs.copy()
    extended[:, :, 0] += mirror(volume_fs[:, :, 0]).conj()
    samples = np.zeros(use.shape, dtype=complex)
    for x, y in zip(*np.nonzero(use), strict=True):
        g = x * u + (y if y < s // 2 else y - s) * v
        flip = g[0] < 0
        g = -g if flip else g
        base = np.floor(g).astype(int)
        total = 0j
        for corner in np.ndindex(2, 2, 2):
            j = base + corner
            if j[0] <= n // 2 and np.all(j[1:] >= -n // 2) and np.all(j[1:] < n // 2):
                share = np.prod(1 - np.abs(g - j))
                total += share * extended[j[2] % n, j[1] % n, j[0]]
        samples[x, y] = scale * (total.conjugate() if flip else total)
    return samples


def inner(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the real inner product."""
    return float(np.sum((a.conj() * b).real))


@pytest.mark.parametrize("seed", range(6))
def test_insertion_is_the_adjoint_of_slice_extraction(seed: int) -> None:
    """<insert(v), V> = <v, sample(V)> for any slice v and volume V."""
    rng = np.random.default_rng(seed)
    s, n = [(12, 12), (16, 10), (14, 6)][seed % 3]
    shape = (s // 2 + 1, s)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0][:2] * n / s
    axes *= rng.uniform(0.8, 1.3, (2, 1))
    scale = float(np.prod(np.linalg.norm(axes, axis=1)))
    slice_fs = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    weight = rng.uniform(size=shape).astype(np.float32)
    last_x = rng.integers(0, s // 2 + 1, s).astype(np.int32)
    kx = np.arange(s // 2 + 1)[:, None]
    ky = oracle.signed_frequencies(s)[None, :]
    use = (kx <= last_x) & (kx**2 + ky**2 <= s * s // 4) & ((kx > 0) | (ky >= 0))
    packed = np.zeros((n + 3, n + 3, n // 2 + 2, 4), np.float32)
    kernels.insert_slice(slice_fs, weight, last_x, axes, scale, packed)
    data = np.empty((n, n, n // 2 + 1), np.complex64)
    inserted_weight, multiplicity = (np.empty(data.shape, np.float32) for _ in range(2))
    kernels.unpack_volume(packed, 1.0, data, inserted_weight, multiplicity)

    x, y, z = oracle.frequency_grid_3d(n)
    centre_sign = np.where((x + y + z) % 2 == 0, 1.0, -1.0)
    slice_sign = np.where((kx + ky) % 2 == 0, 1.0, -1.0)
    volume = rng.normal(size=data.shape) + 1j * rng.normal(size=data.shape)
    samples = sample_slices(volume, use, *axes, scale)
    size = np.linalg.norm(data) * np.linalg.norm(volume)
    assert inner(data * centre_sign, volume) == pytest.approx(
        inner(slice_fs * slice_sign * use, samples), abs=1e-6 * size
    )
    real = volume.real.astype(complex)
    samples = sample_slices(real, use, *axes, scale)
    assert inner(inserted_weight, real) == pytest.approx(inner(weight * use, samples), rel=1e-4)
    assert inner(multiplicity, real) == pytest.approx(inner(use.astype(float), samples), rel=1e-4)


# The double-precision oracle

#: (box, crop, binning): windows even and odd (33, 75, 115), not b s (82 for 81.6, 61 for 61.2).
BOXES = [
    (24, 16, 2.0),
    (16, 16, 1.0),
    (26, 14, 1.0),
    (24, 24, 1.5),
    (22, 18, 1.5),
    (36, 24, 1.7),
    (50, 32, 1.5),
    (50, 30, 2.3),
    (48, 24, 1.7),
    (16, 12, 3.0),
    (4, 2, 2.0),
]
SWITCHES = (
    "stack2d",
    "circle_precrop",
    "no_circle_crop",
    "grid_precorr",
    "no_ctf",
    "no_ic",
    "whiten",
    "dont_apply_offsets",
    "apply_orientations",
    "cone_weight",
)


def random_options(seed: int) -> dict[str, Any]:
    """Return options that both the oracle and the program know."""
    rng = np.random.default_rng([seed, 1])
    box, crop, binning = BOXES[seed % len(BOXES)]
    options: dict[str, Any] = {name: bool(rng.random() < 0.3) for name in SWITCHES}
    if options["stack2d"]:
        options["cone_weight"] = False
    return {
        "box": box,
        "crop": crop,
        "binning": binning,
        "max_dose": float(rng.choice([0.0, 11.0])),
        "cutoff_fract": float(rng.choice([0.01, 0.01, 0.3])),
        "cone_angle": 25.0,
        "cone_sig0": 1.5,
        **options,
    }


def random_deformation(rng: np.random.Generator) -> tuple[str, tuple[int, int], Floats]:
    """Return a model of 2D deformation of some tenths of a pixel, or none ("")."""
    kind = str(rng.choice(["", "", "linear", "Fourier", "spline"]))
    grid = (4, 3)
    n = {"": 0, "linear": 3, "Fourier": 28, "spline": 96}[kind]
    return kind, grid, rng.normal(0, 0.003 if kind == "linear" else 0.3, (len(TILTS), n))


def random_tomogram(seed: int, size_xy: tuple[int, int] = (WIDTH, HEIGHT)) -> oracle.Tomogram:
    """Return a tomogram with noise images and a random alignment, defocus and optics."""
    rng = np.random.default_rng([seed, 2])
    size = np.array([size_xy[0] - 4.0, size_xy[1] - 4.0, 40.0]) + (rng.random() < 0.3)
    kind, grid, coefficients = random_deformation(rng)
    has_extras = rng.random() < 0.5
    frames = [
        oracle.Frame(
            image=rng.normal(8, 5, size_xy[::-1]).astype(np.float32).astype(np.float64),
            projection=oracle.projection_matrix(
                rng.normal(0, 2),
                tilt + rng.normal(),
                rng.uniform(-180, 180),
                tuple(rng.normal(0, 2, 2)),
                size_xy,
                size,
            ),
            dose=3.0 * f,
            defocus_u=rng.uniform(15000, 30000),
            defocus_v=rng.uniform(15000, 30000),
            defocus_angle=rng.uniform(-90, 90),
            ctf_scale=rng.uniform(0.5, 1) if has_extras else 1.0,
            ctf_bfactor=rng.uniform(0, 60) if has_extras else 0.0,
            phase_shift=rng.uniform(0, 180) if has_extras else 0.0,
            deformation=coefficients[f] if kind else None,
        )
        for f, tilt in enumerate(TILTS)
    ]
    return oracle.Tomogram(
        name="TS_01",
        frames=frames,
        size_xyz=size,
        pixel_size=2.2,
        hand=float(rng.choice([-1, 1])),
        voltage=float(rng.choice([200, 300])),
        spherical_aberration=float(rng.choice([0.01, 2.7])),
        amplitude_contrast=0.1,
        defocus_slope=float(rng.choice([1.0, 0.9])),
        bfactor_per_dose=float(rng.choice([0.0, 0.0, 2.0])),
        deformation_type=kind,
        deformation_grid=grid,
    )


def random_aberrations(rng: np.random.Generator) -> dict[str, Floats]:
    """Return coefficients that give phases of about a radian at the edge of a slice."""
    if rng.random() < 0.5:
        return {}
    orders = {"even_zernike": (0, 2, 2, 2, 4, 4, 4, 4, 4), "odd_zernike": (1, 1, 3, 3, 3, 3)}
    return {
        name: rng.normal(0, 0.3, len(powers)) * 8.0 ** np.array(powers)
        for name, powers in orders.items()
    }


def random_particle(seed: int, tomogram: oracle.Tomogram) -> oracle.Particle:
    """Return a particle with a pose, an offset and perhaps movement and aberrations.

    Every second one lies where the cropped box just fits, and the whole one where it can.
    """
    rng = np.random.default_rng([seed, 3])
    _, crop, binning = BOXES[seed % len(BOXES)]
    room = (HEIGHT - crop * binning) / 2 - 6
    away = room * np.array([0.6, 0.6, 0.1]) * (seed // len(BOXES) % 2)
    return oracle.Particle(
        name="TS_01/1",
        coordinate_px=tomogram.size_xyz / 2 + away + rng.normal(0, 1, 3),
        offset_angstrom=rng.normal(0, 3, 3),
        a_sub=oracle.euler_to_matrix(*rng.uniform(-180, 180, 3)),
        a_part=oracle.euler_to_matrix(*rng.uniform(-180, 180, 3)),
        trajectory_angstrom=rng.normal(0, 4, (len(TILTS), 3)) if rng.random() < 0.4 else None,
        optics_pixel_size=tomogram.pixel_size,
        **random_aberrations(rng),
    )


def column(tomogram: oracle.Tomogram, name: str) -> Floats:
    """Return one value of every frame."""
    return np.array([getattr(frame, name) for frame in tomogram.frames])


def program_tables(options: oracle.Options, tomogram: oracle.Tomogram) -> FrameTables:
    """Return the program's tables of a tomogram."""
    weights = None
    if options.whiten:
        images = [view_bytes(frame.image.astype(np.float32)) for frame in tomogram.frames]
        profiles = [noise_weight(*image, options.s0) for image in images]
        weights = np.array([spread_noise_weight(p, options.s, options.binning) for p in profiles])
    return make_frame_tables(
        box=options.s,
        binned_pixel_size=options.binning * tomogram.pixel_size,
        used=np.ones(len(tomogram.frames), dtype=bool),
        dose=column(tomogram, "dose"),
        bfactor_per_dose=tomogram.bfactor_per_dose,
        ctf_phase=ctf_phase_coefficients(
            *(column(tomogram, f"defocus_{name}") for name in ("u", "v", "angle")),
            column(tomogram, "phase_shift"),
            tomogram.voltage,
            tomogram.spherical_aberration,
            tomogram.amplitude_contrast,
        ),
        wavelength=electron_wavelength(tomogram.voltage),
        ctf_scale=column(tomogram, "ctf_scale"),
        ctf_bfactor=column(tomogram, "ctf_bfactor"),
        cutoff=options.cutoff_fract,
        noise=weights,
    )


def program_view(
    options: oracle.Options, tomogram: oracle.Tomogram, particle: oracle.Particle
) -> ParticleView:
    """Return how the oracle sees a particle in each frame."""
    frames = range(len(tomogram.frames))
    depth = np.array([oracle.depth_px(particle, tomogram, f, options) for f in frames])
    orientation = particle.a_full if options.apply_orientations else particle.a_sub
    return ParticleView(
        visible=oracle.visible_frames(particle, tomogram, options),
        image_point=np.array([oracle.image_point(particle, tomogram, f, options) for f in frames]),
        extra_defocus=tomogram.hand * tomogram.pixel_size * tomogram.defocus_slope * depth,
        slice_axes=column(tomogram, "projection")[:, :2, :3] @ orientation,
        particle_rotation=particle.a_full,
    )


def program_aberrations(
    options: oracle.Options, tomogram: oracle.Tomogram, particle: oracle.Particle
) -> Aberrations:
    """Return the program's aberrations of a particle's optics group."""
    kx, ky = slice_frequencies(options.s, options.binning * tomogram.pixel_size)
    even = odd = None
    if len(particle.even_zernike):
        even = aberration_phase(particle.even_zernike, kx, ky, odd=False) / (2 * np.pi)
        phase = aberration_phase(particle.odd_zernike, kx, ky, odd=True)
        odd = np.exp(-1j * phase).astype(np.complex64)
    return Aberrations(even, odd)


def run_program(
    options: oracle.Options, tomogram: oracle.Tomogram, particle: oracle.Particle
) -> dict[str, Floats]:
    """Extract one particle; return its images by the oracle's names."""
    settings = ExtractionSettings(
        box=options.s,
        crop=options.n,
        window=options.s0,
        binning=options.binning,
        stack2d=options.stack2d,
        apply_ctf=not options.no_ctf,
        invert_contrast=not options.no_ic,
        circle_crop=not options.no_circle_crop,
        circle_precrop=options.circle_precrop,
        grid_precorr=options.grid_precorr,
        cone=(options.cone_angle, options.cone_sig0) if options.cone_weight else None,
    )
    extractor = ParticleExtractor(settings)
    arguments = (
        TiltImages.from_arrays([frame.image.astype(np.float32) for frame in tomogram.frames]),
        program_tables(options, tomogram),
        program_view(options, tomogram, particle),
        program_aberrations(options, tomogram, particle),
    )
    if options.stack2d:
        return {"stack2d": extractor.extract_stack(*arguments)}
    result = extractor.extract_subtomogram(*arguments)
    return {"data": result.data, "weights": result.weights}


def check_against_oracle(
    options: oracle.Options, tomogram: oracle.Tomogram, particle: oracle.Particle
) -> None:
    """Compare all that comes of a particle, each of the weights' halves by itself."""
    assert oracle.visible_frames(particle, tomogram, options).any()
    expected = oracle.extract_particle(particle, tomogram, options)
    for name, found in run_program(options, tomogram, particle).items():
        parts = 2 if name == "weights" else 1
        for a, b in zip(np.split(found, parts), np.split(expected[name], parts), strict=True):
            assert_close(a, b, TOLERANCE_FLOAT32)


N_CASES = 8 * len(BOXES)


@pytest.mark.parametrize("seed", range(N_CASES))
def test_program_agrees_with_the_oracle(seed: int) -> None:
    """Random images, alignments, poses, optics, aberrations, movements, options; odd windows."""
    options = oracle.Options(**random_options(seed))
    tomogram = random_tomogram(seed)
    check_against_oracle(options, tomogram, random_particle(seed, tomogram))


@pytest.mark.parametrize("stack2d", [False, True], ids=["3d", "2d"])
@pytest.mark.parametrize(
    ("box", "crop", "binning"), [(72, 48, 4.0), (144, 96, 4.0), (192, 96, 4.0)]
)
def test_large_windows_agree_with_the_oracle(
    box: int, crop: int, binning: float, stack2d: bool
) -> None:
    """Windows whose columns are dealt out: none of the boxes above has them."""
    options = oracle.Options(box=box, crop=crop, binning=binning, stack2d=stack2d)
    assert split_column(options.s0, box) > 1
    tomogram = random_tomogram(box, (options.s0 + 12, options.s0 - 4))
    check_against_oracle(options, tomogram, random_particle(box, tomogram))


def test_the_random_cases_cover_every_option() -> None:
    """Each switch is on and off, each model of deformation there, frames left out and not."""
    options = [random_options(seed) for seed in range(N_CASES)]
    for name in SWITCHES:
        assert 8 <= sum(o[name] for o in options) <= N_CASES - 8
    tomograms = [random_tomogram(seed) for seed in range(N_CASES)]
    assert {t.deformation_type for t in tomograms} == {"", "linear", "Fourier", "spline"}
    particles = [random_particle(seed, t) for seed, t in enumerate(tomograms)]
    assert 10 < sum(p.trajectory_angstrom is not None for p in particles) < N_CASES - 10
    assert 10 < sum(len(p.even_zernike) > 0 for p in particles) < N_CASES - 10
    assert {o["max_dose"] for o in options} == {0.0, 11.0}


@pytest.mark.parametrize("grid_precorr", [False, True])
def test_images_without_ctf_come_from_the_same_windows(grid_precorr: bool) -> None:
    """Two kinds of images at once are, to the bit, those of two extractions."""
    settings = make_settings(stack2d=True, grid_precorr=grid_precorr)
    images = TiltImages.from_arrays(random_images(5))
    arguments = (images, make_tables(settings), make_view(seed=3), Aberrations())
    expected = ParticleExtractor(settings).extract_stack(*arguments)
    plain = ParticleExtractor(replace(settings, apply_ctf=False)).extract_stack(*arguments)
    extractor, without_ctf = ParticleExtractor(settings), np.full_like(expected, np.nan)
    found = extractor.extract_stack(*arguments, without_ctf=without_ctf)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(without_ctf, plain)
    assert np.abs(plain - expected).max() > 0.1 * expected.std()
    np.testing.assert_array_equal(extractor.extract_stack(*arguments), expected)
