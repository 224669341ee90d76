"""The command `check`: every kind of bad input with a real file, and what a run makes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from project_copy import REFERENCE, ProjectCopy

from relion_pseudosubtomo.cli import SUBCOMMANDS, main
from relion_pseudosubtomo.findings import ADVICE
from relion_pseudosubtomo.io.fingerprint import MATHEMATICS, NUMBER
from relion_pseudosubtomo.io.lock import DirectoryLock

P, T, TILTS, MOTION = "particles.star", "tomograms.star", "tilt_series/TS_01.star", "motion.star"
OPTICS = """
data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnTomoTiltSeriesPixelSize #6
1 optics1 300 2.7 0.07 2.7
2 optics2 300 2.7 0.07 2.7
"""
LOCK_JOB = "a test"


def column(file: str, label: str, value: str, n_rows: int = 7) -> Callable[[ProjectCopy], None]:
    """Return a function that sets all values of a column."""

    def spoil(case: ProjectCopy) -> None:
        for row in range(n_rows):
            case.set_value(file, label, row, value)

    return spoil


def value(file: str, label: str, text: str, row: int = 0) -> Callable[[ProjectCopy], None]:
    """Return a function that sets one value."""
    return lambda case: case.set_value(file, label, row, text)


def copy(file: str, to: str) -> Callable[[ProjectCopy], None]:
    """Return a function that puts one file in the place of another."""

    def spoil(case: ProjectCopy) -> None:
        shutil.copy(case.path / file, case.path / to)

    return spoil


def text(file: str, old: str, new: str) -> Callable[[ProjectCopy], None]:
    """Return a function that replaces text."""
    return lambda case: case.replace(file, old, new)


def without(file: str, label: str) -> Callable[[ProjectCopy], None]:
    """Return a function that takes a column's label away."""
    return lambda case: case.rename_label(file, label, f"x{label}")


def write(file: str, content: str | bytes) -> Callable[[ProjectCopy], None]:
    """Return a function that writes a file."""

    def spoil(case: ProjectCopy) -> None:
        path = case.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def several(*spoils: Callable[[ProjectCopy], None]) -> Callable[[ProjectCopy], None]:
    """Return a function that does all of these."""

    def spoil(case: ProjectCopy) -> None:
        for one in spoils:
            one(case)

    return spoil


def with_optics(
    old: str = "", new: str = "", groups: tuple[str, ...] = ("1", "1", "2", "2", "2")
) -> Callable[[ProjectCopy], None]:
    """Return a function that adds an optics table, changed, and group numbers of the particles."""

    def spoil(case: ProjectCopy) -> None:
        path = case.path / P
        assert old in OPTICS
        lines = path.read_text().split("\n")
        if groups:
            first = max(i for i, line in enumerate(lines) if line.startswith("_")) + 1
            lines[first : first + 5] = [
                f"{line}\t{group}"
                for line, group in zip(lines[first : first + 5], groups, strict=True)
            ]
            lines.insert(first, "_rlnOpticsGroup #15")
        path.write_text("\n".join(lines) + OPTICS.replace(old, new))

    return spoil


def own_images(name: str, change: Callable[[Path], None]) -> Callable[[ProjectCopy], None]:
    """Return a function that gives the project tilt images of its own and changes one."""

    def spoil(case: ProjectCopy) -> None:
        shutil.copytree(REFERENCE / "frames" / "rotated_offsets", case.path / "own")
        case.replace(TILTS, "../frames/rotated_offsets", "own")
        change(case.path / "own" / name)

    return spoil


def write_bytes_at(place: int, content: bytes) -> Callable[[Path], None]:
    """Return a function that overwrites bytes of a file."""

    def change(path: Path) -> None:
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(content)

    return change


def scale_matrices(case: ProjectCopy) -> None:
    """Make all rows of the projection matrices twice as long."""
    path = case.path / T

    def double(match: re.Match[str]) -> str:
        return str([2 * number for number in json.loads(match[0])]).replace(" ", "")

    path.write_text(re.sub(r"\[[^]]*\]", double, path.read_text()))


