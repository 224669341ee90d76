"""The benchmark's own data: noise images and particles, as projects that are kept on disk.

What a tilt image shows does not change how long it takes, so each is the same noise, rolled. The
geometry is the simulator's: tilts from -60 to 60 degrees, exposed from 0 outwards.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.core import geometry
from relion_pseudosubtomo.core.windows import window_corners
from relion_pseudosubtomo.io.mrc import write_mrc
from relion_pseudosubtomo.io.star import StarTable, write_star
from relion_pseudosubtomo.simulate import Dataset, Settings, make_structure, project
from relion_pseudosubtomo.simulate.dataset import (
    Particles,
    TiltSeries,
    draw_angles,
    make_tilt_series,
)

from .configurations import FLOAT16, FLOAT32, Configuration
from .processes import BenchmarkError

SEED = 20
PIXEL_SIZE = 1.35
DOSE_PER_TILT = 3.0
BACKGROUND = 10.0

#: Least share of windows that reach past an edge, and what is aimed for where chance gives less.
LEAST_CROSSING, WANTED_CROSSING = 0.10, 0.13
#: Below this number of particles the share is chance.
LEAST_FOR_SHARE = 100
#: e/A^2 within which each particle is seen at least once.
LOW_DOSE = 50.0
#: Candidates for particles of a tomogram; the first that fit are taken, for any number of them.
N_CANDIDATES = 20_000
#: Pixels by which the noise is moved from one tilt image to the next, (y, x).
ROLL_YX = (37, 91)
#: Bytes read at once to bring a file into the page cache.
READ_BYTES = 1 << 24


@dataclass(frozen=True)
class Size:
    """How large the data are.

    Attributes
    ----------
    image_size_xy : tuple of int
        Tilt images, pixels.
    n_tilts : int
        Images of a tilt series.
    thickness : int
        Depth of a tomogram, unbinned pixels.
    """

    image_size_xy: tuple[int, int] = (3710, 3838)
    n_tilts: int = 41
    thickness: int = 1600

    @property
    def settings(self) -> Settings:
        """The simulator's settings."""
        return Settings(
            n_tilts=self.n_tilts,
            image_size_xy=self.image_size_xy,
            thickness_px=self.thickness,
            pixel_size=PIXEL_SIZE,
            tilt_step=120.0 / max(self.n_tilts - 1, 1),
            dose_per_tilt=DOSE_PER_TILT,
            seed=SEED,
        )


@dataclass(frozen=True)
class Picks:
    """A particle file, and what its particles cost.

    Attributes
    ----------
    path : str
        Relative to the project.
    n_visible : ndarray, shape (n_particles,)
        Visible frames of each particle.
    crossing : float
        Share of their windows that reach past an edge of the image.
    """

    path: str
    n_visible: NDArray[np.int64]
    crossing: float


