"""Tables for other programs beside the standard output (`--for NAME`), one module a dialect.

docs/dialects.md says what each program reads; `options` knows which has images of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relion_pseudosubtomo.dialects import cryodrgn, relion4, tomodrgn
from relion_pseudosubtomo.dialects.tables import StandardTables, check_ctf, check_rotations
from relion_pseudosubtomo.findings import Findings
from relion_pseudosubtomo.model import ParticleSet, TomogramSet
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.plan import Plan

Check = Callable[[JobOptions, TomogramSet, ParticleSet, Plan, Findings], None]


@dataclass(frozen=True)
class Dialect:
    """One dialect.

    Attributes
    ----------
    write : callable
        Writes its tables.
    checks : tuple of callable
        Whether it can express the input, before any image is read.
    """

    write: Callable[[StandardTables], None]
    checks: tuple[Check, ...] = ()


#: All dialects by name; the same names as `options.DIALECTS`.
DIALECTS = {
    relion4.NAME: Dialect(relion4.write),
    tomodrgn.NAME: Dialect(
        tomodrgn.write,
        (check_rotations, check_ctf, tomodrgn.check_coordinates, tomodrgn.check_names),
    ),
    cryodrgn.NAME: Dialect(
        cryodrgn.write,
        (check_rotations, check_ctf, cryodrgn.check_offsets, cryodrgn.check_names),
    ),
}


def check_dialects(
    options: JobOptions,
    tomogram_set: TomogramSet,
    particle_set: ParticleSet,
    plan: Plan,
    findings: Findings,
) -> None:
    """Check that every dialect that is asked for can express what is kept."""
    checks = [check for name in options.dialects for check in DIALECTS[name].checks]
    for check in dict.fromkeys(checks):
        check(options, tomogram_set, particle_set, plan, findings)


def write_dialects(tables: StandardTables) -> None:
    """Write the tables of every dialect that is asked for."""
    for name in tables.options.dialects:
        DIALECTS[name].write(tables)
