"""Figures of the report: pictures as data, and charts as coordinates that the template draws.

Charts are plain lines and bars inside the page, so that they take its colours, light or dark, and
stay small; the template `template.html` has the one macro that draws them.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from relion_pseudosubtomo.report.collect import to_grey
from relion_pseudosubtomo.report.store import Geometry, TiltPictures

Floats = NDArray[np.floating]

#: Tilt images are mostly noise, which only a lossy format makes small.
_JPEG_QUALITY = 75

#: Markers of one kind on one picture, at most; more would hide it.
MARKERS = 1000

#: Sizes of a chart and of the room for its labels, pixels.
_WIDTH, _HEIGHT = 440, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 46

_N_BINS = 24
_N_TICKS = 5

#: Values that are evenly spaced get a bar each, up to so many.
_MOST_BARS = 64

#: Values are compared to so many decimals, and steps between them may differ by this share.
_DECIMALS, _UNEVENNESS = 3, 0.05


def jpeg_uri(grey: NDArray[np.uint8]) -> str:
    """Return a grey picture as a data URI."""
    with io.BytesIO() as buffer:
        Image.fromarray(grey).save(buffer, "JPEG", quality=_JPEG_QUALITY)
        data = buffer.getvalue()
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")


@dataclass(frozen=True)
class Picture:
    """A picture in the page.

    Attributes
    ----------
    uri : str
    width, height : int
        Pixels.
    alt : str
        What it shows, in words.
    caption : str
    """

    uri: str
    width: int
    height: int
    alt: str
    caption: str = ""


def make_picture(image: NDArray, alt: str, caption: str = "") -> Picture:
    """Return an image as a picture in grey values of its own, or its own where it is uint8."""
    grey = image if image.dtype == np.uint8 else to_grey(image)
    height, width = grey.shape
    return Picture(jpeg_uri(grey), width, height, alt, caption)


@dataclass(frozen=True)
class Markers:
    """Particles of one kind on a tilt image.

    Attributes
    ----------
    kind : {"kept", "partly", "dropped"}
    path : str
        Their outlines, as the path of an SVG in the picture's pixels.
    """

    kind: str
    path: str


@dataclass(frozen=True)
class TiltFigure:
    """A tilt image with the particles on it."""

    picture: Picture
    markers: list[Markers]


def draw_tilt_figures(
    tomogram: str, tilts: TiltPictures, geometry: Geometry | None
) -> list[TiltFigure]:
    """Return the low-tilt and the high-tilt image of a tomogram, with its particles on them."""
    figures = []
    for i, grey in enumerate(tilts.pictures):
        what = f"{('Low', 'High')[i]} tilt, frame {tilts.frames[i] + 1}"
        if geometry is None or not np.array_equal(geometry.frames, tilts.frames):
            picture = make_picture(grey, f"{what} of {tomogram}", f"{what}; positions not known")
            figures.append(TiltFigure(picture, []))
            continue
        markers, counts, steps, n_outside = _mark(geometry, i, tilts.scale, grey.shape)
        caption = f"{what}, {geometry.tilt[i]:.1f}°"
        said = ", ".join(f"{n} {kind}" for kind, n in counts.items())
        alt = f"{caption} of {tomogram}, with projected particle positions: {said}"
        if n_outside:
            caption += f"; outside the image: {n_outside}"
        caption += "".join(f"; {kind}: 1 of {n} shown" for kind, n in steps.items())
        figures.append(TiltFigure(make_picture(grey, alt, caption), markers))
    return figures


def _mark(
    geometry: Geometry, i: int, scale: int, shape: tuple[int, ...]
) -> tuple[list[Markers], dict[str, int], dict[str, int], int]:
    """Return a picture's markers, the number of each kind and how many lie outside.

    The third value is k for those kinds of which one in k is shown, for want of room.
    """
    x, y = ((geometry.points[:, i] + 0.5) / scale).T
    height, width = shape
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    whole = geometry.n_visible >= geometry.n_usable
    radius = max(3.0, width / 90)
    markers, counts, steps = [], {}, {}
    for kind, those in (
        ("dropped", ~geometry.kept),
        ("partly", geometry.kept & ~whole),
        ("kept", geometry.kept & whole),
    ):
        drawn = np.flatnonzero(those & inside)
        name = {"partly": "partly visible"}.get(kind, kind)
        counts[name] = len(drawn)
        step = -(-len(drawn) // MARKERS)
        if step > 1:
            steps[name], drawn = step, drawn[::step]
        outline = "".join(_OUTLINES[kind](x[j], y[j], radius) for j in drawn)
        if outline:
            markers.append(Markers(kind, outline))
    return markers, counts, steps, int(np.sum(~inside))


def _circle(x: float, y: float, r: float) -> str:
    return f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 " + (
        f"{-2 * r:.1f} 0"
    )


def _diamond(x: float, y: float, r: float) -> str:
    return f"M{x - r:.1f} {y:.1f}l{r:.1f} {-r:.1f} {r:.1f} {r:.1f} {-r:.1f} {r:.1f}z"


def _cross(x: float, y: float, r: float) -> str:
    d = 0.8 * r
    return (
        f"M{x - d:.1f} {y - d:.1f}l{2 * d:.1f} {2 * d:.1f}m0 {-2 * d:.1f}l{-2 * d:.1f} {2 * d:.1f}"
    )


_OUTLINES = {"kept": _circle, "partly": _diamond, "dropped": _cross}


@dataclass(frozen=True)
class Tick:
    """A labelled place along an axis, pixels from the chart's left or top."""

    place: float
    label: str


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram in pixels, and what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Line:
    """A curve: the path of an SVG, and its role ("main", "faint" or "level")."""

    path: str
    role: str


