"""The simulator against closed forms, the formulas of the spec, and the program's own readers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from relion_pseudosubtomo.core import geometry
from relion_pseudosubtomo.core.fsc import fourier_shell_correlation
from relion_pseudosubtomo.errors import UsageError
from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io.mrc import read_header, read_volume
from relion_pseudosubtomo.io.optimisation_set import resolve
from relion_pseudosubtomo.io.particles import make_particle_set, read_particle_table
from relion_pseudosubtomo.io.tomograms import read_tomogram_set
from relion_pseudosubtomo.io.trajectories import read_trajectories
from relion_pseudosubtomo.model import ParticleSet, TomogramSet, Trajectories
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.simulate import (
    Dataset,
    Settings,
    Structure,
    make_dataset,
    make_structure,
    project_structure,
    reference_volume,
    write_project,
)
from relion_pseudosubtomo.simulate.__main__ import main
from relion_pseudosubtomo.simulate.ctf import (
    Defocus,
    DepthCtf,
    FrequencyGrid,
    Microscope,
    damage,
)
from relion_pseudosubtomo.simulate.dataset import draw_angles
from relion_pseudosubtomo.simulate.images import (
    BACKGROUND,
    make_patch_grid,
    render_signal,
    render_tilt_series,
)

Floats = NDArray[np.floating]

SMALL = Settings(
    n_tilts=5,
    n_particles=6,
    image_size_xy=(192, 160),
    thickness_px=240,
    pixel_size=4.0,
    tilt_step=15.0,
    motion=3.0,
)


@pytest.fixture(scope="module")
def small() -> Dataset:
    return make_dataset(SMALL)


def turn(structure: Structure, rotation: Floats) -> Structure:
    return replace(structure, centres_xyz=structure.centres_xyz @ rotation.T)


# The structure


def test_structure_has_no_symmetry_and_the_size_of_a_particle() -> None:
    structure = make_structure()
    reach = structure.centres_xyz.max(axis=0) - structure.centres_xyz.min(axis=0)
    assert 150 < 2 * structure.radius < 200
    assert reach.max() > 120
    assert len(np.unique(structure.sigma)) == len(np.unique(structure.weight)) >= 24
    assert structure.sigma.max() > 2 * structure.sigma.min()
    volume = reference_volume(48, 6.0, structure)
    half_turns = [np.roll(volume[s], 1, a) for s, a in (
        (np.s_[:, ::-1, ::-1], (1, 2)), (np.s_[::-1, :, ::-1], (0, 2)), (np.s_[::-1, ::-1], (0, 1))
    )]  # fmt: skip
    mirrored = np.roll(volume[::-1], 1, 0)
    for other in (*half_turns, mirrored):
        assert np.max(fourier_shell_correlation(volume, other)[4:16]) < 0.5


def test_structure_follows_from_its_seed_alone() -> None:
    a, again, other = make_structure(1), make_structure(1), make_structure(2)
    np.testing.assert_array_equal(a.centres_xyz, again.centres_xyz)
    np.testing.assert_array_equal(a.sigma, again.sigma)
    assert not np.allclose(a.centres_xyz, other.centres_xyz)


def test_volume_holds_the_density_of_its_gaussians() -> None:
    blob = Structure(np.array([[6.0, -3.0, 9.0]]), np.array([5.0]), np.array([2.0]))
    volume = reference_volume(32, 3.0, blob)
    z, y, x = (np.indices(volume.shape) - 16) * 3.0
    r2 = (x - 6) ** 2 + (y + 3) ** 2 + (z - 9) ** 2
    expected = 2 * np.exp(-r2 / 50) / (2 * np.pi * 25) ** 1.5
    np.testing.assert_allclose(volume, expected, atol=1e-6 * expected.max())


def test_box_smaller_than_the_structure_is_a_cut_out_of_a_larger_one() -> None:
    structure = make_structure()
    large, small = reference_volume(96, 3.0, structure), reference_volume(32, 3.0, structure)
    inside = slice(32, 64)
    np.testing.assert_allclose(small, large[inside, inside, inside], atol=0.02 * large.max())


@pytest.mark.parametrize("seed", range(3))
def test_projection_is_the_sum_of_the_turned_volume_along_z(seed: int) -> None:
    structure = make_structure()
    rotation = geometry.euler_to_matrix(draw_angles(np.random.default_rng(seed), 1))[0]
    volume = reference_volume(96, 2.0, turn(structure, rotation))
    projection = project_structure(structure, rotation, np.array([48.0, 48.0]), 96, 2.0)
    np.testing.assert_allclose(projection, 2.0 * volume.sum(axis=0), atol=1e-9 * projection.max())


@pytest.mark.parametrize(
    ("axis", "view"),
    [
        (2, [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]),  # along x: z to the right, y upwards
        (1, [[1, 0, 0], [0, 0, 1], [0, -1, 0]]),  # along y: x to the right, z upwards
    ],
)
def test_projection_along_an_axis_is_the_sum_of_the_volume(axis: int, view: list) -> None:
    structure = make_structure()
    along = reference_volume(96, 2.0, structure).sum(axis=axis) * 2.0
    expected = along.T if axis == 2 else along
    found = project_structure(structure, np.array(view, float), np.array([48.0, 48.0]), 96, 2.0)
    np.testing.assert_allclose(found, expected, atol=1e-9 * expected.max())


def test_projection_is_exact_between_pixels() -> None:
    blob = Structure(np.zeros((1, 3)), np.array([4.0]), np.array([1.0]))
    centre = np.array([17.37, 14.81])
    image = project_structure(blob, np.eye(3), centre, 32, 2.0)
    y, x = np.indices(image.shape)
    r2 = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) * 4.0
    np.testing.assert_allclose(image, np.exp(-r2 / 32) / (2 * np.pi * 16), atol=1e-8)


# The microscope


def spec_ctf(grid: FrequencyGrid, scope: Microscope, u: float, v: float, angle: float) -> Floats:
    """Return the CTF as spec 2.4, step 4 writes it."""
    volts = 1000 * scope.voltage
    wavelength = 12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts))
    a, q = np.deg2rad(angle), scope.amplitude_contrast
    xx = -(u * np.cos(a) ** 2 + v * np.sin(a) ** 2)
    yy = -(u * np.sin(a) ** 2 + v * np.cos(a) ** 2)
    xy = -(u - v) * np.sin(a) * np.cos(a)
    quadratic = xx * grid.k_x**2 + 2 * xy * grid.k_x * grid.k_y + yy * grid.k_y**2
    spherical = 1e7 * scope.spherical_aberration * wavelength**3 * grid.k2**2
    gamma = np.pi * wavelength * quadratic + np.pi / 2 * spherical
    return -np.sin(gamma - np.arctan(q / np.sqrt(1 - q**2)))


def test_ctf_is_that_of_the_spec_at_any_depth() -> None:
    grid, scope = FrequencyGrid(64, 2.0), Microscope()
    ctf = DepthCtf(grid, scope, Defocus(21000.0, 20300.0, 37.0))
    for extra in (0.0, 850.0, -1200.0):
        expected = spec_ctf(grid, scope, 21000 + extra, 20300 + extra, 37.0)
        np.testing.assert_allclose(ctf.at(extra), expected, atol=1e-9)
    assert ctf.at(0)[0, 0] == pytest.approx(scope.amplitude_contrast)


def test_damage_is_that_of_the_spec() -> None:
    grid = FrequencyGrid(32, 2.0)
    left = damage(grid, 20.0)
    k = np.sqrt(grid.k2[3, 5])
    assert left[0, 0] == 1
    assert left[3, 5] == pytest.approx(np.exp(-20 / (2 * (0.245 * k**-1.665 + 2.81))))


# The data set


def test_tilt_series_is_dose_symmetric_and_imperfect(small: Dataset) -> None:
    first, second = small.tilt_series
    np.testing.assert_allclose(first.stage_tilt, [-30, -15, 0, 15, 30])
    np.testing.assert_array_equal(first.exposure_order, [4, 2, 0, 1, 3])
    np.testing.assert_allclose(first.pre_exposure, first.exposure_order * SMALL.dose_per_tilt)
    for series in (first, second):
        for values in (series.x_tilt, series.z_rot, series.shift_xy):
            assert np.ptp(values) > 0
        assert len({frame.u for frame in series.defocus}) == SMALL.n_tilts
        assert all(frame.u - frame.v >= 100 for frame in series.defocus)
    assert abs(np.mean(first.z_rot) - np.mean(second.z_rot)) > 45


def test_particles_of_the_default_data_set() -> None:
    dataset = make_dataset(Settings())
    settings = dataset.settings
    assert settings.n_tomograms >= 2
    assert settings.n_particles >= 200
    assert settings.n_tilts == 41
    assert min(settings.image_size_xy) >= 960
    n_cut = 0
    for series, particles in zip(dataset.tilt_series, dataset.particles, strict=True):
        assert np.all(np.ptp(particles.offset, axis=0) > 10)
        assert np.all(np.ptp(particles.subtomogram_angles, axis=0) > 100)
        assert np.all(np.ptp(particles.angles, axis=0) > 100)
        points = geometry.project_points(series.projections, particles.position)[..., :2]
        radius = dataset.structure.radius / settings.pixel_size
        whole = geometry.is_inside_image(points, settings.image_size_xy, radius)
        n_cut += np.count_nonzero(~whole.all(axis=1))
        distances = np.linalg.norm(particles.position[:, None] - particles.position, axis=2)
        assert np.min(distances[distances > 0]) > 2 * radius
    assert 20 < n_cut < settings.n_particles


def test_offset_is_applied_along_the_axes_of_the_box(small: Dataset) -> None:
    for particles in small.particles:
        box_rotation = geometry.euler_to_matrix(particles.subtomogram_angles)
        moved = geometry.apply_offset(
            particles.coordinate, particles.offset, box_rotation, SMALL.pixel_size
        )
        np.testing.assert_allclose(moved, particles.position, atol=1e-9)


def test_motion_is_smooth_and_of_the_asked_size() -> None:
    settings = replace(SMALL, n_tilts=41, n_particles=2, n_tomograms=1, motion=4.0)
    motions = []
    for seed in range(20):
        dataset = make_dataset(replace(settings, seed=seed))
        in_time = np.argsort(dataset.tilt_series[0].exposure_order)
        motions.append(dataset.particles[0].trajectory[:, in_time])
    motion = np.concatenate(motions)
    assert np.sqrt(np.mean(motion**2)) == pytest.approx(4.0, rel=0.2)
    steps = np.diff(motion, axis=1)
    assert np.max(np.abs(steps)) < 0.3 * np.max(np.abs(motion))


def test_settings_that_cannot_be_simulated_are_refused() -> None:
    with pytest.raises(UsageError, match="tilts: expected a number above 0, found 0"):
        Settings(n_tilts=0)
    with pytest.raises(UsageError, match="one or more in each of 2 tomograms, found 1"):
        Settings(n_particles=1)
    with pytest.raises(UsageError, match="expected room for 50, found room for"):
        make_dataset(replace(SMALL, image_size_xy=(96, 96), n_particles=100))


# The images


def test_protein_is_dark_where_the_geometry_puts_it() -> None:
    """One image with one particle against the formulas, on a field with room to spare."""
    settings = Settings(n_tomograms=1, n_tilts=3, n_particles=1, pixel_size=2.0, noise=False)
    dataset = make_dataset(replace(settings, image_size_xy=(192, 160), thickness_px=300))
    series, particles = dataset.tilt_series[0], dataset.particles[0]
    particles.position[0] = series.size_xyz / 2 + (3.3, -7.1, 60.6)
    image = next(render_tilt_series(dataset, 0)) - BACKGROUND
    edge, size = 96, 384
    projection = series.projections[:1]
    point = geometry.project_points(projection, particles.position)[0, 0, :2]
    rotation = projection[0, :3, :3] @ particles.rotation[0]
    flat = project_structure(dataset.structure, rotation, point + edge, size, 2.0)
    depth = geometry.depths_from_centre(projection, particles.position, series.size_xyz)[0, 0]
    u, v = (d - 2.0 * depth for d in (series.defocus[0].u, series.defocus[0].v))  # hand -1
    grid = FrequencyGrid(size, 2.0)
    transfer = spec_ctf(grid, settings.microscope, u, v, series.defocus[0].angle)
    transfer = transfer * damage(grid, series.pre_exposure[0])
    seen = np.fft.irfft2(np.fft.rfft2(flat) * transfer, s=flat.shape)
    expected = seen[edge : edge + 160, edge : edge + 192]
    assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] < -0.9999


def test_noise_has_ten_times_the_variance_of_the_signal() -> None:
    """In the area of the particles, neighbours included, where the signal is at its strongest."""
    dataset = make_dataset(Settings(n_tomograms=1, n_tilts=1, n_particles=120))
    silent = replace(dataset, settings=replace(dataset.settings, noise=False))
    (image,), (signal,) = (list(render_tilt_series(d, 0)) for d in (dataset, silent))
    projections = dataset.tilt_series[0].projections
    points = geometry.project_points(projections, dataset.particles[0].position)[:, 0]
    radius = dataset.structure.radius / dataset.settings.pixel_size
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    area = np.zeros(image.shape, dtype=bool)
    for point in points:
        area |= (x - point[0]) ** 2 + (y - point[1]) ** 2 < radius**2
    noise_variance = np.var((image - signal)[area], dtype=np.float64)
    assert noise_variance == pytest.approx(1, rel=0.02)
    signal_variance = np.var(signal[area], dtype=np.float64)
    assert 0.03 < signal_variance < 0.1 * noise_variance


def test_signal_reaches_beyond_the_image_edge_but_no_further(small: Dataset) -> None:
    """A particle cut by the edge is drawn as the rest of a larger image would be."""
    settings = replace(SMALL, n_tomograms=1, n_particles=1, motion=0.0)
    dataset = make_dataset(settings)
    (particles,) = dataset.particles
    whole = render_signal(dataset, 0, 2)
    point = geometry.project_points(dataset.tilt_series[0].projections[2:3], particles.position)[
        0, 0
    ]
    by = -int(point[0])
    moved = replace(particles, position=particles.position.copy())
    step = dataset.tilt_series[0].projections[2, :3, :3].T @ np.array([by, 0.0, 0.0])
    moved.position[0] += step
    cut = render_signal(replace(dataset, particles=(moved,)), 0, 2)
    np.testing.assert_allclose(cut[:, :by], whole[:, -by:], atol=1e-5 * np.abs(whole).max())


def test_patch_holds_the_particle_and_its_fringes(small: Dataset) -> None:
    size, grid = make_patch_grid(small)
    assert size * SMALL.pixel_size > 2 * small.structure.radius + 100
    assert grid.k2.shape == (size, size // 2 + 1)


# The project


def read_project(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[TomogramSet, ParticleSet, Trajectories | None]:
    """Read a project as the program does, from its directory; there is nothing to remark on."""
    monkeypatch.chdir(directory)
    findings = Findings()
    options = JobOptions("", 48, 32, optimisation_set="Picks/job007/optimisation_set.star")
    files = resolve(options, findings)
    assert files is not None
    table = read_particle_table(files.particles, findings)
    assert table is not None
    tomograms = read_tomogram_set(
        files.tomograms, findings, wanted=table.tomogram_names(), options=options
    )
    particles = make_particle_set(table, tomograms, findings)
    assert tomograms is not None
    assert particles is not None
    trajectories = None
    if files.trajectories is not None:
        trajectories = read_trajectories(files.trajectories, particles, tomograms, findings)
    assert [str(finding) for finding in findings] == []
    return tomograms, particles, trajectories


@pytest.fixture(params=["relion5", "relion4"])
def project(request: pytest.FixtureRequest, tmp_path: Path, small: Dataset) -> Iterator[Path]:
    write_project(small, tmp_path, request.param)
    return tmp_path


def test_files_say_what_was_simulated(
    project: Path, small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    tomograms, particles, trajectories = read_project(project, monkeypatch)
    assert [t.name for t in tomograms.tomograms] == ["TS_01", "TS_02"]
    for tomogram, series in zip(tomograms.tomograms, small.tilt_series, strict=True):
        assert tomogram.hand == -1
        assert tomogram.image_size_xy == SMALL.image_size_xy
        np.testing.assert_array_equal(tomogram.size_xyz, series.size_xyz)
        np.testing.assert_allclose(tomogram.projections, series.projections, atol=1e-5)
        np.testing.assert_allclose(tomogram.pre_exposure, series.pre_exposure, atol=1e-6)
        np.testing.assert_allclose(tomogram.defocus_u, [d.u for d in series.defocus], atol=1e-5)
        np.testing.assert_allclose(tomogram.defocus_v, [d.v for d in series.defocus], atol=1e-5)
    simulated = small.particles
    for name in ("coordinate", "offset", "subtomogram_angles", "angles"):
        expected = np.concatenate([getattr(p, name) for p in simulated])
        np.testing.assert_allclose(getattr(particles, name), expected, atol=1e-5)
    assert trajectories is not None
    motion = np.concatenate([p.trajectory for p in simulated])
    np.testing.assert_allclose(np.stack(trajectories.shifts), motion, atol=1e-5)
    assert set(particles.columns["rlnRandomSubset"]) == {"1", "2"}


def test_images_on_disk_are_those_rendered(
    project: Path, small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    tomograms, _, _ = read_project(project, monkeypatch)
    for index, tomogram in enumerate(tomograms.tomograms):
        for frame, image in zip(tomogram.frames, render_tilt_series(small, index), strict=True):
            np.testing.assert_array_equal(read_volume(frame.path)[frame.index], image)
            assert read_header(frame.path).voxel_size == pytest.approx(SMALL.pixel_size)


def test_known_structure_is_written(project: Path, small: Dataset) -> None:
    path = str(project / "reference.mrc")
    expected = reference_volume(64, 3.0, small.structure)
    np.testing.assert_allclose(read_volume(path), expected, atol=1e-6 * expected.max())
    assert read_header(path).voxel_size == pytest.approx(3.0)


def test_command_line_writes_the_same_bytes_again(tmp_path: Path) -> None:
    words = (
        "--tomograms 1 --tilts 3 --particles 2 --size 96 80 --thickness 120 --angpix 5 "
        "--reference_box 40 --reference_angpix 5 --motion 2"
    )
    digests = []
    for name, more in (("a", []), ("b", []), ("c", ["--seed", "1"])):
        assert main(["--o", str(tmp_path / name), *words.split(), *more]) == 0
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        digests.append(
            {p.relative_to(tmp_path / name): hashlib.sha256(p.read_bytes()).digest() for p in files}
        )
    assert digests[0] == digests[1]
    assert digests[0].keys() == digests[2].keys()
    same = [str(p) for p, d in digests[0].items() if digests[2][p] == d]
    assert same == [
        "Picks/job007/optimisation_set.star",
        "Tomograms/job008/tomograms.star",
    ]


def test_command_line_explains_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for words, message in (
        (["--particles", "1"], "expected one or more in each of 2 tomograms"),
        (["--seed", "-1"], "seed: expected 0 or more, found -1"),
        (["--reference_box", "0"], "reference box: expected a number above 0, found 0"),
        (["--o", str(tmp_path / "file" / "project")], "could not be made"),
    ):
        assert main(["--o", str(tmp_path), *words]) == 1
        assert message in capsys.readouterr().err
