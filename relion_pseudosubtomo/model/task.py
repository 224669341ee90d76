"""Work for one rank, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Name -> array; arrays of one name are added up over tasks, ranks and restarts.
Sums = dict[str, NDArray]


@dataclass(frozen=True)
class Task:
    """The kept particles of one tomogram, or a range of them, with all that was decided.

    Attributes
    ----------
    number : int
        Place of the tomogram's task in the plan; results are put in this order.
    tomogram : int
        Place of the tomogram in the tomogram set.
    first : int
        Place of the first particle among the tomogram's kept particles.
    rows : ndarray, shape (m,), int64
        Rows of the particle set.
    stems : tuple of str
        Output path of each particle inside the output directory, without its suffix.
    visible : ndarray, shape (m, n_frames), bool
        Visible frames (spec 2.3).
    """

    number: int
    tomogram: int
    first: int
    rows: NDArray[np.int64]
    stems: tuple[str, ...]
    visible: NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of particles."""
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent between ranks: flags as bits, names as one text."""
        packed = (np.packbits(self.visible, axis=1), self.visible.shape[1])
        return {**self.__dict__, "stems": "\n".join(self.stems), "visible": packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Undo `__getstate__`; names hold no line ends, the checks made sure."""
        bits, n_frames = state["visible"]
        visible = np.unpackbits(bits, axis=1, count=n_frames).astype(bool)
        self.__dict__.update(state, stems=tuple(state["stems"].split("\n")), visible=visible)

    def part(self, start: int, stop: int) -> Task:
        """Return particles `start` to `stop` of this task as a task."""
        return Task(
            self.number,
            self.tomogram,
            self.first + start,
            self.rows[start:stop],
            self.stems[start:stop],
            self.visible[start:stop],
        )


@dataclass
class TaskResult:
    """What a worker did.

    Attributes
    ----------
    number : int
        The task's number.
    first : int
        Its first particle among the tomogram's kept particles.
    n_particles : int
        Particles extracted, from the first on.
    bytes_written : int
        Bytes of all image files.
    seconds_loading, seconds_extracting, seconds_writing : float
        Wall time of the task's stages; writing is the sum over threads.
    n_clipped : int
        Values beyond the range of float16 that were clipped.
    n_not_finite : int
        Pixels of the tilt images used that were NaN or infinite.
    lost_prebin : bool
        Whether such pixels kept the images from being made smaller for `--prebin`.
    sums : Sums
        What was added up: for `--sum` the data volumes, shape (n, n, n), and the weights, shape
        (n, n, n/2 + 1); for `--average` data and weight of the half maps.
    """

    number: int
    first: int = 0
    n_particles: int = 0
    bytes_written: int = 0
    seconds_loading: float = 0.0
    seconds_extracting: float = 0.0
    seconds_writing: float = 0.0
    n_clipped: int = 0
    n_not_finite: int = 0
    lost_prebin: bool = False
    sums: Sums = field(default_factory=dict)

    def add(self, other: TaskResult) -> None:
        """Add what was done in the particles that follow; sums are not carried over."""
        self.n_particles += other.n_particles
        self.bytes_written += other.bytes_written
        self.seconds_loading += other.seconds_loading
        self.seconds_extracting += other.seconds_extracting
        self.seconds_writing += other.seconds_writing
        self.n_clipped += other.n_clipped
        self.n_not_finite += other.n_not_finite
        self.lost_prebin |= other.lost_prebin