@dataclass
class Chart:
    """A chart, in pixels.

    Attributes
    ----------
    title, x_label, y_label : str
    alt : str
        What it shows, in words.
    width, height, left, right, top, bottom : float
        The whole chart, and the edges of the area where things are drawn.
    """

    title: str
    x_label: str
    y_label: str
    alt: str
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    width: float = _WIDTH
    height: float = _HEIGHT
    left: float = _LEFT
    right: float = _WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = _HEIGHT - _BOTTOM

    def x(self, share: float) -> float:
        """Return the pixel at a share of the x axis."""
        return round(self.left + share * (self.right - self.left), 1)

    def y(self, share: float) -> float:
        """Return the pixel at a share of the y axis, from its foot."""
        return round(self.bottom - share * (self.bottom - self.top), 1)


def round_ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return round numbers from `low` to `high`, about five of them."""
    span = max(high - low, 1e-12)
    power = 10.0 ** math.floor(math.log10(span / _N_TICKS))
    step = next(f * power for f in (1, 2, 5, 10) if span / (f * power) <= _N_TICKS + 1)
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def draw_histogram(
    title: str,
    values: Floats | NDArray[np.int64],
    x_label: str,
    y_label: str,
    weights: NDArray | None = None,
) -> Chart | None:
    """Return a histogram of finite values; None without any.

    Parameters
    ----------
    title, x_label, y_label : str
    values : ndarray, shape (k,)
    weights : ndarray, shape (k,), optional
        How often each counts.
    """
    good = np.isfinite(values) & (True if weights is None else weights > 0)
    values, counts = values[good], None if weights is None else weights[good]
    if len(values) == 0:
        return None
    mean = float(np.average(values, weights=counts))
    alt = f"Histogram, {x_label}: {values.min():.4g} to {values.max():.4g}, mean {mean:.4g}"
    chart = Chart(title, x_label, y_label, alt)
    step = _even_step(values)
    if step is None:
        margin = max(float(np.ptp(values)) * 0.01, abs(float(values.max())) * 1e-3, 1e-6)
        edges = np.linspace(values.min() - margin, values.max() + margin, _N_BINS + 1)
    else:
        edges = np.arange(values.min(), values.max() + 1.5 * step, step) - step / 2
    heights, _ = np.histogram(values, edges, weights=counts)
    _draw_bars(chart, edges, heights, single=step is not None)
    return chart


def _even_step(values: NDArray) -> float | None:
    """Return the step between values that are few and evenly spaced: each gets a bar; else None."""
    if np.issubdtype(values.dtype, np.integer):
        return 1.0 if np.ptp(values) < _MOST_BARS else None
    distinct = np.unique(np.round(values, _DECIMALS))
    steps = np.diff(distinct)
    is_even = 1 < len(distinct) <= _MOST_BARS and np.ptp(steps) <= _UNEVENNESS * steps.min()
    return float(steps.mean()) if is_even else None


def _draw_bars(chart: Chart, edges: Floats, heights: NDArray, *, single: bool) -> None:
    """Add the bars and ticks of a histogram; `single` where each bar is one value."""
    highest = max(float(heights.max()), 1.0) * 1.05
    first, span = edges[0], edges[-1] - edges[0]
    for left, right, n in zip(edges[:-1], edges[1:], heights.tolist(), strict=True):
        x0, x1 = chart.x((left - first) / span), chart.x((right - first) / span)
        top = chart.y(n / highest)
        said = f"{(left + right) / 2:.4g}" if single else f"{left:.4g} to {right:.4g}"
        if n:
            width = max(x1 - x0 - 1, 0.5)
            chart.bars.append(Bar(x0 + 0.5, top, width, chart.bottom - top, f"{said}: {n:g}"))
    is_whole = single and (edges[0] + 0.5) % 1 == 0 and edges[1] - edges[0] == 1
    chart.x_ticks = [
        Tick(chart.x((t - first) / span), f"{t:g}") for t in round_ticks(first, edges[-1], is_whole)
    ]
    chart.y_ticks = [
        Tick(chart.y(t / highest), f"{t:g}") for t in round_ticks(0, highest, whole=True)
    ]


def draw_power(spectra: Sequence[tuple[float, Floats]]) -> Chart | None:
    """Return radial power spectra on a logarithmic axis: each tomogram's, and their mean.

    There is a mean for each pixel size: shells of different ones are not the same frequencies.

    Parameters
    ----------
    spectra : sequence of (float, ndarray of shape (n / 2,))
        Pixel size in Angstrom and mean power by shell; the origin is left out.
    """
    curves = [(size, curve[1:]) for size, curve in spectra if len(curve) > 2]
    curves = [(size, curve) for size, curve in curves if np.any(curve > 0)]
    if not curves:
        return None
    sizes = sorted({size for size, _ in curves})
    means = [(size, np.mean([curve for s, curve in curves if s == size], axis=0)) for size in sizes]
    positive = np.concatenate([curve for _, curve in curves])
    positive = positive[positive > 0]
    low, high = math.floor(np.log10(positive.min())), math.ceil(np.log10(positive.max()))
    high = max(high, low + 1)
    nyquist = 0.5 / sizes[0]
    chart = Chart(
        "Power spectrum of the particle images",
        "spatial frequency (1/Å)",
        "mean power",
        f"Mean power by spatial frequency up to {nyquist:.3g} per Angstrom, from "
        f"{max(mean[0] for _, mean in means):.2g} down to "
        f"{min(mean.min() for _, mean in means):.2g}, logarithmic",
    )
    for role, lines in (("faint", curves), ("main", means)):
        for size, curve in lines:
            n_shells = len(curve) + 1
            x = np.arange(1, n_shells) / n_shells * sizes[0] / size
            shares = (np.log10(np.maximum(curve, 10.0**low)) - low) / (high - low)
            chart.lines.append(Line(_path(chart, x, shares), role))
    chart.x_ticks = [Tick(chart.x(t / nyquist), f"{t:g}") for t in round_ticks(0, nyquist)]
    step = max(1, -(-(high - low) // _N_TICKS))
    chart.y_ticks = [
        Tick(chart.y((e - low) / (high - low)), f"1e{e}") for e in range(low, high + 1, step)
    ]
    return chart


def draw_fsc(frequency: Floats, fsc: Floats, resolution: float, threshold: float) -> Chart | None:
    """Return the Fourier shell correlation of the half maps against spatial frequency.

    Parameters
    ----------
    frequency, fsc : ndarray, shape (k,)
        1/Angstrom, and the correlation.
    resolution : float
        Where it falls below the threshold, Angstrom; infinity where it starts below, NaN where that
        is not known.
    threshold : float
    """
    good = np.isfinite(fsc) & np.isfinite(frequency)
    frequency, fsc = frequency[good], fsc[good]
    if len(fsc) == 0 or frequency.max() <= 0:
        return None
    end = f": {threshold:g} at {resolution:.1f} Å" if np.isfinite(resolution) else ""
    if np.isposinf(resolution):
        end = f": none at {threshold:g}"
    chart = Chart(
        f"Fourier shell correlation of the half maps{end}",
        "spatial frequency (1/Å)",
        "correlation",
        f"Correlation of the half maps up to {frequency.max():.3g} per Angstrom{end}",
    )
    low = min(0.0, math.floor(float(fsc.min()) * 5) / 5)
    span, last = 1.02 - low, float(frequency.max())
    chart.lines.append(Line(_path(chart, frequency / last, (fsc - low) / span), "main"))
    level = chart.y((threshold - low) / span)
    chart.lines.append(Line(f"M{chart.left} {level}H{chart.right}", "level"))
    chart.x_ticks = [Tick(chart.x(t / last), f"{t:.3g}") for t in round_ticks(0, last)]
    chart.y_ticks = [Tick(chart.y((t - low) / span), f"{t:.2g}") for t in round_ticks(low, 1.0)]
    return chart


def _path(chart: Chart, x_shares: Floats, y_shares: Floats) -> str:
    points = (
        f"{chart.x(float(x))} {chart.y(float(y))}" for x, y in zip(x_shares, y_shares, strict=True)
    )
    return "M" + "L".join(points)
