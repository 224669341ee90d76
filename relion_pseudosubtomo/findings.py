"""What the checks of the input found: a list of errors and warnings, each with a short code.

The codes are stable names; `docs/messages.md` lists each with what to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

#: code -> what to do about it, shown behind the message.
ADVICE: dict[str, str] = {
    # The command line
    "bad-box": "Give even box sizes, --crop at most --b.",
    "bad-option": "Correct the option.",
    "option-combination": "Leave out one of the two.",
    "missing-package": "Install it: pip install 'relion_pseudosubtomo[report]'.",
    "odd-window": "An even --b times --bin agrees with RELION's own images.",
    "fractional-window": "Use a box size named, or --exact_centre for exact scale and centre.",
    "missing-input": "Give --i, or both --p and --t.",
    "only-tomogram": "Give the name as it stands in the tomogram set.",
    "output-directory": "Give another --o, or make that directory writable.",
    "output-options": "Give the options of that run, or another --o, or --overwrite without "
    "--only_tomogram.",
    "output-version": "Continue with the version that made them, or replace them with --overwrite "
    "without --only_tomogram, or give another --o.",
    "output-exists": "Continue that run with --only_do_unfinished, replace its results with "
    "--overwrite, or give another --o.",
    "output-foreign": "Give another --o, or remove these files: only results with completion "
    "records of this program are continued or replaced.",
    "input-replaced": "Give another --o: what a run writes is removed before it begins.",
    "output-locked": "Another job is writing to this directory: wait for it, or give another --o.",
    # STAR files
    "missing-file": "Start the program in the RELION project directory, or correct the path.",
    "unreadable-file": "Check the path and its permissions.",
    "star-syntax": "Correct the file, or write it again with the program that made it.",
    "missing-table": "Check that this is the right kind of file.",
    "table-name": "The table is used all the same.",
    "missing-column": "Add the column, or use the file of the job that writes it.",
    "missing-value": "Fill in the value.",
    "not-a-number": "Correct the value.",
    "not-finite": "Correct the value, or remove the row.",
    "bad-value": "Correct the value.",
    "bad-vector": "Vectors are written [1,2,3], without spaces.",
    "optimisation-set": "One optimisation set has one entry a file.",
    # Tomograms
    "no-tomograms": "Check that this is the right file.",
    "duplicate-tomogram": "Give every tomogram a name of its own.",
    "unsafe-name": "Rename: names become parts of output paths.",
    "long-name": "Shorten: file systems hold no longer ones.",
    "missing-size": "Add the sizes in unbinned pixels if particle coordinates rely on them.",
    "odd-size": "As in RELION, coordinates and projections differ by half a pixel there; "
    "--exact_centre uses the true centre.",
    "alignment-zero": "Use the tomogram set of the job that aligned the tilt series.",
    "dose-zero": "Images are not weighted by dose; import the tilt series with their dose.",
    "dose-repeated": "Each tilt image has a dose of its own; check the order of the tilts.",
    "defocus-range": "Check the CTF estimation of these tilts; defocus is in Angstrom.",
    "ctf-zero": "Use the tomogram set of the job that estimated the CTF.",
    "global-rotation": "The tilt tables should hold it; check that it is the refined one.",
    "deformation-ignored": "Add the model's type to use it.",
    "no-frames": "Remove the tomogram, or complete its tilt table.",
    "frame-count": "The tilt table and the image file have to list the same tilts.",
    "image-missing": "Start the program in the RELION project directory, or restore the file, or "
    "leave the tomogram out with --allow_failures.",
    "image-unreadable": "Copy or make the file again (compressed files and TIFF have to be "
    "converted to MRC), or leave the tomogram out with --allow_failures.",
    "image-index": "Correct the number or the stack.",
    "image-size": "All images of one series have to have one size.",
    "pixel-size": "The STAR file's is used; check which of the two is right.",
    "dummy-images": "Nothing can be extracted from this export: give the tomogram set of a RELION "
    "project with the aligned tilt series, or let WarpTools extract the particles.",
    "volume-unreadable": "Reconstruct the tomogram, or correct the path.",
    "tomogram-binning": "Reconstruct all tomograms with one binning factor.",
    # Particles
    "no-particles": "Check that particle and tomogram set belong together.",
    "unknown-tomogram": "These particles are left out.",
    "unused-tomogram": "Nothing is extracted from them.",
    "duplicate-particle": "Make the names unique, or let --rename_duplicates do so: trajectories "
    "and output files go by them.",
    "renamed-particle": "Which name became which is in renamed_particles.star.",
    "same-file": "Rename the particles.",
    "nothing-left": "Correct what the reasons name.",
    "coordinates": "Check the unit, origin and binning of the coordinates.",
    "optics-filled": "Right if the particles come from these tomograms.",
    "optics-group": "Correct the group's number, or remove data_optics to have it made.",
    "optics-disagree": "Make the two agree; images are corrected with the tomogram's values.",
    "optics-mixed": "Give the tomograms of each value an rlnOpticsGroupName of their own.",
    "half-sets": "--average takes the rows in turn as half sets; correct the column before a "
    "refinement uses it.",
    "dialect-rotation": "Use the tomogram set of RELION's own alignment, or leave out this --for.",
    "dialect-coordinates": "Check the tomogram sizes, or remove these particles.",
    "dialect-name": "Rename, or leave out this --for.",
    "dialect-offsets": "Leave out --dont_apply_offsets, or this --for.",
    "dialect-ctf": "The CTF that the program computes there is not that of the images.",
    "sum-pixel-size": "Add up the tomograms of each pixel size by themselves.",
    # Trajectories
    "trajectory-missing": "Use the trajectory set of these particles, or none: --mot None.",
    "trajectory-renamed": "Give the sets names of their own before they are joined, or use no "
    "trajectories: --mot None.",
    "trajectory-frames": "Use the trajectory set made with these tilt series.",
    "trajectory-order": "Trajectories of very old files fit only the particle set they came with.",
    # Results (verify)
    "result-unfinished": "Continue it: the same line with --only_do_unfinished.",
    "result-none": "There is nothing to verify: such a run writes sums and averages alone.",
    "result-missing": "Extract these particles again with --only_do_unfinished, or verify where "
    "the job was started.",
    "result-unreadable": "Extract these particles again with --only_do_unfinished.",
    "result-unpacked": "Run relion_pseudosubtomo unpack again: it makes all files of a job with "
    "--no_mrc anew.",
    "result-format": "RELION reads such files, other programs may not; this one writes none.",
    "result-size": "The image file is not from this extraction: extract again.",
    "result-mode": "The image file is not from this extraction: extract again.",
    "result-pixel-size": "The image file or data_optics is not from this extraction.",
    "result-shared": "Sets were joined whose files overwrite each other: extract again from the "
    "joined set.",
    "result-name": "Rows were mixed up, or particles renamed: make rlnImageName fit again.",
    "result-table": "Correct the entry, or use the table of the extraction.",
    "result-stacks": "RELION would read the 2D stacks as volumes: verify --repair corrects it.",
    "result-optics": "RELION would take the images for others than they are: correct the column, "
    "or use data_optics of the extraction.",
    "result-tomogram": "Use the tomogram set of the extraction.",
    "result-visible": "verify --repair computes it anew.",
    "result-frames": "Use the tomogram set of the extraction; verify --repair computes it anew.",
    "result-slices": "A refinement would pair images with the wrong tilts: verify --repair "
    "computes it anew.",
    "result-geometry": "Images would be paired with the wrong tilts: verify --repair computes it "
    "anew.",
    "result-unchecked": "Restore these images, or start where they are, to check and repair which "
    "frames are visible; a refinement does not need them.",
    "result-repair": "Nothing was written; give the tomogram set of the extraction, and its "
    "--max_dose for images without completion records here.",
    "result-record": "Continue the extraction with --only_do_unfinished.",
    "result-changed": "The files were touched after the extraction: read them with --deep, or "
    "extract again.",
    "result-elsewhere": "Verify in the project's directory; the tables of a directory that was "
    "copied or renamed name its former place.",
    "result-orphan": "Left by another program, a former run or a tomogram that failed; remove "
    "them if nothing needs them.",
    "result-not-finite": "Look for such pixels in the tilt images, and extract again.",
    "result-constant": "Look at the tilt images and the CTF of these frames; if they are good, the "
    "file is damaged: extract again.",
    "result-negative": "The file is damaged: extract again.",
    "result-values": "The file is damaged, or was changed: extract again.",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or looks wrong, in the input.

    Attributes
    ----------
    code : str
        Short stable name, a key of `ADVICE`.
    severity : {"error", "warning"}
        Errors stop a run before any work; warnings do not.
    message : str
        `<what> in <file>[, table T][, row R]: expected <x>, found <y>`.
    """

    code: str
    severity: str
    message: str

    def __str__(self) -> str:
        """Return the line a user sees."""
        return f"{self.severity} {self.text}"

    @property
    def text(self) -> str:
        """The same without the severity, for a log that shows it anyway."""
        return f"[{self.code}] {self.message}. {ADVICE[self.code]}"


