"""The Python interface: data sets, geometry and CTFs, extraction in memory."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from project_copy import REFERENCE, ProjectCopy

import relion_pseudosubtomo
from relion_pseudosubtomo import (
    Extracted,
    ParticleDataset,
    TiltSeries,
    extract_pseudo_subtomograms,
    extract_stacks,
    labels,
    open_dataset,
    open_optimisation_set,
)
from relion_pseudosubtomo.api import sources
from relion_pseudosubtomo.cli import main
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io import hdf5, mrc
from relion_pseudosubtomo.io.particles import read_particle_table, write_particle_file
from relion_pseudosubtomo.io.star import read_star, write_star
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.preflight import read_and_check

WORDS = ["--p", "particles.star", "--t", "tomograms.star", "--b", "48", "--crop", "24"]
WORDS += ["--bin", "2", "--j", "2", "--log_level", "warning"]
N = 4
DOCS = Path(__file__).parent.parent / "docs" / "api.md"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with 2D and 3D results, as files, and as containers; do not write."""
    copy = ProjectCopy(tmp_path_factory.mktemp("api"), "basic_2d")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy.path)
        for name, words in (("2d", ["--stack2d"]), ("3d", [])):
            assert main([*WORDS, *words, "--o", f"files_{name}/"]) == 0
            packed = ["--hdf5", "--no_mrc", "--o", f"packed_{name}/"]
            assert main([*WORDS, *words, *packed]) == 0
    return copy.path


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start in the project."""
    monkeypatch.chdir(project)
    return project


def assert_same(one: relion_pseudosubtomo.Particle, other: relion_pseudosubtomo.Particle) -> None:
    """Compare two particles, apart from the columns of paths."""
    assert (one.name, one.tomogram) == (other.name, other.tomogram)
    assert one.pixel_size == pytest.approx(other.pixel_size)
    assert one.images.dtype == other.images.dtype
    np.testing.assert_array_equal(one.images, other.images)
    if one.weights is not None or other.weights is not None:
        np.testing.assert_array_equal(one.weights, other.weights)
    for label in one.row.keys() & other.row.keys():
        assert one.row[label] == other.row[label]


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_containers_and_files_hold_the_same(here: Path, kind: str) -> None:
    """Row by row, with what the MRC files hold."""
    packed, files = open_dataset(f"packed_{kind}"), open_dataset(f"files_{kind}")
    assert len(packed) == len(files) == N
    assert packed.is_stack == files.is_stack == (kind == "2d")
    for one, other in zip(packed, files, strict=True):
        assert_same(one, other)
        np.testing.assert_array_equal(other.images, mrcfile.read(other.row["rlnImageName"]))
        assert one.visible is not None
        if kind == "2d":
            np.testing.assert_array_equal(one.visible, other.visible)
            assert len(one.images) == one.visible.sum()
        else:
            assert other.visible is None
            assert one.weights is not None
            assert one.weights.shape == (2, 24, 24, 13)


def test_indices_and_slices(here: Path) -> None:
    """As of any sequence; a slice is a data set that has read nothing."""
    dataset = open_dataset("packed_2d/particles.h5")
    names = [particle.name for particle in dataset]
    assert dataset[-1].name == names[-1]
    assert [p.name for p in dataset[1:]] == names[1:]
    assert [p.name for p in dataset[::-1]] == names[::-1]
    assert isinstance(dataset[1:3], ParticleDataset)
    assert_same(dataset[1:][::2][1], dataset[3])
    assert len(dataset[:0]) == 0
    with pytest.raises(IndexError):
        dataset[N]


def test_one_container_alone(here: Path) -> None:
    """A tomogram's own file is a data set too."""
    dataset = open_dataset("packed_2d/Subtomograms/TS_03.h5")
    assert [p.tomogram for p in dataset] == ["TS_03", "TS_03"]
    assert_same(dataset[0], open_dataset("packed_2d")[2])


def read_sum(job: tuple[ParticleDataset, int]) -> float:
    """Return the sum of a particle's values, in another process."""
    dataset, i = job
    return float(np.abs(dataset[i].images).sum())


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.parametrize("kind", ["packed_2d", "files_3d"])
def test_several_processes_read_at_once(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, method: str
) -> None:
    """Pickled data sets, from any directory, also after this process has opened the files."""
    dataset = open_dataset(kind)
    expected = [read_sum((dataset, i)) for i in range(N)]
    again = pickle.loads(pickle.dumps(dataset))
    monkeypatch.chdir(tmp_path)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(read_sum, [(again, i % N) for i in range(4 * N)]) == expected * 4


