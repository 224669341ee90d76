"""What rank 0 adds to the report: where all particles lie, and what the run was asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import shlex
import socket
import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from relion_pseudosubtomo import __version__
from relion_pseudosubtomo.core.inputs import TiltImages
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.io import mrc
from relion_pseudosubtomo.model import Tomogram
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.plan import usable_frames
from relion_pseudosubtomo.positions import ProjectedParticles
from relion_pseudosubtomo.report.collect import choose_frames, draw_tilts, tilt_angles
from relion_pseudosubtomo.report.store import Geometry, ReportStore, RunFacts, TiltPictures


def write_facts(options: JobOptions, command: list[str], warnings: list[str]) -> None:
    """Write what the report tells of a run that stands in no other file."""
    versions = {
        "relion_pseudosubtomo": __version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
    }
    facts = RunFacts(
        command=shlex.join(command),
        versions=versions,
        finished=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        host=socket.gethostname(),
        options={name: str(value) for name, value in dataclasses.asdict(options).items()},
        warnings=warnings,
    )
    ReportStore(options.output).write_run(facts)


def write_geometry(
    options: JobOptions, projected: Iterable[ProjectedParticles], fingerprints: dict[str, str]
) -> None:
    """Write where the particles of each tomogram lie in the two frames that the report shows.

    Parameters
    ----------
    options : JobOptions
    projected : iterable of ProjectedParticles
        All tomograms.
    fingerprints : dict of str to str
        Of the tomograms that keep particles, by name.
    """
    store = ReportStore(options.output)
    for particles in projected:
        name = particles.tomogram.name
        geometry = make_geometry(options, particles, fingerprints.get(name, ""))
        store.write_geometry(name, geometry)
        if particles.number is None and not options.real_subtomo:
            with contextlib.suppress(InputError, OSError):  # the results do not need it
                store.write_tilts(name, _draw_tilts(particles.tomogram, geometry))


def _draw_tilts(tomogram: Tomogram, geometry: Geometry) -> TiltPictures:
    """Return the two tilt images of a tomogram that no worker has seen, as nothing is kept."""
    images = mrc.map_series(tuple(tomogram.frames[frame] for frame in geometry.frames))
    drawn = draw_tilts(TiltImages.from_arrays(images), np.arange(2))
    return replace(drawn, frames=geometry.frames)


def make_geometry(options: JobOptions, particles: ProjectedParticles, fingerprint: str) -> Geometry:
    """Return where the particles of one tomogram lie, as far as the report shows it."""
    tomogram, kept = particles.tomogram, particles.kept
    usable = usable_frames(options, tomogram)
    seen = particles.visible[kept]
    used = np.any(seen, axis=0) if seen.any() else np.ones(len(usable), dtype=bool)
    frames = choose_frames(tomogram.projections, used)
    slope = tomogram.hand * tomogram.pixel_size * tomogram.defocus_slope
    defocus = (tomogram.defocus_u + tomogram.defocus_v) / 2 + slope * particles.depth[kept]
    n_visible = particles.visible.sum(axis=1)
    return Geometry(
        fingerprint=fingerprint,
        frames=frames,
        tilt=tilt_angles(tomogram.projections)[frames],
        image_size_xy=np.array(tomogram.image_size_xy),
        points=particles.image_point[:, frames].astype(np.float32),
        kept=kept,
        n_visible=n_visible,
        n_usable=int(usable.sum()),
        defocus=(np.sum(defocus * seen, axis=1) / n_visible[kept]).astype(np.float32),
        dose=tomogram.pre_exposure,
        images_per_frame=seen.sum(axis=0),
    )