@dataclass
class Findings:
    """A growing list of findings; what is wrong is collected, not raised one at a time."""

    items: list[Finding] = field(default_factory=list)

    def error(self, code: str, what: str, **place: Any) -> None:
        """Add an error; `place` as for `describe`."""
        self.items.append(Finding(code, "error", describe(what, **place)))

    def warning(self, code: str, what: str, **place: Any) -> None:
        """Add a warning; `place` as for `describe`."""
        self.items.append(Finding(code, "warning", describe(what, **place)))

    def extend(self, other: Findings) -> None:
        """Append the findings of another list."""
        self.items.extend(other.items)

    def as_warnings(self) -> Findings:
        """Return the same findings, all of them warnings."""
        return Findings([replace(finding, severity="warning") for finding in self.items])

    @property
    def errors(self) -> list[Finding]:
        """The findings that stop a run."""
        return [finding for finding in self.items if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """The findings that do not stop a run."""
        return [finding for finding in self.items if finding.severity == "warning"]

    def __iter__(self) -> Iterator[Finding]:
        """Iterate in the order in which things were found."""
        return iter(self.items)


def describe(
    what: str,
    *,
    file: object = None,
    table: str | None = None,
    row: object = None,
    line: object = None,
    tomogram: str | None = None,
    particle: str | None = None,
    expected: object = None,
    found: object = None,
) -> str:
    """Return `<what> in <file>, table T, row R, ...: expected <x>, found <y>`.

    Parameters
    ----------
    what : str
        What is wrong, without a full stop.
    file, table, row, line, tomogram, particle
        Where. Rows count from 1 within their table, lines from 1 within their file.
    expected, found
        What a good file holds there, and what this one does.
    """
    places = [
        f"table {table or '(unnamed)'}" if table is not None else "",
        f"row {row}" if row is not None else "",
        f"line {line}" if line is not None else "",
        f"tomogram {tomogram}" if tomogram is not None else "",
        f"particle {particle}" if particle is not None else "",
    ]
    place = ", ".join(([f"in {file}"] if file is not None else []) + [p for p in places if p])
    text = what if not place else f"{what} {place}" if file is not None else f"{what} ({place})"
    values = [
        f"expected {expected}" if expected is not None else "",
        f"found {found}" if found is not None else "",
    ]
    value = ", ".join(v for v in values if v)
    return f"{text}: {value}" if value else text


def list_first(values: Iterable[object], limit: int = 10) -> str:
    """Return the first values, and how many there are: `3, 4, 9, ... (25 in all)`.

    Of many whole numbers that follow each other, ends: `3-27, 40 (26 in all)`.
    """
    listed = list(values)
    if len(listed) <= limit:
        return ", ".join(map(str, listed))
    texts = _join_runs(listed) if all(isinstance(v, Integral) for v in listed) else listed
    rest = ", ..." if len(texts) > limit else ""
    return f"{', '.join(map(str, texts[:limit]))}{rest} ({len(listed)} in all)"


def _join_runs(numbers: list[Any]) -> list[str]:
    """Return `first-last` for numbers that follow each other, and each of the others."""
    runs: list[list[int]] = []
    for number in map(int, numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs]


def counted(n: int, noun: str) -> str:
    """Return a number and what it counts: `1 particle`, `2 particles`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def count_findings(findings: Findings) -> str:
    """Return how many errors and warnings there are."""
    return f"{counted(len(findings.errors), 'error')}, {counted(len(findings.warnings), 'warning')}"


def bytes_text(n_bytes: float) -> str:
    """Return a number of bytes in the largest unit of which it has one: `3.20 MB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.2f} {unit}"
    return f"{n_bytes:.0f} bytes"


def shorten(findings: Findings, limit: float = 10) -> tuple[list[Finding], list[str]]:
    """Return all findings, errors first, but of each code at most `limit`, and how many more."""
    shown: list[Finding] = []
    counts: Counter[str] = Counter()
    for finding in [*findings.errors, *findings.warnings]:
        counts[finding.code] += 1
        if counts[finding.code] <= limit:
            shown.append(finding)
    return shown, [f"and {n - limit} more of [{code}]" for code, n in counts.items() if n > limit]


def format_findings(findings: Findings, limit: float = 10) -> str:
    """Return all findings, errors first, one a line, and of each code at most `limit`."""
    shown, more = shorten(findings, limit)
    return "\n".join([*map(str, shown), *more])