def make_unreadable(case: ProjectCopy) -> None:
    """Put a folder where the tilt table is: unreadable for root too."""
    (case.path / TILTS).unlink()
    (case.path / TILTS).mkdir()


def scale_coordinates(factor: float, n_copies: int) -> Callable[[ProjectCopy], None]:
    """Return a function that scales the centred coordinates and repeats the particles."""

    def spoil(case: ProjectCopy) -> None:
        lines = (case.path / P).read_text().splitlines()
        rows = [line.split("\t") for line in lines if line.startswith("TS_")]
        head = lines[: next(i for i, line in enumerate(lines) if line.startswith("TS_"))]
        for copy in range(n_copies):
            for row in rows:
                moved = [f"{float(word) * factor:.6f}" for word in row[1:4]]
                head.append("\t".join([row[0], *moved, *row[4:-1], f"{row[-1]}x{copy}"]))
        (case.path / P).write_text("\n".join(head) + "\n")

    return spoil


def matrices_of_one_direction(case: ProjectCopy) -> None:
    """Give a RELION 4 project the matrices of its first tilt in all rows."""
    lines = (case.path / T).read_text().split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith("data_TS_01"))
    rows = [i for i in range(first, len(lines)) if lines[i].count("[") == 4][:7]
    matrices = [word for word in lines[rows[0]].split("\t") if word.startswith("[")]
    for row in rows:
        words = [word for word in lines[row].split("\t") if not word.startswith("[")]
        lines[row] = "\t".join([*words, *matrices])
    (case.path / T).write_text("\n".join(lines))


def drop_last_row(case: ProjectCopy) -> None:
    """Remove the last row of the first particle's trajectory."""
    lines = (case.path / MOTION).read_text().split("\n")
    last = lines.index("data_TS_01/2") - 1
    while not lines[last].strip() or lines[last].startswith("#"):
        last -= 1
    del lines[last]
    (case.path / MOTION).write_text("\n".join(lines))


def number_tables(case: ProjectCopy) -> None:
    """Name the trajectories 0, 1, 2, ..., as very old files do."""
    content = (case.path / MOTION).read_text()
    for number, name in enumerate(re.findall(r"data_TS\S+", content)):
        content = content.replace(f"{name}\n", f"data_{number}\n", 1)
    (case.path / MOTION).write_text(content)


@dataclass(frozen=True)
class Bad:
    """One kind of bad input: what is spoilt, which finding it gives and words of its message."""

    code: str
    severity: str
    spoil: Callable[[ProjectCopy], None]
    words: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    case: str = "rotated_trajectories"


def error(code: str, spoil: Callable[[ProjectCopy], None], *words: str, **more: object) -> Bad:
    """Return bad input that stops a run."""
    return Bad(code, "error", spoil, words, **more)  # type: ignore[arg-type]


def warning(code: str, spoil: Callable[[ProjectCopy], None], *words: str, **more: object) -> Bad:
    """Return bad input that does not stop a run."""
    return Bad(code, "warning", spoil, words, **more)  # type: ignore[arg-type]


def nothing(case: ProjectCopy) -> None:
    """Spoil nothing: the options are bad."""


def use_motion(*more: str) -> tuple[str, ...]:
    """Return options of a run with trajectories."""
    return ("--mot", MOTION, *more)


RESULTS = write("out/particles.star", "data_particles\n")
FORMER_OPTIONS = f'"{NUMBER}": "{MATHEMATICS}", "box": "40", "crop": "20", "binning": "4.0"'
FORMER_RUN = write("out/.completed/job.json", f"{{{FORMER_OPTIONS}}}")
FORMER_VERSION = write("out/.completed/job.json", f'{{{FORMER_OPTIONS}, "{NUMBER}": "0"}}')
NO_SIZES = several(*(without(T, f"rlnTomoSize{axis}") for axis in "XYZ"))
NO_ALIGNMENT = several(
    *(without(TILTS, f"rlnTomo{name}") for name in ("YTilt", "ZRot", "XShiftAngst", "YShiftAngst"))
)
UNTILTED = several(
    *(column(TILTS, f"rlnTomo{name}", "0.000000") for name in ("XTilt", "YTilt", "ZRot"))
)
UNDEFOCUSED = several(*(column(TILTS, f"rlnDefocus{axis}", "0") for axis in "UV"))

