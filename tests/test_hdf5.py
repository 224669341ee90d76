"""HDF5 containers: what is in them, complete or absent, and MRC files made of them."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import h5py
import mrcfile
import numpy as np
import pytest
from project_copy import ProjectCopy

from relion_pseudosubtomo import estimate, labels, task_work
from relion_pseudosubtomo.api.dataset import open_dataset
from relion_pseudosubtomo.cli import main
from relion_pseudosubtomo.errors import InputError, OutputError
from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io import hdf5
from relion_pseudosubtomo.io.atomic import TEMPORARY_PATTERN
from relion_pseudosubtomo.io.compression import CompressionStopped, Compressor
from relion_pseudosubtomo.io.container_content import Tables
from relion_pseudosubtomo.io.containers import ContainerStore
from relion_pseudosubtomo.io.particles import read_particle_table
from relion_pseudosubtomo.io.star import read_star, write_star
from relion_pseudosubtomo.options import JobOptions, check_options
from relion_pseudosubtomo.preflight import read_and_check

WORDS = ["--p", "particles.star", "--t", "tomograms.star", "--b", "48", "--crop", "24"]
WORDS += ["--bin", "2", "--j", "2", "--log_level", "warning", "--o", "out/"]
PACKED = ["--hdf5", "--no_mrc"]
COMPRESSED = [*PACKED, "--hdf5_compression", "1"]
WAYS = [pytest.param(PACKED, id="plain"), pytest.param(COMPRESSED, id="compressed")]
CONTAINERS = ("out/Subtomograms/TS_01.h5", "out/Subtomograms/TS_03.h5")
DOCS = Path(__file__).parent.parent / "docs" / "hdf5.md"

KINDS = {
    "2D": ("basic_2d", ["--stack2d"]),
    "2D float16": ("basic_2d", ["--stack2d", "--float16"]),
    "3D": ("basic_3d", []),
    "3D float16": ("basic_3d", ["--float16"]),
    "3D, every file": ("basic_3d", ["--ctf", "--multi", "--div", "--nrm"]),
    "3D, no weights": ("basic_3d", ["--no_comb"]),
    "trajectories": ("trajectories_2d_drop", ["--stack2d", "--mot", "motion.star"]),
    "real": ("real_subtomo", ["--real_subtomo"]),
}


def start_in(folder: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> ProjectCopy:
    """Return a copy of a reference case's input; start in it."""
    copy = ProjectCopy(folder, case)
    monkeypatch.chdir(copy.path)
    return copy


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectCopy:
    """Return a copy of a small case with two tomograms of two kept particles each; start in it."""
    return start_in(tmp_path, "basic_3d", monkeypatch)


