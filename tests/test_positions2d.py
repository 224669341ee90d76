"""`--positions2d`: where each particle lies in each tilt image, against the oracle's geometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracle.read_case import read_case
from oracle.spec_extraction import image_point, visible_frames
from project_copy import REFERENCE, ProjectCopy
from reference_comparison import read_star_text

from relion_pseudosubtomo import task_work
from relion_pseudosubtomo.cli import main

TOLERANCE_PX = 1e-3
INPUT = ["--p", "particles.star", "--t", "tomograms.star"]
BOX = ["--b", "64", "--crop", "32", "--bin", "2", "--stack2d"]

pytestmark = pytest.mark.timeout(60)


def start_in(folder: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> ProjectCopy:
    """Copy a case's input; start in the copy."""
    folder.mkdir(exist_ok=True)
    project = ProjectCopy(folder, case)
    monkeypatch.chdir(project.path)
    return project


def read_positions(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return the columns of each tomogram's file."""
    files = sorted((folder / "positions2d").rglob("*.star"))
    tables = {str(p.relative_to(folder / "positions2d"))[:-5]: read_star_text(p) for p in files}
    return {
        name: {label: list(file["positions"][label]) for label in file["positions"]}
        for name, file in tables.items()
    }


def file_bytes(folder: Path) -> dict[str, bytes]:
    """Return each file's content."""
    return {path.name: path.read_bytes() for path in sorted((folder / "positions2d").iterdir())}


@pytest.mark.parametrize(
    "name",
    [
        "basic_2d",
        "deform_spline",
        "int16_stack",
        "legacy_relion4_2d",
        "max_dose_min_frames",
        "odd_sizes_trajectories",
        "poses_dont_apply_offsets",
        "poses_offsets_2d",
        "real_subtomo",
        "trajectories_2d_drop",
    ],
)
def test_positions_and_flags_are_the_oracles(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every particle, dropped ones too, in every frame, in input order."""
    case = read_case(REFERENCE / name)
    start_in(tmp_path, name, monkeypatch)
    assert main([*INPUT, *case.words, "--o", "out/", "--positions2d"]) == 0
    files = read_positions(Path("out"))
    expected: dict[str, list[tuple[float, float, int]]] = {}
    for tomogram, particle in case.particles:
        flags = visible_frames(particle, tomogram, case.options)
        for frame, flag in enumerate(flags):
            x, y = image_point(particle, tomogram, frame, case.options)
            expected.setdefault(tomogram.name, []).append((x, y, int(flag)))
    assert sorted(files) == sorted(expected)
    for tomogram_name, rows in expected.items():
        found = files[tomogram_name]
        values = [found[f"rlnCoordinate{axis}"] for axis in "XY"]
        wanted = np.array(rows)
        np.testing.assert_allclose(
            np.array(values, np.float64).T, wanted[:, :2], rtol=0, atol=TOLERANCE_PX
        )
        flags_found = np.array(found["rlnPseudoSubtomoVisible"], int)
        np.testing.assert_array_equal(flags_found, wanted[:, 2])


def test_flags_are_those_of_the_particle_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept particles have their rlnTomoVisibleFrames; dropped ones are there as well."""
    name = "trajectories_2d_drop"
    start_in(tmp_path, name, monkeypatch)
    assert main([*INPUT, *read_case(REFERENCE / name).words, "--o", "out/", "--positions2d"]) == 0
    flags: dict[str, list[str]] = {}
    for columns in read_positions(Path("out")).values():
        for particle, flag in zip(
            columns["rlnTomoParticleName"], columns["rlnPseudoSubtomoVisible"], strict=True
        ):
            flags.setdefault(particle, []).append(flag)
    table = read_star_text(Path("out/particles.star"))["particles"]
    for particle, vector in zip(
        table["rlnTomoParticleName"], table["rlnTomoVisibleFrames"], strict=True
    ):
        assert f"[{','.join(flags.pop(particle))}]" == vector
    dropped = read_star_text(Path("out/dropped.star"))["particles"]
    assert len(dropped["rlnTomoParticleName"]) > 0
    assert set(flags) == set(dropped["rlnTomoParticleName"])


def test_images_are_named_as_in_the_tilt_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file a tilt, or a number in a stack."""
    start_in(tmp_path, "basic_2d", monkeypatch)
    assert main([*INPUT, *BOX, "--o", "out/", "--positions2d"]) == 0
    for name, columns in read_positions(Path("out")).items():
        tilts = next(iter(read_star_text(Path(f"tilt_series/{name}.star")).values()))
        images = list(tilts["rlnMicrographName"])
        n_particles = len(columns["rlnMicrographName"]) // len(images)
        assert columns["rlnMicrographName"] == images * n_particles
    folder = tmp_path / "stack"
    start_in(folder, "int16_stack", monkeypatch)
    words = read_case(REFERENCE / "int16_stack").words
    assert main([*INPUT, *words, "--o", "out/", "--positions2d"]) == 0
    names = {n for c in read_positions(Path("out")).values() for n in c["rlnMicrographName"]}
    assert names
    assert all(n.partition("@")[0].isdigit() for n in names)


def test_same_bytes_for_any_number_of_threads_and_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_in(tmp_path, "basic_2d", monkeypatch)
    assert main([*INPUT, *BOX, "--o", "one/", "--positions2d", "--j", "1"]) == 0
    monkeypatch.setattr(task_work, "CHUNK_PER_THREAD", 1)
    assert main([*INPUT, *BOX, "--o", "two/", "--positions2d", "--j", "2"]) == 0
    assert file_bytes(Path("one")) == file_bytes(Path("two"))


def test_nothing_is_left_of_an_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of other results go, also where none are asked for any more."""
    start_in(tmp_path, "basic_2d", monkeypatch)
    assert main([*INPUT, *BOX, "--o", "out/", "--positions2d"]) == 0
    assert main([*INPUT, *BOX, "--o", "out/", "--only_do_unfinished"]) == 0
    assert read_positions(Path("out")) == {}
    assert main([*INPUT, *BOX, "--o", "out/", "--only_do_unfinished", "--positions2d"]) == 0
    assert read_positions(Path("out")) != {}


def test_needs_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start_in(tmp_path, "basic_2d", monkeypatch)
    assert main([*INPUT, *BOX, "--o", "out/", "--positions2d", "--no_writing"]) == 1
    assert (
        "[option-combination] --positions2d together with --no_writing" in capsys.readouterr().err
    )
    assert not Path("out").exists()
