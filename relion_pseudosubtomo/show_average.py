"""A picture of a job's average beside the known structure, with Fourier shell correlations.

`python -m relion_pseudosubtomo.show_average Extract/job009/ --reference reference.mrc`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.average_job import JobAverage, average_directory
from relion_pseudosubtomo.core.fsc import (
    fourier_shell_correlation,
    resolution_at,
    shells_up_to,
)
from relion_pseudosubtomo.errors import InputError, PseudoSubtomoError, UsageError
from relion_pseudosubtomo.io.mrc import read_header, read_volume, write_mrc

Floats = NDArray[np.floating]

EXIT_FAILED = 1
JUDGED_FRACTION_OF_NYQUIST = 2 / 3
HALF_MAP_THRESHOLD = 0.143
STRUCTURE_THRESHOLD = 0.5
SIZE_TOLERANCE = 1e-3
VIEWS = ("slice xy", "slice xz", "slice yz", "projection xy")
GREY_PERCENTILES = (1.0, 99.7)
TICK_STEP = 0.02
DOTS_PER_INCH = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Average a finished job, print the correlations, draw the picture; return the exit status."""
    given = _build_parser().parse_args(arguments)
    try:
        average = average_directory(given.job)
        reference = None if given.reference is None else read_reference(given.reference, average)
        for line in describe(average, reference):
            print(line)
        if given.mrc is not None:
            volume = average.volume.astype(np.float32)
            write_mrc(
                given.mrc, volume, voxel_size=average.pixel_size, is_stack=False, float16=False
            )
        if given.o is not None:
            draw(average, reference, Path(given.o))
    except (PseudoSubtomoError, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m relion_pseudosubtomo.show_average",
        description="Average the particles of a finished job and show the result. "
        "Start it in the project directory.",
    )
    parser.add_argument("job", help="output directory of the job, or its optimisation_set.star")
    parser.add_argument("--reference", metavar="MRC", help="known structure, same box and pixels")
    parser.add_argument("--o", metavar="PNG", help="picture to write")
    parser.add_argument("--mrc", metavar="MRC", help="average to write")
    return parser


def read_reference(path: str, average: JobAverage) -> Floats:
    """Return the known structure, shape (n, n, n).

    Raises
    ------
    InputError
        Where it has not the box and pixel size of the average.
    """
    header = read_header(path)
    box, pixel_size = len(average.volume), average.pixel_size
    is_same_box = (header.nx, header.ny, header.nz) == (box, box, box)
    if not is_same_box or abs(header.voxel_size / pixel_size - 1) > SIZE_TOLERANCE:
        raise InputError(
            f"Reference {path}: expected {box} voxels of {pixel_size:g} A along each side, found "
            f"{header.nx} x {header.ny} x {header.nz} of {header.voxel_size:g} A. Simulate with "
            f"--reference_box {box} --reference_angpix {pixel_size:g}"
        )
    return np.asarray(read_volume(path), dtype=np.float64)


