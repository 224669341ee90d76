"""The command line: options, defaults, help, errors and exit status (spec 5, 4.5)."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from relion_pseudosubtomo import __version__
from relion_pseudosubtomo.arguments import OPTION_GROUPS, build_parser, parse_options
from relion_pseudosubtomo.cli import main
from relion_pseudosubtomo.errors import UsageError
from relion_pseudosubtomo.options import JobOptions

#: The least that a job needs.
NEEDED = ["--b", "64", "--o", "out/"]

#: RELION's names, which have to work with only the program's name changed.
RELION_OPTIONS = """
--i --p --t --mot --o --b --crop --bin --stack2d --float16 --max_dose --min_frames
--cone_weight --cone_angle --cone_sig0 --whiten --no_ctf --no_ic
--no_circle_crop --circle_precrop --grid_precorr --cutoff_fract
--dont_apply_offsets --apply_orientations --ctf --multi --div --nrm --no_comb
--SNR --taper --no_center --sum --no_writing --only_do_unfinished --j
--pipeline_control --theme --diag --env --only_tomogram --debug --real_subtomo
"""
#: This program's own.
OWN_OPTIONS = (
    "--overwrite --dry_run --allow_failures --no_split --ignore_disk_space --log_level"
    " --exact_centre --rename_duplicates --report --positions2d --hdf5 --no_mrc"
    " --hdf5_compression"
)


def known_options() -> list[str]:
    """Return the names of all options."""
    return [name for options in OPTION_GROUPS.values() for name in options]


# Options


@pytest.mark.parametrize("name", [*RELION_OPTIONS.split(), *OWN_OPTIONS.split()])
def test_every_option_of_the_specification_exists(name: str) -> None:
    """Also those that RELION's interface passes and that change nothing."""
    assert name in known_options()


def test_no_option_is_there_twice() -> None:
    """Each belongs to one group."""
    assert len(set(known_options())) == len(known_options())


def test_defaults() -> None:
    """Those of the options' own class; the crop is the box."""
    options = parse_options(NEEDED)
    assert options == JobOptions(output="out/", box=64, crop=64)
    assert (options.binning, options.min_frames, options.max_dose) == (1.0, 1, -1.0)
    assert (options.cone_angle, options.cone_sig0, options.cutoff_fract) == (10.0, 2.0, 0.01)
    assert (options.snr, options.taper) == (-1.0, 5.0)
    assert options.threads is None


def test_a_full_line() -> None:
    """Every value goes where it belongs."""
    line = (
        "--i opt.star --p p.star --t t.star --mot m.star --o Job/job007/ --b 192 --crop 96"
        " --bin 4.5 --max_dose 60.5 --min_frames 3 --only_tomogram TS_01 --cone_angle 12"
        " --cone_sig0 1.5 --cutoff_fract 0.02 --SNR 0.1 --taper 7 --j 8"
        " --pipeline_control Job/job007/ --log_level warning"
    )
    assert parse_options(line.split()) == JobOptions(
        optimisation_set="opt.star",
        particles="p.star",
        tomograms="t.star",
        trajectories="m.star",
        output="Job/job007/",
        box=192,
        crop=96,
        binning=4.5,
        max_dose=60.5,
        min_frames=3,
        only_tomogram="TS_01",
        cone_angle=12,
        cone_sig0=1.5,
        cutoff_fract=0.02,
        snr=0.1,
        taper=7,
        threads=8,
        pipeline_control="Job/job007/",
        log_level="warning",
    )


FLAGS = [f.name for f in fields(JobOptions) if f.default is False]


@pytest.mark.parametrize("name", FLAGS)
def test_flags(name: str) -> None:
    """A flag sets its own option and, but for --debug, no other."""
    options = parse_options([*NEEDED, f"--{name}"])
    expected = {"debug": {"debug": True, "log_level": "debug"}}.get(name, {name: True})
    assert options == JobOptions(output="out/", box=64, crop=64, **expected)


@pytest.mark.parametrize(
    ("words", "value"),
    [(["--max_dose", "-2"], -2), (["--max_dose=-2.5"], -2.5), (["--max_dose=1e2"], 100)],
)
def test_negative_numbers_and_equal_signs(words: list[str], value: float) -> None:
    """A value may be negative, and may hang on its option."""
    assert parse_options([*NEEDED, *words]).max_dose == value