BAD = [
    # options
    error("bad-box", nothing, "--b", "found 41", arguments=("--b", "41")),
    error("bad-box", nothing, "--crop", "at most --b (40)", arguments=("--crop", "60")),
    error("bad-option", nothing, "--bin", "at least 1", arguments=("--bin", "0.5")),
    error("bad-option", nothing, "100 times 1e+308", arguments=("--bin", "1e308", "--b", "100")),
    error("option-combination", nothing, "--sum", arguments=("--stack2d", "--sum")),
    error(
        "option-combination",
        nothing,
        "--real_subtomo together with --exact_centre",
        arguments=("--real_subtomo", "--exact_centre"),
        case="real_subtomo",
    ),
    warning("odd-window", nothing, "65 unbinned", arguments=("--b", "50", "--bin", "1.3")),
    warning(
        "fractional-window",
        nothing,
        "0.9951 of their size",
        "0.118 binned pixels off centre",
        "40, 60",
        arguments=("--b", "48", "--bin", "1.7"),
    ),
    error("missing-input", nothing, "no tomograms", arguments=("--t", "None")),
    error("only-tomogram", nothing, "as TS_01", arguments=("--only_tomogram", "TS_1")),
    error("output-directory", write("out", "a file"), "expected a directory"),
    error("output-foreign", RESULTS, "found particles.star"),
    error("output-foreign", RESULTS, "remove these files", arguments=("--overwrite",)),
    error("output-foreign", write("out/positions2d/TS_01.star", ""), "files in positions2d"),
    error("output-foreign", write("out/for_relion4/mine.star", ""), "files in for_relion4"),
    error("output-foreign", write("out/sum_data.mrc", ""), "found sum_data.mrc"),
    error("input-replaced", nothing, P, "expected files outside ./", arguments=("--o", "./")),
    error("output-exists", FORMER_RUN, "found results of another run"),
    error(
        "output-options", FORMER_RUN, "expected 4.0, found 2.0", arguments=("--only_do_unfinished",)
    ),
    error(
        "output-version",
        FORMER_VERSION,
        f"expected {NUMBER} {MATHEMATICS}, found 0",
        arguments=("--only_do_unfinished",),
    ),
    # STAR files
    error("missing-file", lambda case: (case.path / P).unlink(), f"missing in {P}"),
    error("missing-file", lambda case: (case.path / TILTS).unlink(), TILTS),
    error("unreadable-file", make_unreadable, TILTS),
    error("star-syntax", text(P, "loop_", ""), P, "line"),
    error("star-syntax", write(T, b"\x93\0\1"), "not a text file"),
    error("star-syntax", write(T, ""), "empty file"),
    error("missing-table", text(TILTS, "data_TS_01", "data_x\n_a 1\n\ndata_y"), "no tilt table"),
    error("missing-table", write(P, "data_x\n_a 1\n"), "expected a table data_particles"),
    error("missing-table", copy(T, P), "expected a table data_particles, found tables global"),
    error("missing-table", copy(P, T), "expected a table data_global, found tables", "particles"),
    warning("table-name", text(P, "data_particles", "data_"), "found data_. The table is used"),
    warning("table-name", text(P, "data_particles", "data_picks"), "found data_picks"),
    error("missing-column", without(T, "rlnTomoHand"), "no column rlnTomoHand", T, "table global"),
    error("missing-column", without(P, "rlnCenteredCoordinateXAngst"), "no coordinates"),
    error("missing-column", NO_ALIGNMENT, "no alignment", TILTS),
    error("missing-value", value(T, "rlnVoltage", "None"), "no rlnVoltage", "row 1"),
    error("not-a-number", value(TILTS, "rlnDefocusU", "2e", 3), "row 4", "found '2e'"),
    error("not-finite", value(P, "rlnAngleRot", "nan", 1), "row 2", "found 'nan'"),
    error("not-finite", value(TILTS, "rlnMicrographPreExposure", "inf"), "row 1"),
    error("bad-value", value(T, "rlnAmplitudeContrast", "7"), "fraction in [0, 1], found 7"),
    error("bad-value", value(TILTS, "rlnMicrographPreExposure", "-3", 2), "row 3", "found -3"),
    error(
        "bad-vector",
        text(TILTS, "[", "[1,"),
        "expected 3 values",
        "found 4 values",
        case="deform_linear",
    ),
    error(
        "optimisation-set",
        write("o.star", "data_\nloop_\n_rlnTomoParticlesFile #1\na.star\nb.star\n"),
        "found 2 rows",
        arguments=("--i", "o.star"),
    ),
    # tomograms
    error("no-tomograms", write(T, "data_global\nloop_\n_rlnTomoName #1\n"), "no tomogram in"),
    error("duplicate-tomogram", value(T, "rlnTomoName", "TS_01", 1), "found TS_01"),
    error("unsafe-name", value(T, "rlnTomoName", "../TS_01"), "'../TS_01'"),
    error("unsafe-name", value(P, "rlnTomoParticleName", "/etc/x"), "'/etc/x'"),
    error("unsafe-name", value(P, "rlnTomoParticleName", "TS_01/.a.tmp-1-2"), ".a.tmp-1-2"),
    error("long-name", value(P, "rlnTomoParticleName", "x" * 300), "180 bytes"),
    error("long-name", value(P, "rlnTomoParticleName", "x/" * 200), "255 in all"),
    warning("missing-size", NO_SIZES, "taken as -999"),
    warning("odd-size", value(T, "rlnTomoSizeX", "193"), "TS_01", "--exact_centre"),
    warning("alignment-zero", UNTILTED, "rlnTomoYTilt are 0 in all rows", TILTS),
    warning(
        "alignment-zero",
        matrices_of_one_direction,
        "the same in all rows",
        case="legacy_relion4_2d",
    ),
    warning("dose-zero", column(TILTS, "rlnMicrographPreExposure", "0"), "0 in all rows", TILTS),
    warning(
        "dose-repeated", value(TILTS, "rlnMicrographPreExposure", "0", 6), "row 4, 7", "found 0"
    ),
    warning("defocus-range", value(TILTS, "rlnDefocusU", "2.1", 4), "row 5", "1000 to 200000 A"),
    warning("defocus-range", value(TILTS, "rlnDefocusV", "250000", 1), "row 2"),
    warning("ctf-zero", UNDEFOCUSED, "rlnDefocusU and rlnDefocusV are 0"),
    warning(
        "global-rotation",
        several(
            text(T, "_rlnTomoImportFractionalDose", "_rlnTomoZRot"), without(TILTS, "rlnTomoZRot")
        ),
        "rlnTomoZRot of the global table used",
    ),
    warning(
        "deformation-ignored",
        without(T, "rlnTomoDeformationType"),
        "rlnTomoDeformationCoefficients not used",
        case="deform_linear",
    ),
    error(
        "no-frames",
        lambda case: (case.path / TILTS).write_text("data_TS_01\nloop_\n_rlnMicrographName #1\n"),
        "no tilt images",
    ),
    error(
        "frame-count",
        text(T, "legacy/TS_01.mrcs\t7", "legacy/TS_01.mrcs\t9"),
        "expected 7",
        case="legacy_relion4_2d",
    ),
    error("image-missing", text(TILTS, "TS_01_003", "TS_01_093"), "row 4", "TS_01_093.mrc"),
    error(
        "image-unreadable",
        own_images("TS_01_001.mrc", lambda path: os.truncate(path, 2000)),
        "truncated",
        "found 2000",
    ),
    error(
        "image-unreadable",
        own_images("TS_01_001.mrc", write_bytes_at(12, b"\4\0\0\0")),
        "MRC mode",
        "found 4",
    ),
    error(
        "image-index",
        text(TILTS, "../frames/rotated_offsets/TS_01_000", "3@../frames/rotated_offsets/TS_01_000"),
        "found 3@",
    ),
    error("image-size", text(TILTS, "rotated_offsets/TS_01_000", "plain/TS_03_000"), "row 1"),
    warning(
        "pixel-size",
        own_images("TS_01_001.mrc", write_bytes_at(40, np.float32(9999).tobytes())),
        "expected 2.7 A",
    ),
    error(
        "dummy-images",
        text(TILTS, "../frames/rotated_offsets/TS_01_000.mrc", "dummy_tiltseries.mrc"),
        "dummy_tiltseries.mrc stands for",
    ),
    error(
        "volume-unreadable",
        lambda case: shutil.rmtree(case.path / "tomograms"),
        "reconstructed volume not readable",
        arguments=("--real_subtomo",),
        case="real_subtomo",
    ),
    error(
        "tomogram-binning",
        value(T, "rlnTomoTomogramBinning", "4"),
        "found 2 to 4",
        arguments=("--real_subtomo",),
        case="real_subtomo",
    ),
    # particles
    error("no-particles", column(P, "rlnTomoName", "TS_99", 5), "found TS_99"),
    warning("unknown-tomogram", value(P, "rlnTomoName", "TS_99"), "1 particle", "TS_99"),
    warning("unused-tomogram", column(P, "rlnTomoName", "TS_01", 5), "found TS_03"),
    error(
        "duplicate-particle",
        value(P, "rlnTomoParticleName", "TS_01/1", 3),
        "1 particle name repeated",
        "found TS_01/1",
        "--rename_duplicates",
    ),
    warning(
        "renamed-particle",
        value(P, "rlnTomoParticleName", "TS_01/1", 3),
        "1 particle renamed",
        arguments=("--rename_duplicates",),
    ),
    warning(
        "half-sets",
        lambda case: case.rename_label(P, "rlnAnglePsi", "rlnRandomSubset"),
        "rlnRandomSubset of 5 particles",
        "row 1-5 (5 in all): expected 1 or 2",
    ),
    error(
        "same-file",
        several(
            value(P, "rlnTomoParticleName", "TS_01/1_data.mrc/7", 1),
            value(P, "rlnTomoParticleName", "TS_01/1", 0),
        ),
        "Subtomograms/TS_01/1_data.mrc has to be a file and a folder",
    ),
    error("nothing-left", nothing, "Dropped 5", arguments=("--min_frames", "8")),
    warning(
        "coordinates",
        scale_coordinates(0.2, 20),
        "look scaled",
        "fill the middle",
        "Median projected position",
    ),
    warning(
        "coordinates", scale_coordinates(1.5, 1), "neither binned nor off centre", "40% dropped"
    ),
    warning(
        "optics-filled",
        with_optics("_rlnSphericalAberration", "_rlnOther"),
        "no rlnSphericalAberration",
        "found 2.700000 in tomograms.star, filled in",
    ),
    warning("optics-filled", with_optics(groups=()), "the groups by rlnOpticsGroupName"),
    error("optics-group", with_optics("\n2 optics2", "\n7 optics2"), "found 2"),
    error(
        "not-a-number",
        with_optics("\n2 optics2 300", "\n2 optics2 abc"),
        "rlnVoltage",
        "found 'abc'",
    ),
    error(
        "not-finite",
        with_optics("300 2.7 0.07 2.7\n2", "300 nan 0.07 2.7\n2"),
        "rlnSphericalAberration in particles.star, table optics, row 1",
    ),
    error(
        "not-finite",
        with_optics("300 2.7 0.07 2.7\n2", "300 2.7 inf 2.7\n2"),
        "rlnAmplitudeContrast",
    ),
    error("optics-disagree", with_optics("0.07 2.7\n2", "0.07 1.35\n2"), "expected 2.7", "1.35"),
    error(
        "optics-mixed",
        value(T, "rlnVoltage", "200"),
        "rlnVoltage of rlnOpticsGroupName shared in tomograms.star",
        "found 300 for TS_03; 200 for TS_01",
        case="mixed_order_one_optics",
    ),
    # trajectories
    error(
        "trajectory-missing",
        text(MOTION, "data_TS_0", "data_TS_4"),
        "found one for 0 of 5 particles",
        arguments=use_motion(),
    ),
    error(
        "trajectory-renamed",
        value(P, "rlnTomoParticleName", "TS_01/1", 3),
        MOTION,
        arguments=use_motion("--rename_duplicates"),
    ),
    error(
        "trajectory-frames",
        drop_last_row,
        "expected 7, found 6",
        arguments=use_motion(),
    ),
    warning(
        "trajectory-order",
        number_tables,
        "taken in the order of",
        arguments=use_motion(),
    ),
    # dialects
    error(
        "dialect-rotation",
        scale_matrices,
        "--for tomodrgn and cryodrgn",
        "expected rotations",
        arguments=("--stack2d", "--for", "cryodrgn", "--for", "tomodrgn"),
        case="legacy_relion4_2d",
    ),
    warning(
        "dialect-coordinates",
        value(P, "rlnCenteredCoordinateZAngst", "-110"),
        "1 particle at negative coordinates",
        arguments=("--stack2d", "--for", "tomodrgn"),
    ),
    error(
        "dialect-name",
        text(T, "optics1", "'optics 1'"),
        "found 'optics 1'",
        arguments=("--stack2d", "--for", "tomodrgn"),
    ),
    error(
        "dialect-name",
        with_optics("\n2 optics2", "\n2 'my optics'"),
        "in particles.star: expected no spaces, found 'my optics'",
        arguments=("--stack2d", "--for", "tomodrgn"),
    ),
    error(
        "dialect-offsets",
        nothing,
        "with offsets that --for cryodrgn would lose in particles.star, particle TS_01/1, ",
        "expected 0 in rlnOriginXAngst, ",
        arguments=("--stack2d", "--for", "cryodrgn", "--dont_apply_offsets"),
        case="poses_offsets_2d",
    ),
    warning(
        "dialect-ctf",
        nothing,
        "rlnPhaseShift, which --for cryodrgn takes for 0 in tomograms.star, tomogram TS_01, ",
        arguments=("--stack2d", "--for", "cryodrgn"),
        case="ctf_extra",
    ),
    warning(
        "dialect-ctf",
        nothing,
        "rlnEvenZernike, which --for tomodrgn takes for 0 in tomograms.star, tomogram TS_01, ",
        arguments=("--stack2d", "--for", "tomodrgn"),
        case="aberrations_2d",
    ),
    warning(
        "dialect-ctf",
        nothing,
        "rlnTomoDefocusSlope, which --for tomodrgn takes for 1 in tomograms.star, tomogram TS_01, ",
        arguments=("--stack2d", "--for", "tomodrgn"),
        case="ctf_extra",
    ),
]


