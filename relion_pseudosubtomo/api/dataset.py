"""Extracted particles as an indexable data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.api.geometry import GeometrySource, ParticleGeometry, read_geometry
from relion_pseudosubtomo.api.sources import (
    ContainerSource,
    FileSource,
    SelectedSource,
    Source,
)
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import Findings, format_findings, list_first
from relion_pseudosubtomo.io import hdf5
from relion_pseudosubtomo.io.columns import numbers, report_missing_columns, vectors
from relion_pseudosubtomo.io.containers import CONTAINER_SUFFIX, JOINED
from relion_pseudosubtomo.io.optimisation_set import OPTIMISATION_SET, resolve
from relion_pseudosubtomo.io.particles import ParticleTable, read_particle_table
from relion_pseudosubtomo.io.star import StarTable
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.options import JobOptions

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Particle:
    """One extracted particle.

    Attributes
    ----------
    name, tomogram : str
        rlnTomoParticleName and rlnTomoName.
    row : dict of str to str
        Its row of particles.star, as text.
    images : ndarray, shape (n_visible, n, n) or (n, n, n), float32 or float16
        2D images of the visible frames in frame order, or the 3D pseudo-subtomogram [z, y, x].
    weights : ndarray, shape (2, n, n, n/2 + 1), or None
        3D: CTF^2 weights, then multiplicity; half-complex, FFTW order.
    visible : ndarray, shape (n_frames,), bool, or None
        Frames that were used; None where nothing tells, as in RELION's own 3D directories.
    pixel_size : float
        Of the images, Angstrom.
    geometry : ParticleGeometry or None
        Only from `open_optimisation_set`.
    """

    name: str
    tomogram: str
    row: dict[str, str]
    images: Floats
    weights: Floats | None
    visible: Flags | None
    pixel_size: float
    geometry: ParticleGeometry | None = None


@dataclass(frozen=True, eq=False)
class ParticleDataset(Sequence[Particle]):
    """Extracted particles in the particle file's order; nothing is read before it is asked for.

    It can be pickled, and used by several processes and threads at once: each process opens files
    for itself, and its threads read containers in turn.

    Attributes
    ----------
    columns : dict of str to ndarray, shape (n_particles,), object
        The columns of the particle file as text; containers have none of paths.
    pixel_size : ndarray, shape (n_particles,), float64
        Of each particle's images, Angstrom.
    is_stack : bool
        Whether particles are stacks of 2D images.
    """

    columns: Columns
    pixel_size: Floats
    is_stack: bool
    _rows: NDArray[np.int64]
    _visible: list[Flags] | None
    _source: Source
    _geometry: GeometrySource | None = None

    def __len__(self) -> int:
        """Return the number of particles."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Particle: ...

    @overload
    def __getitem__(self, index: slice) -> ParticleDataset: ...

    def __getitem__(self, index: int | slice) -> Particle | ParticleDataset:
        """Return a particle, or for a slice a data set of these particles."""
        if isinstance(index, slice):
            return self._take(np.arange(len(self))[index])
        place = range(len(self))[index]
        row = int(self._rows[place])
        images, weights = self._source.read(row)
        visible = None if self._visible is None else self._visible[place]
        values = {label: column[place] for label, column in self.columns.items()}
        return Particle(
            values.get(labels.PARTICLE_NAME, ""),
            values[labels.TOMO_NAME],
            values,
            images,
            weights,
            visible,
            float(self.pixel_size[place]),
            None if self._geometry is None else self._geometry.of_particle(row, visible),
        )

    def _take(self, places: NDArray[np.int64]) -> ParticleDataset:
        return replace(
            self,
            columns={label: values[places] for label, values in self.columns.items()},
            pixel_size=self.pixel_size[places],
            _rows=self._rows[places],
            _visible=None if self._visible is None else [self._visible[i] for i in places],
        )

    def __iter__(self) -> Iterator[Particle]:
        """Yield the particles one by one."""
        return (self[i] for i in range(len(self)))


def open_dataset(path: str | os.PathLike[str], project: str = ".") -> ParticleDataset:
    """Open extracted particles.

    Parameters
    ----------
    path : str or path-like
        A container, particles.h5, particles.star, or an output directory of this program or of
        RELION: its particles.h5 where there is one, else its particles.star.
    project : str, optional
        Directory that paths in STAR files count from; the present one by default.

    Returns
    -------
    ParticleDataset
        Its particles have no geometry; see `open_optimisation_set`.

    Raises
    ------
    InputError
        Where files are missing or damaged.
    """
    path = Path(path)
    if path.is_dir():
        joined = path / JOINED
        path = joined if joined.exists() else path / "particles.star"
    if path.suffix == CONTAINER_SUFFIX:
        return _open_hdf5(path)
    return _open_table(_read_table(path), Path(project))


def open_optimisation_set(path: str | os.PathLike[str], project: str = ".") -> ParticleDataset:
    """Open the optimisation set of an extraction: particles with their geometry and CTFs.

    Parameters
    ----------
    path : str or path-like
        optimisation_set.star, or its directory. Images come from particles.h5 beside the particle
        file where it has all particles, by their names; else from the image files.
    project : str, optional
        Directory that paths in STAR files count from; the present one by default.

    Returns
    -------
    ParticleDataset
        The particles of the particle file, in its order: it may be a selection.

    Raises
    ------
    InputError
        Where files are missing, or are not what an extraction writes.
    """
    file = Path(path) / OPTIMISATION_SET if Path(path).is_dir() else Path(path)
    findings = Findings()
    files = resolve(JobOptions("", 2, 2, optimisation_set=str(file)), findings)
    if files is None:
        raise InputError(format_findings(findings))
    table = _read_table(Path(project, files.particles))
    geometry = read_geometry(table, files, Path(project))
    dataset = _find_in_containers(table, Path(project))
    if dataset is None:
        dataset = _open_table(table, Path(project))
    return replace(dataset, _geometry=geometry)