def contents(folder: str = "out", *endings: str) -> dict[str, bytes]:
    """Return the results that must be the same, however they were made."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and ".completed" not in path.parts and path.name.endswith(endings)
    }


def results(folder: str = "out") -> dict[str, bytes]:
    """Return what RELION reads."""
    return contents(folder, ".mrc", ".mrcs", ".star")


@pytest.mark.parametrize("kind", KINDS)
def test_direct_run_is_container_and_unpack(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, in every kind of run; the container is the same beside MRC files."""
    name, words = KINDS[kind]
    start_in(tmp_path, name, monkeypatch)
    assert main([*WORDS, *words]) == 0
    direct = results()
    assert main([*WORDS, *words, *PACKED, "--overwrite"]) == 0
    assert not [path for path in results() if path.startswith("Subtomograms")]
    containers = contents("out", ".h5")
    Path("out/particles.star").unlink()
    assert main(["verify", "out/"]) == 1
    assert main(["unpack", "out/"]) == 0
    assert results() == direct
    assert main(["verify", "out/"]) == 0
    assert main([*WORDS, *words, "--hdf5", "--overwrite"]) == 0
    assert results() == direct
    assert contents("out", ".h5") == containers
    assert main(["verify", "out/"]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_containers_hold_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They unpack to the same bytes, also beside MRC files; any HDF5 library reads their values."""
    name, words = KINDS[kind]
    start_in(tmp_path, name, monkeypatch)
    assert main([*WORDS, *words, *PACKED]) == 0
    shutil.copytree("out", "plain")
    assert main(["unpack", "out/"]) == 0
    direct = results()
    assert main([*WORDS, *words, *COMPRESSED, "--overwrite"]) == 0
    containers = contents("out", ".h5")
    for path in containers:
        assert read_all(f"out/{path}") == read_all(f"plain/{path}")
    with h5py.File(CONTAINERS[0]) as file:
        assert file["images"].chunks == (1, *file["images"].shape[1:])
        assert (file["images"].shuffle, file["images"].compression) == (True, "gzip")
    assert not list(Path("out").rglob("*.part"))
    for one, other in zip(open_dataset("out"), open_dataset("plain"), strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.weights, other.weights)
    assert main(["verify", "--deep", "out/"]) == 0
    assert main(["unpack", "out/"]) == 0
    assert results() == direct
    assert main(["verify", "--deep", "out/"]) == 0
    assert main([*WORDS, *words, *COMPRESSED[:1], *COMPRESSED[2:], "--overwrite"]) == 0
    assert results() == direct
    assert contents("out", ".h5") == containers


def read_all(path: str) -> dict[str, object]:
    """Return the values of all datasets and attributes of a file."""
    found: dict[str, object] = {}

    def note(name: str, item: h5py.Dataset | h5py.Group) -> None:
        found.update(
            {f"{name}@{key}": np.array(value).tolist() for key, value in item.attrs.items()}
        )
        if isinstance(item, h5py.Dataset):
            found[name] = item.dtype.str, item.shape, item[...].tobytes()

    with h5py.File(path) as file:
        note("", file)
        file.visititems(note)
    return found


def test_joined_file_is_particles_star(case: ProjectCopy) -> None:
    """Row for row: images, weights, table, visible frames; doses and tilts of each tomogram."""
    assert main([*WORDS, "--hdf5"]) == 0
    table = read_particle_table("out/particles.star", Findings())
    assert table is not None
    columns = table.particles.columns
    with hdf5.open_container("out/particles.h5") as file:
        assert len(file["images"]) == len(file["visible"]) == table.particles.n_rows
        for row, (data, weights) in enumerate(
            zip(columns[labels.IMAGE_NAME], columns[labels.CTF_IMAGE], strict=True)
        ):
            np.testing.assert_array_equal(file["images"][row], mrcfile.read(data))
            kept = file["weights"][row]
            np.testing.assert_array_equal(kept.reshape(-1, *kept.shape[2:]), mrcfile.read(weights))
            assert data == f"out/{hdf5.read_text(file['stems'])[row]}_data.mrc"
        names = hdf5.read_text(file["tomograms"])[file["tomogram_index"][:]]
        assert names.tolist() == columns[labels.TOMO_NAME].tolist()
        assert file["table"].attrs["columns"].tolist() == list(columns)
        for label in set(columns) - set(hdf5.PATH_COLUMNS):
            assert hdf5.read_text(file["table"][label]).tolist() == columns[label].tolist()
        _, plan = read_and_check(make_options(output="elsewhere"))
        tomograms = read_and_check(make_options(output="elsewhere"))[0].tomogram_set.tomograms
        for i, task in enumerate(plan.tasks):
            tomogram = tomograms[task.tomogram]
            rows = slice(*file["first_particle"][i : i + 2])
            np.testing.assert_array_equal(file["visible"][rows, : tomogram.n_frames], task.visible)
            np.testing.assert_array_equal(
                file["dose"][i][: tomogram.n_frames], tomogram.pre_exposure
            )


@pytest.mark.parametrize("kind", ["2D", "3D"])
def test_joined_file_of_two_frame_counts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has a value a frame is filled up to the longest tilt series: NaN, and not visible."""
    name, words = KINDS[kind]
    case = start_in(tmp_path, name, monkeypatch)
    series = case.path / "tilt_series" / "TS_01.star"
    lines = series.read_text().rstrip("\n").split("\n")
    series.write_text("\n".join(lines[:-2]) + "\n")
    assert main([*WORDS, *words, *PACKED]) == 0
    with hdf5.open_container("out/particles.h5") as file:
        n_frames = file["n_frames"][:]
        assert n_frames.tolist() == [n_frames[1] - 2, n_frames[1]]
        assert file["visible"].shape[1] == n_frames[1]
        for i, path in enumerate(CONTAINERS):
            with hdf5.open_container(path) as one:
                for label in ("dose", "tilt"):
                    assert file[label].shape == (2, n_frames[1])
                    np.testing.assert_array_equal(file[label][i, : n_frames[i]], one[label][:])
                    assert np.isnan(file[label][i, n_frames[i] :]).all()
                visible = file["visible"][slice(*file["first_particle"][i : i + 2])]
                np.testing.assert_array_equal(visible[:, : n_frames[i]], one["visible"][:])
                assert one["visible"][:].any()
                assert not visible[:, n_frames[i] :].any()
    lengths = [len(particle.visible) for particle in open_dataset("out")]
    assert lengths == np.repeat(n_frames, 2).tolist()


@pytest.mark.parametrize("kind", ["2D", "3D, every file"])
def test_joined_file_needs_containers_for_images_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables, visible frames and statistics are in it: they stay where the containers are gone."""
    name, words = KINDS[kind]
    start_in(tmp_path, name, monkeypatch)
    assert main([*WORDS, *words, *COMPRESSED]) == 0
    before = read_all("out/particles.h5")
    parts = [read_all(path) for path in CONTAINERS]
    shutil.rmtree("out/Subtomograms")
    after = read_all("out/particles.h5")
    images = {name for name in after if f"{name}@suffix" in after}
    assert {name for name in after if after[name] != before[name]} == images
    with hdf5.open_container("out/particles.h5") as file:
        assert all(file[name].is_virtual for name in images)
    copied = [name for name in parts[0] if re.match(r"statistics/[^@]+$|frame_index$", name)]
    assert copied
    for name in copied:
        assert after[name][2] == b"".join(part[name][2] for part in parts)  # type: ignore[index]


def test_more_containers_than_files_may_be_open(case: ProjectCopy) -> None:
    """A process may have 1,024 files open by default; a job may have more tomograms."""
    assert main([*WORDS, *PACKED]) == 0
    n_containers, n_left = 60, 20
    names = [f"copy_{i}.h5" for i in range(n_containers)]
    for name in names:
        shutil.copy(CONTAINERS[0], f"out/{name}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = len(os.listdir("/proc/self/fd")) + n_left
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        hdf5.join(Path("out/all.h5"), names, Tables({}, {}, (labels.TOMO_NAME,)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with hdf5.open_container("out/all.h5") as file, hdf5.open_container(CONTAINERS[0]) as one:
        assert hdf5.read_text(file["containers"]).tolist() == names
        assert file["images"].shape[0] == n_containers * len(one["images"])
        np.testing.assert_array_equal(file["images"][-len(one["images"]) :], one["images"][:])


def make_options(**changes: object) -> JobOptions:
    """Return the options of the runs here."""
    values: dict[str, object] = {
        "output": "out/",
        "particles": "particles.star",
        "tomograms": "tomograms.star",
        "box": 48,
        "crop": 24,
        "binning": 2.0,
        **changes,
    }
    return JobOptions(**values)  # type: ignore[arg-type]


def test_stacks_are_found_by_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All visible frames of all particles, one after another, with the frame of each."""
    start_in(tmp_path, "basic_2d", monkeypatch)
    assert main([*WORDS, "--stack2d", "--hdf5"]) == 0
    table = read_particle_table("out/particles.star", Findings())
    assert table is not None
    with hdf5.open_container("out/particles.h5") as file:
        for row, path in enumerate(table.particles.columns[labels.IMAGE_NAME]):
            images = slice(*file["offsets"][row : row + 2])
            np.testing.assert_array_equal(file["images"][images], mrcfile.read(path))
            np.testing.assert_array_equal(
                file["frame_index"][images], np.flatnonzero(file["visible"][row])
            )
    with hdf5.open_container(CONTAINERS[0]) as file:
        np.testing.assert_allclose(file["tilt"][:], read_tilts("tilt_series/TS_01.star"), atol=1e-4)


def read_tilts(path: str) -> list[float]:
    """Return the tilt about y of each frame of a tilt series."""
    star = read_star(path, Findings())
    assert star is not None
    return [float(text) for text in next(iter(star.tables.values())).columns[labels.Y_TILT]]


def test_percent_and_longer_names(case: ProjectCopy) -> None:
    """A % in a tomogram's name means nothing to the joined file; names of any length fit."""
    name = "TS%b_with_a_longer_näme"
    for file in ("particles.star", "tomograms.star"):
        case.replace(file, "TS_01", name)
    (case.path / "tilt_series" / "TS_01.star").rename(case.path / "tilt_series" / f"{name}.star")
    case.replace(f"tilt_series/{name}.star", "data_TS_01", f"data_{name}")
    assert main([*WORDS, *PACKED]) == 0
    with hdf5.open_container("out/particles.h5") as file:
        assert name in hdf5.read_text(file["tomograms"])
        assert (file["images"][:].std(axis=(1, 2, 3)) > 0).all()
        assert file["table/rlnTomoName"].asstr()[0] == name


def test_every_dataset_and_attribute_is_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/hdf5.md has a line for each in real files, 2D and 3D, and none that is not there."""
    found: set[str] = set()

    def note(name: str, item: h5py.Dataset | h5py.Group) -> None:
        place = re.sub(r"^(table|optics|general)/.*", r"\1/<label>", name)
        found.update(f"{place}@{key}" for key in item.attrs)
        if isinstance(item, h5py.Dataset):
            found.add(place)

    for kind in ("2D", "3D, every file"):
        name, words = KINDS[kind]
        (tmp_path / kind).mkdir()
        start_in(tmp_path / kind, name, monkeypatch)
        assert main([*WORDS, *words, *PACKED]) == 0
        for path in Path("out").rglob("*.h5"):
            with h5py.File(path) as file:
                found.update(f"@{key}" for key in file.attrs)
                file.visititems(note)
    documented = set(re.findall(r"^\| `([^`]+)` \|", DOCS.read_text(), re.MULTILINE))
    assert documented == found
    assert f"layout version {hdf5.LAYOUT_VERSION}" in DOCS.read_text()


@pytest.mark.parametrize("packed", WAYS)
def test_same_bytes_for_any_number_of_threads(case: ProjectCopy, packed: list[str]) -> None:
    """Also a while later: nothing in a container tells when it was made."""
    assert main([*WORDS, *packed]) == 0
    before = contents("out", ".h5")
    time.sleep(1.1)
    words = [word if word != "2" or WORDS[i - 1] != "--j" else "1" for i, word in enumerate(WORDS)]
    assert main([*words, *packed, "--overwrite"]) == 0
    assert contents("out", ".h5") == before


@pytest.mark.parametrize("packed", WAYS)
@pytest.mark.parametrize("damage", ["delete", "truncate", "replace", "lose record", "lose slots"])
def test_damaged_container_is_made_again(case: ProjectCopy, damage: str, packed: list[str]) -> None:
    """A container or record that does not fit is not taken for good, the other one is."""
    assert main([*WORDS, *packed]) == 0
    before = contents("out", ".h5")
    container, folder = Path(CONTAINERS[0]), Path("out/.completed/TS_01")
    time.sleep(0.01)
    if damage == "delete":
        container.unlink()
    elif damage == "truncate":
        os.truncate(container, 2000)
    elif damage == "replace":
        container.write_bytes(bytes(len(container.read_bytes())))
    elif damage == "lose record":
        next(folder.glob("*.json")).unlink()
    else:
        (folder / "container.slots").unlink()
    assert main([*WORDS, *packed, "--only_do_unfinished"]) == 0
    assert json.loads(Path("out/run_summary.json").read_text())["n_done_before"] == 2
    assert contents("out", ".h5") == before


def test_changed_table_alone_makes_containers_anew(case: ProjectCopy) -> None:
    """A column that no image depends on is in the container too."""
    set_class("1")
    assert main([*WORDS, *PACKED]) == 0
    set_class("2")
    assert main([*WORDS, *PACKED, "--only_do_unfinished"]) == 0
    with hdf5.open_container("out/particles.h5") as file:
        assert set(hdf5.read_text(file["table/rlnClassNumber"])) == {"2"}


def test_one_tomogram_first_keeps_its_optics_group(case: ProjectCopy) -> None:
    """Its container is used by the whole run, and has the number that particles.star gives."""
    assert main([*WORDS, *PACKED, "--only_tomogram", "TS_03"]) == 0
    assert groups_in_containers() == ["2", "2"]
    assert main([*WORDS, *PACKED, "--only_do_unfinished"]) == 0
    assert json.loads(Path("out/run_summary.json").read_text())["n_done_before"] == 2
    assert groups_in_containers() == ["1", "1", "2", "2"]


@pytest.mark.parametrize("packed", WAYS)
def test_overwriting_one_tomogram_keeps_other_containers(
    case: ProjectCopy, packed: list[str]
) -> None:
    """The container of the other one is merged again as it is."""
    assert main([*WORDS, *packed]) == 0
    before = contents("out", ".h5")
    assert main([*WORDS, *packed, "--overwrite", "--only_tomogram", "TS_01"]) == 0
    assert main([*WORDS, *packed, "--only_do_unfinished"]) == 0
    assert json.loads(Path("out/run_summary.json").read_text())["n_done_before"] == 4
    assert contents("out", ".h5") == before


def test_container_of_a_tomogram_that_left_the_set(case: ProjectCopy) -> None:
    """It stays, for a set that has the tomogram again; --overwrite removes it."""
    assert main([*WORDS, *PACKED]) == 0
    table = Path("tomograms.star").read_text()
    kept = [line for line in table.split("\n") if not line.startswith("TS_03")]
    Path("tomograms.star").write_text("\n".join(kept))
    assert main([*WORDS, *PACKED, "--only_do_unfinished"]) == 0
    assert Path(CONTAINERS[1]).exists()
    assert main(["verify", "out/"]) == 0
    assert main([*WORDS, *PACKED, "--overwrite"]) == 0
    assert not Path(CONTAINERS[1]).exists()


def test_containers_of_a_half_overwritten_run(
    case: ProjectCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while it removes containers, continued without them: none is left."""

    def fail(self: ContainerStore, tomogram: str) -> None:
        raise OutputError("stopped")

    assert main([*WORDS, *PACKED]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(ContainerStore, "remove", fail)
        assert main([*WORDS, "--overwrite"]) == 1
    assert main([*WORDS, "--only_do_unfinished"]) == 0
    assert not contents("out", ".h5")


def test_optics_groups_of_containers_that_were_renumbered(case: ProjectCopy) -> None:
    """A tomogram that comes to stand first takes the first number: the other is written anew."""
    table = Path("particles.star").read_text()
    kept = [line for line in table.split("\n") if not line.startswith("TS_01")]
    Path("particles.star").write_text("\n".join(kept))
    assert main([*WORDS, *PACKED]) == 0
    assert groups_in_containers() == ["1", "1"]
    Path("particles.star").write_text(table)
    assert main([*WORDS, *PACKED, "--only_do_unfinished"]) == 0
    assert groups_in_containers() == ["1", "1", "2", "2"]


def groups_in_containers() -> list[str]:
    """Return rlnOpticsGroup of all particles in particles.h5, which particles.star has too."""
    with hdf5.open_container("out/particles.h5") as file:
        groups = [str(group) for group in hdf5.read_text(file["table/rlnOpticsGroup"])]
    star = read_star("out/particles.star", Findings())
    assert star is not None
    assert list(star.tables["particles"].columns["rlnOpticsGroup"]) == groups
    return groups


def set_class(number: str) -> None:
    """Give all particles of the input a class."""
    star = read_star("particles.star", Findings())
    assert star is not None
    columns = star.tables["particles"].columns
    columns["rlnClassNumber"] = np.full(len(columns["rlnTomoName"]), number, dtype=object)
    write_star("particles.star", star.tables.values())


@pytest.mark.parametrize("packed", WAYS)
def test_interrupted_run_continues(
    case: ProjectCopy, monkeypatch: pytest.MonkeyPatch, packed: list[str]
) -> None:
    """After a chunk the container is absent, nothing opens, and what is done is not done again."""
    assert main([*WORDS, *packed]) == 0
    whole = contents("out", ".h5")
    shutil.rmtree("out")
    monkeypatch.setattr(task_work, "CHUNK_PER_THREAD", 1)
    words = ["1" if WORDS[i - 1] == "--j" else word for i, word in enumerate(WORDS)]
    real, calls = os.pwrite, []

    def fill_up(descriptor: int, data: bytes, offset: int) -> int:
        calls.extend([offset] if offset else [])  # the lock's file is written from its start
        if len(calls) > 4:  # values and statistics of images and weights of one particle
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fill_up)
        assert main([*words, *packed]) == 1
    assert not contents("out", ".h5")
    parts = list(Path("out").rglob("*.part"))
    assert len(parts) == 2
    assert not any(h5py.is_hdf5(part) for part in parts)
    assert main([*words, *packed, "--only_do_unfinished"]) == 0
    assert json.loads(Path("out/run_summary.json").read_text())["n_done_before"] == 1
    assert contents("out", ".h5") == whole


@pytest.mark.parametrize(
    ("file", "limit"),
    [
        *[(CONTAINERS[0], limit) for limit in (4096, 20_000, 50_000)],
        ("compressed", 8192),
        ("out/particles.h5", 8192),
    ],
)
def test_what_hdf5_cannot_write_is_an_error(file: str, limit: int, case: ProjectCopy) -> None:
    """A file that is laid out, compressed or joined; the library alone crashes at its end."""
    words = [*WORDS, *(COMPRESSED if file == "compressed" else PACKED)]
    assert main(words) == 0
    whole = contents("out", ".h5")
    if file == CONTAINERS[0]:
        shutil.rmtree("out")
    elif file == "compressed":
        file = CONTAINERS[0]
        assert main([*WORDS, *PACKED, "--o", "plain/"]) == 0
        shutil.move(Path("plain", *Path(file).parts[1:]), "out/.completed/TS_01/container.part")
        Path(file).unlink()
    else:
        Path(file).unlink()
    words.append("--only_do_unfinished")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "relion_pseudosubtomo", *words],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert f"{file} could not be written: {os.strerror(errno.EFBIG)}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path(file).exists()
    assert not list(Path("out").rglob(TEMPORARY_PATTERN))
    assert main(words) == 0
    assert contents("out", ".h5") == whole