def case_name(bad: Bad) -> str:
    """Return the code: pytest numbers those that come again."""
    return bad.code


def list_files(folder: Path) -> dict[str, bytes]:
    """Return all files of a project by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def arguments_of(bad: Bad) -> list[str]:
    """Return the command line without the command; later options win."""
    return (
        f"--p {P} --t {T} --o out --b 40 --crop 20 --bin 2 --j 1 {' '.join(bad.arguments)}".split()
    )


@pytest.mark.parametrize("bad", BAD, ids=case_name)
def test_check_names_what_is_wrong(
    bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code, severity, place and advice in one line; the exit status; nothing is written."""
    case = ProjectCopy(tmp_path, bad.case)
    monkeypatch.chdir(case.path)
    bad.spoil(case)
    before = list_files(case.path)
    status = main(["check", *arguments_of(bad)])
    output = capsys.readouterr().out
    lines = [
        line for line in output.splitlines() if line.startswith(f"{bad.severity} [{bad.code}]")
    ]
    assert lines, output
    assert any(all(word in line for word in bad.words) for line in lines), lines
    assert all(line.endswith(ADVICE[bad.code]) for line in lines)
    assert status == (1 if bad.severity == "error" else 0), output
    assert list_files(case.path) == before


@pytest.mark.parametrize("bad", [bad for bad in BAD if bad.severity == "error"], ids=case_name)
def test_a_run_stops_at_the_same_errors(
    bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written."""
    case = ProjectCopy(tmp_path, bad.case)
    monkeypatch.chdir(case.path)
    bad.spoil(case)
    before = list_files(case.path)
    assert main(arguments_of(bad)) == 1
    assert f"error [{bad.code}]" in capsys.readouterr().err
    assert list_files(case.path) == before


def test_the_directory_of_another_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While its lock is held."""
    case = ProjectCopy(tmp_path, "rotated_trajectories")
    monkeypatch.chdir(case.path)
    (case.path / "out").mkdir()
    with DirectoryLock("out", job=LOCK_JOB):
        assert main(["check", *arguments_of(BAD[0])[:-2]]) == 1
    assert "error [output-locked]" in capsys.readouterr().out


def test_every_code_of_the_input_is_covered() -> None:
    """A code without a bad file that gives it would be a message nobody has seen."""
    untested = {code for code in ADVICE if code not in {bad.code for bad in BAD}}
    # tested above, in test_report.py and in test_average_option.py: no single file gives them
    untested -= {"output-locked", "missing-package", "sum-pixel-size"}
    assert not {code for code in untested if not code.startswith("result-")}


def test_good_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No finding, exit status 0."""
    case = ProjectCopy(tmp_path, "rotated_trajectories")
    monkeypatch.chdir(case.path)
    assert main(["check", *arguments_of(Bad("", "", nothing, (), use_motion()))]) == 0
    output = capsys.readouterr()
    assert output.out == ("5 particles in, 5 kept, in 2 tomograms\n0 errors, 0 warnings\n")
    assert not output.err
    assert not (case.path / "out").exists()


def test_check_lists_all_of_one_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run shows ten lines of a code, check all."""
    case = ProjectCopy(tmp_path, "rotated_trajectories")
    monkeypatch.chdir(case.path)
    labels = ("Angle", "TomoSubtomogram")
    for label in [f"rln{kind}{angle}" for kind in labels for angle in ("Rot", "Tilt", "Psi")]:
        case.set_value(P, label, 0, "x")
    for label in ("DefocusU", "DefocusV", "DefocusAngle", "TomoYTilt", "TomoZRot", "TomoXTilt"):
        case.set_value(TILTS, f"rln{label}", 0, "x")
    assert main(["check", *arguments_of(Bad("", "", nothing, ()))]) == 1
    assert capsys.readouterr().out.count("error [not-a-number]") == 12


@pytest.mark.parametrize("command", sorted(SUBCOMMANDS))
def test_help_of_commands(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has its own, and the program's names them all."""
    assert main([command, "--help"]) == 0
    assert f"relion_pseudosubtomo {command}" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert f"relion_pseudosubtomo {command} --help" in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(SUBCOMMANDS))
def test_command_line_that_is_wrong(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and where help is."""
    assert main([command, "--xyzzy", "1"]) == 2
    assert f"relion_pseudosubtomo {command} --help" in capsys.readouterr().err


def test_command_that_is_mistyped(capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest one is named."""
    assert main(["chek", "--b", "40", "--o", "out"]) == 2
    assert "unknown command chek (did you mean check?)" in capsys.readouterr().err
    assert main(["foo", "--b", "40", "--o", "out"]) == 2
    assert "unknown command foo. Commands are check, verify" in capsys.readouterr().err


def test_a_column_that_is_missing_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Doses that are not there are not found to be repeated."""
    case = ProjectCopy(tmp_path, "basic_2d")
    monkeypatch.chdir(case.path)
    without(TILTS, "rlnMicrographPreExposure")(case)
    assert main(["check", *arguments_of(Bad("", "", nothing, ()))]) == 1
    output = capsys.readouterr().out
    assert "error [missing-column] no column rlnMicrographPreExposure" in output
    assert "dose-repeated" not in output
