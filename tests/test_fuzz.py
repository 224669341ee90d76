"""Thousands of damaged files through the program: clear errors, nothing outside the directory."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from relion_pseudosubtomo.cli import main
from relion_pseudosubtomo.io.mrc import write_mrc

SEED = 20251123
#: Runs; each damages one file or a few: of several, one may hide what the others would do.
N_IN_PROCESS = 1000
N_COMMAND_LINE = 50
MOST_FILES = 3
#: Runs of one test.
N_PER_TEST = 250
#: Seconds in which each has to end.
LIMIT = 20
EXIT_STATUSES = (0, 1, 2)
TILTS = (-30.0, 0.0, 30.0)

#: Words that take the place of values, names and paths.
HOSTILE = (
    "", '""', "''", '"', "'", "#", "nan", "inf", "-inf", "1e400", "1e308", "-1e308", "1e-320", "0",
    "-1", "-0.0", "999999999999999999999", "0x10", "1_000", "None", "<NA>", "data_", "loop_",
    "_rlnX", "[", "]", "[]", "[1,2", "[nan,1,0,0]", "[1e999,0,0,0]", "[1,0]", "../x", "../../x",
    "/etc/passwd", "/tmp/outside", "~", "~/x", "$HOME", "$(x)", "`x`", "%s", "{0}", "\\", ".", "..",
    "...", "a/../../b", "a//b", "./a", "-rf", "--o", "-", "x" * 300, "x" * 5000, "y/" * 200,
    "\u30c7\u30fc\u30bf", "\u00e9" * 90, "\u00e9" * 200, "\U0001f52c", "\u202e", "\u00a0", "a\0b",
    "a\nb", "a\rb", "a\tb", "a b", '"a b"', "con", "*", "?", "1@", "0@x.mrc",
    "9@frames/TS_01_0.mrc",
    "@", "TS_01", "TS_01/1", "out", "out/particles.star", "frames", "\ufeff", "\ud7ff", "1,5", "1e",
)  # fmt: skip
BOXES = (
    "--b 8 --bin 1 --stack2d",
    "--b 8 --crop 6 --bin 1.3 --stack2d --exact_centre",
    "--b 8 --crop 6 --bin 1",
    "--b 8 --bin 1.5 --float16 --ctf --nrm --div --sum",
)
EXTRAS = (
    "",
    "--mot motion.star",
    "--allow_failures",
    "--rename_duplicates",
    "--only_tomogram TS_01",
    "--min_frames 2 --max_dose 4",
    "--no_ctf --whiten",
    "--apply_orientations",
)


def write(path: str, *lines: str) -> None:
    """Write lines of text."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(lines) + "\n")


def loop(name: str, labels: str, *rows: str) -> tuple[str, ...]:
    """Return the lines of a table."""
    return (f"data_{name}", "", "loop_", *(f"_rln{label}" for label in labels.split()), *rows, "")


OPTICS = loop(
    "optics",
    "OpticsGroup OpticsGroupName Voltage SphericalAberration AmplitudeContrast"
    " TomoTiltSeriesPixelSize EvenZernike",
    "1 optics1 300 2.7 0.1 2.0 [0,0.1]",
    "2 optics2 300 2.7 0.1 2.0 [0,0.1]",
)
PARTICLE_LABELS = (
    "TomoName TomoParticleName CenteredCoordinateXAngst CenteredCoordinateYAngst"
    " CenteredCoordinateZAngst OriginXAngst OriginYAngst OriginZAngst AngleRot AngleTilt AnglePsi"
    " OpticsGroup"
)


