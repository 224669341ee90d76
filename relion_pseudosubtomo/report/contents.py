"""What an output directory tells about its run, read from the directory alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.core.fsc import NO_RESOLUTION
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import Findings, counted, format_findings
from relion_pseudosubtomo.io.mrc import read_volume
from relion_pseudosubtomo.io.records import RecordStore
from relion_pseudosubtomo.io.star import StarFile, read_star
from relion_pseudosubtomo.report.collect import (
    EXAMPLE_PIXELS,
    Spectrum,
    choose_examples,
    shrink,
    to_grey,
)
from relion_pseudosubtomo.report.store import (
    Geometry,
    Piece,
    ReportStore,
    RunFacts,
    TiltPictures,
)

Floats = NDArray[np.floating]

_IMAGE_FOLDER = "/Subtomograms/"

#: Columns of particles.star that the report needs.
_WANTED = frozenset(
    {
        labels.TOMO_NAME,
        labels.PARTICLE_NAME,
        labels.IMAGE_NAME,
        labels.VISIBLE_FRAMES,
        labels.OPTICS_GROUP,
        labels.IMAGE_PIXEL_SIZE,
        labels.IMAGE_DIMENSIONALITY,
        labels.SUBTOMOGRAM_BINNING,
    }
)


@dataclass
class TomogramContents:
    """What is known of one tomogram.

    Attributes
    ----------
    name : str
    names : list of str
        Kept particles, in output order.
    images : list of str
        Their images.
    pixel_size : float
        Of its kept particles, Angstrom; NaN where the table does not tell.
    dropped : Counter
        Dropped particles by reason.
    pieces : list of Piece
        What workers collected, or what was read from some images.
    is_collected : bool
        Whether workers collected it.
    tilts : TiltPictures or None
    is_shown : bool
        Whether its pictures are shown; those of others are not kept in memory.
    geometry : Geometry or None
    work : list of dict
        Its pieces of work in run_summary.json.
    """

    name: str
    names: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    pixel_size: float = float("nan")
    dropped: Counter[str] = field(default_factory=Counter)
    pieces: list[Piece] = field(default_factory=list)
    is_collected: bool = False
    tilts: TiltPictures | None = None
    is_shown: bool = False
    geometry: Geometry | None = None
    work: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Average:
    """The average of all particles, where the run made one.

    Attributes
    ----------
    slices : list of ndarray, shape (n, n)
        Central slices xy, xz and yz.
    frequency, fsc : ndarray, shape (k,), float64
        1/Angstrom and the correlation of the half maps by shell; empty where they are missing.
    resolution : float
        Where the correlation falls below 0.143, Angstrom; infinity where it starts below, NaN where
        that is not known.
    """

    slices: list[Floats]
    frequency: Floats
    fsc: Floats
    resolution: float


@dataclass
class Contents:
    """What the report shows.

    Attributes
    ----------
    directory : str
    is_3d : bool
        Whether particles are volumes.
    binning : float
    tomograms : list of TomogramContents
        In output order, those that keep nothing last.
    n_visible : ndarray, shape (n_kept,), int64, or None
        Visible frames of each kept particle.
    summary : dict
        run_summary.json; empty where it is missing.
    facts : RunFacts or None
    note : str
        note.txt, where there are no facts.
    average : Average or None
    n_drawable : int
        Tomograms of which there are pictures.
    missing : list of str
        What cannot be shown, and why.
    """

    directory: str
    is_3d: bool
    binning: float
    tomograms: list[TomogramContents]
    n_visible: NDArray[np.int64] | None
    summary: dict[str, Any]
    facts: RunFacts | None
    note: str
    average: Average | None
    n_drawable: int
    missing: list[str] = field(default_factory=list)

    @property
    def n_kept(self) -> int:
        """Number of kept particles."""
        return sum(len(tomogram.names) for tomogram in self.tomograms)

    @property
    def pixel_sizes(self) -> list[float]:
        """The different pixel sizes of the particles that are known, Angstrom, smallest first."""
        return sorted({t.pixel_size for t in self.tomograms if np.isfinite(t.pixel_size)})

    @property
    def dropped(self) -> Counter[str]:
        """Dropped particles by reason."""
        return sum((tomogram.dropped for tomogram in self.tomograms), Counter())


def read_contents(directory: str, n_shown: int) -> Contents:
    """Read a finished extraction.

    Parameters
    ----------
    directory : str
        Its output directory.
    n_shown : int
        Tomograms with pictures, at most.

    Raises
    ------
    InputError
        Where there is no particles.star, or it cannot be read.
    """
    star = _read_table(Path(directory, "particles.star"))
    assert star is not None
    tables = star.tables
    optics = tables["optics"].first_row() if "optics" in tables else {}
    tomograms, missing = _list_tomograms(directory, star)
    store = ReportStore(directory)
    drawable = [t for t in tomograms.values() if t.names or store.read_tilts(t.name) is not None]
    for tomogram in choose_shown(drawable, n_shown):
        tomogram.is_shown = True
    _add_collected(directory, store, tomograms)
    summary = _read_summary(directory)
    for work in summary.get("tomograms", []):
        if work.get("name") in tomograms:
            tomograms[work["name"]].work.append(work)
    is_3d = optics.get(labels.IMAGE_DIMENSIONALITY) == "3"
    contents = Contents(
        directory=directory,
        is_3d=is_3d,
        binning=_number(optics.get(labels.SUBTOMOGRAM_BINNING)),
        tomograms=list(tomograms.values()),
        n_visible=_count_visible(star, tomograms),
        summary=summary,
        facts=store.read_run(),
        note=_read_text(Path(directory, "note.txt")),
        average=_read_average(directory),
        n_drawable=len(drawable),
        missing=missing,
    )
    _say_what_is_missing(contents)
    _read_examples(contents)
    _say_what_is_not_finite(contents)
    return contents


def choose_shown(tomograms: Sequence[TomogramContents], n: int) -> list[TomogramContents]:
    """Return at most n tomograms: those that lost the largest shares of their particles."""

    def share_dropped(tomogram: TomogramContents) -> float:
        n_dropped = tomogram.dropped.total()
        return n_dropped / max(1, n_dropped + len(tomogram.names))

    return sorted(tomograms, key=share_dropped, reverse=True)[:n]


def _read_table(path: Path, *, needed: bool = True) -> StarFile | None:
    if not needed and not path.exists():
        return None
    findings = Findings()
    star = read_star(str(path), findings, None if not needed else _WANTED)
    if star is None or (needed and "particles" not in star.tables):
        found = format_findings(findings) or f"{path}: expected data_particles, found none"
        raise InputError(f"{found}\nThe report needs the output directory of a finished extraction")
    return star


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_summary(directory: str) -> dict[str, Any]:
    try:
        summary = json.loads(_read_text(Path(directory, "run_summary.json")))
    except ValueError:
        return {}
    return summary if isinstance(summary, dict) else {}


def _list_tomograms(
    directory: str, star: StarFile
) -> tuple[dict[str, TomogramContents], list[str]]:
    """Return all tomograms of particles.star and dropped.star by name, and what cannot be told."""
    columns = star.tables["particles"].columns
    if labels.TOMO_NAME not in columns:
        raise InputError(
            f"{star.path}: expected {labels.TOMO_NAME}, found no such column. Give the output "
            "directory of an extraction"
        )
    n_rows = len(columns[labels.TOMO_NAME])
    images = columns.get(labels.IMAGE_NAME, np.full(n_rows, "", dtype=object))
    names = columns.get(labels.PARTICLE_NAME, images)
    tomograms: dict[str, TomogramContents] = {}
    pixel_sizes = _read_pixel_sizes(star)
    for name, particle, image, pixel_size in zip(
        columns[labels.TOMO_NAME], names, images, pixel_sizes, strict=True
    ):
        tomogram = tomograms.setdefault(name, TomogramContents(name, pixel_size=pixel_size))
        tomogram.names.append(particle)
        tomogram.images.append(image)
    return tomograms, _count_dropped(directory, tomograms)


def _read_pixel_sizes(star: StarFile) -> list[float]:
    """Return each particle's pixel size: that of its optics group, NaN where that is not told."""
    particles = star.tables["particles"]
    optics = star.tables["optics"].columns if "optics" in star.tables else {}
    sizes = [_number(text) for text in optics.get(labels.IMAGE_PIXEL_SIZE, ())]
    groups = particles.columns.get(labels.OPTICS_GROUP)
    numbers = optics.get(labels.OPTICS_GROUP)
    if groups is None or numbers is None or not sizes:
        return [sizes[0] if len(sizes) == 1 else float("nan")] * particles.n_rows
    by_number = {_number(number): size for number, size in zip(numbers, sizes, strict=True)}
    return [by_number.get(_number(group), float("nan")) for group in groups]


