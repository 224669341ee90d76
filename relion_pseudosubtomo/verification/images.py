"""The image files of an output directory: there, valid, of the right size, and sound inside."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.mrc_validation import (
    DataFaults,
    MrcFile,
    inspect_data,
    inspect_file,
)
from relion_pseudosubtomo.options import ALL_TILTS, WITHOUT_CTF, particle_file
from relion_pseudosubtomo.verification.results import Results

#: Every file that a particle can have: suffix -> whether it is in Fourier space.
SUFFIXES = {
    "_stack2d.mrcs": False,
    "_data.mrc": False,
    "_weights.mrc": True,
    "_CTF2.mrc": True,
    "_multi.mrc": True,
    "_div.mrc": False,
    "_data_nrm.mrc": False,
    "_CTF2_nrm.mrc": True,
    ALL_TILTS: False,
    WITHOUT_CTF: False,
}
_WEIGHTS = "_weights.mrc"
_MISSING = "image file missing"

#: Relative difference of pixel sizes that is rounding.
_PIXEL_SIZE_TOLERANCE = 1e-3

_THREADS = 8
_MODES = (2, 12)
_SHOWN = 3

Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageFile:
    """A file that has to be there.

    Attributes
    ----------
    path : str
        For messages, that of a container in its stead.
    row : int
        Of its particle.
    suffix : str
        A key of `SUFFIXES`; empty for a name that is none of this program's or RELION's.
    """

    path: str
    row: int
    suffix: str


def split_image_name(path: str) -> tuple[str, str]:
    """Return the stem and the suffix of an image's name; no suffix where it is not known."""
    suffix = next((s for s in SUFFIXES if path.endswith(s)), "")
    return path[: len(path) - len(suffix)], suffix


def list_files(results: Results) -> list[ImageFile]:
    """Return all files that the particles have to have."""
    options, columns = results.options, results.particles.columns
    weights = columns.get(labels.CTF_IMAGE)
    suffixes = set(options.unpacked_suffixes) if results.is_recorded else set()
    has_weights = _has_weights(results)
    files = []
    for row, path in enumerate(results.images):
        stem, suffix = split_image_name(path)
        files.append(ImageFile(path, row, suffix))
        own = suffixes if results.is_inside(path) else set()
        for other in sorted(own - {suffix, _WEIGHTS}):
            files.append(ImageFile(_file_beside(results, stem, other), row, other))
        if has_weights:
            path = stem + _WEIGHTS if weights is None else weights[row]
            files.append(ImageFile(path, row, _WEIGHTS))
    return files


def _file_beside(results: Results, stem: str, suffix: str) -> str:
    """Return the path of another file of a particle; those of dialects have their own folder."""
    if "/" not in suffix:
        return stem + suffix
    directory = results.request.directory
    return os.path.join(directory, particle_file(os.path.relpath(stem, directory), suffix))


def _has_weights(results: Results) -> bool:
    """Return whether there have to be weights: RELION names them also where it writes none."""
    if results.is_recorded:
        return _WEIGHTS in results.options.unpacked_suffixes
    column = results.particles.columns.get(labels.CTF_IMAGE)
    return column is not None and any(os.path.exists(path) for path in column)


def in_threads(work: Callable[[str], Result], paths: Iterable[str]) -> dict[str, Result]:
    """Return path -> result; parallel file systems answer slowly, but many at a time."""
    unique = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(unique, pool.map(work, unique), strict=True))