def _find_in_containers(table: ParticleTable, project: Path) -> ParticleDataset | None:
    """Return the particles of a particle file from particles.h5 beside it, found by their names.

    Returns
    -------
    ParticleDataset or None
        None where there is no particles.h5, or where it lacks some and all have image files.

    Raises
    ------
    InputError
        Where particles are in neither.
    """
    path = Path(table.path).with_name(JOINED)
    if not path.exists():
        return None
    dataset, columns = _open_hdf5(path), table.particles.columns
    place = {name: row for row, name in enumerate(dataset.columns[labels.PARTICLE_NAME])}
    names = columns.get(labels.PARTICLE_NAME, [f"no {labels.PARTICLE_NAME}"])
    missing = [name for name in names if name not in place]
    if missing:
        # with --no_mrc the table names files that `unpack` would make
        if all((project / name).is_file() for name in columns.get(labels.IMAGE_NAME, [""])):
            return None
        raise InputError(
            f"Particles of {table.path}: expected {labels.PARTICLE_NAME} as in {path}, or image "
            f"files of all, found {list_first(missing)}. Give particles of that extraction."
        )
    rows = np.array([place[name] for name in names])
    return replace(
        dataset._take(rows),
        columns=columns,
        _rows=np.arange(len(rows)),
        _source=SelectedSource(dataset._source, rows),
    )


def _open_hdf5(path: Path) -> ParticleDataset:
    with hdf5.open_container(path) as file:
        n = len(file["stems"])
        if "containers" in file:
            names, first = hdf5.read_text(file["containers"]), file["first_particle"][:]
            n_frames, sizes = file["n_frames"][:], file["pixel_size"][:]
        else:
            names, first = np.array([path.name], object), np.array([0, n])
            n_frames, sizes = len(file["dose"]), file.attrs["pixel_size"]
        counts = np.diff(first)
        lengths, pixel_size = np.repeat(n_frames, counts), np.repeat(sizes, counts)
        visible = [
            flags[:length].astype(bool)
            for flags, length in zip(file["visible"][:], lengths, strict=True)
        ]
        table = hdf5.read_table(file["table"])
        columns = {label: values for label, values in table.items() if label in file["table"]}
        is_stack = bool(file.attrs["is_stack"])
    paths = [os.path.abspath(path.parent / name) for name in names]
    for container in paths:  # opened only when their particles are asked for
        if not os.path.exists(container):
            raise InputError(f"{container} is missing, which {path} names")
    source = ContainerSource(paths, first)
    return ParticleDataset(columns, pixel_size, is_stack, np.arange(n), visible, source)


def _read_table(path: Path) -> ParticleTable:
    findings = Findings()
    table = read_particle_table(str(path), findings)
    if table is None or findings.errors:
        raise InputError(format_findings(findings))
    return table


def _open_table(table: ParticleTable, project: Path) -> ParticleDataset:
    if table.optics is None:
        raise InputError(f"{table.path}: expected a table data_optics. Give extracted particles.")
    findings = Findings()
    columns, n = table.particles.columns, table.particles.n_rows
    report_missing_columns(table.particles, [labels.IMAGE_NAME, labels.TOMO_NAME], findings)
    pixel_size = _find_pixel_sizes(table, table.optics, findings)
    flags = vectors(
        table.particles,
        labels.VISIBLE_FRAMES,
        findings,
        is_good=lambda length: length > 0,
        expected="one flag a frame",
        required=False,
    )
    if findings.errors:
        raise InputError(format_findings(findings))
    is_stack = table.general.get(labels.ARE_2D_STACKS) == "1"

    def absolute(label: str) -> list[str]:
        return [os.path.abspath(project / name) for name in columns[label]]

    weights = absolute(labels.CTF_IMAGE) if labels.CTF_IMAGE in columns else None
    return ParticleDataset(
        columns,
        pixel_size,
        is_stack,
        np.arange(n),
        [values > 0 for values in flags] if labels.VISIBLE_FRAMES in columns else None,
        FileSource(absolute(labels.IMAGE_NAME), weights),
    )


def _find_pixel_sizes(table: ParticleTable, optics: StarTable, findings: Findings) -> Floats:
    """Return the pixel size of each particle's images; adds what is wrong to the findings."""
    sizes = numbers(optics, labels.IMAGE_PIXEL_SIZE, findings)
    # by number: other programs write 1.0 for 1
    groups = numbers(optics, labels.OPTICS_GROUP, findings, default=1.0)
    first = float(groups[0]) if len(groups) else 1.0
    given = numbers(table.particles, labels.OPTICS_GROUP, findings, default=first)
    by_group = dict(zip(groups.tolist(), sizes.tolist(), strict=True))
    unknown = sorted({group for group in given.tolist() if group not in by_group})
    if unknown and not findings.errors:
        raise InputError(
            f"{labels.OPTICS_GROUP} in {table.path}: expected those of data_optics, found "
            f"{list_first([f'{group:g}' for group in unknown])}"
        )
    return np.array([by_group.get(group, np.nan) for group in given.tolist()])
