"""One task: load the tilt images, extract the particles in threads, write their files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core import realspace, volumes
from relion_pseudosubtomo.core.aberrations import aberration_phase
from relion_pseudosubtomo.core.ctf import ctf_phase_coefficients, electron_wavelength
from relion_pseudosubtomo.core.frames import FrameTables, make_frame_tables, slice_frequencies
from relion_pseudosubtomo.core.geometry import depths_from_centre
from relion_pseudosubtomo.core.noise import noise_weight, spread_noise_weight
from relion_pseudosubtomo.core.subtomogram import (
    Aberrations,
    ExtractionSettings,
    ParticleExtractor,
    ParticleView,
    Subtomogram,
    TiltImages,
)
from relion_pseudosubtomo.errors import PseudoSubtomoError
from relion_pseudosubtomo.io import mrc
from relion_pseudosubtomo.model import OpticsGroups, Task, TaskResult, Tomogram, TomogramSet
from relion_pseudosubtomo.options import JobOptions, real_box_size


class StoppedError(PseudoSubtomoError):
    """The run was told to stop while this task was in hand."""


@dataclass(frozen=True)
class LoadedTomogram:
    """A tomogram with all that its particles share.

    Attributes
    ----------
    tomogram : Tomogram
    images : TiltImages
    tables : FrameTables
    """

    tomogram: Tomogram
    images: TiltImages
    tables: FrameTables


class Worker:
    """Does tasks with a fixed number of threads, each with its own plans and scratch arrays.

    Parameters
    ----------
    options : JobOptions
    tomogram_set : TomogramSet
    optics : OpticsGroups
        Aberrations and pixel sizes of the particles' optics groups.
    threads : int
    on_particle : callable
        Called without arguments after each particle, from any thread.
    stop : callable
        True once the work in hand is to be dropped.
    """

    def __init__(
        self,
        options: JobOptions,
        tomogram_set: TomogramSet,
        optics: OpticsGroups,
        threads: int,
        on_particle: Callable[[], None],
        stop: Callable[[], bool],
    ) -> None:
        self._options = options
        self._tomograms = tomogram_set.tomograms
        self._optics = optics
        self._threads = threads
        self._on_particle = on_particle
        self._stop = stop
        self._aberrations: dict[int, Aberrations] = {}
        self._free_extractors: list[ParticleExtractor] = []

    @cached_property
    def _settings(self) -> ExtractionSettings:
        options = self._options
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
        )

    def do_task(self, task: Task) -> TaskResult:
        """Extract and write the particles of one task."""
        if self._options.real_subtomo:
            return self._do_real_task(task)
        result = TaskResult(task.number)
        started = time.perf_counter()
        loaded = self._load(task)
        result.seconds_loading = time.perf_counter() - started
        started = time.perf_counter()
        views = particle_views(loaded.tomogram, task)
        shared = SharedCounts(result)
        indices = iter(range(len(task.rows)))
        with ThreadPoolExecutor(self._threads) as pool:
            jobs = [
                pool.submit(self._extract_share, task, loaded, views, indices, shared)
                for _ in range(min(self._threads, len(task.rows)))
            ]
        for job in jobs:
            job.result()
        if self._stop():
            raise StoppedError("stopped")
        result.seconds_extracting = time.perf_counter() - started
        return result

    def _load(self, task: Task) -> LoadedTomogram:
        tomogram = self._tomograms[task.tomogram]
        mapped = mrc.map_series(tomogram.frames)
        images = TiltImages.from_arrays(mapped)
        used = np.any(task.visible, axis=0)
        return LoadedTomogram(tomogram, images, self._make_tables(tomogram, used, mapped))

    def _make_tables(
        self, tomogram: Tomogram, used: NDArray[np.bool_], mapped: list[NDArray]
    ) -> FrameTables:
        options = self._options
        noise = None
        if options.whiten:
            noise = np.zeros((len(used), options.box // 2 + 1, options.box), np.float32)
            for f in np.flatnonzero(used):
                weight = noise_weight(mapped[f], options.window)
                noise[f] = spread_noise_weight(weight, options.box, options.binning)
        return make_frame_tables(
            box=options.box,
            binned_pixel_size=options.binning * tomogram.pixel_size,
            used=used,
            dose=tomogram.pre_exposure,
            bfactor_per_dose=tomogram.bfactor_per_dose,
            ctf_phase=ctf_phase_coefficients(
                tomogram.defocus_u,
                tomogram.defocus_v,
                tomogram.defocus_angle,
                tomogram.phase_shift,
                tomogram.voltage,
                tomogram.spherical_aberration,
                tomogram.amplitude_contrast,
            ),
            wavelength=electron_wavelength(tomogram.voltage),
            ctf_scale=tomogram.ctf_scale,
            ctf_bfactor=tomogram.ctf_bfactor,
            cutoff=options.cutoff_fract,
            noise=noise,
        )

    def _aberrations_of(self, group: int) -> Aberrations:
        """Return the aberrations of an optics group, computed once."""
        if group not in self._aberrations:
            options, optics = self._options, self._optics
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

    def _extract_share(
        self,
        task: Task,
        loaded: LoadedTomogram,
        views: list[ParticleView],
        indices: Iterator[int],
        shared: SharedCounts,
    ) -> None:
        """Extract particles until none is left; runs in each thread."""
        with shared.lock:
            extractor = (
                self._free_extractors.pop()
                if self._free_extractors
                else ParticleExtractor(self._settings)
            )
        extractor.n_not_finite = 0
        try:
            while not self._stop() and not shared.failed:
                with shared.lock:
                    i = next(indices, None)
                    if i is None:
                        break
                    aberrations = self._aberrations_of(int(task.optics_row[i]))
                self._extract_particle(
                    task.stems[i], loaded, views[i], aberrations, extractor, shared
                )
                self._on_particle()
        except BaseException:
            shared.failed = True
            raise
        finally:
            with shared.lock:
                shared.result.n_not_finite += extractor.n_not_finite
                self._free_extractors.append(extractor)

    def _extract_particle(
        self,
        stem: str,
        loaded: LoadedTomogram,
        view: ParticleView,
        aberrations: Aberrations,
        extractor: ParticleExtractor,
        shared: SharedCounts,
    ) -> None:
        options = self._options
        voxel = options.binning * loaded.tomogram.pixel_size
        arguments = (loaded.images, loaded.tables, view, aberrations)
        if options.stack2d:
            stack = extractor.extract_stack(*arguments)
            files = [("_stack2d.mrcs", stack, voxel)]
        else:
            subtomogram = extractor.extract_subtomogram(*arguments)
            if options.sum:
                shared.add_sums(subtomogram)
            files = [] if options.no_writing else self._volume_files(subtomogram, voxel)
        if options.no_writing:
            files = []
        self._write(stem, files, shared)

    def _volume_files(
        self, subtomogram: Subtomogram, voxel: float
    ) -> list[tuple[str, NDArray[np.float32], float]]:
        """Return (suffix, array, voxel size) of every file of a 3D particle (spec 2.10, 3.2)."""
        options = self._options
        data, weight = subtomogram.data, subtomogram.weight
        multiplicity = subtomogram.multiplicity
        files = [("_data.mrc", data, voxel)]
        if not options.no_comb:
            files.append(("_weights.mrc", subtomogram.weights, 1 / voxel))
        if options.ctf:
            files.append(("_CTF2.mrc", volumes.expand_centred(weight), 1 / voxel))
        if options.multi:
            files.append(("_multi.mrc", volumes.expand_centred(multiplicity), 1 / voxel))
        if options.div:
            divided = volumes.tapered_division(
                data, weight, options.snr, options.taper, centre=not options.no_center
            )
            files.append(("_div.mrc", divided, voxel))
        if options.nrm:
            normalised = volumes.normalise_by_multiplicity(data, multiplicity)
            weight_normalised = volumes.divide_or_zero(weight, multiplicity)
            files.append(("_data_nrm.mrc", normalised, voxel))
            files.append(("_CTF2_nrm.mrc", volumes.expand_centred(weight_normalised), 1 / voxel))
        return files

    def _write(
        self,
        stem: str,
        files: list[tuple[str, NDArray[np.float32], float]],
        shared: SharedCounts,
    ) -> None:
        started = time.perf_counter()
        n_bytes = n_clipped = 0
        if files:
            Path(self._options.output, stem).parent.mkdir(parents=True, exist_ok=True)
        for suffix, array, voxel in files:
            written, clipped = mrc.write_mrc(
                Path(self._options.output, stem + suffix),
                array,
                voxel_size=voxel,
                is_stack=suffix.endswith(".mrcs"),
                float16=self._options.float16,
            )
            n_bytes += written
            n_clipped += clipped
        with shared.lock:
            shared.result.n_particles += 1
            shared.result.bytes_written += n_bytes
            shared.result.n_clipped += n_clipped
            shared.result.seconds_writing += time.perf_counter() - started

    def _do_real_task(self, task: Task) -> TaskResult:
        """Cut, project and write the true subtomograms of one task (spec 2.11)."""
        options, result = self._options, TaskResult(task.number)
        tomogram = self._tomograms[task.tomogram]
        shared = SharedCounts(result)
        started = time.perf_counter()
        volume = np.sum([mrc.read_volume(path) for path in tomogram.reconstructions], axis=0)
        result.seconds_loading = time.perf_counter() - started
        binning = tomogram.tomogram_binning
        assert binning is not None  # the checks made sure
        size = real_box_size(options.crop, options.binning, binning)

        def extract(i: int) -> None:
            if self._stop():
                return
            box = realspace.cut_sphere(
                volume, task.position[i] / binning, size, invert=not options.no_ic
            )
            axes = tomogram.projections[task.visible[i], :2, :3]
            stack = realspace.project_box(box, axes)
            self._write(
                task.stems[i], [("_data.mrc", stack, binning * tomogram.pixel_size)], shared
            )
            self._on_particle()

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(extract, range(len(task.rows))))
        if self._stop():
            raise StoppedError("stopped")
        result.seconds_extracting = time.perf_counter() - started
        return result


class SharedCounts:
    """What the threads of one task add to, under one lock."""

    def __init__(self, result: TaskResult) -> None:
        self.lock = threading.Lock()
        self.result = result
        self.failed = False

    def add_sums(self, subtomogram: Subtomogram) -> None:
        """Add a particle to the accumulators of `--sum`."""
        with self.lock:
            if self.result.sums is None:
                self.result.sums = (
                    np.zeros(subtomogram.data.shape),
                    np.zeros(subtomogram.weight.shape),
                )
            data, weight = self.result.sums
            data += subtomogram.data
            weight += subtomogram.weight


def particle_views(tomogram: Tomogram, task: Task) -> list[ParticleView]:
    """Return how each particle of a task is seen in the frames (spec 2.1, 2.4, 2.8)."""
    depth = depths_from_centre(tomogram.projections, task.position, tomogram.size_xyz)
    extra_defocus = tomogram.hand * tomogram.pixel_size * tomogram.defocus_slope * depth
    slice_axes = np.einsum("fij,njk->nfik", tomogram.projections[:, :2, :3], task.box_rotation)
    return [
        ParticleView(
            task.visible[i],
            task.image_point[i],
            extra_defocus[i],
            slice_axes[i],
            task.particle_rotation[i],
        )
        for i in range(len(task.rows))
    ]
