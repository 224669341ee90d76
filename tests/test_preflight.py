"""All input is read and checked before any image; everything that is wrong comes in one message."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from project_copy import REFERENCE, TESTS, ProjectCopy

from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import ADVICE, Findings, describe, format_findings, list_first
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.preflight import check_output_directory, read_and_check

PACKAGE = TESTS.parent / "relion_pseudosubtomo"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return a function that copies a reference case and makes it the current directory."""

    def copy(case="rotated_trajectories"):
        made = ProjectCopy(tmp_path, case)
        monkeypatch.chdir(made.path)
        return made

    return copy


def errors_of(options):
    with pytest.raises(InputError) as caught:
        read_and_check(options)
    return str(caught.value)


def codes_in(text):
    return re.findall(r"^(?:error|warning) \[([a-z0-9-]+)\]", text, re.MULTILINE)


def test_good_job(project):
    job, _ = read_and_check(project().options(trajectories="motion.star"))
    assert job.optimisation_set.trajectories == "motion.star"
    assert len(job.particle_set) == len(job.trajectories.shifts) == 5
    assert [t.name for t in job.tomogram_set.tomograms] == ["TS_01", "TS_03"]
    assert not job.findings.items
    assert not Path("out").exists()


def test_job_survives_pickling(project):
    job, _ = read_and_check(project().options())
    copy = pickle.loads(pickle.dumps(job))
    assert list(copy.particle_set.names) == list(job.particle_set.names)


def test_optimisation_set(project):
    case = project()
    (case.path / "o.star").write_text(
        "data_\n_rlnTomoParticlesFile particles.star\n_rlnTomoTomogramsFile tomograms.star\n"
        '_rlnTomoTrajectoriesFile ""\n_rlnTomoManifoldsFile a.star\n'
    )
    job, _ = read_and_check(case.options(optimisation_set="o.star", particles=None, tomograms=None))
    assert job.trajectories is None
    assert job.optimisation_set.others == {"rlnTomoManifoldsFile": "a.star"}


def test_warnings_do_not_stop_a_job(project):
    case = project("odd_sizes_2d")
    case.set_value("particles.star", "rlnTomoName", 0, "TS_99")
    job, _ = read_and_check(case.options())
    assert [finding.code for finding in job.findings] == ["odd-size", "unknown-tomogram"]


def test_everything_comes_together(project):
    case = project()
    case.rename_label("tomograms.star", "rlnVoltage")
    case.rename_label("tilt_series/TS_01.star", "rlnDefocusU")
    case.replace("tilt_series/TS_03.star", "../frames/", "absent/")
    case.set_value("particles.star", "rlnAngleRot", 1, "nan")
    case.set_value("particles.star", "rlnTomoParticleName", 1, "TS_01/1")
    case.set_value("particles.star", "rlnTomoName", 4, "TS_99")
    case.replace("motion.star", "data_TS_03/1", "data_TS_03/7")
    (case.path / "out").write_text("a file")
    text = errors_of(case.options(trajectories="motion.star", box=47, crop=24))
    assert sorted(codes_in(text)) == [
        "bad-box",
        "duplicate-particle",
        "image-missing",
        "missing-column",
        "missing-column",
        "not-finite",
        "output-directory",
        "unknown-tomogram",
    ]
    assert text.index("unknown-tomogram") > text.rindex("error [")


def test_trajectories_are_checked_beside_wrong_particles(project):
    case = project()
    case.set_value("particles.star", "rlnAngleRot", 1, "nan")
    case.replace("motion.star", "data_TS_03/1", "data_TS_03/7")
    assert codes_in(errors_of(case.options(trajectories="motion.star"))) == [
        "not-finite",
        "trajectory-missing",
    ]


def test_missing_files_are_named_together(project):
    case = project()
    options = case.options(particles="p.star", tomograms="t.star", trajectories="m.star")
    text = errors_of(options)
    assert codes_in(text) == ["missing-file"] * 3
    assert all(f"in {name}.star" in text for name in "ptm")


def test_tomograms_are_checked_without_particles(project):
    case = project()
    case.rename_label("tilt_series/TS_01.star", "rlnDefocusU")
    assert codes_in(errors_of(case.options(particles="p.star"))) == [
        "missing-file",
        "missing-column",
    ]


def test_particles_are_checked_without_tomograms(project):
    case = project()
    case.set_value("particles.star", "rlnAngleRot", 1, "nan")
    assert codes_in(errors_of(case.options(tomograms="t.star"))) == ["missing-file", "not-finite"]


def test_optimisation_set_that_is_none(project):
    """As for every option an empty one is none."""
    job, _ = read_and_check(project().options(optimisation_set=""))
    assert job.optimisation_set.particles == "particles.star"


def test_input_in_a_folder_that_a_run_empties(project, monkeypatch):
    case = project()
    monkeypatch.chdir(case.path)
    tables = case.path / "out" / "for_relion4"
    tables.mkdir(parents=True)
    shutil.copy("particles.star", tables)
    text = errors_of(case.options(particles=str(tables / "particles.star"), overwrite=True))
    assert "input-replaced" in codes_in(text)


def test_no_input(project):
    project()
    assert codes_in(errors_of(JobOptions("out", 32, 32))) == ["missing-input"] * 2


