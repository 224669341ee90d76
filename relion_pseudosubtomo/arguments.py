"""The options of the command line: RELION's names, grouped, with units and defaults (spec 5)."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from relion_pseudosubtomo import __version__
from relion_pseudosubtomo.errors import UsageError
from relion_pseudosubtomo.options import DIALECTS, JobOptions

logger = logging.getLogger("relion_pseudosubtomo")

DESCRIPTION = """\
Extract subtomograms for RELION: the job of relion_tomo_subtomo, with the same options.

For each particle the box around its projection is cut out of every tilt image, binned, shifted to
the exact centre, multiplied by the CTF and the dose weight, and written as a stack of 2D images
(--stack2d) or as a 3D pseudo-subtomogram. Start it in the RELION project directory: paths in STAR
files are relative to it.
"""

EPILOG = """\
example:
  relion_pseudosubtomo --p Picks/job007/particles.star --t Tomograms/job008/tomograms.star \\
      --b 192 --crop 96 --bin 4 --o PseudoSubtomo/job009/ --j 8
"""


def _flag(text: str) -> dict[str, Any]:
    return {"action": "store_true", "help": text}


def _number(kind: type, default: object, text: str, **more: object) -> dict[str, Any]:
    metavar = "INT" if kind is int else "REAL"
    shown = text if default is None else f"{text} ({default:g})"
    return {"type": kind, "default": default, "metavar": metavar, "help": shown, **more}


def _file(dest: str, text: str) -> dict[str, Any]:
    return {"dest": dest, "metavar": "FILE", "help": text}


_HELP = {"action": "help", "help": "show this help and exit"}

#: Every option of an extraction by group, in the order of --help.
OPTION_GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "input and output": {
        "--i": _file("optimisation_set", "optimisation set"),
        "--p": _file("particles", "particle set (overrides --i)"),
        "--t": _file("tomograms", "tomogram set (overrides --i)"),
        "--mot": _file("trajectories", "trajectory set (overrides --i); None: use none"),
        "--o": {
            "dest": "output",
            "metavar": "DIR",
            "required": True,
            "help": "output directory (needed)",
        },
    },
    "box and binning": {
        "--b": _number(int, None, "box size, binned pixels (needed)", dest="box", required=True),
        "--crop": _number(int, None, "output box size, binned pixels (--b)"),
        "--bin": _number(float, 1.0, "binning factor", dest="binning"),
        "--exact_centre": _flag(
            "exact centre and scale for any --b, --bin and tomogram size; RELION's are a little off"
        ),
    },
    "frames and particles": {
        "--max_dose": _number(
            float, -1.0, "leave out frames with more pre-exposure, e/A^2; 0 or less: none"
        ),
        "--min_frames": _number(int, 1, "visible frames a particle needs"),
        "--common_tilts": _number(
            int, None, "use the N frames of lowest dose alone, and particles visible in all N"
        ),
        "--max_missing": _number(
            int, None, "leave out particles invisible in more frames within --max_dose than this"
        ),
        "--only_tomogram": {"metavar": "NAME", "help": "extract from this tomogram only"},
        "--rename_duplicates": _flag("give particles of one name names of their own"),
    },
    "processing": {
        "--no_ctf": _flag("do not multiply by the CTF and the dose weight"),
        "--no_ic": _flag("do not invert the contrast"),
        "--whiten": _flag("whiten the noise"),
        "--no_circle_crop": _flag("do not crop the images to a circle"),
        "--circle_precrop": _flag("crop the unbinned window to a circle as well"),
        "--grid_precorr": _flag("correct for the trilinear interpolation of a reconstruction"),
        "--dont_apply_offsets": _flag("do not move the boxes by rlnOriginX/Y/ZAngst"),
        "--apply_orientations": _flag("turn the boxes by rlnAngleRot/Tilt/Psi; applies offsets"),
        "--cone_weight": _flag("down-weight a double cone along Z in Fourier space (3D only)"),
        "--cone_angle": _number(float, 10.0, "full opening of the cone, degrees"),
        "--cone_sig0": _number(float, 2.0, "width of the cone at the origin, voxels"),
        "--cutoff_fract": _number(float, 0.01, "insert nothing where the dose weight is below"),
    },
    "what is written": {
        "--stack2d": _flag("2D image stacks instead of 3D pseudo-subtomograms"),
        "--real_subtomo": _flag("true subtomograms from the reconstructed volume, re-projected"),
        "--float16": _flag("half-precision images, MRC mode 12"),
        "--ctf": _flag("also the CTF^2 volumes, _CTF2.mrc (3D only)"),
        "--multi": _flag("also the multiplicity volumes, _multi.mrc (3D only)"),
        "--nrm": _flag("also volumes divided by the multiplicity, _*_nrm.mrc (3D only)"),
        "--div": _flag("also CTF-corrected volumes, _div.mrc (3D only)"),
        "--no_comb": _flag("no _weights.mrc (3D only)"),
        "--sum": _flag("also the sum of all pseudo-subtomograms, sum_*.mrc (3D only)"),
        "--average": _flag("also half maps and their FSC, by the particles' present orientations"),
        "--SNR": _number(float, -1.0, "for --div and --sum: Wiener filter if above 0", dest="snr"),
        "--taper": _number(float, 5.0, "soft edge of _div.mrc, binned pixels"),
        "--no_center": _flag("do not subtract the mean in _div.mrc"),
        "--no_writing": _flag("compute everything, write no particle and no STAR files"),
        "--for": {
            "dest": "dialects",
            "action": "append",
            "choices": tuple(DIALECTS),
            "default": [],
            "metavar": "NAME",
            "help": f"also what {', '.join(DIALECTS)} reads, for_NAME/; may be repeated",
        },
        "--hdf5": _flag("also one HDF5 file a tomogram, joined by particles.h5; sets --no_split"),
        "--no_mrc": _flag("no MRC files beside the HDF5 files; `unpack DIR` makes them later"),
        "--hdf5_compression": _number(
            int, 0, "compress the HDF5 files: gzip level, 1 to 9; 0: leave them as they are"
        ),
        "--positions2d": _flag("also where each particle lies in each tilt image, positions2d/"),
        "--report": _flag("also report.html: one page with pictures of all that was done"),
    },
    "running": {
        "--j": _number(int, None, "threads (the cores available)", dest="threads"),
        "--prebin": _flag("make tilt images smaller first where that is faster: hardly different"),
        "--preload": _flag("read tilt images in full instead of mapping them (network disks)"),
        "--only_do_unfinished": _flag("continue: do what has no completion record"),
        "--overwrite": _flag(
            "remove the results of an earlier run first, with --only_tomogram those of this one"
        ),
        "--dry_run": _flag("check, print the plan, write nothing"),
        "--allow_failures": _flag(
            "leave out tomograms that cannot be read or that fail, merge the others"
        ),
        "--no_split": _flag("never give one tomogram to several ranks"),
        "--ignore_disk_space": _flag("start even if the disk seems too full"),
        "--pipeline_control": {"metavar": "DIR", "help": "RELION's job directory, for exit files"},
        "--log_level": {
            "choices": ("debug", "info", "warning", "error"),
            "default": "info",
            "help": "what the log shows (info)",
        },
        "--debug": _flag("tracebacks of errors; sets --log_level debug"),
        "--theme": {"metavar": "NAME", "help": "accepted, changes nothing"},
        "--diag": _flag("accepted, changes nothing"),
        "--env": _number(float, None, "accepted, changes nothing"),
        "--version": {"action": "version", "version": f"%(prog)s {__version__}"},
        "--help": _HELP,
    },
}


#: First word of a command line that does something else than extract -> what that is.
SUMMARIES = {
    "check": "Check all input of a job, given by the options of its run, and write nothing.",
    "verify": "Check the files of a finished extraction: all there, valid, and fitting the tables.",
    "unpack": "Make the MRC files of an extraction with --hdf5 --no_mrc, bit for bit as without.",
    "report": "Make report.html of a finished extraction, or make it again.",
}

#: The options of those that take an output directory.
_DIRECTORY_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "verify": {
        "--particles": _file(
            "particles", "verify this particle set, as another program left it (DIR's own)"
        ),
        "--t": _file("tomograms", "tomogram set (that of DIR/optimisation_set.star)"),
        "--mot": _file("trajectories", "trajectory set (the same); None: use none"),
        "--max_dose": _number(float, None, "that of the extraction, where no records in DIR tell"),
        "--deep": _flag("read all values: finite, not constant, weights not negative"),
        "--repair": _flag("write DIR/particles_repaired.star, rlnTomoVisibleFrames computed anew"),
    },
    "unpack": {"--ignore_disk_space": _flag("start even if the disk seems too full")},
    "report": {
        "--tomograms": _number(
            int, None, "show pictures of so many tomograms at most (30)", dest="n_shown"
        ),
    },
}

#: Other names of options.
_SHORT = {"--help": "-h", "--particles": "--p"}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors name the nearest known option."""

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of leaving the program."""
        raise UsageError(message)

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the values by their names.

        Raises
        ------
        UsageError
            On unknown or missing options and values of the wrong kind.
        """
        values, unknown = self.parse_known_args(words)
        if unknown:
            known = [*self._option_string_actions, *SUMMARIES]
            raise UsageError(
                "; ".join(f"unknown option {w}{nearest(w.split('=')[0], known)}" for w in unknown)
            )
        return vars(values)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a question for the known word that is nearest, if any is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f" (did you mean {near[0]}?)" if near else ""


