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
from relion_pseudosubtomo.plan import make_plan
from relion_pseudosubtomo.preflight import read_and_check

PROJECT = Path(__file__).parent / "real" / "empiar-10164"
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


def make_sparse_image(path: Path) -> None:
    """Make an MRC file of full length that takes one block of disk: a header, then nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = IMAGE_SIZE_XY
    header = np.zeros((), dtype=mrcfile.dtypes.HEADER_DTYPE)
    header["nx"], header["ny"], header["nz"] = width, height, 1
    header["mx"], header["my"], header["mz"] = width, height, 1
    header["mode"] = 2
    header["cella"]["x"], header["cella"]["y"] = width * PIXEL_SIZE, height * PIXEL_SIZE
    header["map"] = b"MAP "
    header["machst"][:2] = 0x44
    with open(path, "wb") as file:
        file.write(header.tobytes())
        file.truncate(1024 + 4 * width * height)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the project's input with sparse tilt images; start in it."""
    for folder in ("Select", "Denoise", "Picks"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)
    for table in (tmp_path / "Denoise/job008/tilt_series").glob("*.star"):
        for name in set(re.findall(r"MotionCorr/\S+_\d\.mrc", table.read_text())):
            make_sparse_image(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_particle_table_of_empiar_10164_is_relions(project: Path) -> None:
    """Rows, order, names, visible frames, coordinates and optics of 9442 particles agree."""
    options = parse_options(COMMAND.split())
    job, _ = read_and_check(options)
    plan = make_plan(options, job.tomogram_set, job.particle_set, job.trajectories)
    ours = merge.merge_particles(options, job.particle_set, job.tomogram_set, plan)
    optics = merge.merge_optics(options, job.particle_set, job.tomogram_set)
    relion = starfile.read(
        PROJECT / "Extract/job020/particles.star",
        parse_as_string=[labels.VISIBLE_FRAMES, labels.PARTICLE_NAME, labels.IMAGE_NAME],
    )
    particles = relion["particles"]
    assert len(particles) == 9442
    assert set(ours) == set(particles.columns)
    for label, theirs in particles.items():
        if theirs.dtype.kind in "fi":
            mine = ours[label].astype(np.float64)
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4, err_msg=label)
        else:
            assert list(ours[label]) == list(theirs), label
    assert set(optics) == set(relion["optics"].columns)
    for label, theirs in relion["optics"].items():
        assert str(theirs.iloc[0]) == optics[label][0] or float(optics[label][0]) == theirs.iloc[0]
    assert merge.merge_general(options, job.particle_set) == {labels.ARE_2D_STACKS: "1"}


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
