"""From simulated tilt images through the command line to averages of the known structure.

The simulator has closed forms where extraction interpolates and resamples, so the two agree only
where both are right: contrast, hand, CTF at depth, dose, sub-pixel shifts. Angles, projections and
depths both take from core.geometry, which tests/core/test_geometry.py compares with the oracle.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from numpy.typing import NDArray

from relion_pseudosubtomo import cli
from relion_pseudosubtomo.average_job import JobAverage, average_directory
from relion_pseudosubtomo.core import geometry
from relion_pseudosubtomo.core.fsc import fourier_shell_correlation, shells_up_to
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.io.mrc import read_header, read_volume
from relion_pseudosubtomo.show_average import main as show_average
from relion_pseudosubtomo.simulate import (
    Dataset,
    Settings,
    make_dataset,
    reference_volume,
    write_project,
)
from relion_pseudosubtomo.simulate.ctf import DepthCtf, FrequencyGrid, damage
from relion_pseudosubtomo.simulate.project import Reference
from relion_pseudosubtomo.simulate.structure import Structure, transform_projection

Floats = NDArray[np.floating]

OPTIMISATION_SET = "Picks/job007/optimisation_set.star"
PARTICLES = Path("Picks/job007/particles.star")
TOMOGRAMS = Path("Tomograms/job008/tomograms.star")
BOX = ["--b", "96", "--crop", "64", "--bin", "2"]
BINNED_PIXEL_SIZE = 3.0
JUDGED = shells_up_to(2 / 3, 64)
ENOUGH = 0.9


@pytest.fixture
def in_project(noisy_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(noisy_project)


def extract(output: str, *options: str) -> None:
    shutil.rmtree(output, ignore_errors=True)
    assert cli.main(["--i", OPTIMISATION_SET, "--o", f"{output}/", *options]) == 0


def average_and_remove(output: str) -> JobAverage:
    average = average_directory(output)
    shutil.rmtree(output)
    return average


def correlate(average: JobAverage) -> Floats:
    """Return the FSC with the known structure in all shells up to 2/3 of Nyquist, unmasked."""
    assert average.pixel_size == pytest.approx(BINNED_PIXEL_SIZE)
    return fourier_shell_correlation(average.volume, read_volume("reference.mrc"))[JUDGED]


@pytest.mark.usefixtures("in_project")
@pytest.mark.parametrize("mode", [[], ["--stack2d"]], ids=["3d", "2d"])
def test_average_is_the_known_structure(mode: list[str]) -> None:
    extract("Extract/right", *BOX, *mode)
    average = average_and_remove("Extract/right")
    assert average.n_particles > 200
    assert np.min(correlate(average)) > ENOUGH
    halves = fourier_shell_correlation(average.half_a, average.half_b)[JUDGED]
    assert 0.6 < np.min(halves) < 0.98


@pytest.mark.usefixtures("in_project")
@pytest.mark.parametrize("mode", [[], ["--stack2d"]], ids=["3d", "2d"])
def test_a_flipped_hand_shows(mode: list[str]) -> None:
    flipped = Path("flipped.star")
    text = TOMOGRAMS.read_text()
    lines = [re.sub(r"\t-1\t", "\t1\t", line) for line in text.splitlines()]
    flipped.write_text("\n".join(lines) + "\n")
    assert flipped.read_text() != text
    extract("Extract/flipped", "--t", str(flipped), *BOX, *mode)
    assert np.min(correlate(average_and_remove("Extract/flipped"))) < ENOUGH


@pytest.mark.usefixtures("in_project")
@pytest.mark.parametrize("mode", [[], ["--stack2d"]], ids=["3d", "2d"])
def test_a_shift_by_one_binned_pixel_shows(mode: list[str]) -> None:
    shifted = Path("shifted.star")
    change_column(PARTICLES, shifted, "rlnOriginXAngst", BINNED_PIXEL_SIZE)
    extract("Extract/shifted", "--p", str(shifted), *BOX, *mode)
    assert np.min(correlate(average_and_remove("Extract/shifted"))) < ENOUGH - 0.1


def change_column(source: Path, target: Path, label: str, by: float) -> None:
    """Add a number to a column of a particle file."""
    lines = source.read_text().splitlines()
    (column,) = (int(m[1]) - 1 for line in lines if (m := re.match(rf"_{label} #(\d+)", line)))
    for i, line in enumerate(lines):
        words = line.split("\t")
        if line.startswith("TS_"):
            words[column] = f"{float(words[column]) + by:.6f}"
            lines[i] = "\t".join(words)
    target.write_text("\n".join(lines) + "\n")


# Smaller projects: what else the average of a job takes into account


@dataclass(frozen=True)
class SmallProject:
    """A project without noise, made in seconds."""

    dataset: Dataset
    reference: Floats

    def correlate(self, average: JobAverage) -> float:
        """Return the lowest FSC with the known structure up to 2/3 of Nyquist."""
        return float(np.min(fourier_shell_correlation(average.volume, self.reference)[2:11]))


SMALL = Settings(
    n_tilts=21,
    n_particles=16,
    tilt_step=6.0,
    image_size_xy=(288, 256),
    thickness_px=400,
    pixel_size=3.0,
    noise=False,
    motion=4.0,
)
SMALL_BOX = ["--b", "64", "--crop", "32", "--bin", "2"]


@pytest.fixture(scope="module")
def small_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    write_project(make_dataset(SMALL), directory, reference=Reference(32, 6.0))
    return directory


@pytest.fixture
def small_project(small_directory: Path, monkeypatch: pytest.MonkeyPatch) -> SmallProject:
    monkeypatch.chdir(small_directory)
    dataset = make_dataset(SMALL)
    return SmallProject(dataset, reference_volume(32, 6.0, dataset.structure))


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--stack2d"],
        ["--dont_apply_offsets"],
        ["--dont_apply_offsets", "--stack2d"],
        ["--apply_orientations"],
        ["--apply_orientations", "--stack2d"],
        ["--no_ctf", "--stack2d"],
        ["--float16"],
    ],
    ids=" ".join,
)
def test_average_follows_the_options(small_project: SmallProject, options: list[str]) -> None:
    extract("Extract/options", *SMALL_BOX, *options)
    assert small_project.correlate(average_and_remove("Extract/options")) > 0.8


def test_average_without_trajectories_is_worse(small_project: SmallProject) -> None:
    extract("Extract/still", *SMALL_BOX, "--stack2d")
    moving = small_project.correlate(average_and_remove("Extract/still"))
    still = Path("still.star")
    text = Path(OPTIMISATION_SET).read_text().splitlines()
    still.write_text("\n".join(line for line in text if "Trajectories" not in line) + "\n")
    status = cli.main(["--i", str(still), "--o", "Extract/still/", *SMALL_BOX, "--stack2d"])
    assert status == 0
    assert small_project.correlate(average_and_remove("Extract/still")) < moving - 0.05


@pytest.mark.usefixtures("small_project")
def test_particles_without_weights_cannot_be_averaged() -> None:
    extract("Extract/no_comb", *SMALL_BOX, "--no_comb")
    with pytest.raises(InputError, match=r"_weights\.mrc"):
        average_and_remove("Extract/no_comb")


@pytest.mark.usefixtures("small_project")
def test_particles_before_extraction_cannot_be_averaged() -> None:
    with pytest.raises(InputError, match="rlnImageSize"):
        average_directory(OPTIMISATION_SET)


@pytest.mark.usefixtures("small_project")
def test_stacks_of_unknown_tomograms_cannot_be_averaged() -> None:
    """The file and the tomogram are named; no other tomogram's CTF is used."""
    extract("Extract/lost", *SMALL_BOX, "--stack2d")
    star = Path("Extract/lost/particles.star")
    star.write_text(re.sub(r"^TS_\d+\t", "TS_99\t", star.read_text(), count=1, flags=re.M))
    message = r"1 particle of unknown tomograms in Extract/lost/particles\.star.* found TS_99"
    with pytest.raises(InputError, match=message):
        average_and_remove("Extract/lost")