class Project:
    """A RELION 5 project of noise, made piece by piece when it is asked for.

    Parameters
    ----------
    root : Path
        Folder of all projects.
    size : Size
    image_type : {"float32", "float16"}
        Of the tilt images.
    """

    def __init__(self, root: Path, size: Size, image_type: str = FLOAT32) -> None:
        width, height = size.image_size_xy
        self.size = size
        self.image_type = image_type
        self.directory = root / f"{width}x{height}x{size.n_tilts}-{size.thickness}-{image_type}"
        self._drawn: dict[tuple[float, ...], _Candidates] = {}

    @property
    def image_bytes(self) -> int:
        """Bytes of the tilt images of one tomogram."""
        itemsize = np.dtype(self.image_type).itemsize
        return math.prod(self.size.image_size_xy) * self.size.n_tilts * itemsize

    @cached_property
    def _settings(self) -> Settings:
        return self.size.settings

    def tilt_series(self, index: int) -> TiltSeries:
        """Return the geometry of one tomogram."""
        return make_tilt_series(self._settings, index)

    def missing_bytes(self, n_tomograms: int) -> int:
        """Return the bytes of tilt images that `make_tomograms` would write."""
        stacks = [self.directory / _stack_path(self.tilt_series(i)) for i in range(n_tomograms)]
        return self.image_bytes * sum(not stack.exists() for stack in stacks)

    def make_tomograms(self, n_tomograms: int = 1) -> str:
        """Write what is missing of some tomograms; return the path of their tomograms.star."""
        series = [self.tilt_series(i) for i in range(n_tomograms)]
        dataset = Dataset(self._settings, make_structure(SEED), tuple(series), ())
        for i, one in enumerate(series):
            stack = self.directory / _stack_path(one)
            if not stack.exists():
                print(f"Making {stack.name} of {self.image_bytes / 1e9:.2f} GB", flush=True)
                _make_room(stack)
                self._write_images(stack, i)
            table = project._tilt_table(dataset, one, project.RELION5)
            names = [f"{f + 1}@{_stack_path(one)}" for f in range(self.size.n_tilts)]
            table.columns[labels.MICROGRAPH_NAME] = np.array(names, dtype=object)
            self._write_star(project._tilt_series_file(one), [table])
        path = f"{project.TOMOGRAMS_FOLDER}/tomograms_{n_tomograms}.star"
        return self._write_star(path, project._tomogram_tables(dataset, project.RELION5))

    def _write_images(self, path: Path, index: int) -> None:
        width, height = self.size.image_size_xy
        rng = np.random.default_rng([SEED, index])
        noise = rng.standard_normal((height, width), dtype=np.float32) + np.float32(BACKGROUND)
        images = np.empty((self.size.n_tilts, height, width), np.float32)
        for frame, image in enumerate(images):
            image[:] = np.roll(noise, (ROLL_YX[0] * frame, ROLL_YX[1] * frame), (0, 1))
        is_float16 = self.image_type == FLOAT16
        write_mrc(path, images, voxel_size=PIXEL_SIZE, is_stack=True, float16=is_float16)

    def make_picks(
        self,
        configuration: Configuration,
        n_particles: int,
        n_tomograms: int = 1,
        n_columns: int = 0,
    ) -> Picks:
        """Write a particle file that suits a configuration.

        Fewer particles are the first of more, and all of them are visible somewhere.

        Parameters
        ----------
        configuration : Configuration
        n_particles : int
            In each tomogram.
        n_tomograms : int
        n_columns : int
            Least number of columns of the file; made up where it has fewer.
        """
        series = [self.tilt_series(i) for i in range(n_tomograms)]
        drawn = [self._draw(configuration, i) for i in range(n_tomograms)]
        chosen = [candidates.take(n_particles) for candidates in drawn]
        particles = tuple(
            _make_particles(candidates.position[rows], i)
            for i, (candidates, rows) in enumerate(zip(drawn, chosen, strict=True))
        )
        dataset = Dataset(self._settings, make_structure(SEED), tuple(series), particles)
        path = (
            f"Picks/{configuration.window}-{configuration.radius:g}/"
            f"particles_{n_tomograms}x{n_particles}{f'_{n_columns}' if n_columns else ''}.star"
        )
        tables = project._particle_tables(dataset, project.RELION5)
        _add_columns(tables[-1], n_columns)
        self._write_star(path, tables)
        pairs = list(zip(drawn, chosen, strict=True))
        max_dose = math.inf if configuration.max_dose is None else configuration.max_dose
        used = series[0].pre_exposure <= max_dose
        visible = np.concatenate([c.visible[rows] for c, rows in pairs])[:, used]
        crossing = np.concatenate([c.crossing[rows] for c, rows in pairs])[:, used]
        share = float(crossing.sum() / visible.sum())
        if len(visible) >= LEAST_FOR_SHARE and share < LEAST_CROSSING:
            raise BenchmarkError(f"{path}: only {share:.1%} of the windows reach past an edge")
        return Picks(path, visible.sum(axis=1), share)

    def _draw(self, configuration: Configuration, index: int) -> _Candidates:
        key = (index, configuration.window, configuration.radius)
        if key not in self._drawn:
            self._drawn[key] = draw_candidates(
                self.tilt_series(index), self.size.image_size_xy, configuration, index
            )
        return self._drawn[key]

    def _write_star(self, name: str, tables: list[StarTable]) -> str:
        path = self.directory / name
        _make_room(path)
        write_star(path, tables)
        return name

    def fill_page_cache(self, n_tomograms: int = 1) -> None:
        """Read all tilt images once."""
        buffer = bytearray(READ_BYTES)
        for i in range(n_tomograms):
            with open(self.directory / _stack_path(self.tilt_series(i)), "rb", 0) as file:
                while file.readinto(buffer):
                    pass


