#!/usr/bin/env bash
# All tests: bash scripts/test.sh [--system] [pytest arguments]
# Installs what they need into a virtual environment (.venv-test, or $VENV) and touches nothing outside
# it. --system adds the tests that need root and Debian packages.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_environment.sh

system=0
if [ "${1:-}" = --system ]; then system=1; shift; fi
make_environment "${VENV:-.venv-test}" "[test,report]"
bin=$(dirname "$PYTHON")

"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
"$bin/lint-imports" --config setup.cfg
if [ $system = 1 ]; then
    echo "No test of this version needs root or Debian packages: --system adds nothing yet."
fi
# from another folder, so that the installed package is tested, not the checkout
root=$PWD
cd tests
PYTHONPATH="$root" exec "../${bin#./}/python" -P -m pytest -c "$root/pyproject.toml" --rootdir "$root" "$root/tests" "$@"
