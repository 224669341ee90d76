"""Importing the package does nothing but import: no file, no process, no transform is planned."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from relion_pseudosubtomo.core import kernels

#: Imports every module under an audit hook and prints what it caught.
IMPORT_ALL = """
import importlib, os, pkgutil, sys
import h5py, pyfftw  # what others do when they are imported is not looked at
caught = []
pyfftw.FFTW = lambda *arguments, **options: caught.append("a transform is planned")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
def watch(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
        caught.append(f"{arguments[0]} is written")
    elif event in ("os.mkdir", "os.rename", "subprocess.Popen", "os.posix_spawn", "os.fork"):
        caught.append(f"{event} {arguments}")
if "--plant" in sys.argv:
    sys.addaudithook(watch)
    open(os.devnull, "w").close()
import relion_pseudosubtomo
sys.addaudithook(watch)
names = [m.name for m in pkgutil.walk_packages(relion_pseudosubtomo.__path__, "relion_pseudosubtomo.")]
names = [name for name in names if not name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names), *sorted(set(caught)), sep="\\n")
"""  # noqa: E501

#: Imports the kernels where the compiled ones fail with a given error.
IMPORT_KERNELS = """
import sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name.endswith("._compiled"):
            raise {error}("FFTW size changed")
sys.meta_path.insert(0, Finder)
from relion_pseudosubtomo.core import kernels
assert not kernels.IS_COMPILED
assert kernels.copy_rows is kernels.numpy_twin.copy_rows
assert kernels.FrameRunner is None
"""


def import_all(*words: str) -> list[str]:
    """Return the number of modules, and what was caught while they were imported."""
    command = [sys.executable, "-B", "-c", IMPORT_ALL, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split("\n")[:-1]


def test_importing_does_nothing_else() -> None:
    """All modules, in a fresh process."""
    n_modules, *caught = import_all()
    assert int(n_modules) > 50
    assert caught == []


def test_the_watch_sees_a_file() -> None:
    """The test above can fail."""
    assert import_all("--plant")[1:] == ["/dev/null is written"]


@pytest.mark.parametrize("error", ["ImportError", "TypeError", "ValueError"])
def test_kernels_that_cannot_be_loaded_are_replaced(error: str) -> None:
    """Not built, or for a pyFFTW of other functions or sizes: a warning that says why."""
    script = IMPORT_KERNELS.format(error=error)
    command = [sys.executable, "-B", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "cannot be used (FFTW size changed)" in done.stderr
    assert "Install GCC or clang and the headers of Python" in done.stderr


def test_the_kernels_are_compiled_where_that_is_possible() -> None:
    """A build that fails leaves a package that works, and is slow: no other test would fail."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    if shutil.which(compiler) is None or not headers.exists():
        pytest.skip(f"compiled kernels need {compiler} and {headers}")
    assert kernels.IS_COMPILED


@pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed")
def test_the_kernels_are_written_for_clang_too() -> None:
    folder = Path(kernels.__file__).parent
    options = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    sources = {*folder.glob("*.c")} - {folder / "_compiled.c"}  # which Cython makes
    assert sources
    for source in sorted(sources):
        command = ["clang", *options, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


def test_a_rank_loads_no_library_that_only_some_need() -> None:
    """Tables are read by rank 0 alone; containers, reports and their figures are options."""
    script = (
        "import relion_pseudosubtomo.cli, relion_pseudosubtomo.extraction, sys; print(*sys.modules)"
    )
    command = [sys.executable, "-B", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    modules = set(done.stdout.split())
    assert {"relion_pseudosubtomo.extraction", "pyfftw"} <= modules
    assert not modules & {"starfile", "pandas", "h5py", "matplotlib", "jinja2"}
