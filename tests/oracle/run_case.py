"""Run the oracle on a whole reference case."""

from __future__ import annotations

from .read_case import Case, read_star
from .spec_extraction import (
    FloatArray,
    Particle,
    Tomogram,
    extract_particle,
    extract_real_subtomogram,
    sum_volumes,
    visible_frames,
)

KINDS = ("stack2d", "data", "weights", "CTF2", "multi", "div", "data_nrm", "CTF2_nrm")
"""Endings of the file names, before the extension (3.1 of the specification)."""


def kept_particles(case: Case) -> list[tuple[Tomogram, Particle]]:
    """Return the particles that are visible in enough frames, in output order (2.3)."""
    return [
        (tomogram, particle)
        for tomogram, particle in case.particles
        if visible_frames(particle, tomogram, case.options).sum() >= case.options.min_frames
    ]


def run_case(case: Case) -> dict[str, FloatArray]:
    """Return all images of a case, by the file names below the output folder (3.1).

    Volumes that the case's options do not ask for are there too.
    """
    extract = extract_real_subtomogram if case.options.real_subtomo else extract_particle
    names = read_star(case.folder / "particles.star")["particles"].get("rlnTomoParticleName")
    names_have_slash = names is None or "/" in names.iloc[0]
    images, outputs = {}, []
    for tomogram, particle in kept_particles(case):
        output = extract(particle, tomogram, case.options)
        outputs.append(output)
        stem = particle.name if names_have_slash else f"{tomogram.name}/{particle.name}"
        for kind in KINDS:
            if kind.lower() in output:
                extension = "mrcs" if kind == "stack2d" else "mrc"
                images[f"Subtomograms/{stem}_{kind}.{extension}"] = output[kind.lower()]
    if not case.options.stack2d and not case.options.real_subtomo:
        summed = sum_volumes(outputs, case.options)
        images.update({f"{name}.mrc": volume for name, volume in summed.items()})
    return images
