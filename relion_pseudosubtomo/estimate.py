"""What a plan will cost: bytes on disk, memory of a rank, work of each task (spec 4.1, 4.4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from relion_pseudosubtomo.core.prebin import HALF_LENGTH, binned_size
from relion_pseudosubtomo.core.windows import BLOCK_BYTES
from relion_pseudosubtomo.model import ParticleSet, Task, Tomogram, Trajectories
from relion_pseudosubtomo.options import (
    ALL_TILTS,
    COMPRESSED_IN_HAND,
    WITHOUT_CTF,
    JobOptions,
    real_box_size,
)

MRC_HEADER_BYTES = 1024

#: Seconds of one thread, of which only ratios count: for a frame's window of 768 pixels, its binned
#: image of 192, in 3D its slice, and a volume of 96; where images are binned by q, for a pixel of
#: an image, its margins included, and for the ends of a window of 768 pixels, by q.
_SECONDS_WINDOW_768 = 0.75e-3
_SECONDS_IMAGE_192 = 0.06e-3
_SECONDS_SLICE_192 = 0.25e-3
_SECONDS_VOLUME_96 = 8e-3
_SECONDS_PREBIN_PIXEL = 1.2e-9
_SECONDS_ENDS_768 = 0.03e-3
#: The same for a pixel of an image whose noise is measured: half the blocks overlap, on both axes.
_SECONDS_NOISE_PIXEL = 13e-9
#: Seconds to start a tomogram, and bytes of its images read in a second, where the ranks of a node
#: share what one of them has read.
_SECONDS_START = 0.05
_BYTES_PER_SECOND = 4e9

#: What Python, the libraries and the tables of a small job take, and a value of a particle table
#: and of the trajectories while they are read: a number a frame and axis, and its text.
_BASE_MEMORY = 110e6
_TABLE_CELL_MEMORY = 160.0
_SHIFT_MEMORY = 40.0
#: What finished half maps and their FSC take at once, by half-complex voxel.
_FINISH_MEMORY = 190.0


def particle_bytes(options: JobOptions, tomogram: Tomogram, n_visible: int) -> tuple[int, ...]:
    """Return the exact number of bytes of each of a particle's MRC files (spec 3.1, 3.2)."""
    sizes = _value_bytes(options, tomogram, 1, n_visible, options.image_suffixes)
    return tuple(MRC_HEADER_BYTES + size for size in sizes)


