"""Tables and images for other programs (`--for NAME`), read as those programs read them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
from numpy.typing import NDArray
from project_copy import ProjectCopy
from reference_comparison import read_star_text
from small_models import make_options, make_particle_set, make_tomogram, make_tomogram_set

from relion_pseudosubtomo import dialects, labels, options
from relion_pseudosubtomo.cli import main
from relion_pseudosubtomo.core import geometry
from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io.tomograms import read_tomogram_set
from relion_pseudosubtomo.model import Tomogram
from relion_pseudosubtomo.options import JobOptions, check_options
from relion_pseudosubtomo.parallel import launch
from relion_pseudosubtomo.plan import make_plan

Floats = NDArray[np.floating]

INPUT = ["--p", "particles.star", "--t", "tomograms.star"]
BOX = ["--b", "48", "--crop", "24", "--bin", "2"]
STACK = [*BOX, "--stack2d"]
BOTH = ["--for", "cryodrgn", "--for", "tomodrgn"]

CASES_2D = ["basic_2d", "legacy_relion4_2d", "poses_offsets_2d", "odd_sizes_2d", "int16_stack"]
CASES_3D = ["basic_3d", "legacy_relion4_3d", "poses_offsets_3d", "deform_spline", "no_sizes"]
#: The one with CTF scales, B-factors, phase shifts and defocus slopes.
CTF_EXTRA = "ctf_extra"

#: Pixels by which image points may differ.
POINT_TOLERANCE = 1e-3

INSTALL_SECONDS = 150


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine seem to have four cores."""
    monkeypatch.setattr(launch, "usable_cores", lambda: {0, 1, 2, 3})


