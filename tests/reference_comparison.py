"""Compare a program's output of a reference case with RELION's, by the reference cases' rules.

The rules are those of ``tests/reference/README.md``: how close the numbers have to come, which
values are not comparable, and which tables have to be the same. Nothing of the program under test
is used; :func:`compare_case` reads two folders and says what differs.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import starfile
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

RELION_OUTPUT_NAME = "relion/"
"""The output directory of the reference runs, as it stands in their STAR files."""
SUMMARY_PROPERTY = "reference_comparison"
"""Name under which tests record their worst file for the table at the end of a test run."""
STAR_FILES = (
    "particles.star",
    "particles_for_class2d.star",
    "motion.star",
    "optimisation_set.star",
)
IMAGE_SUFFIXES = (".mrc", ".mrcs")

TOLERANCE_FLOAT32 = 1e-4
TOLERANCE_FLOAT16 = 1e-2
TOLERANCE_CORRELATION = 1e-3
TOLERANCE_NUMBER = 1e-4
TOLERANCE_VOXEL_SIZE = 1e-3
SMALLEST_MULTIPLICITY = 1e-3
"""`_data_nrm` is compared only where the multiplicity is above this."""

FRIEDEL_KINDS = ("CTF2", "multi", "CTF2_nrm", "sum_weight")
"""Centred full volumes whose first plane in x is not comparable."""
TEXT_LABELS = (
    "rlnTomoName",
    "rlnTomoParticleName",
    "rlnOpticsGroupName",
    "rlnMicrographName",
    "rlnImageName",
    "rlnCtfImage",
    "rlnTomoVisibleFrames",
)
ANGLE_LABELS = tuple(
    stem + angle for stem in ("rlnAngle", "rlnTomoSubtomogram") for angle in ("Rot", "Tilt", "Psi")
)


@dataclass(frozen=True)
class FileComparison:
    """One image file: how far it is from RELION's, and how far it may be.

    `error` is the largest absolute difference divided by the standard deviation of RELION's
    values, or, where `measure` is "correlation", 1 minus the correlation.
    """

    file: str
    kind: str
    error: float
    tolerance: float
    measure: str = "difference"

    @property
    def ok(self) -> bool:
        """Whether the error is below the tolerance (a NaN is not)."""
        return self.error < self.tolerance


@dataclass
class CaseComparison:
    """All that was compared in one case; `problems` is empty where the case agrees."""

    case: str
    files: list[FileComparison] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def worst_file(self) -> FileComparison | None:
        """The file that comes nearest to its tolerance, or goes furthest beyond it."""

        def used_share(file: FileComparison) -> float:
            share = file.error / file.tolerance
            return math.inf if math.isnan(share) else share

        return max(self.files, key=used_share, default=None)

    @property
    def worst_error(self) -> float:
        """The error of `worst_file`; NaN where no file could be compared."""
        worst = self.worst_file
        return math.nan if worst is None else worst.error


def compare_case(
    case_dir: Path, output_dir: Path, output_name: str = RELION_OUTPUT_NAME
) -> CaseComparison:
    """Compare a program's output of one case with that case's ``relion/`` folder.

    Parameters
    ----------
    case_dir : pathlib.Path
        A folder of tests/reference, with ``case.json`` and ``relion/``.
    output_dir : pathlib.Path
        The folder the program has written to.
    output_name : str
        That folder as it was given to the program, with a slash at its end: what paths in its
        STAR files start with.

    Returns
    -------
    CaseComparison
        Files with their errors, and one line of text a problem.
    """
    case = json.loads((case_dir / "case.json").read_text())
    options = case["options"]
    comparison = CaseComparison(case_dir.name)
    reference_dir = case_dir / "relion"
    compare_images(comparison, reference_dir, output_dir, options)
    if "--sum" not in options:
        for name in STAR_FILES:
            comparison.problems += compare_star_files(
                reference_dir / name, output_dir / name, output_name
            )
    return comparison


# Image files


def list_images(folder: Path) -> list[str]:
    """Return the relative paths of all MRC files below a folder, sorted."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix in IMAGE_SUFFIXES
    )


def compare_images(
    comparison: CaseComparison, reference_dir: Path, output_dir: Path, options: list[str]
) -> None:
    """Compare the sets of image files, then each file that both have; adds to `comparison`."""
    expected, found = set(list_images(reference_dir)), set(list_images(output_dir))
    comparison.problems += [f"{file}: missing" for file in sorted(expected - found)]
    unexpected = sorted(found - expected)
    comparison.problems += [f"{file}: not among RELION's files" for file in unexpected]
    for file in sorted(expected & found):
        reference_path, output_path = reference_dir / file, output_dir / file
        problems = check_mrc(reference_path, output_path, kind_of_image(file))
        if not problems:
            result = compare_image(file, reference_path, output_path, options)
            comparison.files.append(result)
            if not result.ok:
                problems = [
                    f"{result.measure} error {result.error:.3g}, tolerance {result.tolerance:g}"
                ]
        comparison.problems += [f"{file}: {problem}" for problem in problems]


