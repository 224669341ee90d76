# Shared by quickstart.sh and test.sh: finds or makes a virtual environment with the package in it.
# Sourced, not run. Sets PYTHON to the environment's interpreter.

# Stops with the one line to type, or as root installs, if a C compiler, headers or venv are missing.
require_build_tools() {
    local missing=()
    command -v python3 >/dev/null || missing+=(python3)
    command -v cc >/dev/null || command -v gcc >/dev/null || missing+=(gcc libc6-dev)
    if command -v python3 >/dev/null; then
        python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
        local header
        header=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
        [ -e "$header" ] || missing+=(python3-dev)
    fi
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "Installing ${missing[*]}"
        apt-get update -q >/dev/null
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q "${missing[@]}" >/dev/null
    else
        echo "Missing: ${missing[*]}. Type this, then start again:" >&2
        echo "    sudo apt-get install ${missing[*]}" >&2
        exit 1
    fi
}

# make_environment DIR EXTRAS [PACKAGE ...]: makes DIR unless it is there, and installs this checkout and
# further packages into it.
make_environment() {
    local directory=$1 extras=$2
    shift 2
    require_build_tools
    [ -x "$directory/bin/python" ] || python3 -m venv "$directory"
    PYTHON=$(cd "$directory/bin" && pwd)/python
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    "$PYTHON" -m pip install -q --upgrade pip
    echo "Installing relion_pseudosubtomo$extras into $directory"
    "$PYTHON" -m pip install -q ".$extras" "$@"
    (cd / && "$PYTHON" -c 'import sys
from relion_pseudosubtomo.core import kernels
sys.exit(0 if kernels.IS_COMPILED else "the compiled kernels were not built: pip install -v . shows what the compiler says")')
}