def write_project() -> None:
    """Write the smallest project with everything in it: two tomograms, one of them in layout 4."""
    rng = np.random.default_rng(SEED)
    for frame in range(len(TILTS)):
        image = rng.normal(size=(1, 24, 26)).astype(np.float32)
        Path("frames").mkdir(exist_ok=True)
        write_mrc(f"frames/TS_01_{frame}.mrc", image, voxel_size=2.0, is_stack=True, float16=False)
    stack = rng.normal(size=(3, 24, 26)).astype(np.float32)
    write_mrc("frames/TS_02.mrcs", stack, voxel_size=2.0, is_stack=True, float16=False)
    write(
        "tomograms.star",
        *loop(
            "global",
            "TomoName TomoTiltSeriesStarFile TomoTiltSeriesName TomoSizeX TomoSizeY TomoSizeZ"
            " TomoHand TomoTiltSeriesPixelSize Voltage SphericalAberration AmplitudeContrast"
            " OpticsGroupName TomoDeformationType TomoDeformationGridSizeX"
            " TomoDeformationGridSizeY",
            "TS_01 tilts/TS_01.star None 26 24 10 -1 2.0 300 2.7 0.1 optics1 linear 1 1",
            "TS_02 None frames/TS_02.mrcs:mrc 26 24 10 1 2.0 300 2.7 0.1 optics2 None 1 1",
        ),
        *loop(
            "TS_02",
            "TomoProjX TomoProjY TomoProjZ MicrographPreExposure DefocusU DefocusV DefocusAngle",
            *(
                f"[{np.cos(a)},0,{np.sin(a)},{13 - 13 * np.cos(a) - 5 * np.sin(a)}] [0,1,0,0]"
                f" [{-np.sin(a)},0,{np.cos(a)},0] {i} 20000 19000 30"
                for i, a in enumerate(np.deg2rad(TILTS))
            ),
        ),
    )
    write(
        "tilts/TS_01.star",
        *loop(
            "TS_01",
            "MicrographName MicrographPreExposure TomoXTilt TomoYTilt TomoZRot TomoXShiftAngst"
            " TomoYShiftAngst DefocusU DefocusV DefocusAngle TomoDeformationCoefficients",
            *(
                f"frames/TS_01_{i}.mrc {3 * i} 0 {tilt} 85 0.5 -0.5 20000 19000 30 [0.01,0,0]"
                for i, tilt in enumerate(TILTS)
            ),
        ),
    )
    names = ["TS_01/1", "TS_01/2", "TS_02/1", "TS_02/2"]
    write(
        "particles.star",
        *OPTICS,
        *loop(
            "particles",
            PARTICLE_LABELS,
            *(
                f"{name[:5]} {name} {i} {-i} 1.5 0.1 0.2 0.3 10 20 30 {1 + i // 2}"
                for i, name in enumerate(names)
            ),
        ),
    )
    write(
        "motion.star",
        *("data_general", "_rlnParticleNumber 4", ""),
        *(
            line
            for name in names
            for line in loop(name, "OriginXAngst OriginYAngst OriginZAngst", *["0.1 0 -0.1"] * 3)
        ),
    )
    write(
        "set.star",
        "data_",
        "_rlnTomoParticlesFile particles.star",
        "_rlnTomoTomogramsFile tomograms.star",
        "_rlnTomoTrajectoriesFile motion.star",
    )


INPUTS = (
    "particles.star",
    "tomograms.star",
    "tilts/TS_01.star",
    "motion.star",
    "set.star",
    "frames/TS_01_1.mrc",
    "frames/TS_02.mrcs",
)
RESULTS = (
    "done/particles.star",
    "done/optimisation_set.star",
    "done/.completed/job.json",
    "done/.completed/TS_01/0-2.json",
    "done/Subtomograms/TS_01/1_stack2d.mrcs",
    "particles.star",
    "tomograms.star",
)


# Mutations


def change_word(data: bytes, dice: random.Random) -> bytes:
    """Put a hostile word in the place of another."""
    lines = data.split(b"\n")
    rows = [i for i, line in enumerate(lines) if line.split()]
    if not rows:
        return data
    row = dice.choice(rows)
    words = lines[row].split()
    words[dice.randrange(len(words))] = dice.choice(HOSTILE).encode()
    lines[row] = b" ".join(words)
    return b"\n".join(lines)


def rename_everywhere(data: bytes, dice: random.Random) -> bytes:
    """Put a hostile word in the place of a name, wherever it stands."""
    old = dice.choice([b"TS_01", b"TS_02", b"TS_01/1", b"/", b"frames", b"optics1", b".star"])
    return data.replace(old, dice.choice(HOSTILE).encode())


def change_lines(data: bytes, dice: random.Random) -> bytes:
    """Remove, repeat or swap lines."""
    lines = data.split(b"\n")
    a, b = dice.randrange(len(lines)), dice.randrange(len(lines))
    kind = dice.randrange(4)
    if kind == 0:
        del lines[a]
    elif kind == 1:
        lines.insert(b, lines[a])
    elif kind == 2:
        lines[a], lines[b] = lines[b], lines[a]
    else:
        del lines[min(a, b) : max(a, b)]
    return b"\n".join(lines)


