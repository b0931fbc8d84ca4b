#!/bin/sh
# Makes this checkout ready to run: system libraries, a virtual environment, pinned packages.
#
#   scripts/setup.sh [EXTRAS [FOLDER]]     EXTRAS: live (default), dev, ...   FOLDER: .venv (default)
#
# Does nothing, in a fraction of a second, when nothing changed since the last time. PYTHON names the interpreter to
# use; SYSTEM_LIBRARIES=skip leaves system libraries alone. pip's own settings (PIP_EXTRA_INDEX_URL, ...) are respected.
set -eu
cd "$(dirname "$0")/.."
extras=${1:-live}
venv=${2:-.venv}

say() { printf 'mien setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "mien needs Python 3.11 or newer and found none. On Debian 12, Ubuntu 24.04 and newer:" \
        "sudo apt-get install python3 python3-venv. Elsewhere set PYTHON to one, for instance PYTHON=/opt/python3.12/bin/python3"
}

# Package names of what is missing on a Linux system, one a line.
missing_packages() {
    known=$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null) || return 0
    while read -r library package; do
        case "$known" in *"$library"*) ;; *) echo "$package" ;; esac
    done <<END
libGL.so.1 libgl1
libglib-2.0.so.0 libglib2.0-0
libGLESv2.so.2 libgles2
libEGL.so.1 libegl1
libportaudio.so.2 libportaudio2
END
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        "$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'
}

install_system_libraries() {
    [ "$(uname -s)" = Linux ] || return 0
    [ "${SYSTEM_LIBRARIES:-}" != skip ] || return 0
    packages=$(missing_packages | tr '\n' ' ')
    [ -n "${packages% }" ] || return 0
    command -v apt-get >/dev/null ||
        fail "system libraries are missing; install what your system calls: ${packages% }" \
            "(or set SYSTEM_LIBRARIES=skip if they are there all the same)"
    if [ "$(id -u)" = 0 ]; then
        sudo=
    elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        sudo=sudo
        say "system libraries are missing (${packages% }); sudo may ask for your password"
    else
        fail "system libraries are missing, and this user may not install them. Run, or have run:" \
            "sudo apt-get install ${packages% }"
    fi
    say "installing system libraries: ${packages% }"
    # Word splitting is wanted: $packages is a list, and $sudo may be nothing.
    # shellcheck disable=SC2086
    apt() { DEBIAN_FRONTEND=noninteractive $sudo apt-get -qq -o DPkg::Lock::Timeout=120 "$@" </dev/null >&2; }
    # shellcheck disable=SC2086
    apt install --yes --no-install-recommends $packages 2>/dev/null ||
        { apt update && apt install --yes --no-install-recommends $packages; } ||
        fail "the system libraries could not be installed: ${packages% }"
}

# On Linux the package index has torch for CUDA alone, with 4 GB of NVIDIA's libraries. True where that is about to be
# installed for nothing: no NVIDIA GPU here, and pip knows no other index that may have the build for CPUs.
needs_no_cuda() {
    [ "$(uname -s)" = Linux ] || return 1
    ! command -v nvidia-smi >/dev/null && [ ! -e /dev/nvidia0 ] || return 1
    ! "$1" -m pip config list 2>/dev/null | grep -q -e index-url -e find-links -e no-index || return 1
    [ -z "${PIP_INDEX_URL:-}${PIP_EXTRA_INDEX_URL:-}${PIP_FIND_LINKS:-}${PIP_NO_INDEX:-}" ]
}

suggest_cpu_torch() {
    "$1" -c 'import torch' 2>/dev/null && return
    say "no NVIDIA GPU here, but torch for CUDA will be installed, 4 GB more than needed. To avoid it, press Ctrl-C, set" \
        "PIP_EXTRA_INDEX_URL to the index of CPU builds that pytorch.org names under 'Start locally', and run this again"
}

python=$(find_python)
started=$(date +%s)
# What the environment was made from. The folder counts, because a virtual environment cannot be moved.
key=$({ pwd; "$python" -VV; cat pyproject.toml constraints.txt scripts/setup.sh; } | cksum | tr ' ' -)
stamp=$venv/.mien-setup

if [ -f "$stamp" ]; then
    read -r stamped_key stamped_extras <"$stamp"
    if [ "$stamped_key" = "$key" ]; then
        case ",$stamped_extras," in *",$extras,"*) exit 0 ;; esac
        extras=$stamped_extras,$extras
    fi
fi

install_system_libraries
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "making the virtual environment $venv with $("$python" -V)"
    "$python" -m venv --clear "$venv" || fail "the virtual environment $venv could not be made"
fi
rm -f "$stamp"
case ",$extras," in ",base,") ;; *) ! needs_no_cuda "$venv/bin/python" || suggest_cpu_torch "$venv/bin/python" ;; esac
say "installing pinned packages (mien[$extras]); the first time takes a few minutes"
# Progress is for people, not for logs.
quiet=
[ -t 2 ] || quiet=--quiet
"$venv/bin/python" -m pip install $quiet --disable-pip-version-check --no-input \
    -c constraints.txt -e ".[$extras]" >&2 ||
    fail "the packages could not be installed; see pip's message above"
echo "$key $extras" >"$stamp"
say "$venv is ready after $(($(date +%s) - started)) s"
