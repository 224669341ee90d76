"""The layout of HDF5 containers (spec 3.5), listed in docs/hdf5.md: made, joined and read.

No other module uses h5py. Nothing in a file varies from run to run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import __version__, labels
from relion_pseudosubtomo.errors import InputError, OutputError
from relion_pseudosubtomo.io.atomic import atomic_path
from relion_pseudosubtomo.io.compression import ChunkRun, Compressor
from relion_pseudosubtomo.io.container_content import Content, Tables
from relion_pseudosubtomo.io.containers import DATASETS, IN_FOURIER_SPACE, Slots, UnfinishedFile
from relion_pseudosubtomo.io.fingerprint import describe_options
from relion_pseudosubtomo.io.library_file import LibraryFile
from relion_pseudosubtomo.io.mrc import HEADER_BYTES, StoredValues
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.options import LARGEST_CHUNK

File = h5py.File

FORMAT = "relion_pseudosubtomo particles"

#: Changes when the layout does in a way that readers notice.
LAYOUT_VERSION = 1

#: Columns that follow from `stems` and from where the output directory is.
PATH_COLUMNS = (labels.IMAGE_NAME, labels.CTF_IMAGE)

#: Options that say where images are written, and nothing of them.
_WHERE_TO = ("hdf5", "no_mrc", "hdf5_compression")

#: Any HDF5 library from 1.10 on reads these. It is the format in which the chunks of a dataset that
#: is allocated early need no index: they lie in one run.
_LIBRARY = ("v110", "v110")

#: Datasets of at least this many bytes start at a multiple of it.
_ALIGNMENT = 4096

#: Datasets (T, F) of the joined file with a row a tomogram, and what fills up short rows.
_PER_TOMOGRAM = ("dose", "tilt")
_N_STATISTICS = 4


def lay_out(path: Path, content: Content) -> Slots:
    """Make a container with all that is known before the extraction, and room for the values.

    Parameters
    ----------
    path : Path
    content : Content

    Returns
    -------
    Slots
        Where the values go.
    """
    starts = content.starts()
    dtype = np.dtype("<f2" if content.options.float16 else "<f4")
    voxel_size = content.binning * content.tomogram.pixel_size
    with LibraryFile(path) as written, _create(written) as file:
        _describe(file, content, voxel_size)
        _add_frames(file, content, starts)
        _add_table(file.create_group("table"), content.columns)
        places = {}
        for suffix in content.options.result_suffixes:
            name, unit = DATASETS[suffix], content.unit_shape(suffix)
            unit_bytes = int(np.prod(unit)) * dtype.itemsize
            # as many units as a particle has at most
            chunk = min(int(np.diff(starts).max()), LARGEST_CHUNK // unit_bytes)
            values, offset = _reserve(file, name, (int(starts[-1]), *unit), dtype, chunk)
            in_fourier_space = suffix in IN_FOURIER_SPACE
            values.attrs["voxel_size"] = 1 / voxel_size if in_fourier_space else voxel_size
            values.attrs["suffix"] = suffix
            shape = (len(content.task), _N_STATISTICS)
            _, statistics = _reserve(file, f"statistics/{name}", shape, np.dtype("<f4"), shape[0])
            places[suffix] = [offset, unit_bytes, statistics]
    level = content.options.hdf5_compression
    return Slots(path.stat().st_size, content.fingerprint, starts.tolist(), places, level)


@contextmanager
def _create(written: LibraryFile, alignment: int = _ALIGNMENT) -> Iterator[h5py.File]:
    """Yield a new HDF5 file, and close it; raise what could not be written of it."""
    try:
        with h5py.File(
            written,
            "w",
            libver=_LIBRARY,
            locking=False,
            alignment_threshold=alignment,
            alignment_interval=alignment,
        ) as file:
            yield file
    finally:
        written.raise_error()  # the reason of whatever else was raised


def _describe(file: h5py.File, content: Content, voxel_size: float) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["layout_version"] = LAYOUT_VERSION
    file.attrs["program_version"] = __version__
    options = describe_options(content.options)
    for name in _WHERE_TO:
        del options[name]
    file.attrs["options"] = json.dumps(options, sort_keys=True)
    file.attrs["is_stack"] = content.is_stack
    file.attrs["box"] = content.options.box
    file.attrs["image_size"] = content.image_size
    file.attrs["binning"] = content.binning
    file.attrs["tilt_series_pixel_size"] = content.tomogram.pixel_size
    file.attrs["pixel_size"] = voxel_size
    file.attrs["tomogram"] = content.tomogram.name


def _add_frames(file: h5py.File, content: Content, starts: NDArray[np.int64]) -> None:
    tomogram, task = content.tomogram, content.task
    _add(file, "visible", task.visible.astype(np.uint8))
    _add(file, "dose", tomogram.pre_exposure.astype(np.float64))
    # the projections are rotations about x, then y, then z (spec 2.1)
    sine = -tomogram.projections[:, 2, 0] / np.linalg.norm(tomogram.projections[:, 2, :3], axis=1)
    _add(file, "tilt", np.rad2deg(np.arcsin(np.clip(sine, -1, 1))))
    _add(file, "stems", _text(task.stems))
    if content.is_stack:
        _add(file, "offsets", starts)
        _add(file, "frame_index", np.nonzero(task.visible)[1].astype(np.int32))


def _add_table(group: h5py.Group, columns: Columns) -> None:
    """Add a STAR table as text; the paths follow from elsewhere, but have their place."""
    group.attrs["columns"] = np.array(list(columns), dtype=h5py.string_dtype())
    for label, values in columns.items():
        if label not in PATH_COLUMNS:
            _add(group, label, _text(values))


def _add(group: h5py.Group, name: str, values: NDArray) -> None:
    group.create_dataset(name, data=values, track_times=False)


def _text(values: Sequence[str] | NDArray) -> NDArray:
    """Return text as UTF-8 of one length, filled up with zeros."""
    encoded = [value.encode() for value in values]
    length = max(1, max(map(len, encoded), default=1))
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", length))


def _reserve(
    file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype, chunk: int
) -> tuple[h5py.Dataset, int]:
    """Make a dataset in one run of bytes that nothing is written to; return it and its place.

    Its chunks, of so many rows, lie one behind another, so that a row's place follows from its
    number as it would without chunks.
    """
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((chunk, *shape[1:]))
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_obj_track_times(False)
    parent, _, last = name.rpartition("/")
    group = file.require_group(parent) if parent else file
    space = h5py.h5s.create_simple(shape)
    made = h5py.h5d.create(group.id, last.encode(), h5py.h5t.py_create(dtype), space, settings)
    return h5py.Dataset(made), _find_run(made, chunk)


def _find_run(dataset: h5py.h5d.DatasetID, chunk: int) -> int:
    """Return the place of a dataset's first chunk, behind which the others lie without a gap."""
    shape = dataset.shape
    last = (shape[0] - 1) // chunk
    first_byte, last_byte = (
        int(dataset.get_chunk_info_by_coord((row, *(0 for _ in shape[1:]))).byte_offset)
        for row in (0, last * chunk)
    )
    if last_byte - first_byte != last * chunk * int(np.prod(shape[1:])) * dataset.dtype.itemsize:
        raise OutputError(
            f"HDF5 library {h5py.version.hdf5_version}: expected chunks that lie one behind "
            "another, found others. Leave out --hdf5, or use another version of h5py"
        )
    return first_byte