@pytest.mark.parametrize("binning", [float("nan"), float("inf"), 0.5])
def test_wrong_binning_hides_nothing(project, binning):
    case = project()
    case.rename_label("tomograms.star", "rlnVoltage")
    assert codes_in(errors_of(case.options(binning=binning))) == ["bad-option", "missing-column"]


# --only_tomogram


def test_only_tomogram(project):
    case = project()
    case.rename_label("tilt_series/TS_01.star", "rlnDefocusU")
    job, _ = read_and_check(case.options(trajectories="motion.star", only_tomogram="TS_03"))
    assert not job.findings.items
    assert list(job.particle_set.names) == ["TS_03/1", "TS_03/2", "TS_03/3"]
    assert list(job.particle_set.columns["rlnTomoName"]) == ["TS_03"] * 3
    assert [shift.shape for shift in job.trajectories.shifts] == [(7, 3)] * 3
    assert list(job.trajectories.shifts[0][0]) == [2.412715, -4.188751, -0.263923]
    assert [t.n_frames for t in job.tomogram_set.tomograms] == [0, 7]


def test_only_tomogram_unknown(project):
    text = errors_of(project().options(only_tomogram="TS_3"))
    assert codes_in(text) == ["only-tomogram"]
    assert "as TS_03" in text
    assert "found TS_3" in text


def test_only_tomogram_without_particles(project):
    case = project()
    case.replace("particles.star", "\nTS_03", "\nTS_01")
    text = errors_of(case.options(only_tomogram="TS_03"))
    assert codes_in(text) == ["no-particles"]


# The output directory


def check(path, **options):
    findings = Findings()
    check_output_directory(JobOptions(str(path), 32, 32, **options), findings)
    return [finding.code for finding in findings]


@pytest.mark.parametrize("name", ["out", "a/b/c/"])
def test_new_directory(tmp_path, name):
    assert check(tmp_path / name) == []
    assert not (tmp_path / name).exists()


def test_directory_with_files_of_relion_alone(tmp_path):
    for name in ("run.out", "run.err", "job.star", "note.txt", "RELION_JOB_RUNNING",
                 "default_pipeline.star", "job_pipeline.star", "run_summary.json"):  # fmt: skip
        (tmp_path / name).write_text("")
    (tmp_path / "Subtomograms" / "TS_01").mkdir(parents=True)
    assert check(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["particles.star", "optimisation_set.star", "Subtomograms/TS_01/1_data.mrc"]
)
def test_directory_with_results(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("")
    assert check(tmp_path) == ["output-foreign"]


@pytest.mark.parametrize("name", ["file", "file/out", "file/a/b"])
def test_output_below_a_file(tmp_path, name):
    (tmp_path / "file").write_text("")
    assert check(tmp_path / name) == ["output-directory"]


@pytest.mark.parametrize("name", ["", "a/b"])
def test_directory_without_permission(tmp_path, monkeypatch, name):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    findings = Findings()
    check_output_directory(JobOptions(str(tmp_path / name), 32, 32), findings)
    assert [finding.code for finding in findings] == ["output-directory"]
    assert f"found {tmp_path} without permission to write" in findings.items[0].message


# Messages


def test_every_code_has_advice_and_is_used():
    code = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    used = set(re.findall(r'\.(?:error|warning)\(\s*"([a-z0-9-]+)"', code))
    assert used <= set(ADVICE)
    for name in ADVICE:
        assert code.count(f'"{name}"') > 1, f"{name} is used nowhere"


def test_place_and_values():
    text = describe("x", file="f", table="", row=2, line=7, tomogram="T", particle="P", expected=1)
    assert text == "x in f, table (unnamed), row 2, line 7, tomogram T, particle P: expected 1"
    assert describe("x", tomogram="T", found=0) == "x (tomogram T): found 0"


def test_list_is_cut_after_ten():
    assert list_first(range(3)) == "0, 1, 2"
    assert list_first("abcdefghijkl") == "a, b, c, d, e, f, g, h, i, j, ... (12 in all)"
    assert list_first([*np.arange(3, 28), 40]) == "3-27, 40 (26 in all)"
    assert list_first(range(0, 24, 2)) == "0, 2, 4, 6, 8, 10, 12, 14, 16, 18, ... (12 in all)"


def test_repeated_findings_are_cut_after_ten():
    findings = Findings()
    findings.warning("odd-size", "w")
    for i in range(12):
        findings.error("bad-box", f"e{i}")
    lines = format_findings(findings).split("\n")
    assert len(lines) == 12
    assert lines[0].startswith("error [bad-box] e0.")
    assert lines[-2].startswith("warning [odd-size] w.")
    assert lines[-1] == "and 2 more of [bad-box]"


def test_no_image_is_read(project):
    """Only headers: images whose data cannot be read do not hinder the check."""
    case = project()
    folder = case.path / "own"
    shutil.copytree(REFERENCE / "frames" / "rotated_offsets", folder)
    for path in folder.iterdir():
        with open(path, "r+b") as file:
            file.truncate(1024)
            file.truncate(2**34)
    case.replace("tilt_series/TS_01.star", "../frames/rotated_offsets", "own")
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32));"
        "from relion_pseudosubtomo.preflight import read_and_check;"
        "from relion_pseudosubtomo.options import JobOptions;"
        "read_and_check(JobOptions('out', 48, 24, 2.0, particles='particles.star',"
        " tomograms='tomograms.star'))"
    )
    subprocess.run([sys.executable, "-c", limited], check=True, timeout=120, cwd=case.path)