@pytest.mark.parametrize("packed", WAYS)
def test_finished_container_is_taken_back(case: ProjectCopy, packed: list[str]) -> None:
    """Where an MRC file beside it is lost, its record's particles are done again in both."""
    words = [*WORDS, *(word for word in packed if word != "--no_mrc")]
    assert main(words) == 0
    before = contents("out", ".h5", ".mrc")
    Path("out/Subtomograms/TS_01/1_data.mrc").unlink()
    assert main([*words, "--only_do_unfinished"]) == 0
    assert contents("out", ".h5", ".mrc") == before


def test_compressed_container_of_which_a_record_is_lost(case: ProjectCopy) -> None:
    """Nothing can be written to it any more: all its particles are done again."""
    assert main([*WORDS, *COMPRESSED]) == 0
    before = contents("out", ".h5")
    record = Path("out/.completed/TS_01/0-2.json")
    fields = json.loads(record.read_text())
    record.unlink()
    time.sleep(0.01)
    fields.update(stop=1, stems=fields["stems"][:1])
    record.with_name("0-1.json").write_text(json.dumps(fields))
    assert main([*WORDS, *COMPRESSED, "--only_do_unfinished"]) == 0
    assert json.loads(Path("out/run_summary.json").read_text())["n_done_before"] == 2
    assert contents("out", ".h5") == before


