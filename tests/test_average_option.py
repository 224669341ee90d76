"""`--average`: half maps while extracting, judged with the structure that was simulated."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_simulated_average import SMALL, SMALL_BOX

from relion_pseudosubtomo import accumulate, cli, worker
from relion_pseudosubtomo.average_job import average_directory
from relion_pseudosubtomo.core.fsc import fourier_shell_correlation, resolution_at, shells_up_to
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io.mrc import read_header, read_volume
from relion_pseudosubtomo.io.star import StarTable, read_star, write_star
from relion_pseudosubtomo.parallel.runner import Control
from relion_pseudosubtomo.simulate import make_dataset, write_project
from relion_pseudosubtomo.simulate.project import Reference

Floats = NDArray[np.floating]

OPTIMISATION_SET = "Picks/job007/optimisation_set.star"
PARTICLES = Path("Picks/job007/particles.star")
TOMOGRAMS = Path("Tomograms/job008/tomograms.star")
MAPS = ("average.mrc", "average_half1.mrc", "average_half2.mrc")
TOLERANCE = 1e-6

#: For the default data set.
BOX = ["--b", "96", "--crop", "64", "--bin", "2"]
PIXEL_SIZE = 3.0
JUDGED = shells_up_to(2 / 3, 64)
ENOUGH = 0.9


@pytest.fixture
def noisy(noisy_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(noisy_project)


@pytest.fixture(scope="module")
def small_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    write_project(make_dataset(SMALL), directory, reference=Reference(32, 6.0))
    return directory


@pytest.fixture
def small(small_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_directory)


def extract(output: str, *options: str) -> Path:
    """Extract into an empty directory; return it."""
    shutil.rmtree(output, ignore_errors=True)
    assert cli.main(["--i", OPTIMISATION_SET, "--o", f"{output}/", *options]) == 0
    return Path(output)


def average(output: str, *options: str) -> Path:
    """Average alone, nothing else being written."""
    return extract(output, "--average", "--no_writing", *options)


def read_map(path: Path) -> Floats:
    return np.asarray(read_volume(str(path)), np.float64)


def correlate(directory: Path) -> Floats:
    """Return the FSC of the average with the known structure up to 2/3 of Nyquist, unmasked."""
    return fourier_shell_correlation(
        read_map(directory / "average.mrc"), read_map(Path("reference.mrc"))
    )[JUDGED]


def read_tables(path: Path) -> dict[str, StarTable]:
    star = read_star(str(path), Findings())
    assert star is not None
    return star.tables


def rewrite_particles(target: Path, change: Callable[[dict[str, NDArray]], None]) -> list[str]:
    """Write the particles with other columns; return the options that use them."""
    tables = dict(read_tables(PARTICLES))
    columns = dict(tables["particles"].columns)
    change(columns)
    tables["particles"] = StarTable("particles", columns)
    write_star(target, tables.values())
    return ["--p", str(target)]


def assert_maps_agree(one: Path, other: Path) -> None:
    for name in MAPS:
        first, second = read_map(one / name), read_map(other / name)
        assert np.abs(first - second).max() <= TOLERANCE * np.abs(first).max(), name


# What the maps show


@pytest.mark.usefixtures("noisy")
@pytest.mark.parametrize("mode", [[], ["--stack2d"]], ids=["3d", "2d"])
def test_average_is_the_known_structure(
    mode: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Bright and of the right hand; the curve in the file is that of the maps, and in the log."""
    output = average("Average/right", *BOX, *mode)
    assert np.min(correlate(output)) > ENOUGH
    names = {path.name for path in output.iterdir()} - {".completed", ".lock"}
    assert names == {*MAPS, "average_fsc.star", "run_summary.json"}
    half_maps = [read_map(output / name) for name in MAPS[1:]]
    fsc = fourier_shell_correlation(*half_maps)
    assert 0.6 < np.min(fsc[JUDGED]) < 0.98  # far above 0.143
    tables = read_tables(output / "average_fsc.star")
    columns = {name: values.astype(float) for name, values in tables["fsc"].columns.items()}
    np.testing.assert_allclose(columns["rlnFourierShellCorrelation"], fsc, atol=1e-5)
    np.testing.assert_allclose(columns["rlnSpectralIndex"], np.arange(33))
    frequency = np.arange(33) / (64 * PIXEL_SIZE)
    np.testing.assert_allclose(columns["rlnResolution"], frequency, atol=1e-6)
    np.testing.assert_allclose(columns["rlnAngstromResolution"][1:], 1 / frequency[1:], rtol=1e-6)
    resolution = resolution_at(fsc, PIXEL_SIZE, 0.143)
    general = tables["general"].first_row()
    assert float(general["rlnFinalResolution"]) == pytest.approx(resolution, abs=1e-2)
    assert Path(general["rlnUnfilteredMapHalf2"]) == output / "average_half2.mrc"
    assert f"Resolution of the average: {resolution:.2f} A at FSC 0.143" in capsys.readouterr().out
    summary = json.loads((output / "run_summary.json").read_text())
    assert summary["average"]["0.143"] == pytest.approx(resolution, abs=1e-2)
    for name in MAPS:
        assert read_header(str(output / name)).voxel_size == pytest.approx(PIXEL_SIZE)


