"""Plain data: what was read, what is to be done, what was done. No files, no ranks, no pixels."""

from relion_pseudosubtomo.model.optimisation_set import OptimisationSet
from relion_pseudosubtomo.model.particle_set import OpticsGroups, ParticleSet
from relion_pseudosubtomo.model.task import Sums, Task, TaskResult
from relion_pseudosubtomo.model.tomogram_set import (
    Deformation,
    FrameImage,
    Tomogram,
    TomogramSet,
)
from relion_pseudosubtomo.model.trajectories import Trajectories

__all__ = [
    "Deformation",
    "FrameImage",
    "OpticsGroups",
    "OptimisationSet",
    "ParticleSet",
    "Sums",
    "Task",
    "TaskResult",
    "Tomogram",
    "TomogramSet",
    "Trajectories",
]