def compress(source: UnfinishedFile, target: Path, slots: Slots, compressor: Compressor) -> None:
    """Write a compressed copy of a container all of whose values are there.

    The same bytes for any number of threads: chunks are written in order.

    Parameters
    ----------
    source : UnfinishedFile
    target : Path
    slots : Slots
        Of the source.
    compressor : Compressor

    Raises
    ------
    CompressionStopped
    """
    # without gaps between chunks: a compressed one is read as a whole wherever it lies
    with (
        h5py.File(source, "r") as raw,
        LibraryFile(target) as written,
        _create(written, alignment=1) as packed,
    ):
        packed.attrs.update(raw.attrs)
        for name, item in raw.items():
            if "suffix" not in item.attrs:
                raw.copy(item, packed, name)
        for suffix, (place, n_bytes, _) in slots.places.items():
            made = _add_compressed(packed, raw[DATASETS[suffix]], compressor.level)
            run = ChunkRun(place, n_bytes, made.dtype.itemsize, slots.starts)
            chunks = chain.from_iterable(compressor.compress_particles(source.fileno(), run))
            for row, chunk in enumerate(chunks):
                made.write_direct_chunk((row, *(0 for _ in made.shape[1:])), chunk)
                written.raise_error()  # the rest would be compressed in vain