@pytest.mark.usefixtures("noisy")
def test_a_flipped_hand_shows() -> None:
    """The average fits the structure less, and its half maps each other."""
    right = average("Average/right", *BOX, "--stack2d")
    lines = [re.sub(r"\t-1\t", "\t1\t", line) for line in TOMOGRAMS.read_text().splitlines()]
    Path("flipped.star").write_text("\n".join(lines) + "\n")
    flipped = average("Average/flipped", "--t", "flipped.star", *BOX, "--stack2d")
    assert np.min(correlate(flipped)) < min(ENOUGH, np.min(correlate(right)) - 0.1)
    resolutions = [
        json.loads((output / "run_summary.json").read_text())["average"]["0.143"]
        for output in (right, flipped)
    ]
    assert resolutions[0] < resolutions[1] - 1  # without knowing the structure


@pytest.mark.usefixtures("noisy")
def test_a_shift_by_one_binned_pixel_shows() -> None:
    def shift(columns: dict[str, NDArray]) -> None:
        moved = columns["rlnOriginXAngst"].astype(float) + PIXEL_SIZE
        columns["rlnOriginXAngst"] = np.array([f"{x:.6f}" for x in moved], dtype=object)

    words = rewrite_particles(Path("shifted.star"), shift)
    shifted = average("Average/shifted", *words, *BOX, "--stack2d")
    assert np.min(correlate(shifted)) < ENOUGH - 0.1


@pytest.mark.usefixtures("small")
def test_flipped_contrast_shows() -> None:
    """The structure is bright by default, and dark with --no_ic."""
    reference = read_map(Path("reference.mrc")).ravel()
    white = read_map(average("Average/white", *SMALL_BOX) / "average.mrc").ravel()
    black = read_map(average("Average/black", *SMALL_BOX, "--no_ic") / "average.mrc").ravel()
    assert np.corrcoef(white, reference)[0, 1] > 0.7
    np.testing.assert_allclose(black, -white, rtol=0, atol=TOLERANCE * white.max())


# What it takes into account


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "options",
    [
        ["--stack2d"],
        ["--apply_orientations"],
        ["--apply_orientations", "--dont_apply_offsets", "--stack2d"],
        ["--stack2d", "--float16"],
        ["--cone_weight"],
        ["--sum", "--div"],
        ["--prebin"],
        ["--exact_centre"],
    ],
    ids=" ".join,
)
def test_other_options_leave_the_average(options: list[str]) -> None:
    """It is made of the slices, whatever is written of them."""
    plain = average("Average/plain", *SMALL_BOX)
    assert_maps_agree(plain, extract("Average/other", *SMALL_BOX, "--average", *options))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("options", [["--whiten"], ["--max_dose", "18"]], ids=" ".join)
