# Shared by quickstart.sh and test.sh: finds or makes a virtual environment with the package in it.
# Sourced, not run. Sets PYTHON to the environment's interpreter; PYTHON3 names the one that makes it.
PYTHON3=${PYTHON3:-python3}

# Stops, and says what is needed, and what is wrong here.
stop() {
    echo "Needed: a C compiler, and Python 3.10 or newer with venv and its headers. $1" >&2
    if command -v dnf >/dev/null; then
        echo "    sudo dnf install gcc python3.11 python3.11-devel" >&2
    fi
    echo "Then start again; if python3 is another Python: PYTHON3=python3.11 bash $0" >&2
    exit 1
}

require_new_python() {
    "$PYTHON3" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        stop "$PYTHON3 is $("$PYTHON3" --version 2>&1)."
}

# compiles COMPILER [OPTION ...]: whether it is there, and the C library's headers too.
compiles() { "$@" -fsyntax-only -xc - <<<'#include <limits.h>' 2>/dev/null; }

# Sets `missing` to the packages of Debian and Ubuntu that hold what is not there.
find_missing() {
    local name=${PYTHON3##*/} include
    missing=()
    compiles ${CC:-cc} || compiles gcc || missing+=(gcc libc6-dev) # CC may be several words
    if ! command -v "$PYTHON3" >/dev/null; then
        missing+=("$name" "$name-venv" "$name-dev")
        return
    fi
    "$PYTHON3" -c 'import ensurepip, venv' 2>/dev/null || missing+=("$name-venv")
    include=$("$PYTHON3" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$include/Python.h" ] || missing+=("$name-dev")
}

# Stops with the one line to type, or as root installs, if a C compiler, Python, headers or venv are missing.
require_build_tools() {
    local missing
    ! command -v "$PYTHON3" >/dev/null || require_new_python
    find_missing
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || stop "Missing, by their names in Debian: ${missing[*]}."
    if [ "$(id -u)" -ne 0 ]; then
        echo "Missing: ${missing[*]}. Type this, then start again:" >&2
        echo "    sudo apt-get install ${missing[*]}" >&2
        exit 1
    fi
    echo "Installing ${missing[*]}"
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q "${missing[@]}" >/dev/null
    find_missing
    [ ${#missing[@]} -eq 0 ] || stop "Missing still: ${missing[*]}."
    require_new_python
}

# make_venv DIR: makes a virtual environment, unless DIR is one whose pip works.
make_venv() {
    local clear=()
    ! "$1/bin/python" -m pip --version >/dev/null 2>&1 || return 0
    [ ! -e "$1/pyvenv.cfg" ] || clear=(--clear) # a broken environment is emptied, nothing else
    "$PYTHON3" -m venv "${clear[@]}" "$1"
}

# make_environment DIR EXTRAS [PACKAGE ...]: makes DIR unless it is there, and installs this checkout and
# further packages into it.
make_environment() {
    local directory=$1 extras=$2
    shift 2
    require_build_tools
    make_venv "$directory"
    PYTHON=$(cd "$directory/bin" && pwd)/python
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    "$PYTHON" -m pip install -q --upgrade pip
    echo "Installing relion_pseudosubtomo$extras into $directory"
    "$PYTHON" -m pip install -q ".$extras" "$@"
    (cd / && "$PYTHON" -c 'import sys
from relion_pseudosubtomo.core import kernels
sys.exit(0 if kernels.IS_COMPILED else "the compiled kernels were not built: pip install -v . shows what the compiler says")')
}
