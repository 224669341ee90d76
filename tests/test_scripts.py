"""The scripts that set up an environment, start quickstart or run tests; nothing is installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
BASH = shutil.which("bash")
ALL_PACKAGES = "gcc libc6-dev python3 python3-venv python3-dev"

#: Stands for a Python that has all it needs; it writes down how it was called.
PYTHON = """#!/bin/sh
case "$*" in
    *get_path*) echo {include} ;;
    *version_info*) exit {is_old} ;;
    --version) echo Python 3.{minor} ;;
esac
"""
#: Stand for programs of a virtual environment: they write down their words, one a line.
RECORDER = """#!/bin/sh
printf '%s\\n' "$(basename "$0")" "$@" >>"{log}"
"""
#: Makes the folder that is named last.
EXTRACT = """for last; do :; done
mkdir -p "$last" && echo "$0" >"$last/made"
"""
DRAW = """case "$*" in *show_average*) touch average_job009.png ;; esac
"""

pytestmark = pytest.mark.skipif(BASH is None, reason="bash is not installed")


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def write_python(path: Path, include: Path, *, minor: int = 11) -> None:
    """Write a Python with its headers."""
    include.mkdir(exist_ok=True)
    (include / "Python.h").touch()
    write_program(path, PYTHON.format(include=include, is_old=int(minor < 10), minor=minor))


def run_bash(
    words: list[str], path: Path | str, directory: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    assert BASH is not None
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "VENV")}
    return subprocess.run(
        [BASH, *words],
        env={**kept, "PATH": str(path), **environment},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class Machine:
    """A computer with the programs of one folder; its bash knows `_environment.sh`."""

    def __init__(self, directory: Path, *, user: int) -> None:
        self.directory = directory
        self.programs = directory / "bin"
        write_program(self.programs / "id", f"#!/bin/sh\necho {user}\n")

    def add(self, name: str, text: str = "exit 0") -> None:
        """Add a program that is a line of shell."""
        write_program(self.programs / name, f"#!/bin/sh\n{text}\n")

    def add_python(self, name: str = "python3", *, minor: int = 11) -> None:
        """Add a Python with its headers."""
        write_python(self.programs / name, self.directory / "include", minor=minor)

    def require_build_tools(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Look for what the scripts need, and say that it is fine."""
        script = f'set -euo pipefail; . "{SCRIPTS}/_environment.sh"; require_build_tools; echo fine'
        return run_bash(["-c", script], self.programs, self.directory, **environment)


def test_a_machine_with_everything_needs_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=0)
    machine.add_python()
    machine.add("gcc")
    machine.add("apt-get", "exit 1")
    assert machine.require_build_tools().stdout == "fine\n"


def test_one_line_names_all_that_is_missing(tmp_path: Path) -> None:
    """Also what Python itself would be needed to look for."""
    machine = Machine(tmp_path, user=1000)
    machine.add("apt-get")
    done = machine.require_build_tools()
    assert done.returncode == 1
    assert f"    sudo apt-get install {ALL_PACKAGES}\n" in done.stderr


def test_root_installs_all_in_one_go(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=0)
    log, later = tmp_path / "log", Machine(tmp_path / "later", user=0)
    later.add_python()
    later.add("cc")
    install = f"{shutil.which('cp')} {later.programs}/* {machine.programs}"
    machine.add("apt-get", f'echo "$@" >>{log}; [ "$1" = update ] || {install}')
    done = machine.require_build_tools()
    assert done.stdout == f"Installing {ALL_PACKAGES}\nfine\n"
    update, install = log.read_text().splitlines()
    assert update.startswith("update")
    assert install == f"install -y -q {ALL_PACKAGES}"


def test_packages_that_do_not_help_are_said(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=0)
    machine.add("apt-get")
    done = machine.require_build_tools()
    assert done.returncode == 1
    assert f"Missing still: {ALL_PACKAGES}." in done.stderr


def test_a_compiler_without_headers_is_none(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=1000)
    machine.add_python()
    machine.add("gcc", "exit 1")
    machine.add("apt-get")
    done = machine.require_build_tools()
    assert done.returncode == 1
    assert "    sudo apt-get install gcc libc6-dev\n" in done.stderr
    machine.add("clang-14")
    assert machine.require_build_tools(CC="clang-14").stdout == "fine\n"


@pytest.mark.parametrize("user", [0, 1000])
def test_other_systems_are_not_told_of_apt(tmp_path: Path, user: int) -> None:
    machine = Machine(tmp_path, user=user)
    done = machine.require_build_tools()
    assert done.returncode == 1
    assert "a C compiler, and Python 3.10 or newer with venv and its headers" in done.stderr
    assert "apt-get" not in done.stderr
    assert "dnf" not in done.stderr
    machine.add("dnf")
    done = machine.require_build_tools()
    assert "    sudo dnf install gcc python3.11 python3.11-devel\n" in done.stderr


def test_an_old_python_is_named_and_another_taken(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=1000)
    machine.add_python(minor=9)
    machine.add("cc")
    machine.add("apt-get")
    done = machine.require_build_tools()
    assert done.returncode == 1
    assert "Python 3.10 or newer" in done.stderr
    assert "python3 is Python 3.9." in done.stderr
    assert "PYTHON3=python3.11" in done.stderr
    machine.add_python("python3.12", minor=12)
    assert machine.require_build_tools(PYTHON3="python3.12").stdout == "fine\n"
    done = machine.require_build_tools(PYTHON3="python3.13")
    assert "sudo apt-get install python3.13 python3.13-venv python3.13-dev\n" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("ensurepip") is None, reason="needs ensurepip")
