"""The command `check`: what every start checks, and nothing else."""

from __future__ import annotations

from relion_pseudosubtomo.findings import count_findings, counted, format_findings
from relion_pseudosubtomo.options import JobOptions
from relion_pseudosubtomo.preflight import check_job
from relion_pseudosubtomo.summary import drop_lines

EXIT_GOOD, EXIT_BAD = 0, 1


def check(options: JobOptions) -> int:
    """Print all findings about a job's input in one list, errors first; nothing is written.

    Returns
    -------
    int
        Exit status: 0 if a run would start, 1 if it would not.
    """
    findings, job, plan = check_job(options)
    if findings.items:
        print(format_findings(findings, limit=float("inf")))
    if plan is not None:
        for line in drop_lines(plan):
            print(line)
    if job is not None and plan is not None:
        print(
            f"{counted(len(job.particle_set), 'particle')} in, {len(plan.kept_rows)} kept, "
            f"in {counted(len(plan.tasks), 'tomogram')}"
        )
    print(count_findings(findings))
    return EXIT_BAD if findings.errors else EXIT_GOOD
