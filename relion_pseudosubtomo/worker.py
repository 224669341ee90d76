"""One task: load the tilt images, extract the particles in threads, write their files."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.accumulate import Accumulators
from relion_pseudosubtomo.core import realspace
from relion_pseudosubtomo.core.aberrations import aberration_phase
from relion_pseudosubtomo.core.frames import slice_frequencies
from relion_pseudosubtomo.core.geometry import depths_from_centre
from relion_pseudosubtomo.core.inputs import Aberrations, ExtractionSettings, ParticleView
from relion_pseudosubtomo.core.subtomogram import ParticleExtractor
from relion_pseudosubtomo.errors import reading_error
from relion_pseudosubtomo.io import mrc
from relion_pseudosubtomo.io.containers import ContainerStore, ContainerWriter
from relion_pseudosubtomo.loading import LoadedTomogram, load_tomogram
from relion_pseudosubtomo.model import (
    OpticsGroups,
    ParticleSet,
    Task,
    TaskResult,
    Tomogram,
)
from relion_pseudosubtomo.model.particle_set import Columns
from relion_pseudosubtomo.options import ALL_TILTS, WITHOUT_CTF, JobOptions, real_box_size
from relion_pseudosubtomo.particle_files import (
    OutputFile,
    ParticleWriter,
    spread_frames,
    volume_files,
)
from relion_pseudosubtomo.placement import Placement, place_particles
from relion_pseudosubtomo.report.collect import Collector
from relion_pseudosubtomo.report.store import ReportStore
from relion_pseudosubtomo.share import Share


@dataclass(frozen=True)
class SharedJob:
    """What every rank needs to know of a job, once.

    Attributes
    ----------
    options : JobOptions
    optics : OpticsGroups
        Pixel sizes and aberrations of the particles' optics groups.
    some_images : tuple of str
        Files of some tomograms, of which a rank has to see at least one; empty where none is read.
    """

    options: JobOptions
    optics: OpticsGroups
    some_images: tuple[str, ...]


@dataclass(frozen=True)
class TaskInput:
    """A task with the numbers of its particles, as it is sent to a rank.

    Attributes
    ----------
    task : Task
    tomogram : Tomogram
    particles : ParticleSet
        The task's particles, in its order, without text.
    shifts : ndarray, shape (m, n_frames, 3), or None
        Their trajectories: (x, y, z) in Angstrom in the tomogram's axes.
    used : ndarray, shape (n_frames,), bool
        Frames in which any kept particle of the whole tomogram is visible.
    fingerprint : str
        Of the tomogram's whole task, for the completion records.
    prebin : int
        Factor q of the binned images that the tomogram gets; 1: none.
    n_whole : int
        Particles of the tomogram's whole task.
    columns : Columns
        Rows of particles.star for the container; empty unless one is to be begun.
    """

    task: Task
    tomogram: Tomogram
    particles: ParticleSet
    shifts: NDArray[np.floating] | None
    used: NDArray[np.bool_]
    fingerprint: str
    prebin: int
    n_whole: int
    columns: Columns = field(default_factory=dict)

    def part(self, start: int, stop: int) -> TaskInput:
        """Return particles `start` to `stop` of this task."""
        rows = np.arange(start, stop)
        return TaskInput(
            self.task.part(start, stop),
            self.tomogram,
            self.particles.take(rows),
            None if self.shifts is None else self.shifts[start:stop],
            self.used,
            self.fingerprint,
            self.prebin,
            self.n_whole,
        )


@dataclass
class BegunTask:
    """A task whose particles are being extracted.

    Attributes
    ----------
    began : float
        When it was loaded, by `time.perf_counter`.
    share : Share
        What its threads share.
    open_files : ExitStack
        Closed once no thread writes.
    collector : Collector or None
        What is collected for `--report`.
    jobs : list of Future
        One a thread.
    """

    began: float
    share: Share
    open_files: ExitStack
    collector: Collector | None
    jobs: list[Future[None]] = field(default_factory=list)

    def abandon(self) -> None:
        """Begin no further particle, and wait for those in hand."""
        self.share.fail()
        self.wait()

    def wait(self) -> None:
        """Wait until all threads are done."""
        wait(self.jobs)
        self.open_files.close()


class Worker:
    """Does tasks with a fixed number of threads, each with its own plans and scratch arrays.

    A task may be begun while the one before is being done: a thread that finds no particle left
    goes on with the next task.

    Parameters
    ----------
    job : SharedJob
        The job all tasks belong to.
    threads : int
        Threads of this rank.
    """

    def __init__(self, job: SharedJob, threads: int) -> None:
        self._job = job
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._of_thread = threading.local()
        self._last_end = 0.0
        self._aberrations: dict[int, Aberrations] = {}
        self._loaded: dict[int, LoadedTomogram] = {}
        self._load_locks: dict[int, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()
        self._present = self._next = -1

    @cached_property
    def _settings(self) -> ExtractionSettings:
        return extraction_settings(self._job.options)

    def prefetch(self, given: TaskInput, stop: Callable[[], bool]) -> None:
        """Load the tomogram of a task that comes next, unless `stop` says that none is to come."""
        self._keep(following=given.task.tomogram)
        if not self._job.options.real_subtomo:
            self._load(given, stop)

    def turn_to(self, given: TaskInput) -> None:
        """Note that a task's tomogram is worked on now; what was loaded ahead of it is kept."""
        self._keep(present=given.task.tomogram)

    def _keep(self, *, present: int | None = None, following: int | None = None) -> None:
        """Note which tomogram is worked on, or comes next, and let go of all others."""
        with self._lock:
            self._present = self._present if present is None else present
            self._next = self._next if following is None else following
            kept = self._present, self._next
            self._loaded = {i: tomogram for i, tomogram in self._loaded.items() if i in kept}

    def _load(self, given: TaskInput, stop: Callable[[], bool]) -> LoadedTomogram:
        index = given.task.tomogram
        with self._load_locks[index]:  # the present one does not wait for the next
            found = self._loaded.get(index)
            if found is None:
                with images_may_fail(given.tomogram.name):
                    found = load_tomogram(
                        self._job.options,
                        given.tomogram,
                        index,
                        given.used,
                        prebin=given.prebin,
                        threads=self._threads,
                        stop=stop,
                    )
                with self._lock:
                    self._loaded[index] = found
            return found

    def begin(
        self, given: TaskInput, stop: Callable[[], bool], on_particle: Callable[[], None]
    ) -> BegunTask:
        """Let the threads extract and write the particles of a task, behind those begun before.

        Parameters
        ----------
        given : TaskInput
        stop : callable
            True once no further particle is to be begun; those in hand are finished.
        on_particle : callable
            Called after each particle, from any thread.

        Returns
        -------
        BegunTask
            To be given to `finish`, or abandoned.

        Raises
        ------
        LoadingStopped
            Where `stop` returns True while images are read.
        """
        task = given.task
        self.turn_to(given)
        result = TaskResult(task.number, task.first)
        started = time.perf_counter()
        loaded = None if self._job.options.real_subtomo else self._load(given, stop)
        extract = self._prepare_real(given) if loaded is None else self._prepare(given, loaded)
        collector = self._start_collecting(given, loaded) if self._job.options.report else None
        result.seconds_loading = time.perf_counter() - started
        result.lost_prebin = loaded is not None and loaded.images.prebin < given.prebin
        sums = Accumulators(self._job.options, self._settings.average_scale)
        share = Share(result, iter(range(len(task))), stop, on_particle, sums)
        begun = BegunTask(time.perf_counter(), share, ExitStack(), collector)
        container = begun.open_files.enter_context(self._open_container(given.tomogram))
        writer = ParticleWriter(self._job.options, task, container)
        begun.jobs += [
            self._pool.submit(
                self._do_share, given.tomogram.name, share, extract, collector, writer
            )
            for _ in range(min(self._threads, len(task)))
        ]
        return begun

    def finish(self, begun: BegunTask) -> TaskResult:
        """Wait for a task's particles; tasks are finished in the order in which they were begun.

        Returns
        -------
        TaskResult
            With fewer particles than the task where it was stopped: its first ones.
        """
        begun.wait()
        for job in begun.jobs:
            job.result()
        result = begun.share.result
        if begun.collector is not None:
            begun.collector.write(ReportStore(self._job.options.output), result.n_particles)
        result.sums = begun.share.sums.finish()
        now = time.perf_counter()
        result.seconds_extracting = now - max(begun.began, self._last_end)
        self._last_end = now
        return result

    def _start_collecting(self, given: TaskInput, loaded: LoadedTomogram | None) -> Collector:
        """Return what collects for `--report` from the particles of a task."""
        options, task = self._job.options, given.task
        images = None if loaded is None else loaded.images
        with images_may_fail(given.tomogram.name):
            return Collector(
                given.tomogram,
                task,
                given.used,
                given.fingerprint,
                images,
                n_whole=given.n_whole,
                is_3d=options.is_3d,
            )

    def _open_container(self, tomogram: Tomogram) -> AbstractContextManager[ContainerWriter | None]:
        options = self._job.options
        if not options.hdf5:
            return nullcontext()
        return ContainerStore(options.output).open(tomogram.name)

    def _do_share(
        self,
        name: str,
        share: Share,
        extract: Callable[[int, Share], list[OutputFile]],
        collector: Collector | None,
        writer: ParticleWriter,
    ) -> None:
        """Extract and write particles of a tomogram until none is left; runs in each thread."""
        try:
            for i in share.take_particles():
                with images_may_fail(name):
                    files = extract(i, share)
                if collector is not None:
                    collector.add(i, files[0][1])
                started = time.perf_counter()
                n_bytes, n_clipped = writer.write(i, files)
                share.count(n_bytes, n_clipped, time.perf_counter() - started)
        except BaseException:
            share.fail()
            raise

    def _prepare(
        self, given: TaskInput, loaded: LoadedTomogram
    ) -> Callable[[int, Share], list[OutputFile]]:
        """Return the function that extracts particle i of a task (spec 2.4 to 2.10)."""
        options, task, tomogram = self._job.options, given.task, given.tomogram
        views = particle_views(tomogram, task, self._place(given))
        groups = given.particles.optics_row
        aberrations = {int(group): self._aberrations_of(int(group)) for group in np.unique(groups)}
        voxel = options.binning * tomogram.pixel_size
        prebin = loaded.images.prebin
        settings = replace(self._settings, prebin=prebin)

        def extract(i: int, share: Share) -> list[OutputFile]:
            extractor = self._extractor(settings)
            seen = extractor.n_not_finite
            half = int(given.particles.half[i])
            average = share.sums.slice_target(half, tomogram.projections, views[i])
            arguments = (
                loaded.images,
                loaded.tables,
                views[i],
                aberrations[int(groups[i])],
                average,
            )
            if options.stack2d:
                files = self._extract_stacks(extractor, arguments, voxel)
            else:
                subtomogram = extractor.extract_subtomogram(*arguments)
                if options.sum and extractor.n_not_finite == seen:
                    share.sums.add_subtomogram(subtomogram)
                files = [] if options.no_writing else volume_files(options, subtomogram, voxel)
            share.count_not_finite(extractor.n_not_finite - seen)
            return [] if options.no_writing else files

        return extract

    def _extractor(self, settings: ExtractionSettings) -> ParticleExtractor:
        """Return the calling thread's extractor, made where the tomogram needs another one."""
        found: ParticleExtractor | None = getattr(self._of_thread, "extractor", None)
        if found is None or found.settings.prebin != settings.prebin:
            self._of_thread.extractor = found = None  # one at a time: its memory goes first
            self._of_thread.extractor = found = ParticleExtractor(settings)
        return found

    def _extract_stacks(
        self, extractor: ParticleExtractor, arguments: tuple[Any, ...], voxel: float
    ) -> list[OutputFile]:
        """Return the stack of a particle, and those that dialects have of their own."""
        wanted, n = self._job.options.dialect_suffixes, self._job.options.crop
        images, tables, view, aberrations, average = arguments
        visible: NDArray[np.bool_] = view.visible
        without_ctf = None
        if WITHOUT_CTF in wanted:
            without_ctf = np.empty((int(visible.sum()), n, n), np.float32)
        stack = extractor.extract_stack(images, tables, view, aberrations, average, without_ctf)
        files: list[OutputFile] = [("_stack2d.mrcs", stack, voxel)]
        if ALL_TILTS in wanted:
            files.append((ALL_TILTS, spread_frames(stack, visible), voxel))
        if without_ctf is not None:
            files.append((WITHOUT_CTF, without_ctf, voxel))
        return files

    def _place(self, given: TaskInput) -> Placement:
        particles = given.particles
        rows = np.arange(len(particles))
        return place_particles(self._job.options, given.tomogram, particles, given.shifts, rows)

    def _prepare_real(self, given: TaskInput) -> Callable[[int, Share], list[OutputFile]]:
        """Return the function that makes true subtomogram i of a task (spec 2.11)."""
        options, task, tomogram = self._job.options, given.task, given.tomogram
        position = self._place(given).position
        halves = [mrc.read_volume(path) for path in tomogram.reconstructions]
        binning = tomogram.tomogram_binning
        assert binning is not None  # the checks made sure
        size = real_box_size(options.crop, options.binning, binning)

        def extract(i: int, share: Share) -> list[OutputFile]:
            centre = position[i] / binning
            # linear, so the halves are added box by box and never held in memory whole
            boxes = [
                realspace.cut_sphere(half, centre, size, invert=not options.no_ic)
                for half in halves
            ]
            box = np.asarray(np.sum(boxes, axis=0, dtype=np.float32))
            axes = tomogram.projections[task.visible[i], :2, :3]
            stack = realspace.project_box(box, axes)
            return [("_data.mrc", stack, binning * tomogram.pixel_size)]

        return extract

    def _aberrations_of(self, group: int) -> Aberrations:
        """Return the aberrations of an optics group, computed once."""
        if group not in self._aberrations:
            options, optics = self._job.options, self._job.optics
            kx, ky = slice_frequencies(options.box, options.binning * optics.pixel_size[group])
            even_coefficients = optics.even_zernike[group]
            odd_coefficients = optics.odd_zernike[group]
            even = odd = None
            if len(even_coefficients):
                even = aberration_phase(even_coefficients, kx, ky, odd=False) / (2 * np.pi)
            if len(odd_coefficients):
                phase = aberration_phase(odd_coefficients, kx, ky, odd=True)
                odd = np.exp(-1j * phase).astype(np.complex64)
            self._aberrations[group] = Aberrations(even, odd)
        return self._aberrations[group]