def start_in(folder: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> ProjectCopy:
    """Copy a case's input and start in the copy."""
    project = ProjectCopy(folder, case)
    if case == CTF_EXTRA:  # no cosine
        project.set_value("tilt_series/TS_01.star", labels.CTF_SCALE, 3, "1.2")
    monkeypatch.chdir(project.path)
    return project


def run(*words: str, output: str = "out/", source: list[str] = INPUT, threads: int = 1) -> None:
    """Run the program in the current project; it has to succeed."""
    assert main([*source, *words, "--o", output, "--j", str(threads)]) == 0


def images(folder: str) -> dict[str, bytes]:
    """Return the content of all image files by path below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*.mrc*"))
    }


def assert_same_images(first: str, second: str) -> None:
    """Check that two outputs hold the same standard images, but for the rounding of tables."""
    names = [
        path.relative_to(first) for path in sorted(Path(first, "Subtomograms").rglob("*.mrc*"))
    ]
    assert names
    for name in names:
        expected, found = (mrcfile.read(Path(folder, name)) for folder in (first, second))
        np.testing.assert_allclose(found, expected, atol=2e-4 * expected.std(), err_msg=str(name))


def column(table: dict[str, list[str]], name: str) -> Floats:
    """Return a column as numbers."""
    return np.array(table[name], dtype=np.float64)


def columns(table: dict[str, list[str]], names: tuple[str, ...]) -> Floats:
    """Return columns as numbers, shape (n, len(names))."""
    return np.stack([column(table, name) for name in names], axis=1)


def tomograms_of(path: str) -> dict[str, Tomogram]:
    """Return a tomogram set as the program reads it."""
    found = Findings()
    read = read_tomogram_set(path, found, wanted=None, options=JobOptions("out/", 48, 24, 2.0))
    assert read is not None
    assert not found.errors
    return {tomogram.name: tomogram for tomogram in read.tomograms}


def standard_table() -> dict[str, list[str]]:
    """Return the particles of the standard output."""
    table = read_star_text(Path("out/particles.star"))["particles"]
    return {label: list(table[label]) for label in table}


def standard_points() -> list[Floats]:
    """Return each particle's image points by the standard output, without motion or deformation."""
    table, tomograms = standard_table(), tomograms_of("tomograms.star")
    points = []
    for name, centred in zip(
        table[labels.TOMO_NAME], columns(table, labels.CENTERED_COORDINATE_XYZ), strict=True
    ):
        tomogram = tomograms[name]
        position = centred / tomogram.pixel_size + tomogram.size_xyz / 2
        points.append(geometry.project_points(tomogram.projections, position[None])[0, :, :2])
    return points


def tilt_scales(case: str, tomogram: Tomogram) -> Floats:
    """Return the CTF scales of the input; where it has none, the cosine of the tilt about y."""
    if case == CTF_EXTRA:
        return tomogram.ctf_scale
    return np.cos(np.deg2rad(geometry.alignment_angles(tomogram.projections)[:, 1]))


def full_rotations() -> Floats:
    """Return the orientation of each particle in its tomogram by the standard output."""
    table = standard_table()

    def rotations(names: tuple[str, ...]) -> Floats:
        n = len(table[labels.TOMO_NAME])
        return geometry.euler_to_matrix(
            columns(table, names) if set(names) <= table.keys() else np.zeros((n, 3))
        )

    return np.asarray(rotations(labels.SUBTOMOGRAM_ANGLES) @ rotations(labels.ANGLES))


# The command line


def test_the_two_tables_of_dialects_agree() -> None:
    """`options` and `dialects` know the same names in the same order."""
    assert list(dialects.DIALECTS) == list(options.DIALECTS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*BOX, "--for", "tomodrgn"], "--for tomodrgn without --stack2d"),
        ([*BOX, "--for", "cryodrgn"], "--for cryodrgn without --stack2d"),
        ([*STACK, "--for", "relion4"], "--for relion4 together with --stack2d"),
        ([*BOX, "--for", "relion4", "--real_subtomo"], "--for relion4 together with --real_su"),
        ([*BOX, "--for", "relion4", "--no_writing"], "--for relion4 together with --no_writ"),
        ([*BOX, "--for", "relion4", "--hdf5", "--no_mrc"], "--for relion4 together with --no_mrc"),
        ([*BOX, "--common_tilts", "2", "--min_frames", "3"], "--common_tilts smaller than"),
        ([*BOX, "--common_tilts", "0"], "--common_tilts"),
        ([*BOX, "--max_missing", "-1"], "--max_missing"),
    ],
)
def test_impossible_combinations(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Refused before anything is written."""
    start_in(tmp_path, "basic_2d", monkeypatch)
    assert main([*INPUT, *words, "--o", "out/"]) == 1
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_each_reason_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that forbids a dialect is said, and nothing twice."""
    start_in(tmp_path, "basic_2d", monkeypatch)
    packed = ["--hdf5", "--no_mrc", "--for", "tomodrgn"]
    assert main([*INPUT, *BOX, *packed, "--o", "out/"]) == 1
    said = capsys.readouterr().err
    assert said.count("--for tomodrgn without --stack2d") == 1
    assert said.count("--for tomodrgn together with --no_mrc") == 1
    assert said.count("option-combination") == 2


def test_unknown_dialect(capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists the known ones."""
    assert main([*INPUT, *STACK, "--o", "out/", "--for", "tomodragon"]) == 2
    assert "tomodrgn" in capsys.readouterr().err


def test_own_images_only_where_they_are_needed() -> None:
    """Without CTF in the standard output, cryoDRGN takes the standard images."""
    given = make_options(stack2d=True, dialects=("tomodrgn", "cryodrgn"))
    assert given.dialect_suffixes == (options.ALL_TILTS, options.WITHOUT_CTF)
    assert replace(given, no_ctf=True).dialect_suffixes == (options.ALL_TILTS,)
    assert replace(given, stack2d=False, dialects=("relion4",)).dialect_suffixes == ()
    assert not check_options(given).errors


# What the input must be like


def check_model(
    tomogram: Tomogram, position: tuple[float, ...], name: str = "TS_01/1", **changes: object
) -> dict[str, str]:
    """Return code -> severity of what the dialects say of one particle."""
    given = make_options(stack2d=True, dialects=("tomodrgn", "cryodrgn"))
    given = replace(given, dont_apply_offsets="offset" in changes)
    tomogram_set, findings = make_tomogram_set(tomogram), Findings()
    particle_set = make_particle_set([position], names=[name], **changes)
    plan = make_plan(given, tomogram_set, particle_set, None)
    assert plan.tasks
    dialects.check_dialects(given, tomogram_set, particle_set, plan, findings)
    return {finding.code: finding.severity for finding in findings}


def test_what_a_dialect_cannot_express() -> None:
    """Scaled or mirrored projections, negative coordinates, names with spaces or @."""
    centre, plain = (100.0, 90.0, 30.0), make_tomogram()
    assert check_model(plain, centre) == {}
    for factors in ((1.01, 1.01, 1.01), (1.0, 1.0, -1.0)):
        projections = plain.projections.copy()
        projections[1, :3] *= np.array(factors)[:, None]
        changed = make_tomogram(projections=projections)
        assert check_model(changed, centre) == {"dialect-rotation": "error"}
    assert check_model(plain, (100.0, 90.0, -1.0)) == {"dialect-coordinates": "error"}
    assert check_model(make_tomogram("TS 01"), centre) == {"dialect-name": "error"}
    assert check_model(plain, centre, "TS_01/1@2") == {"dialect-name": "error"}
    for offset, said in ((0.0, {}), (0.1, {"dialect-offsets": "error"})):
        assert check_model(plain, centre, offset=np.array([[0.0, offset, 0.0]])) == said
    for values in (
        {"phase_shift": np.array([0.0, 90.0, 0.0])},
        {"defocus_slope": 0.9},
        {"ctf_bfactor": np.array([0.0, 20.0, 0.0])},
        {"bfactor_per_dose": 1.0},
    ):
        assert check_model(make_tomogram(**values), centre) == {"dialect-ctf": "warning"}, values


def test_negative_coordinates_are_left_out_of_tomodrgn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stops at one; the standard output has it all the same."""
    project = start_in(tmp_path, "basic_2d", monkeypatch)
    project.set_value("particles.star", labels.CENTERED_COORDINATE_XYZ[2], 0, "-90.0")
    run(*STACK, "--for", "tomodrgn")
    assert "dialect-coordinates" in capsys.readouterr().err
    n_standard = len(standard_table()[labels.TOMO_NAME])
    _, particles, _ = read_tomodrgn(Path("out/for_tomodrgn/optimisation_set.star"))
    assert len(particles[labels.TOMO_NAME]) == n_standard - 1
    assert columns(particles, labels.COORDINATE_XYZ).min() >= 0


@pytest.mark.parametrize("real_halves", [False, True])
def test_alignment_is_taken_back_out_of_matrices(real_halves: bool) -> None:
    """The inverse of `projection_matrices`."""
    rng = np.random.default_rng(7)
    angles = rng.uniform([-20, -70, -180], [20, 70, 180], (6, 3))
    shifts, size = rng.uniform(-500, 500, (6, 2)), np.array([401.0, 300.0, 95.0])
    rest = (2.7, (401, 300), size)
    matrices = geometry.projection_matrices(*angles.T, shifts, *rest, real_halves=real_halves)
    np.testing.assert_allclose(geometry.alignment_angles(matrices), angles, atol=1e-9)
    found = geometry.alignment_shifts(matrices, *rest, real_halves=real_halves)
    np.testing.assert_allclose(found, shifts, atol=1e-8)


# Images


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with runs with dialects, without, and without CTF."""
    folder = tmp_path_factory.mktemp("stacks")
    with pytest.MonkeyPatch.context() as monkeypatch:
        project = start_in(folder, "basic_2d", monkeypatch)
        run(*STACK, *BOTH)
        run(*STACK, *BOTH, output="threads/", threads=3)
        run(*STACK, output="plain/")
        run(*STACK, "--no_ctf", output="no_ctf/")
    return project.path


@pytest.fixture
def in_stacks(stacks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start in that project."""
    monkeypatch.chdir(stacks)


@pytest.mark.usefixtures("in_stacks")
def test_the_standard_output_does_not_change() -> None:
    """Bytes of all images and tables of a run without `--for`."""
    plain = images("plain")
    assert plain
    assert images("out/Subtomograms") == images("plain/Subtomograms")
    for name in ("particles.star", "optimisation_set.star", "dropped.star"):
        expected = Path("plain", name).read_text().replace("plain/", "out/")
        assert Path("out", name).read_text() == expected


@pytest.mark.usefixtures("in_stacks")
def test_threads_change_no_byte_of_dialects() -> None:
    """Each thread has its own scratch arrays for each kind of image."""
    found = images("threads")
    assert found == images("out")
    folders = {name.split("/")[0] for name in found}
    assert folders == {"Subtomograms", "for_tomodrgn", "for_cryodrgn"}


@pytest.mark.usefixtures("in_stacks")
def test_dialects_beside_containers() -> None:
    """The same images; containers hold the standard ones alone."""
    run(*STACK, *BOTH, "--hdf5", output="hdf5/")
    assert images("hdf5") == images("out")
    with h5py.File("hdf5/particles.h5") as joined:
        shapes = [item.shape for item in joined.values() if isinstance(item, h5py.Dataset)]
    n_images = sum(len(mrcfile.read(path)) for path in Path("out/Subtomograms").rglob("*.mrcs"))
    assert (n_images, 24, 24) in shapes


@pytest.mark.usefixtures("in_stacks")
def test_images_of_dialects() -> None:
    """All tilts with zeros where they are not visible; and the images of `--no_ctf`."""
    table = standard_table()
    n_invisible = 0
    for name, flags in zip(table[labels.IMAGE_NAME], table[labels.VISIBLE_FRAMES], strict=True):
        visible = np.array(json.loads(flags), dtype=bool)
        n_invisible += int((~visible).sum())
        stem = name.removeprefix("out/").removesuffix("_stack2d.mrcs")
        standard = mrcfile.read(name)
        spread = mrcfile.read(f"out/for_tomodrgn/{stem}_alltilts.mrcs")
        assert len(spread) == len(visible)
        np.testing.assert_array_equal(spread[visible], standard)
        assert not spread[~visible].any()
        without = Path(f"out/for_cryodrgn/{stem}_noctf.mrcs").read_bytes()
        assert without == Path(f"no_ctf/{stem}_stack2d.mrcs").read_bytes()
        assert without != Path(name).read_bytes()
    assert n_invisible


@pytest.mark.usefixtures("in_stacks")
def test_verify_knows_images_of_dialects(capsys: pytest.CaptureFixture[str]) -> None:
    """They are covered by records; zeros are no fault; strangers and missing ones are."""
    assert main(["verify", "out/", "--deep"]) == 0
    path = next(Path("out/for_tomodrgn").rglob("*.mrcs"))
    stranger = path.with_name("stranger_alltilts.mrcs")
    shutil.copy(path, stranger)
    assert main(["verify", "out/"]) == 1
    assert "result-orphan" in capsys.readouterr().out
    stranger.rename(path.with_suffix(".away"))
    path.with_suffix(".away").unlink()
    data = path.read_bytes()
    path.unlink()
    assert main(["verify", "out/"]) == 1
    assert "result-missing" in capsys.readouterr().out
    path.write_bytes(data)


def test_an_interrupted_run_continues_with_dialects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lost image of a dialect is made again; the bytes announced are those written; float16."""
    start_in(tmp_path, "basic_2d", monkeypatch)
    run(*STACK, *BOTH, "--float16", "--dry_run")
    announced = capsys.readouterr().out
    run(*STACK, *BOTH, "--float16")
    before = images("out")
    written = json.loads(Path("out/run_summary.json").read_text())["bytes_written"]
    assert written == sum(map(len, before.values()))
    assert f"{written} bytes of images" in announced
    assert f"{len(before)} image files" in announced
    stack = next(Path("out/for_tomodrgn").rglob("*.mrcs"))
    assert mrcfile.read(stack).dtype == np.float16
    stack.unlink()
    Path("out/for_cryodrgn/particles.star").unlink()
    run(*STACK, *BOTH, "--float16", "--only_do_unfinished")
    assert images("out") == before
    assert Path("out/for_cryodrgn/particles.star").exists()


def test_overwriting_removes_dialects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later run without `--for` leaves no tables or images of another's."""
    start_in(tmp_path, "basic_2d", monkeypatch)
    run(*STACK, *BOTH)
    run(*STACK, "--overwrite")
    assert not [path for path in Path("out").glob("for_*/**/*") if path.is_file()]


def test_other_dialects_are_other_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Continuing with another `--for` is refused by its name."""
    start_in(tmp_path, "basic_2d", monkeypatch)
    run(*STACK, "--for", "tomodrgn")
    assert main([*INPUT, *STACK, "--o", "out/", "--only_do_unfinished"]) == 1
    assert "--for is not that of the results" in capsys.readouterr().err


# RELION 4


@pytest.mark.parametrize("case", [*CASES_3D, CTF_EXTRA])
def test_relion4(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corner coordinates and matrices alone give the image points, and the images again."""
    start_in(tmp_path, case, monkeypatch)
    run(*BOX, "--for", "relion4")
    tables = read_star_text(Path("out/for_relion4/particles.star"))
    particles = {label: list(tables["particles"][label]) for label in tables["particles"]}
    standard = standard_table()
    assert not set(labels.CENTERED_COORDINATE_XYZ) & particles.keys()
    assert particles[labels.IMAGE_NAME] == standard[labels.IMAGE_NAME]
    assert particles[labels.CTF_IMAGE] == standard[labels.CTF_IMAGE]
    assert not images("out/for_relion4")
    tilts = read_star_text(Path("out/for_relion4/tomograms.star"))
    assert {labels.TILT_SERIES_NAME, labels.FRAME_COUNT} <= set(tilts["global"])
    positions = columns(particles, labels.COORDINATE_XYZ)
    for name, position, expected in zip(
        particles[labels.TOMO_NAME], positions, standard_points(), strict=True
    ):
        assert not {labels.X_TILT, labels.TILT_SERIES_STAR_FILE} & set(tilts[name])
        matrices = read_matrices({label: list(tilts[name][label]) for label in tilts[name]})
        found = (matrices @ np.append(position, 1))[:, :2]
        np.testing.assert_allclose(found, expected, atol=POINT_TOLERANCE)
    run(*BOX, output="again/", source=["--i", "out/for_relion4/optimisation_set.star"])
    assert_same_images("out", "again")


def test_relion4_with_deformations_of_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tomogram without one gets one that moves no point."""
    project = start_in(tmp_path, "deform_spline", monkeypatch)
    project.set_value("tomograms.star", labels.DEFORMATION_TYPE, 1, "None")
    run(*BOX, "--for", "relion4")
    found = read_star_text(Path("out/for_relion4/tomograms.star"))["global"]
    assert list(found[labels.DEFORMATION_TYPE]) == ["spline", "linear"]
    run(*BOX, output="again/", source=["--i", "out/for_relion4/optimisation_set.star"])
    assert_same_images("out", "again")


def test_relion4_names_a_stack_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RlnTomoTiltSeriesName is the file that holds the frames in their order, else None."""
    start_in(tmp_path, "legacy_relion4_3d", monkeypatch)
    run(*BOX, "--for", "relion4")
    given, found = (
        read_star_text(Path(path))["global"]
        for path in ("tomograms.star", "out/for_relion4/tomograms.star")
    )
    stacks = dict(zip(given[labels.TOMO_NAME], given[labels.TILT_SERIES_NAME], strict=True))
    for name, stack in zip(found[labels.TOMO_NAME], found[labels.TILT_SERIES_NAME], strict=True):
        assert stack == stacks[name].removesuffix(":mrc")


def read_matrices(table: dict[str, list[str]]) -> Floats:
    """Return the projection matrices of a tilt table, shape (n_frames, 4, 4)."""
    rows = [[json.loads(text) for text in table[label]] for label in labels.PROJECTION_ROWS]
    return np.array(rows).transpose(1, 0, 2)


# tomoDRGN, by a reader written from what it asks for


def read_words(path: Path) -> dict[str, dict[str, list[str]]]:
    """Return the tables of a STAR file, rows split at spaces, as tomoDRGN reads them."""
    tables: dict[str, dict[str, list[str]]] = {}
    is_loop = False
    for line in path.read_text().splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0].startswith("data_"):
            table = tables.setdefault(words[0], {})
            is_loop = False
        elif words[0] == "loop_":
            is_loop = True
        elif words[0].startswith("_") and is_loop:
            table[words[0][1:]] = []
        elif words[0].startswith("_"):
            assert len(words) == 2
            table[words[0][1:]] = [words[1]]
        else:
            for values, word in zip(table.values(), words, strict=True):
                values.append(word)
    return tables


#: What it knows a particle file by, in this order.
TOMODRGN_COLUMNS = [
    ["rlnTomoSubTomosAre2DStacks"],
    [
        "rlnOpticsGroup",
        "rlnOpticsGroupName",
        "rlnSphericalAberration",
        "rlnVoltage",
        "rlnTomoTiltSeriesPixelSize",
        "rlnCtfDataAreCtfPremultiplied",
        "rlnImageDimensionality",
        "rlnTomoSubtomogramBinning",
        "rlnImagePixelSize",
        "rlnImageSize",
        "rlnAmplitudeContrast",
    ],
    [
        "rlnTomoName",
        "rlnTomoParticleId",
        "rlnCoordinateX",
        "rlnCoordinateY",
        "rlnCoordinateZ",
        "rlnAngleRot",
        "rlnAngleTilt",
        "rlnAnglePsi",
        "rlnTomoParticleName",
        "rlnOpticsGroup",
        "rlnImageName",
        "rlnOriginXAngst",
        "rlnOriginYAngst",
        "rlnOriginZAngst",
        "rlnTomoVisibleFrames",
    ],
]
TOMODRGN_REFINED = [
    "rlnGroupNumber",
    "rlnClassNumber",
    "rlnNormCorrection",
    "rlnRandomSubset",
    "rlnLogLikeliContribution",
    "rlnMaxValueProbDistribution",
    "rlnNrOfSignificantSamples",
]


def read_tomodrgn(
    optimisation_set: Path,
) -> tuple[dict[str, dict[str, list[str]]], dict[str, list[str]], list[NDArray]]:
    """Return tomograms, particles and each particle's visible images, as tomoDRGN finds them."""
    folder = optimisation_set.parent
    entries = read_words(optimisation_set)["data_"]
    tables = read_words(folder / entries[labels.PARTICLES_FILE][0])
    assert list(tables) == ["data_general", "data_optics", "data_particles"]
    assert tables["data_general"][labels.ARE_2D_STACKS] == ["1"]
    known = [list(table) for table in tables.values()]
    assert known in (
        TOMODRGN_COLUMNS,
        [*TOMODRGN_COLUMNS[:2], TOMODRGN_COLUMNS[2] + TOMODRGN_REFINED],
    )
    tomograms = read_words(folder / entries[labels.TOMOGRAMS_FILE][0])
    optics, particles = tables["data_optics"], tables["data_particles"]
    groups = [optics[labels.OPTICS_GROUP].index(g) for g in particles[labels.OPTICS_GROUP]]
    particles["pixel_size"] = [optics[labels.IMAGE_PIXEL_SIZE][group] for group in groups]
    found = []
    for name, flags in zip(
        particles[labels.IMAGE_NAME], particles[labels.VISIBLE_FRAMES], strict=True
    ):
        assert "@" not in name
        with mrcfile.mmap(folder / name) as stack:
            tilts = np.flatnonzero(json.loads(flags))
            found.append(np.array(stack.data[tilts]))  # by the number of the tilt in the series
    return tomograms, particles, found


@pytest.mark.parametrize("case", [*CASES_2D, CTF_EXTRA])
def test_tomodrgn(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder, moved away and read from elsewhere, gives the images, points and rotations."""
    start_in(tmp_path, case, monkeypatch)
    run(*STACK, "--for", "tomodrgn")
    standard, points, rotations = standard_table(), standard_points(), full_rotations()
    expected = [mrcfile.read(name) for name in standard[labels.IMAGE_NAME]]
    given = tomograms_of("tomograms.star")
    Path("out/for_tomodrgn").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    tomograms, particles, found = read_tomodrgn(tmp_path / "moved" / "optimisation_set.star")
    assert particles[labels.PARTICLE_NAME] == standard[labels.PARTICLE_NAME]
    assert len(set(particles[labels.PARTICLE_ID])) == len(expected)
    coordinates = columns(particles, labels.COORDINATE_XYZ)
    assert coordinates.min() >= 0
    angles = geometry.euler_to_matrix(columns(particles, labels.ANGLES))
    of_tomogram = tomograms["data_global"]
    for i, name in enumerate(particles[labels.TOMO_NAME]):
        np.testing.assert_array_equal(found[i], expected[i])
        table, row = tomograms[f"data_{name}"], of_tomogram[labels.TOMO_NAME].index(name)
        assert int(of_tomogram[labels.FRAME_COUNT][row]) == len(points[i])
        assert len(json.loads(particles[labels.VISIBLE_FRAMES][i])) == len(points[i])
        assert column(table, labels.CTF_SCALE).max() <= 1
        assert len(set(table[labels.CTF_SCALE])) >= 4
        matrices = read_matrices(table)
        unbinned = float(of_tomogram[labels.TILT_SERIES_PIXEL_SIZE][row])
        position = coordinates[i] * float(particles["pixel_size"][i]) / unbinned
        image_points = (matrices @ np.append(position, 1))[:, :2]
        np.testing.assert_allclose(image_points, points[i], atol=POINT_TOLERANCE)
        np.testing.assert_allclose(
            matrices[:, :3, :3] @ angles[i],
            given[name].projections[:, :3, :3] @ rotations[i],
            atol=1e-6,
        )
        for label, values in (
            (labels.DEFOCUS_U, given[name].defocus_u),
            (labels.DEFOCUS_V, given[name].defocus_v),
            (labels.DEFOCUS_ANGLE, given[name].defocus_angle),
            (labels.PRE_EXPOSURE, given[name].pre_exposure),
        ):
            np.testing.assert_allclose(column(table, label), values, atol=1e-6)
        # it is turned about x a little as well, by up to a degree
        scale = np.minimum(tilt_scales(case, given[name]), 1)
        np.testing.assert_allclose(column(table, labels.CTF_SCALE), scale, atol=2e-4)


def test_tomodrgn_knows_refined_particles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns of a refinement are there if the input has all; no other ones ever."""
    project = start_in(tmp_path, "basic_2d", monkeypatch)
    path = project.path / "particles.star"
    lines = path.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("TS_"))
    n = int(lines[first - 1].partition("#")[2])
    added = [*TOMODRGN_REFINED, "rlnSomethingElse"]
    lines = [line + "".join(f"\t{i}" for i in range(8)) * line.startswith("TS_") for line in lines]
    lines[first:first] = [f"_{label} #{n + i}" for i, label in enumerate(added, 1)]
    path.write_text("\n".join(lines) + "\n")
    run(*STACK, "--for", "tomodrgn")
    _, particles, _ = read_tomodrgn(Path("out/for_tomodrgn/optimisation_set.star"))
    for i, label in enumerate(TOMODRGN_REFINED):
        assert set(particles[label]) == {str(i)}
    assert "rlnSomethingElse" in standard_table()
    path.write_text(path.read_text().replace("_rlnClassNumber", "_rlnOther"))
    run(*STACK, "--for", "tomodrgn", "--overwrite")
    _, particles, _ = read_tomodrgn(Path("out/for_tomodrgn/optimisation_set.star"))
    assert not set(TOMODRGN_REFINED) & particles.keys()


def test_tomodrgn_offsets_that_were_not_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are turned into the tomogram's axes, as it knows no orientation of the box."""
    start_in(tmp_path, "poses_offsets_2d", monkeypatch)
    run(*STACK, "--for", "tomodrgn", "--dont_apply_offsets")
    standard = standard_table()
    a_sub = geometry.euler_to_matrix(columns(standard, labels.SUBTOMOGRAM_ANGLES))
    offsets = columns(standard, labels.ORIGIN_XYZ)
    assert np.abs(offsets).max() > 1
    _, particles, _ = read_tomodrgn(Path("out/for_tomodrgn/optimisation_set.star"))
    found = columns(particles, labels.ORIGIN_XYZ)
    np.testing.assert_allclose(found, np.einsum("nij,nj->ni", a_sub, offsets), atol=2e-6)


# cryoDRGN, by its own parser


@pytest.fixture(scope="module")
def cryodrgn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with cryodrgn, and scipy, which its parser needs beside pandas."""
    folder = tmp_path_factory.mktemp("cryodrgn")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    try:
        subprocess.run(
            [*words, str(folder), "cryodrgn", "scipy"],
            check=True,
            capture_output=True,
            timeout=INSTALL_SECONDS,
        )
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"cryodrgn could not be installed: {error}")
    return folder


PARSE = """
import argparse
from cryodrgn.commands_utils import parse_relion
parser = argparse.ArgumentParser()
parse_relion.add_args(parser)
parse_relion.main(parser.parse_args())
"""


@pytest.mark.timeout(2 * INSTALL_SECONDS)
@pytest.mark.parametrize("case", ["basic_2d", "legacy_relion4_2d", "poses_offsets_2d", CTF_EXTRA])
def test_cryodrgn_parse_relion(
    case: str, cryodrgn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row a visible tilt image: its image, orientation, defocus and dose."""
    start_in(tmp_path, case, monkeypatch)
    run(*STACK, "--for", "cryodrgn")
    folder = "out/for_cryodrgn/"
    words = ["-t", f"{folder}tomograms.star", "-p", f"{folder}particles.star", "-o", "flat.star"]
    subprocess.run(
        [sys.executable, "-c", PARSE, *words, "--tilt-dim", "192", "180"],
        check=True,
        env={**os.environ, "PYTHONPATH": str(cryodrgn)},
        timeout=INSTALL_SECONDS,
    )
    flat = read_words(Path("flat.star"))["data_"]
    standard, rotations = standard_table(), full_rotations()
    centred = columns(standard, labels.CENTERED_COORDINATE_XYZ)
    tomograms, row = tomograms_of("tomograms.star"), 0
    found = geometry.euler_to_matrix(columns(flat, labels.ANGLES))
    for i, name in enumerate(standard[labels.TOMO_NAME]):
        tomogram = tomograms[name]
        visible = np.flatnonzero(json.loads(standard[labels.VISIBLE_FRAMES][i]))
        by_dose = visible[np.argsort(tomogram.pre_exposure[visible], kind="stable")]
        depth = tomogram.projections[:, 2, :3] @ centred[i]
        for f in by_dose:
            number, _, path = flat[labels.IMAGE_NAME][row].partition("@")
            with mrcfile.mmap(path) as stack:
                assert int(number) == np.flatnonzero(visible == f)[0] + 1 <= len(stack.data)
            assert path.endswith("_noctf.mrcs")
            assert flat["rlnGroupName"][row] == standard[labels.PARTICLE_NAME][i]
            rotation = tomogram.projections[f, :3, :3] @ rotations[i]
            np.testing.assert_allclose(found[row], rotation, atol=1e-5)
            for label, values in (
                (labels.DEFOCUS_U, tomogram.defocus_u + tomogram.hand * depth),
                (labels.DEFOCUS_V, tomogram.defocus_v + tomogram.hand * depth),
                (labels.PRE_EXPOSURE, tomogram.pre_exposure),
                (labels.CTF_SCALE, tilt_scales(case, tomogram)),
            ):
                assert float(flat[label][row]) == pytest.approx(values[f], abs=1e-3)
            row += 1
    assert row == len(flat[labels.IMAGE_NAME])


@pytest.mark.parametrize("case", CASES_2D)
def test_cryodrgn_alignment(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Angles and shifts give the image points, and the standard images again."""
    start_in(tmp_path, case, monkeypatch)
    run(*STACK, "--for", "cryodrgn")
    found = tomograms_of("out/for_cryodrgn/tomograms.star")
    particles = read_star_text(Path("out/for_cryodrgn/particles.star"))
    assert set(particles["optics"][labels.CTF_PREMULTIPLIED]) == {"0"}
    table, standard = particles["particles"], standard_table()
    points = standard_points()
    for label in labels.CENTERED_COORDINATE_XYZ:
        assert list(table[label]) == standard[label]
    for i, name in enumerate(table[labels.TOMO_NAME]):
        text = Path(f"out/for_cryodrgn/tilt_series/{name}.star").read_text()
        assert f"_{labels.X_TILT} " in text
        assert labels.PROJECTION_ROWS[0] not in text
        assert f"_{labels.CTF_SCALE} " not in text  # none is made up
        tomogram = found[name]
        centred = [float(table[label][i]) for label in labels.CENTERED_COORDINATE_XYZ]
        position = np.array(centred) / tomogram.pixel_size + tomogram.size_xyz / 2
        image_points = geometry.project_points(tomogram.projections, position[None])[0, :, :2]
        np.testing.assert_allclose(image_points, points[i], atol=POINT_TOLERANCE)
    run(*STACK, output="again/", source=["--i", "out/for_cryodrgn/optimisation_set.star"])
    assert_same_images("out", "again")


def test_cryodrgn_takes_standard_images_without_ctf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--no_ctf` they are named by their path, and no image is written twice."""
    start_in(tmp_path, "basic_2d", monkeypatch)
    run(*STACK, "--for", "cryodrgn", "--no_ctf")
    assert not images("out/for_cryodrgn")
    particles = read_star_text(Path("out/for_cryodrgn/particles.star"))["particles"]
    assert list(particles[labels.IMAGE_NAME]) == standard_table()[labels.IMAGE_NAME]
