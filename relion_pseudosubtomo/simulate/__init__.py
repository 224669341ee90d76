"""A simulated project: tilt series of a known structure, for tests, quickstart and tutorial.

Nothing here interpolates: projections have a closed form, so that the simulator is an independent
check of extraction. Only the conventions of geometry are shared with it (`core.geometry`).
"""

from relion_pseudosubtomo.simulate.dataset import Dataset, Settings, make_dataset
from relion_pseudosubtomo.simulate.project import write_project
from relion_pseudosubtomo.simulate.structure import (
    Structure,
    make_structure,
    project_structure,
    reference_volume,
)

__all__ = [
    "Dataset",
    "Settings",
    "Structure",
    "make_dataset",
    "make_structure",
    "project_structure",
    "reference_volume",
    "write_project",
]