def test_compression_that_failed_is_done_at_the_next_start(
    case: ProjectCopy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No space for the compressed copy: no particle is extracted again for that."""
    assert main([*WORDS, *COMPRESSED]) == 0
    before = contents("out", ".h5")

    def fill_up(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(zlib, "compress", fill_up)
        assert main([*WORDS, *COMPRESSED, "--overwrite"]) == 1
    assert "TS_01.h5 could not be written: No space left on device" in capsys.readouterr().err
    assert not contents("out", ".h5")
    assert not any(h5py.is_hdf5(part) for part in Path("out").rglob("*.part"))
    assert main([*WORDS, *COMPRESSED, "--only_do_unfinished"]) == 0
    assert json.loads(Path("out/run_summary.json").read_text())["n_done_before"] == 4
    assert contents("out", ".h5") == before


def test_compression_stops_when_the_job_does(case: ProjectCopy) -> None:
    """What is unfinished stays as it was; another time it is finished."""
    assert main([*WORDS, *COMPRESSED]) == 0
    before = contents("out", ".h5")
    place = Path(CONTAINERS[0])
    assert main([*WORDS, *PACKED, "--o", "plain/"]) == 0
    part = Path("out/.completed/TS_01/container.part")
    shutil.move("plain/Subtomograms/TS_01.h5", part)
    place.unlink()
    store = ContainerStore("out")
    assert not store.finish("TS_01", 2, lambda: True)
    assert part.exists()
    assert not place.exists()
    assert store.finish("TS_01", 2)
    assert not part.exists()
    assert contents("out", ".h5") == before


def test_signal_while_compressing(case: ProjectCopy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job stops without tables, though all particles are done; the next start compresses."""

    def wait_for_end(self: Compressor, *_: object) -> NoReturn:
        os.kill(os.getpid(), signal.SIGTERM)
        while not self.stopped():
            time.sleep(0.01)
        raise CompressionStopped

    with monkeypatch.context() as patch:
        patch.setattr(Compressor, "compress_particles", wait_for_end)
        assert main([*WORDS, *COMPRESSED]) == 75
    assert not Path("out/particles.star").exists()
    assert not contents("out", ".h5")
    assert main([*WORDS, *COMPRESSED, "--only_do_unfinished"]) == 0
    assert main(["verify", "--deep", "out/"]) == 0


def test_other_compression_is_another_job(
    case: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """No directory gets containers of two kinds."""
    assert main([*WORDS, *COMPRESSED]) == 0
    assert main([*WORDS, *PACKED, "--only_do_unfinished"]) == 1
    assert "--hdf5_compression is not that of the results in out/" in capsys.readouterr().err


def test_format_that_lays_chunks_out_otherwise(tmp_path: Path) -> None:
    """Places of particles would be wrong: it is refused."""
    with (
        h5py.File(tmp_path / "old.h5", "w", libver="earliest") as file,
        pytest.raises(OutputError, match="expected chunks that lie one behind another"),
    ):
        hdf5._reserve(file, "images", (1000, 8, 8), np.dtype("<f4"), 1)


@pytest.mark.parametrize("packed", WAYS)
def test_values_of_containers_are_verified(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    packed: list[str],
) -> None:
    """NaN, weights below zero, empty images, as in MRC files; and what cannot be read."""
    start_in(tmp_path, "basic_3d", monkeypatch)
    assert main([*WORDS, *packed]) == 0
    assert main(["verify", "--deep", "out/"]) == 0
    with h5py.File(CONTAINERS[0], "r+") as file:
        file["images"][0, 0, 0, 0] = np.nan
        file["images"][1] = 0
        file["weights"][1, 0, 0, 0, 0] = -1
    assert main(["verify", "out/"]) == 0
    capsys.readouterr()
    assert main(["verify", "--deep", "out/"]) == 1
    said = capsys.readouterr().out
    for what in ("values that are NaN or infinite", "nothing in the image", "weights below zero"):
        assert what in said
    assert "3 errors" in said


def test_values_that_changed_are_found(
    case: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are not those of the statistics."""
    assert main([*WORDS, *PACKED]) == 0
    with h5py.File(CONTAINERS[0], "r+") as file:
        file["images"][1, :4] = 0
        file["weights"][0] = 0
    capsys.readouterr()
    assert main(["verify", "--deep", "out/"]) == 1
    said = capsys.readouterr().out
    assert "[result-values] not the values that were written" in said
    assert f"{CONTAINERS[0]}: 2_data.mrc (mean " in said
    assert "[result-constant] nothing in the weights" in said
    assert "2 errors" in said


def test_containers_beside_mrc_files_are_read_too(
    case: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Values that a node lost in its crash are in the containers alone."""
    assert main([*WORDS, "--hdf5"]) == 0
    assert main(["verify", "--deep", "out/"]) == 0
    with h5py.File(CONTAINERS[1], "r+") as file:
        file["images"][0] = 0
    capsys.readouterr()
    assert main(["verify", "--deep", "out/"]) == 1
    said = capsys.readouterr().out
    assert f"{CONTAINERS[1]}: 1_data.mrc" in said
    assert "1 error," in said


def drop_tomogram() -> None:
    """Take the rows of one tomogram out of particles.star."""
    star = read_star("out/particles.star", Findings())
    assert star is not None
    columns = star.tables["particles"].columns
    stays = columns[labels.TOMO_NAME] == "TS_01"
    columns.update({label: values[stays] for label, values in columns.items()})
    write_star("out/particles.star", star.tables.values())


def cut_joined() -> None:
    """Leave the first bytes of particles.h5 alone."""
    os.truncate("out/particles.h5", 100)


def rename_in_joined() -> None:
    """Let particles.h5 name another particle."""
    with h5py.File("out/particles.h5", "r+") as file:
        file[f"table/{labels.PARTICLE_NAME}"][1] = b"TS_01/7"


@pytest.mark.parametrize("words", [PACKED, ["--hdf5"]], ids=["alone", "beside MRC files"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_tomogram, "container in out/particles.h5: expected 2, found 4"),
        (cut_joined, "[result-unreadable] out/particles.h5 cannot be opened"),
        (rename_in_joined, "container in out/particles.h5: expected 4, found 4, without TS_01/2"),
    ],
)
def test_joined_file_is_verified(
    words: list[str],
    damage: Callable[[], None],
    message: str,
    case: ProjectCopy,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It has to hold the particles of the table."""
    assert main([*WORDS, *words]) == 0
    damage()
    capsys.readouterr()
    assert main(["verify", "out/"]) == 1
    assert message in capsys.readouterr().out


def test_visible_frames_of_containers_are_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As those of MRC files: the counts of images are in the containers."""
    start_in(tmp_path, "basic_2d", monkeypatch)
    assert main([*WORDS, "--stack2d", *PACKED]) == 0
    original = Path("out/particles.star").read_text()
    star = read_star("out/particles.star", Findings())
    assert star is not None
    flags = star.tables["particles"].columns[labels.VISIBLE_FRAMES]
    flags[0], flags[1] = "None", flags[1].replace("1", "0", 1)
    write_star("out/particles.star", star.tables.values())
    capsys.readouterr()
    assert main(["verify", "out/"]) == 1
    said = capsys.readouterr().out
    assert "[result-visible]" in said
    assert "[result-slices]" in said
    assert main(["verify", "--repair", "out/"]) == 0
    repaired = read_star("out/particles_repaired.star", Findings())
    Path("original.star").write_text(original)
    before = read_star("original.star", Findings())
    assert repaired is not None
    assert before is not None
    column = labels.VISIBLE_FRAMES
    assert list(repaired.tables["particles"].columns[column]) == list(
        before.tables["particles"].columns[column]
    )
    # a new run removes it: it would name other images
    assert main([*WORDS, "--stack2d", *PACKED, "--overwrite"]) == 0
    assert not Path("out/particles_repaired.star").exists()


@pytest.mark.parametrize("words", [PACKED, ["--hdf5"]], ids=["alone", "beside MRC files"])
@pytest.mark.parametrize("more", [[], ["--deep", "--repair"]], ids=["", "deep"])
def test_table_without_tomograms(
    words: list[str], more: list[str], case: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """It cannot be told which container is whose: the lost column is."""
    assert main([*WORDS, *words]) == 0
    star = read_star("out/particles.star", Findings())
    assert star is not None
    del star.tables["particles"].columns[labels.TOMO_NAME]
    write_star("out/particles.star", star.tables.values())
    capsys.readouterr()
    assert main(["verify", "out/", *more]) == 1
    said = capsys.readouterr().out
    assert f"error [missing-column] no column {labels.TOMO_NAME} in out/particles.star" in said
    assert "1 error," in said


@pytest.mark.parametrize("words", [PACKED, ["--hdf5"]], ids=["alone", "beside MRC files"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
def test_table_of_another_program_is_verified(
    words: list[str], named: bool, case: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Particles left out, another order, no names: what is left is in the containers."""
    assert main([*WORDS, *words]) == 0
    star = read_star("out/particles.star", Findings())
    assert star is not None
    columns = star.tables["particles"].columns
    for label in list(columns):
        columns[label] = columns[label][:0:-1]
    if not named:
        del columns[labels.PARTICLE_NAME]
    write_star("selected.star", star.tables.values())
    assert main(["verify", "--deep", "out/", "--particles", "selected.star"]) == 0
    assert "3 particles verified\n0 errors, 0 warnings" in capsys.readouterr().out
    with h5py.File(CONTAINERS[1], "r+") as file:
        file["images"][0, 0, 0, 0] = np.nan
        file["stems"][1] = file[f"table/{labels.PARTICLE_NAME}"][1] = b"TS_03/unknown"
    assert main(["verify", "--deep", "out/", "--particles", "selected.star"]) == 1
    said = capsys.readouterr().out
    assert f"container in {CONTAINERS[1]}: expected 2 of TS_03, found 2, without " in said
    assert "values that are NaN or infinite" in said


def test_damaged_chunk_is_found(case: ProjectCopy, capsys: pytest.CaptureFixture[str]) -> None:
    """What no longer decompresses is named."""
    assert main([*WORDS, *COMPRESSED]) == 0
    with h5py.File(CONTAINERS[0]) as file:
        chunk = file["images"].id.get_chunk_info(0)
    with open(CONTAINERS[0], "r+b") as raw:
        raw.seek(chunk.byte_offset + chunk.size // 2)
        raw.write(bytes(64))
    capsys.readouterr()
    assert main(["verify", "--deep", "out/"]) == 1
    assert f"{CONTAINERS[0]} cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("packed", WAYS)
@pytest.mark.parametrize("seed", range(4))
def test_killed_run_leaves_whole_containers_or_none(
    seed: int, packed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at a random moment: what opens is complete, and the next start continues."""
    start_in(tmp_path, "basic_2d", monkeypatch)
    words = [*WORDS, "--stack2d", *packed]
    assert main(words) == 0
    whole = contents("out", ".h5")
    shutil.rmtree("out")
    process = subprocess.Popen([sys.executable, "-P", "-m", "relion_pseudosubtomo", *words])
    while not Path("out/.completed").exists() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(random.Random(seed).uniform(0, 0.08))
    process.send_signal(signal.SIGKILL)
    process.wait()
    for name, content in contents("out", ".h5").items():
        assert content == whole[name]
    assert not any(h5py.is_hdf5(path) for path in Path("out").rglob("*.part"))
    assert main([*words, "--only_do_unfinished"]) == 0
    assert contents("out", ".h5") == whole
    assert not list(Path("out").rglob("*.part"))


def test_overwriting_removes_containers(case: ProjectCopy) -> None:
    """A run without containers leaves none of an earlier one, finished or not."""
    assert main([*WORDS, *PACKED]) == 0
    folder = Path("out/.completed/TS_01")
    next(folder.glob("*.json")).unlink()
    shutil.move(CONTAINERS[0], folder / "container.part")
    assert main([*WORDS, "--overwrite"]) == 0
    assert not [*Path("out").rglob("*.h5"), *Path("out").rglob("container.*")]
    assert main(["verify", "out/"]) == 0


def test_unpacking_where_the_directory_has_moved(case: ProjectCopy) -> None:
    """The tables name the files where they are now."""
    assert main([*WORDS, *PACKED]) == 0
    Path("elsewhere").mkdir()
    shutil.move("out", "elsewhere/job")
    assert main(["unpack", "elsewhere/job"]) == 0
    assert main(["verify", "elsewhere/job"]) == 0
    assert "elsewhere/job/particles.star" in Path("elsewhere/job/optimisation_set.star").read_text()


@pytest.mark.parametrize(
    ("name", "words", "table", "value"),
    [
        ("basic_3d", ["--average"], "average_fsc.star", "{}/average_half2.mrc"),
        ("real_subtomo", ["--real_subtomo"], "particles_for_class2d.star", "@{}/Subtomograms/"),
    ],
    ids=["average", "2D classes"],
)
def test_unpacking_moves_all_tables(
    name: str,
    words: list[str],
    table: str,
    value: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of averages and for 2D classification as well, and nothing else of them."""
    start_in(tmp_path, name, monkeypatch)
    assert main([*WORDS, *words, *PACKED]) == 0
    before = Path("out", table).read_text()
    assert main(["unpack", "out"]) == 0
    assert Path("out", table).read_text() == before
    shutil.move("out", "moved")
    assert main(["unpack", "moved"]) == 0
    assert value.format("moved") in Path("moved", table).read_text()
    assert Path("moved", table).read_text().split() == before.replace("out/", "moved/").split()


def test_unpacking_by_another_path(
    case: ProjectCopy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tables keep the directory's name in the project; elsewhere nothing is written."""
    assert main([*WORDS, *PACKED]) == 0
    place = str(Path("out").absolute())
    with monkeypatch.context() as patch:
        patch.chdir("/")
        assert main(["unpack", place]) == 1
        said = f"is not found from here. Unpack in the project's directory, {Path(place).parent}."
        assert said in capsys.readouterr().err
    assert not list(Path("out").rglob("*.mrc*"))
    assert main(["unpack", place]) == 0
    assert place not in Path("out/particles.star").read_text()
    assert place not in Path("out/optimisation_set.star").read_text()
    assert main(["verify", "out"]) == 0
    assert main(["verify", place]) == 0


@pytest.mark.parametrize("packed", WAYS)
def test_unpacking_into_a_full_disk(
    case: ProjectCopy,
    packed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Refused before anything is written; files that are there already need no more room."""
    assert main([*WORDS, *packed, "--ctf"]) == 0
    assert main(["unpack", "out"]) == 0
    files = sorted(Path("out").rglob("*.mrc"))
    sizes = [path.stat().st_size for path in files]
    for path in files[1:]:
        path.unlink()
    usage = SimpleNamespace(free=sum(sizes[1:]) - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    capsys.readouterr()
    assert main(["unpack", "out"]) == 1
    said = f"Disk space in out: expected {sum(sizes[1:]) / 1e3:.2f} kB free for the MRC files, "
    assert said in capsys.readouterr().err
    assert list(Path("out").rglob("*.mrc")) == files[:1]
    assert main(["unpack", "out", "--ignore_disk_space"]) == 0
    usage.free = 0
    assert main(["unpack", "out"]) == 0


@pytest.mark.parametrize("left", [0, -2], ids=["first", "last"])
def test_interrupted_unpacking(
    left: int, case: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that are missing, or cut short, are to be unpacked again, whichever those are."""
    assert main([*WORDS, *PACKED]) == 0
    assert main(["verify", "out"]) == 0
    assert main(["unpack", "out"]) == 0
    files = sorted(Path("out").rglob("*.mrc"))
    kept = files.pop(left)
    assert kept.name.endswith("_data.mrc")
    for path in files:
        path.unlink()
    capsys.readouterr()
    assert main(["verify", "out"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("error [result-unpacked] image file missing in out/particles.star, ")
    assert f"expected {files[0]}, " in said
    assert "Run relion_pseudosubtomo unpack again" in said
    assert "--only_do_unfinished" not in said
    assert main(["unpack", "out"]) == 0
    assert main(["verify", "out"]) == 0
    os.truncate(kept, 2000)
    capsys.readouterr()
    assert main(["verify", "out"]) == 1
    assert "error [result-unpacked] image file not readable" in capsys.readouterr().out


def move_particle() -> None:
    """Give the first particle, of TS_01, another position."""
    star = read_star("particles.star", Findings())
    assert star is not None
    star.tables["particles"].columns[labels.CENTERED_COORDINATE_XYZ[2]][0] = "2.0"
    write_star("particles.star", star.tables.values())


@pytest.mark.parametrize("packed", WAYS)
@pytest.mark.parametrize(
    ("words", "is_moved", "lost", "n_left"),
    [
        (["--only_do_unfinished"], False, "", 4),
        (["--only_do_unfinished"], True, "", 2),
        (["--only_do_unfinished"], True, "record", 2),
        (["--only_do_unfinished"], False, "container", 2),
        (["--overwrite"], True, "", 0),
        (["--overwrite", "--no_ctf"], False, "", 0),
        (["--overwrite", "--only_tomogram", "TS_01"], True, "", 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_no_image_of_a_former_container_stays(
    words: list[str],
    is_moved: bool,
    lost: str,
    n_left: int,
    packed: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tables of a container that is made anew name files of the same paths."""
    start_in(tmp_path, "basic_2d", monkeypatch)
    assert main([*WORDS, "--stack2d", *packed]) == 0
    assert main(["unpack", "out"]) == 0
    before = contents("out", ".mrcs")
    assert len(before) == 4
    if is_moved:
        move_particle()
    if lost == "record":
        next(Path("out/.completed/TS_01").glob("*.json")).unlink()
    elif lost == "container":
        Path(CONTAINERS[0]).unlink()
    assert main([*WORDS, "--stack2d", *packed, *words]) == 0
    after = contents("out", ".mrcs")
    assert len(after) == n_left
    assert after.items() <= before.items()
    assert n_left == 4 or not any("TS_01" in name for name in after)
    assert main(["unpack", "out"]) == 0
    assert main(["verify", "out"]) == 0


def test_files_of_former_kinds_go_too(case: ProjectCopy) -> None:
    """Those of a run with other files a particle."""
    assert main([*WORDS, *PACKED, "--ctf"]) == 0
    assert main(["unpack", "out"]) == 0
    assert contents("out", "_CTF2.mrc")
    assert main([*WORDS, "--stack2d", "--overwrite"]) == 0
    assert not contents("out", ".mrc")
    assert main(["verify", "out"]) == 0


@pytest.mark.parametrize("kind", ["2D", "2D float16", "3D"])
def test_images_of_a_former_container_are_found(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever their times are: a copy of a directory has new ones."""
    name, words = KINDS[kind]
    start_in(tmp_path, name, monkeypatch)
    assert main([*WORDS, *words, *PACKED]) == 0
    assert main(["unpack", "out"]) == 0
    shutil.copytree("out", "former")
    assert main([*WORDS, *words, *PACKED, "--no_ctf", "--overwrite"]) == 0
    assert main(["unpack", "out"]) == 0
    for path in Path("out/Subtomograms").rglob("*.mrc*"):
        os.utime(path, (0, 0))
    assert main(["verify", "out"]) == 0
    images = sorted(Path("out/Subtomograms").rglob("1_[sd]*.mrc*"))
    assert len(images) == 2
    for path in images:
        shutil.copy(Path("former", *path.parts[1:]), path)
    capsys.readouterr()
    assert main(["verify", "out"]) == 1
    said = capsys.readouterr().out
    assert said.startswith(
        "error [result-unpacked] 2 MRC files with other values than the containers in out: found "
        f"{images[0]}, {images[1]}. Run relion_pseudosubtomo unpack again"
    )
    assert main(["unpack", "out"]) == 0
    assert main(["verify", "out"]) == 0


@pytest.mark.parametrize(
    ("file", "dataset"),
    [(CONTAINERS[1], "stems"), ("out/particles.h5", "stems"), ("out/particles.h5", "containers")],
)
@pytest.mark.parametrize("name", ["../../evil", "{}/evil", "Subtomograms/../../../evil", "ev\til"])
def test_names_that_lead_outside_are_refused(
    name: str,
    file: str,
    dataset: str,
    case: ProjectCopy,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Containers may come from anywhere; nothing is written, of the other container neither."""
    assert main([*WORDS, *PACKED]) == 0
    name = name.format(tmp_path)
    with h5py.File(file, "r+") as opened:
        values = [name.encode(), *opened[dataset][1:]]
        del opened[dataset]
        opened[dataset] = np.array(values, h5py.string_dtype("utf-8", max(map(len, values))))
    capsys.readouterr()
    assert main(["unpack", "out"]) == 1
    said = f"Names of files in {file}: expected paths inside its directory, found {name!r}. "
    assert said in capsys.readouterr().err
    assert not [*Path("out").rglob("*.mrc*"), *tmp_path.glob("evil*")]


def test_suffixes_that_lead_outside_are_refused(
    case: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are parts of paths as well."""
    assert main([*WORDS, *PACKED]) == 0
    with h5py.File(CONTAINERS[1], "r+") as file:
        file["images"].attrs["suffix"] = "/../../../evil.mrc"
    assert main(["unpack", "out"]) == 1
    assert "found '/../../../evil.mrc'" in capsys.readouterr().err
    assert not list(Path("out").rglob("*.mrc*"))


def test_unpacking_without_the_project(
    case: ProjectCopy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing of it is read; the tables name the files from where that is done."""
    assert main([*WORDS, *PACKED, "--o", "PseudoSubtomo/job009/"]) == 0
    shutil.copytree("PseudoSubtomo/job009", "copy")
    assert main(["unpack", "PseudoSubtomo/job009"]) == 0
    expected = contents("PseudoSubtomo/job009", ".mrc")
    for folder in ("archive", "archive/PseudoSubtomo"):  # the second has its recorded name there
        shutil.copytree("copy", tmp_path / folder / "job009")
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path / "archive")
            name = os.path.relpath(tmp_path / folder / "job009")
            capsys.readouterr()
            assert main(["unpack", name]) == 0
            said = capsys.readouterr()
            assert f"tomograms.star, which {name}/optimisation_set.star names, is not" in said.err
            assert contents(name, ".mrc") == expected
            table = read_particle_table(f"{name}/particles.star", Findings())
            assert table is not None
            assert all(Path(path).exists() for path in table.particles.columns[labels.IMAGE_NAME])


def test_what_to_do_with_containers_is_said(
    case: ProjectCopy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind a table whose images are not there yet."""
    said = "relion_pseudosubtomo unpack out/ makes the MRC files that RELION reads\n"
    assert main([*WORDS, *PACKED, "--log_level", "info"]) == 0
    assert said in capsys.readouterr().out
    assert main([*WORDS, "--hdf5", "--log_level", "info", "--overwrite"]) == 0
    assert said not in capsys.readouterr().out


def test_what_is_wrong_is_said(case: ProjectCopy, capsys: pytest.CaptureFixture[str]) -> None:
    """A container that is missing, damaged or of another layout; a directory without any."""
    assert main(["unpack", "nowhere"]) == 1
    assert "nowhere/particles.h5 is missing" in capsys.readouterr().err
    assert main([*WORDS, *PACKED]) == 0
    capsys.readouterr()
    with h5py.File(CONTAINERS[0], "r+") as file:
        file.attrs["layout_version"] = 99
    with pytest.raises(InputError, match="expected 'relion_pseudosubtomo particles', version 1"):
        hdf5.open_container(CONTAINERS[0])
    os.truncate(CONTAINERS[0], 3000)
    assert main(["unpack", "out"]) == 1
    assert f"{CONTAINERS[0]} cannot be opened" in capsys.readouterr().err
    assert main(["verify", "out"]) == 1
    Path(CONTAINERS[0]).unlink()
    assert main(["verify", "out"]) == 1
    assert f"found {CONTAINERS[0]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_mrc": True}, "--no_mrc without --hdf5"),
        ({"hdf5_compression": 1}, "--hdf5_compression without --hdf5"),
        ({"hdf5": True, "hdf5_compression": 10}, "expected a level of 0 to 9, found 10"),
        ({"hdf5": True, "box": 1024, "crop": 1024}, "expected volumes of less than 4 GiB"),
        ({"hdf5": True, "no_writing": True}, "--hdf5 together with --no_writing"),
    ],
)
def test_combinations_that_make_no_sense(changes: dict[str, object], message: str) -> None:
    """They are refused."""
    errors = [finding.text for finding in check_options(make_options(**changes)).errors]
    assert any(message in error for error in errors)


def test_disk_space_counts_containers(case: ProjectCopy) -> None:
    """Beside MRC files they double what is needed; alone they are a little smaller."""
    job, plan = read_and_check(make_options())
    tomogram, task = job.tomogram_set.tomograms[plan.tasks[0].tomogram], plan.tasks[0]
    files, both, alone = (
        estimate.task_bytes(make_options(**changes), tomogram, task)
        for changes in ({}, {"hdf5": True}, {"hdf5": True, "no_mrc": True})
    )
    assert both == files + alone
    assert alone == files - 2 * 2 * estimate.MRC_HEADER_BYTES
    assert not make_options(hdf5=True).may_split
    compressed = make_options(hdf5=True, no_mrc=True, hdf5_compression=1)
    assert estimate.task_bytes(compressed, tomogram, task) == alone
    assert estimate.passing_bytes(compressed, [alone, 2 * alone], 3) == 3 * alone
    assert estimate.passing_bytes(make_options(hdf5=True), [alone], 3) == 0


@pytest.mark.parametrize("packed", WAYS)
def test_disk_space_of_containers_that_go(
    case: ProjectCopy,
    packed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--overwrite frees what they take before it writes; what is said has digits of small sizes."""
    assert main([*WORDS, *packed]) == 0
    taken = ContainerStore("out").disk_bytes()
    assert taken == sum(os.stat(path).st_blocks * 512 for path in CONTAINERS)
    job, plan = read_and_check(make_options(output="elsewhere"))
    options = make_options(hdf5=True, no_mrc=True, hdf5_compression=int(packed == COMPRESSED))
    sizes = [
        estimate.container_bytes(options, job.tomogram_set.tomograms[task.tomogram], task)
        for task in plan.tasks
    ]
    needed = sum(sizes) + estimate.passing_bytes(options, sizes, 1)
    usage = SimpleNamespace(free=needed - taken - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    capsys.readouterr()
    assert main([*WORDS, *packed, "--overwrite"]) == 1
    said = f"expected {needed / 1e3:.2f} kB free, found {(needed - 1) / 1e3:.2f} kB"
    assert said in capsys.readouterr().err
    usage.free += 1
    assert main([*WORDS, *packed, "--overwrite"]) == 0
