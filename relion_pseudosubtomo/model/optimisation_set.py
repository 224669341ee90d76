"""The optimisation set: which particle, tomogram and trajectory files belong together."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class OptimisationSet:
    """Files of one job (spec 1.2); paths as given, relative to the project directory.

    Attributes
    ----------
    particles, tomograms : str
        The particle and the tomogram STAR file.
    trajectories : str or None
        The trajectory STAR file, where there is one.
    others : dict of str to str
        Every other entry of the optimisation set that was read, label to text, in file order.
    """

    particles: str
    tomograms: str
    trajectories: str | None = None
    others: dict[str, str] = field(default_factory=dict)
