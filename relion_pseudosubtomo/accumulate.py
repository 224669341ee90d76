"""What the threads of one task add up: sums (`--sum`) and half maps (`--average`)."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo.core.average import FourierAverage, SliceTarget
from relion_pseudosubtomo.core.inputs import ParticleView
from relion_pseudosubtomo.core.packed import make_packed_volume
from relion_pseudosubtomo.core.subtomogram import Subtomogram
from relion_pseudosubtomo.model import Sums
from relion_pseudosubtomo.options import JobOptions

Floats = NDArray[np.floating]

#: Particles that a thread adds up in single precision before they go to the sums in double.
PARTICLES_PER_FOLD = 25


@dataclass
class _Packed:
    """A packed volume, and whose slices are in it.

    Attributes
    ----------
    half : int
    volume : ndarray, shape (n + 3, n + 3, n/2 + 2, 4), float32
    n_particles : int
    """

    half: int
    volume: NDArray[np.float32]
    n_particles: int = 0


class Accumulators:
    """The sums of one task; every method but `finish` may be called from any thread.

    Parameters
    ----------
    options : JobOptions
    average_scale : float
        Factor on the slices inserted into the half maps.
    """

    def __init__(self, options: JobOptions, average_scale: float) -> None:
        self._lock = threading.Lock()
        self._box = options.crop
        self._scale = average_scale
        self._sums: Sums = _make_sums(self._box) if options.sum else {}
        self._halves = [FourierAverage(self._box) for _ in range(2)] if options.average else []
        self._packed: dict[tuple[int, int], _Packed] = {}

    def add_subtomogram(self, subtomogram: Subtomogram) -> None:
        """Add a particle to the sums of `--sum`."""
        with self._lock:
            self._sums["data"] += subtomogram.data
            self._sums["weight"] += subtomogram.weight

    def slice_target(
        self, half: int, projections: Floats, view: ParticleView
    ) -> SliceTarget | None:
        """Return where the calling thread inserts its next particle's slices; None: nowhere.

        Parameters
        ----------
        half : int
            The particle's half set, 0 or 1.
        projections : ndarray, shape (n_frames, 4, 4)
            P_f.
        view : ParticleView
        """
        if not self._halves:
            return None
        key = (threading.get_ident(), half)
        if key not in self._packed:
            self._packed[key] = _Packed(half, make_packed_volume(self._box))
        packed = self._packed[key]
        if packed.n_particles == PARTICLES_PER_FOLD:
            self._fold(packed)
        packed.n_particles += 1
        return SliceTarget(packed.volume, projections[:, :2, :3] @ view.particle_rotation)

    def _fold(self, packed: _Packed) -> None:
        """Move what a thread has added up to the sums that all share."""
        with self._lock:
            self._halves[packed.half].add_packed(packed.volume, self._scale)
        packed.n_particles = 0

    def finish(self) -> Sums:
        """Return all sums, once the threads have ended; those of half maps in single precision."""
        for packed in self._packed.values():
            self._fold(packed)
        for half, average in enumerate(self._halves):
            data, weight = _half_names(half)
            self._sums[data] = average.data.astype(np.complex64)
            self._sums[weight] = average.weight.astype(np.float32)
        return self._sums


def _make_sums(box: int) -> Sums:
    """Return what `--sum` adds to, there even where no particle is fit to be added."""
    return {"data": np.zeros((box, box, box)), "weight": np.zeros((box, box, box // 2 + 1))}


def make_halves(sums: Sums) -> tuple[FourierAverage, FourierAverage]:
    """Return the averages of the two half sets; they take over the sums of all tasks."""
    first, second = (
        FourierAverage.of_slices(*(sums[name] for name in _half_names(half))) for half in range(2)
    )
    return first, second


def _half_names(half: int) -> tuple[str, str]:
    """Return the names of a half map's data and weight among the sums."""
    return f"half{half + 1}_data", f"half{half + 1}_weight"
