"""The comparison with RELION's files accepts what agrees and names what does not.

The "program output" here is the oracle's images with RELION's own STAR files, then spoilt.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from reference_comparison import compare_case, list_images, read_mrc

from .read_case import read_case
from .run_case import run_case

REFERENCE = Path(__file__).parents[1] / "reference"
STACK = "Subtomograms/TS_01/1_stack2d.mrcs"


def write_image(path: Path, image: np.ndarray, dtype: np.dtype, voxel_size: float) -> None:
    """Write a valid MRC file, a stack where the name ends in .mrcs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, image.astype(dtype), overwrite=True) as mrc:
        if path.suffix == ".mrcs":
            mrc.set_image_stack()
        mrc.voxel_size = voxel_size


def write_output(name: str, output_dir: Path) -> None:
    """Write an output folder for a case: the oracle's images and RELION's STAR files."""
    reference_dir = REFERENCE / name / "relion"
    images = run_case(read_case(REFERENCE / name))
    for file in list_images(reference_dir):
        reference, voxel_size = read_mrc(reference_dir / file)
        write_image(output_dir / file, images[file], reference.dtype, voxel_size)
    for star in reference_dir.glob("*.star"):
        shutil.copy(star, output_dir)


def edit(path: Path, old: str, new: str) -> None:
    """Replace the first occurrence of some text in a file that must hold it."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return a correct output folder of the case trajectories_2d_drop."""
    write_output("trajectories_2d_drop", tmp_path)
    return tmp_path


def problems_of(output_dir: Path) -> list[str]:
    """Return the problems of an output folder of the case trajectories_2d_drop."""
    return compare_case(REFERENCE / "trajectories_2d_drop", output_dir).problems


@pytest.mark.parametrize(
    "name",
    [
        "basic_3d",
        "extra_volumes_heuristic",
        "extra_volumes_wiener",
        "float16_3d",
        "real_subtomo",
        "sum_cone",
        "trajectories_2d_drop",
    ],
)
def test_correct_output_has_no_problems(name: str, tmp_path: Path) -> None:
    write_output(name, tmp_path)
    (tmp_path / "note.txt").write_text("an extra file")
    comparison = compare_case(REFERENCE / name, tmp_path)
    assert comparison.problems == []
    assert len(comparison.files) == len(list_images(REFERENCE / name / "relion"))
    assert comparison.worst_error < 1e-2


def test_another_output_name_is_followed_into_the_tables(output: Path) -> None:
    for star in output.glob("*.star"):
        star.write_text(star.read_text().replace("relion/", "Extract/job007/"))
    comparison = compare_case(REFERENCE / "trajectories_2d_drop", output, "Extract/job007/")
    assert comparison.problems == []


def test_wrong_pixel_is_found(output: Path) -> None:
    with mrcfile.open(output / STACK, "r+") as mrc:
        mrc.data[2, 5, 5] += 2e-4 * mrc.data.std()
        mrc.update_header_stats()
    (problem,) = problems_of(output)
    assert STACK in problem
    assert "tolerance 0.0001" in problem


@pytest.mark.parametrize("half", [0, 1])
def test_halves_of_weights_are_compared_separately(half: int, tmp_path: Path) -> None:
    write_output("basic_3d", tmp_path)
    file = "Subtomograms/TS_01/1_weights.mrc"
    with mrcfile.open(tmp_path / file, "r+") as mrc:
        mrc.data.reshape(2, -1)[half, 7] += 2e-4 * mrc.data.reshape(2, -1)[half].std()
        mrc.update_header_stats()
    (problem,) = compare_case(REFERENCE / "basic_3d", tmp_path).problems
    assert file in problem


def test_missing_and_unexpected_images_are_found(output: Path) -> None:
    (output / STACK).rename(output / "Subtomograms/TS_01/9_stack2d.mrcs")
    assert problems_of(output) == [
        f"{STACK}: missing",
        "Subtomograms/TS_01/9_stack2d.mrcs: not among RELION's files",
    ]


def test_faulty_headers_are_found(output: Path) -> None:
    reference = REFERENCE / "trajectories_2d_drop" / "relion"
    image, voxel_size = read_mrc(reference / STACK)
    shutil.copy(reference / STACK, output / STACK)
    assert "not a valid MRC file" in problems_of(output)[0]
    write_image(output / STACK, image[:-1], np.dtype(np.float32), voxel_size)
    assert "expected shape" in problems_of(output)[0]
    write_image(output / STACK, image, np.dtype(np.float16), voxel_size)
    assert "expected data type float32, found float16" in problems_of(output)[0]
    write_image(output / STACK, image, np.dtype(np.float32), 1.0)
    assert "expected voxel size 5.4, found 1" in problems_of(output)[0]


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("particles.star", "-93.12739", "-93.12719", "row 1, rlnCenteredCoordinateXAngst"),
        ("particles.star", "[1,1,1,1,1,1,1]", "[1,1,1,1,1,1,0]", "row 1, rlnTomoVisibleFrames"),
        ("particles.star", "TS_01/1_stack2d", "TS_01/3_stack2d", "row 1, rlnImageName"),
        ("particles.star", "_rlnAngleRot", "_rlnAngleTurn", "column rlnAngleRot missing"),
        ("particles.star", "data_optics", "data_optic", "table data_optics missing"),
        ("motion.star", "0.240757", "0.240957", "row 1, rlnOriginXAngst"),
        ("optimisation_set.star", "tomograms.star", "t.star", "row 1, rlnTomoTomogramsFile"),
    ],
)
def test_differences_of_tables_are_found(
    output: Path, file: str, old: str, new: str, problem: str
) -> None:
    edit(output / file, old, new)
    problems = problems_of(output)
    assert problems
    assert any(file in text and problem in text for text in problems)


def test_rounding_and_whole_turns_are_not_differences(output: Path) -> None:
    edit(output / "particles.star", "-93.12739", "-93.127391")
    edit(output / "particles.star", "-150.95266", "209.047336")
    assert problems_of(output) == []


def test_missing_rows_and_tables_are_found(output: Path) -> None:
    lines = (output / "particles.star").read_text().splitlines(keepends=True)
    kept = [line for line in lines if "TS_01/2_stack2d" not in line]
    (output / "particles.star").write_text("".join(kept))
    (output / "motion.star").unlink()
    assert problems_of(output) == [
        "particles.star, table data_particles: expected 2 rows, found 1",
        "motion.star: missing",
    ]


def test_every_case_has_files_to_compare() -> None:
    """Every folder of the references but that of the shared images is a case."""
    cases = sorted(REFERENCE.glob("*/case.json"))
    folders = {path.name for path in REFERENCE.iterdir() if path.is_dir()} - {"frames"}
    assert {path.parent.name for path in cases} == folders
    assert cases
    for path in cases:
        assert json.loads(path.read_text())["returncode"] == 0
        assert list_images(path.parent / "relion")
