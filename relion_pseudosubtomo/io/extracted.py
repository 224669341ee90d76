"""The tables of a finished extraction: its particles matched with tomograms and trajectories."""

from __future__ import annotations

from dataclasses import replace

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.io.columns import has_columns, is_absent
from relion_pseudosubtomo.io.names import find_duplicates
from relion_pseudosubtomo.io.particles import ParticleTable, make_particle_set
from relion_pseudosubtomo.io.tomograms import read_tomogram_set
from relion_pseudosubtomo.io.trajectories import read_trajectories
from relion_pseudosubtomo.model import ParticleSet, TomogramSet, Trajectories
from relion_pseudosubtomo.options import JobOptions

#: Said of tilt series, of no consequence for finished images.
_OF_NO_CONSEQUENCE = ("unused-tomogram", "table-name")


def read_extracted_sets(
    table: ParticleTable,
    tomograms: str,
    trajectories: str | None,
    options: JobOptions,
    findings: Findings,
) -> tuple[TomogramSet | None, ParticleSet | None, Trajectories | None]:
    """Read the tomograms of extracted particles, and match particles and trajectories with them.

    Tilt images need not be there any more.

    Parameters
    ----------
    table : ParticleTable
        The extracted particles.
    tomograms : str
        The tomogram set's file.
    trajectories : str or None
        The trajectory set's file.
    options : JobOptions
        Of the extraction.
    findings : Findings
        Gets errors, also for particles without a tomogram, and warnings of the particle set;
        none for rows of one name and one image, as after a symmetry expansion.

    Returns
    -------
    tuple of TomogramSet, ParticleSet, Trajectories
        None where a set cannot be read, and where there are no trajectories.
    """
    found = Findings()
    reading = replace(options, allow_failures=True, real_subtomo=False)
    tomogram_set = read_tomogram_set(
        tomograms, found, wanted=table.tomogram_names(), options=reading
    )
    findings.items += found.errors
    matched = Findings()
    particle_set = make_particle_set(table, tomogram_set, matched)
    for finding in matched:
        if finding.code == "duplicate-particle" and _are_copies(table):
            continue
        if finding.code == "unknown-tomogram":
            findings.items.append(replace(finding, code="result-tomogram", severity="error"))
        elif finding.code not in _OF_NO_CONSEQUENCE:
            findings.items.append(finding)
    moving = None
    if tomogram_set is not None and particle_set is not None and not is_absent(trajectories):
        moving = read_trajectories(str(trajectories), particle_set, tomogram_set, findings)
    return tomogram_set, particle_set, moving


def _are_copies(table: ParticleTable) -> bool:
    """Return whether all rows of one name have one image too."""
    needed = (labels.PARTICLE_NAME, labels.IMAGE_NAME)
    if not has_columns(table.particles, needed):
        return False
    pairs = zip(*(table.particles.columns[label] for label in needed), strict=True)
    return not find_duplicates([name for name, _ in dict.fromkeys(pairs)])