def extraction_settings(options: JobOptions) -> ExtractionSettings:
    """Return what is done to every particle."""
    return ExtractionSettings(
        box=options.box,
        crop=options.crop,
        window=options.window,
        binning=options.binning,
        stack2d=options.stack2d,
        apply_ctf=not options.no_ctf,
        invert_contrast=not options.no_ic,
        circle_crop=not options.no_circle_crop,
        circle_precrop=options.circle_precrop,
        grid_precorr=options.grid_precorr,
        cone=(options.cone_angle, options.cone_sig0) if options.cone_weight else None,
        exact_scale=options.exact_centre and options.has_fractional_window,
        average=options.average,
    )


@contextmanager
def images_may_fail(tomogram: str) -> Iterator[None]:
    """Turn an I/O error while images are read into an error of the input."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        message = f"Images of {tomogram} could not be read: {reason}"
        raise reading_error(message, error) from error


def particle_views(tomogram: Tomogram, task: Task, placed: Placement) -> list[ParticleView]:
    """Return how each particle of a task is seen in the frames (spec 2.1, 2.4, 2.8)."""
    depth = depths_from_centre(tomogram.projections, placed.position, tomogram.size_xyz)
    extra_defocus = tomogram.hand * tomogram.pixel_size * tomogram.defocus_slope * depth
    axes = np.einsum("fij,njk->nfik", tomogram.projections[:, :2, :3], placed.box_rotation)
    columns = (task.visible, placed.image_point, extra_defocus, axes, placed.particle_rotation)
    return [ParticleView(*values) for values in zip(*columns, strict=True)]
