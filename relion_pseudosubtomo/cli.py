"""The command line: RELION's option names, grouped, with units and defaults (spec 5)."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

# one thread each: the program's own threads use the cores (read by NumPy when it is imported)
for _pool in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
    os.environ.setdefault(_pool, "1")

from relion_pseudosubtomo import __version__  # noqa: E402
from relion_pseudosubtomo.errors import PseudoSubtomoError, UsageError  # noqa: E402
from relion_pseudosubtomo.options import DIALECTS, JobOptions  # noqa: E402

if TYPE_CHECKING:
    from relion_pseudosubtomo.parallel.world import Pool
    from relion_pseudosubtomo.run import Start
    from relion_pseudosubtomo.worker import SharedJob

logger = logging.getLogger("relion_pseudosubtomo")

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

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


#: Every option by group, in the order of --help.
OPTION_GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "input and output": {
        "--i": _file("optimisation_set", "optimisation set"),
        "--p": _file("particles", "particle set (overrides --i)"),
        "--t": _file("tomograms", "tomogram set (overrides --i)"),
        "--mot": _file("trajectories", "trajectory set (overrides --i)"),
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
        "--overwrite": _flag("remove the results of an earlier run first"),
        "--dry_run": _flag("check, print the plan, write nothing"),
        "--allow_failures": _flag("skip tomograms that cannot be read, merge the others"),
        "--no_split": _flag("never give one tomogram to several ranks"),
        "--ignore_disk_space": _flag("start even if the disk seems too full"),
        "--pipeline_control": {"metavar": "DIR", "help": "RELION's job directory, for exit files"},
        "--log_level": {
            "choices": ("debug", "info", "warning", "error"),
            "default": "info",
            "help": "what the log shows (info)",
        },
        "--debug": _flag("tracebacks and stage timings; sets --log_level debug"),
        "--theme": {"metavar": "NAME", "help": "accepted, changes nothing"},
        "--diag": _flag("accepted, changes nothing"),
        "--env": _number(float, None, "accepted, changes nothing"),
        "--version": {"action": "version", "version": f"%(prog)s {__version__}"},
        "--help": {"action": "help", "help": "show this help and exit"},
    },
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors name the nearest known option."""

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of leaving the program."""
        raise UsageError(message)

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Raise an error that names the nearest known option."""
        known = [*self._option_string_actions, *SUBCOMMANDS]
        raise UsageError(
            "; ".join(f"unknown option {w}{_nearest(w.split('=')[0], known)}" for w in words)
        )


def _nearest(word: str, known: Iterable[str]) -> str:
    """Return a question for the known word that is nearest, if any is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def build_parser(command: str = "", description: str = DESCRIPTION) -> Parser:
    """Return the parser of an extraction, or of a command that has its options."""
    parser = Parser(
        prog=f"relion_pseudosubtomo {command}".rstrip(),
        usage="%(prog)s --p FILE --t FILE --b INT --o DIR [options]",
        description=description,
        epilog=EPILOG
        + "".join(
            f"\n  relion_pseudosubtomo {name} --help\n      {subcommand.summary}\n"
            for name, subcommand in SUBCOMMANDS.items()
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    for title, options in OPTION_GROUPS.items():
        group = parser.add_argument_group(title)
        for name, details in options.items():
            group.add_argument(*(("-h", name) if name == "--help" else (name,)), **details)
    return parser


def parse_options(arguments: Sequence[str], parser: Parser | None = None) -> JobOptions:
    """Return the options of a command line, by default of an extraction.

    Raises
    ------
    UsageError
        On unknown or missing options and values of the wrong kind.
    """
    parser = build_parser() if parser is None else parser
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.unknown(unknown)
    values = vars(known)
    ignored = [name for name in ("theme", "diag", "env") if values.pop(name) not in (None, False)]
    if ignored:
        logger.info("Accepted without effect: %s", ", ".join(f"--{name}" for name in ignored))
    if values["crop"] is None or values["crop"] < 0:  # RELION's own default is -1
        values["crop"] = values["box"]
    values["dialects"] = tuple(name for name in DIALECTS if name in values["dialects"])
    if values["debug"]:
        values["log_level"] = "debug"
    if not values["output"]:
        parser.error("--o is empty: expected a directory")
    return JobOptions(**values)


def configure_logging(level: str) -> None:
    """Send messages to standard output, warnings and errors to standard error (spec 4.3)."""
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(level.upper())
    plain = logging.StreamHandler(sys.stdout)
    plain.addFilter(lambda record: record.levelno < logging.WARNING)
    plain.setFormatter(logging.Formatter("%(message)s"))
    loud = logging.StreamHandler(sys.stderr)
    loud.setLevel(logging.WARNING)
    loud.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(plain)
    logger.addHandler(loud)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status (spec 4.5)."""
    from relion_pseudosubtomo.parallel.launch import speaks_for_all

    words = list(sys.argv[1:] if arguments is None else arguments)
    configure_logging("info")
    # values that are not finite are counted, and named, by the program itself
    warnings.filterwarnings("ignore", ".* encountered in ", RuntimeWarning)
    hint = ""
    try:
        if words and words[0] in SUBCOMMANDS:
            return _run_subcommand(words[0], words[1:])
        hint = " relion_pseudosubtomo --help lists the options."
        if words and not words[0].startswith("-"):
            hint = f" Commands are {', '.join(SUBCOMMANDS)};{hint}"
            raise UsageError(f"unknown command {words[0]}{_nearest(words[0], SUBCOMMANDS)}")
        options = parse_options(words)
        hint = ""
        return _run(options, ["relion_pseudosubtomo", *words])
    except UsageError as error:
        if speaks_for_all(os.environ):
            logger.error("%s.%s", error, hint)
            _tell_pipeline(words)
        return EXIT_USAGE
    except SystemExit as leave:  # --help and --version
        return int(leave.code or 0)