def test_an_environment_without_pip_is_made_anew(tmp_path: Path) -> None:
    """It was left behind where ensurepip is missing; one that works is left as it is."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    left = environment / "left"
    left.touch()
    script = f'set -euo pipefail; . "{SCRIPTS}/_environment.sh"; make_venv environment'
    done = run_bash(["-c", script], os.environ["PATH"], tmp_path, PYTHON3=sys.executable)
    assert done.returncode == 0, done.stderr
    assert not left.exists()
    subprocess.run([environment / "bin" / "python", "-m", "pip", "--version"], check=True)
    left.touch()
    assert run_bash(["-c", script], "/usr/bin:/bin", tmp_path).returncode == 0
    assert left.exists()


# quickstart.sh and test.sh, with programs that only say how they were called


class Checkout:
    """A copy of the scripts in a folder with a blank, and an environment of recorders."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "a checkout"
        self.log = directory / "log"
        shutil.copytree(SCRIPTS, self.path / "scripts", ignore=shutil.ignore_patterns("bench*"))
        (self.path / "tests").mkdir()
        for name in ("test_a.py", "test_b.py"):
            (self.path / "tests" / name).touch()
        recorder = RECORDER.format(log=self.log)
        for environment in (".venv-quickstart", ".venv-test", ".venv-test-mpich"):
            programs = self.path / environment / "bin"
            write_program(programs / "python", recorder + DRAW)
            write_program(programs / "mpirun", recorder + EXTRACT)
            for name in ("ruff", "mypy", "lint-imports"):
                write_program(programs / name, recorder)
        tools = Machine(directory / "tools", user=1000)
        tools.add_python()
        tools.add("cc")
        self.environment_path = f"{tools.programs}:{os.environ['PATH']}"

    def run(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Start a script from the checkout; the log is that of this start."""
        self.log.write_text("")
        return run_bash([f"scripts/{name}", *words], self.environment_path, self.path)

    def pytest_calls(self) -> list[list[str]]:
        """Return the words of every call of pytest."""
        lines = self.log.read_text().splitlines()
        starts = [i for i, line in enumerate(lines) if line == "python"]
        calls = [lines[a:b] for a, b in zip(starts, [*starts[1:], len(lines)], strict=True)]
        return [call for call in calls if "pytest" in call]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_quickstart_in_a_folder_with_a_blank(checkout: Checkout) -> None:
    done = checkout.run("quickstart.sh")
    assert done.returncode == 0, done.stderr
    words = checkout.log.read_text().splitlines()
    program = str(checkout.path / ".venv-quickstart/bin/relion_pseudosubtomo")
    assert words.count(program) == 2
    assert words[words.index(program) + 1 :][:2] == ["--i", "Picks/job007/optimisation_set.star"]


def test_quickstart_removes_only_what_it_made(checkout: Checkout) -> None:
    """The tutorial's own jobs are in the same project."""
    project = checkout.path / "quickstart"
    assert checkout.run("quickstart.sh").returncode == 0
    mine = [project / name for name in ("PseudoSubtomo/job011/particles.star", "notes.txt")]
    its = [project / "PseudoSubtomo/job009/old", project / "MotionCorr/job002/old"]
    for path in (*mine, *its):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert checkout.run("quickstart.sh").returncode == 0
    assert all(path.exists() for path in mine)
    assert not any(path.exists() for path in its)


@pytest.mark.parametrize("words", [(), ("elsewhere",)])
def test_quickstart_leaves_the_folders_of_others(
    checkout: Checkout, words: tuple[str, ...]
) -> None:
    file = checkout.path / (words or ("quickstart",))[0] / "MotionCorr/job002/image.mrc"
    file.parent.mkdir(parents=True)
    file.touch()
    done = checkout.run("quickstart.sh", *words)
    assert done.returncode == 1
    assert "not made by quickstart" in done.stderr
    assert file.exists()


def test_all_tests_are_run(checkout: Checkout) -> None:
    """In three parts; what is chosen by -k is chosen in each."""
    done = checkout.run("test.sh", "-k", "a word")
    assert done.returncode == 0, done.stderr
    mpich, openmpi, others = checkout.pytest_calls()
    assert "mpi" in mpich
    assert {"mpi", "system"} <= set(openmpi)
    assert {".", "--ignore=mpi", "--ignore=system"} <= set(others)
    assert openmpi[-2:] == others[-2:] == ["-k", "a word"]
    assert "mypy" in checkout.log.read_text()


@pytest.mark.parametrize("test", ["", "::test_one"])
def test_only_the_tests_that_are_named_are_run(checkout: Checkout, test: str) -> None:
    done = checkout.run("test.sh", "--system", f"tests/test_b.py{test}", "-x")
    assert done.returncode == 0, done.stderr
    (call,) = checkout.pytest_calls()
    file = f"{checkout.path}/tests/test_b.py{test}"
    assert call[-3:] == ["--system", file, "-x"]
    assert not {"mpi", "system", "."} & set(call)
