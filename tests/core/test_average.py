"""Averages of slices and volumes whose every value is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from relion_pseudosubtomo.core import geometry, kernels
from relion_pseudosubtomo.core.average import FourierAverage
from relion_pseudosubtomo.core.fsc import fourier_shell_correlation, shells_up_to
from relion_pseudosubtomo.core.packed import make_packed_volume
from relion_pseudosubtomo.simulate.structure import (
    Structure,
    make_structure,
    project_structure,
    reference_volume,
)

Floats = NDArray[np.floating]

BOX = 48
PIXEL_SIZE = 6.0
UP_TO_NYQUIST = shells_up_to(0.9, BOX)


@pytest.fixture(scope="module")
def structure() -> Structure:
    return make_structure(3)


@pytest.fixture(scope="module")
def reference(structure: Structure) -> Floats:
    return reference_volume(BOX, PIXEL_SIZE, structure)


def draw_rotations(n: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    tilt = np.rad2deg(np.arccos(rng.uniform(-1, 1, n)))
    angles = np.stack([rng.uniform(-180, 180, n), tilt, rng.uniform(-180, 180, n)], axis=1)
    return geometry.euler_to_matrix(angles)


def project(structure: Structure, rotation: Floats, shift_px: Floats) -> Floats:
    return project_structure(structure, rotation, BOX // 2 + shift_px, BOX, PIXEL_SIZE)


def turn(structure: Structure, rotation: Floats, shift_px: Floats) -> Structure:
    centres = structure.centres_xyz @ rotation.T + shift_px * PIXEL_SIZE
    return Structure(centres, structure.sigma, structure.weight)


def some_ctf(seed: int) -> Floats:
    """Return a function of the frequency with zeros, half-complex, different for each seed."""
    k2 = np.fft.fftfreq(BOX)[:, None] ** 2 + np.fft.rfftfreq(BOX) ** 2
    return np.cos(40 * k2 + 0.7 * seed)


def filter_image(image: Floats, transfer: Floats) -> Floats:
    return np.fft.irfft2(np.fft.rfft2(image) * transfer, s=image.shape)


def average_stack(images: Floats, weights: Floats, rotations: Floats) -> Floats:
    average = FourierAverage(BOX)
    average.add_stack(images, weights, rotations)
    return average.finish()


def average_volumes(volumes: list[Floats], weight: Floats, rotations: Floats) -> Floats:
    average = FourierAverage(BOX)
    for volume, rotation in zip(volumes, rotations, strict=True):
        average.add_subtomogram(volume, weight, rotation)
    return average.finish(regularisation=0)


def lowest_fsc(volume: Floats, reference: Floats) -> float:
    return float(np.min(fourier_shell_correlation(volume, reference)[UP_TO_NYQUIST]))


def shell_gains(volume: Floats, reference: Floats) -> Floats:
    """Return the regression of one volume's transform on the other's, shell by shell."""
    k = np.fft.fftfreq(BOX, 1 / BOX)
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2)).astype(int)
    a, b = np.fft.fftn(volume), np.fft.fftn(reference)
    cross = np.bincount(shell.ravel(), (a * b.conj()).real.ravel())
    return (cross / np.bincount(shell.ravel(), (np.abs(b) ** 2).ravel()))[UP_TO_NYQUIST]


def test_known_slices_reproduce_the_structure(structure: Structure, reference: Floats) -> None:
    rotations = draw_rotations(800, seed=4).reshape(40, 20, 3, 3)
    ctf = np.stack([some_ctf(i) for i in range(20)])
    nowhere = np.zeros(2)
    average = FourierAverage(BOX)
    for of_particle in rotations:
        images = [
            filter_image(project(structure, r, nowhere), c * c)
            for r, c in zip(of_particle, ctf, strict=True)
        ]
        average.add_stack(np.array(images), ctf**2, of_particle)
    volume = average.finish()
    assert lowest_fsc(volume, reference) > 0.985
    per_voxel = volume / PIXEL_SIZE  # projections are per area, the reference is per volume
    np.testing.assert_allclose(shell_gains(per_voxel, reference), 1, atol=0.06)


def test_slices_turned_the_wrong_way_do_not(structure: Structure, reference: Floats) -> None:
    rotations = draw_rotations(200, seed=5)
    images = np.array([project(structure, r, np.zeros(2)) for r in rotations])
    weights = np.ones((200, BOX, BOX // 2 + 1))
    wrong = rotations.transpose(0, 2, 1)
    assert lowest_fsc(average_stack(images, weights, rotations), reference) > 0.9
    assert lowest_fsc(average_stack(images, weights, wrong), reference) < 0.3


def test_packed_slices_are_those_of_a_stack() -> None:
    """The kernel's sums are `add_stack`'s, up to single precision and the last shells."""
    rng = np.random.default_rng(11)
    images, rotations = rng.normal(size=(30, BOX, BOX)), draw_rotations(30, seed=12)
    weights = rng.uniform(0, 1, (30, BOX, BOX // 2 + 1))
    expected, found = FourierAverage(BOX), FourierAverage(BOX)
    expected.add_stack(images, weights, rotations)
    volume = make_packed_volume(BOX)
    k = np.fft.fftfreq(BOX, 1 / BOX)
    last_x = np.floor(np.sqrt(BOX**2 / 4 - k**2)).astype(np.int32)
    slices = np.fft.rfft2(images).swapaxes(1, 2).astype(np.complex64, order="C")
    slice_weights = weights.swapaxes(1, 2).astype(np.float32, order="C")
    for slice_fs, weight, rotation in zip(slices, slice_weights, rotations, strict=True):
        kernels.insert_slice(slice_fs, weight, last_x, rotation[:2], 1.0, volume)
    found.add_packed(volume, 2.0)
    assert not volume.any()
    z, y, x = np.meshgrid(k, k, np.arange(BOX // 2 + 1), indexing="ij")
    inside = np.sqrt(x**2 + y**2 + z**2) < BOX // 2 - 3
    for one, other in ((found.data / 2, expected.data), (found.weight, expected.weight)):
        largest = np.abs(other).max()
        np.testing.assert_allclose(one[inside], other[inside], rtol=0, atol=1e-5 * largest)


def test_known_volumes_reproduce_the_structure(structure: Structure, reference: Floats) -> None:
    weight = np.full((BOX, BOX, BOX // 2 + 1), 2.0)
    rotations = draw_rotations(4, seed=6)
    volumes = [
        2 * reference_volume(BOX, PIXEL_SIZE, turn(structure, r, np.zeros(3))) for r in rotations
    ]
    assert lowest_fsc(average_volumes(volumes, weight, rotations), reference) > 0.97
    backwards = rotations.transpose(0, 2, 1)
    assert lowest_fsc(average_volumes(volumes, weight, backwards), reference) < 0.3


def test_one_volume_with_its_weight_comes_back(reference: Floats) -> None:
    """Data and weight that differ by direction divide out again."""
    k_z, k_x = np.fft.fftfreq(BOX)[:, None, None], np.fft.rfftfreq(BOX)
    weight = 1 + k_z**2 + np.zeros((BOX, BOX, 1)) + k_x
    data = np.fft.irfftn(np.fft.rfftn(reference) * weight, s=reference.shape, axes=(0, 1, 2))
    average = FourierAverage(BOX)
    average.add_subtomogram(data, weight, np.eye(3))
    average.n_interpolations = 0  # turned by nothing, no interpolation took place
    volume = average.finish(regularisation=0)
    np.testing.assert_allclose(shell_gains(volume, reference), 1, atol=0.01)


def test_displaced_images_are_shifted_back(structure: Structure, reference: Floats) -> None:
    rng = np.random.default_rng(7)
    rotations, shifts = draw_rotations(200, seed=8), rng.uniform(-3, 3, (200, 2))
    images = np.array([project(structure, r, s) for r, s in zip(rotations, shifts, strict=True)])
    weights = np.ones((200, BOX, BOX // 2 + 1))
    centred, displaced = FourierAverage(BOX), FourierAverage(BOX)
    centred.add_stack(images, weights, rotations, shifts)
    displaced.add_stack(images, weights, rotations)
    assert lowest_fsc(centred.finish(), reference) > 0.9
    assert lowest_fsc(displaced.finish(), reference) < 0.5


def test_displaced_volumes_are_shifted_back(structure: Structure, reference: Floats) -> None:
    shift = np.array([2.3, -1.6, 0.7])
    (rotation,) = draw_rotations(1, seed=9)
    volume = reference_volume(BOX, PIXEL_SIZE, turn(structure, rotation, shift))
    average = FourierAverage(BOX)
    average.add_subtomogram(volume, np.ones((BOX, BOX, BOX // 2 + 1)), rotation, shift)
    assert lowest_fsc(average.finish(), reference) > 0.9


def test_halves_add_up(structure: Structure) -> None:
    rotations = draw_rotations(20, seed=10)
    images = np.array([project(structure, r, np.zeros(2)) for r in rotations])
    weights = np.ones((20, BOX, BOX // 2 + 1))
    whole, halves = FourierAverage(BOX), (FourierAverage(BOX), FourierAverage(BOX))
    whole.add_stack(images, weights, rotations)
    for i, half in enumerate(halves):
        half.add_stack(images[i::2], weights[i::2], rotations[i::2])
    total = FourierAverage(BOX)
    for half in halves:
        total += half
    np.testing.assert_allclose(total.finish(), whole.finish(), rtol=0, atol=1e-12)


def test_slices_keep_friedel_symmetry() -> None:
    rng = np.random.default_rng(11)
    average = FourierAverage(BOX)
    weights = rng.uniform(0, 1, (3, BOX, BOX // 2 + 1))
    average.add_stack(rng.standard_normal((3, BOX, BOX)), weights, draw_rotations(3, seed=12))
    plane = average.data[:, :, 0]
    opposite = np.roll(plane[::-1, ::-1], 1, axis=(0, 1)).conj()
    assert plane.any()
    np.testing.assert_allclose(plane, opposite, atol=1e-10)


@pytest.mark.parametrize("box", [2, 33])
def test_bad_box_is_refused(box: int) -> None:
    with pytest.raises(ValueError, match=f"even number of 4 or more, found {box}"):
        FourierAverage(box)