@pytest.mark.usefixtures("small_project")
def test_stacks_are_averaged_without_their_tilt_images() -> None:
    """Finished images are all that is read."""
    extract("Extract/alone", *SMALL_BOX, "--stack2d")
    expected = average_directory("Extract/alone")
    images = Path("MotionCorr").rename("elsewhere")
    try:
        found = average_and_remove("Extract/alone")
    finally:
        images.rename("MotionCorr")
    np.testing.assert_array_equal(found.volume, expected.volume)
    assert found.n_particles == expected.n_particles


@pytest.mark.usefixtures("small_project")
def test_picture_and_figures_of_an_average(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    extract("Extract/shown", *SMALL_BOX, "--stack2d")
    capsys.readouterr()
    files = ["--reference", "reference.mrc", "--o", "average.png", "--mrc", "average.mrc"]
    assert show_average(["Extract/shown", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\d+ particles, box 32, pixel size 6 A", lines[0])
    assert re.match(r"FSC of the half maps: [\d.]+ A at 0\.143; lowest value to 2/3", lines[1])
    found = re.search(r"FSC with known structure: .* Nyquist \(19\.2 A\): ([\d.]+)", lines[2])
    assert found is not None
    assert float(found[1]) > 0.8
    assert len(lines) == 4 + 16
    assert Path("average.png").read_bytes().startswith(b"\x89PNG")
    average = average_and_remove("Extract/shown")
    np.testing.assert_allclose(read_volume("average.mrc"), average.volume, rtol=0, atol=1e-3)
    assert read_header("average.mrc").voxel_size == pytest.approx(6.0)


@pytest.mark.usefixtures("small_project")
def test_a_reference_of_another_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    extract("Extract/shown", "--b", "48", "--crop", "24", "--bin", "2", "--stack2d")
    assert show_average(["Extract/shown", "--reference", "reference.mrc"]) == 1
    message = capsys.readouterr().err
    assert "expected 24 voxels of 6 A along each side, found 32 x 32 x 32 of 6 A" in message
    assert "--reference_box 24 --reference_angpix 6" in message


@pytest.mark.usefixtures("small_project")
def test_a_directory_without_results_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_average(["Picks"]) == 1
    assert "optimisation_set.star" in capsys.readouterr().err


@pytest.mark.usefixtures("small_project")
def test_a_picture_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    extract("Extract/shown", "--b", "48", "--crop", "24", "--bin", "2", "--stack2d")
    for name, message in (
        ("average.doc", "expected the name of a picture"),
        ("missing/average.png", "missing/average.png"),
    ):
        assert show_average(["Extract/shown", "--o", name]) == 1
        assert message in capsys.readouterr().err


# Centring


CENTRED = Settings(
    n_tomograms=4,
    n_tilts=7,
    n_particles=4,
    image_size_xy=(384, 352),
    thickness_px=200,
    pixel_size=3.0,
    tilt_step=15.0,
    noise=False,
)


@pytest.fixture(scope="module")
def lone_particles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """Write one particle a tomogram, near the middle, so that nothing disturbs the fit."""
    directory = tmp_path_factory.mktemp("lone")
    dataset = make_dataset(CENTRED)
    rng = np.random.default_rng(13)
    for series, particles in zip(dataset.tilt_series, dataset.particles, strict=True):
        move = series.size_xyz / 2 + rng.uniform(-20, 20, 3) - particles.position
        particles.position[:] += move
        particles.coordinate[:] += move
    write_project(dataset, directory)
    return directory, dataset


def fit_shift(found_fs: Floats, expected_fs: Floats, frequencies: Floats) -> Floats:
    """Return by how many pixels an image is displaced against what is expected of it.

    The phases of the cross-spectrum grow in proportion to the frequency; the displacement is
    their slope by weighted least squares, the weight being the spectrum's own strength.

    Parameters
    ----------
    found_fs, expected_fs : ndarray, shape (...)
    frequencies : ndarray, shape (n_axes, ...)
        Cycles a pixel along each axis, zero frequency excluded by a weight of zero.
    """
    cross = found_fs * np.conj(expected_fs)
    weight = np.abs(cross) * np.any(frequencies != 0, axis=0)
    slopes = np.reshape(-2 * np.pi * frequencies, (len(frequencies), -1))
    normal = (slopes * weight.ravel()) @ slopes.T
    return np.linalg.solve(normal, (slopes * weight.ravel()) @ np.angle(cross).ravel())


def visible_frames(dataset: Dataset, index: int, radius_px: float) -> NDArray[np.int64]:
    series, particles = dataset.tilt_series[index], dataset.particles[index]
    points = geometry.project_points(series.projections, particles.position)[0, :, :2]
    inside = geometry.is_inside_image(points, dataset.settings.image_size_xy, radius_px)
    return np.flatnonzero(inside)


def measure_image_shifts(dataset: Dataset, output: Path, box: int, binning: float) -> Floats:
    """Return the displacements (x, y) in binned pixels of all images, shape (n_images, 2)."""
    settings, shifts = dataset.settings, []
    grid = FrequencyGrid(box, binning * settings.pixel_size)
    cycles = np.broadcast_arrays(np.fft.rfftfreq(box)[None, :], np.fft.fftfreq(box)[:, None])
    for index, (series, particles) in enumerate(
        zip(dataset.tilt_series, dataset.particles, strict=True)
    ):
        frames = visible_frames(dataset, index, binning * box / 2)
        file = output / f"Subtomograms/{series.name}/1_stack2d.mrcs"
        stack = mrcfile.read(file).astype(np.float64)
        assert len(stack) == len(frames)
        depth = geometry.depths_from_centre(
            series.projections, particles.position, series.size_xyz
        )[0]
        for image, f in zip(stack, frames, strict=True):
            ctf = DepthCtf(grid, settings.microscope, series.defocus[f])
            ctf_there = ctf.at(-settings.pixel_size * depth[f])
            expected = transform_projection(
                dataset.structure,
                series.projections[f, :3, :3] @ particles.rotation[0],
                np.full(2, box / 2),
                box,
                binning * settings.pixel_size,
            )
            expected = expected * (ctf_there * damage(grid, series.pre_exposure[f])) ** 2
            shifts.append(fit_shift(np.fft.rfft2(image), expected, np.array(cycles)))
    return np.array(shifts)


WHOLE_WINDOWS = [(96, 1.0), (48, 2.0), (32, 4.0), (50, 2.3), (50, 1.5)]


@pytest.mark.parametrize(("box", "binning"), WHOLE_WINDOWS)
def test_images_are_centred(
    lone_particles: tuple[Path, Dataset],
    monkeypatch: pytest.MonkeyPatch,
    box: int,
    binning: float,
) -> None:
    directory, dataset = lone_particles
    monkeypatch.chdir(directory)
    size = ["--b", str(box), "--bin", str(binning)]
    extract("Extract/centred", *size, "--stack2d", "--no_circle_crop")
    shifts = measure_image_shifts(dataset, Path("Extract/centred"), box, binning)
    assert len(shifts) > 15
    assert np.max(np.abs(shifts)) < 0.05


def test_fractional_windows_are_off_centre_by_relions_amount(
    lone_particles: tuple[Path, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, dataset = lone_particles
    monkeypatch.chdir(directory)
    extract("Extract/centred", "--b", "48", "--bin", "1.7", "--stack2d", "--no_circle_crop")
    shifts = measure_image_shifts(dataset, Path("Extract/centred"), 48, 1.7)
    # 82 pixels are binned to 48, but shifted as if 1.7 to 1: too far, towards the corner
    expected = 48 / 2 - 82 / (2 * 1.7)
    assert expected == pytest.approx(-0.118, abs=1e-3)
    np.testing.assert_allclose(shifts, expected, atol=0.03)


@pytest.mark.parametrize(("box", "binning"), WHOLE_WINDOWS)
def test_volumes_are_centred(
    lone_particles: tuple[Path, Dataset],
    monkeypatch: pytest.MonkeyPatch,
    box: int,
    binning: float,
) -> None:
    directory, dataset = lone_particles
    monkeypatch.chdir(directory)
    extract("Extract/centred", "--b", str(box), "--bin", str(binning))
    k = np.fft.fftfreq(box)
    cycles = np.array(np.meshgrid(k, k, np.fft.rfftfreq(box), indexing="ij"))[::-1]
    structure = dataset.structure
    for series, particles in zip(dataset.tilt_series, dataset.particles, strict=True):
        stem = f"Extract/centred/Subtomograms/{series.name}/1"
        volume = mrcfile.read(f"{stem}_data.mrc").astype(np.float64)
        weight = mrcfile.read(f"{stem}_weights.mrc")[:box]
        in_box = geometry.euler_to_matrix(particles.angles)[0]
        turned = Structure(structure.centres_xyz @ in_box.T, structure.sigma, structure.weight)
        known = reference_volume(box, binning * CENTRED.pixel_size, turned)
        shift = fit_shift(np.fft.rfftn(volume), np.fft.rfftn(known) * weight, cycles)
        assert np.max(np.abs(shift)) < 0.05
