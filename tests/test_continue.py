"""Continuing a run: what is done is trusted only where files, options and input still fit."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project_copy import ProjectCopy

from relion_pseudosubtomo import output_directory, pipeline, worker
from relion_pseudosubtomo.cli import main
from relion_pseudosubtomo.errors import InputError, OutputError
from relion_pseudosubtomo.estimate import all_sums_bytes, sums_bytes
from relion_pseudosubtomo.extraction import sums_to_write
from relion_pseudosubtomo.io import atomic, fingerprint, mrc
from relion_pseudosubtomo.io.records import Record, RecordStore
from relion_pseudosubtomo.output_directory import OutputDirectory
from relion_pseudosubtomo.parallel.schedule import TaskCost
from relion_pseudosubtomo.pipeline import ABORT_NOW, ABORTED, FAILURE

WORDS = ["--p", "particles.star", "--t", "tomograms.star", "--b", "48", "--crop", "24"]
WORDS += ["--bin", "2", "--j", "2", "--o", "out/"]
CONTINUE = [*WORDS, "--only_do_unfinished"]
PATIENCE = 10


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectCopy:
    """Return a copy of a small case with two tomograms of two kept particles each; start in it."""
    copy = ProjectCopy(tmp_path, "basic_3d")
    monkeypatch.chdir(copy.path)
    return copy


def contents(folder: Path = Path("out")) -> dict[str, bytes]:
    """Return every file that must not depend on how often the run was interrupted."""
    leave_out = {"note.txt", "run_summary.json", ".lock"}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in leave_out
    }


def n_done_before() -> int:
    """Return how many particles the last run took from an earlier one."""
    return json.loads(Path("out/run_summary.json").read_text())["n_done_before"]


def image() -> Path:
    """Return one output file."""
    return Path("out/Subtomograms/TS_01/1_data.mrc")


def test_a_complete_run_is_only_merged_again(case: ProjectCopy) -> None:
    """Nothing is extracted again, and the files are the same."""
    assert main(WORDS) == 0
    before, written = contents(), image().stat().st_mtime_ns
    assert main(CONTINUE) == 0
    assert n_done_before() == 4
    assert image().stat().st_mtime_ns == written
    assert contents() == before


@pytest.mark.parametrize("damage", ["delete", "truncate", "replace", "lose record", "spoil record"])
def test_damaged_output_is_made_again(case: ProjectCopy, damage: str) -> None:
    """A file or record that does not fit is not taken for good."""
    assert main(WORDS) == 0
    before = contents()
    record = next(Path("out/.completed/TS_01").glob("*.json"))
    time.sleep(0.01)
    if damage == "delete":
        image().unlink()
    elif damage == "truncate":
        os.truncate(image(), 2000)
    elif damage == "replace":
        image().write_bytes(bytes(len(image().read_bytes())))
    elif damage == "lose record":
        record.unlink()
    else:
        record.write_text(record.read_text()[:50])
    assert main(CONTINUE) == 0
    assert n_done_before() == 2
    assert contents() == before


def test_a_dry_run_shows_what_is_left(
    case: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """The particles without a record alone, and their bytes; nothing is changed."""
    assert main(WORDS) == 0
    size = sum(path.stat().st_size for path in image().parent.iterdir())
    image().unlink()
    before = contents()
    capsys.readouterr()
    assert main([*CONTINUE, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "TS_01: 2 kept, 0 dropped, " in shown
    assert "TS_03" not in shown
    assert "2 of 4 particles are done already" in shown
    assert f"1 tomogram, {size} bytes of images" in shown
    assert contents() == before


def test_an_unfinished_extraction_is_said_to_be_that(
    case: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Verify says how it is continued, not that a path is wrong."""
    assert main(WORDS) == 0
    Path("out/particles.star").unlink()
    assert main(["verify", "out/"]) == 1
    shown = capsys.readouterr()
    assert "[result-unfinished]" in shown.out + shown.err
    assert "--only_do_unfinished" in shown.out + shown.err