def change_bytes(data: bytes, dice: random.Random) -> bytes:
    """Change some bytes anywhere."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 3, 10])):
        if changed:
            changed[dice.randrange(len(changed))] = dice.choice(
                [0, 10, 32, 255, dice.randrange(256)]
            )
    return bytes(changed)


def insert_bytes(data: bytes, dice: random.Random) -> bytes:
    """Insert random bytes, or a hostile word."""
    place = dice.randrange(len(data) + 1)
    piece = dice.choice([dice.randbytes(dice.randrange(1, 20)), dice.choice(HOSTILE).encode()])
    return data[:place] + piece + data[place:]


def truncate(data: bytes, dice: random.Random) -> bytes:
    """Cut the end off."""
    return data[: dice.randrange(len(data) + 1)]


def cut_images(data: bytes, dice: random.Random) -> bytes:
    """Leave a header alone, a part of one or little more."""
    return data[: dice.choice([0, 1023, 1024, 1024, 1025, 1028, 1500])]


def change_header(data: bytes, dice: random.Random) -> bytes:
    """Put an extreme integer or float into an MRC header."""
    place = 4 * dice.choice(
        [0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 19, 22, 23, 27, 52, 53, dice.randrange(56)]
    )
    numbers = [0, 1, -1, 2, 12, 101, 2**31 - 1, -(2**31), 65536, 0x7FC00000, dice.getrandbits(31)]
    piece = int(dice.choice(numbers)).to_bytes(4, dice.choice(["little", "big"]), signed=True)
    return data[:place] + piece + data[place + 4 :]


def change_values(data: bytes, dice: random.Random) -> bytes:
    """Put extreme values into the data of an MRC file."""
    n_values = (len(data) - 1024) // 4
    if n_values < 1:
        return data
    value = np.float32(dice.choice([np.nan, np.inf, -np.inf, 3e38, 1e-40, 0.0]))
    n = min(dice.choice([1, 10, n_values]), n_values)
    place = 1024 + 4 * dice.randrange(n_values - n + 1)
    return data[:place] + value.tobytes() * n + data[place + 4 * n :]


TEXT = (change_word,) * 6 + (
    rename_everywhere, rename_everywhere, change_lines, change_lines, change_bytes, insert_bytes,
    truncate,
)  # fmt: skip
BINARY = (change_header,) * 5 + (change_values, change_bytes, insert_bytes, truncate, cut_images)


def mutate(path: str, dice: random.Random) -> None:
    """Damage one file: its bytes are others then."""
    data = Path(path).read_bytes()
    kinds: tuple[Callable[[bytes, random.Random], bytes], ...] = (
        TEXT if path.endswith((".star", ".json")) else BINARY
    )
    damaged = data
    while damaged == data:
        for _ in range(dice.choice([1, 1, 1, 2, 3])):
            damaged = dice.choice(kinds)(damaged, dice)
    Path(path).write_bytes(damaged)


# Cases


def make_case(number: int) -> tuple[list[str], list[str]]:
    """Return the files to damage, the project's or a finished job's, and the command line."""
    dice = random.Random(f"{SEED}/{number}")
    kind = dice.choices(["extract", "check", "verify"], weights=[6, 1, 2])[0]
    n_files = dice.randint(1, MOST_FILES)
    if kind == "verify":
        more = dice.choice([[], ["--deep"], ["--repair"], ["--deep", "--repair"]])
        return dice.sample(RESULTS, n_files), ["verify", "done", *more]
    source = dice.choice(["--i set.star", "--p particles.star --t tomograms.star"])
    line = f"{source} --o out --j 1 {dice.choice(BOXES)} {dice.choice(EXTRAS)}"
    unread = [] if "--i" in line.split() else ["set.star"]
    unread += [] if "--i" in line.split() or "--mot" in line.split() else ["motion.star"]
    files = dice.sample([file for file in INPUTS if file not in unread], n_files)
    return files, [*(["check"] if kind == "check" else []), *line.split()]


def list_state(root: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of all files outside out/; folders have neither."""
    state = {}
    for parent, folders, names in os.walk(root):
        if Path(parent) == root / "project" and "out" in folders:
            folders.remove("out")
        state[parent] = (0, 0)
        for name in names:
            status = os.lstat(os.path.join(parent, name))
            state[os.path.join(parent, name)] = (status.st_size, status.st_mtime_ns)
    return state


