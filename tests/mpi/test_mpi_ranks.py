"""The same files from any number of ranks and threads, whole tomograms or split."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from mpi_project import (
    BOX,
    OPTIMISATION_SET,
    PARTICLES_KEPT,
    Launcher,
    assert_same_results,
    list_contents,
    read_tables,
    rewrite_particles,
    rewrite_table,
    run,
    run_serial,
)

from relion_pseudosubtomo.model.particle_set import Columns

#: Bytes that Python and NumPy alone take of a rank.
LEAST_MEMORY = 10_000_000
DIRECT = ["--p", "Picks/job007/particles.star", "--t", "Tomograms/job008/tomograms.star"]


@pytest.fixture(scope="module")
def serial(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the project with a serial run's output in PS/serial."""
    copy = tmp_path_factory.mktemp("ranks") / "project"
    shutil.copytree(project, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        done = run_serial(*OPTIMISATION_SET, *BOX, "--o", "PS/serial/", "--j", "1")
        assert done.returncode == 0, done.stdout
    return copy


AHEAD = """
import sys, time
from pathlib import Path
from relion_pseudosubtomo.parallel.mpi import MpiWorld
from relion_pseudosubtomo.parallel.schedule import TaskCost

class Work:
    def do(self, n_items, control):
        for _ in range(n_items):
            time.sleep(0.02)
            control.count_item()
        return n_items, None

    def prefetch(self, n_items, control):
        Path(f"ahead_on_{world.rank}").touch()

def main(pool):
    costs = [TaskCost(0.0, 0.02, ((0, 30),))] * 7  # too few to be handed out ahead without asking
    news = pool.run(None, costs, lambda piece: piece.stop - piece.start, split=False,
                    stop=lambda: False)
    assert sum(outcome.n_done for item in news for outcome in item.outcomes) == 210
    return 0

world = MpiWorld()
sys.exit(world.lead(main, lambda shared, n_sharing: Work(), lambda: False, lambda: None))
"""


def test_ranks_ask_for_their_next_piece_before_they_are_done(
    tmp_path: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rank once holds its next piece while it does one; a busy machine may miss a moment."""
    monkeypatch.chdir(tmp_path)
    Path("ahead.py").write_text(AHEAD)
    done = run([*launcher.command(2)[:-2], "ahead.py"], launcher.environment, limit=60)
    assert done.returncode == 0, done.stdout
    assert sorted(path.name for path in tmp_path.glob("ahead_on_*")) == ["ahead_on_0", "ahead_on_1"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 5, 8])
def test_any_number_of_ranks_and_threads(
    serial: Path,
    launcher: Launcher,
    monkeypatch: pytest.MonkeyPatch,
    n_ranks: int,
    threads: int,
) -> None:
    """Every file is the serial run's, also with more ranks than tomograms."""
    monkeypatch.chdir(serial)
    output = Path(f"PS/job{n_ranks}{threads}")
    words = [*OPTIMISATION_SET, *BOX, "--o", f"{output}/", "--j", str(threads)]
    done = run([*launcher.command(n_ranks), *words], launcher.environment)
    assert done.returncode == 0, done.stdout
    assert_same_results(Path("PS/serial"), output)
    summary = json.loads((output / "run_summary.json").read_text())
    assert summary["ranks"] == n_ranks
    measured = {int(rank) for rank in summary["private_memory"]}
    worked = {item["rank"] for item in summary["tomograms"]}
    assert worked <= measured <= set(range(n_ranks))
    if n_ranks <= len(PARTICLES_KEPT):  # each gets a tomogram at once
        assert worked == set(range(n_ranks))
    assert min(summary["private_memory"].values()) > LEAST_MEMORY


#: The program, with a line in the log at every look instead of every 30 s.
LINES = """
import sys
from relion_pseudosubtomo import progress
progress.LINE_INTERVAL = 0.0
from relion_pseudosubtomo.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_bar_is_for_terminals(
    serial: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    """Open MPI gives its ranks a terminal also where the log is a file, which gets lines."""
    if is_terminal and launcher.name != "Open MPI":
        pytest.skip(f"the ranks of {launcher.name} write to pipes, also on a terminal")
    if is_terminal and shutil.which("script") is None:
        pytest.skip("no program script to make a terminal with")
    monkeypatch.chdir(serial)
    output, log = f"PS/bar{int(is_terminal)}/", Path(f"bar{int(is_terminal)}.log")
    Path("lines.py").write_text(LINES)
    command = [*launcher.command(2)[:-2], "lines.py"]
    shell = ["sh", "-c", f'"$@" {"" if is_terminal else f">{log} 2>&1"}; exit $?', "sh"]
    through = [*command[:-3], "sh", "-c", '"$@"; exit $?', "sh", *command[-3:]]
    words = [*shell, *through, *OPTIMISATION_SET, *BOX, "--o", output, "--j", "1"]
    if is_terminal:
        words = ["script", "-qefc", f"stty cols 100 rows 30; {shlex.join(words)}", str(log)]
    done = run(words, launcher.environment)
    text = log.read_bytes().decode(errors="replace")
    assert done.returncode == 0, text
    assert "particles.star" in text
    assert ("%|" in text) == is_terminal
    assert bool(re.search(r"\d of \d+ particles \(\d+%\), ", text)) == (not is_terminal)


def test_a_tomogram_is_split_where_ranks_would_idle(workdir: Path, launcher: Launcher) -> None:
    """One tomogram on three ranks is done in parts by several, unless --no_split."""
    rewrite_particles(
        workdir / "Picks/job007/particles.star",
        lambda columns: {k: v[columns["rlnTomoName"] == "TS_01"] for k, v in columns.items()},
    )
    # a large box, so that the parts are worth it
    box = ["--b", "192", "--crop", "128", "--bin", "1"]
    for output, more in (("PS/whole", ["--no_split"]), ("PS/split", [])):
        words = [*OPTIMISATION_SET, *box, "--o", output, "--j", "1", *more]
        done = run([*launcher.command(3), *words], launcher.environment)
        assert done.returncode == 0, done.stdout
    whole, split = (
        json.loads(Path(name, "run_summary.json").read_text())["tomograms"]
        for name in ("PS/whole", "PS/split")
    )
    assert len(whole) == 1
    assert len({part["rank"] for part in split}) > 1
    assert_same_results(Path("PS/whole"), Path("PS/split"))


def test_prebinned_tomograms_agree(workdir: Path, launcher: Launcher) -> None:
    """Which tomograms have their images binned does not depend on the ranks, nor does a byte."""
    # windows so large that few particles are enough
    box = ["--b", "96", "--crop", "24", "--bin", "4"]
    words = [*OPTIMISATION_SET, *box, "--prebin", "--j", "1", "--o"]
    assert run_serial(*words, "PS/serial").returncode == 0
    done = run([*launcher.command(3), *words, "PS/ranks"], launcher.environment)
    assert done.returncode == 0, done.stdout
    assert "Prebinning by 2: " in done.stdout
    assert "Prebinning by 2: 0 tomograms" not in done.stdout
    assert_same_results(Path("PS/serial"), Path("PS/ranks"))


def align_again(columns: Columns) -> Columns:
    """Return a tilt table with another alignment: half a degree in the plane, 5 Angstrom."""
    moved = {"rlnTomoZRot": 0.5, "rlnTomoXShiftAngst": 5.0}
    return {
        label: np.array([f"{float(value) + moved[label]:.6f}" for value in values], dtype=object)
        if label in moved
        else values
        for label, values in columns.items()
    }


def test_direct_entries_and_after_frame_alignment(workdir: Path, launcher: Launcher) -> None:
    """The manual's job, then one from the set it wrote with trajectories and other tomograms."""
    trajectories = next(workdir.rglob("motion.star"))
    first = [*DIRECT, *BOX, "--o", "PS/job001/", "--j", "1"]
    done = run([*launcher.command(5), *first], launcher.environment)
    assert done.returncode == 0, done.stdout
    particles = read_tables(Path("PS/job001/particles.star")).tables["particles"]
    assert set(particles.columns["rlnOriginXAngst"]) == {"0.000000"}
    again = ["--i", "PS/job001/optimisation_set.star", "--mot", str(trajectories), *BOX]
    done = run_serial(*again, "--o", "PS/before/", "--j", "2")
    assert done.returncode == 0, done.stdout
    tilts = workdir / "Tomograms/job008/tilt_series/TS_01.star"
    rewrite_table(tilts, "TS_01", align_again)
    done = run(
        [*launcher.command(8), *again, "--o", "PS/job002/", "--j", "1"], launcher.environment
    )
    assert done.returncode == 0, done.stdout
    done = run_serial(*again, "--o", "PS/job003/", "--j", "2")
    assert done.returncode == 0, done.stdout
    assert_same_results(Path("PS/job002"), Path("PS/job003"))
    before, after = (dict(list_contents(Path("PS", name))) for name in ("before", "job002"))
    images = [name for name in after if name.endswith("_data.mrc")]
    changed = {name for name in images if before[name] != after[name]}
    assert changed == {name for name in images if "/TS_01/" in name}
    assert 0 < len(changed) < len(images)
    entries = read_tables(Path("PS/job002/optimisation_set.star")).tables[""].first_row()
    assert "rlnTomoTrajectoriesFile" in entries


def test_sums_agree(workdir: Path, launcher: Launcher) -> None:
    """The sums of three ranks are a serial run's to 1e-6 of their maximum."""
    words = [*OPTIMISATION_SET, *BOX, "--sum", "--no_writing", "--j", "1", "--o"]
    assert run_serial(*words, "PS/a").returncode == 0
    done = run([*launcher.command(3), *words, "PS/b"], launcher.environment)
    assert done.returncode == 0, done.stdout
    for name in ("sum_data.mrc", "sum_weight.mrc", "sum_div.mrc"):
        one, other = (mrcfile.read(Path(folder, name)) for folder in ("PS/a", "PS/b"))
        assert np.abs(one - other).max() <= 1e-6 * np.abs(one).max()


def test_averages_agree(workdir: Path, launcher: Launcher) -> None:
    """The half maps and the average of three ranks are a serial run's to 1e-6 of their maximum."""
    words = [*OPTIMISATION_SET, *BOX, "--average", "--stack2d", "--j", "1", "--o"]
    assert run_serial(*words, "PS/a").returncode == 0
    done = run([*launcher.command(3), *words, "PS/b"], launcher.environment)
    assert done.returncode == 0, done.stdout
    assert "Resolution of the average" in done.stdout
    for name in ("average.mrc", "average_half1.mrc", "average_half2.mrc"):
        one, other = (mrcfile.read(Path(folder, name)) for folder in ("PS/a", "PS/b"))
        assert np.abs(one - other).max() <= 1e-6 * np.abs(one).max()
