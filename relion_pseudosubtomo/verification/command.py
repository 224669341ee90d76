"""The path of `verify`: tables, containers, files, visible frames, records, values."""

from __future__ import annotations

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import Findings, count_findings, counted, format_findings
from relion_pseudosubtomo.io.mrc_validation import MrcFile
from relion_pseudosubtomo.verification.containers import (
    check_containers,
    check_unpacked,
    count_container_slices,
    inspect_containers,
    is_packed,
)
from relion_pseudosubtomo.verification.images import (
    check_data,
    check_files,
    inspect_files,
    list_files,
)
from relion_pseudosubtomo.verification.leftovers import check_orphans, check_records
from relion_pseudosubtomo.verification.results import Request, Results, read_results
from relion_pseudosubtomo.verification.tables import check_tables
from relion_pseudosubtomo.verification.visibility import (
    Geometry,
    Visibility,
    check_visibility,
    compute_geometry,
    count_slices,
    write_repaired,
)

EXIT_GOOD, EXIT_BAD = 0, 1

#: What a table that was repaired has no longer.
_REPAIRABLE = (
    "result-stacks",
    "result-visible",
    "result-frames",
    "result-slices",
    "result-geometry",
)


def verify(request: Request) -> int:
    """Print all that is wrong in an output directory; with `repair`, write a better table beside.

    Returns
    -------
    int
        Exit status: 0 if refinement can take the directory, or the repaired table, as it is.

    Raises
    ------
    OutputError
        Where the repaired table cannot be written.
    """
    findings = Findings()
    results = read_results(request, findings)
    repaired = None if results is None else _verify_results(results, findings)
    if findings.items:
        print(format_findings(findings))
    left = [f for f in findings.errors if repaired is None or f.code not in _REPAIRABLE]
    if results is not None:
        print(f"{counted(results.particles.n_rows, 'particle')} verified")
    if repaired is not None:
        print(f"Wrote {repaired}: use it in place of {request.particle_file}")
    print(count_findings(findings))
    return EXIT_BAD if left else EXIT_GOOD


def _verify_results(results: Results, findings: Findings) -> str | None:
    """Check everything; return the repaired table's path, where one was written."""
    if results.is_elsewhere:
        findings.error(
            "result-elsewhere",
            labels.IMAGE_NAME,
            file=results.request.particle_file,
            expected=f"images in {results.request.directory}",
            found=results.images[0],
        )
        return None
    check_tables(results, findings)
    if results.options.hdf5:
        check_containers(results, findings)
    files = list_files(results)
    known: dict[str, MrcFile | InputError] = {}
    if is_packed(results):
        slices = count_container_slices(results)
    else:
        known = check_files(results, files, findings)
        check_unpacked(results, files, known, findings)
        slices = count_slices(results, known)
    visibility, geometry = Visibility([None] * len(results.images), []), Geometry()
    if results.is_stack:
        geometry = compute_geometry(results)
        visibility = check_visibility(results, slices, geometry, findings)
    records = check_records(results, files, known, findings) if results.is_recorded else []
    if results.request.is_own_table:
        check_orphans(results, files, records, findings)
    if results.request.deep:
        check_data(
            results,
            [*inspect_files(files, known), *inspect_containers(results, findings)],
            lambda row, suffix: visibility.blank_slices(results, row, suffix),
            findings,
        )
    if not (results.request.repair and (visibility.damaged or results.is_mislabelled)):
        return None
    return write_repaired(results, slices, geometry, visibility, findings)
