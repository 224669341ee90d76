"""RELION's own job on EMPIAR-10164 is reproduced from its STAR files: the whole particle table."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile

from relion_pseudosubtomo import labels, merge
from relion_pseudosubtomo.arguments import parse_options
from relion_pseudosubtomo.cli import main
from relion_pseudosubtomo.plan import make_plan
from relion_pseudosubtomo.preflight import read_and_check
from relion_pseudosubtomo.results import write_tables

REAL = Path(__file__).parent / "real"
PROJECT = REAL / "empiar-10164"
IMAGE_SIZE_XY = (3710, 3838)
PIXEL_SIZE = 1.35
COMMAND = (
    "--p Select/job018/particles.star --t Denoise/job008/tomograms.star --b 512 --crop 192 --bin 1 "
    "--max_dose 50 --min_frames 1 --stack2d --float16 --o Extract/job020/"
)
PICKS_COMMAND = (
    "--i Picks/job019/optimisation_set.star --b 192 --crop 96 --bin 6 --stack2d --max_dose 50 "
    "--o Extract/job021/"
)


def make_sparse_images(path: Path, n: int = 1) -> None:
    """Make an MRC file of full length that takes one block of disk: a header, then nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = IMAGE_SIZE_XY
    header = np.zeros((), dtype=mrcfile.dtypes.HEADER_DTYPE)
    header["nx"], header["ny"], header["nz"] = width, height, n
    header["mx"], header["my"], header["mz"] = width, height, n
    header["mode"] = 2
    header["cella"]["x"], header["cella"]["y"] = width * PIXEL_SIZE, height * PIXEL_SIZE
    header["map"] = b"MAP "
    header["machst"][:2] = 0x44
    with open(path, "wb") as file:
        file.write(header.tobytes())
        file.truncate(1024 + 4 * width * height * n)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the project's input with sparse tilt images; start in it."""
    for folder in ("Select", "Denoise", "Picks"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)
    for table in (tmp_path / "Denoise/job008/tilt_series").glob("*.star"):
        for name in set(re.findall(r"MotionCorr/\S+_\d\.mrc", table.read_text())):
            make_sparse_images(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_particle_table_of_empiar_10164_is_relions(project: Path) -> None:
    """Rows, order, names, visible frames, coordinates and optics of 9442 particles, as written."""
    options = parse_options(COMMAND.split())
    job, _ = read_and_check(options)
    plan = make_plan(options, job.tomogram_set, job.particle_set, job.trajectories)
    written = project / options.output
    written.mkdir(parents=True)
    write_tables(options, job, plan)
    ours, relion = (
        starfile.read(
            folder / "particles.star",
            parse_as_string=[labels.VISIBLE_FRAMES, labels.PARTICLE_NAME, labels.IMAGE_NAME],
        )
        for folder in (written, PROJECT / "Extract/job020")
    )
    assert set(ours) == set(relion) == {"general", "optics", "particles"}
    assert len(ours["particles"]) == len(relion["particles"]) == 9442
    assert ours["general"] == relion["general"]
    for name in ("optics", "particles"):
        assert set(ours[name].columns) == set(relion[name].columns)
        for label, theirs in relion[name].items():
            if theirs.dtype.kind in "fi":
                mine = ours[name][label].to_numpy(np.float64)
                np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4, err_msg=label)
            else:
                assert list(ours[name][label]) == list(theirs), label


def test_picks_without_names_or_optics_are_read(project: Path) -> None:
    """Particles straight from picking get names and the tomograms' optics."""
    options = parse_options(PICKS_COMMAND.split())
    job, _ = read_and_check(options)
    plan = make_plan(options, job.tomogram_set, job.particle_set, None)
    ours = merge.merge_particles(options, job.particle_set, job.tomogram_set, plan)
    assert ours[labels.PARTICLE_NAME][0].startswith("TS_01/")
    assert set(ours[labels.OPTICS_GROUP]) == {"1"}
    frames = {flags.count("1") for flags in ours[labels.VISIBLE_FRAMES]}
    assert max(frames) == 17


def test_check_says_what_is_wrong_with_a_warp_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names no tilt images; where some are given, its coordinates turn out to be binned."""
    shutil.copytree(REAL / "warp", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (optimisation_set,) = tmp_path.glob("*_optimisation_set.star")
    command = ["check", "--i", optimisation_set.name, "--b", "64", "--crop", "32", "--bin", "4"]
    command += ["--stack2d", "--o", "Extract/job001/"]
    assert main(command) == 1
    text = capsys.readouterr().out
    assert text.count("error [dummy-images]") == 4
    assert "4 errors, 0 warnings" in text

    (tomograms,) = tmp_path.glob("*_tomograms.star")
    make_sparse_images(tmp_path / "images.mrc", 37)
    tomograms.write_text(tomograms.read_text().replace("dummy_tiltseries.mrc", "images.mrc"))
    assert main(command) == 1
    text = capsys.readouterr().out
    assert "found Dropped 40: outside the image in all frames" in text
    assert "warning [coordinates] The coordinates look binned" in text