def _add_compressed(file: h5py.File, like: h5py.Dataset, level: int) -> h5py.h5d.DatasetID:
    """Add an empty dataset with a chunk for each image or volume, so that none is read in part."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((1, *like.shape[1:]))
    settings.set_shuffle()
    settings.set_deflate(level)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_obj_track_times(False)
    name, space = like.name.strip("/").encode(), h5py.h5s.create_simple(like.shape)
    made = h5py.h5d.create(file.id, name, like.id.get_type(), space, settings)
    h5py.Dataset(made).attrs.update(like.attrs)
    return made


def join(path: Path, names: Sequence[str], tables: Tables) -> None:
    """Write the file that joins whole containers, in this order.

    It has all but the images itself, so that reading it opens no other file; these are virtual.

    Parameters
    ----------
    path : Path
        The joined file; the containers are found from its folder.
    names : sequence of str
        Paths of the containers inside that folder.
    tables : Tables

    Raises
    ------
    InputError
        Where a container is not what it should be.
    OutputError
        Where the file cannot be written.
    """
    members = [_read_member(path.parent / name) for name in names]
    with (
        atomic_path(path) as temporary,
        LibraryFile(temporary) as written,
        _create(written) as file,
    ):
        first = members[0]
        for key, value in first.attributes.items():
            if key != "tomogram":
                file.attrs[key] = value
        _add_tomograms(file, members, names)
        for name in first.small:
            _add(file, name, _join_rows(name, [member.small[name] for member in members]))
        for name in first.images:
            _add_virtual(file, name, [member.images[name] for member in members], names)
        file["table"].attrs["columns"] = np.array(tables.columns, dtype=h5py.string_dtype())
        general = file.create_group("general")
        general.attrs["columns"] = np.array(list(tables.general), dtype=h5py.string_dtype())
        for label, text in tables.general.items():
            _add(general, label, _text([text]))
        _add_table(file.create_group("optics"), tables.optics)


@dataclass(frozen=True)
class _Images:
    """A dataset of images in a container: its shape, type and attributes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    attributes: dict[str, Any]


@dataclass(frozen=True)
class _Member:
    """What joining needs of a container: attributes, small datasets as a whole, and its images."""

    attributes: dict[str, Any]
    small: dict[str, NDArray]
    images: dict[str, _Images]


