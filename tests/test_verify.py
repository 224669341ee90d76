"""The command `verify`: clean directories pass, planted damage is found by its code."""

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
from mrcfile.dtypes import HEADER_DTYPE
from project_copy import REFERENCE, ProjectCopy

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.cli import main
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import ADVICE, Findings
from relion_pseudosubtomo.io import mrc
from relion_pseudosubtomo.io.star import StarTable, read_star, write_star
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.verification.visibility import parse_flags

INPUT = ["--p", "particles.star", "--t", "tomograms.star", "--o", "out", "--j", "1"]
BOX = ["--b", "64", "--crop", "32", "--bin", "2"]
STACK, VOLUME = "out/Subtomograms/TS_01/1_stack2d.mrcs", "out/Subtomograms/TS_01/1_data.mrc"
WEIGHTS = "out/Subtomograms/TS_01/1_weights.mrc"
CTF2 = "out/Subtomograms/TS_01/1_CTF2.mrc"
RECORD = "out/.completed/TS_01/0-2.json"
#: RELION's runs with --sum write STAR files that name images that do not exist.
INCOMPLETE = ("sum", "sum_cone")
CASES = sorted(path.name for path in REFERENCE.iterdir() if (path / "relion").exists())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ProjectCopy]:
    """Return a function that copies a reference case's input and starts in it."""

    def copy(case: str = "basic_2d") -> ProjectCopy:
        made = ProjectCopy(tmp_path, case)
        monkeypatch.chdir(made.path)
        return made

    return copy


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return projects with results in out/, 2D and 3D; do not write."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        for kind, words in (("2d", ["--stack2d"]), ("3d", ["--ctf"])):
            case = ProjectCopy(tmp_path_factory.mktemp(kind), "basic_2d")
            patch.chdir(case.path)
            assert main([*INPUT, *BOX, *words]) == 0
            folders[kind] = case.path.parent
    return folders