def describe(average: JobAverage, reference: Floats | None) -> list[str]:
    """Return the correlations in words and as a table, one line each."""
    n, pixel_size = len(average.volume), average.pixel_size
    curves = compute_curves(average, reference)
    judged = shells_up_to(JUDGED_FRACTION_OF_NYQUIST, n)
    limit = n * pixel_size / (judged.stop - 1)
    lines = [f"{average.n_particles} particles, box {n}, pixel size {pixel_size:g} A"]
    for name, (curve, threshold) in curves.items():
        lines.append(
            f"FSC {name}: {resolution_at(curve, pixel_size, threshold):.1f} A at {threshold:g}; "
            f"lowest value to 2/3 of Nyquist ({limit:.1f} A): {np.min(curve[judged]):.3f}"
        )
    lines.append("   shell  resolution" + "".join(f"  {name:>22}" for name in curves))
    for shell in range(1, n // 2 + 1):
        values = "".join(f"  {curve[shell]:22.3f}" for curve, _ in curves.values())
        lines.append(f"   {shell:5d}  {n * pixel_size / shell:8.2f} A{values}")
    return lines


def compute_curves(
    average: JobAverage, reference: Floats | None
) -> dict[str, tuple[Floats, float]]:
    """Return name -> (FSC, threshold): half maps, and the average against the structure."""
    curves = {
        "of the half maps": (
            fourier_shell_correlation(average.half_a, average.half_b),
            HALF_MAP_THRESHOLD,
        )
    }
    if reference is not None:
        against = fourier_shell_correlation(average.volume, reference)
        curves["with known structure"] = (against, STRUCTURE_THRESHOLD)
    return curves


def draw(average: JobAverage, reference: Floats | None, path: Path) -> None:
    """Write the picture: slices and a projection of each volume, the correlations beside them.

    Raises
    ------
    UsageError
        Where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "A picture needs matplotlib, found none. Install relion_pseudosubtomo[report]"
        ) from error
    rows = [("Average of the particles", average.volume)]
    if reference is not None:
        rows.insert(0, ("Known structure", reference))
    figure = Figure(figsize=(16, 2.6 * len(rows) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.7, 1))
    views_part, curve_part = parts
    axes = views_part.subplots(len(rows), len(VIEWS), squeeze=False)
    for row, (title, volume) in zip(axes, rows, strict=True):
        _draw_views(row, title, volume, average.pixel_size)
    _draw_curves(curve_part.subplots(), average, reference)
    figure.suptitle(
        f"{average.n_particles} particles, box {len(average.volume)}, "
        f"pixel size {average.pixel_size:g} Å"
    )
    if path.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
        raise UsageError(f"{path}: expected the name of a picture, as average.png")
    figure.savefig(path, dpi=DOTS_PER_INCH)


def make_views(volume: Floats) -> list[Floats]:
    """Return the slices through the centre and the sum along z, in the order of `VIEWS`."""
    middle = len(volume) // 2
    return [volume[middle], volume[:, middle], volume[:, :, middle], volume.sum(axis=0)]


def _draw_views(axes: Sequence[Any], title: str, volume: Floats, pixel_size: float) -> None:
    low_edge = -(len(volume) // 2 + 0.5) * pixel_size
    extent = (low_edge, low_edge + len(volume) * pixel_size) * 2
    views = make_views(volume)
    of_slices = np.percentile(np.stack(views[:3]), GREY_PERCENTILES)
    for axis, name, image in zip(axes, VIEWS, views, strict=True):
        is_slice = name.startswith("slice")
        low, high = of_slices if is_slice else np.percentile(image, GREY_PERCENTILES)
        axis.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent)
        axis.set_title(f"{title}\ncentral {name}" if axis is axes[0] else f"\n{name}")
        axis.set_xlabel(f"{name[-2]} (Å)")
        axis.set_ylabel(f"{name[-1]} (Å)")


def _draw_curves(axis: Any, average: JobAverage, reference: Floats | None) -> None:
    n, pixel_size = len(average.volume), average.pixel_size
    frequency = np.arange(n // 2 + 1) / (n * pixel_size)
    for name, (curve, threshold) in compute_curves(average, reference).items():
        resolution = resolution_at(curve, pixel_size, threshold)
        label = f"{name}: {resolution:.1f} Å at {threshold:g}"
        axis.plot(frequency[1:], curve[1:], marker=".", label=label)
    judged = JUDGED_FRACTION_OF_NYQUIST * 0.5 / pixel_size
    axis.axvline(judged, color="grey", linestyle=":", label="2/3 of Nyquist")
    for level in (HALF_MAP_THRESHOLD, STRUCTURE_THRESHOLD, 0.9):
        axis.axhline(level, color="grey", linewidth=0.7)
        axis.text(frequency[1], level, f"{level:g}", va="bottom", color="grey")
    axis.set_ylim(top=1.03)
    axis.set_xlim(0, frequency[-1])
    ticks = np.arange(1, frequency[-1] / TICK_STEP) * TICK_STEP
    axis.set_xticks(ticks, [f"{tick:.2f}\n{1 / tick:.0f} Å" for tick in ticks])
    axis.set_xlabel("spatial frequency (1/Å), resolution")
    axis.set_ylabel("Fourier shell correlation")
    axis.legend(loc="lower left")
    axis.set_title("Fourier shell correlation")


if __name__ == "__main__":
    sys.exit(main())