def kind_of_image(file: str) -> str:
    """Return what a file holds: "stack2d", "data", "weights", "CTF2", ..., "sum_data", ..."""
    stem = Path(file).stem
    if stem.startswith("sum_"):
        return stem
    for kind in ("data_nrm", "CTF2_nrm", "stack2d", "weights", "CTF2", "multi", "div", "data"):
        if stem.endswith(f"_{kind}"):
            return kind
    raise ValueError(f"unknown kind of image file {file}")


def read_mrc(path: Path) -> tuple[NDArray[np.generic], float]:
    """Return an MRC file's array and its voxel size in x (RELION's own headers have faults)."""
    with mrcfile.open(path, permissive=True) as mrc:
        return np.array(mrc.data), float(mrc.voxel_size.x)


def read_space_group(path: Path) -> int:
    """Return an MRC file's space group: 0 for images and stacks, 1 for a volume."""
    with mrcfile.open(path, permissive=True, header_only=True) as mrc:
        return int(mrc.header.ispg)


def check_mrc(reference_path: Path, output_path: Path, kind: str) -> list[str]:
    """Return what is wrong with an output file's header, shape or type."""
    report = io.StringIO()
    if not mrcfile.validate(output_path, print_file=report):
        return ["not a valid MRC file: " + " ".join(report.getvalue().split())]
    problems = []
    reference, reference_voxel = read_mrc(reference_path)
    output, voxel = read_mrc(output_path)
    if output.shape != reference.shape:
        problems.append(f"expected shape {reference.shape}, found {output.shape}")
    if output.dtype != reference.dtype:
        problems.append(f"expected data type {reference.dtype}, found {output.dtype}")
    if not math.isclose(voxel, reference_voxel, rel_tol=TOLERANCE_VOXEL_SIZE):
        problems.append(f"expected voxel size {reference_voxel:g}, found {voxel:g}")
    space_group = read_space_group(output_path)
    if kind == "stack2d" and space_group != 0:
        problems.append(f"expected an image stack (space group 0), found {space_group}")
    if kind == "data" and len(set(output.shape)) == 1 and space_group != 1:
        problems.append(f"expected a volume (space group 1), found {space_group}")
    if not np.isfinite(output).all():
        problems.append("holds values that are not finite")
    return problems


def compare_image(
    file: str, reference_path: Path, output_path: Path, options: list[str]
) -> FileComparison:
    """Compare one image file with RELION's by the rule for its kind and its case's options."""
    kind = kind_of_image(file)
    reference = read_mrc(reference_path)[0].astype(np.float64)
    output = read_mrc(output_path)[0].astype(np.float64)
    multiplicity = read_multiplicity(reference_path) if kind == "data_nrm" else None
    return compare_arrays(file, reference, output, options, multiplicity)


def compare_arrays(
    file: str,
    reference: FloatArray,
    output: FloatArray,
    options: list[str],
    multiplicity: FloatArray | None = None,
) -> FileComparison:
    """Compare two arrays by the rule for the file's kind and the case's options.

    Parameters
    ----------
    file : str
        File name; its ending says the kind.
    reference, output : numpy.ndarray
        RELION's values and those to be judged, of one shape.
    options : list of str
        The case's command line.
    multiplicity : numpy.ndarray, optional
        Half-complex (n, n, n/2+1), FFT order; needed for `_data_nrm` only.
    """
    kind = kind_of_image(file)
    tolerance = TOLERANCE_FLOAT16 if "--float16" in options else TOLERANCE_FLOAT32
    if "--real_subtomo" in options:
        error = max(map(correlation_error, reference, output))
        return FileComparison(file, kind, error, TOLERANCE_CORRELATION, "correlation")
    if kind in ("div", "sum_div") and "--SNR" not in options:
        error = correlation_error(reference, output)
        return FileComparison(file, kind, error, TOLERANCE_CORRELATION, "correlation")
    if kind == "weights":
        n = len(reference) // 2
        halves = (np.s_[:n], np.s_[n:])
        error = max(relative_error(reference[half], output[half]) for half in halves)
    elif kind in FRIEDEL_KINDS:
        error = relative_error(reference, output, np.s_[:, :, 1:])
    elif kind == "data_nrm":
        if multiplicity is None:
            raise ValueError(f"the multiplicity is needed to compare {file}")
        reference = mask_small_multiplicity(reference, multiplicity)
        output = mask_small_multiplicity(output, multiplicity)
        error = relative_error(reference, output)
    else:
        error = relative_error(reference, output)
    return FileComparison(file, kind, error, tolerance)