def _count_dropped(directory: str, tomograms: dict[str, TomogramContents]) -> list[str]:
    """Add the particles of dropped.star to their tomograms; return what it does not tell."""
    dropped = _read_table(Path(directory, "dropped.star"), needed=False)
    if dropped is None:
        return ["dropped.star is missing or cannot be read: dropped particles are not counted."]
    table = dropped.tables.get("particles")
    if table is None or not table.n_rows:
        return []
    wanted = (labels.TOMO_NAME, labels.DROP_REASON)
    lacking = [label for label in wanted if label not in table.columns]
    if lacking:
        return [f"dropped.star has no {' and no '.join(lacking)}: dropped particles do not count."]
    for name, reason in zip(*(table.columns[label] for label in wanted), strict=True):
        tomograms.setdefault(name, TomogramContents(name)).dropped[reason] += 1
    return []


def _add_collected(
    directory: str, store: ReportStore, tomograms: dict[str, TomogramContents]
) -> None:
    """Add what workers and rank 0 left for the report, where it belongs to these results."""
    fingerprints = {record.tomogram: record.fingerprint for record in _read_records(directory)}
    for tomogram in tomograms.values():
        fingerprint = fingerprints.get(tomogram.name)
        pieces = store.read_pieces(tomogram.name, fingerprint)
        # rows may have been taken out of the table since
        tomogram.pieces = pieces if all(p.stop <= len(tomogram.names) for p in pieces) else []
        tomogram.is_collected = bool(tomogram.pieces)
        tilts = (piece.tilts for piece in tomogram.pieces if piece.tilts is not None)
        tomogram.tilts = next(tilts, None) if tomogram.names else store.read_tilts(tomogram.name)
        if not tomogram.is_shown:
            tomogram.pieces = [piece.without_pictures() for piece in tomogram.pieces]
            tomogram.tilts = None
        geometry = store.read_geometry(tomogram.name)
        if geometry is not None and _belongs(geometry, tomogram, fingerprint):
            tomogram.geometry = geometry


