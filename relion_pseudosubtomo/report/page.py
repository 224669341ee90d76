"""The page: one HTML file without scripts and without anything from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from relion_pseudosubtomo.findings import bytes_text
from relion_pseudosubtomo.io.atomic import write_text
from relion_pseudosubtomo.report import figures
from relion_pseudosubtomo.report.contents import Contents, TomogramContents, read_contents

FILE = "report.html"

#: Tomograms with pictures, at most, unless more are asked for: they are most of the page's size.
SHOWN = 30

_FSC_THRESHOLD = 0.143
_SLICES = ("xy", "xz", "yz")

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("relion_pseudosubtomo.report", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class TomogramRow:
    """A row of the table of tomograms; figures that are not known are dashes."""

    name: str
    n_in: int
    n_kept: int
    n_dropped: int
    why: str
    seconds: str
    ranks: str


@dataclass(frozen=True)
class TomogramFigures:
    """The pictures of one tomogram."""

    name: str
    tilts: list[figures.TiltFigure]
    mean: figures.Picture | None
    examples: list[figures.Picture]


def make_report(directory: str, n_shown: int = SHOWN) -> Path:
    """Make the report of a finished extraction from its output directory; return its path.

    Parameters
    ----------
    directory : str
        The output directory.
    n_shown : int
        Tomograms with pictures, at most.

    Raises
    ------
    InputError
        Where the directory holds no finished extraction.
    OutputError
        Where the page cannot be written.
    """
    path = Path(directory, FILE)
    write_text(path, render(read_contents(directory, n_shown)))
    return path


def render(contents: Contents) -> str:
    """Return the page."""
    shown = [t for t in contents.tomograms if t.is_shown and (t.pieces or t.tilts is not None)]
    return _TEMPLATES.get_template("template.html").render(
        contents=contents,
        cards=_cards(contents),
        dropped=dict(contents.dropped),
        rows=[_row(tomogram) for tomogram in contents.tomograms],
        tomograms=[_draw_tomogram(contents, tomogram) for tomogram in shown],
        histograms=[chart for chart in _histograms(contents) if chart is not None],
        power=_draw_power(contents),
        slices=_draw_slices(contents),
        fsc=_draw_fsc(contents),
        pixel_sizes=", ".join(f"{size:g}" for size in contents.pixel_sizes) or "unknown",
        options={} if contents.facts is None else contents.facts.options,
    )


def _cards(contents: Contents) -> list[tuple[str, str]]:
    """Return the key figures, each with what it is."""
    summary, n_dropped = contents.summary, contents.dropped.total()
    n_tomograms = sum(1 for tomogram in contents.tomograms if tomogram.names)
    cards = [
        (f"{contents.n_kept + n_dropped:,}", "particles in"),
        (f"{contents.n_kept:,}", "kept"),
        (f"{n_dropped:,}", "dropped"),
        (f"{n_tomograms:,}", "tomograms"),
    ]
    if summary:
        memory = max((int(n) for n in summary.get("private_memory", {}).values()), default=0)
        cards += [
            (f"{summary.get('seconds', 0):,.1f} s", "wall time"),
            (f"{summary.get('particles_per_second', 0):,.1f}", "particles a second"),
            (f"{summary.get('ranks', 1)} x {summary.get('threads', 1)}", "ranks x threads"),
            (f"{summary.get('efficiency', 0):.0%}", "efficiency of the ranks"),
            (bytes_text(summary.get("bytes_written", 0)), "images written"),
            (bytes_text(memory), "private memory a rank"),
        ]
    return cards


def _row(tomogram: TomogramContents) -> TomogramRow:
    n_kept, n_dropped = len(tomogram.names), tomogram.dropped.total()
    seconds = sum(
        work.get("seconds_loading", 0) + work.get("seconds_extracting", 0) for work in tomogram.work
    )
    ranks = sorted({int(work.get("rank", 0)) for work in tomogram.work})
    return TomogramRow(
        name=tomogram.name,
        n_in=n_kept + n_dropped,
        n_kept=n_kept,
        n_dropped=n_dropped,
        why="; ".join(f"{n} {reason}" for reason, n in tomogram.dropped.items()),
        seconds=f"{seconds:.1f}" if tomogram.work else "-",
        ranks=", ".join(map(str, ranks)) or "-",
    )


def _draw_tomogram(contents: Contents, tomogram: TomogramContents) -> TomogramFigures:
    pieces, name = tomogram.pieces, tomogram.name
    tilts = tomogram.tilts
    examples = [
        figures.make_picture(
            picture, f"Particle {tomogram.names[place]}", tomogram.names[place].split("/")[-1]
        )
        for piece in pieces
        for place, picture in zip(piece.places, piece.examples, strict=True)
    ]
    return TomogramFigures(
        name=name,
        tilts=[] if tilts is None else figures.draw_tilt_figures(name, tilts, tomogram.geometry),
        mean=_draw_mean(contents, tomogram) if pieces else None,
        examples=examples,
    )


def _draw_mean(contents: Contents, tomogram: TomogramContents) -> figures.Picture:
    n_summed = sum(piece.n_summed for piece in tomogram.pieces)
    n_not_finite = sum(piece.n_not_finite for piece in tomogram.pieces)
    mean = np.sum([piece.picture_sum for piece in tomogram.pieces], axis=0) / max(n_summed, 1)
    what = "projected along z" if contents.is_3d else "their least exposed images"
    if not tomogram.is_collected and not contents.is_3d:
        what = "the middle images of their stacks"
    alt = f"Mean of {n_summed} particles of {tomogram.name}"
    left_out = f"; {n_not_finite} with NaN or infinite pixels left out" if n_not_finite else ""
    return figures.make_picture(mean, alt, f"Mean of {n_summed} particles, {what}{left_out}")


def _histograms(contents: Contents) -> list[figures.Chart | None]:
    known = [t.geometry for t in contents.tomograms if t.names and t.geometry is not None]
    charts = []
    if contents.n_visible is not None:
        charts.append(
            figures.draw_histogram(
                "Visible frames", contents.n_visible, "frames a particle", "particles"
            )
        )
    if known:
        defocus = np.concatenate([geometry.defocus for geometry in known]) / 1e4
        dose = np.concatenate([geometry.dose for geometry in known])
        images = np.concatenate([geometry.images_per_frame for geometry in known])
        charts += [
            figures.draw_histogram("Defocus", defocus, "mean defocus (µm)", "particles"),
            figures.draw_histogram("Dose", dose, "dose before (e/Å²)", "particle images", images),
        ]
    return charts


def _draw_power(contents: Contents) -> figures.Chart | None:
    spectra = []
    for tomogram in contents.tomograms:
        n_summed = sum(piece.n_summed for piece in tomogram.pieces)
        if n_summed and 0 < tomogram.pixel_size < np.inf:
            shells = np.sum([piece.power_sum for piece in tomogram.pieces], axis=0) / n_summed
            spectra.append((tomogram.pixel_size, shells))
    return figures.draw_power(spectra)


def _draw_slices(contents: Contents) -> list[figures.Picture]:
    if contents.average is None:
        return []
    return [
        figures.make_picture(image, f"Central {plane} slice of the average", plane)
        for plane, image in zip(_SLICES, contents.average.slices, strict=True)
    ]


def _draw_fsc(contents: Contents) -> figures.Chart | None:
    if contents.average is None:
        return None
    average = contents.average
    return figures.draw_fsc(average.frequency, average.fsc, average.resolution, _FSC_THRESHOLD)
