"""What a user is told: particles in, kept and dropped and why, and what the run did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from relion_pseudosubtomo.findings import counted
from relion_pseudosubtomo.model import ParticleSet, TaskResult, TomogramSet
from relion_pseudosubtomo.plan import (
    DROP_REASONS,
    FAILED_TOMOGRAM,
    FEW_WITHIN_DOSE,
    MANY_MISSING,
    NOT_COMMON,
    UNKNOWN_TOMOGRAM,
    Plan,
    ProjectedPositions,
)

#: Share of dropped particles above which the coordinates are looked at.
SUSPICIOUS_SHARE = 0.2

#: So many fill a tomogram: fewer may well lie in one part of it.
ENOUGH_PARTICLES = 50

#: What options ask for is nothing suspicious.
_AS_ASKED = (FEW_WITHIN_DOSE, MANY_MISSING, NOT_COMMON)

_SIZES_MISSING = "The tomogram sizes are missing, so the coordinates cannot be judged."
_NOTHING_SPECIAL = (
    "The coordinates look neither binned nor off centre; check the alignment, --crop and "
    "--min_frames."
)


def drop_lines(plan: Plan) -> list[str]:
    """Return one line a drop reason."""
    return [f"Dropped {n}: {reason}" for reason, n in count_dropped(plan).items()]


def judge_coordinates(plan: Plan, n_particles: int) -> str | None:
    """Return what the coordinates look like where that is suspicious, else None.

    Suspicious is that many particles are dropped, or that many fill the tomogram in a way that
    hints at another unit or origin.
    """
    counts = Counter(plan.dropped_reasons)
    n_other = counts[UNKNOWN_TOMOGRAM] + counts[FAILED_TOMOGRAM]
    n_placed = n_particles - n_other
    n_dropped = len(plan.dropped_rows) - n_other - sum(counts[reason] for reason in _AS_ASKED)
    where = plan.projected
    looks = _describe_coordinates(where)
    if not n_placed:
        return None
    if n_dropped <= SUSPICIOUS_SHARE * n_placed and not (looks and n_placed >= ENOUGH_PARTICLES):
        return None
    (x, y), (width, height) = where.median_point, where.median_image_size
    if not looks:
        looks = _NOTHING_SPECIAL if np.isfinite(where.low).all() else _SIZES_MISSING
    return (
        f"{looks} Median projected position ({x:.0f}, {y:.0f}) in tilt images "
        f"of {width:.0f} x {height:.0f} pixels, {where.share_outside:.0%} of the particles outside "
        f"them, {n_dropped / n_placed:.0%} dropped"
    )


def _describe_coordinates(where: ProjectedPositions) -> str:
    """Return whether the coordinates look binned, not centred, or scaled; else nothing."""
    low, high = np.asarray(where.low), np.asarray(where.high)
    if not np.all(np.isfinite(np.concatenate([low, high]))):
        return ""
    spread = high - low
    if np.all(low > 0.4) and np.any(high > 1.02):
        return (
            "The coordinates look not centred: they seem to be measured from the tomogram's "
            "corner where they are taken to count from its centre, as "
            "rlnCenteredCoordinateX/Y/ZAngst do."
        )
    if np.all(high < 0.6) and np.any(low < -0.02):
        return (
            "The coordinates look off centre: they seem to be measured from the tomogram's centre "
            "where they are taken to count from its corner, as rlnCoordinateX/Y/Z do, or half its "
            "size was taken from them twice."
        )
    if np.all(spread > 1.1):
        return (
            "The coordinates spread over more than the tomogram: they look scaled, by a wrong "
            "pixel size or binning."
        )
    if np.all(spread < 0.3) and np.all(low > 0.35) and np.all(high < 0.65):
        return (
            "The coordinates look scaled: they fill the middle of the tomogram only. "
            "rlnCenteredCoordinateX/Y/ZAngst are in Angstrom, not in pixels."
        )
    if np.all(high < 0.55) and np.all(np.abs(low) < 0.3):
        return (
            "The coordinates look binned: they fill one corner of the tomogram only. "
            "rlnCoordinateX/Y/Z count unbinned pixels from its corner."
        )
    return ""


@dataclass
class RunSummary:
    """Figures of one run, for the log and run_summary.json.

    Attributes
    ----------
    n_particles, n_kept : int
        Particles in the input, and in the output.
    dropped : dict of str to int
        Particles by drop reason.
    n_tomograms : int
        Tomograms that keep particles.
    n_done_before : int
        Particles an earlier run had finished.
    ranks, threads : int
        Threads are those of each rank.
    bytes_written : int
        Of this run.
    n_clipped, n_not_finite : int
        Values clipped to float16's range, and pixels read that were NaN or infinite, of all
        particles that are done, also by an earlier run.
    clipped, not_finite : dict of str to int
        The same by tomogram, where there are any.
    seconds, busy_seconds : float
        Wall time, and the ranks' time spent on particles, summed.
    private_memory : dict of int to int
        Bytes by rank.
    failures : dict of str to str
        What failed and why, by tomogram.
    by_tomogram : dict of str to dict of str to int
        Particles kept and dropped of each tomogram that the input has particles of.
    tomograms : list of dict
        Particles and seconds of each piece of work, and what is kept and dropped of its tomogram.
    average : dict of str to float or None
        Resolution of `--average` in Angstrom by FSC threshold; None where there is none.
    """

    n_particles: int
    n_kept: int
    dropped: dict[str, int]
    n_tomograms: int
    ranks: int
    threads: int
    n_done_before: int = 0
    bytes_written: int = 0
    n_clipped: int = 0
    n_not_finite: int = 0
    clipped: dict[str, int] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    extracting_seconds: float = 0.0
    busy_seconds: float = 0.0
    efficiency: float = 0.0
    particles_per_second: float = 0.0
    private_memory: dict[int, int] = field(default_factory=dict)
    lost_ranks: list[int] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    by_tomogram: dict[str, dict[str, int]] = field(default_factory=dict)
    tomograms: list[dict[str, Any]] = field(default_factory=list)
    average: dict[str, float | None] = field(default_factory=dict)

    def add(self, name: str, rank: int, result: TaskResult) -> None:
        """Add what was done for a tomogram, or a part of it."""
        self.bytes_written += result.bytes_written
        self.count_bad_values(name, result.n_clipped, result.n_not_finite)
        self.tomograms.append(
            {
                "name": name,
                "rank": rank,
                "first": result.first,
                "particles": result.n_particles,
                **self.by_tomogram[name],
                "seconds_loading": round(result.seconds_loading, 3),
                "seconds_extracting": round(result.seconds_extracting, 3),
                "seconds_writing": round(result.seconds_writing, 3),
            }
        )

    def count_bad_values(self, name: str, n_clipped: int, n_not_finite: int) -> None:
        """Count values clipped, and pixels that were not finite, of a part of a tomogram."""
        self.n_clipped += n_clipped
        self.n_not_finite += n_not_finite
        for counts, n in ((self.clipped, n_clipped), (self.not_finite, n_not_finite)):
            if n:
                counts[name] = counts.get(name, 0) + n

    def warnings(self) -> list[str]:
        """Return one warning a tomogram about each kind of bad values."""
        bad_pixels = [
            f"{name}: {n} pixels read were NaN or infinite; --average leaves out images with such "
            "pixels, --sum their particles"
            for name, n in self.not_finite.items()
        ]
        return bad_pixels + [
            f"{name}: {n} values beyond float16's range were clipped"
            for name, n in self.clipped.items()
        ]

    def count_again(self, plan: Plan, tomogram_set: TomogramSet, particle_set: ParticleSet) -> None:
        """Take what is kept and dropped from a plan without the tomograms that failed."""
        self.n_kept, self.dropped = len(plan.kept_rows), count_dropped(plan)
        self.n_tomograms = len(plan.tasks)
        self.by_tomogram = count_by_tomogram(plan, tomogram_set, particle_set)
        for item in self.tomograms:
            item.update(self.by_tomogram[item["name"]])
        # all that is kept is done then
        self.n_done_before = self.n_kept - sum(
            item["particles"] for item in self.tomograms if item["kept"]
        )

    def nothing_kept_lines(self) -> list[str]:
        """Return one line a tomogram of which nothing is kept."""
        return [
            f"{name}: 0 kept, {counts['dropped']} dropped"
            for name, counts in self.by_tomogram.items()
            if not counts["kept"]
        ]

    def close(self, seconds: float, extracting_seconds: float, busy: dict[int, float]) -> None:
        """Compute what needs the whole run."""
        self.seconds = round(seconds, 3)
        self.extracting_seconds = round(extracting_seconds, 3)
        self.busy_seconds = round(sum(busy.values()), 3)
        done = sum(item["particles"] for item in self.tomograms)
        if extracting_seconds > 0:
            self.particles_per_second = round(done / extracting_seconds, 2)
            self.efficiency = round(self.busy_seconds / (extracting_seconds * self.ranks), 3)

    def lines(self) -> list[str]:
        """Return the summary as the log shows it."""
        peak = max(self.private_memory.values(), default=0)
        done = self.n_done_before + sum(item["particles"] for item in self.tomograms)
        before = f", {self.n_done_before} of them before" if self.n_done_before else ""
        left = f", of these {done} done" if done < self.n_kept else ""
        lines = [
            f"{counted(self.n_particles, 'particle')} in, {self.n_kept} kept{left}{before}, "
            f"{self.n_particles - self.n_kept} dropped, in {counted(self.n_tomograms, 'tomogram')}",
            f"{self.bytes_written / 1e6:.1f} MB of images written, "
            f"{self.particles_per_second:.1f} particles/s, {self.seconds:.1f} s, "
            f"{counted(self.ranks, 'rank')} x {counted(self.threads, 'thread')}, "
            f"efficiency {self.efficiency:.0%}, "
            f"private memory {peak / 1e9:.2f} GB a rank",
        ]
        lines += [f"Dropped {n}: {reason}" for reason, n in self.dropped.items()]
        if self.average:
            shown = {level: f"{at:.2f} A" if at else "none" for level, at in self.average.items()}
            text = ", ".join(f"{resolution} at FSC {level}" for level, resolution in shown.items())
            lines.append(f"Resolution of the average: {text} (average_fsc.star)")
        lines += [f"Lost rank {rank}: its work was done by others" for rank in self.lost_ranks]
        return lines + [f"Failed {name}: {why}" for name, why in self.failures.items()]


def start_summary(
    plan: Plan,
    tomogram_set: TomogramSet,
    particle_set: ParticleSet,
    ranks: int,
    threads: int,
) -> RunSummary:
    """Return the summary of a run that has not done anything yet."""
    return RunSummary(
        n_particles=len(particle_set),
        n_kept=len(plan.kept_rows),
        dropped=count_dropped(plan),
        n_tomograms=len(plan.tasks),
        ranks=ranks,
        threads=threads,
        by_tomogram=count_by_tomogram(plan, tomogram_set, particle_set),
    )


def count_dropped(plan: Plan) -> dict[str, int]:
    """Return how many particles are dropped for each reason."""
    counts = Counter(plan.dropped_reasons)
    return {reason: counts[reason] for reason in DROP_REASONS if counts[reason]}


def count_by_tomogram(
    plan: Plan, tomogram_set: TomogramSet, particle_set: ParticleSet
) -> dict[str, dict[str, int]]:
    """Return how many particles are kept and dropped of each tomogram that has any, in order."""
    n = len(tomogram_set.tomograms)
    kept, dropped = (
        np.bincount(places[places >= 0], minlength=n).tolist()
        for places in (particle_set.tomogram[rows] for rows in (plan.kept_rows, plan.dropped_rows))
    )
    return {
        tomogram.name: {"kept": kept[i], "dropped": dropped[i]}
        for i, tomogram in enumerate(tomogram_set.tomograms)
        if kept[i] or dropped[i]
    }


def plan_lines(
    plan: Plan,
    tomogram_names: list[str],
    task_bytes: list[int],
    work: list[float],
    summary: RunSummary,
) -> list[str]:
    """Return the plan as `--dry_run` prints it, without the memory a rank.

    Parameters
    ----------
    plan : Plan
    tomogram_names : list of str
        By task.
    task_bytes : list of int
        Bytes of images by task.
    work : list of float
        Estimated thread seconds by task.
    summary : RunSummary
        What is kept and dropped in all, and the ranks that the work is for.
    """
    rows = []
    for task, name, n_bytes, seconds in zip(
        plan.tasks, tomogram_names, task_bytes, work, strict=True
    ):
        kept, dropped = summary.by_tomogram[name].values()
        left = f"{len(task)} left of " if len(task) < kept else ""
        rows.append(
            f"  {name}: {left}{kept} kept, {dropped} dropped, {n_bytes / 1e6:.1f} MB, "
            f"{seconds:.0f} thread seconds"
        )
    rows += [f"  {line}" for line in summary.nothing_kept_lines()]
    total = sum(work)
    return [
        *rows,
        f"{counted(len(plan.kept_rows), 'particle')} kept, {len(plan.dropped_rows)} dropped, "
        f"{counted(len(plan.tasks), 'tomogram')}, {sum(task_bytes)} bytes of images",
        f"Estimated work: {total:.0f} thread seconds, {total / summary.ranks:.0f} a rank on "
        f"{counted(summary.ranks, 'rank')}",
    ]
