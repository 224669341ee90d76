"""The program's entry: which command is meant, its messages and its exit status (spec 4.5)."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

# one thread each: the program's own threads use the cores (read by NumPy when it is imported)
for _pool in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
    os.environ.setdefault(_pool, "1")

from relion_pseudosubtomo.arguments import (  # noqa: E402
    build_directory_parser,
    nearest,
    parse_options,
)
from relion_pseudosubtomo.errors import LockedError, PseudoSubtomoError, UsageError  # noqa: E402

if TYPE_CHECKING:
    from relion_pseudosubtomo.extraction import Start
    from relion_pseudosubtomo.options import JobOptions
    from relion_pseudosubtomo.parallel.world import Pool
    from relion_pseudosubtomo.signals import StopSignals
    from relion_pseudosubtomo.worker import SharedJob

logger = logging.getLogger("relion_pseudosubtomo")

#: Seconds that ranks which refuse to work give each other.
_FAREWELL = 3.0

#: Characters of a name that are shown.
_SHOWN = 60

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def configure_logging(level: str) -> None:
    """Send messages to standard output, warnings and errors to standard error (spec 4.3)."""
    logging.raiseExceptions = False  # a log that cannot be written is no reason for tracebacks
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(level.upper())
    plain = logging.StreamHandler(sys.stdout)
    plain.addFilter(lambda record: record.levelno < logging.WARNING)
    plain.setFormatter(logging.Formatter("%(message)s"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # as standard error is: names of any locale
    loud = logging.StreamHandler(sys.stderr)
    loud.setLevel(logging.WARNING)
    loud.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(plain)
    logger.addHandler(loud)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status (spec 4.5)."""
    from relion_pseudosubtomo.parallel.launch import speaks_for_all

    words = list(sys.argv[1:] if arguments is None else arguments)
    configure_logging("info" if speaks_for_all(os.environ) else "error")
    # values that are not finite are counted, and named, by the program itself
    warnings.filterwarnings("ignore", ".* encountered in ", RuntimeWarning)
    hint = ""
    try:
        if words and words[0] in SUBCOMMANDS:
            return _run_subcommand(words[0], words[1:])
        hint = " relion_pseudosubtomo --help lists the options."
        if words and not words[0].startswith("-"):
            hint = f" Commands are {', '.join(SUBCOMMANDS)};{hint}"
            raise UsageError(f"unknown command {words[0]}{nearest(words[0], SUBCOMMANDS)}")
        options = parse_options(words)
        hint = ""
        return _run(options, ["relion_pseudosubtomo", *words])
    except UsageError as error:
        if speaks_for_all(os.environ):
            logger.error("%s.%s", error, hint)
            _tell_pipeline(words)
        _wait_for_slower_ranks()
        return EXIT_USAGE
    except SystemExit as leave:  # --help and --version
        return int(leave.code or 0)
    except KeyboardInterrupt:
        logger.error("Interrupted")
        return EXIT_INTERRUPTED


def _run_check(words: list[str]) -> int:
    from relion_pseudosubtomo.check import check

    return check(parse_options(words, "check"))


def _run_verify(words: list[str]) -> int:
    from relion_pseudosubtomo.verification.command import verify
    from relion_pseudosubtomo.verification.results import Request

    return verify(Request(**build_directory_parser("verify").parse(words)))


def _run_unpack(words: list[str]) -> int:
    from relion_pseudosubtomo.unpack import unpack

    return unpack(**build_directory_parser("unpack").parse(words))


def _run_report(words: list[str]) -> int:
    from relion_pseudosubtomo.report.packages import require_packages

    parser = build_directory_parser("report")
    values = parser.parse(words)
    n_shown = values["n_shown"]
    if n_shown is not None and n_shown < 0:
        parser.error("--tomograms: expected 0 or more")
    require_packages()
    from relion_pseudosubtomo.report.page import SHOWN, make_report

    made = make_report(values["directory"], SHOWN if n_shown is None else n_shown)
    logger.info("Wrote %s", made)
    return 0


#: First word -> what runs it, in one process; without one of these the program extracts.
SUBCOMMANDS: dict[str, Callable[[list[str]], int]] = {
    "check": _run_check,
    "verify": _run_verify,
    "unpack": _run_unpack,
    "report": _run_report,
}


def _run_subcommand(name: str, words: list[str]) -> int:
    """Run a command in the one process that speaks; a launcher's other processes do nothing."""
    from relion_pseudosubtomo.parallel.launch import speaks_for_all

    if not speaks_for_all(os.environ):
        return 0
    try:
        return SUBCOMMANDS[name](words)
    except UsageError as error:
        raise UsageError(f"{error}. relion_pseudosubtomo {name} --help lists the options") from None
    except (PseudoSubtomoError, OSError, UnicodeEncodeError) as error:
        logger.error("%s", _describe(error))
        return EXIT_FAILED


def _wait_for_slower_ranks() -> None:
    """Leave no launcher a reason to end the rank that speaks, or those that start late.

    Some end all ranks as soon as one has left with an error (srun --kill-on-bad-exit).
    """
    from relion_pseudosubtomo.parallel.launch import expected_ranks

    if expected_ranks(os.environ) > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(_FAREWELL)


def _describe(error: Exception) -> str:
    """Return an error's text; where the locale has no letters for a file's name, what to set."""
    if not isinstance(error, UnicodeEncodeError):
        return str(error)
    return (
        f"{error.object[:_SHOWN]!a} cannot be the name of a file in this locale's encoding, "
        f"{error.encoding}: set LC_ALL=C.UTF-8, or PYTHONUTF8=1"
    )


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
    from relion_pseudosubtomo.signals import StopSignals

    # first of all: importing the rest takes a while, and a rank that left while MPI starts would
    # let the others wait for ever
    with StopSignals() as signals:
        return _run_ranks(options, command, signals)


def _run_ranks(options: JobOptions, command: list[str], signals: StopSignals) -> int:
    # imported here so that --help does not wait for the numerics
    from relion_pseudosubtomo.extraction import Start
    from relion_pseudosubtomo.parallel.launch import open_world, usable_cores
    from relion_pseudosubtomo.parallel.threads import resolve_threads
    from relion_pseudosubtomo.pipeline import FAILURE, PipelineControl
    from relion_pseudosubtomo.task_work import TaskWork

    world = open_world(os.environ)
    signals.keeps_status = world.size > 1
    configure_logging(options.log_level if world.rank == 0 else "error")

    @functools.cache
    def count_threads(n_sharing: int) -> int:
        threads, warning = resolve_threads(
            options.threads, os.environ, len(usable_cores()), n_sharing
        )
        if warning:
            logger.warning("%s", warning)
        return threads

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
    except (PseudoSubtomoError, OSError, UnicodeEncodeError) as error:
        if isinstance(error, LockedError):
            start.control.leave_to_holder(options.output)
        logger.error("%s", _describe(error), exc_info=options.debug)
    except KeyboardInterrupt:
        has_tables = os.path.exists(os.path.join(options.output, "particles.star"))
        missing = "" if has_tables else ", no particles.star was written"
        logger.error("Interrupted: what was finished stays%s.", missing)
        status = EXIT_INTERRUPTED
    finally:
        aborted = start.control.abort_wanted()
        start.control.finish(SUCCESS if status == 0 else ABORTED if aborted else FAILURE)
    return status


if __name__ == "__main__":
    sys.exit(main())