def test_options_without_effect(capsys: pytest.CaptureFixture[str]) -> None:
    """RELION's interface passes --theme: accepted, and one line of the log says so."""
    words = ["--theme", "classic", "--diag", "--env", "2", "--dry_run"]
    assert parse_options([*NEEDED, *words]) == parse_options([*NEEDED, "--dry_run"])
    main([*NEEDED, *words, "--p", "missing.star", "--t", "missing.star"])
    assert capsys.readouterr().out.count("without effect: --theme, --diag, --env") == 1


# Usage errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*NEEDED, "--stack_2d"], "unknown option --stack_2d (did you mean --stack2d?)"),
        ([*NEEDED, "--max_doze", "3"], "unknown option --max_doze (did you mean --max_dose?)"),
        ([*NEEDED, "--cropp=3"], "unknown option --cropp=3 (did you mean --crop?)"),
        ([*NEEDED, "--stack"], "unknown option --stack (did you mean --stack2d?)"),
        ([*NEEDED, "--xyzzy"], "unknown option --xyzzy"),
        (["--b", "64"], "required: --o"),
        (["--o", "out"], "required: --b"),
        ([], "required: --o, --b"),
        (["--b", "x", "--o", "out"], "--b: invalid int value: 'x'"),
        (["--b", "64.5", "--o", "out"], "--b: invalid int value: '64.5'"),
        ([*NEEDED, "--bin", "two"], "--bin: invalid float value: 'two'"),
        ([*NEEDED, "--j", "many"], "--j: invalid int value: 'many'"),
        ([*NEEDED, "--crop"], "--crop: expected one argument"),
        ([*NEEDED, "--log_level", "loud"], "--log_level: invalid choice: 'loud'"),
        ([*NEEDED, "--stack2d=1"], "--stack2d: ignored explicit argument '1'"),
        ([*NEEDED, "--o", "a\nb/"], "--o 'a\\nb/': expected UTF-8 without control characters"),
        ([*NEEDED, "--o", "1@a/"], "--o '1@a/': expected UTF-8 without control characters"),
        ([*NEEDED, "--o", "\udce9/"], "--o '\\udce9/': expected UTF-8"),
    ],
)
def test_usage_errors(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, the message on standard error, a hint at --help, nothing else."""
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_options(words)
    assert main(words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert "--help" in output.err
    assert "Traceback" not in output.err


def test_abbreviations_are_no_options() -> None:
    """--only_tomo is not taken for --only_tomogram, nor --no for anything."""
    for word in ("--only_tomo", "--no", "--ov"):
        with pytest.raises(UsageError, match=f"unknown option {word}"):
            parse_options([*NEEDED, word])


# Help and version


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option, group by group, with what it does and its default; exit status 0."""
    assert main([word]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    for title, options in OPTION_GROUPS.items():
        assert f"\n{title}:\n" in output.out
        for name in options:
            assert re.search(rf"^  (-h, )?{name}\b", output.out, re.MULTILINE), name
    for default in ("degrees (10)", "voxels (2)", "e/A^2", "(0.01)"):
        assert default in re.sub(r"\s+", " ", output.out)


def test_every_option_has_a_help_text() -> None:
    """No stub: each says what it does."""
    for options in OPTION_GROUPS.values():
        for name, details in options.items():
            assert details.get("action") == "version" or len(details["help"]) > 5, name


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """On standard output; exit status 0."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"relion_pseudosubtomo {__version__}\n"


def test_the_parser_needs_no_numerics() -> None:
    """--help answers at once: neither NumPy's FFT nor the kernels are loaded for it."""
    code = (
        "import sys; from relion_pseudosubtomo.cli import main; status = main(['--version']); "
        "print(sorted(m for m in ('numpy', 'pyfftw', 'mpi4py', 'h5py') if m in sys.modules)); "
        "sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    """Python -m relion_pseudosubtomo; its exit status reaches the shell."""
    command = [sys.executable, "-m", "relion_pseudosubtomo"]
    done = subprocess.run(
        [*command, "--b", "64", "--oo", "out"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "--o" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_parser_can_be_built_again() -> None:
    """No state is left in it by an earlier one."""
    assert build_parser().format_help() == build_parser().format_help()