def _read_member(path: Path) -> _Member:
    """Read a container and close it: of thousands, a process may not hold all open."""
    small: dict[str, NDArray] = {}
    images: dict[str, _Images] = {}

    def note(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if "suffix" in item.attrs:
            images[name] = _Images(item.shape, item.dtype, dict(item.attrs))
        elif isinstance(item, h5py.Dataset):
            small[name] = item[...]

    with open_container(path) as file:
        try:
            file.visititems(note)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        return _Member(dict(file.attrs), small, images)


def _add_tomograms(file: h5py.File, members: list[_Member], names: Sequence[str]) -> None:
    """Add what tells where the particles of each tomogram are, and what its images are."""
    counts = [len(member.small["stems"]) for member in members]
    _add(file, "tomograms", _text([member.attributes["tomogram"] for member in members]))
    _add(file, "containers", _text(list(names)))
    sizes = [member.attributes["pixel_size"] for member in members]
    _add(file, "pixel_size", np.array(sizes, np.float64))
    _add(file, "n_frames", np.array([len(member.small["dose"]) for member in members], np.int64))
    _add(file, "first_particle", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    _add(file, "tomogram_index", np.repeat(np.arange(len(members)), counts))


def _join_rows(name: str, parts: list[NDArray]) -> NDArray:
    """Return a small dataset of all containers, one behind the other.

    Rows a frame are filled up to the longest; what holds one row a tomogram becomes a table.
    """
    if name == "offsets":
        n_images = np.concatenate([np.diff(part) for part in parts])
        return np.concatenate([[0], np.cumsum(n_images)]).astype(np.int64)
    if name in _PER_TOMOGRAM:
        return _fill_up([part[np.newaxis] for part in parts], np.nan)
    if name == "visible":
        return _fill_up(parts, 0)
    joined = np.concatenate(parts)
    if joined.dtype.kind == "S":  # as long as the longest of all, and still UTF-8
        return joined.astype(h5py.string_dtype("utf-8", joined.dtype.itemsize))
    return joined


def _fill_up(parts: list[NDArray], fill: float) -> NDArray:
    """Return the rows of all parts, shape (n, columns of the widest part)."""
    shape = sum(map(len, parts)), max(part.shape[1] for part in parts)
    joined = np.full(shape, fill, parts[0].dtype)
    row = 0
    for part in parts:
        joined[row : row + len(part), : part.shape[1]] = part
        row += len(part)
    return joined


def _add_virtual(file: h5py.File, name: str, parts: list[_Images], names: Sequence[str]) -> None:
    """Add a dataset that consists of those of the containers, one behind the other."""
    # reconstructed tomograms of several binnings give boxes of several sizes: zeros fill them up
    rest = tuple(np.max([part.shape[1:] for part in parts], axis=0).tolist())
    total = (sum(part.shape[0] for part in parts), *rest)
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.VIRTUAL)
    settings.set_obj_track_times(False)
    row = 0
    for part, path in zip(parts, names, strict=True):
        region = h5py.h5s.create_simple(total)
        region.select_hyperslab((row, *(0 for _ in rest)), part.shape)
        # % is special in the names of sources
        where = os.fsencode(path.replace("%", "%%")), name.encode()
        settings.set_virtual(region, *where, h5py.h5s.create_simple(part.shape))
        row += part.shape[0]
    kind, space = h5py.h5t.py_create(parts[0].dtype), h5py.h5s.create_simple(total)
    made = h5py.h5d.create(file.id, name.encode(), kind, space, settings)
    h5py.Dataset(made).attrs.update(parts[0].attributes)


def open_container(path: str | os.PathLike[str]) -> h5py.File:
    """Open a container or a joined file for reading.

    Raises
    ------
    InputError
        Where it is missing, damaged, or of another layout.
    """
    try:
        # finished containers never change, and parallel file systems often know no locks
        # and what is read is of no use in a cache of chunks: it is read once
        file = h5py.File(path, "r", locking=False, rdcc_nbytes=0)
        found = file.attrs.get("format"), file.attrs.get("layout_version")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        why = "is missing" if missing else f"cannot be opened: {error}"
        raise InputError(f"{path} {why}") from error
    if found != (FORMAT, LAYOUT_VERSION):
        file.close()
        raise InputError(
            f"Layout of {path}: expected '{FORMAT}', version {LAYOUT_VERSION}, found {found}"
        )
    return file


def read_text(dataset: h5py.Dataset) -> NDArray[np.object_]:
    """Return a dataset of text as an array of str."""
    return np.array([value.decode() for value in dataset[...]], dtype=object)


def read_table(group: h5py.Group) -> Columns:
    """Return the columns of a table, those of paths empty."""
    columns: dict[str, Any] = {}
    for label in group.attrs["columns"]:
        columns[label] = read_text(group[label]) if label in group else np.empty(0, object)
    return columns


def read_values(file: h5py.File, suffix: str, row: int) -> NDArray[np.floating]:
    """Return what an MRC file of a particle holds, shape (nz, ny, nx).

    Parameters
    ----------
    file : h5py.File
        A container.
    suffix : str
        Of the MRC file.
    row : int
        Of the particle.
    """
    values = file[DATASETS[suffix]]
    if file.attrs["is_stack"]:
        first, stop = file["offsets"][row : row + 2]
        return values[first:stop]
    volume = values[row]
    return volume.reshape(-1, *volume.shape[-2:])


def list_suffixes(file: h5py.File) -> list[str]:
    """Return the suffixes of the MRC files that a container stands for."""
    return [item.attrs["suffix"] for item in file.values() if "suffix" in item.attrs]


def count_unpacked_bytes(file: h5py.File) -> int:
    """Return the bytes of the MRC files that a container stands for."""
    images = [file[DATASETS[suffix]] for suffix in list_suffixes(file)]
    n_files = len(images) * len(file["stems"])
    return n_files * HEADER_BYTES + sum(item.size * item.dtype.itemsize for item in images)


def iterate_files(file: h5py.File) -> Iterator[tuple[str, str, StoredValues, float]]:
    """Yield (stem, suffix, values, voxel size) of every MRC file that a container stands for."""
    suffixes = list_suffixes(file)
    statistics = {suffix: file[f"statistics/{DATASETS[suffix]}"][:] for suffix in suffixes}
    for row, stem in enumerate(read_text(file["stems"])):
        for suffix in suffixes:
            stored = StoredValues(read_values(file, suffix, row), statistics[suffix][row])
            yield stem, suffix, stored, float(file[DATASETS[suffix]].attrs["voxel_size"])