def test_options_of_the_slices_count(options: list[str]) -> None:
    plain = read_map(average("Average/plain", *SMALL_BOX) / "average.mrc")
    other = average("Average/other", *SMALL_BOX, *options)
    assert np.abs(read_map(other / "average.mrc") - plain).max() > 1e-3 * plain.max()
    fsc = fourier_shell_correlation(
        read_map(other / "average.mrc"), read_map(Path("reference.mrc"))
    )
    assert np.min(fsc[2:11]) > 0.8


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("mode", [[], ["--stack2d"]], ids=["3d", "2d"])
def test_the_particles_are_the_same_with_it(mode: list[str]) -> None:
    """Every image and table, byte by byte."""
    without = extract("Average/job", *SMALL_BOX, *mode)
    files = [path for path in without.rglob("*.*") if path.suffix in (".mrc", ".mrcs", ".star")]
    before = {path: path.read_bytes() for path in files}
    assert len(before) > 16
    extract("Average/job", *SMALL_BOX, *mode, "--average")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("mode", "least"), [([], 0.95), (["--stack2d"], 0.995)], ids=["3d", "2d"])
def test_it_is_the_average_of_what_is_written(mode: list[str], least: float) -> None:
    """Compared with what reads the files; of 2D stacks it has the grey values too."""
    output = extract("Average/job", *SMALL_BOX, *mode, "--average")
    while_extracting, written = read_map(output / "average.mrc"), average_directory(output)
    fsc = fourier_shell_correlation(while_extracting, written.volume)
    assert np.min(fsc[1:15]) > least
    if mode:
        gain = np.vdot(while_extracting, written.volume) / np.vdot(written.volume, written.volume)
        assert gain == pytest.approx(1, abs=0.02)


# Half sets


@pytest.mark.usefixtures("small")
def test_half_sets_are_rows_in_turn_or_rln_random_subset() -> None:
    n = read_tables(PARTICLES)["particles"].n_rows

    def divide(first: int) -> list[str]:
        def add(columns: dict[str, NDArray]) -> None:
            columns["rlnRandomSubset"] = np.array(
                [str((i + first) % 2 + 1) for i in range(n)], dtype=object
            )

        return rewrite_particles(Path(f"subset{first}.star"), add)

    by_rows = average("Average/rows", *SMALL_BOX)
    assert_maps_agree(by_rows, average("Average/subset", *divide(0), *SMALL_BOX))
    swapped = average("Average/swapped", *divide(1), *SMALL_BOX)
    for name, other in zip(MAPS, (MAPS[0], MAPS[2], MAPS[1]), strict=True):
        one, two = read_map(by_rows / name), read_map(swapped / other)
        assert np.abs(one - two).max() <= TOLERANCE * one.max()
    assert np.abs(read_map(by_rows / MAPS[1]) - read_map(by_rows / MAPS[2])).max() > 0


@pytest.mark.usefixtures("small")
def test_one_particle_leaves_a_half_map_empty(capsys: pytest.CaptureFixture[str]) -> None:
    def keep_one(columns: dict[str, NDArray]) -> None:
        columns.update({label: values[2:3] for label, values in columns.items()})

    words = rewrite_particles(Path("one.star"), keep_one)
    output = average("Average/one", *words, *SMALL_BOX)
    assert not read_map(output / "average_half2.mrc").any()
    assert "Resolution of the average: none at FSC 0.143, none at" in capsys.readouterr().out
    general = read_tables(output / "average_fsc.star")["general"].first_row()
    assert float(general["rlnFinalResolution"]) == 999


# Threads, restarts


@pytest.mark.usefixtures("noisy")
def test_any_number_of_threads() -> None:
    """To 1e-6, although single precision adds up other particles in other orders."""
    single = average("Average/one", *BOX, "--stack2d", "--j", "1")
    for threads in ("2", "3"):
        assert_maps_agree(single, average("Average/more", *BOX, "--stack2d", "--j", threads))