def build_parser(command: str = "") -> Parser:
    """Return the parser of an extraction, or of the command that has its options."""
    parser = Parser(
        prog=f"relion_pseudosubtomo {command}".rstrip(),
        usage="%(prog)s --p FILE --t FILE --b INT --o DIR [options]",
        description=SUMMARIES.get(command, DESCRIPTION),
        epilog=EPILOG
        + "".join(
            f"\n  relion_pseudosubtomo {name} --help\n      {summary}\n"
            for name, summary in SUMMARIES.items()
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    for title, options in OPTION_GROUPS.items():
        _add_options(parser.add_argument_group(title), options)
    return parser


def build_directory_parser(command: str) -> Parser:
    """Return the parser of a command that takes an output directory."""
    parser = Parser(
        prog=f"relion_pseudosubtomo {command}",
        description=SUMMARIES[command],
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("directory", metavar="DIR", help="output directory of the extraction")
    _add_options(parser, {**_DIRECTORY_OPTIONS[command], "--help": _HELP})
    return parser


def _add_options(group: argparse._ActionsContainer, options: Mapping[str, dict[str, Any]]) -> None:
    for name, details in options.items():
        names = (_SHORT[name], name) if name in _SHORT else (name,)
        group.add_argument(*names, **details)


def parse_options(words: Sequence[str], command: str = "") -> JobOptions:
    """Return the options of a command line, by default of an extraction.

    Raises
    ------
    UsageError
        On unknown or missing options and values of the wrong kind.
    """
    parser = build_parser(command)
    values = parser.parse(words)
    ignored = [name for name in ("theme", "diag", "env") if values.pop(name) not in (None, False)]
    if ignored:
        logger.info("Accepted without effect: %s", ", ".join(f"--{name}" for name in ignored))
    if values["crop"] is None or values["crop"] < 0:  # RELION's own default is -1
        values["crop"] = values["box"]
    values["dialects"] = tuple(name for name in DIALECTS if name in values["dialects"])
    if values["debug"]:
        values["log_level"] = "debug"
    _check_output(values["output"], parser)
    return JobOptions(**values)


def _check_output(output: str, parser: Parser) -> None:
    """Check that the names of images, which begin with --o, can stand in a STAR file."""
    if not output:
        parser.error("--o is empty: expected a directory")
    try:
        text = os.fsencode(output).decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable() or "@" in text:
        parser.error(f"--o {output!a}: expected UTF-8 without control characters and without @")
