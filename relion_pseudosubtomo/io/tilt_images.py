"""The tilt images of one tomogram: where they are, and whether their headers fit (spec 1.3)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.columns import report_rows, texts
from relion_pseudosubtomo.io.mrc import MrcHeader, image_path
from relion_pseudosubtomo.io.star import StarTable
from relion_pseudosubtomo.model import FrameImage

Headers = Mapping[str, MrcHeader | InputError]

_IMAGE_OF_STACK = re.compile(r"(\d+)@(.+)")

#: What WarpTools names as the tilt series when it exports finished particles only.
_DUMMY_NAME = "dummy_tiltseries.mrc"

#: Relative difference of pixel sizes that is worth a warning.
_PIXEL_SIZE_TOLERANCE = 0.01


@dataclass(frozen=True)
class TiltSeries:
    """A tilt table and what the global table says about its images.

    Attributes
    ----------
    tomogram : str
        Name of the tomogram.
    table : StarTable
        One row a frame.
    stack : str or None
        The stack of all tilt images, where they are not named one by one.
    frames : tuple of FrameImage
        The tilt images; empty where they cannot be told.
    """

    tomogram: str
    table: StarTable
    stack: str | None
    frames: tuple[FrameImage, ...]


def list_frames(
    tomogram: str, table: StarTable, stack: str | None, findings: Findings
) -> TiltSeries:
    """Return where each tilt image is, from the table alone.

    Parameters
    ----------
    tomogram : str
        Name of the tomogram.
    table : StarTable
        Its tilt table.
    stack : str or None
        rlnTomoTiltSeriesName, which wins over rlnMicrographName.
    findings : Findings
        Gets errors for a table without rows or images.
    """
    frames: list[FrameImage] = []
    if table.n_rows == 0:
        findings.error("no-frames", "no tilt images", file=table.path, table=table.name)
    elif stack is not None:
        frames = [FrameImage(image_path(stack), i) for i in range(table.n_rows)]
    elif labels.MICROGRAPH_NAME not in table.columns:
        findings.error(
            "missing-column",
            "no tilt images",
            file=table.path,
            table=table.name,
            expected=f"{labels.MICROGRAPH_NAME}, or {labels.TILT_SERIES_NAME} in the global table",
        )
    else:
        names = texts(table, labels.MICROGRAPH_NAME)
        absent = [row for row, name in enumerate(names) if name is None]
        report_rows(
            findings,
            "missing-value",
            f"no {labels.MICROGRAPH_NAME}",
            table,
            absent,
            expected="a file",
        )
        if not absent:
            frames = [_parse_frame(name) for name in names if name is not None]
    return TiltSeries(tomogram, table, stack, tuple(frames))


def _parse_frame(text: str) -> FrameImage:
    match = _IMAGE_OF_STACK.fullmatch(text)
    if match is None:
        return FrameImage(image_path(text), 0)
    return FrameImage(image_path(match[2]), int(match[1]) - 1)


def check_images(
    series: TiltSeries, headers: Headers, pixel_size: float, least_size: int, findings: Findings
) -> tuple[int, int] | None:
    """Check the headers of all tilt images of a series against its table and each other.

    Parameters
    ----------
    series : TiltSeries
        The tilt images.
    headers : mapping of str to MrcHeader or InputError
        What each file holds.
    pixel_size : float
        Angstrom, of the STAR file.
    least_size : int
        Box in unbinned pixels; the images of a series of dummies are smaller.
    findings : Findings
        Gets errors for images that are missing, unreadable, out of range, of different sizes, or
        not as many as the table's rows, and a warning for another pixel size.

    Returns
    -------
    tuple of int or None
        (width, height) in pixels; None where there was an error.
    """
    if not series.frames:
        return None
    found = Findings()
    _check_files(series, headers, found)
    good = [h for f in series.frames if isinstance(h := headers[f.path], MrcHeader)]
    if not found.errors:
        _check_counts(series, good, found)
        _check_sizes(series, good, found)
    if _is_dummy(series, found, good, least_size):
        findings.error(
            "dummy-images",
            f"{_DUMMY_NAME} stands for the tilt images",
            file=series.table.path,
            tomogram=series.tomogram,
            expected="a stack of the tilt images",
            found="a name that WarpTools writes in place of one",
        )
        return None
    findings.extend(found)
    if found.errors:
        return None
    _check_pixel_size(series, good, pixel_size, findings)
    return good[0].nx, good[0].ny


def _is_dummy(
    series: TiltSeries, found: Findings, good: Sequence[MrcHeader], least_size: int
) -> bool:
    if all(PurePath(frame.path).name != _DUMMY_NAME for frame in series.frames):
        return False
    return bool(found.errors) or any(min(h.nx, h.ny) < least_size for h in good)


def _check_files(series: TiltSeries, headers: Headers, findings: Findings) -> None:
    missing: dict[str, list[int]] = {}
    unreadable: dict[str, tuple[int, str]] = {}
    outside: list[int] = []
    for row, frame in enumerate(series.frames):
        header = headers[frame.path]
        if isinstance(header, MrcHeader):
            if series.stack is None and not 0 <= frame.index < header.nz:
                outside.append(row)
        elif isinstance(header.__cause__, FileNotFoundError):
            missing.setdefault(frame.path, []).append(row)
        else:
            unreadable.setdefault(frame.path, (row + 1, str(header)))
    where = {"file": series.table.path, "tomogram": series.tomogram}
    if missing:
        findings.error(
            "image-missing",
            "tilt image missing",
            **where,
            row=list_first(row + 1 for rows in missing.values() for row in rows),
            expected=f"the file {list_first(missing, 3)}",
        )
    if unreadable:
        findings.error(
            "image-unreadable",
            f"tilt image not readable ({list_first((why for _, why in unreadable.values()), 3)})",
            **where,
            row=list_first(row for row, _ in unreadable.values()),
        )
    report_rows(
        findings,
        "image-index",
        labels.MICROGRAPH_NAME,
        series.table,
        outside,
        expected="n@stack with n from 1 to the number of images",
        found=list_first((series.table.columns[labels.MICROGRAPH_NAME][r] for r in outside), 3),
    )


def _check_counts(series: TiltSeries, headers: Sequence[MrcHeader], findings: Findings) -> None:
    """Check that a stack has an image for each frame, and a file without a number has but one."""
    where = {"file": series.table.path, "tomogram": series.tomogram}
    if series.stack is not None:
        if headers[0].nz != len(series.frames):
            findings.error(
                "frame-count",
                f"number of images in {headers[0].path}, for the tilt table",
                **where,
                expected=len(series.frames),
                found=headers[0].nz,
            )
        return
    names = series.table.columns[labels.MICROGRAPH_NAME]
    rows = [
        row
        for row, header in enumerate(headers)
        if header.nz > 1 and _IMAGE_OF_STACK.fullmatch(names[row]) is None
    ]
    if rows:
        findings.error(
            "frame-count",
            f"number of images in {headers[rows[0]].path}",
            **where,
            row=list_first(row + 1 for row in rows),
            expected="1, or a name n@stack",
            found=headers[rows[0]].nz,
        )


def _check_sizes(series: TiltSeries, headers: Sequence[MrcHeader], findings: Findings) -> None:
    sizes = [(header.nx, header.ny) for header in headers]
    width, height = Counter(sizes).most_common(1)[0][0]
    others = [row for row, size in enumerate(sizes) if size != (width, height)]
    if others:
        odd = headers[others[0]]
        findings.error(
            "image-size",
            f"size of tilt image {odd.path}",
            file=series.table.path,
            tomogram=series.tomogram,
            row=list_first(row + 1 for row in others),
            expected=f"{width} x {height} as of the others",
            found=f"{odd.nx} x {odd.ny}",
        )


def _check_pixel_size(
    series: TiltSeries, headers: Sequence[MrcHeader], pixel_size: float, findings: Findings
) -> None:
    far = _PIXEL_SIZE_TOLERANCE * pixel_size
    others = [h for h in headers if h.voxel_size > 0 and abs(h.voxel_size - pixel_size) > far]
    if others:
        findings.warning(
            "pixel-size",
            f"pixel size in the header of {others[0].path}",
            file=series.table.path,
            tomogram=series.tomogram,
            expected=f"{pixel_size:g} A",
            found=f"{others[0].voxel_size:g} A",
        )