def test_other_options_are_refused(case: ProjectCopy, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the option with both values; nothing is touched."""
    assert main(WORDS) == 0
    before = contents()
    assert main([*CONTINUE, "--whiten"]) == 1
    text = capsys.readouterr().err
    assert "[output-options]" in text
    assert "--whiten is not that of the results in out/: expected False, found True" in text
    assert contents() == before


def test_files_of_records_are_looked_at_side_by_side(
    case: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look at each record waits here for that at the other."""
    assert main(WORDS) == 0
    both = threading.Barrier(2)
    is_intact = RecordStore.is_intact

    def wait(self: RecordStore, record: Record, **more: bool) -> bool:
        both.wait(PATIENCE)
        return is_intact(self, record, **more)

    monkeypatch.setattr(RecordStore, "is_intact", wait)
    assert main(CONTINUE) == 0
    assert n_done_before() == 4


def test_changed_input_is_extracted_again(case: ProjectCopy) -> None:
    """Other coordinates in one tomogram redo that tomogram alone."""
    assert main(WORDS) == 0
    case.replace("particles.star", "-93.127391", "-92.000000")
    assert main(CONTINUE) == 0
    assert n_done_before() == 2
    changed = contents()
    assert main([*WORDS, "--overwrite"]) == 0
    assert n_done_before() == 0
    assert contents() == changed


def test_results_of_an_older_version_are_continued(case: ProjectCopy) -> None:
    """It noted nothing of an option that it did not have: that option is at its default."""
    assert main(WORDS) == 0
    before, path = contents(), Path("out/.completed/job.json")
    noted = json.loads(path.read_text())
    del noted["exact_centre"]
    path.write_text(json.dumps(noted))
    assert main([*CONTINUE, "--exact_centre"]) == 1
    assert main(CONTINUE) == 0
    assert n_done_before() == 4
    assert contents() == before


def test_results_of_other_mathematics_are_not_continued(
    case: ProjectCopy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of two kinds would lie in one set: that is said, and nothing is changed."""
    assert main(WORDS) == 0
    before = contents()
    monkeypatch.setattr(fingerprint, "MATHEMATICS", fingerprint.MATHEMATICS + 1)
    assert main(CONTINUE) == 1
    text = capsys.readouterr().err
    assert "[output-version] results of a version of this program that computes other" in text
    assert "[output-options]" not in text
    assert contents() == before
    assert main([*WORDS, "--overwrite"]) == 0
    assert main(CONTINUE) == 0
    assert n_done_before() == 4


def test_the_first_tomogram_alone_is_kept(case: ProjectCopy) -> None:
    """One tomogram first, then all: its optics group is another row of the table then."""
    assert main([*WORDS, "--only_tomogram", "TS_03"]) == 0
    assert main(CONTINUE) == 0
    assert n_done_before() == 2
    continued = contents()
    assert main([*WORDS, "--overwrite"]) == 0
    assert contents() == continued


def test_a_new_tomogram_before_the_others(case: ProjectCopy) -> None:
    """Its optics group, made as the first, moves that of what is done already."""
    table = Path("particles.star").read_text()
    kept = [line for line in table.split("\n") if not line.startswith("TS_01")]
    Path("particles.star").write_text("\n".join(kept))
    assert main(WORDS) == 0
    Path("particles.star").write_text(table)
    assert main(CONTINUE) == 0
    assert n_done_before() == 2
    continued = contents()
    assert main([*WORDS, "--overwrite"]) == 0
    assert contents() == continued


def test_results_are_not_overwritten_unasked(
    case: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory with results is refused; --overwrite replaces what the records name."""
    assert main(WORDS) == 0
    assert main(WORDS) == 1
    assert "[output-exists]" in capsys.readouterr().err
    Path("out/Subtomograms/TS_01/mine.txt").write_text("keep")
    assert main([*WORDS[:-2], "--stack2d", "--overwrite", "--o", "out/"]) == 0
    names = set(contents())
    assert "Subtomograms/TS_01/mine.txt" in names
    assert "Subtomograms/TS_01/1_stack2d.mrcs" in names
    assert not [name for name in names if name.endswith("_data.mrc")]


def test_overwriting_one_tomogram_keeps_the_others(
    case: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its files alone are written again; the message that all can be merged again is true."""
    assert main(WORDS) == 0
    before = contents()
    other = Path("out/Subtomograms/TS_03/1_data.mrc")
    times = [path.stat().st_mtime_ns for path in (image(), other)]
    capsys.readouterr()
    assert main([*WORDS, "--overwrite", "--only_tomogram", "TS_01"]) == 0
    assert "particles.star will hold TS_01 alone" in capsys.readouterr().err
    assert n_done_before() == 0
    assert image().stat().st_mtime_ns > times[0]
    assert other.stat().st_mtime_ns == times[1]
    assert "TS_03" not in Path("out/particles.star").read_text()
    assert main(CONTINUE) == 0
    assert n_done_before() == 4
    assert contents() == before


def test_other_options_for_one_tomogram(
    case: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused beside results of others, as they could not be merged; alone it is redone."""
    words = [*WORDS, "--overwrite", "--only_tomogram", "TS_01"]
    assert main(WORDS) == 0
    before = contents()
    assert main([*words, "--whiten"]) == 1
    assert "[output-options] --whiten is not that of the results" in capsys.readouterr().err
    assert contents() == before
    assert main([*WORDS, "--overwrite", "--whiten"]) == 0
    shutil.rmtree("out")
    assert main([*WORDS, "--only_tomogram", "TS_01"]) == 0
    capsys.readouterr()
    assert main([*words, "--whiten"]) == 0
    assert "particles.star will hold" not in capsys.readouterr().err


def test_overwriting_one_tomogram_frees_its_bytes_alone(
    case: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other one holds is not free."""
    assert main(WORDS) == 0
    for free, status in ((-1, 1), (0, 0)):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr("shutil.disk_usage", lambda path, usage=usage: usage)
        assert main([*WORDS, "--overwrite", "--only_tomogram", "TS_01"]) == status


def test_files_of_others_are_not_removed_with_those_of_one(case: ProjectCopy) -> None:
    """Should a record name a file that another tomogram's has too, it stays."""
    assert main(WORDS) == 0
    record = Path("out/.completed/TS_01/0-2.json")
    record.write_text(record.read_text().replace("TS_01/2", "TS_03/1"))
    for words in ("--only_do_unfinished", "--overwrite"):
        assert main([*WORDS, words, "--only_tomogram", "TS_01"]) == 0
        assert Path("out/Subtomograms/TS_03/1_data.mrc").exists()
        record.write_text(record.read_text().replace("TS_01/2", "TS_03/1"))
    assert main(CONTINUE) == 0
    assert n_done_before() == 2


def leave_out(name: str, rows: slice) -> None:
    """Remove rows of TS_03 from a file."""
    lines = Path(name).read_text().split("\n")
    gone = [row for row, line in enumerate(lines) if line.startswith("TS_03")][rows]
    Path(name).write_text("\n".join(line for row, line in enumerate(lines) if row not in gone))


@pytest.mark.parametrize("names", ["stems", "suffixes", "tomogram"])
def test_records_never_let_files_outside_be_removed(case: ProjectCopy, names: str) -> None:
    """One that names such files is as good as none."""
    assert main(WORDS) == 0
    record = next(Path("out/.completed/TS_01").glob("*.json"))
    fields = json.loads(record.read_text())
    if names == "stems":
        fields["stems"][0] = "Subtomograms/../../precious"
    elif names == "suffixes":
        fields["stems"][0], fields["suffixes"][0] = "precious", "../_data.mrc"
    else:
        folder = Path("out/.completed/..%2F..%2Fprecious_data")
        folder.mkdir()
        (folder / "container.slots").write_text("{}")
    record.write_text(json.dumps(fields))
    precious = [Path("precious_data.mrc"), Path("precious_data.h5")]
    for path in precious:
        path.write_text("of another program")
    assert main([*WORDS, "--overwrite"]) == 0
    assert all(path.exists() for path in precious)


def test_what_left_a_tomogram_leaves_the_output(case: ProjectCopy) -> None:
    """Its files go, as if they had never been there; unknown files stay."""
    assert main(WORDS) == 0
    mine = Path("out/Subtomograms/TS_03/mine.mrc")
    mine.write_text("keep")
    leave_out("particles.star", slice(1, 2))
    assert main([*CONTINUE, "--only_tomogram", "TS_01"]) == 0
    assert len(list(mine.parent.glob("*_data.mrc"))) == 2
    assert main(CONTINUE) == 0
    assert n_done_before() == 2
    assert mine.read_text() == "keep"
    mine.unlink()
    continued = contents()
    shutil.rmtree("out")
    assert main(WORDS) == 0
    assert contents() == continued


@pytest.mark.parametrize("name", ["particles.star", "tomograms.star"])
def test_a_tomogram_that_left_the_input_keeps_its_results(case: ProjectCopy, name: str) -> None:
    """A smaller set costs nothing: with the larger one again, all is there."""
    assert main(WORDS) == 0
    text, whole = Path(name).read_text(), contents()
    leave_out(name, slice(None))
    assert main(CONTINUE) == 0
    assert n_done_before() == 2
    assert main(["verify", "out/"]) == 0
    Path(name).write_text(text)
    assert main(CONTINUE) == 0
    assert n_done_before() == 4
    assert contents() == whole


def test_files_of_a_half_overwritten_run(
    case: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while it removes volumes, continued as stacks: no volume is left."""
    assert main(WORDS) == 0
    words = [*WORDS, "--stack2d"]

    def fail(self: RecordStore, record: Record) -> None:
        raise OutputError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "remove", fail)
        assert main([*words, "--overwrite"]) == 1
    assert list(Path("out").rglob("*_data.mrc"))
    assert main([*words, "--only_do_unfinished"]) == 0
    assert not list(Path("out").rglob("*_data.mrc"))
    assert main(["verify", "out/"]) == 0


def test_no_table_of_images_that_are_gone_stays(
    case: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill while `--overwrite` removes many images: the tables went first."""
    assert main(WORDS) == 0

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(OutputDirectory, "_remove_obsolete", killed)
        assert main([*WORDS, "--overwrite"]) != 0
    assert not list(Path("out").glob("*.star"))
    assert list(Path("out").rglob("*_data.mrc"))
    assert main([*WORDS, "--overwrite"]) == 0
    assert Path("out/particles.star").exists()


def test_an_interrupted_run_continues_to_the_same_files(
    case: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tomogram that failed is done by the next start; the other one is kept."""
    assert main(WORDS) == 0
    whole = contents()
    for path in Path("out").rglob("*"):
        if path.is_file():
            path.unlink()
    load = worker.load_tomogram

    def fail_second(options, tomogram, index, used, **rest):  # type: ignore[no-untyped-def]
        if tomogram.name == "TS_03":
            raise InputError("tilt image went away")
        return load(options, tomogram, index, used, **rest)

    monkeypatch.setattr(worker, "load_tomogram", fail_second)
    assert main(WORDS) == 1
    assert not Path("out/particles.star").exists()
    Path("out/Subtomograms/TS_03/.1_data.mrc.tmp-1-2").write_bytes(b"half")
    monkeypatch.undo()
    monkeypatch.chdir(case.path)
    assert main(CONTINUE) == 0
    assert n_done_before() == 2
    assert contents() == whole


def spoil_image(case: ProjectCopy, how: str) -> None:
    """Damage the tilt images of TS_03: point its table at a private, spoilt copy of one."""
    target = case.path / "spoilt.mrc"
    content = (case.path / "../frames/plain/TS_03_002.mrc").read_bytes()
    if how == "truncated":
        target.write_bytes(content[:5000])
    elif how == "unreadable":
        target.write_bytes(b"not an image at all")
    elif how == "another size":
        target.write_bytes((case.path / "../frames/odd/TS_03_002.mrc").read_bytes())
    case.replace("tilt_series/TS_03.star", "../frames/plain/TS_03_002.mrc", "spoilt.mrc")


@pytest.mark.parametrize("how", ["missing", "truncated", "unreadable", "another size"])
def test_bad_images_stop_the_job_or_are_left_out(
    case: ProjectCopy, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """The checks name tomogram and file; --allow_failures extracts the others and says so."""
    spoil_image(case, how)
    assert main(WORDS) == 1
    text = capsys.readouterr().err
    assert "TS_03" in text
    assert "spoilt.mrc" in text
    assert not Path("out").exists()
    assert main([*WORDS, "--allow_failures"]) == 0
    captured = capsys.readouterr()
    assert "Merged without failed tomograms: TS_03" in captured.err
    assert "TS_01 on rank 0: 2 particles (2 kept, 0 dropped), " in captured.out
    assert "TS_03: 0 kept, 3 dropped\n" in captured.out
    assert "TS_03" not in Path("out/particles.star").read_text().split("data_particles")[1]
    dropped = Path("out/dropped.star").read_text()
    assert dropped.count('"tomogram failed"') == 3
    summary = json.loads(Path("out/run_summary.json").read_text())
    assert "TS_03" in summary["failures"]
    counts = {"TS_01": {"kept": 2, "dropped": 0}, "TS_03": {"kept": 0, "dropped": 3}}
    assert summary["by_tomogram"] == counts
    assert summary["tomograms"][0].items() >= {"name": "TS_01", "kept": 2, "dropped": 0}.items()


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), ValueError("what nobody thought of")], ids=type
)
def test_failures_during_the_run_can_be_left_out(
    case: ProjectCopy, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """With --allow_failures a tomogram that fails while extracting is left out, with its reason.

    Also where the program is to blame: the others are whole.
    """

    def fail(options, tomogram, index, used, **rest):  # type: ignore[no-untyped-def]
        if tomogram.name == "TS_01":
            raise error
        return load(options, tomogram, index, used, **rest)

    load = worker.load_tomogram
    monkeypatch.setattr(worker, "load_tomogram", fail)
    assert main([*WORDS, "--allow_failures"]) == 0
    failures = json.loads(Path("out/run_summary.json").read_text())["failures"]
    assert str(error.args[-1]) in failures["TS_01"]
    assert Path("out/dropped.star").read_text().count('"tomogram failed"') == 2


def test_dry_run_prints_the_plan_and_writes_nothing(
    case: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Particles, files, bytes and memory are named; the bytes are exact."""
    assert main([*WORDS, "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert not Path("out").exists()
    assert main(WORDS) == 0
    written = sum(path.stat().st_size for path in Path("out/Subtomograms").rglob("*.mrc"))
    assert f"4 particles kept, 1 dropped, 2 tomograms, {written} bytes of images" in text
    assert "8 image files; private memory" in text


def test_too_little_disk_space_is_refused(
    case: ProjectCopy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check compares the exact need with what is free, unless it is told not to."""
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert main(WORDS) == 1
    assert "Disk space in out/" in capsys.readouterr().err
    assert main([*WORDS, "--ignore_disk_space"]) == 0


def test_images_that_are_replaced_leave_their_space(
    case: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tomogram changed: its images' bytes are enough, less one image that is gone."""
    assert main(WORDS) == 0
    case.replace("particles.star", "-93.127391", "-92.000000")
    for free, status in ((-1, 1), (0, 0)):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr("shutil.disk_usage", lambda path, usage=usage: usage)
        assert main(CONTINUE) == status
    assert n_done_before() == 2
    case.replace("particles.star", "-92.000000", "-91.000000")
    Path("out/Subtomograms/TS_01/1_data.mrc").unlink()
    assert main(CONTINUE) == 1


def sums_files() -> list[Path]:
    """Return the files of partial sums."""
    return sorted(Path("out/.completed").rglob("*.npz"))


@pytest.mark.parametrize("options", [["--sum"], ["--average"], ["--sum", "--average"]])
def test_disk_space_counts_partial_sums(
    case: ProjectCopy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    """With nothing else to be written; those that --overwrite removes count as free."""
    words = [*WORDS, "--no_writing", *options]
    assert main(words) == 0
    each = sums_bytes(case.options(sum="--sum" in options, average="--average" in options))
    sizes = [path.stat().st_size for path in sums_files()]
    assert len(sizes) == 2
    assert all(each < size < each + 2000 for size in sizes)  # archives have headers
    needed, there = 4 * each, sum(sizes)
    for free, status in ((needed - there - 1, 1), (needed - there, 0)):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr("shutil.disk_usage", lambda path, usage=usage: usage)
        assert main([*words, "--overwrite"]) == status
        assert ("Disk space in out/" in capsys.readouterr().err) == bool(status)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": needed - 1}))
    assert main([*words, "--overwrite", "--dry_run"]) == 0
    assert "Disk space" in capsys.readouterr().err


def test_ranks_that_share_tomograms_leave_more_partial_sums(case: ProjectCopy) -> None:
    """One more each, unless nothing is split; nothing where nothing is done."""
    options = case.options(sum=True)
    each = sums_bytes(options)
    assert all_sums_bytes(options, 5, 4) == all_sums_bytes(options, 5, 1) + 3 * each
    alone = case.options(sum=True, no_split=True)
    assert all_sums_bytes(alone, 5, 4) == all_sums_bytes(options, 5, 1)
    assert all_sums_bytes(options, 0, 4) == 0


def test_every_piece_of_a_tomogram_leaves_partial_sums(case: ProjectCopy) -> None:
    """Ranks that share few tomograms cut them into far more pieces than there are ranks."""
    options, ranks = case.options(sum=True), 64
    each = sums_bytes(options)
    costs = [TaskCost(0.6, 0.051, ((0, 4000), (5000, 10_000)))] * 5
    assert sums_to_write(options, costs, ranks) > 10 * ranks * each
    assert sums_to_write(options, costs, 1) == (10 + 2) * each
    assert sums_to_write(case.options(sum=True, no_split=True), costs, ranks) == (10 + 2) * each
    assert sums_to_write(case.options(), costs, ranks) == 0
    assert sums_to_write(options, [TaskCost(0.6, 0.051, ())], ranks) == 0


def test_sums_of_a_finished_run_are_used_by_the_next(case: ProjectCopy) -> None:
    """With one more tomogram they are those of both, and the first is not extracted again."""
    table = Path("particles.star").read_text()
    kept = [line for line in table.split("\n") if not line.startswith("TS_03")]
    Path("particles.star").write_text("\n".join(kept))
    assert main([*WORDS, "--sum"]) == 0
    assert len(sums_files()) == 1
    Path("particles.star").write_text(table)
    assert main([*CONTINUE, "--sum"]) == 0
    assert n_done_before() == 2
    continued = mrc.read_volume("out/sum_data.mrc")
    assert main([*WORDS, "--sum", "--overwrite"]) == 0
    fresh = mrc.read_volume("out/sum_data.mrc")
    assert np.abs(continued - fresh).max() <= 1e-6 * np.abs(fresh).max()


def damage_sums(how: str) -> Path:
    """Spoil the partial sums of the first tomogram; return their path."""
    path = sums_files()[0]
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "changed":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes({"empty": b"", "cut": content[:1000], "zeros": bytes(len(content))}[how])
    return path


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "zeros"])
def test_damaged_partial_sums_are_made_again(case: ProjectCopy, damage: str) -> None:
    """Their tomogram's particles are extracted again, the others are not."""
    assert main([*WORDS, "--sum"]) == 0
    before = contents()
    damage_sums(damage)
    assert main([*CONTINUE, "--sum"]) == 0
    assert n_done_before() == 2
    assert contents() == before


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_partial_sums_that_cannot_be_read_at_the_merge(
    case: ProjectCopy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    """The message names the file and says what to do; that helps."""
    assert main([*WORDS, "--sum"]) == 0
    before = contents()
    path = damage_sums(damage)
    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "is_intact", lambda *_, **__: True)
        assert main([*CONTINUE, "--sum"]) == 1
    shown = capsys.readouterr().err
    assert f"Partial sums in {path} cannot be read: " in shown
    assert "Remove the file and start again with --only_do_unfinished" in shown
    path.unlink(missing_ok=True)
    assert main([*CONTINUE, "--sum"]) == 0
    assert contents() == before


@pytest.mark.parametrize(
    "make_error",
    [lambda path: OutputError(f"{path} could not be written: no space left"), MemoryError],
    ids=["disk", "memory"],
)
def test_what_cannot_be_written_is_never_left_out_silently(
    case: ProjectCopy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_error: Callable[[Path], Exception],
) -> None:
    """--allow_failures skips a tomogram for its own faults, not for a full disk or memory."""
    write = mrc.write_mrc

    def fill_up(path: Path, *arguments: object, **details: object) -> tuple[int, int]:
        if path.parent.name == "TS_03":
            raise make_error(path)
        return write(path, *arguments, **details)  # type: ignore[arg-type]

    monkeypatch.setattr(mrc, "write_mrc", fill_up)
    assert main([*WORDS, "--allow_failures"]) == 1
    assert not Path("out/particles.star").exists()
    text = capsys.readouterr().err
    assert "Tomogram TS_03 failed" in text
    assert "leave them out with --allow_failures" not in text


def test_missing_records_stop_the_merge(
    case: ProjectCopy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sums and tables are made only where the records cover every particle."""
    monkeypatch.setattr(output_directory, "RECORDS_APPEAR", 0.0)
    monkeypatch.setattr(RecordStore, "read_tomogram", lambda self, tomogram: [])
    assert main([*WORDS, "--sum"]) == 1
    assert "Completion records of TS_01" in capsys.readouterr().err
    assert not Path("out/particles.star").exists()
    monkeypatch.undo()
    monkeypatch.chdir(case.path)
    assert main([*CONTINUE, "--sum"]) == 0
    assert n_done_before() == 4


def test_failed_tomograms_keep_what_was_done_before(case: ProjectCopy) -> None:
    """An image that is away for a while costs nothing of what is finished."""
    assert main(WORDS) == 0
    before = contents()
    table = Path("tilt_series/TS_03.star").read_text()
    spoil_image(case, "missing")
    assert main([*CONTINUE, "--allow_failures"]) == 0
    assert list(Path("out/.completed/TS_03").glob("*.json"))
    Path("tilt_series/TS_03.star").write_text(table)
    assert main(CONTINUE) == 0
    assert n_done_before() == 4
    assert contents() == before


def test_overwriting_is_refused_before_anything_is_removed(
    case: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little disk space leaves the old results; what they hold counts as free."""
    assert main(WORDS) == 0
    before = contents()
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert main([*WORDS[:-2], "--ctf", "--overwrite", "--o", "out/"]) == 1
    assert contents() == before
    assert main([*WORDS, "--overwrite"]) == 0
    assert contents() == before


def test_continuing_and_overwriting_at_once_is_refused(
    case: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script that always continues would remove at each start what the last one finished."""
    assert main(WORDS) == 0
    before = contents()
    assert main([*CONTINUE, "--overwrite"]) == 1
    text = capsys.readouterr().err
    assert "[option-combination] --only_do_unfinished together with --overwrite" in text
    assert contents() == before
    assert main(CONTINUE) == 0
    assert n_done_before() == 4


@pytest.mark.parametrize("how", ["signal", "abort"])
@pytest.mark.parametrize("words", [["--ctf", "--overwrite"], ["--only_do_unfinished"]])
def test_a_stop_during_the_checks_changes_nothing(
    how: str,
    words: list[str],
    case: ProjectCopy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Old images, records and tables are not removed for a run that is not to be any more."""
    assert main(WORDS) == 0
    before = contents()
    written = Path("out/run_summary.json").read_text()
    check = OutputDirectory.check_space

    def stop(self: OutputDirectory, n_bytes: int) -> None:
        check(self, n_bytes)
        if how == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            Path("job", ABORT_NOW).touch()

    Path("job").mkdir()
    monkeypatch.setattr(OutputDirectory, "check_space", stop)
    monkeypatch.setattr(pipeline, "LOOK_INTERVAL", 0.0)
    status = main([*WORDS, *words, "--pipeline_control", "job/"])
    assert status == (75 if how == "signal" else 1)
    assert contents() == before
    assert Path("out/run_summary.json").read_text() == written
    assert "before anything was changed" in capsys.readouterr().err
    exit_file = FAILURE if how == "signal" else ABORTED
    assert [path.name for path in Path("job").glob("RELION_JOB_EXIT_*")] == [exit_file]


@pytest.mark.parametrize(("number", "said"), [(None, ""), ("4711", ", SLURM job 4711")])
def test_the_lock_names_the_job(
    number: str | None, said: str, case: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the number to look for in the queue, where there is one."""
    if number is None:
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    else:
        monkeypatch.setenv("SLURM_JOB_ID", number)
    texts = []

    def look(*arguments: Any, **more: Any) -> Any:
        texts.append(Path("out/.lock").read_text())
        return load(*arguments, **more)

    load = worker.load_tomogram
    monkeypatch.setattr(worker, "load_tomogram", look)
    assert main(WORDS) == 0
    assert texts[0] == f"host {platform.node()}, process {os.getpid()}, 1 rank{said}\n"


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("done", 0, "Wrote out/particles.star"),
        ("failure", 1, "Failed TS_03: "),
        ("signal", 75, "start again with --only_do_unfinished"),
    ],
)
def test_a_summary_that_cannot_be_written_hides_nothing(
    how: str,
    status: int,
    said: str,
    case: ProjectCopy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The log has its figures, what failed and what to do; the exit status is what it was."""

    def load_badly(options: Any, tomogram: Any, *rest: Any, **more: Any) -> Any:
        if how == "signal":
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.3)  # until rank 0 looks
        if how == "failure" and tomogram.name == "TS_03":
            raise OSError(errno.EIO, "Input/output error")
        return load(options, tomogram, *rest, **more)

    def refuse(path: Path, text: str) -> None:
        if Path(path).name == "run_summary.json":
            raise OutputError(f"{path} could not be written: {os.strerror(errno.ENOSPC)}")
        write_text(path, text)

    load, write_text = worker.load_tomogram, atomic.write_text
    monkeypatch.setattr(worker, "load_tomogram", load_badly)
    monkeypatch.setattr(atomic, "write_text", refuse)
    assert main(WORDS) == status
    shown = capsys.readouterr()
    assert "5 particles in, 4 kept" in shown.out
    assert said in shown.out + shown.err
    assert "WARNING: out/run_summary.json could not be written: No space left" in shown.err
    assert Path("out/particles.star").exists() == (status == 0)


@pytest.mark.parametrize(("former", "status"), [(signal.SIG_DFL, 75), (signal.SIG_IGN, 0)])
def test_a_lost_terminal_is_a_stop(
    former: signal.Handlers, status: int, case: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the program was started to outlive it, by nohup."""
    load = worker.load_tomogram

    def lose_terminal(*arguments: Any, **more: Any) -> Any:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.3)  # until rank 0 looks
        return load(*arguments, **more)

    monkeypatch.setattr(worker, "load_tomogram", lose_terminal)
    handler = signal.signal(signal.SIGHUP, former)
    try:
        assert main(WORDS) == status
    finally:
        signal.signal(signal.SIGHUP, handler)