@contextmanager
def no_hang() -> Iterator[None]:
    """End what takes too long."""

    def stop(*_: object) -> None:
        raise AssertionError("hangs")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def judge(root: Path, words: list[str], status: int, err: str, before: dict) -> None:
    """Assert a clear end: a known status, a message for a failure, nothing partial or outside."""
    assert status in EXIT_STATUSES
    assert "Traceback" not in err
    assert "Warning: " not in err
    out = root / "project" / "out"
    after = list_state(root)
    if "--repair" in words:
        after.pop(str(root / "project/done/particles_repaired.star"), None)
    assert after == before
    if words[0] == "verify":
        return
    if words[0] == "check":
        assert not out.exists()
    elif status == 0:
        assert (out / "particles.star").exists()
    else:
        assert "ERROR: " in err
        assert not (out / "particles.star").exists()
        assert not out.exists() or "failed" in err, err
    assert not [path for path in out.rglob("*") if ".tmp-" in path.name]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a project and a finished job of it; start in the project."""
    root = tmp_path / "root"
    (root / "project").mkdir(parents=True)
    (root / "tmp").mkdir()
    monkeypatch.chdir(root / "project")
    monkeypatch.setattr(tempfile, "tempdir", str(root / "tmp"))
    write_project()
    done = "--i set.star --o done --j 1 --b 8 --bin 1 --stack2d --log_level error"
    assert main(done.split()) == 0
    assert main(["verify", "done", "--deep"]) == 0
    return root


def prepare(files: list[str], number: int) -> dict[str, tuple[bytes, int]]:
    """Damage files; return what they were."""
    saved = {file: (Path(file).read_bytes(), os.stat(file).st_mtime_ns) for file in files}
    for i, file in enumerate(files):
        mutate(file, random.Random(f"{SEED}/{number}/{i}"))
    assert all(Path(file).read_bytes() != data for file, (data, _) in saved.items())
    return saved


def restore(saved: dict[str, tuple[bytes, int]]) -> None:
    """Put files back, with their times; remove what a run made."""
    for file, (data, changed) in saved.items():
        Path(file).write_bytes(data)
        os.utime(file, ns=(changed, changed))
    shutil.rmtree("out", ignore_errors=True)
    Path("done/particles_repaired.star").unlink(missing_ok=True)


@pytest.mark.parametrize("first", range(0, N_IN_PROCESS, N_PER_TEST))
def test_damaged_files_in_one_process(
    first: int, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is in them, the program's entry function returns."""
    capsys.readouterr()
    for number in range(first, first + N_PER_TEST):
        files, words = make_case(number)
        saved = prepare(files, number)
        before = list_state(project)
        try:
            with no_hang():
                status = main(words)
            judge(project, words, status, capsys.readouterr().err, before)
        except BaseException as error:
            kept = project.parent / "failed"
            shutil.copytree(project, kept, symlinks=True)
            raise AssertionError(f"case {number}, {files}: {' '.join(words)}") from error
        restore(saved)


def test_damaged_files_through_the_command_line(project: Path) -> None:
    """In processes of their own."""
    for number in range(N_IN_PROCESS, N_IN_PROCESS + N_COMMAND_LINE):
        files, words = make_case(number)
        saved = prepare(files, number)
        before = list_state(project)
        done = subprocess.run(
            [sys.executable, "-P", "-m", "relion_pseudosubtomo", *words],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        judge(project, words, done.returncode, done.stderr, before)
        restore(saved)


def test_damage_is_what_it_is_said_to_be(project: Path) -> None:
    """One to three files, each really changed; images without pixels or without a header too."""
    sizes: set[int] = set()
    n_files: Counter[int] = Counter()
    for number in range(200):
        files, _ = make_case(number)
        saved = prepare(files, number)
        changed = [file for file, (data, _) in saved.items() if Path(file).read_bytes() != data]
        n_files[len(changed)] += 1
        sizes |= {os.stat(file).st_size for file in changed if Path(file).suffix[:4] == ".mrc"}
        restore(saved)
    assert sorted(n_files) == [1, 2, 3]
    assert min(n_files.values()) > 40
    assert {0, 1024} <= sizes


def test_most_damage_is_noticed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mutations reach the program: both ends are there."""
    statuses = []
    for number in range(100):
        files, words = make_case(number)
        saved = prepare(files, number)
        statuses.append(main(words))
        restore(saved)
    assert 20 < sum(statuses) < 97
