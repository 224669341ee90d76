"""What a user is told: particles in, kept and dropped and why, and what the run did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from relion_pseudosubtomo.model import ParticleSet, TaskResult
from relion_pseudosubtomo.plan import DROP_REASONS, Plan, ProjectedPositions

#: Share of dropped particles above which the coordinates are looked at.
SUSPICIOUS_SHARE = 0.2


def drop_lines(plan: Plan, n_particles: int) -> list[str]:
    """Return one line a drop reason, and the diagnosis where many were dropped."""
    counts = Counter(plan.dropped_reasons)
    lines = [f"Dropped {counts[reason]}: {reason}" for reason in DROP_REASONS if counts[reason]]
    n_placed = n_particles - counts[DROP_REASONS[0]]
    n_dropped = len(plan.dropped_rows) - counts[DROP_REASONS[0]]
    if n_placed and n_dropped > SUSPICIOUS_SHARE * n_placed:
        lines.append(_diagnosis(plan.projected, n_dropped / n_placed))
    return lines


def _diagnosis(where: ProjectedPositions, share: float) -> str:
    (x, y), (width, height) = where.median_point, where.median_image_size
    return (
        f"{share:.0%} of the particles were dropped. Their median projected position is "
        f"({x:.0f}, {y:.0f}) in tilt images of {width:.0f} x {height:.0f} pixels. "
        + diagnose_coordinates(where)
    )


def diagnose_coordinates(where: ProjectedPositions) -> str:
    """Return whether the coordinates look binned, not centred, or scaled."""
    low, high = np.asarray(where.low), np.asarray(where.high)
    if not np.all(np.isfinite(np.concatenate([low, high]))):
        return "The tomogram sizes are missing, so the coordinates cannot be judged."
    spread = high - low
    if np.all(low > 0.4) and np.any(high > 1.02):
        return (
            "The coordinates look not centred: they seem to be measured from the tomogram's "
            "corner, but rlnCenteredCoordinateX/Y/ZAngst count from its centre."
        )
    if np.all(spread > 1.1):
        return (
            "The coordinates spread over more than the tomogram: they look scaled, by a wrong "
            "pixel size or binning."
        )
    if np.all(high < 0.6) and np.all(low > -0.05):
        return (
            "The coordinates look binned: they fill one corner of the tomogram only. "
            "rlnCoordinateX/Y/Z count unbinned pixels from its corner."
        )
    return (
        "The coordinates look neither binned nor off centre; check the alignment, --crop and "
        "--min_frames."
    )


@dataclass
class RunSummary:
    """Figures of one run, for the log and run_summary.json."""

    n_particles: int
    n_kept: int
    dropped: dict[str, int]
    n_tomograms: int
    threads: int
    bytes_written: int = 0
    n_clipped: int = 0
    n_not_finite: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    tomograms: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, result: TaskResult) -> None:
        """Add what was done for one tomogram."""
        self.bytes_written += result.bytes_written
        self.n_clipped += result.n_clipped
        self.n_not_finite += result.n_not_finite
        self.tomograms.append(
            {
                "name": name,
                "particles": result.n_particles,
                "seconds_loading": round(result.seconds_loading, 3),
                "seconds_extracting": round(result.seconds_extracting, 3),
                "seconds_writing": round(result.seconds_writing, 3),
            }
        )

    def lines(self) -> list[str]:
        """Return the summary as the log shows it."""
        rate = self.n_kept / self.seconds if self.seconds > 0 else 0.0
        lines = [
            f"{self.n_particles} particles in, {self.n_kept} kept, "
            f"{self.n_particles - self.n_kept} dropped, in {self.n_tomograms} tomograms",
            f"{self.bytes_written / 1e6:.1f} MB of images written, {rate:.1f} particles/s, "
            f"{self.seconds:.1f} s, {self.threads} threads, "
            f"peak memory {self.peak_memory_bytes / 1e9:.2f} GB",
        ]
        return lines + [f"Failed: {name}: {why}" for name, why in self.failures.items()]


def start_summary(plan: Plan, particle_set: ParticleSet, threads: int) -> RunSummary:
    """Return the summary of a run that has not done anything yet."""
    return RunSummary(
        n_particles=len(particle_set),
        n_kept=len(plan.kept_rows),
        dropped=dict(Counter(plan.dropped_reasons)),
        n_tomograms=len(plan.tasks),
        threads=threads,
    )
