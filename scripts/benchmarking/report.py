"""The results as Markdown, JSON and a plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from .checks import Check
from .configurations import CONFIGURATIONS, ONE_THREAD, TWO_THREADS, WAYS
from .processes import Usage
from .session import Key, Session, floor_way

#: Stands for a figure that there is not.
NONE = "-"


def write_results(
    folder: Path,
    session: Session,
    machine: dict[str, str],
    checks: Sequence[Check],
) -> str:
    """Write benchmark.md, benchmark.json and benchmark.png; return the Markdown.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    session : Session
        With all measurements done.
    machine : dict of str to str
        From `machine.describe_machine`.
    checks : sequence of Check
        What is required, and what was found.
    """
    folder.mkdir(parents=True, exist_ok=True)
    has_plot = write_plot(folder / "benchmark.png", session)
    text = "\n".join(
        [
            "# Benchmark",
            "",
            *machine_lines(session, machine),
            *check_lines(checks),
            *slope_lines(session),
            *(["![CPU a particle against the floor](benchmark.png)", ""] if has_plot else []),
            *run_lines(session),
            *session.tables,
            *(f"- {note}" for note in session.notes),
            "",
        ]
    )
    (folder / "benchmark.md").write_text(text)
    (folder / "benchmark.json").write_text(
        json.dumps(make_record(session, machine, checks), indent=1) + "\n"
    )
    return text


def machine_lines(session: Session, machine: dict[str, str]) -> Iterator[str]:
    """Yield what was measured on what."""
    width, height = session.settings.size.image_size_xy
    yield ", ".join(f"{name} {value}" for name, value in machine.items()) + "."
    yield (
        f"Medians of {session.settings.repeats}; {session.settings.size.n_tilts} images of "
        f"{width} x {height}, in page cache; every run a fresh process."
    )
    yield ""


def check_lines(checks: Sequence[Check]) -> Iterator[str]:
    """Yield the table of what is required."""
    if not checks:
        return
    yield "| required | limit | found | |"
    yield "|---|---|---|---|"
    for check in checks:
        yield f"| {check.text} | {check.limit_text} | {check.value:.3g} | {check.verdict} |"
    yield ""


def slope_lines(session: Session) -> Iterator[str]:
    """Yield the table of costs a particle, with the ratio to the floor."""
    if not list_slopes(session):
        return
    yield (
        "| job | run as | wall ms | user ms | system ms | x floor, user | x floor, wall "
        "| efficiency |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for section, way in list_slopes(session):
        slope = session.slope(section, way) or session.median(Key(section, way))
        if slope is None:
            continue
        cells = [f"{1e3 * value:.2f}" for value in (slope.wall, slope.user, slope.system)]
        ratios = [NONE] * 3
        if not way.startswith("floor"):
            threads = 1 if way.startswith(ONE_THREAD.name) else 2
            floor = session.median(Key(section, floor_way(threads)))
            if floor is not None:
                ratios[:2] = [f"{slope.user / floor.user:.2f}", f"{slope.wall / floor.wall:.2f}"]
            ratios[2] = _efficiency_text(session, section, way)
        elif way == floor_way(2):
            ratios[2] = _floor_efficiency_text(session, section)
        yield f"| {title(section)} | {way} | {' | '.join(cells + ratios)} |"
    yield ""


def list_slopes(session: Session) -> list[tuple[str, str]]:
    """Return (section, way) of all costs a particle, in the order of the measurements."""
    pairs = dict.fromkeys((key.section, key.way) for key in session.runs)
    return [
        (section, way)
        for section, way in pairs
        if way.startswith("floor") or session.slope(section, way) is not None
    ]


def _efficiency_text(session: Session, section: str, way: str) -> str:
    named = {each.name: each for each in WAYS}
    if way not in named or named[way].writing or named[way] == named[way].alone:
        return NONE
    value = session.efficiency(section, named[way])
    return NONE if value is None else f"{value:.3f}"


def _floor_efficiency_text(session: Session, section: str) -> str:
    """Return how well the machine itself runs two threads that share nothing."""
    one, two = (session.median(Key(section, floor_way(n))) for n in (1, 2))
    return NONE if one is None or two is None else f"{one.wall / (2 * two.wall):.3f}"


def run_lines(session: Session) -> Iterator[str]:
    """Yield the table of whole runs, from process start to exit."""
    yield (
        "| job | run as | particles | wall s | user s | system s | particles/s "
        "| private GB | RSS GB | written MB |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for key in session.runs:
        usage = session.median(key)
        if usage is None or key.way.startswith("floor"):
            continue
        written = session.bytes_written.get(key, 0)
        cells = [title(key.section), key.way, str(key.particles)]
        cells += [f"{value:.2f}" for value in (usage.wall, usage.user, usage.system)]
        cells += [f"{key.particles / usage.wall:.1f}" if key.particles else NONE]
        cells += [f"{value / 1e9:.3f}" for value in (usage.private, usage.rss)]
        cells += [f"{written / 1e6:.0f}" if written else NONE]
        yield f"| {' | '.join(cells)} |"
    yield ""


def title(section: str) -> str:
    """Return a section's letter and what it is."""
    if section == "C":
        return "C: A, from process start to exit"
    if section in CONFIGURATIONS:
        return f"{section}: {CONFIGURATIONS[section].title}"
    return section


def make_record(session: Session, machine: dict[str, str], checks: Sequence[Check]) -> dict:
    """Return everything as JSON takes it."""
    slopes = [
        {"section": section, "way": way, **asdict(slope)}
        for section, way in list_slopes(session)
        if (slope := session.slope(section, way) or session.median(Key(section, way))) is not None
    ]
    runs = [
        {
            **asdict(key),
            "median": asdict(session.median(key) or Usage(0, 0)),
            "runs": [asdict(usage) for usage in usages],
            "particles_per_second": key.particles / statistics.median(u.wall for u in usages),
            "bytes_written": session.bytes_written.get(key, 0),
        }
        for key, usages in session.runs.items()
    ]
    return {
        "machine": machine,
        "repeats": session.settings.repeats,
        "image_size_xy": session.settings.size.image_size_xy,
        "n_tilts": session.settings.size.n_tilts,
        "checks": [{**asdict(check), "passed": check.passed} for check in checks],
        "slopes": slopes,
        "runs": runs,
        "notes": session.notes,
    }


def write_plot(path: Path, session: Session) -> bool:
    """Draw user CPU a particle beside the floor; return whether there was anything to draw."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        session.note("No plot: matplotlib is not installed")
        return False
    bars = []
    for section in CONFIGURATIONS:
        slope = session.slope(section, TWO_THREADS.name)
        if slope is not None:
            floor = session.median(Key(section, floor_way(2)))
            bars.append((section, 1e3 * slope.user, 1e3 * floor.user if floor else 0.0))
    if not bars:
        return False
    names, user, floors = zip(*bars, strict=True)
    figure, axes = plt.subplots(figsize=(1.5 + 1.1 * len(bars), 4), layout="constrained")
    places = range(len(bars))
    drawn = axes.bar([p - 0.2 for p in places], user, 0.4, label="program, 2 threads")
    axes.bar_label(drawn, fmt="%.0f")
    drawn = axes.bar([p + 0.2 for p in places], floors, 0.4, label="floor: bare transforms")
    axes.bar_label(drawn, labels=[f"{value:.0f}" if value else "" for value in floors])
    axes.set_xticks(list(places), names)
    axes.set_ylabel("user CPU, ms a particle")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True