@dataclass(frozen=True)
class Subcommand:
    """What the first word of a command line can ask for instead of an extraction.

    Attributes
    ----------
    summary : str
        One line for --help.
    run : callable
        Takes the words behind the first, returns the exit status. Runs in one process.
    """

    summary: str
    run: Callable[[list[str]], int]


def _run_check(words: list[str]) -> int:
    from relion_pseudosubtomo.check import check

    return check(parse_options(words, build_parser("check", SUBCOMMANDS["check"].summary)))


def build_verify_parser() -> Parser:
    """Return the parser of `verify`."""
    parser = Parser(
        prog="relion_pseudosubtomo verify",
        description=SUBCOMMANDS["verify"].summary,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("directory", metavar="DIR", help="output directory of the extraction")
    for names, details in (
        (
            ("--particles", "--p"),
            _file("particles", "verify this particle set, as another program left it (DIR's own)"),
        ),
        (("--t",), _file("tomograms", "tomogram set (that of DIR/optimisation_set.star)")),
        (("--mot",), _file("trajectories", "trajectory set (the same)")),
        (("--max_dose",), _number(float, None, "that of the extraction, for RELION's directories")),
        (("--deep",), _flag("read all values: finite, not constant, weights not negative")),
        (
            ("--repair",),
            _flag("write DIR/particles_repaired.star, rlnTomoVisibleFrames computed anew"),
        ),
        (("-h", "--help"), {"action": "help", "help": "show this help and exit"}),
    ):
        parser.add_argument(*names, **details)
    return parser


def build_report_parser() -> Parser:
    """Return the parser of `report`."""
    parser = Parser(
        prog="relion_pseudosubtomo report",
        description=SUBCOMMANDS["report"].summary,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("directory", metavar="DIR", help="output directory of the extraction")
    parser.add_argument(
        "--tomograms",
        **_number(int, None, "show pictures of so many tomograms at most (30)", dest="n_shown"),
    )
    parser.add_argument("-h", "--help", action="help", help="show this help and exit")
    return parser


def _run_report(words: list[str]) -> int:
    from relion_pseudosubtomo.report.packages import require_packages

    parser = build_report_parser()
    known, unknown = parser.parse_known_args(words)
    if unknown:
        parser.unknown(unknown)
    if known.n_shown is not None and known.n_shown < 0:
        parser.error("--tomograms: expected 0 or more")
    require_packages()
    from relion_pseudosubtomo.report.page import SHOWN, make_report

    n_shown = SHOWN if known.n_shown is None else known.n_shown
    logger.info("Wrote %s", make_report(known.directory, n_shown))
    return 0


def _run_verify(words: list[str]) -> int:
    from relion_pseudosubtomo.verification.command import verify
    from relion_pseudosubtomo.verification.results import Request

    parser = build_verify_parser()
    known, unknown = parser.parse_known_args(words)
    if unknown:
        parser.unknown(unknown)
    return verify(Request(**vars(known)))


def _run_unpack(words: list[str]) -> int:
    from relion_pseudosubtomo.unpack import unpack

    parser = Parser(
        prog="relion_pseudosubtomo unpack",
        description=SUBCOMMANDS["unpack"].summary,
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="DIR", help="output directory of the extraction")
    known, unknown = parser.parse_known_args(words)
    if unknown:
        parser.unknown(unknown)
    return unpack(known.directory)


#: First word -> what it does; without one of these the program extracts.
SUBCOMMANDS = {
    "check": Subcommand(
        "Check all input of a job, given by the options of its run, and write nothing.", _run_check
    ),
    "verify": Subcommand(
        "Check the files of a finished extraction: all there, valid, and fitting the tables.",
        _run_verify,
    ),
    "unpack": Subcommand(
        "Make the MRC files of an extraction with --hdf5 --no_mrc, bit for bit as without.",
        _run_unpack,
    ),
    "report": Subcommand(
        "Make report.html of a finished extraction, or make it again.", _run_report
    ),
}


def _run_subcommand(name: str, words: list[str]) -> int:
    """Run a command in the one process that speaks; a launcher's other processes do nothing."""
    from relion_pseudosubtomo.parallel.launch import speaks_for_all

    if not speaks_for_all(os.environ):
        return 0
    try:
        return SUBCOMMANDS[name].run(words)
    except UsageError as error:
        raise UsageError(f"{error}. relion_pseudosubtomo {name} --help lists the options") from None
    except (PseudoSubtomoError, OSError) as error:
        logger.error("%s", error)
        return EXIT_FAILED


def _tell_pipeline(words: list[str]) -> None:
    """Leave RELION's failure file, where a command line that is wrong names the job directory."""
    from relion_pseudosubtomo.pipeline import FAILURE, PipelineControl

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--pipeline_control")
    with contextlib.suppress(argparse.ArgumentError):
        control = PipelineControl(parser.parse_known_args(words)[0].pipeline_control)
        control.start()
        control.finish(FAILURE)


def _run(options: JobOptions, command: list[str]) -> int:
    """Run a job on all ranks; return the exit status of this one."""
    # imported here so that --help does not wait for the numerics
    from relion_pseudosubtomo.parallel.launch import open_world, usable_cores
    from relion_pseudosubtomo.parallel.threads import resolve_threads
    from relion_pseudosubtomo.pipeline import FAILURE, PipelineControl
    from relion_pseudosubtomo.run import Start
    from relion_pseudosubtomo.signals import StopSignals
    from relion_pseudosubtomo.task_work import TaskWork

    world = open_world(os.environ)
    configure_logging(options.log_level if world.rank == 0 else "error")

    @functools.cache
    def count_threads(n_sharing: int) -> int:
        threads, warning = resolve_threads(
            options.threads, os.environ, len(usable_cores()), n_sharing
        )
        if warning:
            logger.warning("%s", warning)
        return threads

    with StopSignals() as signals:

        def main_rank(pool: Pool) -> int:
            control = PipelineControl(options.pipeline_control)
            threads = count_threads(pool.n_sharing)
            return _run_here(options, Start(command, control, signals.wanted, threads), pool)

        def make_work(shared: SharedJob, n_sharing: int) -> TaskWork:
            return TaskWork(shared, count_threads(n_sharing))

        def on_abort() -> None:
            PipelineControl(options.pipeline_control).finish(FAILURE)

        return world.lead(main_rank, make_work, signals.wanted, on_abort)


def _run_here(options: JobOptions, start: Start, pool: Pool) -> int:
    """Run a job on the rank that leads; errors that a user can cause become messages."""
    from relion_pseudosubtomo.pipeline import ABORTED, FAILURE, SUCCESS
    from relion_pseudosubtomo.run import run_job

    status = EXIT_FAILED
    try:
        start.control.start()
        status = run_job(options, start, pool)
    except PseudoSubtomoError as error:
        logger.error("%s", error, exc_info=options.debug)
    except KeyboardInterrupt:
        logger.error("Interrupted: what was finished stays, no particles.star was written.")
        status = EXIT_INTERRUPTED
    except OSError as error:
        logger.error("%s", error, exc_info=options.debug)
    finally:
        aborted = start.control.abort_wanted()
        start.control.finish(SUCCESS if status == 0 else ABORTED if aborted else FAILURE)
    return status


if __name__ == "__main__":
    sys.exit(main())
