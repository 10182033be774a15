# shellcheck shell=bash
# Sourced after install.sh by launcher/quickstart.sh and tests/cuda_plugins.sh: finds what the cuda plug-ins are built
# with, and installs or fetches what can be had.

# An nvcc of CUDA 13 or newer; nothing when there is none.
tandem_nvcc13() {
    local nvcc release
    for nvcc in "$(command -v nvcc)" /usr/local/cuda/bin/nvcc $(tandem_in_wheels bin/nvcc); do
        [ -x "$nvcc" ] || continue
        release=$("$nvcc" --version | sed -n 's/.*release \([0-9]*\)\..*/\1/p')
        [ "${release:-0}" -ge 13 ] && echo "$nvcc" && return 0
    done
    return 0
}

# Files of NVIDIA's wheels, in the Python environment and in build/wheels: nvidia/*/PATH.
tandem_in_wheels() { # tandem_in_wheels PATH
    local python
    for python in python3 /usr/bin/python3; do
        "$python" -c 'import sys, glob, nvidia
print(*sorted(match for root in nvidia.__path__ for match in glob.glob(root + "/*/" + sys.argv[1])), sep="\n")' "$1" \
            2>/dev/null
    done
    find "$PWD/build/wheels" -path "*/nvidia/*/$1" 2>/dev/null
    return 0
}

# Fetches a wheel of NVIDIA's and unpacks it into build/wheels.
tandem_fetch_wheel() { # tandem_fetch_wheel NAME
    local download status
    tandem_install python3 python3-pip || return 1
    echo "fetching $1" >&2
    download=$(mktemp -d)
    /usr/bin/python3 -m pip download -q --no-deps -d "$download" "$1" >&2 &&
        /usr/bin/python3 -m zipfile -e "$download"/*.whl build/wheels
    status=$?
    rm -rf "$download"
    [ $status = 0 ] || echo "$1 cannot be fetched" >&2
    return $status
}

# The folder of nccl.h. The header serves all versions of CUDA.
tandem_nccl_include() {
    local header
    for header in /usr/include/nccl.h /usr/local/include/nccl.h /usr/local/cuda/include/nccl.h \
        $(tandem_in_wheels include/nccl.h); do
        [ -f "$header" ] && dirname "$header" && return 0
    done
    tandem_fetch_wheel nvidia-nccl-cu12 || { echo "nccl.h is missing; install libnccl-dev" >&2; return 1; }
    tandem_in_wheels include/nccl.h | head -n 1 | xargs dirname
}

# cuobjdump, which says what registers and memory a kernel takes, whatever CUDA compiled it.
tandem_cuobjdump() {
    local program
    for program in "$(command -v cuobjdump)" /usr/local/cuda/bin/cuobjdump $(tandem_in_wheels bin/cuobjdump); do
        [ -x "$program" ] && [[ $("$program" --version) == *"release 1"[3-9]* ]] && echo "$program" && return 0
    done
    tandem_fetch_wheel nvidia-cuda-cuobjdump || return 1
    program=$(tandem_in_wheels bin/cuobjdump | tail -n 1)
    chmod +x "$program" && echo "$program"
}

# Builds the plug-ins that there are compilers for, and TARGET...
tandem_build_plugins() { # tandem_build_plugins [TARGET...]
    local include nvcc13
    include=$(tandem_nccl_include) || return 1
    nvcc13=$(tandem_nvcc13)
    tandem_cmake_flags=("-DTANDEM_NCCL_INCLUDE=$include" "-DTANDEM_NVCC13=$nvcc13")
    [ -z "$nvcc13" ] || tandem_install g++ || return 1
    tandem_build cuda cuda_plugins "$@"
}

# Debian's CUDA 11.8 lies in its component non-free. As root on Debian it is installed from there, with the component
# named in a list of its own; otherwise tells what is missing and returns 2.
tandem_install_cuda11() {
    local sources=/etc/apt/sources.list.d/tandem-non-free.list archive codename
    [ -x /usr/bin/nvcc ] && command -v clang-14 >/dev/null && return 0
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    if [ "$codename" != bookworm ]; then
        echo "CUDA 11.8 is installed by itself on Debian 12 only: for V100 install its nvcc as /usr/bin/nvcc, with clang-14" >&2
        return 2
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "CUDA 11.8 is missing; as root, with Debian's components contrib and non-free enabled:" >&2
        echo "    apt-get install --no-install-recommends nvidia-cuda-toolkit clang-14" >&2
        return 2
    fi
    if ! tandem_offers_cuda11; then
        archive=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Identifier: Packages' |
            sed -n "s/ $codename main\$//p" | head -n 1)
        [ -n "$archive" ] || { echo "no archive of Debian's is in the sources of apt" >&2; return 2; }
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive $codename contrib non-free" >"$sources"
        apt-get update -qq >&2 || return 1
        tandem_offers_cuda11 || { echo "Debian's non-free has no nvidia-cuda-toolkit for this machine" >&2; return 2; }
    fi
    tandem_install nvidia-cuda-toolkit clang-14
}

# Not by `| grep -q`, here and elsewhere: grep goes at the first match, and with pipefail what still writes then fails.
tandem_offers_cuda11() {
    [[ $(apt-cache policy nvidia-cuda-toolkit 2>/dev/null) == *"Candidate: 11.8"* ]]
}

# ---- the host's cards

# A word for each card, compute capability and driver: "9.0,580".
tandem_list_cards() {
    local cards
    if ! command -v nvidia-smi >/dev/null; then
        echo "no NVIDIA driver is installed (nvidia-smi is not on PATH): install one, 580 or newer where the cards allow," >&2
        echo "or serve on the processor: launcher/quickstart.sh" >&2
        return 1
    fi
    if ! cards=$(nvidia-smi --query-gpu=compute_cap,driver_version --format=csv,noheader); then
        echo "$cards" >&2
        echo "nvidia-smi does not list the cards; it must work before anything can be served on them" >&2
        return 1
    fi
    [ -n "$cards" ] || { echo "the driver shows no cards" >&2; return 1; }
    echo "$cards" | sed 's/^\([0-9.]*\), *\([0-9]*\).*/\1,\2/'
}

