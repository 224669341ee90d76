"""rlnTomoVisibleFrames against slice counts, tilt series and geometry; and its repair."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.core.geometry import is_inside_image
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import Findings, counted, list_first
from relion_pseudosubtomo.io.columns import has_columns, triples
from relion_pseudosubtomo.io.mrc_validation import MrcFile
from relion_pseudosubtomo.io.particles import read_particle_table
from relion_pseudosubtomo.io.star import StarTable, list_table, read_star, write_star
from relion_pseudosubtomo.merge import text_column, vector_text
from relion_pseudosubtomo.options import ALL_TILTS, JobOptions
from relion_pseudosubtomo.placement import place_particles
from relion_pseudosubtomo.plan import usable_frames
from relion_pseudosubtomo.verification.results import PARTICLES, Results

Flags = NDArray[np.bool_]

REPAIRED = "particles_repaired.star"

_GENERAL = "general"

#: Angstrom by which coordinates differ that another program wrote with fewer digits.
_UNMOVED = 0.01

#: Pixels by which a projected position may have moved through rounding in the tables.
_ROUNDING = 0.01

_SHOWN = 3


@dataclass
class Geometry:
    """Which frames show each particle, computed anew.

    Attributes
    ----------
    surely : dict of int to ndarray, shape (n_frames,), bool
        Row -> frames in which it is visible, whatever the rounding.
    perhaps : dict of int to ndarray, shape (n_frames,), bool
        Those and the ones in which it is, or is not, by a rounding error.
    unknown : dict of str to str
        Tomograms with particles of which it cannot be told -> what is wrong with their images.
    """

    surely: dict[int, Flags] = field(default_factory=dict)
    perhaps: dict[int, Flags] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


def compute_geometry(results: Results) -> Geometry:
    """Return which frames show each particle, with the program's own placement (spec 2.1, 2.3).

    Positions are those of the table without rlnOriginX/Y/ZAngst: an extraction applies them and
    writes zeros, or leaves them out and as they were; what is there now came later.
    """
    geometry = Geometry()
    tomogram_set, particle_set = results.tomogram_set, results.particle_set
    if tomogram_set is None or particle_set is None:
        return geometry
    parts = list(_split_rows(results))
    for index, tomogram in enumerate(tomogram_set.tomograms):
        present = particle_set.tomogram == index
        if tomogram.n_frames == 0 or not present.any():
            continue
        if tomogram.name in tomogram_set.failed:
            geometry.unknown[tomogram.name] = tomogram_set.failed[tomogram.name]
            continue
        for options, chosen in parts:
            rows = np.flatnonzero(present & chosen)
            if len(rows) == 0:
                continue
            shifts = None if results.trajectories is None else results.trajectories.stack(rows)
            points = place_particles(options, tomogram, particle_set, shifts, rows).image_point
            size, usable = tomogram.image_size_xy, usable_frames(options, tomogram)
            radius = options.binning * options.crop / 2
            surely = is_inside_image(points, size, radius + _ROUNDING) & usable
            perhaps = is_inside_image(points, size, radius - _ROUNDING) & usable
            geometry.surely.update(zip(rows.tolist(), surely, strict=True))
            geometry.perhaps.update(zip(rows.tolist(), perhaps, strict=True))
    return geometry


def _split_rows(results: Results) -> Iterator[tuple[JobOptions, Flags]]:
    """Yield options, as far as they are known, and the rows that were extracted with them.

    The recorded ones tell of images in the directory alone; data_optics of others tells the box.
    """
    options = replace(results.options, dont_apply_offsets=True, apply_orientations=False)
    own = results.own_rows
    if own.any():
        yield options, own
    dose = results.request.max_dose
    others = replace(options, max_dose=-1.0 if dose is None else dose, common_tilts=None)
    boxes = np.column_stack([results.image_size, results.binning])
    boxes[own] = np.nan
    for box in np.unique(boxes[np.isfinite(boxes).all(axis=1)], axis=0):
        crop, binning = box.tolist()
        yield replace(others, crop=int(crop), binning=binning), (boxes == box).all(axis=1)


@dataclass
class Visibility:
    """What rlnTomoVisibleFrames says, and what is wrong with it.

    Attributes
    ----------
    flags : list of ndarray, shape (n_frames,), bool, or None
        By row; None where the value is lost or no vector of 0 and 1.
    damaged : list of int
        Rows whose value cannot stay.
    """

    flags: list[Flags | None]
    damaged: list[int]

    def blank_slices(self, results: Results, row: int, suffix: str) -> Flags | None:
        """Return which slices of a particle's file come from frames that leave nothing there.

        Their CTF is zero everywhere; or, in stacks of all tilts, they are not visible.
        """
        flags, tomograms, particles = self.flags[row], results.tomogram_set, results.particle_set
        if flags is None or tomograms is None or particles is None or particles.tomogram[row] < 0:
            return None
        scale = tomograms.tomograms[particles.tomogram[row]].ctf_scale
        if len(scale) != len(flags):
            return None
        if suffix == ALL_TILTS:
            return np.asarray(~flags | (scale == 0))
        return scale[flags] == 0 if (scale == 0).any() else None


def check_visibility(
    results: Results, slices: list[int | None], geometry: Geometry, findings: Findings
) -> Visibility:
    """Check rlnTomoVisibleFrames of 2D stacks.

    Parameters
    ----------
    results : Results
    slices : list of int or None
        Images in each particle's stack; None where it cannot be read.
    geometry : Geometry
    findings : Findings
        Gets `result-visible`, `result-frames`, `result-slices`, `result-geometry` and
        `result-unchecked`.
    """
    if geometry.unknown:
        names = list(geometry.unknown)
        findings.warning("result-unchecked", _describe_unknown("checked", names, geometry))
    column = results.particles.columns.get(labels.VISIBLE_FRAMES)
    if column is None:
        n_rows = results.particles.n_rows
        _report(results, findings, "result-visible", range(n_rows), "column missing")
        return Visibility([None] * n_rows, list(range(n_rows)))
    flags = [parse_flags(text) for text in column]
    lost = [row for row, values in enumerate(flags) if values is None]
    shown = list_first((repr(column[row][:40]) for row in lost), _SHOWN)
    _report(results, findings, "result-visible", lost, shown)
    misplaced = _find_misplaced(results, flags, geometry)
    # a table that another program changed may hold other coordinates on purpose
    unmoved = _find_unmoved(results, list(misplaced))
    doubtful = {row: why for row, why in misplaced.items() if row not in unmoved}
    wrong = {
        "result-frames": _find_wrong_lengths(results, flags),
        "result-slices": {
            row: f"{n} images for {values.sum()} visible frames"
            for row, (values, n) in enumerate(zip(flags, slices, strict=True))
            if values is not None and n is not None and values.sum() != n
        },
        "result-geometry": {row: why for row, why in misplaced.items() if row in unmoved},
    }
    for code, rows in wrong.items():
        _report(results, findings, code, rows, list_first(rows.values(), _SHOWN))
    shown = list_first(doubtful.values(), _SHOWN)
    _report(results, findings, "result-geometry", doubtful, shown, is_doubtful=True)
    return Visibility(flags, sorted({*lost, *chain.from_iterable(wrong.values())}))


def _describe_unknown(done: str, names: list[str], geometry: Geometry) -> str:
    """Return what could not be done to these tomograms, and why for the first."""
    return f"geometry not {done} for {list_first(names, _SHOWN)}: {geometry.unknown[names[0]]}"


def parse_flags(text: str) -> Flags | None:
    """Return the flags of `[1,0,1]`; None where it is anything else."""
    words = text[1:-1].split(",") if text.startswith("[") and text.endswith("]") else [""]
    return np.array([word == "1" for word in words]) if set(words) <= {"0", "1"} else None


_WHAT = {
    "result-visible": f"{labels.VISIBLE_FRAMES} lost or damaged",
    "result-frames": f"{labels.VISIBLE_FRAMES} of another length than the tilt series",
    "result-slices": f"{labels.VISIBLE_FRAMES} does not fit the image file",
    "result-geometry": f"{labels.VISIBLE_FRAMES} is not what the geometry gives",
}


def _report(
    results: Results,
    findings: Findings,
    code: str,
    rows: range | list[int] | dict,
    found: str,
    *,
    is_doubtful: bool = False,
) -> None:
    if not rows:
        return
    add = findings.warning if is_doubtful else findings.error
    add(
        code,
        _WHAT[code],
        file=results.table.path,
        table=results.particles.name,
        row=list_first(row + 1 for row in rows),
        particle=list_first((results.names[row] for row in rows), _SHOWN),
        found=found,
    )


def _find_wrong_lengths(results: Results, flags: list[Flags | None]) -> dict[int, str]:
    tomograms, particles = results.tomogram_set, results.particle_set
    if tomograms is None or particles is None:
        return {}
    n_frames = [t.n_frames for t in tomograms.tomograms]
    return {
        row: f"{len(values)} flags for {n_frames[place]} frames"
        for row, (values, place) in enumerate(zip(flags, particles.tomogram, strict=True))
        if values is not None and place >= 0 and 0 < n_frames[place] != len(values)
    }


def _find_misplaced(
    results: Results, flags: list[Flags | None], geometry: Geometry
) -> dict[int, str]:
    """Return rows with a visible frame that cannot be, or without one that has to be."""
    knows_dose = results.own_rows | (results.request.max_dose is not None)
    wrong = {}
    for row, surely in geometry.surely.items():
        values, perhaps = flags[row], geometry.perhaps[row]
        if values is None or len(values) != len(surely):
            continue
        bad = values & ~perhaps
        if knows_dose[row]:
            bad |= surely & ~values
        if bad.any():
            wrong[row] = f"frames {list_first(np.flatnonzero(bad) + 1, _SHOWN)}"
    return wrong


def _find_unmoved(results: Results, rows: list[int]) -> set[int]:
    """Return which rows are where the extraction had them, so that it saw them in the same frames.

    None is taken for that where the frames may have moved instead.
    """
    request, needed = results.request, (labels.IMAGE_NAME, *labels.CENTERED_COORDINATE_XYZ)
    if request.is_own_table:
        return set(rows)
    if not rows or request.tomograms is not None or request.trajectories is not None:
        return set()
    own = read_particle_table(os.path.join(request.directory, PARTICLES), Findings())
    if own is None or not all(has_columns(t, needed) for t in (own.particles, results.particles)):
        return set()
    then, now = (
        triples(table, labels.CENTERED_COORDINATE_XYZ, Findings())
        for table in (own.particles, results.particles)
    )
    places = {name: place for place, name in enumerate(own.particles.columns[labels.IMAGE_NAME])}
    known = ((row, places[image]) for row in rows if (image := results.images[row]) in places)
    return {row for row, place in known if (np.abs(now[row] - then[place]) < _UNMOVED).all()}


def write_repaired(
    results: Results,
    slices: list[int | None],
    geometry: Geometry,
    visibility: Visibility,
    findings: Findings,
) -> str | None:
    """Write particles_repaired.star: rlnTomoVisibleFrames, where damaged, computed anew.

    It says that its images are 2D stacks, too.

    Parameters
    ----------
    results, slices, geometry
        As for `check_visibility`, and its result.
    visibility : Visibility
    findings : Findings
        Gets `result-repair` for particles whose flags do not fit their images, and
        `result-unchecked` where they cannot be told.

    Returns
    -------
    str or None
        The file; None where nothing could be written.

    Raises
    ------
    InputError
        Where the table to be repaired is itself particles_repaired.star.
    OutputError
        Where the file cannot be written.
    """
    path = os.path.join(results.request.directory, REPAIRED)
    if os.path.abspath(path) == os.path.abspath(results.table.path):
        raise InputError(f"{path} is not repaired in place: give the table it was made from")
    flags = list(visibility.flags)
    hopeless = []
    for row in visibility.damaged:
        flags[row] = _recompute(row, slices[row], geometry)
        if flags[row] is None:
            hopeless.append(row)
    if hopeless:
        _report_hopeless(results, hopeless, geometry, findings)
        return None
    star = read_star(results.table.path, findings)
    if star is None:
        return None
    column = text_column([vector_text(values) for values in flags if values is not None])
    particles = {**results.particles.columns, labels.VISIBLE_FRAMES: column}
    general = list_table(_GENERAL, {**results.table.general, labels.ARE_2D_STACKS: "1"})
    name = results.particles.name
    changed = {_GENERAL: general, name: StarTable(name, particles, results.particles.is_list)}
    tables = {_GENERAL: general} | star.tables | changed  # keeps their order, data_general first
    write_star(path, tables.values())
    return path


def _report_hopeless(
    results: Results, rows: list[int], geometry: Geometry, findings: Findings
) -> None:
    """Say why particles cannot be repaired: no tilt images to tell, or none of the counts fits."""
    owners = results.particles.columns.get(labels.TOMO_NAME, results.images)
    unknown = [
        name for name in dict.fromkeys(owners[row] for row in rows) if name in geometry.unknown
    ]
    if unknown:
        findings.error("result-unchecked", _describe_unknown("repaired", unknown, geometry))
    misfits = [row for row in rows if owners[row] not in geometry.unknown]
    if misfits:
        findings.error(
            "result-repair",
            f"{counted(len(misfits), 'particle')} without visible frames that fit their images",
            file=results.table.path,
            row=list_first(row + 1 for row in misfits),
            particle=list_first((results.names[row] for row in misfits), _SHOWN),
        )


def _recompute(row: int, n_slices: int | None, geometry: Geometry) -> Flags | None:
    """Return the flags of the geometry whose count is that of the slices."""
    for flags in (geometry.surely.get(row), geometry.perhaps.get(row)):
        if flags is not None and n_slices is not None and flags.sum() == n_slices:
            return flags
    return None


def count_slices(results: Results, known: dict[str, MrcFile | InputError]) -> list[int | None]:
    """Return how many images each particle's stack holds; None where it cannot be read."""
    items = (known[path] for path in results.images)
    return [item.header.nz if isinstance(item, MrcFile) else None for item in items]
