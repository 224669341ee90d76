"""Tomogram sets: both layouts, what is doubtful is warned of, what is wrong is explained."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from project_copy import REAL

from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io import mrc
from relion_pseudosubtomo.io.tilt_series import count_coefficients
from relion_pseudosubtomo.io.tomograms import read_tomogram_set
from relion_pseudosubtomo.model import FrameImage
from relion_pseudosubtomo.options import JobOptions

TILTS = "tilt_series/TS_01.star"
GLOBAL = "tomograms.star"


def read(findings, wanted=None, path=GLOBAL, **options):
    return read_tomogram_set(
        path, findings, wanted=wanted, options=JobOptions("out", 48, 24, 2.0, **options)
    )


def codes(findings):
    return [finding.code for finding in findings]


def test_relion5_layout(project, findings):
    project("basic_2d")
    tomograms = read(findings).tomograms
    assert not findings.items
    first = tomograms[0]
    assert [t.name for t in tomograms] == ["TS_01", "TS_03"]
    assert list(first.size_xyz) == [192, 180, 60]
    assert (first.pixel_size, first.hand, first.voltage) == (2.7, -1, 300)
    assert (first.spherical_aberration, first.amplitude_contrast) == (2.7, 0.07)
    assert (first.optics_group_name, first.defocus_slope) == ("optics1", 1)
    assert (first.bfactor_per_dose, first.image_size_xy) == (0, (200, 184))
    assert list(first.pre_exposure) == [18, 12, 6, 0, 3, 9, 15]
    assert first.defocus_u[0] == 21431.190024
    assert list(first.ctf_scale) == [1] * 7
    assert first.frames[1] == FrameImage("../frames/plain/TS_01_001.mrc", 0)
    assert first.n_frames == 7


def test_relion4_layout_has_the_same_matrices(project, findings, tmp_path):
    project("legacy_relion4_2d")
    old = read(findings).tomograms
    assert old[0].frames[3] == FrameImage("../frames/legacy/TS_01.mrcs", 3)
    shutil.rmtree(tmp_path / "case")
    (tmp_path / "frames").unlink()
    project("basic_2d")
    new = read(findings).tomograms
    assert not findings.items
    for one, other in zip(old, new, strict=True):
        np.testing.assert_allclose(one.projections, other.projections, atol=1e-6)


def test_matrices_win_over_alignment(project, findings):
    case = project("legacy_relion4_2d")
    case.replace(GLOBAL, "_rlnDefocusAngle #4", "_rlnTomoYTilt #4")
    read(findings)
    assert codes(findings) == ["missing-column", "missing-column"]
    assert all("rlnDefocusAngle" in finding.message for finding in findings)


@pytest.mark.parametrize(
    ("case", "kind", "n"),
    [
        ("deform_linear", "linear", 3),
        ("deform_spline", "spline", 96),
        ("deform_fourier", "Fourier", 0),
    ],
)
def test_deformation_models(project, findings, case, kind, n):
    project(case)
    tomograms = read(findings).tomograms
    assert not findings.items
    for tomogram in tomograms:
        n_expected = n or count_coefficients(kind, tomogram.deformation.grid_xy)
        assert tomogram.deformation.kind == kind
        assert tomogram.deformation.coefficients.shape == (7, n_expected)


def fourier_frequencies(grid_x, grid_y):
    for y in range(grid_y):
        first = (1 if y == 0 else 0) if y < grid_y // 2 else 1
        yield from ((x, y) for x in range(first, grid_x // 2 + 1))


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 2), (2, 3), (4, 4), (5, 7), (6, 1)])
def test_number_of_fourier_coefficients(grid):
    assert count_coefficients("Fourier", grid) == 4 * len(list(fourier_frequencies(*grid)))


def test_reconstructed_volumes(project, findings):
    project("real_subtomo_halves")
    tomograms = read(findings, real_subtomo=True).tomograms
    assert not findings.items
    assert tomograms[0].reconstructions == (
        "tomograms/TS_01_half1.mrc",
        "tomograms/TS_01_half2.mrc",
    )
    assert tomograms[0].tomogram_binning == 2
    assert list(tomograms[0].nominal_tilt) == [-60, -40, -20, 0, 20, 40, 60]


def test_tomograms_that_are_not_wanted_are_not_read(project, findings):
    case = project()
    (case.path / TILTS).unlink()
    case.set_value(GLOBAL, "rlnVoltage", 0, "nan")
    tomograms = read(findings, {"TS_03"}).tomograms
    assert not findings.items
    assert [(t.name, t.n_frames) for t in tomograms] == [("TS_01", 0), ("TS_03", 7)]


def test_missing_sizes(project, findings, only):
    project("no_sizes")
    tomograms = read(findings).tomograms
    assert list(tomograms[0].size_xyz) == [-999] * 3
    only("missing-size", "warning", "TS_01, TS_03", "-999")


def test_negative_sizes_are_kept(project, findings, only):
    project().set_value(GLOBAL, "rlnTomoSizeZ", 1, "-500")
    tomograms = read(findings).tomograms
    assert list(tomograms[1].size_xyz) == [176, 192, -500]
    only("missing-size", "warning", "tomogram TS_03")


def test_odd_sizes_are_one_warning(project, findings, only):
    project("odd_sizes_2d")
    assert read(findings) is not None
    only("odd-size", "warning", "TS_01, TS_03", "expected even rlnTomoSizeX")


def test_rotation_of_the_global_table(project, findings, only):
    case = project()
    expected = read(findings).tomograms[1].projections
    case.replace(GLOBAL, "_rlnTomoImportFractionalDose", "_rlnTomoZRot")
    case.rename_label("tilt_series/TS_03.star", "rlnTomoZRot")
    tomograms = read(findings).tomograms
    only("global-rotation", "warning", "tomogram TS_03", "rlnTomoZRot")
    assert np.isfinite(tomograms[1].projections).all()
    assert not np.allclose(tomograms[1].projections, expected)


@pytest.mark.parametrize(
    "label",
    [
        "rlnTomoHand",
        "rlnTomoTiltSeriesPixelSize",
        "rlnVoltage",
        "rlnSphericalAberration",
        "rlnAmplitudeContrast",
    ],
)
def test_missing_global_column(project, findings, only, label):
    project().rename_label(GLOBAL, label)
    read(findings)
    only("missing-column", "error", f"no column {label} in tomograms.star, table global")


@pytest.mark.parametrize(
    "label",
    ["rlnMicrographPreExposure", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnTomoYTilt",
     "rlnTomoZRot", "rlnTomoXShiftAngst", "rlnTomoYShiftAngst"],
)  # fmt: skip
def test_missing_tilt_column(project, findings, only, label):
    project().rename_label(TILTS, label)
    read(findings)
    only("missing-column", "error", f"no column {label} in {TILTS}, table TS_01")


def test_no_alignment_at_all(project, findings, only):
    case = project()
    for label in ("YTilt", "ZRot", "XShiftAngst", "YShiftAngst"):
        case.rename_label(TILTS, f"rlnTomo{label}", f"rlnNo{label}")
    read(findings)
    only("missing-column", "error", "no alignment", "rlnTomoProjX")


@pytest.mark.parametrize("label", ["rlnTomoXTilt", "rlnTomoNominalStageTiltAngle"])
def test_columns_that_can_be_left_out(project, findings, label):
    project().rename_label(TILTS, label)
    assert read(findings).tomograms[0].n_frames == 7
    assert not findings.items


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        ("nan", "not-finite", "expected a finite number, found 'nan'"),
        ("-inf", "not-finite", "found '-inf'"),
        ("1.2.3", "not-a-number", "expected a number, found '1.2.3'"),
        ("None", "missing-value", "no rlnDefocusU"),
    ],
)
def test_bad_number_names_the_row(project, findings, only, value, code, words):
    project().set_value(TILTS, "rlnDefocusU", 4, value)
    read(findings)
    only(code, "error", f"in {TILTS}, table TS_01, row 5", words)


def test_absent_optional_value_is_the_default(project, findings):
    project("ctf_extra").set_value(TILTS, "rlnCtfScalefactor", 2, "None")
    scale = read(findings).tomograms[0].ctf_scale
    assert not findings.items
    assert scale[2] == 1
    assert (np.delete(scale, 2) != 1).any()


@pytest.mark.parametrize(
    ("label", "value", "expected"),
    [
        ("rlnAmplitudeContrast", "1.07", "expected a fraction in [0, 1], found 1.07"),
        ("rlnAmplitudeContrast", "-0.1", "found -0.1"),
        ("rlnTomoHand", "0", "expected 1 or -1, found 0"),
        ("rlnVoltage", "-300", "expected more than 0 kV, found -300"),
        ("rlnTomoTiltSeriesPixelSize", "0", "expected more than 0 A, found 0"),
    ],
)
def test_value_out_of_range(project, findings, only, label, value, expected):
    project().set_value(GLOBAL, label, 1, value)
    read(findings)
    only("bad-value", "error", f"{label} in tomograms.star, table global, row 2", expected)


VECTORS = {
    "linear": ("deform_linear", "[1,2]", "expected 3 values (linear deformation), found 2 values"),
    "spline": ("deform_spline", "[1,2,3]", "expected 96 values (spline deformation)"),
    "Fourier": ("deform_fourier", "[1,2,3]", "or more (Fourier deformation), found 3 values"),
    "no vector": ("deform_linear", "0.5", "found '0.5'"),
    "not numbers": ("deform_linear", "[a,b,c]", "found '[a,b,c]'"),
}  # fmt: skip


@pytest.mark.parametrize(("case", "value", "words"), VECTORS.values(), ids=VECTORS)
def test_deformation_of_wrong_length(project, findings, only, case, value, words):
    project(case).set_value(TILTS, "rlnTomoDeformationCoefficients", 2, value)
    read(findings)
    only("bad-vector", "error", "table TS_01, row 3", words)


def test_more_fourier_coefficients_than_needed(project, findings):
    case = project("deform_fourier")
    case.replace(TILTS, "]", ",0,0]")
    shape = read(findings).tomograms[0].deformation.coefficients.shape
    assert not findings.items
    assert shape[1] % 4 == 0


def test_deformation_that_is_not_finite(project, findings, only):
    project("deform_linear").set_value(TILTS, "rlnTomoDeformationCoefficients", 0, "[1,nan,3]")
    read(findings)
    only("not-finite", "error", "table TS_01, row 1", "[1,nan,3]")


def test_unknown_deformation_model(project, findings, only):
    project("deform_linear").replace(GLOBAL, "linear", "cubic")
    read(findings)
    only("bad-value", "error", "row 1, 2", "expected linear, spline, Fourier, found cubic")


def test_deformation_grid(project, findings, only):
    project("deform_spline").set_value(GLOBAL, "rlnTomoDeformationGridSizeX", 0, "1")
    read(findings, {"TS_01"})
    assert "bad-value" in codes(findings)
    finding = next(finding for finding in findings if finding.code == "bad-value")
    assert "found 1 and 3" in finding.message


def test_deformation_without_a_model(project, findings):
    project("deform_linear").rename_label(GLOBAL, "rlnTomoDeformationType")
    assert read(findings).tomograms[0].deformation is None
    assert codes(findings) == ["deformation-ignored"] * 2


def test_matrix_with_nan(project, findings, only):
    case = project("legacy_relion4_2d")
    case.replace(GLOBAL, "[0.04035820882,", "[nan,")
    read(findings)
    only("not-finite", "error", "rlnTomoProjX in tomograms.star, table TS_01, row 1")


def test_matrix_with_three_values(project, findings, only):
    case = project("legacy_relion4_2d")
    case.replace(GLOBAL, "[0.04035820882,", "[")
    read(findings)
    only("bad-vector", "error", "rlnTomoProjX", "expected 4 values, found 3 values")


def test_names(project, findings):
    case = project()
    case.set_value(GLOBAL, "rlnTomoName", 0, "../TS")
    case.set_value(GLOBAL, "rlnTomoName", 1, "../TS")
    read(findings, set())
    assert codes(findings) == ["duplicate-tomogram", "unsafe-name"]
    assert "'../TS'" in findings.items[1].message


def test_missing_tilt_file(project, findings, only):
    case = project()
    (case.path / TILTS).unlink()
    assert read(findings).tomograms[0].n_frames == 0
    only("missing-file", "error", f"STAR file missing in {TILTS}")


def test_tilt_table_of_another_name(project, findings, only):
    project().replace(TILTS, "data_TS_01", "data_other")
    assert read(findings).tomograms[0].n_frames == 7
    only("table-name", "warning", "expected data_TS_01, found data_other")


def test_no_tilt_table(project, findings, only):
    project("legacy_relion4_2d").replace(GLOBAL, "data_TS_03", "data_other")
    read(findings)
    only("missing-table", "error", "tomogram TS_03", "data_TS_03, or a file as rlnTomoTiltSeries")


def test_tilt_table_without_rows(project, findings, only):
    case = project()
    text = (case.path / TILTS).read_text()
    (case.path / TILTS).write_text(text[: text.index("../frames")])
    read(findings)
    only("no-frames", "error", "table TS_01")


def test_table_of_tomograms_of_another_name(project, findings, only):
    project().replace(GLOBAL, "data_global", "data_")
    assert len(read(findings).tomograms) == 2
    only("table-name", "warning", "expected data_global, found data_")


def test_no_table_of_tomograms(project, findings, only):
    project()
    assert read(findings, path=TILTS) is None
    only("missing-table", "error", TILTS, "expected a table data_global", "found tables TS_01")


def test_no_names(project, findings, only):
    project().rename_label(GLOBAL, "rlnTomoName")
    assert read(findings) is None
    only("missing-column", "error", "no column rlnTomoName")


# Tilt images


def own_images(case, name="plain"):
    """Copy the images that TS_01 uses, so that a test can spoil them."""
    folder = case.path / "own"
    shutil.copytree(case.path.parent / "frames" / name, folder)
    case.replace(TILTS, f"../frames/{name}/", "own/")
    return folder


def test_missing_images_are_one_finding(project, findings, only):
    project().replace(TILTS, "../frames/plain/TS_01", "absent/TS_01")
    tomogram = read(findings).tomograms[0]
    assert tomogram.n_frames == 0
    only("image-missing", "error", f"in {TILTS}, row 1, 2, 3, 4, 5, 6, 7, tomogram TS_01",
         "absent/TS_01_000.mrc")  # fmt: skip


def test_truncated_image(project, findings, only):
    folder = own_images(project())
    with open(folder / "TS_01_002.mrc", "r+b") as file:
        file.truncate(5000)
    read(findings)
    only("image-unreadable", "error", "TS_01_002.mrc is truncated", "found 5000")


def test_image_that_is_none(project, findings, only):
    folder = own_images(project())
    (folder / "TS_01_000.mrc").write_text("text" * 1000)
    read(findings)
    only("image-unreadable", "error", "TS_01_000.mrc is no MRC file", "tomogram TS_01")


def write_image(path, shape, voxel_size=2.7):
    mrc.write_mrc(
        path, np.zeros(shape, np.float32), voxel_size=voxel_size, is_stack=True, float16=False
    )


def test_image_of_another_size(project, findings, only):
    folder = own_images(project())
    write_image(folder / "TS_01_000.mrc", (1, 184, 198))
    write_image(folder / "TS_01_004.mrc", (1, 184, 196))
    read(findings)
    only("image-size", "error", "own/TS_01_000.mrc", "row 1, 5", "expected 200 x 184", "198 x 184")


@pytest.mark.parametrize(("voxel_size", "n_warnings"), [(2.72, 0), (2.8, 1), (0, 0)])
def test_pixel_size_is_one_warning(project, findings, voxel_size, n_warnings):
    folder = own_images(project())
    for number in (2, 5):
        write_image(folder / f"TS_01_00{number}.mrc", (1, 184, 200), voxel_size)
    assert read(findings).tomograms[0].n_frames == 7
    assert codes(findings) == ["pixel-size"] * n_warnings
    for finding in findings:
        assert finding.severity == "warning"
        assert "TS_01_002.mrc" in finding.message
        assert "expected 2.7 A, found 2.8 A" in finding.message


def test_image_that_holds_several(project, findings, only):
    folder = own_images(project())
    write_image(folder / "TS_01_001.mrc", (3, 184, 200))
    read(findings)
    only("frame-count", "error", "row 2", "expected 1, or a name n@stack, found 3")


@pytest.mark.parametrize("number", ["0", "8"])
def test_number_outside_the_stack(project, findings, only, number):
    case = project()
    text = (case.path / TILTS).read_text()
    for i in range(7):
        text = text.replace(
            f"../frames/plain/TS_01_00{i}.mrc", f"{i + 1}@../frames/legacy/TS_01.mrcs"
        )
    (case.path / TILTS).write_text(text)
    frames = read(findings).tomograms[0].frames
    assert frames[6] == FrameImage("../frames/legacy/TS_01.mrcs", 6)
    assert not findings.items
    case.replace(TILTS, "4@", f"{number}@")
    read(findings)
    only("image-index", "error", "row 4", f"found {number}@../frames/legacy/TS_01.mrcs")


@pytest.mark.parametrize("suffix", ["", ":mrc"])
def test_stack_with_suffix_of_imod(project, findings, suffix):
    case = project("legacy_relion4_2d")
    stack = shutil.copy(case.path.parent / "frames/legacy/TS_01.mrcs", case.path / "TS_01.st")
    case.replace(GLOBAL, "../frames/legacy/TS_01.mrcs", f"{Path(stack).name}{suffix}")
    assert read(findings).tomograms[0].frames[2] == FrameImage("TS_01.st", 2)
    assert not findings.items


def test_stack_with_another_number_of_images(project, findings, only):
    case = project("legacy_relion4_2d")
    write_image(case.path / "TS_01.st", (6, 184, 200))
    case.replace(GLOBAL, "../frames/legacy/TS_01.mrcs", "TS_01.st")
    read(findings)
    only("frame-count", "error", "number of images in TS_01.st", "expected 7, found 6")


def test_frame_count_of_the_global_table(project, findings, only):
    case = project("legacy_relion4_2d")
    case.replace(GLOBAL, "TS_01.mrcs\t7", "TS_01.mrcs\t41")
    read(findings)
    only("frame-count", "error", "rlnTomoFrameCount", "tomogram TS_01", "expected 7", "found 41")


@pytest.mark.parametrize("shape", [None, (1, 184, 200), (7, 8, 8)])
def test_dummy_images_are_named_as_the_reason(project, findings, only, shape):
    case = project("legacy_relion4_2d")
    if shape is not None:
        write_image(case.path / "dummy_tiltseries.mrc", shape)
    case.replace(GLOBAL, "../frames/legacy/TS_01.mrcs", "dummy_tiltseries.mrc")
    read(findings)
    assert codes(findings) == ["dummy-images"]
    only("dummy-images", "error", "dummy_tiltseries.mrc", "tomogram TS_01", "WarpTools")


def test_volume_missing(project, findings, only):
    case = project("real_subtomo_halves")
    (case.path / "tomograms/TS_03_half2.mrc").unlink()
    read(findings, real_subtomo=True)
    only("volume-unreadable", "error", "tomograms/TS_03_half2.mrc", "tomogram TS_03")


def test_volume_not_named(project, findings, only):
    project("real_subtomo").rename_label(GLOBAL, "rlnTomoReconstructedTomogram")
    read(findings, {"TS_01"}, real_subtomo=True)
    only("missing-value", "error", "row 1", "rlnTomoReconstructedTomogramHalf1 and")


def test_halves_of_different_sizes(project, findings, only):
    case = project("real_subtomo_halves")
    write_image(case.path / "tomograms/TS_01_half2.mrc", (8, 8, 8))
    read(findings, real_subtomo=True)
    only("image-size", "error", "TS_01_half2.mrc", "found 8 x 8 x 8")


def test_binning_of_volumes_differs(project, findings, only):
    project("real_subtomo").set_value(GLOBAL, "rlnTomoTomogramBinning", 0, "2.02")
    read(findings, real_subtomo=True)
    only("tomogram-binning", "error", "found 2 to 2.02")


def test_binning_of_volumes_absent(project, findings, only):
    project("real_subtomo").rename_label(GLOBAL, "rlnTomoTomogramBinning")
    read(findings, real_subtomo=True)
    only("missing-column", "error", "rlnTomoTomogramBinning")


def test_findings_of_all_tables_come_together(project, findings):
    case = project()
    case.rename_label(GLOBAL, "rlnVoltage")
    case.rename_label(TILTS, "rlnDefocusU")
    case.set_value(TILTS, "rlnDefocusV", 1, "nan")
    case.replace("tilt_series/TS_03.star", "../frames/plain/TS_03_003", "absent/TS_03_003")
    case.set_value("tilt_series/TS_03.star", "rlnTomoYTilt", 1, "x")
    read(findings)
    assert sorted(codes(findings)) == [
        "image-missing",
        "missing-column",
        "missing-column",
        "not-a-number",
        "not-finite",
    ]


# Real files


def make_sparse_images(folder, names):
    """Write headers of empty tilt images of EMPIAR-10164, and files as long as they promise."""
    header = np.zeros((), mrc.HEADER_DTYPE.newbyteorder("<"))
    header["nx"], header["ny"], header["nz"] = 3710, 3838, 1
    header["mx"], header["my"], header["mz"] = 3710, 3838, 1
    header["cella"] = (3710 * 1.35, 3838 * 1.35, 1.35)
    header["mode"], header["map"], header["machst"][:2] = 2, b"MAP ", 0x44
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(header.tobytes())
            file.truncate(1024 + 3710 * 3838 * 4)


def test_empiar_10164(tmp_path, findings, monkeypatch):
    shutil.copytree(REAL / "empiar-10164" / "Denoise", tmp_path / "Denoise")
    monkeypatch.chdir(tmp_path)
    names = {
        word
        for path in tmp_path.rglob("TS_*.star")
        for word in path.read_text().split()
        if word.startswith("MotionCorr") and word.endswith("_0.mrc")
    }
    make_sparse_images(tmp_path, names)
    tomograms = read(findings, path="Denoise/job008/tomograms.star").tomograms
    assert not findings.items
    assert [t.name for t in tomograms] == ["TS_01", "TS_03", "TS_43", "TS_45", "TS_54"]
    assert {t.n_frames for t in tomograms} == {40, 41}
    assert {t.image_size_xy for t in tomograms} == {(3710, 3838)}
    assert {frame.path for t in tomograms for frame in t.frames} == names


def test_warptools_export_has_dummy_images(findings):
    path = next((REAL / "warp").glob("*_tomograms.star"))
    tomograms = read(findings, path=str(path)).tomograms
    assert len(tomograms) == 4
    assert tomograms[0].name == "Unt_083.tomostar"
    assert codes(findings) == ["dummy-images"] * 4


def test_default_findings_are_empty(project):
    project("int16_stack")
    findings = Findings()
    assert read(findings).tomograms[0].n_frames == 7
    assert not findings.items
