"""The folder of an output directory that holds what the report is made of.

One folder a tomogram, with a file for each piece of work and one for the geometry. Every file is
there whole or not at all, and carries the fingerprint of the tomogram's task, so that none is taken
for that of another run.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.io.atomic import atomic_path, write_text

FOLDER = ".report"
_RUN_FILE = "run.json"
_GEOMETRY_FILE = "geometry.npz"
_TILTS_FILE = "tilts.npz"

#: What a piece may lack: the tilt images if it is not the first, the number in older files.
_OPTIONAL = ("tilts", "n_not_finite")

Floats = NDArray[np.floating]
Greys = NDArray[np.uint8]


@dataclass(frozen=True)
class TiltPictures:
    """A low-tilt and a high-tilt image of a tomogram, made small.

    Attributes
    ----------
    frames : ndarray, shape (2,), int64
        Which frames they are.
    pictures : ndarray, shape (2, height, width), uint8
        Grey values.
    scale : int
        Pixels of the tilt image a pixel of the picture, along each axis.
    """

    frames: NDArray[np.int64]
    pictures: Greys
    scale: int


@dataclass(frozen=True)
class Piece:
    """What a range of a tomogram's kept particles looks like.

    Attributes
    ----------
    fingerprint : str
        Of the tomogram's task.
    first, stop : int
        Range among the tomogram's kept particles.
    n_summed : int
        Particles in the sums.
    picture_sum : ndarray, shape (n, n), float32
        Sum of their pictures: a volume's projection along z, or the lowest-dose image of a stack.
    power_sum : ndarray, shape (n / 2,), float64
        Sum of the radial averages of these pictures' power spectra, by shell from 0.
    places : ndarray, shape (k,), int64
        The examples' places among the tomogram's kept particles.
    examples : ndarray, shape (k, size, size), uint8
        Their pictures.
    tilts : TiltPictures or None
        With the tomogram's first piece.
    n_not_finite : int
        Particles that are not in the sums, as their pictures have pixels that are NaN or infinite.
    """

    fingerprint: str
    first: int
    stop: int
    n_summed: int
    picture_sum: NDArray[np.float32]
    power_sum: Floats
    places: NDArray[np.int64]
    examples: Greys
    tilts: TiltPictures | None = None
    n_not_finite: int = 0

    def without_pictures(self) -> Piece:
        """Return the sums alone."""
        return replace(self, places=self.places[:0], examples=self.examples[:0], tilts=None)


@dataclass(frozen=True)
class Geometry:
    """Where all particles of a tomogram lie in the frames that are shown, dropped ones too.

    Attributes
    ----------
    fingerprint : str
        Of the tomogram's task.
    frames : ndarray, shape (2,), int64
        A low-tilt and a high-tilt frame.
    tilt : ndarray, shape (2,), float64
        Angle between their beam and the tomogram's z axis, degrees.
    image_size_xy : ndarray, shape (2,), int64
        Pixels of the tilt images.
    points : ndarray, shape (m, 2, 2), float32
        Projected position (x, y) of each particle in each of them, pixels.
    kept : ndarray, shape (m,), bool
        Which particles are extracted.
    n_visible : ndarray, shape (m,), int64
        Frames in which each is, or would be, used.
    n_usable : int
        Frames that are used wherever a particle is inside them.
    defocus : ndarray, shape (n_kept,), float32
        Of each kept particle at its depth, mean over its frames, Angstrom.
    dose : ndarray, shape (n_frames,), float64
        Before each frame, e/A^2.
    images_per_frame : ndarray, shape (n_frames,), int64
        Images of kept particles.
    """

    fingerprint: str
    frames: NDArray[np.int64]
    tilt: Floats
    image_size_xy: NDArray[np.int64]
    points: NDArray[np.float32]
    kept: NDArray[np.bool_]
    n_visible: NDArray[np.int64]
    n_usable: int
    defocus: NDArray[np.float32]
    dose: Floats
    images_per_frame: NDArray[np.int64]


@dataclass(frozen=True)
class RunFacts:
    """What the report tells of a run that stands in no other file.

    Attributes
    ----------
    command : str
        The command line.
    versions : dict of str to str
        Of the program, Python and NumPy.
    finished : str
        Date and time.
    host : str
        Where rank 0 ran.
    options : dict of str to str
        All options as text.
    warnings : list of str
        What the checks found.
    """

    command: str
    versions: dict[str, str]
    finished: str
    host: str
    options: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


Stored = TypeVar("Stored", Geometry, TiltPictures)


class ReportStore:
    """What the report of an output directory is made of.

    Parameters
    ----------
    output : str or Path
        The output directory.
    """

    def __init__(self, output: str | Path) -> None:
        self._folder = Path(output, FOLDER)

    @property
    def exists(self) -> bool:
        """Whether anything was collected."""
        return self._folder.is_dir()

    def _tomogram(self, name: str) -> Path:
        return self._folder / quote(name, safe="")

    def remove(self, tomogram: str | None = None) -> None:
        """Remove what was collected of a tomogram; everything where none is given."""
        shutil.rmtree(self._folder if tomogram is None else self._tomogram(tomogram), True)

    def write_piece(self, tomogram: str, piece: Piece) -> None:
        """Write a piece of a tomogram; one of the same range is replaced."""
        arrays = {k: v for k, v in vars(piece).items() if k != "tilts"}
        if piece.tilts is not None:
            arrays.update(vars(piece.tilts))
        _write(self._tomogram(tomogram) / f"{piece.first}-{piece.stop}.npz", arrays)

    def read_pieces(self, tomogram: str, fingerprint: str | None) -> list[Piece]:
        """Return the pieces of one run, in order and without overlap; damaged ones are left out.

        Parameters
        ----------
        tomogram : str
            Name of the tomogram.
        fingerprint : str or None
            That of its task; with None those of the first piece's run.
        """
        found = []
        for path in sorted(self._tomogram(tomogram).glob("*-*.npz")):
            arrays = _read(path)
            if arrays is not None and {f.name for f in fields(Piece)} <= {*arrays, *_OPTIONAL}:
                tilts = _take(TiltPictures, arrays)
                own = {f.name: arrays[f.name] for f in fields(Piece) if f.name in arrays}
                found.append(Piece(**own, tilts=tilts))
        found.sort(key=lambda piece: (piece.first, -piece.stop))
        pieces: list[Piece] = []
        for piece in found:
            if piece.fingerprint != (fingerprint or found[0].fingerprint):
                continue
            if not pieces or piece.first >= pieces[-1].stop:
                pieces.append(piece)
        return pieces

    def write_geometry(self, tomogram: str, geometry: Geometry) -> None:
        """Write where the particles of a tomogram lie."""
        _write(self._tomogram(tomogram) / _GEOMETRY_FILE, vars(geometry))

    def read_geometry(self, tomogram: str) -> Geometry | None:
        """Return where the particles of a tomogram lie; None where that is not known."""
        arrays = _read(self._tomogram(tomogram) / _GEOMETRY_FILE)
        return None if arrays is None else _take(Geometry, arrays)

    def write_tilts(self, tomogram: str, tilts: TiltPictures) -> None:
        """Write the tilt images of a tomogram that has no piece to hold them."""
        _write(self._tomogram(tomogram) / _TILTS_FILE, vars(tilts))

    def read_tilts(self, tomogram: str) -> TiltPictures | None:
        """Return the tilt images of a tomogram without pieces; None where there are none."""
        arrays = _read(self._tomogram(tomogram) / _TILTS_FILE)
        return None if arrays is None else _take(TiltPictures, arrays)

    def write_run(self, facts: RunFacts) -> None:
        """Write what is known of the run."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_text(self._folder / _RUN_FILE, json.dumps(asdict(facts), indent=1) + "\n")

    def read_run(self) -> RunFacts | None:
        """Return what is known of the run; None where that cannot be read."""
        try:
            return RunFacts(**json.loads((self._folder / _RUN_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def _write(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _read(path: Path) -> dict[str, Any] | None:
    """Return arrays by name, single values as plain ones; None where the file cannot be read."""
    try:
        with np.load(path) as arrays:
            read = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return {name: value.item() if value.ndim == 0 else value for name, value in read.items()}


def _take(kind: type[Stored], arrays: dict[str, Any]) -> Stored | None:
    """Return an object made of the arrays of its attributes' names, where all are there."""
    names = [attribute.name for attribute in fields(kind)]
    if not set(names) <= arrays.keys():
        return None
    return kind(**{name: arrays[name] for name in names})