@pytest.mark.usefixtures("small")
def test_sums_are_moved_to_double_precision_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """How often makes no difference."""
    seldom = average("Average/seldom", *SMALL_BOX, "--j", "1")
    monkeypatch.setattr(accumulate, "PARTICLES_PER_FOLD", 1)
    assert_maps_agree(seldom, average("Average/often", *SMALL_BOX, "--j", "1"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("writing", [[], ["--no_writing"]], ids=["all", "no_writing"])
@pytest.mark.parametrize("how", ["a failure", "a stop within a tomogram"])
def test_an_interrupted_run_is_continued(
    how: str, writing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No particle is missing in the maps, and none is there twice."""
    whole = extract("Average/whole", *SMALL_BOX, "--average", *writing)
    with monkeypatch.context() as patch:
        (fail_later if how == "a failure" else stop_after_five)(patch)
        output = "Average/continued/"
        shutil.rmtree(output, ignore_errors=True)
        words = ["--i", OPTIMISATION_SET, "--o", output, *SMALL_BOX, "--average", *writing]
        assert cli.main(words) == 1
    assert not Path(output, "average.mrc").exists()
    assert cli.main([*words, "--only_do_unfinished"]) == 0
    assert json.loads(Path(output, "run_summary.json").read_text())["n_done_before"] >= 5
    assert_maps_agree(whole, Path(output))


def fail_later(patch: pytest.MonkeyPatch) -> None:
    """Let the second tomogram fail."""
    load = worker.load_tomogram

    def fail(options, tomogram, *arguments, **rest):  # type: ignore[no-untyped-def]
        if tomogram.name == "TS_02":
            raise InputError("tilt image went away")
        return load(options, tomogram, *arguments, **rest)

    patch.setattr(worker, "load_tomogram", fail)


def stop_after_five(patch: pytest.MonkeyPatch) -> None:
    """Let the run stop as by a signal once five particles are done."""
    count, done = Control.count_item, []

    def count_and_stop(control: Control) -> None:
        count(control)
        done.append(1)
        if len(done) == 5:
            control.stop()

    patch.setattr(Control, "count_item", count_and_stop)


@pytest.mark.usefixtures("small")
def test_other_half_sets_are_not_continued() -> None:
    """Particles whose half set changed are averaged again."""
    output = average("Average/halves", *SMALL_BOX)

    def divide(columns: dict[str, NDArray]) -> None:
        n = len(columns["rlnTomoName"])
        columns["rlnRandomSubset"] = np.array([str(i // 3 % 2 + 1) for i in range(n)], object)

    words = [*rewrite_particles(Path("thirds.star"), divide), *SMALL_BOX]
    fresh = average("Average/fresh", *words)
    again = ["--i", OPTIMISATION_SET, "--o", f"{output}/", "--average", "--no_writing"]
    assert cli.main([*again, *words, "--only_do_unfinished"]) == 0
    assert json.loads((output / "run_summary.json").read_text())["n_done_before"] == 0
    assert_maps_agree(fresh, output)


# What is refused


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--real_subtomo"], "--average together with --real_subtomo: no tilt images"),
        (["--no_ctf"], "--average together with --no_ctf: an average needs the CTF"),
        (["--no_circle_crop"], "--average together with --no_circle_crop: the background"),
        (["--grid_precorr"], "--average together with --grid_precorr: the average makes"),
        (["--dont_apply_offsets"], "--average together with --dont_apply_offsets: the offsets"),
        (["--crop", "2"], r"--crop: expected 4 or more with --average, found 2"),
    ],
)
def test_what_makes_no_average_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--i", OPTIMISATION_SET, "--o", "Average/refused/", *SMALL_BOX, "--average"]
    assert cli.main([*words, *options]) == 1
    assert message in capsys.readouterr().err
    assert not Path("Average/refused").exists()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("options", [["--average"], ["--sum"], ["--sum", "--average"]])
def test_several_pixel_sizes_are_refused(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is added up; without sums each particle has the pixel size of its tomogram."""
    columns = dict(read_tables(TOMOGRAMS)["global"].columns)
    for label, value in (("rlnTomoTiltSeriesPixelSize", "3.1"), ("rlnOpticsGroupName", "other")):
        columns[label] = np.array([value, *columns[label][1:]], dtype=object)
    write_star(Path("sizes.star"), [StarTable("global", columns)])
    particles = dict(read_tables(PARTICLES)["particles"].columns)
    particles.pop("rlnOpticsGroup", None)
    write_star(Path("no_optics.star"), [StarTable("particles", particles)])
    words = ["--p", "no_optics.star", "--t", "sizes.star", "--o", "Average/sizes/", *SMALL_BOX]
    assert cli.main(["check", *words]) == 0
    assert cli.main([*words, *options]) == 1
    error = capsys.readouterr().err
    assert f"error [sum-pixel-size] {' and '.join(options)} of tomograms" in error
    assert "expected one, found 3, 3.1" in error
