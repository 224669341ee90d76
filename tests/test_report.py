"""The report: its content against the run's tables, what it collects, what it is made of."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from oracle.read_case import read_case
from project_copy import REFERENCE, ProjectCopy
from reference_comparison import read_star_text
from small_models import make_options, make_particle_set, make_tomogram, make_tomogram_set

from relion_pseudosubtomo import task_work, worker
from relion_pseudosubtomo.cli import main
from relion_pseudosubtomo.core.inputs import TiltImages
from relion_pseudosubtomo.io import mrc
from relion_pseudosubtomo.plan import make_plan
from relion_pseudosubtomo.positions import project_particles
from relion_pseudosubtomo.report import collect, figures, packages
from relion_pseudosubtomo.report.contents import read_contents
from relion_pseudosubtomo.report.geometry import make_geometry
from relion_pseudosubtomo.report.store import ReportStore

INPUT = ["--p", "particles.star", "--t", "tomograms.star"]
BOX_2D = ["--b", "64", "--crop", "32", "--bin", "2", "--stack2d"]
BOX_3D = ["--b", "32", "--crop", "24", "--bin", "2"]
OUT = ["--o", "out/", "--j", "1"]
REPORT = Path("out/report.html")
DROPPING = "trajectories_2d_drop"
MOST_IMAGES = 4

pytestmark = pytest.mark.timeout(60)


class Page(HTMLParser):
    """What stands in a page: text, pictures, tables, and how often each element."""

    def __init__(self, path: Path = REPORT) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        """Leave an element, and those inside that need no end."""
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.words.append(data)
        if any(tag in ("td", "th") for tag in self._open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        """All text."""
        return " ".join(" ".join(self.words).split())

    def all_of(self, tag: str, name: str) -> list[str]:
        """Return an attribute's values."""
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def start_in(folder: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> ProjectCopy:
    """Copy a case's input; start in the copy."""
    project = ProjectCopy(folder, case)
    monkeypatch.chdir(project.path)
    return project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectCopy:
    """Return a copy of a plain case's input; start in it."""
    return start_in(tmp_path, "basic_2d", monkeypatch)


def run(*words: str) -> None:
    """Run the program in the current project."""
    assert main([*INPUT, *words, *OUT]) == 0


def table_of(name: str) -> dict[str, list[str]]:
    """Return the particle table of a file in the output directory."""
    table = read_star_text(Path("out", name))["particles"]
    return {label: list(table[label]) for label in table}


# Content


def test_counts_are_those_of_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In, kept and dropped of each tomogram and in all, with reasons; options and command."""
    start_in(tmp_path, DROPPING, monkeypatch)
    words = read_case(REFERENCE / DROPPING).words
    run(*words, "--report")
    kept, dropped = table_of("particles.star"), table_of("dropped.star")
    page = Page()
    rows = {row[0]: row for row in page.rows}
    names = set(kept["rlnTomoName"]) | set(dropped["rlnTomoName"])
    assert set(rows) == names | {"tomogram", "all"}
    for name in names:
        n_kept, n_dropped = kept["rlnTomoName"].count(name), dropped["rlnTomoName"].count(name)
        assert rows[name][1:4] == [str(n_kept + n_dropped), str(n_kept), str(n_dropped)]
        reasons = [
            reason
            for tomogram, reason in zip(
                dropped["rlnTomoName"], dropped["rlnPseudoSubtomoDropReason"], strict=True
            )
            if tomogram == name
        ]
        for reason in reasons:
            assert f"{reasons.count(reason)} {reason}" in rows[name][4]
    n_kept, n_dropped = len(kept["rlnTomoName"]), len(dropped["rlnTomoName"])
    assert rows["all"][1:4] == [str(n_kept + n_dropped), str(n_kept), str(n_dropped)]
    assert f"relion_pseudosubtomo --p particles.star --t tomograms.star {words[0]}" in page.text
    assert "efficiency of the ranks" in page.text
    assert re.search(r"NumPy \d", page.text)


def test_markers_and_histograms_count_particles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the collected files say is what the tables say."""
    start_in(tmp_path, DROPPING, monkeypatch)
    run(*read_case(REFERENCE / DROPPING).words, "--report")
    kept, dropped = table_of("particles.star"), table_of("dropped.star")
    for name in set(kept["rlnTomoName"]):
        geometry = ReportStore("out").read_geometry(name)
        assert geometry is not None
        flags = [
            text.count("1")
            for tomogram, text in zip(
                kept["rlnTomoName"], kept["rlnTomoVisibleFrames"], strict=True
            )
            if tomogram == name
        ]
        assert geometry.n_visible[geometry.kept].tolist() == flags
        assert (~geometry.kept).sum() == dropped["rlnTomoName"].count(name)
        assert geometry.images_per_frame.sum() == sum(flags)
        assert len(geometry.defocus) == len(flags)
    alts = " ".join(Page().all_of("img", "alt"))
    drawn = sum(map(int, re.findall(r"Low tilt.*?(\d+) dropped", alts)))
    assert 0 < drawn <= len(dropped["rlnTomoName"])


@pytest.mark.parametrize("hand", [-1.0, 1.0])
def test_defocus_is_that_at_the_particles_depth(hand: float) -> None:
    """The mean over its visible frames: 12 pixels of 2 A above the centre, half of it counted."""
    options, tilts = make_options(), [-30.0, 0.0, 30.0]
    tomograms = make_tomogram_set(make_tomogram(tilts=tilts, hand=hand, defocus_slope=0.5))
    particles = make_particle_set([(100, 90, 30), (100, 90, 42)])
    plan = make_plan(options, tomograms, particles, None)
    (projected,) = project_particles(options, tomograms, particles, None, plan)
    assert projected.visible.all()
    shift = hand * 0.5 * 2.0 * 12 * np.cos(np.deg2rad(tilts)).mean()
    geometry = make_geometry(options, projected, "")
    np.testing.assert_allclose(geometry.defocus, [19500, 19500 + shift], rtol=0, atol=0.01)


def test_warnings_are_shown(project: ProjectCopy) -> None:
    project.replace("particles.star", "\nTS_01\t", "\nTS_unknown\t", 1)
    run(*BOX_2D, "--report")
    assert "[unknown-tomogram]" in Page().text
    assert "1 tomogram not in the tomogram set" in Page().text


def test_page_is_accessible_and_self_contained(project: ProjectCopy) -> None:
    """Pictures have texts, tables have headers, and nothing comes from elsewhere."""
    run(*BOX_3D, "--report")
    page = Page()
    assert page.counts["h1"] == 1
    assert len(page.all_of("img", "alt")) == page.counts["img"] > 0
    assert all(page.all_of("img", "alt"))
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in page.all_of("img", "src"))
    assert {"col", "row"} <= set(page.all_of("th", "scope"))
    assert "script" not in page.counts
    assert not re.search(r"(https?:)?//", re.sub(r"base64,[^\"]*", "", REPORT.read_text()))
    labels = page.all_of("svg", "aria-label")
    assert len(labels) == 4  # visible frames, defocus, dose, power
    assert all(labels)


