"""The simulated project on disk: RELION's folders, STAR files and MRC images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.errors import UsageError
from relion_pseudosubtomo.io.atomic import make_folder
from relion_pseudosubtomo.io.mrc import write_mrc
from relion_pseudosubtomo.io.star import StarTable, list_table, write_star
from relion_pseudosubtomo.simulate.dataset import HAND, Dataset, Particles, TiltSeries
from relion_pseudosubtomo.simulate.images import render_tilt_series
from relion_pseudosubtomo.simulate.structure import reference_volume

RELION5 = "relion5"
RELION4 = "relion4"
LAYOUTS = (RELION5, RELION4)

FRAMES_FOLDER = "MotionCorr/job002/frames"
TOMOGRAMS_FOLDER = "Tomograms/job008"
TOMOGRAMS_FILE = f"{TOMOGRAMS_FOLDER}/tomograms.star"
PARTICLES_FILE = "Picks/job007/particles.star"
OPTIMISATION_SET_FILE = "Picks/job007/optimisation_set.star"
TRAJECTORIES_FILE = "Polish/job009/motion.star"
REFERENCE_FILE = "reference.mrc"
OPTICS_GROUP_NAME = "optics1"


@dataclass(frozen=True)
class Reference:
    """How the known structure is sampled: voxels along each side, Angstrom a voxel."""

    box: int = 64
    pixel_size: float = 3.0

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        for name, value in (("box", self.box), ("voxel size", self.pixel_size)):
            if not value > 0:
                raise UsageError(f"reference {name}: expected a number above 0, found {value}")


def write_project(
    dataset: Dataset,
    directory: Path,
    layout: str = RELION5,
    reference: Reference | None = None,
) -> None:
    """Write a simulated project.

    Parameters
    ----------
    dataset : Dataset
        What is simulated.
    directory : Path
        The project directory, made where it is missing. Paths inside the STAR files are relative
        to it. Files of an earlier simulation are replaced.
    layout : {"relion5", "relion4"}
        RELION 4 has one stack a tilt series, projection matrices, and coordinates in pixels from
        the tomogram's corner.
    reference : Reference, optional
        Box and pixel size of the known structure's own file.

    Raises
    ------
    OutputError
        Where a file cannot be written.
    """
    reference = Reference() if reference is None else reference
    for index in range(len(dataset.tilt_series)):
        _write_images(dataset, index, directory, layout)
    writers = {
        TOMOGRAMS_FILE: _tomogram_tables(dataset, layout),
        PARTICLES_FILE: _particle_tables(dataset, layout),
        OPTIMISATION_SET_FILE: [list_table("", _optimisation_set(dataset))],
    }
    if layout == RELION5:
        for series in dataset.tilt_series:
            writers[_tilt_series_file(series)] = [_tilt_table(dataset, series, layout)]
    if dataset.settings.motion > 0:
        writers[TRAJECTORIES_FILE] = _trajectory_tables(dataset)
    for name, tables in writers.items():
        write_star(_make_room(directory / name), tables)
    volume = reference_volume(reference.box, reference.pixel_size, dataset.structure)
    write_mrc(
        directory / REFERENCE_FILE,
        volume.astype(np.float32),
        voxel_size=reference.pixel_size,
        is_stack=False,
        float16=False,
    )


def _make_room(path: Path) -> Path:
    make_folder(path.parent)
    return path


def _write_images(dataset: Dataset, index: int, directory: Path, layout: str) -> None:
    series = dataset.tilt_series[index]
    images = render_tilt_series(dataset, index)
    if layout == RELION4:
        _write_stack(directory / _stack_file(series), np.stack(list(images)), dataset)
        return
    for name, image in zip(_frame_files(series), images, strict=True):
        _write_stack(directory / name, image[None], dataset)


def _write_stack(path: Path, images: NDArray[np.float32], dataset: Dataset) -> None:
    pixel_size = dataset.settings.pixel_size
    write_mrc(_make_room(path), images, voxel_size=pixel_size, is_stack=True, float16=False)


def _stack_file(series: TiltSeries) -> str:
    return f"{FRAMES_FOLDER}/{series.name}.mrcs"


def _frame_files(series: TiltSeries) -> list[str]:
    return [
        f"{FRAMES_FOLDER}/{series.name}_{order:03d}_{tilt:.1f}.mrc"
        for order, tilt in zip(series.exposure_order, series.stage_tilt, strict=True)
    ]


def _tilt_series_file(series: TiltSeries) -> str:
    return f"{TOMOGRAMS_FOLDER}/tilt_series/{series.name}.star"


def _optimisation_set(dataset: Dataset) -> dict[str, str]:
    entries = {labels.PARTICLES_FILE: PARTICLES_FILE, labels.TOMOGRAMS_FILE: TOMOGRAMS_FILE}
    if dataset.settings.motion > 0:
        entries[labels.TRAJECTORIES_FILE] = TRAJECTORIES_FILE
    return entries


def _tomogram_tables(dataset: Dataset, layout: str) -> list[StarTable]:
    settings, series = dataset.settings, dataset.tilt_series
    columns: dict[str, Iterable[object]] = {labels.TOMO_NAME: [s.name for s in series]}
    if layout == RELION5:
        columns[labels.TILT_SERIES_STAR_FILE] = [_tilt_series_file(s) for s in series]
    else:
        columns[labels.TILT_SERIES_NAME] = [_stack_file(s) for s in series]
        columns[labels.FRAME_COUNT] = [settings.n_tilts] * len(series)
    for axis, label in enumerate(labels.TOMO_SIZE_XYZ):
        columns[label] = [int(s.size_xyz[axis]) for s in series]
    columns[labels.HAND] = [HAND] * len(series)
    columns |= {label: [value] * len(series) for label, value in _optics(dataset).items()}
    tables = [_table("global", columns)]
    if layout == RELION4:
        tables += [_tilt_table(dataset, s, layout) for s in series]
    return tables


def _optics(dataset: Dataset) -> dict[str, object]:
    microscope = dataset.settings.microscope
    return {
        labels.OPTICS_GROUP_NAME: OPTICS_GROUP_NAME,
        labels.TILT_SERIES_PIXEL_SIZE: dataset.settings.pixel_size,
        labels.VOLTAGE: microscope.voltage,
        labels.SPHERICAL_ABERRATION: microscope.spherical_aberration,
        labels.AMPLITUDE_CONTRAST: microscope.amplitude_contrast,
    }


def _tilt_table(dataset: Dataset, series: TiltSeries, layout: str) -> StarTable:
    columns: dict[str, Iterable[object]] = {}
    if layout == RELION5:
        columns |= {
            labels.MICROGRAPH_NAME: _frame_files(series),
            labels.NOMINAL_TILT: series.stage_tilt,
            labels.X_TILT: series.x_tilt,
            labels.Y_TILT: series.y_tilt,
            labels.Z_ROT: series.z_rot,
            labels.X_SHIFT: series.shift_xy[:, 0],
            labels.Y_SHIFT: series.shift_xy[:, 1],
        }
    else:
        for row, label in enumerate(labels.PROJECTION_ROWS):
            columns[label] = [_vector_text(matrix[row]) for matrix in series.projections]
    columns |= {
        labels.PRE_EXPOSURE: series.pre_exposure,
        labels.DEFOCUS_U: [frame.u for frame in series.defocus],
        labels.DEFOCUS_V: [frame.v for frame in series.defocus],
        labels.DEFOCUS_ANGLE: [frame.angle for frame in series.defocus],
    }
    return _table(series.name, columns)


def _particle_tables(dataset: Dataset, layout: str) -> list[StarTable]:
    pixel_size, pairs = dataset.settings.pixel_size, _series_and_particles(dataset)
    names = [series.name for series, particles in pairs for _ in range(len(particles))]
    coordinate = np.concatenate(
        [
            particles.coordinate
            if layout == RELION4
            else (particles.coordinate - series.size_xyz / 2) * pixel_size
            for series, particles in pairs
        ]
    )
    coordinate_labels = (
        labels.COORDINATE_XYZ if layout == RELION4 else labels.CENTERED_COORDINATE_XYZ
    )
    columns: dict[str, Iterable[object]] = {
        labels.TOMO_NAME: names,
        labels.PARTICLE_NAME: _particle_names(dataset),
    }
    triples = (
        (coordinate_labels, coordinate),
        (labels.ORIGIN_XYZ, np.concatenate([p.offset for _, p in pairs])),
        (labels.SUBTOMOGRAM_ANGLES, np.concatenate([p.subtomogram_angles for _, p in pairs])),
        (labels.ANGLES, np.concatenate([p.angles for _, p in pairs])),
    )
    for triple, values in triples:
        columns |= {label: values[:, axis] for axis, label in enumerate(triple)}
    columns[labels.OPTICS_GROUP] = [1] * len(names)
    columns[labels.RANDOM_SUBSET] = [1 + i % 2 for i in range(len(names))]
    optics: dict[str, Iterable[object]] = {labels.OPTICS_GROUP: [1]}
    optics |= {label: [value] for label, value in _optics(dataset).items()}
    return [_table("optics", optics), _table("particles", columns)]


def _series_and_particles(dataset: Dataset) -> list[tuple[TiltSeries, Particles]]:
    return list(zip(dataset.tilt_series, dataset.particles, strict=True))


def _particle_names(dataset: Dataset) -> list[str]:
    return [
        f"{series.name}/{i + 1}"
        for series, particles in _series_and_particles(dataset)
        for i in range(len(particles))
    ]


def _trajectory_tables(dataset: Dataset) -> list[StarTable]:
    names = _particle_names(dataset)
    trajectories = (t for particles in dataset.particles for t in particles.trajectory)
    return [list_table("general", {labels.PARTICLE_NUMBER: str(len(names))})] + [
        _table(name, {label: trajectory[:, a] for a, label in enumerate(labels.ORIGIN_XYZ)})
        for name, trajectory in zip(names, trajectories, strict=True)
    ]


def _table(name: str, columns: dict[str, Iterable[object]]) -> StarTable:
    return StarTable(
        name,
        {
            label: np.array([_text(value) for value in values], dtype=object)
            for label, values in columns.items()
        },
    )


def _text(value: object) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _vector_text(values: NDArray[np.float64]) -> str:
    return "[" + ",".join(f"{value:.10g}" for value in values) + "]"