@pytest.fixture
def spoilt(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Return a function that copies a finished project, with its times, and starts in it."""

    def copy(kind: str) -> None:
        target = tmp_path / kind
        shutil.copytree(finished[kind], target, symlinks=True)
        monkeypatch.chdir(target / "case")

    return copy


def verify(
    capsys: pytest.CaptureFixture[str], *words: str, directory: str = "out"
) -> tuple[int, dict[str, str]]:
    """Verify a directory; return the exit status and the lines of each code."""
    capsys.readouterr()
    status = main(["verify", directory, *words])
    output = capsys.readouterr()
    assert not output.err
    found: dict[str, str] = {}
    for line in output.out.splitlines():
        if match := re.match(r"(?:error|warning) \[(.*?)\]", line):
            found[match[1]] = f"{found.get(match[1], '')}{line}\n"
    return status, found


# Clean directories


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("basic_2d", ["--stack2d"]),
        ("basic_2d", ["--stack2d", "--float16", "--max_dose", "10"]),
        ("basic_2d", ["--float16", "--ctf", "--multi", "--div", "--nrm"]),
        ("basic_2d", ["--no_comb", "--no_ctf"]),
        ("basic_2d", ["--stack2d", "--exact_centre", "--bin", "1.7"]),
        ("basic_2d", ["--stack2d", "--dont_apply_offsets", "--no_circle_crop"]),
        ("poses_offsets_2d", ["--stack2d"]),
        ("poses_offsets_3d", ["--apply_orientations"]),
        ("poses_dont_apply_offsets", ["--stack2d", "--dont_apply_offsets"]),
        ("trajectories_2d_drop", ["--stack2d", "--mot", "motion.star", "--min_frames", "5"]),
        ("rotated_trajectories", ["--mot", "motion.star"]),
        ("legacy_relion4_2d", ["--stack2d"]),
        ("names_without_slash", ["--stack2d"]),
        ("deform_spline", ["--stack2d", "--min_frames", "4"]),
        ("odd_sizes_2d", ["--stack2d", "--exact_centre"]),
        ("real_subtomo", ["--real_subtomo"]),
        ("sum", ["--sum"]),
        ("basic_2d", ["--stack2d", "--no_ctf"]),
        ("basic_2d", ["--no_ctf", "--nrm", "--multi"]),
        ("basic_2d", ["--for", "relion4"]),
        ("real_subtomo", ["--real_subtomo", "--hdf5", "--no_mrc"]),
    ],
)
def test_clean_runs_pass(
    project: Callable[[str], ProjectCopy],
    capsys: pytest.CaptureFixture[str],
    case: str,
    words: list[str],
) -> None:
    """2D and 3D, half precision, dropped particles, trajectories, every layout."""
    project(case)
    assert main([*INPUT, *BOX, *words]) == 0
    assert verify(capsys, "--deep") == (0, {})


def test_run_from_an_optimisation_set(
    project: Callable[[str], ProjectCopy], capsys: pytest.CaptureFixture[str]
) -> None:
    """Direct entries or not makes no difference."""
    case = project("rotated_trajectories")
    (case.path / "o.star").write_text(
        "data_\n_rlnTomoParticlesFile particles.star\n_rlnTomoTomogramsFile tomograms.star\n"
        "_rlnTomoTrajectoriesFile motion.star\n"
    )
    assert main(["--i", "o.star", "--o", "out/", "--j", "1", *BOX, "--stack2d"]) == 0
    assert verify(capsys, "--deep") == (0, {})


def test_names_with_the_number_of_an_image(
    project: Callable[[str], ProjectCopy], capsys: pytest.CaptureFixture[str]
) -> None:
    """As in particles_for_class2d.star, and in what Class2D and Select make of it."""
    project("real_subtomo")
    assert main([*INPUT, *BOX, "--real_subtomo"]) == 0
    table = "out/particles_for_class2d.star"
    assert "@out/Subtomograms/" in Path(table).read_text()
    assert "result-missing" not in verify(capsys, "--particles", table)[1]
    next(Path("out/Subtomograms/TS_01").glob("*_data.mrc")).unlink()
    assert "result-missing" in verify(capsys, "--particles", table)[1]


def test_run_without_images(
    project: Callable[[str], ProjectCopy], capsys: pytest.CaptureFixture[str]
) -> None:
    """Sums alone: there is nothing to verify, and nothing to continue."""
    project("basic_3d")
    assert main([*INPUT, *BOX, "--sum", "--no_writing"]) == 0
    status, found = verify(capsys)
    assert status == 0
    assert list(found) == ["result-none"]


@pytest.mark.parametrize("words", [[], ["--hdf5"], ["--hdf5", "--no_mrc"]], ids=" ".join)
def test_continued_run(
    project: Callable[[str], ProjectCopy], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """One tomogram first, then the others."""
    project("basic_2d")
    words = [*INPUT, *BOX, "--stack2d", *words]
    assert main([*words, "--only_tomogram", "TS_03"]) == 0
    assert verify(capsys, "--deep") == (0, {})
    assert main([*words, "--only_do_unfinished"]) == 0
    assert verify(capsys, "--deep") == (0, {})
    if "--no_mrc" in words:
        assert main(["unpack", "out"]) == 0
    # a table of one tomogram beside the results of both
    assert main([*words, "--only_do_unfinished", "--only_tomogram", "TS_03"]) == 0
    status, found = verify(capsys)
    assert (status, list(found)) == (0, ["result-orphan"])
    assert "tomograms that are not in the table" in found["result-orphan"]


@pytest.mark.parametrize("case", ["basic_2d", "names_without_slash"])
def test_tomogram_that_failed_half_way(
    case: str,
    project: Callable[[str], ProjectCopy],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With --allow_failures its files stay, of which dropped.star tells; others are none of it."""
    project(case)
    real = mrc.write_mrc
    paths: list[Path] = []

    def write(path: Path, *arguments: object, **more: object) -> object:
        paths.append(path)
        if len(paths) == 2:
            raise InputError("a page of the image could not be read")
        return real(path, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(mrc, "write_mrc", write)
        assert main([*INPUT, *BOX, "--stack2d", "--allow_failures"]) == 0
    assert paths[0].exists()
    status, found = verify(capsys)
    assert (status, list(found)) == (0, ["result-orphan"])
    said = f"1 file of tomograms that are not in the table in out: found {paths[0]}"
    assert said in found["result-orphan"]
    shutil.copy(paths[0], paths[0].with_name("99_stack2d.mrcs"))
    assert verify(capsys)[0] == 1


def test_tilt_images_are_not_needed(
    spoilt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """They may be archived by then; but what is not checked then is said."""
    for kind in ("3d", "2d"):
        spoilt(kind)
        Path("../frames").unlink()
        status, found = verify(capsys, "--deep")
        assert (status, list(found)) == (0, ["result-unchecked"] if kind == "2d" else [])
    said = found["result-unchecked"]
    assert said.startswith(
        "warning [result-unchecked] geometry not checked for TS_01, TS_03: tilt "
    )
    assert "missing in tilt_series/TS_01.star" in said


@pytest.mark.parametrize("case", CASES)
def test_output_of_relion(
    project: Callable[[str], ProjectCopy], capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """Its own directories pass where they are whole; its MRC files are not as the standard says."""
    path = project(case).path
    (path / "relion").symlink_to(REFERENCE / case / "relion")
    status = main(["verify", "relion", "--deep"])
    output = capsys.readouterr().out
    codes = re.findall(r"^(\w+ \[.*?\])", output, re.MULTILINE)
    if case in INCOMPLETE:
        assert (status, codes) == (1, ["error [result-missing]"])
    else:
        assert (status, codes) == (0, ["warning [result-format]"]), output


def test_names_with_at(
    project: Callable[[str], ProjectCopy], capsys: pytest.CaptureFixture[str]
) -> None:
    """Only digits before it are the number of an image in a stack."""
    path = project("basic_2d").path
    for file in path.rglob("*.star"):
        text = file.read_text().replace("TS_0", "TS@").replace("plain/TS@", "plain/TS_0")
        file.with_name(file.name.replace("TS_0", "TS@")).write_text(text)
    assert main([*INPUT, *BOX, "--stack2d"]) == 0
    assert Path(STACK.replace("TS_0", "TS@")).exists()
    assert verify(capsys, "--deep") == (0, {})


# Damage


def change_header(path: str, **values: object) -> None:
    """Change fields of an MRC header; the file seems untouched since."""
    status = os.stat(path)
    with open(path, "r+b") as file:
        header = np.frombuffer(file.read(1024), HEADER_DTYPE).copy()
        for name, value in values.items():
            header[name] = value
        file.seek(0)
        file.write(header.tobytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def change_values(path: str, change: Callable[[np.ndarray], None]) -> None:
    """Change the values of a float32 MRC file; the file seems untouched since."""
    status = os.stat(path)
    with open(path, "r+b") as file:
        header = np.frombuffer(file.read(1024), HEADER_DTYPE)[0]
        values = np.frombuffer(file.read(), np.float32)
        values = values.reshape(header["nz"], header["ny"], header["nx"]).copy()
        change(values)
        file.seek(1024)
        file.write(values.tobytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def change_table(
    name: str, change: Callable[[Columns], None], path: str = "out/particles.star", to: str = ""
) -> None:
    """Change the columns of a table of a STAR file."""
    star = read_star(path, Findings())
    assert star is not None
    tables = dict(star.tables)
    columns = dict(tables[name].columns)
    change(columns)
    tables[name] = StarTable(name, columns, tables[name].is_list)
    write_star(to or path, tables.values())


def set_value(label: str, row: int, text: str) -> Callable[[Columns], None]:
    """Return a change of one value."""

    def change(columns: Columns) -> None:
        columns[label] = columns[label].copy()
        columns[label][row] = text

    return change


def drop(label: str) -> Callable[[Columns], None]:
    """Return a change that takes a column away."""

    def change(columns: Columns) -> None:
        del columns[label]

    return change


def swap_rows(label: str, a: int, b: int) -> Callable[[Columns], None]:
    """Return a change that swaps two values of a column."""

    def change(columns: Columns) -> None:
        columns[label] = columns[label].copy()
        columns[label][[a, b]] = columns[label][[b, a]]

    return change


def move_flag(columns: Columns) -> None:
    """Give a particle visible frames of the same number elsewhere."""
    flags = list(columns[labels.VISIBLE_FRAMES][3].strip("[]").split(","))
    first, last = flags.index("1"), len(flags) - 1 - flags[::-1].index("0")
    flags[first], flags[last] = "0", "1"
    set_value(labels.VISIBLE_FRAMES, 3, f"[{','.join(flags)}]")(columns)


def add_flag(columns: Columns) -> None:
    """Lengthen a vector by a frame that is not visible."""
    text = columns[labels.VISIBLE_FRAMES][0]
    set_value(labels.VISIBLE_FRAMES, 0, f"{text[:-1]},0]")(columns)


def fewer_slices() -> None:
    """Take the last image of a stack away."""
    with open(STACK, "r+b") as file:
        file.truncate(os.path.getsize(STACK) - 4 * 32 * 32)
    change_header(STACK, nz=6)


def truncate() -> None:
    """Cut a file short."""
    os.truncate(STACK, 3000)


def write_text(path: str, text: str) -> Callable[[], None]:
    """Return a function that writes a file."""

    def write() -> None:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text)

    return write


def in_table(name: str, change: Callable[[Columns], None], **more: str) -> Callable[[], None]:
    """Return a function that changes a table."""
    return lambda: change_table(name, change, **more)


def header(path: str, **values: object) -> Callable[[], None]:
    """Return a function that changes a header."""
    return lambda: change_header(path, **values)


def values(path: str, change: Callable[[np.ndarray], None]) -> Callable[[], None]:
    """Return a function that changes values."""
    return lambda: change_values(path, change)


def put(value: float, *place: int | slice) -> Callable[[np.ndarray], None]:
    """Return a function that sets values of an array."""
    return lambda array: array.__setitem__(place, value)


def rename_images() -> None:
    """Let the table name the images of a directory of another name, as it does in a copy."""
    table = Path("out/particles.star")
    table.write_text(table.read_text().replace("out/Subtomograms/", "former/Subtomograms/"))


@dataclass(frozen=True)
class Damage:
    """Planted damage, the code that has to be found, and words of its line."""

    code: str
    kind: str
    plant: Callable[[], object]
    words: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    status: int = 1


DEEP = ("--deep",)
FLAGS = labels.VISIBLE_FRAMES
DAMAGES = [
    Damage("result-missing", "2d", lambda: Path(STACK).unlink(), (STACK, "row 1,", "TS_01/1")),
    Damage("result-missing", "3d", lambda: Path(WEIGHTS).unlink(), (WEIGHTS,)),
    Damage("result-elsewhere", "2d", rename_images, ("images in out", "found former/")),
    Damage(
        "result-missing",
        "3d",
        lambda: Path(WEIGHTS.replace("weights", "CTF2")).unlink(),
        ("1_CTF2.mrc",),
    ),
    Damage("result-unreadable", "2d", truncate, ("truncated", "found 3000")),
    Damage("result-unreadable", "2d", header(STACK, mode=4), ("MRC mode",)),
    Damage("result-unreadable", "2d", write_text(STACK, ""), ("no MRC file",)),
    Damage("result-format", "2d", header(STACK, nversion=0), ("version 0",)),
    Damage("result-format", "2d", header(STACK, ispg=1), ("mz 1 for ispg 1",)),
    Damage("result-format", "3d", header(VOLUME, map=b"MOP "), ("no 'MAP '",)),
    Damage("result-mode", "2d", header(STACK, mode=12), also=("result-format",)),
    Damage(
        "result-size", "3d", header(VOLUME, nz=16, mz=16), ("32 x 32 x 16",), (), ("result-format",)
    ),
    Damage("result-size", "2d", header(STACK, nx=16, ny=64), ("16 x 64 x 7",)),
    Damage("result-pixel-size", "2d", header(STACK, cella=(32.0, 32.0, 1.0)), ("5.4",)),
    Damage("result-pixel-size", "3d", header(WEIGHTS, cella=(9.0, 32.0, 64.0)), ("0.185",)),
    Damage("result-slices", "2d", fewer_slices, ("6 images for 7",), (), ("result-changed",)),
    Damage(
        "result-slices",
        "2d",
        in_table("particles", swap_rows(FLAGS, 0, 3)),
        (),
        (),
        ("result-geometry",),
    ),
    Damage("result-visible", "2d", in_table("particles", drop(FLAGS)), ("lost",)),
    Damage("result-visible", "2d", in_table("particles", set_value(FLAGS, 1, "nan")), ("'nan'",)),
    Damage("result-visible", "2d", in_table("particles", set_value(FLAGS, 1, "[1.0,0.0]"))),
    Damage("result-frames", "2d", in_table("particles", add_flag), ("8 flags for 7 frames",)),
    Damage("result-geometry", "2d", in_table("particles", move_flag), ("row 4", "frames")),
    Damage(
        "optics-disagree",
        "2d",
        in_table("optics", set_value(labels.VOLTAGE, 0, "299.9")),
        ("expected 300", "299.9"),
    ),
    Damage(
        "result-pixel-size", "2d", in_table("optics", set_value(labels.IMAGE_PIXEL_SIZE, 0, "5.5"))
    ),
    Damage(
        "result-size", "2d", in_table("optics", set_value(labels.IMAGE_SIZE, 1, "48")), ("row 3",)
    ),
    Damage("missing-table", "2d", in_table("optics", dict.clear), ("no optics",)),
    Damage("result-record", "2d", lambda: Path(RECORD).unlink(), ("without a completion record",)),
    Damage("result-record", "2d", write_text(RECORD, "{"), ("1 completion record damaged",)),
    Damage("result-record", "2d", write_text("out/.completed/job.json", "{"), ("not readable",)),
    Damage("result-unchecked", "2d", lambda: Path("../frames").unlink(), ("TS_01",), status=0),
    Damage("result-changed", "2d", lambda: os.utime(STACK), ("newer", "found TS_01"), status=0),
    Damage(
        "result-orphan", "2d", write_text("out/Subtomograms/TS_01/9_stack2d.mrcs", ""), ("9_st",)
    ),
    Damage("result-orphan", "3d", write_text("out/Subtomograms/new/.1_data.mrc.tmp-1-2", "")),
    Damage(
        "result-orphan",
        "2d",
        in_table("particles", lambda c: c.update({k: v[1:] for k, v in c.items()})),
        (STACK,),
    ),
    Damage(
        "result-shared",
        "2d",
        in_table("particles", set_value(labels.IMAGE_NAME, 1, STACK)),
        (STACK,),
        also=("result-name", "result-orphan"),
    ),
    Damage(
        "result-name",
        "2d",
        in_table("particles", swap_rows(labels.IMAGE_NAME, 0, 1)),
        ("row 1, 2",),
    ),
    Damage(
        "result-table",
        "3d",
        in_table("general", set_value(labels.ARE_2D_STACKS, 0, "1")),
        ("expected 0, as extracted",),
        also=("result-visible",),
    ),
    Damage(
        "result-stacks",
        "2d",
        in_table("general", set_value(labels.ARE_2D_STACKS, 0, "0")),
        ("expected 1, found 0",),
    ),
    Damage("result-stacks", "2d", in_table("general", dict.clear), ("found no such entry",)),
    Damage(
        "result-optics",
        "2d",
        in_table("optics", set_value(labels.CTF_PREMULTIPLIED, 0, "0")),
        (labels.CTF_PREMULTIPLIED, "row 1: expected 1, found 0"),
    ),
    Damage(
        "result-optics",
        "2d",
        in_table("optics", drop(labels.CTF_PREMULTIPLIED)),
        ("row 1, 2: expected 1, found no such column",),
    ),
    Damage(
        "result-optics",
        "2d",
        in_table("optics", set_value(labels.IMAGE_DIMENSIONALITY, 1, "3")),
        (labels.IMAGE_DIMENSIONALITY, "row 2: expected 2, found 3"),
    ),
    Damage(
        "result-optics",
        "3d",
        in_table("optics", set_value(labels.IMAGE_DIMENSIONALITY, 0, "2")),
        ("row 1: expected 3, found 2",),
    ),
    Damage("result-optics", "3d", in_table("optics", drop(labels.IMAGE_DIMENSIONALITY))),
    Damage("result-optics", "3d", in_table("optics", set_value(labels.CTF_PREMULTIPLIED, 1, "x"))),
    Damage(
        "missing-column",
        "3d",
        in_table("particles", drop(labels.CTF_IMAGE)),
        (labels.CTF_IMAGE,),
    ),
    Damage(
        "result-table",
        "2d",
        in_table(
            "", set_value(labels.PARTICLES_FILE, 0, "a.star"), path="out/optimisation_set.star"
        ),
        ("expected out/particles.star, found a.star",),
    ),
    Damage("result-unfinished", "2d", lambda: Path("out/particles.star").unlink()),
    Damage(
        "missing-file",
        "2d",
        lambda: Path("out/optimisation_set.star").unlink(),
        also=("missing-input",),
    ),
    Damage("missing-column", "2d", in_table("particles", drop(labels.IMAGE_NAME))),
    Damage(
        "result-tomogram",
        "2d",
        in_table("particles", set_value(labels.TOMO_NAME, 0, "TS_99")),
        ("TS_99",),
        also=("result-orphan",),
    ),
    Damage(
        "duplicate-particle",
        "2d",
        in_table("particles", set_value(labels.PARTICLE_NAME, 1, "TS_01/1")),
        (),
        (),
        ("result-name",),
    ),
    Damage("result-not-finite", "2d", values(STACK, put(np.nan, 3, 4, 5)), (STACK,), DEEP),
    Damage("result-not-finite", "3d", values(WEIGHTS, put(np.inf, 3, 4, 5)), (WEIGHTS,), DEEP),
    Damage("result-constant", "2d", values(STACK, put(0, 2)), ("slices 3",), DEEP),
    Damage("result-constant", "3d", values(VOLUME, put(1, slice(None))), (VOLUME,), DEEP),
    Damage("result-constant", "3d", values(WEIGHTS, put(0, slice(None))), (WEIGHTS,), DEEP),
    Damage("result-constant", "3d", values(CTF2, put(0, slice(None))), ("in the weights",), DEEP),
    Damage("result-negative", "3d", values(WEIGHTS, put(-1e-3, 40, 1, 1)), (WEIGHTS,), DEEP),
    Damage("result-values", "2d", values(STACK, put(0, 2, slice(16))), (STACK, "square "), DEEP),
    Damage("result-values", "3d", values(VOLUME, put(9, 3, 4, 5)), (VOLUME, "maximum 9 for"), DEEP),
    Damage("result-values", "3d", values(WEIGHTS, put(0, slice(32, 64))), (WEIGHTS,), DEEP),
    Damage("result-values", "2d", header(STACK, dmean=0.1), ("mean ", " for 0.1"), DEEP),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.code)
def test_damage_is_found(
    damage: Damage, spoilt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """By its own code, and without other findings than what follows from it."""
    spoilt(damage.kind)
    damage.plant()
    status, found = verify(capsys, *damage.arguments)
    assert status == damage.status
    assert damage.code in found, found
    assert all(word in found[damage.code] for word in damage.words), found[damage.code]
    assert set(found) - {damage.code} <= {*damage.also, "result-repair"}


@pytest.mark.parametrize("damage", [d for d in DAMAGES if d.arguments], ids=lambda d: d.code)
def test_values_are_read_with_deep_only(
    damage: Damage, spoilt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a large directory would take hours."""
    spoilt(damage.kind)
    damage.plant()
    assert verify(capsys) == (0, {})


@pytest.mark.parametrize(
    ("code", "table", "change"),
    [
        ("missing-table", "optics", dict.clear),
        ("missing-column", "optics", drop(labels.IMAGE_SIZE)),
        ("optics-group", "particles", set_value(labels.OPTICS_GROUP, 0, "9")),
    ],
)
def test_blank_volume_of_unknown_size(
    code: str,
    table: str,
    change: Callable[[Columns], None],
    spoilt: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Values are judged without the optics too."""
    spoilt("3d")
    change_table(table, change)
    status, found = verify(capsys, *DEEP)
    assert (status, list(found)) == (1, [code])
    change_values(VOLUME, put(1, slice(None)))
    assert set(verify(capsys, *DEEP)[1]) == {code, "result-constant"}


@pytest.mark.parametrize(
    ("case", "label", "value", "expected"),
    [
        ("basic_2d", labels.IMAGE_DIMENSIONALITY, "3", "2"),
        ("basic_2d", labels.CTF_PREMULTIPLIED, "", "0 or 1"),
        ("basic_3d", labels.IMAGE_DIMENSIONALITY, "2", "3"),
        ("basic_3d", labels.CTF_PREMULTIPLIED, "0", "1"),
        ("real_subtomo", labels.IMAGE_DIMENSIONALITY, "3", "2"),
        ("real_subtomo", labels.CTF_PREMULTIPLIED, "1", "0"),
        ("real_subtomo", labels.CTF_CORRECTED, "0", "1"),
    ],
)
@pytest.mark.parametrize("is_ours", [True, False], ids=["ours", "RELION's"])
def test_kind_of_images(
    case: str,
    label: str,
    value: str,
    expected: str,
    is_ours: bool,
    project: Callable[[str], ProjectCopy],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The recorded options tell it; without them the rest of the table does."""
    project(case)
    directory = "out" if is_ours else "relion"
    if is_ours:
        words = {"basic_2d": ["--stack2d"], "real_subtomo": ["--real_subtomo"]}.get(case, [])
        assert main([*INPUT, *BOX, *words]) == 0
        expected = expected.removeprefix("0 or ")
    else:
        shutil.copytree(REFERENCE / case / "relion", "relion")
    change = set_value(label, 0, value) if value else drop(label)
    change_table("optics", change, path=f"{directory}/particles.star")
    status, found = verify(capsys, directory=directory)
    assert status == 1
    assert f", row 1{'' if value else ', 2'}: expected {expected}, " in found["result-optics"]
    assert set(found) <= {"result-optics", "result-format"}


def test_optics_groups_are_numbers(
    spoilt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """1.0 is group 1, of one size."""
    spoilt("3d")
    change_table("particles", set_value(labels.OPTICS_GROUP, 0, "1.0"))
    assert verify(capsys, *DEEP) == (0, {})
    change_header(VOLUME, nz=16, mz=16)
    assert "32 x 32 x 32" in verify(capsys)[1]["result-size"]


def test_every_code_of_results_is_planted() -> None:
    """None is there without a test."""
    codes = {code for code in ADVICE if code.startswith("result-")}
    planted = {damage.code for damage in DAMAGES}
    tested_elsewhere = {"result-repair", "result-none", "result-unpacked"}  # the last: test_hdf5
    assert codes - planted == tested_elsewhere
    assert len(planted) >= 12


def test_directory_that_is_none(
    project: Callable[[str], ProjectCopy], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1, no traceback."""
    project("basic_2d")
    assert verify(capsys)[0] == 1
    assert main(["verify"]) == 2


def test_blank_images_of_tilts_without_contrast(
    project: Callable[[str], ProjectCopy], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where rlnCtfScalefactor is 0 nothing is what there should be."""
    case = project("basic_2d")
    case.replace("tilt_series/TS_01.star", "_rlnTomoXTilt #4", "_rlnCtfScalefactor #4")
    for row in range(7):
        value = "0" if row == 3 else "1"
        case.set_value("tilt_series/TS_01.star", "rlnCtfScalefactor", row, value)
    assert main([*INPUT, *BOX, "--stack2d"]) == 0
    change_values(STACK, put(0, 3))
    assert verify(capsys, "--deep") == (0, {})
    change_values(STACK, put(0, 2))
    assert list(verify(capsys, "--deep")[1]) == ["result-constant"]


@pytest.mark.parametrize(
    "unset",
    [
        {"dmin": 0, "dmax": -1, "dmean": -2, "rms": -1},
        {"dmin": 0, "dmax": 0, "dmean": 0, "rms": 0},
        {"dmin": np.nan, "dmax": np.nan, "dmean": np.nan, "rms": np.nan},
    ],
)
def test_headers_need_not_tell_of_values(
    unset: dict[str, float], spoilt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of other programs often do not."""
    spoilt("2d")
    change_header(STACK, **unset)
    change_values(STACK, put(0, 2, slice(16)))
    assert verify(capsys, *DEEP) == (0, {})


def test_values_of_half_precision(
    project: Callable[[str], ProjectCopy], capsys: pytest.CaptureFixture[str]
) -> None:
    """Values are rounded, headers state fewer statistics: a part that was destroyed still shows."""
    project("basic_2d")
    assert main([*INPUT, *BOX, "--float16"]) == 0
    files = sorted(path for path in Path("out").rglob("*_[dw]*.mrc"))
    for path in files:
        status = os.stat(path)
        data = np.fromfile(path, np.float16)
        data[len(data) // 2 :][: len(data) // 64] = 0
        data.tofile(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    status, found = verify(capsys, *DEEP)
    assert (status, set(found)) == (1, {"result-values"})
    assert len(files) == 8
    assert "(8 in all)" in found["result-values"]


# Tables of other programs


def drop_columns(columns: Columns) -> None:
    """Leave what a program that knows little keeps, in another order, and fewer rows."""
    kept = (labels.IMAGE_NAME, labels.VISIBLE_FRAMES, labels.OPTICS_GROUP, labels.TOMO_NAME)
    rest = {k: columns[k][::-1][:3] for k in (*kept, *labels.CENTERED_COORDINATE_XYZ)}
    columns.clear()
    columns.update(rest)


def test_table_of_another_program(
    spoilt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns and rows dropped, another order: what is left is right, and files are no orphans."""
    spoilt("2d")
    change_table("particles", drop_columns, to="selected.star")
    assert verify(capsys, "--particles", "selected.star", "--deep") == (0, {})
    change_table("particles", swap_rows(FLAGS, 0, 2), path="selected.star")
    status, found = verify(capsys, "--particles", "selected.star")
    assert status == 1
    assert "result-slices" in found


def test_frames_of_another_program(
    spoilt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """As many others of a particle that has not moved are wrong; of one that has they may be so."""
    spoilt("2d")
    changed = ("--particles", "changed.star")
    change_table("particles", move_flag, to="changed.star")
    x = labels.CENTERED_COORDINATE_XYZ[0]
    value = parse(Path("changed.star").read_text())["particles"].columns[x][3]
    change_table("particles", set_value(x, 3, f"{float(value):.3f}"), path="changed.star")
    status, found = verify(capsys, *changed)
    assert (status, list(found)) == (1, ["result-geometry"])
    assert found["result-geometry"].startswith("error [result-geometry] ")
    assert ", row 4, " in found["result-geometry"]
    assert verify(capsys, *changed, "--repair")[0] == 0
    original, repaired = (
        parse(Path(f"out/particles{end}.star").read_text())["particles"].columns[FLAGS].tolist()
        for end in ("", "_repaired")
    )
    assert original == repaired
    for change, more in (
        (set_value(x, 3, f"{float(value) + 1:.3f}"), ()),
        (set_value(x, 3, value), ("--t", "tomograms.star")),
        (drop(labels.PARTICLE_NAME), ("--mot", "None")),
    ):
        change_table("particles", change, path="changed.star")
        status, found = verify(capsys, *changed, *more)
        assert (status, list(found)) == (0, ["result-geometry"])
        assert found["result-geometry"].startswith("warning [result-geometry] ")


def test_refined_positions_do_not_matter(
    spoilt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Offsets written by a refinement come after the extraction."""
    spoilt("2d")
    change = set_value("rlnOriginXAngst", 0, "400.0")
    change_table("particles", change, to="refined.star")
    assert verify(capsys, "--particles", "refined.star") == (0, {})


def expand(columns: Columns) -> None:
    """Repeat the rows as a symmetry expansion does: other angles, the same images."""
    columns.update({k: np.repeat(v, 2) for k, v in columns.items()})
    n_rows = len(columns[labels.IMAGE_NAME])
    columns[labels.ANGLES[0]] = np.array([f"{180 * (i % 2)}" for i in range(n_rows)], object)


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_symmetry_expanded_set(
    kind: str, spoilt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of one name and one image are no fault; those of one alone still are."""
    spoilt(kind)
    change_table("particles", expand, to="expanded.star")
    assert verify(capsys, "--particles", "expanded.star", "--deep") == (0, {})
    others = read_star("expanded.star", Findings())
    assert others is not None
    images = others.tables["particles"].columns[labels.IMAGE_NAME]
    change = set_value(labels.IMAGE_NAME, 1, images[2])
    change_table("particles", change, path="expanded.star", to="mixed.star")
    found = verify(capsys, "--particles", "mixed.star")[1]
    assert {"result-shared", "duplicate-particle"} <= set(found)


@pytest.mark.parametrize("words", [["--stack2d"], []], ids=["2D", "3D"])
def test_symmetry_expanded_set_in_containers(
    words: list[str], project: Callable[[str], ProjectCopy], capsys: pytest.CaptureFixture[str]
) -> None:
    """There, too."""
    project("basic_2d")
    assert main([*INPUT, *BOX, *words, "--hdf5", "--no_mrc"]) == 0
    change_table("particles", expand, to="expanded.star")
    assert verify(capsys, "--particles", "expanded.star", "--deep") == (0, {})
    if words:
        change_table("particles", swap_rows(FLAGS, 1, 7), path="expanded.star")
        found = verify(capsys, "--particles", "expanded.star", "--deep")[1]
        assert "row 2, 8," in found["result-slices"]


def join(directory: str) -> None:
    """Write joined.star: the rows of out/ and of another directory, whose groups follow on."""
    added = read_star(f"{directory}/particles.star", Findings())
    assert added is not None
    groups = {str(i + 1): str(i + 101) for i in range(2)}

    def add(name: str, columns: Columns) -> None:
        more = dict(added.tables[name].columns)
        more[labels.OPTICS_GROUP] = np.array(
            [groups[group] for group in more[labels.OPTICS_GROUP]], dtype=object
        )
        columns.update({k: np.concatenate([v, more[k]]) for k, v in columns.items()})

    change_table("particles", lambda c: add("particles", c), to="joined.star")
    change_table("optics", lambda c: add("optics", c), path="joined.star")


@pytest.mark.parametrize(
    "words",
    [["--crop", "48", "--bin", "1"], ["--crop", "16"], ["--max_dose", "12"], ["--float16"]],
    ids=" ".join,
)
def test_joined_stacks(
    words: list[str], project: Callable[[str], ProjectCopy], capsys: pytest.CaptureFixture[str]
) -> None:
    """Box, binning and dose of a row are those of its own job; unknown ones can be given."""
    project("basic_2d")
    assert main([*INPUT, *BOX, "--only_tomogram", "TS_01", "--stack2d"]) == 0
    other = [*INPUT, *BOX, "--only_tomogram", "TS_03", "--stack2d", *words]
    other[other.index("out")] = "other"
    assert main(other) == 0
    join("other")
    joined = ("--particles", "joined.star")
    assert verify(capsys, *joined) == (0, {})
    original = Path("joined.star").read_text()
    last = set_value(FLAGS, -1, "None")
    change_table("particles", last, path="joined.star")
    dose = ["--max_dose", "12"] if "--max_dose" in words else []
    status, found = verify(capsys, *joined, "--repair", *dose)
    assert (status, set(found)) == (0, {"result-visible"})
    repaired = Path("out/particles_repaired.star").read_text()
    flags = [parse(text)["particles"].columns[FLAGS].tolist() for text in (original, repaired)]
    assert flags[0] == flags[1]
    if dose:
        assert "result-repair" in verify(capsys, *joined, "--repair")[1]


@pytest.mark.parametrize("words", [["--hdf5"], ["--ctf"]], ids=" ".join)
def test_joined_sets(
    words: list[str], project: Callable[[str], ProjectCopy], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two jobs, in the directory of one, whose records and options are not the other's."""
    project("basic_2d")
    assert main([*INPUT, *BOX, "--only_tomogram", "TS_01", *words]) == 0
    other = [*INPUT, *BOX, "--only_tomogram", "TS_03", "--float16"]
    other[other.index("out")] = "other"
    assert main(other) == 0
    join("other")
    assert verify(capsys, "--particles", "joined.star", "--deep") == (0, {})
    next(Path("other/Subtomograms").rglob("*_data.mrc")).unlink()
    next(Path("out/.completed").glob("*/*.json")).unlink()
    status, found = verify(capsys, "--particles", "joined.star")
    assert (status, set(found)) == (1, {"result-missing", "result-record"})
    assert "other/" in found["result-missing"]
    assert "other/" not in found["result-record"]


# Repair


@pytest.mark.parametrize(
    "plant",
    [
        drop(FLAGS),
        set_value(FLAGS, 1, "None"),
        set_value(FLAGS, 2, "[1,1]"),
        swap_rows(FLAGS, 0, 3),
        move_flag,
    ],
)
def test_repair(
    plant: Callable[[Columns], None],
    spoilt: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The flags come back; the damaged table stays, and all else in the new one is as it was."""
    spoilt("2d")
    original = Path("out/particles.star").read_text()
    change_table("particles", plant)
    damaged = Path("out/particles.star").read_text()
    assert damaged != original
    assert verify(capsys)[0] == 1
    assert not Path("out/particles_repaired.star").exists()
    status, found = verify(capsys, "--repair")
    assert status == 0
    assert found
    assert Path("out/particles.star").read_text() == damaged
    repaired = read_star("out/particles_repaired.star", Findings())
    expected = {table.name: table.columns for table in parse(original).values()}
    assert repaired is not None
    for name, table in repaired.tables.items():
        assert {k: list(v) for k, v in table.columns.items()} == {
            k: list(v) for k, v in expected[name].items()
        }
    assert verify(capsys, "--particles", "out/particles_repaired.star") == (0, {})


@pytest.mark.parametrize("change", [dict.clear, set_value(labels.ARE_2D_STACKS, 0, "0")])
@pytest.mark.parametrize("directory", ["out", "relion"])
def test_repair_of_the_flag_of_stacks(
    directory: str,
    change: Callable[[Columns], None],
    spoilt: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It comes back with the visible frames, or alone; RELION's own directories have it too."""
    spoilt("2d")
    if directory == "relion":
        shutil.copytree(REFERENCE / "basic_2d" / "relion", "relion")
    path, repaired = (f"{directory}/particles{end}.star" for end in ("", "_repaired"))
    original = parse(Path(path).read_text())
    change_table("general", change, path=path)
    for damage in (lambda _: None, set_value(FLAGS, 1, "None")):
        change_table("particles", damage, path=path)
        status, found = verify(capsys, directory=directory)
        assert status == 1
        assert "result-stacks" in found
        assert verify(capsys, "--repair", directory=directory)[0] == 0
        for name, table in parse(Path(repaired).read_text()).items():
            assert {k: list(v) for k, v in table.columns.items()} == {
                k: list(v) for k, v in original[name].columns.items()
            }


def parse(text: str) -> dict[str, StarTable]:
    """Return the tables of a text."""
    Path("text.star").write_text(text)
    star = read_star("text.star", Findings())
    assert star is not None
    return star.tables


@pytest.mark.parametrize("max_dose", [-1.0, 10.0])
def test_repair_of_relions_own(
    project: Callable[[str], ProjectCopy], capsys: pytest.CaptureFixture[str], max_dose: float
) -> None:
    """Without completion records the dose limit has to be given, else the counts do not fit."""
    case = project("max_dose_min_frames")
    options = json.loads((case.path / "case.json").read_text())["options"]
    limit = options[options.index("--max_dose") + 1]
    assert "--stack2d" in options
    shutil.copytree(REFERENCE / "max_dose_min_frames" / "relion", "relion")
    original = parse(Path("relion/particles.star").read_text())["particles"].columns[FLAGS]
    change_table("particles", drop(FLAGS), path="relion/particles.star")
    capsys.readouterr()
    given = [] if max_dose < 0 else ["--max_dose", limit]
    status = main(["verify", "relion", "--repair", *given])
    output = capsys.readouterr().out
    if not given:
        assert status == 1
        assert "error [result-repair]" in output
        assert not Path("relion/particles_repaired.star").exists()
        return
    assert status == 0, output
    repaired = parse(Path("relion/particles_repaired.star").read_text())["particles"]
    assert list(repaired.columns[FLAGS]) == list(original)


def test_repair_of_what_has_no_images(
    spoilt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written where the count cannot be checked."""
    spoilt("2d")
    change_table("particles", drop(FLAGS))
    Path(STACK).unlink()
    status, found = verify(capsys, "--repair")
    assert status == 1
    assert "1 particle without visible frames" in found["result-repair"]
    assert not Path("out/particles_repaired.star").exists()


def test_repair_without_tilt_images(
    spoilt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing is named, not the maximum dose."""
    spoilt("2d")
    change_table("particles", set_value(FLAGS, 2, "None"))
    Path("../frames").unlink()
    status, found = verify(capsys, "--repair")
    assert (status, set(found)) == (1, {"result-visible", "result-unchecked"})
    said = "error [result-unchecked] geometry not repaired for TS_03: tilt image missing in tilt_s"
    assert said in found["result-unchecked"]
    assert not Path("out/particles_repaired.star").exists()


def test_repair_is_never_in_place(
    spoilt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A repaired table that is damaged again is not written over."""
    spoilt("2d")
    path = "out/particles_repaired.star"
    change_table("particles", drop(FLAGS), to=path)
    before = Path(path).read_text()
    assert main(["verify", "out", "--particles", path, "--repair"]) == 1
    assert "not repaired in place" in capsys.readouterr().err
    assert Path(path).read_text() == before


@pytest.mark.parametrize(
    ("text", "flags"),
    [("[1,0]", [True, False]), ("[1]", [True]), ("[]", None), ("1,0", None), ("[1, 0]", None),
     ("[2]", None), ("", None), ("[1,0", None)],
)  # fmt: skip
def test_flags(text: str, flags: list[bool] | None) -> None:
    """0 and 1 between brackets, without spaces: what RELION reads."""
    found = parse_flags(text)
    assert (None if found is None else found.tolist()) == flags