def test_few_containers_stay_open(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of many tomograms does not run out of files."""
    monkeypatch.setattr(sources, "MOST_OPEN", 1)
    dataset = open_dataset("packed_2d")
    n_open = len(os.listdir("/proc/self/fd"))
    first = [dataset[i].images for i in (0, 3, 1, 2)]
    assert len(os.listdir("/proc/self/fd")) <= n_open + 1
    np.testing.assert_array_equal(first[1], open_dataset("files_2d")[3].images)


def test_threads_share_a_data_set_and_its_slices(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread closes the file that another one reads."""
    monkeypatch.setattr(sources, "MOST_OPEN", 1)
    dataset, expected = open_dataset("packed_3d"), open_dataset("files_3d")
    is_in, is_other_in = threading.Event(), threading.Event()
    read = sources._OpenContainer.read

    def read_late(*arguments):  # type: ignore[no-untyped-def]
        if not is_in.is_set():
            is_in.set()
            is_other_in.wait(0.2)  # for a thread that would be let in, and close this file
        else:
            is_other_in.set()
        return read(*arguments)

    monkeypatch.setattr(sources._OpenContainer, "read", read_late)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(dataset[:2].__getitem__, 0)
        assert is_in.wait(10)
        other = pool.submit(dataset[2:].__getitem__, 0)  # of another container
    np.testing.assert_array_equal(one.result().images, expected[0].images)
    np.testing.assert_array_equal(other.result().images, expected[2].images)


def test_optics_groups_that_are_not_there(here: Path) -> None:
    """An error that names them; they go by number."""
    table = read_particle_table("files_2d/particles.star", Findings())
    assert table is not None
    assert table.optics is not None
    columns = table.particles.columns
    groups = columns["rlnOpticsGroup"]
    expected = open_dataset("files_2d").pixel_size
    for text, message in ((".0", None), ("7", "expected those of data_optics, found 17")):
        changed = {**columns, "rlnOpticsGroup": groups + text}
        write_particle_file("groups.star", table.general, table.optics.columns, changed)
        if message is None:
            np.testing.assert_array_equal(open_dataset("groups.star").pixel_size, expected)
        else:
            with pytest.raises(InputError, match=message):
                open_dataset("groups.star")


@pytest.mark.parametrize("kind", ["files", "packed"])
def test_optimisation_set_tells_geometry_and_ctf(here: Path, kind: str) -> None:
    """Images made without the CTF, times the CTF, are those made with it."""
    path = f"{kind}_2d/optimisation_set.star"
    if not Path("no_ctf").exists():
        plain = ["--stack2d", "--no_ctf", "--no_circle_crop", "--crop", "48", "--o"]
        assert main([*WORDS, *plain, "no_ctf/"]) == 0
        assert main([*WORDS, *[w for w in plain if w != "--no_ctf"], "with_ctf/"]) == 0
    geometry = open_optimisation_set(path)[0].geometry
    assert geometry is not None
    job, plan = read_and_check(
        JobOptions("x", 48, 24, 2.0, particles="particles.star", tomograms="tomograms.star")
    )
    np.testing.assert_allclose(geometry.position, plan.position[0], atol=1e-4)
    np.testing.assert_allclose(geometry.rotation, plan.particle_rotation[0], atol=1e-6)
    tomogram = job.tomogram_set.tomograms[plan.tasks[0].tomogram]
    np.testing.assert_array_equal(geometry.projections, tomogram.projections)
    point = geometry.projections[:, :2] @ np.append(geometry.position, 1)
    np.testing.assert_allclose(geometry.image_point, point)
    np.testing.assert_array_equal(geometry.frames, np.flatnonzero(plan.tasks[0].visible[0]))
    with_ctf, without = open_optimisation_set("with_ctf"), open_optimisation_set("no_ctf")
    for one, other in zip(with_ctf, without, strict=True):
        assert one.geometry is not None
        ctf = one.geometry.ctf
        assert ctf.shape == (len(one.images), 48, 25)
        product = np.fft.irfft2(np.fft.rfft2(other.images) * ctf, s=(48, 48))
        # the Nyquist lines are not the same in a real image
        assert np.abs(product - one.images).std() < 0.02 * one.images.std()


def test_geometry_without_tilt_images(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs their size is NaN where only angles and shifts are given; all else stays."""
    with_images = open_optimisation_set("packed_3d/optimisation_set.star")[0].geometry
    shutil.copytree(here, tmp_path / "archived", ignore=shutil.ignore_patterns("frames"))
    monkeypatch.chdir(tmp_path / "archived")
    geometry = open_optimisation_set("packed_3d/optimisation_set.star")[0].geometry
    assert with_images is not None
    assert geometry is not None
    assert np.isnan(geometry.image_point).all()
    assert np.isnan(geometry.projections[:, :2, 3]).all()
    known = np.ones((4, 4), dtype=bool)
    known[:2, 3] = False
    np.testing.assert_array_equal(geometry.projections[:, known], with_images.projections[:, known])
    np.testing.assert_array_equal(geometry.ctf, with_images.ctf)


def test_iterating_an_optimisation_set_of_containers(here: Path) -> None:
    """Images from particles.h5, geometry from the tables; slices and pickles keep it."""
    dataset = open_optimisation_set("packed_3d")
    again = pickle.loads(pickle.dumps(dataset[1:3]))
    for one, other in zip(dataset[1:3], again, strict=True):
        assert_same(one, other)
        assert one.geometry is not None
        assert other.geometry is not None
        np.testing.assert_array_equal(one.geometry.ctf, other.geometry.ctf)
        assert len(one.geometry.frames) == one.visible.sum()  # type: ignore[union-attr]


def select(source: str, target: str, names: list[str]) -> str:
    """Write these particles of a job, in this order, beside its own; return the new set's path."""
    table = read_particle_table(f"{source}/particles.star", Findings())
    assert table is not None
    assert table.optics is not None
    columns = table.particles.columns
    rows = [list(columns["rlnTomoParticleName"]).index(name) for name in names]
    chosen = {label: values[rows] for label, values in columns.items()}
    write_particle_file(f"{source}/{target}.star", table.general, table.optics.columns, chosen)
    text = Path(source, "optimisation_set.star").read_text()
    path = Path(source, f"{target}_set.star")
    path.write_text(text.replace("particles.star", f"{target}.star"))
    return str(path)


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_a_selection_has_its_own_images_and_geometry(here: Path, kind: str) -> None:
    """The particle file says which particles and in which order; containers go by names."""
    whole = {particle.name: particle for particle in open_optimisation_set(f"packed_{kind}")}
    names = list(whole)[::-2]
    selection = open_optimisation_set(select(f"packed_{kind}", "selected", names))
    assert [particle.name for particle in selection] == names
    for dataset in (selection, pickle.loads(pickle.dumps(selection))[:]):
        for particle in dataset:
            expected = whole[particle.name]
            assert_same(particle, expected)
            assert particle.geometry is not None
            assert expected.geometry is not None
            np.testing.assert_array_equal(particle.visible, expected.visible)
            np.testing.assert_array_equal(particle.geometry.position, expected.geometry.position)
            np.testing.assert_array_equal(particle.geometry.ctf, expected.geometry.ctf)


def test_particles_that_no_container_has(here: Path, tmp_path: Path) -> None:
    """Their image files serve; where there are none either, that is said."""
    shutil.copytree("packed_2d", tmp_path / "job")
    star = tmp_path / "job/particles.star"
    text = Path("packed_2d/optimisation_set.star").read_text()
    one_set = tmp_path / "job/optimisation_set.star"
    one_set.write_text(text.replace("packed_2d/particles.star", str(star)))
    star.write_text(star.read_text().replace("TS_01/1", "TS_01/99"))
    with pytest.raises(InputError, match=r"job/particles\.star: expected .* found TS_01/99"):
        open_optimisation_set(one_set)
    star.write_text(star.read_text().replace("_rlnTomoParticleName", "_rlnFormerName"))
    with pytest.raises(InputError, match="found no rlnTomoParticleName"):
        open_optimisation_set(one_set)
    text = Path("files_2d/particles.star").read_text()
    star.write_text(text.replace("TS_01/1\t", "TS_01/99\t"))
    dataset = open_optimisation_set(one_set)
    assert dataset[0].name == "TS_01/99"
    assert_same(dataset[1], open_dataset("files_2d")[1])


def test_particles_without_a_tomogram_have_no_geometry(here: Path) -> None:
    """A tomogram that the set lacks is an error, not the geometry of another one."""
    tomograms, sets = Path("tomograms.star").read_text(), Path("files_2d/optimisation_set.star")
    lines = tomograms.splitlines(keepends=True)
    Path("few.star").write_text("".join(line for line in lines if not line.startswith("TS_03")))
    Path("few_set.star").write_text(sets.read_text().replace("tomograms.star", "few.star"))
    message = "particles of unknown tomograms in files_2d/particles.star.* few.star, found TS_03"
    with pytest.raises(InputError, match=message):
        open_optimisation_set("few_set.star")


def load_series(name: str = "TS_01") -> tuple[TiltSeries, np.ndarray, JobOptions]:
    """Return a tilt series of the project as arrays, and positions and options of its job."""
    options = JobOptions("x", 48, 24, 2.0, particles="particles.star", tomograms="tomograms.star")
    job, plan = read_and_check(options)
    place = job.tomogram_set.index_by_name()[name]
    tomogram = job.tomogram_set.tomograms[place]
    series = TiltSeries(
        images=np.stack(mrc.map_series(tomogram.frames)),
        projections=tomogram.projections,
        pixel_size=tomogram.pixel_size,
        size_xyz=tuple(tomogram.size_xyz),
        dose=tomogram.pre_exposure,
        defocus_u=tomogram.defocus_u,
        defocus_v=tomogram.defocus_v,
        defocus_angle=tomogram.defocus_angle,
        phase_shift=tomogram.phase_shift,
        voltage=tomogram.voltage,
        spherical_aberration=tomogram.spherical_aberration,
        amplitude_contrast=tomogram.amplitude_contrast,
        hand=tomogram.hand,
        ctf_scale=tomogram.ctf_scale,
        ctf_bfactor=tomogram.ctf_bfactor,
        defocus_slope=tomogram.defocus_slope,
        bfactor_per_dose=tomogram.bfactor_per_dose,
    )
    first = sum(len(t) for t in plan.tasks if t.tomogram < place)
    task = next(t for t in plan.tasks if t.tomogram == place)
    return series, plan.position[first : first + len(task)], options


def test_extraction_in_memory_is_that_of_a_run(here: Path) -> None:
    """Bit for bit, 2D and 3D."""
    assert_extraction_in_memory("files_2d", "files_3d")


@pytest.mark.parametrize("case", ["ctf_extra", "dose_bfactor"])
def test_all_values_of_tilt_tables_count_in_memory(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CTF scales and B-factors, phase shifts, defocus slopes, B-factors per dose."""
    monkeypatch.chdir(ProjectCopy(tmp_path, case).path)
    for name, words in (("2d", ["--stack2d"]), ("3d", [])):
        assert main([*WORDS, *words, "--o", f"files_{name}/"]) == 0
    assert_extraction_in_memory("files_2d", "files_3d")
    series, positions, _ = load_series()
    expected = next(extract_stacks(series, positions, **SIZES)).images
    plain = {"ctf_scale": None, "ctf_bfactor": None, "phase_shift": None, "defocus_slope": 1.0}
    changes = plain if case == "ctf_extra" else {"bfactor_per_dose": 0.0}
    for label, value in changes.items():
        other = replace(series, **{label: value})
        assert not np.array_equal(
            next(extract_stacks(other, positions, **SIZES)).images, expected
        ), label


def assert_extraction_in_memory(files_2d: str, files_3d: str) -> None:
    """Compare the particles of the first tomogram with those of two runs."""
    series, positions, _ = load_series()
    sizes = {"box": 48, "crop": 24, "binning": 2.0}
    stacks = list(extract_stacks(series, positions, **sizes))
    assert stacks
    for found, expected in zip(stacks, open_dataset(files_2d), strict=False):
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.visible, expected.visible)
        assert found.pixel_size == pytest.approx(expected.pixel_size)
    expected_3d = open_dataset(files_3d)
    columns = [expected_3d.columns.get(f"rlnTomoSubtomogram{a}") for a in ("Rot", "Tilt", "Psi")]
    angles = None
    if columns[0] is not None:
        angles = np.array(columns, dtype=float).T[: len(positions)]
    volumes = list(extract_pseudo_subtomograms(series, positions, angles, **sizes))
    for found, expected in zip(volumes, expected_3d, strict=False):
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.weights, expected.weights)


def test_projections_are_those_of_a_run(here: Path) -> None:
    """From all angles and shifts of a tilt table."""
    series, _, _ = load_series()
    star = read_star("tilt_series/TS_01.star", Findings())
    assert star is not None
    tilt, rotation, x_tilt, *shifts = (
        star.tables["TS_01"].columns[label].astype(float)
        for label in (labels.Y_TILT, labels.Z_ROT, labels.X_TILT, labels.X_SHIFT, labels.Y_SHIFT)
    )
    given = series.images, series.pixel_size, series.size_xyz, tilt, rotation
    project = partial(TiltSeries.project, *given, np.stack(shifts, axis=1))
    np.testing.assert_array_equal(project(x_tilt=x_tilt), series.projections)
    assert not np.array_equal(project(), series.projections)
    np.testing.assert_array_equal(project(x_tilt=1.0), project(x_tilt=np.ones(len(tilt))))


#: RELION's own names images of these that it has not written.
WITHOUT_IMAGES = ("sum", "sum_cone")
RELIONS = sorted(
    path.parent.name
    for path in REFERENCE.glob("*/relion")
    if path.parent.name not in WITHOUT_IMAGES
)


def read_relion(path: str) -> np.ndarray:
    """Return the values of a file of RELION, whose headers are not quite as the standard says."""
    with mrcfile.open(path, permissive=True) as file:
        return np.array(file.data)


@pytest.mark.parametrize("case", RELIONS)
def test_directories_of_relion(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are data sets as those of this program, with the values of their image files."""
    path = ProjectCopy(tmp_path, case).path
    (path / "relion").symlink_to(REFERENCE / case / "relion")
    monkeypatch.chdir(path)
    dataset, with_geometry = open_dataset("relion"), open_optimisation_set("relion")
    assert len(dataset) > 0
    for one, other in zip(dataset, with_geometry, strict=True):
        assert_same(one, other)
        np.testing.assert_array_equal(one.images, read_relion(one.row["rlnImageName"]))
        n, geometry = one.images.shape[-1], other.geometry
        assert geometry is not None
        assert geometry.ctf.shape == (len(geometry.frames), n, n // 2 + 1)
        assert np.isfinite(geometry.image_point).all()
        if dataset.is_stack:
            assert one.weights is None
            assert one.visible is not None
            assert len(one.images) == one.visible.sum() == len(geometry.frames)
        elif Path(one.row["rlnCtfImage"]).exists():
            assert one.weights is not None
            weights = read_relion(one.row["rlnCtfImage"])
            np.testing.assert_array_equal(one.weights, weights.reshape(2, n, n, n // 2 + 1))
        else:
            assert one.weights is None


def test_positions_and_options_of_extraction_in_memory(here: Path) -> None:
    """One result a position, also outside all images; options go by their names."""
    series, positions, _ = load_series()
    far = np.vstack([positions[:1], [[-1e5, 0, 0]]])
    inside, outside = extract_stacks(series, far, box=48, crop=24, binning=2.0)
    assert inside.visible.any()
    assert outside.images.shape == (0, 24, 24)
    *_, nothing = extract_pseudo_subtomograms(series, far, box=48, crop=24, binning=2.0)
    assert not nothing.images.any()
    few = next(extract_stacks(series, far, box=48, crop=24, binning=2.0, max_dose=7.0))
    assert len(few.images) == (series.dose <= 7).sum()
    with pytest.raises(InputError, match="even number"):
        extract_stacks(series, far, box=47)


@pytest.mark.parametrize("extract", [extract_stacks, extract_pseudo_subtomograms])
def test_pixels_that_are_not_finite_are_counted(
    here: Path, extract: Callable[..., Iterator[Extracted]]
) -> None:
    """For each particle that they spoil, and for no other."""
    series, positions, _ = load_series()
    place = np.vstack([positions[:1]] * 2)
    *_, clean = extract(series, place, box=48, crop=24)
    assert clean.n_not_finite == 0
    images = series.images.astype(np.float32)
    x, y = (series.projections[0, :2] @ np.append(place[0], 1)).round().astype(int)
    images[0, y, x : x + 2] = np.nan, np.inf
    far = np.vstack([place, [[-1e5, 0, 0]]])
    first, second, outside = extract(replace(series, images=images), far, box=48, crop=24)
    assert (first.n_not_finite, second.n_not_finite, outside.n_not_finite) == (2, 2, 0)
    assert not np.isfinite(first.images).all()


OPTIONS = {
    "max_dose": 7.0,
    "common_tilts": 2,
    "whiten": True,
    "no_ctf": True,
    "no_ic": True,
    "no_circle_crop": True,
    "circle_precrop": True,
    "grid_precorr": True,
    "exact_centre": True,
}
OPTIONS_3D = {"cutoff_fract": 0.9, "cone_weight": True, "cone_angle": 40.0, "cone_sig0": 4.0}
#: Not of a whole number of pixels, for exact_centre.
SIZES = {"box": 46, "crop": 24, "binning": 2.1}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_in_memory_change_stacks(here: Path, name: str) -> None:
    """An option that is taken is not ignored."""
    series, positions, _ = load_series()
    plain = next(extract_stacks(series, positions, **SIZES)).images
    changed = next(extract_stacks(series, positions, **SIZES, **{name: OPTIONS[name]})).images
    assert not np.array_equal(changed, plain)


@pytest.mark.parametrize("name", OPTIONS | OPTIONS_3D)
def test_options_in_memory_change_volumes(here: Path, name: str) -> None:
    """An option that is taken is not ignored; those of the cone need one."""
    series, positions, _ = load_series()
    cone = {"cone_weight": True} if name in ("cone_angle", "cone_sig0") else {}
    option = {name: (OPTIONS | OPTIONS_3D)[name]}
    plain = next(extract_pseudo_subtomograms(series, positions, **SIZES, **cone)).images
    changed = next(extract_pseudo_subtomograms(series, positions, **SIZES, **(cone | option)))
    assert not np.array_equal(changed.images, plain)


ARGUMENTS = {"box", "crop", "binning"}


@pytest.mark.parametrize(
    "name", sorted({field.name for field in fields(JobOptions)} - ARGUMENTS | {"no_such_option"})
)
def test_options_that_do_nothing_in_memory_are_refused(here: Path, name: str) -> None:
    """Whatever the command line has besides."""
    series, positions, _ = load_series()
    for extract, taken in (
        (extract_stacks, OPTIONS.keys()),
        (extract_pseudo_subtomograms, OPTIONS | OPTIONS_3D),
    ):
        if name not in taken:
            with pytest.raises(InputError, match=f"in memory: expected .* found {name}\\."):
                extract(series, positions, box=48, **{name: True})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((3, 64, 64))}, "Type of images .* int8, .* found float64"),
        ({"images": np.zeros((3, 64, 64), np.int32)}, "found int32"),
        ({"images": np.zeros((64, 64), np.float32)}, r"Shape of images .* found \(64, 64\)"),
        ({"dose": np.zeros(2)}, r"Shape of dose: expected \(3\), found \(2,\)"),
        ({"dose": np.array([0, 1, np.nan])}, "dose: expected finite numbers, found 1 "),
        ({"projections": np.tile(np.eye(4), (4, 1, 1))}, r"projections: expected \(3, 4, 4\)"),
        ({"projections": np.tile(np.eye(3), (3, 1, 1))}, r"projections: expected \(3, 4, 4\)"),
        ({"defocus_u": 25000.0}, r"defocus_u: expected \(3\), found \(\)"),
        ({"defocus_v": np.zeros(4)}, "defocus_v"),
        ({"defocus_angle": np.zeros((3, 1))}, "defocus_angle"),
        ({"phase_shift": np.zeros(1)}, "phase_shift"),
        ({"size_xyz": (64, 64)}, "size_xyz"),
        ({"pixel_size": 0.0}, "pixel_size of a tilt series: expected more than 0 A, found 0"),
        ({"voltage": np.nan}, "voltage"),
        ({"amplitude_contrast": 7.0}, "amplitude_contrast"),
        ({"spherical_aberration": np.inf}, "spherical_aberration"),
        ({"hand": 0.0}, "hand"),
        ({"ctf_scale": np.ones(2)}, r"ctf_scale: expected \(3\), found \(2,\)"),
        ({"ctf_bfactor": 50.0}, "ctf_bfactor"),
        ({"defocus_slope": np.inf}, "defocus_slope: expected finite numbers"),
        ({"bfactor_per_dose": np.nan}, "bfactor_per_dose: expected finite numbers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_series_that_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    """At the call, and before anything is extracted."""
    series = TiltSeries(
        np.zeros((3, 64, 64), np.float32), np.tile(np.eye(4), (3, 1, 1)), 2.0, (64, 64, 64),
        dose=np.zeros(3), defocus_u=np.zeros(3), defocus_v=np.zeros(3), defocus_angle=np.zeros(3),
    )  # fmt: skip
    assert list(extract_stacks(series, np.zeros((1, 3)), box=16))
    with pytest.raises(InputError, match=message):
        extract_stacks(replace(series, **changes), np.zeros((1, 3)), box=16)


@pytest.mark.parametrize(
    ("positions", "angles", "message"),
    [
        (np.zeros(3), None, r"positions: expected \(n_particles, 3\), found \(3,\)"),
        (np.zeros((4, 2)), None, r"positions: expected \(n_particles, 3\), found \(4, 2\)"),
        (np.array([[1, 2, np.inf]]), None, "positions: expected finite numbers, found 1 "),
        (np.zeros((4, 3)), np.zeros((3, 3)), r"angles: expected \(4, 3\), found \(3, 3\)"),
        (np.zeros((1, 3)), np.full((1, 3), np.nan), "angles: expected finite numbers, found 3 "),
    ],
)
def test_positions_that_do_not_fit_are_refused(
    here: Path, positions: np.ndarray, angles: np.ndarray | None, message: str
) -> None:
    """At the call, and before anything is extracted."""
    series, _, _ = load_series()
    with pytest.raises(InputError, match=message):
        extract_pseudo_subtomograms(series, positions, angles, box=48)


def test_images_of_another_byte_order_are_taken(here: Path) -> None:
    """The numbers are the same."""
    series, positions, _ = load_series()
    images = series.images.astype(series.images.dtype.newbyteorder(">"))
    swapped = next(extract_stacks(replace(series, images=images), positions, **SIZES))
    expected = next(extract_stacks(series, positions, **SIZES))
    np.testing.assert_array_equal(swapped.images, expected.images)


@pytest.mark.parametrize("extract", [extract_stacks, extract_pseudo_subtomograms])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box": 64, "crop": 64 / 2}, r"crop: expected a whole number, found 32\.0"),
        ({"box": 64.0, "crop": 32}, r"box: expected a whole number, found 64\.0"),
        ({"box": "64"}, "box: expected a whole number, found '64'"),
        ({"box": 400, "crop": 24, "whiten": True}, r"--whiten needs .* 400 x 400 pixels or more"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    here: Path, extract: Callable[..., Iterator[Extracted]], options: dict, message: str
) -> None:
    """At the call; whole numbers of NumPy are taken."""
    series, positions, _ = load_series()
    with pytest.raises(InputError, match=message):
        extract(series, positions, **options)
    assert next(extract(series, positions, box=np.int64(48), crop=np.int32(24)))


def test_nothing_to_extract(here: Path) -> None:
    """No position is no error."""
    series, _, _ = load_series()
    assert not list(extract_stacks(series, np.zeros((0, 3)), box=48))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tilt": np.zeros(2)}, r"tilt: expected \(3\), found \(2,\)"),
        ({"tilt": np.full(3, np.nan)}, "tilt: expected finite numbers"),
        ({"rotation": np.zeros(4)}, "rotation"),
        ({"x_tilt": np.zeros(4)}, "x_tilt"),
        ({"shift_xy_angstrom": np.zeros((2, 3))}, r"shift_xy_angstrom: expected \(3, 2\)"),
        ({"size_xyz": (100, 80)}, "size_xyz"),
    ],
)
def test_angles_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    """No angle is taken for those of all frames, but one rotation."""
    given = {"pixel_size": 2.0, "size_xyz": (100, 80, 40), "tilt": np.zeros(3), **changes}
    with pytest.raises(InputError, match=message):
        TiltSeries.project(np.zeros((3, 80, 100), np.float32), **given)  # type: ignore[arg-type]


def test_projections_from_angles() -> None:
    """The centre of the tomogram lies in the centre of every tilt image."""
    images = np.zeros((3, 80, 100), np.float32)
    tilts = np.array([-30.0, 0, 30])
    projections = TiltSeries.project(images, 2.0, (100, 80, 40), tilts, rotation=85.0)
    centre = projections @ [50, 40, 20, 1]
    np.testing.assert_allclose(centre[:, :2], [[50, 40]] * 3, atol=1e-9)


@pytest.mark.parametrize("exact_centre", [False, True])
def test_projections_of_odd_sizes(exact_centre: bool) -> None:
    """Their true centre is projected to the images' where that is asked for, as in a run."""
    images = np.zeros((3, 80, 100), np.float32)
    project = partial(TiltSeries.project, exact_centre=exact_centre)
    projections = project(images, 2.0, (101, 81, 41), np.array([-30.0, 0, 30]))
    centre = projections @ ([50.5, 40.5, 20.5, 1] if exact_centre else [50, 40, 20, 1])
    np.testing.assert_allclose(centre[:, :2], [[50, 40]] * 3, atol=1e-9)


@pytest.mark.parametrize(
    ("words", "kept"),
    [(["--stack2d"], ".completed"), (["--hdf5", "--no_mrc"], "particles.h5"), ([], "")],
)
def test_geometry_is_that_of_the_extraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], kept: str
) -> None:
    """Of odd sizes `--exact_centre` moves the projections; particles of two jobs keep theirs."""
    copy = ProjectCopy(tmp_path, "basic_2d")
    copy.set_value("tomograms.star", "rlnTomoSizeX", 0, "193")
    monkeypatch.chdir(copy.path)
    expected = {}
    for is_exact in (False, True):
        more = ["--exact_centre"] if is_exact else []
        assert main([*WORDS, *words, *more, "--o", f"job_{is_exact}/"]) == 0
        job, plan = read_and_check(copy.options(exact_centre=is_exact))
        projections = job.tomogram_set.tomograms[plan.tasks[0].tomogram].projections
        point = projections[:, :2] @ np.append(plan.position[0], 1)
        expected[is_exact] = projections, point
    assert np.abs(expected[True][1] - expected[False][1]).max() > 0.4
    paths = [f"job_{is_exact}/optimisation_set.star" for is_exact in expected]
    kinds = list(expected)
    if kept == "particles.h5":
        for is_exact in expected:
            shutil.rmtree(f"job_{is_exact}/.completed")
    elif not kept:
        paths, kinds = [join_jobs("job_True", "job_False")], [True, False]
    geometries = [next(iter(open_optimisation_set(path))).geometry for path in paths]
    if not kept:
        joined = open_optimisation_set(paths[0])
        geometries += [joined[len(joined) // 2].geometry]
    for is_exact, geometry in zip(kinds, geometries, strict=True):
        assert geometry is not None
        np.testing.assert_array_equal(geometry.projections, expected[is_exact][0])
        np.testing.assert_allclose(geometry.image_point, expected[is_exact][1], atol=1e-3)


def test_geometry_of_two_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each particle of a joined set has the box and binning of its own optics group."""
    copy = ProjectCopy(tmp_path, "basic_2d")
    monkeypatch.chdir(copy.path)
    boxes = {"fine": ("48", "24", "2"), "coarse": ("32", "16", "4")}
    expected = []
    for name, (box, crop, binning) in boxes.items():
        words = ["--b", box, "--crop", crop, "--bin", binning, "--stack2d", "--o", name]
        assert main([*WORDS[:4], *words]) == 0
        first = next(iter(open_optimisation_set(f"{name}/optimisation_set.star"))).geometry
        assert first is not None
        expected.append(first.ctf)
    join_jobs(*boxes)
    star = read_star("joined.star", Findings())
    other = read_star("coarse/particles.star", Findings())
    assert star is not None
    assert other is not None
    particles, optics = (star.tables[name].columns for name in ("particles", "optics"))
    n, n_groups = len(particles["rlnOpticsGroup"]), len(optics["rlnOpticsGroup"])
    for label, values in other.tables["optics"].columns.items():
        optics[label] = np.concatenate([optics[label], values])
    shift = {str(i + 1): str(i + 1 + n_groups) for i in range(n_groups)}
    optics["rlnOpticsGroup"][n_groups:] = [shift[v] for v in optics["rlnOpticsGroup"][n_groups:]]
    groups = particles["rlnOpticsGroup"]
    groups[n // 2 :] = [shift[value] for value in groups[n // 2 :]]
    write_star("joined.star", star.tables.values())
    joined = open_optimisation_set("joined_set.star")
    for place, ctf in zip((0, n // 2), expected, strict=True):
        geometry = joined[place].geometry
        assert geometry is not None
        np.testing.assert_array_equal(geometry.ctf, ctf)


def join_jobs(one: str, other: str) -> str:
    """Write a particle file of two jobs' particles; return the path of its optimisation set."""
    tables = [read_particle_table(f"{job}/particles.star", Findings()) for job in (one, other)]
    assert tables[0] is not None
    assert tables[1] is not None
    assert tables[0].optics is not None
    tables[1].particles.columns["rlnTomoParticleName"] += "00"  # names are unique
    columns = {
        label: np.concatenate([table.particles.columns[label] for table in tables if table])
        for label in tables[0].particles.columns
    }
    write_particle_file("joined.star", tables[0].general, tables[0].optics.columns, columns)
    text = Path(one, "optimisation_set.star").read_text()
    Path("joined_set.star").write_text(text.replace(f"{one}/particles.star", "joined.star"))
    return "joined_set.star"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "file missing in nowhere"),
        ("nowhere/particles.h5", r"nowhere/particles\.h5 is missing"),
        ("particles.star", "data_optics"),
    ],
)
def test_what_is_wrong_is_said(here: Path, path: str, message: str) -> None:
    """Errors name the file."""
    with pytest.raises(InputError, match=message):
        open_dataset(path)


def test_a_missing_container_is_no_empty_particle(here: Path, tmp_path: Path) -> None:
    """A virtual data set would show zeros."""
    shutil.copytree("packed_2d", tmp_path / "job")
    (tmp_path / "job/Subtomograms/TS_01.h5").unlink()
    with pytest.raises(InputError, match=r"TS_01\.h5 is missing"):
        open_dataset(tmp_path / "job")


def test_opening_a_joined_file_opens_no_container(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tomograms there are; a container is opened when a particle of it is read."""
    opened: list[str] = []
    real = hdf5.open_container

    def note(path: str | Path) -> hdf5.File:
        opened.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(hdf5, "open_container", note)
    dataset = open_dataset("packed_3d")
    assert opened == ["particles.h5"]
    assert dataset[0].images.any()
    assert opened == ["particles.h5", "TS_01.h5"]
    for container in ("TS_01", "TS_03"):
        alone = open_dataset(f"packed_3d/Subtomograms/{container}.h5")
        rows = dataset.columns["rlnTomoName"] == container
        np.testing.assert_array_equal(dataset.pixel_size[rows], alone.pixel_size)


def test_public_names() -> None:
    """All are there, documented with what they take; an unknown one is an error as usual."""
    for name in relion_pseudosubtomo.__all__:
        item = getattr(relion_pseudosubtomo, name)
        assert name.startswith("__") or item.__doc__
        assert name in DOCS.read_text() or name.startswith("__")
    assert set(relion_pseudosubtomo.__all__) <= set(dir(relion_pseudosubtomo))
    with pytest.raises(AttributeError, match="no attribute 'open_nothing'"):
        relion_pseudosubtomo.open_nothing  # noqa: B018


def test_importing_the_package_imports_nothing_more() -> None:
    """So that --help and scripts start at once."""
    code = "import sys, relion_pseudosubtomo; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_examples_of_the_documentation_run(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/api.md, from top to bottom, where its directories are results of this program."""
    monkeypatch.chdir(project)
    for name, results in (("job010", "packed_2d"), ("job009", "packed_3d")):
        place = Path("PseudoSubtomo") / name
        if not place.exists():
            words = ["--stack2d"] if results.endswith("2d") else []
            assert main([*WORDS, *words, "--hdf5", "--o", f"{place}/"]) == 0
    blocks = DOCS.read_text().split("```python\n")[1:]
    assert len(blocks) > 3
    names: dict[str, object] = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block.split("```")[0], str(DOCS), "exec"), names)


def test_replacing_images_of_a_series(here: Path) -> None:
    """A series is plain data: the same extraction from other images."""
    series, positions, _ = load_series()
    noise = replace(series, images=np.zeros_like(series.images))
    assert not next(extract_stacks(noise, positions, box=48, crop=24, binning=2.0)).images.any()


@pytest.mark.parametrize(
    ("extract", "box", "binning"),
    [
        (extract_pseudo_subtomograms, 242, 1.0),
        (extract_pseudo_subtomograms, 286, 1.0),
        (extract_stacks, 110, 1.3),
        (extract_stacks, 130, 1.3),
        (extract_stacks, 230, 1.1),
    ],
)
def test_a_particle_leaves_nothing_behind(
    extract: Callable[..., Iterator[Extracted]], box: int, binning: float
) -> None:
    """The same place again gives the same images: FFTW writes into its source at some sizes."""
    rng, size = np.random.default_rng(0), 300
    size_xyz = (size, size, 100)
    tilts = np.array([-20.0, 0.0, 20.0])
    images = rng.normal(size=(3, size, size)).astype(np.float32)
    series = TiltSeries(
        images, TiltSeries.project(images, 2.0, size_xyz, tilts), 2.0, size_xyz,
        dose=3.0 * np.arange(3), defocus_u=np.full(3, 25000.0), defocus_v=np.full(3, 24000.0),
        defocus_angle=np.zeros(3),
    )  # fmt: skip
    place = np.array([[size / 2 + 0.3, size / 2, 50.0]] * 3)
    one, two, three = extract(series, place, box=box, crop=32, binning=binning)
    for again in (two, three):
        np.testing.assert_array_equal(again.images, one.images)