@dataclass(frozen=True)
class _Candidates:
    """Places in one tomogram where a particle can be.

    Attributes
    ----------
    position : ndarray, shape (n, 3)
        Unbinned pixels from the tomogram's corner.
    visible, crossing : ndarray, shape (n, n_frames), bool
        Frames where it is seen, and those of them where the window reaches past an edge.
    n_uniform : int
        The first ones fill the tomogram; the others lie where most windows reach past an edge.
    """

    position: NDArray[np.float64]
    visible: NDArray[np.bool_]
    crossing: NDArray[np.bool_]
    n_uniform: int

    def take(self, n: int) -> NDArray[np.int64]:
        """Return rows of `n` candidates: in order, with some from the edges where it takes them.

        Particles of small boxes seldom reach past an edge. Every so many-th is therefore taken
        from the edges, as often as the wanted share needs.
        """
        if self.n_uniform < n:
            raise BenchmarkError(
                f"particles: expected room for {n} that are visible, found room for "
                f"{self.n_uniform}. Take larger images"
            )
        uniform = slice(self.n_uniform)
        share = self.crossing[uniform].sum() / self.visible[uniform].sum()
        rows = np.arange(self.n_uniform)
        at_edge = np.arange(self.n_uniform, len(self.position))
        if share < LEAST_CROSSING and len(at_edge):
            gain = self.crossing[at_edge].sum() / self.visible[at_edge].sum() - share
            step = max(1, math.floor(gain / (WANTED_CROSSING - share)))
            n_slots = min(len(at_edge), len(rows[step - 1 :: step]))
            slots = np.arange(n_slots) * step + step - 1
            rows[slots] = at_edge[:n_slots]
        return rows[:n]


def draw_candidates(
    series: TiltSeries,
    image_size_xy: tuple[int, int],
    configuration: Configuration,
    index: int,
) -> _Candidates:
    """Return places that fill a tomogram, each visible in some frame of a low dose.

    Parameters
    ----------
    series : TiltSeries
    image_size_xy : tuple of int
    configuration : Configuration
        Its window and crop decide what is visible and what reaches past an edge.
    index : int
        Number of the tomogram, for the seed.
    """
    rng = np.random.default_rng([SEED, index, 1])
    position = rng.uniform(0, series.size_xyz, (2, N_CANDIDATES, 3))
    # the tilt axis is y: who is near an edge along it is so in all frames
    band = rng.uniform(configuration.radius, configuration.window / 2, N_CANDIDATES)
    is_low = rng.uniform(size=N_CANDIDATES) < 0.5
    position[1, :, 1] = np.where(is_low, band, series.size_xyz[1] - band)
    position = position.reshape(-1, 3)
    points = geometry.project_points(series.projections, position)[..., :2]
    visible = geometry.is_inside_image(points, image_size_xy, configuration.radius)
    corner = window_corners(points, configuration.window)
    past = np.any((corner < 0) | (corner + configuration.window > image_size_xy), axis=-1)
    crossing = past & visible
    # no particle is dropped, whether or not the configuration has a largest dose
    is_seen = np.any(visible[:, series.pre_exposure <= LOW_DOSE], axis=1)
    is_uniform = np.arange(len(position)) < N_CANDIDATES
    kept = is_seen & (is_uniform | (np.mean(crossing, axis=1) > 0.5))
    n_uniform = int(np.sum(kept & is_uniform))
    return _Candidates(position[kept], visible[kept], crossing[kept], n_uniform)


def _make_particles(position: NDArray[np.float64], index: int) -> Particles:
    """Return particles at these positions, turned at random; fewer are the first of more."""
    angles = draw_angles(np.random.default_rng([SEED, index, 2]), N_CANDIDATES)[: len(position)]
    zeros = np.zeros_like(position)
    return Particles(
        position=position,
        coordinate=position,
        offset=zeros,
        subtomogram_angles=angles,
        angles=zeros,
        rotation=geometry.euler_to_matrix(angles),
        trajectory=np.zeros((len(position), 0, 3)),
    )


def _add_columns(table: StarTable, n_columns: int) -> None:
    """Add columns of numbers, as a refinement does, until there are enough."""
    numbers = np.linspace(0, 1, table.n_rows)
    text = np.array([f"{value:.6f}" for value in numbers], dtype=object)
    for i in range(len(table.columns), n_columns):
        table.columns[f"rlnBenchmarkColumn{i + 1}"] = np.roll(text, i)


def _stack_path(series: TiltSeries) -> str:
    return f"TiltSeries/{series.name}.mrcs"


def _make_room(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)


def default_directory() -> Path:
    """Return where data are kept if the command line does not tell."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "relion_pseudosubtomo" / "benchmark"
