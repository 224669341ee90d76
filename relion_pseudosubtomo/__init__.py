"""Extract subtomograms for RELION: 2D particle stacks and 3D pseudo-subtomograms.

The names in `__all__` are the Python interface, which stays; docs/api.md shows how to use it.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: Public name -> module. Imported when they are asked for: the command line needs none of them.
_PUBLIC = {
    "Extracted": "extraction",
    "Particle": "dataset",
    "ParticleDataset": "dataset",
    "ParticleGeometry": "geometry",
    "TiltSeries": "extraction",
    "extract_pseudo_subtomograms": "extraction",
    "extract_stacks": "extraction",
    "open_dataset": "dataset",
    "open_optimisation_set": "dataset",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.api.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
