"""What a plan will cost: bytes on disk, memory of a rank, work of each task (spec 4.1, 4.4)."""

from __future__ import annotations

from collections.abc import Sequence

from relion_pseudosubtomo.model import Task, Tomogram
from relion_pseudosubtomo.options import JobOptions, real_box_size

MRC_HEADER_BYTES = 1024

#: Seconds of one thread for a frame of 768-pixel windows, for a 96^3 volume: only ratios count.
_SECONDS_FRAME_768 = 1.5e-3
_SECONDS_VOLUME_96 = 12e-3
#: Seconds to start a tomogram, and bytes of its images read in a second.
_SECONDS_START = 0.05
_BYTES_PER_SECOND = 2e9

#: What Python, the libraries and the tables of a small job take.
_BASE_MEMORY = 110e6


def particle_bytes(options: JobOptions, tomogram: Tomogram, n_visible: int) -> tuple[int, ...]:
    """Return the exact number of bytes of each of a particle's files (spec 3.1, 3.2)."""
    item = 2 if options.float16 else 4
    n = options.crop
    if options.real_subtomo:
        n = real_box_size(n, options.binning, tomogram.tomogram_binning or 1.0)
    n_values = {
        "_stack2d.mrcs": n_visible * n * n,
        "_weights.mrc": 2 * n * n * (n // 2 + 1),
    }
    volume = n_visible * n * n if options.real_subtomo else n**3
    return tuple(
        MRC_HEADER_BYTES + item * n_values.get(suffix, volume) for suffix in options.image_suffixes
    )


def task_bytes(options: JobOptions, tomogram: Tomogram, task: Task) -> int:
    """Return the exact number of bytes that a task writes as images."""
    counts = task.visible.sum(axis=1)
    return sum(sum(particle_bytes(options, tomogram, int(n))) for n in counts)


def task_seconds(options: JobOptions, tomogram: Tomogram, task: Task) -> tuple[float, float]:
    """Return the estimated cost of a task: to start it, and of each particle, in thread seconds."""
    width, height = tomogram.image_size_xy
    n_used = int(task.visible.any(axis=0).sum())
    start = _SECONDS_START + 4.0 * width * height * n_used / _BYTES_PER_SECOND
    frame = _SECONDS_FRAME_768 * (options.window / 768) ** 2
    volume = 0.0 if options.stack2d else _SECONDS_VOLUME_96 * (options.crop / 96) ** 3
    return start, volume + frame * float(task.visible.sum()) / len(task)


def rank_memory(options: JobOptions, tomograms: Sequence[Tomogram], threads: int) -> float:
    """Return the private memory in bytes that a rank needs: workspaces, tables, two tomograms."""
    s, n, s0 = options.box, options.crop, options.window
    half = s // 2 + 1
    workspace = 16 * half * s0 + 8 * half * s + 400_000
    workspace += 4 * s0 * s0 if options.circle_precrop else 0
    workspace += 8 * half * s + 4 * s * (n + 1)
    if options.stack2d:
        workspace += 4 * max((t.n_frames for t in tomograms), default=0) * n * n
    else:
        workspace += 16 * half * s + 8 * half * (n + 1) + 4 * half * s
        workspace += 16 * (n + 3) ** 2 * (n // 2 + 2)
        workspace += (8 + 8) * n * n * (n // 2 + 1) + 4 * n**3
    if options.real_subtomo:
        binning = next((t.tomogram_binning for t in tomograms if t.tomogram_binning), 1.0)
        padded = 2 * real_box_size(n, options.binning, binning)
        workspace = 16 * padded**3  # the padded box and its transform, with their copies
    tables = max((t.n_frames for t in tomograms), default=0) * 4 * half * s
    tables *= 2 if options.whiten else 1
    return _BASE_MEMORY + threads * workspace + 2 * tables