def relative_error(
    reference: FloatArray, output: FloatArray, part: tuple[slice, ...] = ()
) -> float:
    """Return the largest difference, in `part` of the arrays, over the reference's deviation."""
    difference = float(np.abs(output - reference)[part].max())
    deviation = float(reference.std())
    if deviation == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / deviation


def correlation_error(reference: FloatArray, output: FloatArray) -> float:
    """Return 1 minus the correlation of two arrays."""
    a, b = reference - reference.mean(), output - output.mean()
    norm = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return 1.0 - float((a * b).sum()) / norm if norm > 0 else math.nan


def read_multiplicity(data_nrm_path: Path) -> FloatArray:
    """Return the half-complex multiplicity beside a `_data_nrm.mrc` file, FFT order."""
    stem = data_nrm_path.name.removesuffix("_data_nrm.mrc")
    weights = data_nrm_path.with_name(f"{stem}_weights.mrc")
    if weights.exists():
        both = read_mrc(weights)[0].astype(np.float64)
        return both[len(both) // 2 :]
    full = read_mrc(data_nrm_path.with_name(f"{stem}_multi.mrc"))[0].astype(np.float64)
    # After the shift back, index n/2 holds x = -n/2, which is x = n/2 of the half.
    return np.fft.ifftshift(full)[:, :, : len(full) // 2 + 1]


def mask_small_multiplicity(volume: FloatArray, multiplicity: FloatArray) -> FloatArray:
    """Set the Fourier voxels of a real volume to 0 where the multiplicity is small."""
    transform = np.fft.rfftn(volume)
    transform[multiplicity <= SMALLEST_MULTIPLICITY] = 0
    return np.fft.irfftn(transform, s=volume.shape, axes=(0, 1, 2))


# STAR files


def read_star_text(path: Path) -> dict[str, pd.DataFrame]:
    """Read all tables of a STAR file with every value as text; a list table is one row."""
    blocks = starfile.read(path, always_dict=True)
    all_labels = sorted({label for block in blocks.values() for label in block})
    blocks = starfile.read(path, always_dict=True, parse_as_string=all_labels)
    return {
        name: pd.DataFrame([block]) if isinstance(block, dict) else block
        for name, block in blocks.items()
    }


def compare_star_files(reference_path: Path, output_path: Path, output_name: str) -> list[str]:
    """Return the differences between two STAR files: tables, columns, rows, values."""
    name = output_path.name
    if not reference_path.exists():
        return [f"{name}: RELION writes no such file"] if output_path.exists() else []
    if not output_path.exists():
        return [f"{name}: missing"]
    expected, found = read_star_text(reference_path), read_star_text(output_path)
    problems = [f"{name}: table data_{table} missing" for table in expected if table not in found]
    unexpected = [table for table in found if table not in expected]
    problems += [f"{name}: table data_{table} unexpected" for table in unexpected]
    for table, reference in expected.items():
        if table in found:
            differences = compare_tables(reference, found[table], output_name)
            problems += [f"{name}, table data_{table}: {text}" for text in differences]
    return problems


def compare_tables(reference: pd.DataFrame, output: pd.DataFrame, output_name: str) -> list[str]:
    """Return the differences between two tables of text; the order of columns is free."""
    problems = [f"column {label} missing" for label in reference if label not in output]
    problems += [f"column {label} unexpected" for label in output if label not in reference]
    if len(reference) != len(output):
        return [*problems, f"expected {len(reference)} rows, found {len(output)}"]
    for label in reference:
        if label not in output:
            continue
        pairs = zip(reference[label], output[label], strict=True)
        for row, (expected, found) in enumerate(pairs, start=1):
            if not values_agree(label, replace_output_name(expected, output_name), found):
                problems.append(f"row {row}, {label}: expected {expected}, found {found}")
    return problems


def replace_output_name(text: str, output_name: str) -> str:
    """Replace RELION's output directory at the start of a path (or behind ``n@``)."""
    number, at, path = text.rpartition("@")
    if path.startswith(RELION_OUTPUT_NAME):
        path = output_name + path.removeprefix(RELION_OUTPUT_NAME)
    return number + at + path


def values_agree(label: str, expected: str, found: str) -> bool:
    """Say whether two values of a column agree: same text, or numbers within the tolerance."""
    if expected == found:
        return True
    if label in TEXT_LABELS:
        return False
    a, b = parse_numbers(expected), parse_numbers(found)
    if a is None or b is None or len(a) != len(b):
        return False
    difference = a - b
    if label in ANGLE_LABELS:
        difference = (difference + 180) % 360 - 180
    return bool(np.all(np.abs(difference) <= TOLERANCE_NUMBER))


def parse_numbers(text: str) -> FloatArray | None:
    """Return the numbers of a value (one, or a vector in brackets); None where it is text."""
    is_vector = text.startswith("[") and text.endswith("]")
    words = text[1:-1].split(",") if is_vector else [text]
    try:
        return np.array([float(word) for word in words])
    except ValueError:
        return None
