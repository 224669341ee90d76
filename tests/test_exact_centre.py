"""`--exact_centre`: images centred and to scale where RELION's are a little off (spec 2, 2.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from numpy.typing import NDArray
from project_copy import ProjectCopy

from relion_pseudosubtomo.cli import main
from relion_pseudosubtomo.io.mrc import write_mrc

PIXEL_SIZE = 2.7
SIGMA = 4.0
"""Width of the simulated particle in unbinned pixels."""
CLOSE = 0.01
"""Binned pixels."""
SIZES = {"TS_01": (192, 180, 60), "TS_03": (176, 192, 52)}
POSITION = np.array([11.3, -7.9, 5.2])
"""Of the simulated particle from the tomogram's centre, unbinned pixels."""


def rotation(table: dict[str, list[float]], frame: int) -> NDArray[np.floating]:
    """Return Rz Ry Rx of a tilt (spec 2.1)."""
    x, y, z = (
        np.deg2rad(table[label][frame]) for label in ("rlnTomoXTilt", "rlnTomoYTilt", "rlnTomoZRot")
    )
    rx = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    ry = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
    rz = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    return np.array(rz) @ np.array(ry) @ np.array(rx)


def read_numbers(path: Path) -> dict[str, list[float]]:
    """Return the columns of numbers of a file's only table."""
    lines = path.read_text().splitlines()
    names = [line.split()[0][1:] for line in lines if line.startswith("_")]
    rows = [line.split() for line in lines if line.count("\t") > 3]
    return {
        name: [float(row[i]) for row in rows]
        for i, name in enumerate(names)
        if name != "rlnMicrographName"
    }


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectCopy:
    """Return a project whose first particle is one Gaussian at POSITION from the true centre.

    The centre of the tomogram is projected to the centre of the image, moved by the alignment's
    shift: that is what the coordinates mean, whatever the sizes are.
    """
    case = ProjectCopy(tmp_path, "basic_2d")
    monkeypatch.chdir(case.path)
    (case.path / "own").mkdir()
    table = read_numbers(case.path / "tilt_series/TS_01.star")
    with mrcfile.open(case.path.parent / "frames/plain/TS_01_000.mrc", permissive=True) as file:
        height, width = file.data.shape[-2:]
    y, x = np.mgrid[:height, :width]
    for frame in range(7):
        shift = np.array([table[f"rlnTomo{axis}ShiftAngst"][frame] for axis in "XY"]) / PIXEL_SIZE
        place = (rotation(table, frame) @ POSITION)[:2] + shift + (width // 2, height // 2)
        square = (x - place[0]) ** 2 + (y - place[1]) ** 2
        image = np.exp(-square / (2 * SIGMA**2)).astype(np.float32)
        path = case.path / f"own/TS_01_{frame:03d}.mrc"
        write_mrc(path, image[None], voxel_size=PIXEL_SIZE, is_stack=True, float16=False)
    case.replace("tilt_series/TS_01.star", "../frames/plain", "own")
    for label, value in zip("XYZ", POSITION * PIXEL_SIZE, strict=True):
        case.set_value("particles.star", f"rlnCenteredCoordinate{label}Angst", 0, f"{value:.6f}")
    return case


def extract(*words: str) -> dict[str, Any]:
    """Extract the first particle; return its images' mean centre, width and pixel size."""
    common = "--p particles.star --t tomograms.star --o out --overwrite --j 1 --no_ctf --no_ic"
    assert main([*common.split(), "--stack2d", "--only_tomogram", "TS_01", *words]) == 0
    with mrcfile.open("out/Subtomograms/TS_01/1_stack2d.mrcs") as file:
        images, pixel_size = file.data.astype(np.float64), float(file.voxel_size.x)
    return {"pixel_size": pixel_size, **measure(images)}


def measure(images: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
    """Return centre and width of the Gaussian in each image, binned pixels from the box centre."""
    n = images.shape[1]
    y, x = np.mgrid[:n, :n] - n // 2
    squares = images**2  # of half the variance, and far from the soft edge
    total = squares.sum(axis=(1, 2))
    centre = np.stack([(squares * axis).sum(axis=(1, 2)) / total for axis in (x, y)], axis=1)
    variance = (squares * (x**2 + y**2)).sum(axis=(1, 2)) / total - (centre**2).sum(axis=1)
    return {"centre": centre, "width": np.sqrt(variance)}


@pytest.mark.parametrize(
    ("box", "binning"), [(48, 1.7), (50, 1.25), (42, 1.3737), (50, 1.5), (48, 2.0)]
)
@pytest.mark.parametrize("sizes", [(192, 180, 60), (193, 181, 61), None])
def test_centred_and_to_scale(
    project: ProjectCopy, box: int, binning: float, sizes: tuple[int, int, int] | None
) -> None:
    """For windows that are fractional, odd or whole, and sizes that are even, odd or missing."""
    for axis, old, new in zip("XYZ", SIZES["TS_01"], sizes or SIZES["TS_01"], strict=True):
        if sizes is None:
            project.rename_label("tomograms.star", f"rlnTomoSize{axis}", f"rlnOther{axis}")
        elif new != old:
            project.set_value("tomograms.star", f"rlnTomoSize{axis}", 0, str(new))
    found = extract("--b", str(box), "--bin", str(binning), "--exact_centre")
    assert found["pixel_size"] == pytest.approx(binning * PIXEL_SIZE)
    np.testing.assert_allclose(found["centre"], 0, atol=CLOSE)
    np.testing.assert_allclose(found["width"], SIGMA / binning, rtol=2e-4)


def test_without_it_images_are_off_as_in_relion(project: ProjectCopy) -> None:
    """The measurement sees what the option corrects: 82 for 81.6 pixels, and odd sizes."""
    found = extract("--b", "48", "--bin", "1.7")
    np.testing.assert_allclose(np.abs(found["centre"]), 82 / 3.4 - 24, atol=CLOSE)
    np.testing.assert_allclose(found["width"], SIGMA / 1.7 * 81.6 / 82, rtol=2e-4)
    project.set_value("tomograms.star", "rlnTomoSizeX", 0, "193")
    found = extract("--b", "48", "--bin", "2")
    assert np.abs(found["centre"]).max() > 0.2


def test_3d_is_centred(project: ProjectCopy) -> None:
    """Pseudo-subtomograms too."""
    words = "--p particles.star --t tomograms.star --o out --j 1 --no_ctf --no_ic --exact_centre"
    assert main([*words.split(), "--b", "48", "--bin", "1.7", "--only_tomogram", "TS_01"]) == 0
    # without the first planes, which have no counterpart
    volume = mrcfile.read("out/Subtomograms/TS_01/1_data.mrc")[1:, 1:, 1:].astype(np.float64) ** 2
    axes = np.mgrid[1:48, 1:48, 1:48] - 24
    np.testing.assert_allclose([(a * volume).sum() / volume.sum() for a in axes], 0, atol=0.02)


@pytest.mark.parametrize("words", [["--b", "48", "--bin", "1.7"], ["--b", "50", "--bin", "1.5"]])
def test_no_warning_is_left(
    project: ProjectCopy, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is exact needs none; without the option there are two."""
    project.set_value("tomograms.star", "rlnTomoSizeX", 0, "193")
    common = ["check", "--p", "particles.star", "--t", "tomograms.star", "--o", "out", *words]
    assert main(common) == 0
    assert "2 warnings" in capsys.readouterr().out
    assert main([*common, "--exact_centre"]) == 0
    assert "0 warnings" in capsys.readouterr().out