# Sees to a compiler for the plug-in that each card needs: CUDA 13 serves sm_80 and newer with drivers from 580, CUDA
# 11.8 the others, and all of them where it is alone.
tandem_prepare_cards() { # tandem_prepare_cards CARD...
    local card arch driver nvcc13
    nvcc13=$(tandem_nvcc13)
    for card in "$@"; do
        arch=${card%,*}
        arch=${arch/./}
        driver=${card#*,}
        if [ "$arch" -lt 70 ] || [ "$driver" -lt 450 ]; then
            echo "a card of sm_$arch with driver $driver is not served: sm_70 and driver 450 are the oldest" >&2
            return 1
        fi
        if [ "$arch" -ge 80 ] && [ "$driver" -ge 580 ] && [ -n "$nvcc13" ]; then
            continue
        fi
        if ! tandem_install_cuda11; then
            [ "$arch" -lt 80 ] || [ "$driver" -lt 580 ] ||
                echo "or install nvcc, cuBLAS and headers of CUDA 13, which serve this host's cards as well" >&2
            echo "no nvcc for a card of sm_$arch with driver $driver was found: looked on PATH, in /usr/local/cuda/bin" \
                "and in Python's nvidia packages" >&2
            return 1
        fi
    done
}

# The configuration of one or two cards like the first.
tandem_config_for() { # tandem_config_for CARD...
    local count=$(($# < 2 ? $# : 2))
    case $1 in
    7.*) echo "configs/v100-32g-x$count.yaml" ;;
    8.*) echo "configs/a100-40g-x$count.yaml" ;;
    *) echo "configs/h100-x$count.yaml" ;;
    esac
}

# Sees to NCCL, which more than one card needs, and prints LD_LIBRARY_PATH with the folders of NVIDIA's wheels added.
tandem_library_path() { # tandem_library_path CARD...
    local folders
    if [ $# -gt 1 ] && [[ $(ldconfig -p) != *"libnccl.so.2 "* ]] && [ -z "$(tandem_in_wheels lib/libnccl.so.2)" ]; then
        tandem_fetch_wheel nvidia-nccl-cu12 || return 1
    fi
    folders=$(printf '%s\n' "${LD_LIBRARY_PATH:-}" $(tandem_in_wheels lib) | sed '/^$/d')
    echo "$folders" | paste -s -d :
}
