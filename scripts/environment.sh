#!/usr/bin/env bash
# Makes the project's virtual environment from a lock file, or reuses it when nothing has changed (then it needs no network).
#
#   . scripts/environment.sh        make or reuse it, then activate it in this shell
#   bash scripts/environment.sh     make or reuse it only
#
#   PYTHON       interpreter to build with, 3.10 to 3.12 (default: the first that fits of python3.11, 3.12, 3.10, python3)
#   ULTRA_VENV   folder of the environment (default .venv)
#   ULTRA_LOCK   lock file (default requirements/cpu.lock; on a GPU machine requirements/cuda.lock)

if [[ "${BASH_SOURCE[0]}" != "$0" ]]; then
    bash "${BASH_SOURCE[0]}" || return 1
    . "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && cd "${ULTRA_VENV:-.venv}" && pwd)/bin/activate" || return 1
    export TORCH_EXTENSIONS_DIR="$VIRTUAL_ENV/torch_extensions"
    return
fi

set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV
export PIP_DISABLE_PIP_VERSION_CHECK=1

llava='llava-torch==1.2.2.post1'
lock=${ULTRA_LOCK:-requirements/cpu.lock}
venv=${ULTRA_VENV:-.venv}
if [[ "$venv" != /* ]]; then venv=$PWD/$venv; fi
log=$venv/install.log

say() { echo "environment: $*"; }
stop() { say "$*" >&2; exit 1; }

# A version such as 3.11.7, or nothing for an interpreter that does not run (a pyenv shim of a version that is not active).
version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || true; }
supported() { [[ "$1" =~ ^3\.(10|11|12)\. ]]; }
can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }
sha256() { cat "$@" | { sha256sum 2>/dev/null || shasum -a 256; } | cut -d ' ' -f 1; }

find_python() {
    local candidate version seen='' candidates=(python3.11 python3.12 python3.10 python3)
    if [[ -n "${PYTHON:-}" ]]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        version=$(version_of "$candidate")
        if supported "$version" && can_make_venv "$candidate"; then
            python=$candidate python_version=$version
            return
        fi
        if supported "$version"; then version+=' without venv (Debian: install python3-venv)'; fi
        seen+="${seen:+, }$candidate: ${version:-does not run}"
    done
    stop "needs Python 3.10, 3.11 or 3.12, found $seen; set PYTHON=/path/to/python3.11"
}

pip_install() {
    "$venv/bin/python" -m pip install --no-build-isolation "$@" >>"$log" 2>&1 && return
    tail -n 15 "$log" >&2
    stop "pip could not install ($*); the whole log is in $log; run again to start over"
}

# DeepSpeed compiles its shared-memory operation when ranks first meet on a CPU. Done here, the first training run does not
# wait for it; and a compilation that was killed half way, on whose lock file torch would wait for ever, goes with .venv.
compile_cpu_ops() {
    say "compiling DeepSpeed's CPU operation"
    DS_ACCELERATOR=cpu TORCH_EXTENSIONS_DIR="$venv/torch_extensions" PATH="$venv/bin:$PATH" \
        "$venv/bin/python" -c 'from deepspeed.comm.torch import build_shm_op; build_shm_op()' >>"$log" 2>&1 ||
        say "that failed (see $log): deepspeed on a CPU needs a C++ compiler (Debian: apt-get install g++)" >&2
}

# What the environment was made from; the folder too, because a moved virtual environment does not work.
stamp() { echo "$(sha256 "$lock") $llava Python $1 $venv"; }

is_current() {
    local version
    version=$(version_of "$venv/bin/python")
    if [[ -n "${PYTHON:-}" && "$version" != "$python_version" ]]; then return 1; fi
    [[ -n "$version" && "$(cat "$venv/.lock-hash" 2>/dev/null)" == "$(stamp "$version")" ]]
}

install_lock() {
    if [[ -z "${python:-}" ]]; then find_python; fi
    if [[ -e "$venv" && ! -e "$log" ]]; then
        stop "$venv is there but was not made by this script; move it away or choose another folder with ULTRA_VENV="
    fi
    rm -rf "$venv"
    mkdir -p "$venv"
    : >"$log"
    "$python" -m venv "$venv" >>"$log" 2>&1 || stop "$python -m venv failed; see $log"
    say "installing $(grep -cE '^[A-Za-z].*==' "$lock") packages of $lock with Python $python_version into $venv (some minutes)"
    # First what pip builds the source packages with.
    pip_install "$(grep '^packaging==' "$lock")" "$(grep '^setuptools==' "$lock")" "$(grep '^wheel==' "$lock")"
    pip_install -r "$lock"
    pip_install --no-deps "$llava"
    if [[ "$lock" == *cpu* ]]; then compile_cpu_ops; fi
    stamp "$python_version" >"$venv/.lock-hash.part"
    mv "$venv/.lock-hash.part" "$venv/.lock-hash"  # last: an install that was cut short is done again
}

install_project() {
    local hash
    hash=$(sha256 setup.py pyproject.toml)
    if [[ "$(cat "$venv/.project-hash" 2>/dev/null)" == "$hash" ]]; then return; fi
    pip_install --no-deps --editable .
    echo "$hash" >"$venv/.project-hash"
}

[[ -f "$lock" ]] || stop "no lock file $lock; set ULTRA_LOCK= to one of: $(echo requirements/*.lock)"
if [[ -n "${PYTHON:-}" ]]; then find_python; fi
if command -v flock >/dev/null; then  # two scripts started at once: the second waits, then reuses
    exec 9>"${venv%/}.making"
    flock 9
fi
if is_current; then
    say "reusing $venv"
else
    install_lock
    say "ready"
fi
install_project