# What is collected


def test_collected_pictures_are_those_of_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean picture is the mean of the written volumes' projections."""
    start_in(tmp_path, "basic_3d", monkeypatch)
    run(*BOX_3D, "--report")
    for tomogram in read_contents("out", 30).tomograms:
        assert tomogram.is_collected
        volumes = [mrcfile.read(image) for image in tomogram.images]
        expected = np.mean([volume.sum(axis=0) for volume in volumes], axis=0)
        n_summed = sum(piece.n_summed for piece in tomogram.pieces)
        found = sum(piece.picture_sum for piece in tomogram.pieces) / n_summed
        assert n_summed == len(volumes)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.std())


def test_pictures_with_bad_pixels_are_left_out_and_counted(
    project: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One such pixel takes away neither the mean of the others nor their spectrum."""
    run(*BOX_2D, "--report")
    n_lines = REPORT.read_text().count('class="faint"')
    add = collect.Collector.add

    def spoil_first(self, i, particle):  # type: ignore[no-untyped-def]
        if i == 0:
            particle = particle.copy()
            particle[:, 3, 4] = np.nan
        add(self, i, particle)

    monkeypatch.setattr(collect.Collector, "add", spoil_first)
    run(*BOX_2D, "--report", "--overwrite")
    for tomogram in read_contents("out", 30).tomograms:
        (piece,) = tomogram.pieces
        assert (piece.n_summed, piece.n_not_finite) == (len(tomogram.names) - 1, 1)
        assert np.ptp(piece.picture_sum) > 0
        assert np.isfinite(piece.power_sum).all()
    assert "2 particles with pixels that are NaN or infinite: left out of means" in Page().text
    assert "; 1 with NaN or infinite pixels left out" in Page().text
    assert REPORT.read_text().count('class="faint"') == n_lines > 0


def test_tomogram_whose_pictures_are_all_bad(
    project: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no mean and no spectrum; what it has is collected all the same."""
    add = collect.Collector.add
    monkeypatch.setattr(collect.Collector, "add", lambda self, i, p: add(self, i, p + np.nan))
    run(*BOX_2D, "--report")
    assert "Mean of 0 particles" in Page().text
    assert "Power spectrum" not in Page().text
    assert "Nothing was collected" not in Page().text


def test_bad_pixels_in_written_images(project: ProjectCopy) -> None:
    """Where no worker has collected."""
    run(*BOX_2D)
    with mrcfile.mmap(table_of("particles.star")["rlnImageName"][0], "r+") as file:
        file.data[:] = np.inf
    assert main(["report", "out"]) == 0
    assert "1 particle with pixels that are NaN or infinite" in Page().text
    first, *others = read_contents("out", 30).tomograms
    assert np.isfinite(first.pieces[0].picture_sum).all()
    assert first.pieces[0].n_summed == len(first.names) - 1
    assert [tomogram.pieces[0].n_not_finite for tomogram in others] == [0]


def test_pieces_of_a_former_version_are_read(project: ProjectCopy) -> None:
    """They do not tell how many pictures were left out."""
    run(*BOX_2D, "--report")
    for path in Path("out/.report").rglob("*-*.npz"):
        with np.load(path) as arrays:
            kept = {name: arrays[name] for name in arrays.files if name != "n_not_finite"}
        np.savez(path, **kept)
    assert read_contents("out", 30).missing == []


def test_stacks_show_their_least_exposed_image(project: ProjectCopy) -> None:
    """By dose, wherever in the stack that is."""
    for name in ("TS_01", "TS_03"):
        for frame, dose in ((6, "0.500000"), (3, "20.000000")):  # 3 is the untilted one
            project.set_value(f"tilt_series/{name}.star", "rlnMicrographPreExposure", frame, dose)
    run(*BOX_2D, "--report")
    for tomogram in read_contents("out", 30).tomograms:
        assert tomogram.is_collected
        tilts = next(iter(read_star_text(Path(f"tilt_series/{tomogram.name}.star")).values()))
        dose = np.array(tilts["rlnMicrographPreExposure"], float)
        table = table_of("particles.star")
        flags = dict(zip(table["rlnImageName"], table["rlnTomoVisibleFrames"], strict=True))
        pictures = []
        for image in tomogram.images:
            visible = np.array(json.loads(flags[image]), bool)
            least, stack = int(np.argmin(dose[visible])), mrcfile.read(image)
            assert least != len(stack) // 2
            pictures.append(stack[least])
        found = tomogram.pieces[0].picture_sum / len(pictures)
        np.testing.assert_allclose(found, np.mean(pictures, axis=0), atol=1e-5)


def test_power_is_that_of_a_plain_transform() -> None:
    image = np.random.default_rng(1).normal(size=(16, 16))
    k = np.fft.fftfreq(16, 1 / 16)
    shell = np.rint(np.hypot(k[:, None], k)).astype(int)
    power = np.abs(np.fft.fft2(image)) ** 2 / 256
    expected = [power[shell == i].mean() for i in range(8)]
    np.testing.assert_allclose(collect.Spectrum(16).average(image), expected)


def test_power_of_two_pixel_sizes_has_two_means() -> None:
    """Each at its own frequencies: the larger pixels end at half of the axis."""
    fine, coarse = np.arange(8, 0, -1.0), np.arange(80, 0, -10.0)
    chart = figures.draw_power([(2.0, fine), (4.0, coarse), (2.0, 3 * fine)])
    assert chart is not None
    assert [line.role for line in chart.lines] == ["faint"] * 3 + ["main"] * 2
    paths = [line.path for line in chart.lines]
    assert paths[4] == paths[1]
    ends = [float(path.split("L")[-1].split()[0]) for path in paths]
    width = chart.right - chart.left
    np.testing.assert_allclose(
        (np.array(ends) - chart.left) / width * 8, [7, 3.5, 7, 7, 3.5], atol=0.02
    )
    assert "up to 0.25 per Angstrom, from 70 down to 2" in chart.alt


def test_pixel_size_is_that_of_a_tomograms_optics_group(project: ProjectCopy) -> None:
    """In the head of the page, and for its power spectrum."""
    run(*BOX_2D, "--report")
    assert read_contents("out", 30).pixel_sizes == [5.4]
    table = Path("out/particles.star")
    head, last = table.read_text().rsplit("5.400000", 1)  # that of the second group
    table.write_text(f"{head}10.80000{last}")
    assert main(["report", "out"]) == 0
    assert "5.4, 10.8 Å a pixel" in Page().text
    assert "Mean of all tomograms of a pixel size" in Page().text
    sizes = {tomogram.name: tomogram.pixel_size for tomogram in read_contents("out", 30).tomograms}
    assert sizes == {"TS_01": 5.4, "TS_03": 10.8}
    table.write_text(f"{head}0.000000{last}")
    assert main(["report", "out"]) == 0


def test_low_and_high_tilt_are_shown(project: ProjectCopy) -> None:
    """The least and the most tilted of the used frames."""
    run(*BOX_2D, "--report")
    for tomogram in read_contents("out", 30).tomograms:
        tilts = next(iter(read_star_text(Path(f"tilt_series/{tomogram.name}.star")).values()))
        angle = np.abs(np.array(tilts["rlnTomoYTilt"], float))
        assert tomogram.geometry is not None
        low, high = tomogram.geometry.frames
        assert angle[low] == angle.min()
        assert angle[high] == angle.max()


@pytest.mark.parametrize("more", [[], ["--preload"], ["--prebin", "--bin", "4"]])
def test_at_most_four_images_a_tomogram_are_read(
    project: ProjectCopy, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    """Two, however many pieces a tomogram is in, and no file is opened again for them."""
    opened: list[int] = []
    drawn: list[TiltImages] = []
    map_series, read_series = mrc.map_series, mrc.read_series
    draw = collect.draw_tilts

    def count_map(*arguments):  # type: ignore[no-untyped-def]
        opened.append(1)
        return map_series(*arguments)

    def count_read(*arguments):  # type: ignore[no-untyped-def]
        opened.append(1)
        return read_series(*arguments)

    def count_draw(images, frames):  # type: ignore[no-untyped-def]
        assert len(frames) <= MOST_IMAGES
        drawn.append(images)
        return draw(images, frames)

    monkeypatch.setattr(mrc, "map_series", count_map)
    monkeypatch.setattr(mrc, "read_series", count_read)
    monkeypatch.setattr(collect, "draw_tilts", count_draw)
    monkeypatch.setattr(task_work, "CHUNK_PER_THREAD", 1)
    run(*BOX_2D, *more, "--report")
    assert len(drawn) == len(set(table_of("particles.star")["rlnTomoName"]))
    assert len(opened) == len(read_contents("out", 30).tomograms)  # also of all that is dropped


def test_pieces_of_a_tomogram_are_joined(
    project: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file a piece; together they give what one piece gives."""
    run(*BOX_2D, "--report")
    whole = read_contents("out", 30)
    shutil.rmtree("out")
    monkeypatch.setattr(task_work, "CHUNK_PER_THREAD", 1)
    run(*BOX_2D, "--report")
    parts = read_contents("out", 30)
    assert parts.missing == []
    for one, many in zip(whole.tomograms, parts.tomograms, strict=True):
        assert len(many.pieces) == len(many.names) > len(one.pieces)
        places = [place for piece in many.pieces for place in piece.places.tolist()]
        assert places == one.pieces[0].places.tolist()  # not those of the first piece alone
        examples = np.concatenate([piece.examples for piece in many.pieces])
        np.testing.assert_array_equal(examples, one.pieces[0].examples)
        total = np.sum([piece.picture_sum for piece in many.pieces], axis=0)
        np.testing.assert_allclose(total, one.pieces[0].picture_sum, atol=1e-4)
        assert sum(piece.n_summed for piece in many.pieces) == one.pieces[0].n_summed


def test_interrupted_runs_keep_what_was_collected(
    project: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tomogram done before the end of the first run is in the second one's report."""
    load = worker.load_tomogram

    def fail_second(options, tomogram, index, used, **rest):  # type: ignore[no-untyped-def]
        if tomogram.name == "TS_03":
            raise OSError("disk went away")
        return load(options, tomogram, index, used, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "load_tomogram", fail_second)
        assert main([*INPUT, *BOX_2D, *OUT, "--report"]) == 1
    assert not REPORT.exists()
    run(*BOX_2D, "--report", "--only_do_unfinished")
    contents = read_contents("out", 30)
    assert contents.missing == []
    assert all(tomogram.is_collected for tomogram in contents.tomograms)


def test_pieces_of_other_results_are_not_shown(project: ProjectCopy) -> None:
    """What was collected goes by the fingerprint of the results; --overwrite removes it."""
    run(*BOX_2D, "--report")
    before = read_contents("out", 30)
    run(*BOX_2D, "--no_ic", "--overwrite")
    assert not Path("out/.report").exists()
    run(*BOX_2D, "--no_ic", "--overwrite", "--report")
    after = read_contents("out", 30)
    for old, new in zip(before.tomograms, after.tomograms, strict=True):
        ReportStore("out").write_piece(new.name, old.pieces[0])
        assert ReportStore("out").read_pieces(new.name, new.pieces[0].fingerprint) == []
        np.testing.assert_allclose(new.pieces[0].picture_sum, -old.pieces[0].picture_sum, atol=1e-4)


def test_overwriting_one_tomogram_keeps_what_was_collected_of_others(project: ProjectCopy) -> None:
    """The report of all is whole again; what it had of that tomogram is gone."""
    run(*BOX_2D, "--report")
    run(*BOX_2D, "--overwrite", "--only_tomogram", "TS_01")
    assert not Path("out/.report/TS_01").exists()
    assert list(Path("out/.report/TS_03").iterdir())
    run(*BOX_2D, "--overwrite", "--only_tomogram", "TS_01", "--report")
    run(*BOX_2D, "--only_do_unfinished", "--report")
    contents = read_contents("out", 30)
    assert contents.missing == []
    assert all(tomogram.is_collected for tomogram in contents.tomograms)


@pytest.mark.parametrize("damage", [b"", b"no archive", b"PK\x03\x04"])
def test_damaged_collections_are_left_out(project: ProjectCopy, damage: bytes) -> None:
    run(*BOX_2D, "--report")
    for path in Path("out/.report").rglob("*"):
        if path.is_file():
            path.write_bytes(damage)
    assert main(["report", "out"]) == 0
    assert "Nothing was collected for 2 tomograms" in Page().text


def test_results_are_those_without_a_report(project: ProjectCopy) -> None:
    """The same image and STAR files, byte for byte."""

    def results() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for path in Path("out").rglob("*")
            if path.suffix in (".mrcs", ".star")
        }

    run(*BOX_2D)
    without = results()
    shutil.rmtree("out")
    run(*BOX_2D, "--report")
    assert results() == without


def test_true_subtomograms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tilt image is read for them, so none is shown; particles and positions are."""
    start_in(tmp_path, "real_subtomo", monkeypatch)
    run(*read_case(REFERENCE / "real_subtomo").words, "--report")
    contents = read_contents("out", 30)
    assert all(tomogram.is_collected for tomogram in contents.tomograms)
    assert "Mean of" in Page().text


# Made again


def test_page_is_made_again_from_the_directory(project: ProjectCopy, tmp_path: Path) -> None:
    """The same page, also where the directory was moved to."""
    run(*BOX_2D, "--report")
    page = REPORT.read_bytes()
    REPORT.unlink()
    assert main(["report", "out/"]) == 0
    assert REPORT.read_bytes() == page
    shutil.move("out", tmp_path / "moved")
    assert main(["report", str(tmp_path / "moved")]) == 0
    again = (tmp_path / "moved" / "report.html").read_text()
    assert again.count("<img") == page.decode().count("<img")


@pytest.mark.parametrize("box", [BOX_2D, BOX_3D])
def test_page_of_a_run_without_report(project: ProjectCopy, box: list[str], tmp_path: Path) -> None:
    """Tables, example particles from their files, and what is missing."""
    run(*box)
    shutil.move("out", tmp_path / "moved")
    assert main(["report", str(tmp_path / "moved")]) == 0
    page = Page(tmp_path / "moved/report.html")
    assert "Nothing was collected for 2 tomograms" in page.text
    assert "made without --report" in page.text
    assert any(alt.startswith("Particle TS_01/") for alt in page.all_of("img", "alt"))
    kept = read_star_text(tmp_path / "moved/particles.star")["particles"]
    rows = {row[0]: row for row in page.rows}
    assert rows["all"][2] == str(len(kept["rlnTomoName"]))


def test_page_without_images(project: ProjectCopy) -> None:
    """Of a run without --report whose images are gone there are the tables, and a reason."""
    run(*BOX_2D)
    shutil.rmtree("out/Subtomograms")
    assert main(["report", "out"]) == 0
    assert "Images of example particles: " in Page().text
    assert "img" not in Page().counts


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("a bug"), "ValueError: a bug"), (OSError("disk went away"), "disk went away")],
)
def test_a_page_that_fails_leaves_the_results(
    project: ProjectCopy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    said: str,
) -> None:
    """The run is done, for RELION too; what to do is said, without a traceback."""

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("relion_pseudosubtomo.report.page.read_contents", fail)
        run(*BOX_2D, "--report", "--pipeline_control", "out/")
    message = capsys.readouterr().err
    assert f"ERROR: The results are whole, but the report was not made: {said}. Try" in message
    assert "relion_pseudosubtomo report out" in message
    assert "Traceback" not in message
    assert Path("out/RELION_JOB_EXIT_SUCCESS").exists()
    assert not Path("out/RELION_JOB_EXIT_FAILURE").exists()
    assert not REPORT.exists()
    assert main(["report", "out"]) == 0


@pytest.mark.parametrize("label", ["rlnTomoName", "rlnPseudoSubtomoDropReason"])
def test_dropped_table_without_a_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    """The page says so, and shows the rest."""
    start_in(tmp_path, DROPPING, monkeypatch)
    run(*read_case(REFERENCE / DROPPING).words)
    table = Path("out/dropped.star")
    table.write_text(table.read_text().replace(f"_{label} ", "_rlnOther "))
    assert main(["report", "out"]) == 0
    assert f"dropped.star has no {label}: dropped particles do not count" in Page().text
    table.unlink()
    assert main(["report", "out"]) == 0
    assert "dropped.star is missing" in Page().text


@pytest.mark.parametrize("n_left", [1, 0])
def test_particle_table_that_lost_rows(project: ProjectCopy, n_left: int) -> None:
    """What was collected is not that of its rows; with none there is nothing to show."""
    run(*BOX_2D, "--report")
    table = Path("out/particles.star")
    lines = [
        line.replace("_rlnTomoVisibleFrames", "_rlnOther") if n_left == 0 else line
        for line in table.read_text().split("\n")
    ]
    rows = [line for line in lines if line.startswith("TS_")]
    table.write_text("\n".join(line for line in lines if line not in rows[n_left:]))
    assert main(["report", "out"]) == 0
    assert ("Nothing was collected for 1 tomograms" in Page().text) == (n_left == 1)
    assert {row[0]: row for row in Page().rows}["all"][2] == str(n_left)


def test_optics_table_without_rows(project: ProjectCopy) -> None:
    """As without that table."""
    run(*BOX_2D)
    table = Path("out/particles.star")
    head, optics, rest = re.split(r"(?=data_optics|data_particles)", table.read_text())
    lines = [line for line in optics.split("\n") if not line[:1].isdigit()]
    table.write_text("".join([head, "\n".join(lines), rest]))
    assert main(["report", "out"]) == 0
    assert Page().counts["h1"] == 1


def test_number_of_tomograms_with_pictures(project: ProjectCopy) -> None:
    run(*BOX_2D, "--report")
    assert main(["report", "out", "--tomograms", "1"]) == 0
    assert "The 1 of 2 tomograms that lost most particles" in Page().text
    assert main(["report", "out", "--tomograms", "0"]) == 0
    assert "img" not in Page().counts


def test_average_is_shown(project: ProjectCopy) -> None:
    """Central slices and the correlation of the half maps, where the run made them."""
    run(*BOX_3D, "--report")
    assert "Average of all particles" not in Page().text
    run(*BOX_3D, "--report", "--average", "--overwrite")
    page = Page()
    assert sum("slice of the average" in alt for alt in page.all_of("img", "alt")) == 3
    assert "Fourier shell correlation of the half maps: 0.143 at" in page.text
    curve = Path("out/average_fsc.star")
    none = re.sub(r"(?m)^(_rlnFinalResolution\s+).*$", r"\g<1>999.000000", curve.read_text())
    curve.write_text(none)
    assert main(["report", "out"]) == 0
    assert "Fourier shell correlation of the half maps: none at 0.143" in Page().text
    assert "999" not in Page().text.partition("Fourier shell correlation")[2][:80]
    curve.write_text("data_\n\n_rlnOther 1\n")
    assert main(["report", "out"]) == 0
    assert "Fourier shell correlation" not in Page().text


# Refusals and hostile names


@pytest.mark.parametrize("words", [["--report"], ["--report", "--dry_run"]])
def test_missing_packages_are_named_at_the_start(
    project: ProjectCopy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    """Before anything is written."""
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    assert main([*INPUT, *BOX_2D, *OUT, *words]) == 1
    assert "pip install 'relion_pseudosubtomo[report]'" in capsys.readouterr().err
    assert not Path("out").exists()
    run(*BOX_2D)
    assert main(["report", "out"]) == 2
    assert "pip install 'relion_pseudosubtomo[report]'" in capsys.readouterr().err


def test_packages_are_not_imported_unasked(
    project: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("jinja2", "PIL"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    monkeypatch.delitem(sys.modules, "relion_pseudosubtomo.report.page", raising=False)
    run(*BOX_2D, "--positions2d")


def test_needs_output(project: ProjectCopy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*INPUT, *BOX_2D, *OUT, "--report", "--no_writing"]) == 1
    assert "[option-combination] --report together with --no_writing" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "", "data_particles\n\nloop_\n_rlnOther\n1\n"])
def test_other_directories_are_refused(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "particles.star").write_text(content)
    assert main(["report", str(tmp_path)]) == 1
    assert "particles.star" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "hostile",
    ["<script>alert(1)</script>", '"><img/src=x/onerror=alert(1)>', "{{7*7}}&amp;", "a'b"],
)
def test_names_are_escaped_and_stay_inside(project: ProjectCopy, hostile: str) -> None:
    """Names of tomograms and particles are text in the page, and parts of paths below the output.

    STAR values with quotation marks stand in the other kind.
    """
    quoted = f"'{hostile}'" if '"' in hostile else f'"{hostile}"'
    for path in (project.path / "tomograms.star", project.path / "particles.star"):
        path.write_text(re.sub(r"^TS_01\b", lambda _: quoted, path.read_text(), flags=re.M))
    before = {path for path in project.path.parent.rglob("*") if "case/out" not in str(path)}
    run(*BOX_2D, "--report", "--positions2d")
    after = {path for path in project.path.parent.rglob("*") if "case/out" not in str(path)}
    assert after == before
    page = Page()
    assert hostile in page.text
    assert any(hostile in row[0] for row in page.rows)
    assert any(hostile in alt for alt in page.all_of("img", "alt"))
    assert "script" not in page.counts
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert set(page.all_of("img", "src")) == {
        uri for uri in page.all_of("img", "src") if uri.startswith("data:")
    }


# Parts


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float16, np.float32])
def test_small_images_are_means_of_blocks(dtype: type) -> None:
    image = (np.arange(48).reshape(6, 8) % 100).astype(dtype)
    small, size = collect.shrink(image, 4)
    assert size == 2
    expected = image.astype(float).reshape(3, 2, 4, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(small, expected, rtol=1e-3)


def test_markers_lie_where_their_particles_are() -> None:
    """A bright pixel in a large image is at its marker in the small one."""
    image = np.random.default_rng(5).normal(size=(900, 1200)).astype(np.float32)
    image[601:604, 301:304] = 100.0
    images = TiltImages.from_arrays([image, image])
    tilts = collect.draw_tilts(images, np.array([0, 1]))
    y, x = np.unravel_index(np.argmax(collect.shrink(image, 400)[0]), (300, 400))
    assert tilts.pictures[0][y, x] == tilts.pictures[0].max()
    assert tilts.scale == 3
    assert abs((302 + 0.5) / tilts.scale - (x + 0.5)) < 1
    assert abs((602 + 0.5) / tilts.scale - (y + 0.5)) < 1


def test_examples_are_spread_over_the_tomogram() -> None:
    """Six of it, also where it is extracted in pieces; all where there are fewer."""
    assert collect.choose_examples(1001).tolist() == [0, 200, 400, 600, 800, 1000]
    assert collect.choose_examples(3).tolist() == [0, 1, 2]
    assert collect.choose_examples(1).tolist() == [0]


def test_markers_that_are_left_out_are_said(project: ProjectCopy, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Of a kind with too many, one in k is shown."""
    run(*BOX_2D, "--report")
    assert "shown" not in " ".join(Page().text.partition("Tilt images")[2:])
    monkeypatch.setattr(figures, "MARKERS", 1)
    assert main(["report", "out"]) == 0
    assert re.search(r"tilt, frame \d+, [\d.]+°.*?: 1 of 2 shown", Page().text)


def test_pixels_that_are_not_finite_do_no_harm() -> None:
    image = np.array([[0.0, 1.0], [np.nan, np.inf]])
    assert collect.to_grey(image).dtype == np.uint8
    assert collect.to_grey(np.full((2, 2), np.nan)).tolist() == [[127, 127], [127, 127]]


@pytest.mark.parametrize(
    ("low", "high", "whole"), [(0, 1, False), (0, 3, True), (-2.3, 8e4, False), (5, 5, False)]
)
def test_ticks_are_few_round_numbers_inside(low: float, high: float, whole: bool) -> None:
    ticks = figures.round_ticks(low, high, whole)
    assert len(ticks) <= 8
    assert all(low - 1e-6 <= tick <= high + 1e-6 for tick in ticks)
    assert not whole or all(tick == int(tick) for tick in ticks)


def test_histogram_counts_every_value_once() -> None:
    values = np.array([1, 2, 2, 5, 5, 5])
    chart = figures.draw_histogram("t", values, "x", "y")
    assert chart is not None
    assert [bar.title for bar in chart.bars] == ["1: 1", "2: 2", "5: 3"]
    weighted = figures.draw_histogram("t", np.array([0.5, 1.5]), "x", "y", np.array([3, 4]))
    assert weighted is not None
    assert sum(int(bar.title.split(": ")[1]) for bar in weighted.bars) == 7
    assert figures.draw_histogram("t", np.array([np.nan]), "x", "y") is None