def _value_bytes(
    options: JobOptions,
    tomogram: Tomogram,
    n_particles: int,
    n_visible: int,
    suffixes: tuple[str, ...],
) -> list[int]:
    """Return the bytes of the values of particles with so many visible frames in all.

    One number a suffix, whatever files the values go to.
    """
    item = 2 if options.float16 else 4
    n = options.crop
    if options.real_subtomo:
        n = real_box_size(n, options.binning, tomogram.tomogram_binning or 1.0)
    n_values = {
        "_stack2d.mrcs": n_visible * n * n,
        ALL_TILTS: n_particles * tomogram.n_frames * n * n,
        WITHOUT_CTF: n_visible * n * n,
        "_weights.mrc": n_particles * 2 * n * n * (n // 2 + 1),
    }
    volume = n_visible * n * n if options.real_subtomo else n_particles * n**3
    return [item * n_values.get(suffix, volume) for suffix in suffixes]


def task_bytes(options: JobOptions, tomogram: Tomogram, task: Task) -> int:
    """Return the exact number of bytes that a task writes as images, to MRC files and containers.

    What a container holds besides, text and tables, is left out. Compressed it is smaller.
    """
    n_files = len(task) * len(options.image_suffixes)
    n_bytes = _task_values(options, tomogram, task, options.image_suffixes)
    return MRC_HEADER_BYTES * n_files + n_bytes + container_bytes(options, tomogram, task)


def container_bytes(options: JobOptions, tomogram: Tomogram, task: Task) -> int:
    """Return the bytes of a task's values in a container that is not compressed."""
    kept = options.result_suffixes if options.hdf5 else ()
    return _task_values(options, tomogram, task, kept)


def _task_values(
    options: JobOptions, tomogram: Tomogram, task: Task, suffixes: tuple[str, ...]
) -> int:
    """Return the bytes of the values of all of a task's particles."""
    n_visible = int(np.count_nonzero(task.visible))
    return sum(_value_bytes(options, tomogram, len(task), n_visible, suffixes))


def sums_bytes(options: JobOptions) -> int:
    """Return the bytes of the arrays beside one completion record (`--sum`, `--average`)."""
    n_volume, n_half = options.crop**3, options.crop**2 * (options.crop // 2 + 1)
    n_bytes = 8 * (n_volume + n_half) if options.sum else 0
    return n_bytes + (2 * (8 + 4) * n_half if options.average else 0)


def all_sums_bytes(options: JobOptions, n_pieces: int, ranks: int) -> int:
    """Return the bytes of all sums that a run leaves beside its records.

    Of each piece; ranks that share tomograms may leave one more each, as estimated times are not
    exact; and those of one tomogram, while they are joined, are there in double precision besides.

    Parameters
    ----------
    options : JobOptions
    n_pieces : int
        Ranges of particles, as the ranks will get them.
    ranks : int
    """
    shared = ranks - 1 if options.may_split else 0
    return sums_bytes(options) * (n_pieces + shared + 2) if n_pieces else 0


def passing_bytes(options: JobOptions, n_bytes: Sequence[int], ranks: int) -> int:
    """Return the bytes that a run needs beside its results, at most.

    Each rank fills a container that is compressed only once it is full.

    Parameters
    ----------
    options : JobOptions
    n_bytes : sequence of int
        What the containers of the tomograms hold.
    ranks : int
    """
    return sum(sorted(n_bytes)[-ranks:]) if options.hdf5_compression else 0


def task_seconds(options: JobOptions, tomogram: Tomogram, task: Task) -> tuple[float, float]:
    """Return the estimated cost of a task: to start it, and of each particle, in thread seconds."""
    n_pixels = _used_pixels(tomogram, task)
    start = _SECONDS_START + 4.0 * n_pixels / _BYTES_PER_SECOND
    if options.whiten:
        start += _SECONDS_NOISE_PIXEL * n_pixels
    prebin = choose_prebin(options, tomogram, task)
    if prebin > 1:
        start += _prebin_seconds(options, tomogram, task)
    frame = _window_seconds(options, prebin)
    n_volumes = int(not options.stack2d) + int(options.average)
    frame += n_volumes * _SECONDS_SLICE_192 * (options.box / 192) ** 2
    n_images = 1 + (WITHOUT_CTF in options.dialect_suffixes)  # from the same windows
    frame += n_images * _SECONDS_IMAGE_192 * (options.box / 192) ** 2
    if options.stack2d:
        return start, frame * float(task.visible.sum()) / len(task)
    volume = _SECONDS_VOLUME_96 * (options.crop / 96) ** 3
    return start, volume + frame * float(task.visible.sum()) / len(task)


def seconds_beside(options: JobOptions, tomogram: Tomogram, task: Task) -> float:
    """Return the estimated cost of starting a task on a node where another rank has started it.

    Mapped images are in the page cache then; what a rank makes or holds itself costs as before.
    """
    if options.preload or options.whiten or choose_prebin(options, tomogram, task) > 1:
        return task_seconds(options, tomogram, task)[0]
    return _SECONDS_START


def choose_prebin(options: JobOptions, tomogram: Tomogram, task: Task) -> int:
    """Return the factor by which a tomogram's tilt images are binned first; 1 where they are not.

    It depends on nothing but the input, so that any number of ranks and restarts decide alike.

    Parameters
    ----------
    options : JobOptions
    tomogram : Tomogram
    task : Task
        The tomogram's whole task.
    """
    factor = options.prebin_factor
    if not options.prebin or factor == 1:
        return 1
    saved = _window_seconds(options, 1) - _window_seconds(options, factor)
    cost = _prebin_seconds(options, tomogram, task)
    return factor if saved * float(task.visible.sum()) > cost else 1


def _prebin_seconds(options: JobOptions, tomogram: Tomogram, task: Task) -> float:
    nx, ny = _binned_size(options, tomogram)
    n_frames = int(task.visible.any(axis=0).sum())
    return _SECONDS_PREBIN_PIXEL * options.prebin_factor**2 * nx * ny * n_frames


def _binned_size(options: JobOptions, tomogram: Tomogram) -> tuple[int, int]:
    """Return the (width, height) of binned images with their margins."""
    factor, reach = options.prebin_factor, options.window_reach
    nx, ny = (binned_size(size, factor, reach)[0] for size in tomogram.image_size_xy)
    return nx, ny


def _window_seconds(options: JobOptions, prebin: int) -> float:
    size = options.window / 768
    ends = prebin * _SECONDS_ENDS_768 * size if prebin > 1 else 0.0
    return _SECONDS_WINDOW_768 * (size / prebin) ** 2 + ends


def _used_pixels(tomogram: Tomogram, task: Task) -> int:
    width, height = tomogram.image_size_xy
    return width * height * int(task.visible.any(axis=0).sum())


def rank_memory(options: JobOptions, tomograms: Sequence[Tomogram], threads: int) -> float:
    """Return the private memory in bytes that a rank needs.

    Workspaces of its threads, tables, what compressing holds, and the tilt images of two tomograms,
    the present one and the next, where they are not mapped: read in full with `--preload`, smaller
    with `--prebin`.
    """
    workspace = _frame_memory(options)
    n = options.crop
    if options.stack2d:
        n_stacks = 1 + len(options.dialect_suffixes)
        workspace += 4 * n_stacks * max((t.n_frames for t in tomograms), default=0) * n * n
    else:
        workspace += 16 * (n + 3) ** 2 * (n // 2 + 2)
        workspace += (8 + 8) * n * n * (n // 2 + 1) + 4 * n**3 + 12 * n * n
    if options.real_subtomo:
        binning = next((t.tomogram_binning for t in tomograms if t.tomogram_binning), 1.0)
        padded = 2 * real_box_size(n, options.binning, binning)
        workspace = 16 * padded**3  # the padded box and its transform, with their copies
    slice_size = options.box * (options.box // 2 + 1)
    tables = max((t.n_frames for t in tomograms), default=0) * 4 * slice_size
    tables *= 2 if options.whiten else 1
    images = max((_image_memory(options, t, threads) for t in tomograms), default=0.0)
    images += _average_memory(options, threads)
    images += max((_compression_memory(options, t, threads) for t in tomograms), default=0)
    return _BASE_MEMORY + threads * workspace + 2 * tables + images


def _frame_memory(options: JobOptions) -> int:
    """Return the bytes of a thread's scratch arrays for a frame."""
    s, n, s0 = options.box, options.crop, options.window
    half, rows = s // 2 + 1, 2 * BLOCK_BYTES
    window = 8 * half * (2 * s0 + 16 + s) + (4 * s0 * s0 if options.circle_precrop else 0)
    image = 8 * half * s + 8 * half * (s + 8) + 8 * s * (n + 2)
    if not options.stack2d or options.average:
        image += 8 * half * s + 8 * half * (s + 8) + 4 * half * s
    if options.prebin and options.prebin_factor > 1:
        small = s0 // options.prebin_factor
        rows = max(rows, 8 * small * small)
    return window + image + rows


def _average_memory(options: JobOptions, threads: int) -> float:
    """Return the bytes of half maps: packed in each thread, summed, and finished at the end."""
    n = options.crop
    packed, voxels = 16.0 * (n + 3) ** 2 * (n // 2 + 2), n * n * (n // 2 + 1)
    return 2 * threads * packed + (2 * 24 + _FINISH_MEMORY) * voxels if options.average else 0.0


def _compression_memory(options: JobOptions, tomogram: Tomogram, threads: int) -> int:
    """Return the bytes that compressing a tomogram's container holds, were nothing to get smaller.

    Each thread has a chunk, shuffled, and what zlib makes of it in pieces, which become one beside
    the particles that are in hand; another particle is being written.
    """
    if not options.hdf5_compression:
        return 0
    n_frames = tomogram.n_frames
    particle = max(_value_bytes(options, tomogram, 1, n_frames, options.result_suffixes))
    chunk = particle if options.is_3d else particle // n_frames
    return 2 * threads * chunk + (COMPRESSED_IN_HAND * threads + 1) * particle


def table_memory(particle_set: ParticleSet, trajectories: Trajectories | None) -> float:
    """Return the private memory in bytes that rank 0 needs for the tables, beside its own work."""
    n_shifts = 0 if trajectories is None else sum(shift.size for shift in trajectories.shifts)
    n_cells = len(particle_set) * len(particle_set.columns)
    return _TABLE_CELL_MEMORY * n_cells + _SHIFT_MEMORY * n_shifts


def _image_memory(options: JobOptions, tomogram: Tomogram, threads: int) -> float:
    """Return the bytes of two such tomograms' images that are not mapped, and to make them."""
    width, height = tomogram.image_size_xy
    images = scratch = 0.0
    if options.preload:
        images += 4.0 * width * height * tomogram.n_frames
    if options.prebin and options.prebin_factor > 1:
        factor = options.prebin_factor
        nx, ny = _binned_size(options, tomogram)
        images += 4.0 * nx * ny * tomogram.n_frames
        lines = 4 * HALF_LENGTH * factor + 4  # as many as mend a window at most
        scratch = threads * lines * 4.0 * factor * (nx + 2 * HALF_LENGTH)
    if options.whiten:  # strips of the image's height; sums, and what makes a profile of them
        scratch += threads * (8.0 * height * options.window + 24.0 * options.window**2)
    return 2 * images + scratch