def _belongs(geometry: Geometry, tomogram: TomogramContents, fingerprint: str | None) -> bool:
    """Return whether a geometry is that of these results, and not of an earlier run."""
    is_same = geometry.fingerprint == "" or fingerprint in (None, geometry.fingerprint)
    return is_same and int(geometry.kept.sum()) == len(tomogram.names)


def _read_records(directory: str) -> list[Any]:
    return RecordStore(directory).read_all()


def _count_visible(
    star: StarFile, tomograms: dict[str, TomogramContents]
) -> NDArray[np.int64] | None:
    """Return each kept particle's visible frames: from the table, else from the geometry."""
    flags = star.tables["particles"].columns.get(labels.VISIBLE_FRAMES)
    if flags is not None:
        return np.array([text.count("1") for text in flags])
    known = [t.geometry for t in tomograms.values() if t.names]
    if not known or any(geometry is None for geometry in known):
        return None
    return np.concatenate([g.n_visible[g.kept] for g in known if g is not None])


def _read_average(directory: str) -> Average | None:
    """Return the average's central slices and correlation; None where the run made none."""
    path = Path(directory, "average.mrc")
    if not path.exists():
        return None
    volume = np.asarray(read_volume(str(path)), np.float32)
    z, y, x = (size // 2 for size in volume.shape)
    slices = [volume[z], volume[:, y], volume[:, :, x]]
    star = _read_table(Path(directory, "average_fsc.star"), needed=False)
    tables = {} if star is None else star.tables
    curve = tables["fsc"].columns if "fsc" in tables else {}
    frequency, fsc = (
        np.array([_number(text) for text in curve.get(label, ())], np.float64)
        for label in (labels.RESOLUTION, labels.FSC)
    )
    if len(frequency) != len(fsc):
        frequency = fsc = np.zeros(0)
    first_row = tables["general"].first_row() if "general" in tables else {}
    resolution = _number(first_row.get(labels.FINAL_RESOLUTION))
    return Average(slices, frequency, fsc, np.inf if resolution >= NO_RESOLUTION else resolution)


def _say_what_is_missing(contents: Contents) -> None:
    missing = contents.missing
    if not contents.summary:
        missing.append("run_summary.json is missing: no times, ranks and failures.")
    if contents.facts is None:
        missing.append("The run was made without --report: no warnings of its checks.")
    without = [t.name for t in contents.tomograms if t.names and not t.is_collected]
    if without:
        missing.append(
            f"Nothing was collected for {len(without)} tomograms, so their tilt images are not "
            "shown; means and spectra are of the example particles alone, read from their files."
        )
    lacking = [t for t in contents.tomograms if t.names and t.geometry is None]
    if lacking:
        missing.append(
            f"Where the particles lie is not known for {len(lacking)} tomograms: they count "
            "neither in the defocus nor in the dose histogram."
        )
    partial = [t for t in contents.tomograms if t.is_collected and not _is_whole(t)]
    if partial:
        missing.append(
            f"Of {len(partial)} tomograms, a part was extracted by a run without --report."
        )
    if contents.n_visible is None:
        missing.append("Visible frames are known of neither the table nor the report's files.")


def _say_what_is_not_finite(contents: Contents) -> None:
    n = sum(piece.n_not_finite for t in contents.tomograms for piece in t.pieces)
    if n:
        contents.missing.append(
            f"{counted(n, 'particle')} with pixels that are NaN or infinite: left out of means and "
            "power spectra."
        )


def _is_whole(tomogram: TomogramContents) -> bool:
    covered = sum(piece.stop - piece.first for piece in tomogram.pieces)
    return covered == len(tomogram.names)


def _read_examples(contents: Contents) -> None:
    """Make pieces of some written images where no worker collected any."""
    for tomogram in contents.tomograms:
        if tomogram.pieces or not tomogram.names or not tomogram.is_shown:
            continue
        places = choose_examples(len(tomogram.names))
        try:
            pictures = [_read_picture(contents, tomogram.images[place]) for place in places]
        except InputError as error:
            contents.missing.append(f"Images of example particles: {error}")
            return
        spectrum = Spectrum(len(pictures[0]))
        finite = [picture for picture in pictures if np.isfinite(picture).all()]
        summed = finite or [np.zeros_like(pictures[0])]
        tomogram.pieces = [
            Piece(
                fingerprint="",
                first=0,
                stop=len(tomogram.names),
                n_summed=len(finite),
                picture_sum=np.sum(summed, axis=0),
                power_sum=np.sum([spectrum.average(p) for p in summed], axis=0),
                places=places,
                examples=np.array([to_grey(shrink(p, EXAMPLE_PIXELS)[0]) for p in pictures]),
                n_not_finite=len(pictures) - len(finite),
            )
        ]


def _read_picture(contents: Contents, name: str) -> NDArray[np.float32]:
    """Return the projection of a volume, or the middle image of a stack."""
    path = Path(name)
    if not path.is_file():  # the report is made elsewhere than the job
        path = Path(contents.directory, "Subtomograms", name.partition(_IMAGE_FOLDER)[2])
    volume = read_volume(str(path))
    middle = volume[len(volume) // 2]
    return np.asarray(
        volume.sum(axis=0, dtype=np.float32) if contents.is_3d else middle, np.float32
    )