@dataclass
class _Faults:
    """Collects what is wrong, one finding a code."""

    results: Results
    found: dict[tuple[str, str], list[tuple[ImageFile, str]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, code: str, what: str, file: ImageFile, found: str = "") -> None:
        self.found[code, what].append((file, found))

    def report(self, findings: Findings, severities: dict[str, str] | None = None) -> None:
        for (code, what), items in self.found.items():
            rows = list(dict.fromkeys(file.row for file, _ in items))
            shown = list_first(dict.fromkeys(f"{f.path} {why}".strip() for f, why in items), _SHOWN)
            place: dict[str, Any] = {
                "file": self.results.table.path,
                "table": self.results.particles.name,
                "row": list_first(row + 1 for row in rows),
                "particle": list_first((self.results.names[row] for row in rows), _SHOWN),
                "expected" if what == _MISSING else "found": shown,
            }
            if (severities or {}).get(code) == "warning":
                findings.warning(code, what, **place)
            else:
                findings.error(code, what, **place)


def check_files(
    results: Results, files: list[ImageFile], findings: Findings
) -> dict[str, MrcFile | InputError]:
    """Check that every file is there and that its header is right.

    Parameters
    ----------
    results : Results
    files : list of ImageFile
    findings : Findings
        Gets `result-missing`, `result-unreadable`, `result-unpacked`, `result-format`,
        `result-size`, `result-mode`, `result-pixel-size`, `result-shared` and `result-name`.

    Returns
    -------
    dict of str to MrcFile or InputError
        Path -> what the file is.
    """
    known = in_threads(inspect_file, (file.path for file in files))
    faults = _Faults(results)
    _check_names(results, files, faults)
    modes = _expected_modes(results, known)
    for file in files:
        item = known[file.path]
        if isinstance(item, InputError):
            is_missing = isinstance(item.__cause__, FileNotFoundError)
            code = "result-missing" if is_missing else "result-unreadable"
            if results.options.no_mrc and results.is_inside(file.path):
                code = "result-unpacked"  # an extraction that continues makes containers alone
            if is_missing:
                faults.add(code, _MISSING, file)
            else:
                faults.add(code, "image file not readable", file, f"({item})")
        else:
            _check_header(results, file, item, modes, faults)
    not_ours = {"result-format": "warning"} if not results.is_recorded else {}
    if not results.request.is_own_table:
        not_ours["result-name"] = "warning"
    faults.report(findings, not_ours)
    return known


def _expected_modes(results: Results, known: dict[str, MrcFile | InputError]) -> tuple[int, ...]:
    if results.is_recorded:
        return (12,) if results.options.float16 else (2,)
    counts = Counter(item.header.mode for item in known.values() if isinstance(item, MrcFile))
    return tuple(mode for mode, _ in counts.most_common(1) if mode in _MODES) or _MODES


def _check_header(
    results: Results, file: ImageFile, item: MrcFile, modes: tuple[int, ...], faults: _Faults
) -> None:
    header = item.header
    if item.faults:
        faults.add("result-format", "not as MRC2014 wants it", file, f"({'; '.join(item.faults)})")
    modes = modes if results.is_inside(file.path) else _MODES
    if header.mode not in modes:
        wanted = " or ".join(map(str, modes))
        faults.add("result-mode", f"MRC mode is not {wanted}", file, f"({header.mode})")
    size, pixel_size = results.image_size[file.row], results.pixel_size[file.row]
    found = (header.nx, header.ny, header.nz)
    expected = _expected_size(results, file.suffix, size)
    if any(e not in (-1, f) for e, f in zip(expected, found, strict=True)):
        wanted = " x ".join("any" if e == -1 else str(e) for e in expected)
        text = " x ".join(map(str, found))
        faults.add("result-size", f"size is not {wanted}", file, f"({text})")
    wanted_voxel = 1 / pixel_size if SUFFIXES.get(file.suffix) else pixel_size
    if abs(header.voxel_size - wanted_voxel) > _PIXEL_SIZE_TOLERANCE * wanted_voxel:
        what = f"pixel size is not {wanted_voxel:.6g}"
        faults.add("result-pixel-size", what, file, f"({header.voxel_size:.6g})")


def _expected_size(results: Results, suffix: str, size: float) -> tuple[int, int, int]:
    """Return (nx, ny, nz); -1 for any."""
    if not np.isfinite(size):
        return -1, -1, -1
    n = int(size)
    if suffix == _WEIGHTS:
        return n // 2 + 1, n, 2 * n
    return n, n, -1 if _are_stacks(results) else n


def _are_stacks(results: Results) -> bool:
    """Return whether the images are stacks: also true subtomograms, which the table calls none."""
    return results.is_stack or results.options.real_subtomo


def _check_names(results: Results, files: list[ImageFile], faults: _Faults) -> None:
    """Check that no two particles have one image, and each has the one of its name.

    Rows of one name and one image are one particle, as after a symmetry expansion.
    """
    names = results.particles.columns.get(labels.PARTICLE_NAME)
    named = range(len(results.images)) if names is None else names
    particles = list(zip(named, results.images, strict=True))
    owners: dict[str, int] = {}
    for file in files:
        path = os.path.normpath(file.path)
        owner = owners.setdefault(path, file.row)
        if particles[owner] != particles[file.row]:
            faults.add("result-shared", "image of more than one particle", file)
        if names is None or not file.suffix:
            continue
        ending = file.suffix.rpartition("/")[2]
        if not f"/{path}".endswith(os.path.normpath(f"/{names[file.row]}{ending}")):
            faults.add("result-name", "image of another name than the particle", file)


def inspect_files(
    files: list[ImageFile], known: dict[str, MrcFile | InputError]
) -> list[tuple[ImageFile, DataFaults]]:
    """Read all values of all files that could be opened."""
    good = [file for file in files if isinstance(known.get(file.path), MrcFile)]
    inspected = in_threads(inspect_data, (file.path for file in good))
    return [(file, inspected[file.path]) for file in good]


def check_data(
    results: Results,
    inspected: Iterable[tuple[ImageFile, DataFaults]],
    blank: Callable[[int, str], NDArray[np.bool_] | None],
    findings: Findings,
) -> None:
    """Judge the values of all images (`--deep`).

    Parameters
    ----------
    results : Results
    inspected : iterable of (ImageFile, DataFaults)
        What was found in each file, or in a container in its stead.
    blank : callable
        Row and suffix -> which slices of a stack may be blank, because the CTF is zero there or
        the frame is not visible; None for none.
    findings : Findings
        Gets `result-not-finite`, `result-constant`, `result-negative` and `result-values`.
    """
    faults = _Faults(results)
    for file, data in inspected:
        _judge_data(results, file, data, blank(file.row, file.suffix), faults)
    faults.report(findings)


def _judge_data(
    results: Results,
    file: ImageFile,
    data: DataFaults,
    blank: NDArray[np.bool_] | None,
    faults: _Faults,
) -> None:
    if not data.is_finite:
        faults.add("result-not-finite", "values that are NaN or infinite", file)
    if SUFFIXES.get(file.suffix):
        is_bad = _judge_weights(file, data, faults)
    else:
        is_bad = _judge_image(results, file, data, blank, faults)
    if data.misstated and not is_bad:  # which would say the same once more
        faults.add("result-values", "not the values that were written", file, f"({data.misstated})")


def _judge_weights(file: ImageFile, data: DataFaults, faults: _Faults) -> bool:
    """Judge a volume in Fourier space; return whether it is bad."""
    if data.is_negative:
        faults.add("result-negative", "weights below zero", file)
    if data.is_constant:
        faults.add("result-constant", "nothing in the weights", file)
    return data.is_negative or data.is_constant


def _judge_image(
    results: Results,
    file: ImageFile,
    data: DataFaults,
    blank: NDArray[np.bool_] | None,
    faults: _Faults,
) -> bool:
    """Judge an image or a stack; return whether it is bad."""
    constant = data.constant
    if blank is not None:
        constant = constant[(constant >= len(blank)) | ~blank[constant.clip(max=len(blank) - 1)]]
    is_stack = _are_stacks(results)
    is_bad = len(constant) > 0 if is_stack else len(constant) == data.n_sections
    if is_bad:
        which = f"(slices {list_first(constant + 1, _SHOWN)})" if is_stack else ""
        faults.add("result-constant", "nothing in the image", file, which)
    return is_bad
