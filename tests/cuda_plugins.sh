#!/usr/bin/env bash
# Compiles the cuda plug-ins for all cards that this host has, or can be given, a compiler for, and looks at their
# machine code. Needs no card. sm_70 and sm_80 want CUDA 11.8, which is installed from Debian's non-free; sm_80 and sm_90
# want CUDA 13, which is used where it is. The last line reads "N passed, N failed".
set -uo pipefail
cd "$(dirname "$0")/.."
. launcher/install.sh
. launcher/install_cuda.sh

fail() {
    echo "0 passed, 1 failed"
    exit 1
}

plugins=()
tandem_install_cuda11
case $? in
0) plugins+=(build/cuda/tandem_cuda11.so) ;;
1) fail ;;
*) echo "tandem_cuda11.so (sm_70, sm_80) is not compiled here" ;;
esac
if [ -n "$(tandem_nvcc13)" ]; then
    plugins+=(build/cuda/tandem_cuda13.so)
else
    echo "tandem_cuda13.so (sm_80, sm_90) is not compiled here: no nvcc of CUDA 13 is installed"
fi
if [ ${#plugins[@]} = 0 ]; then
    echo "0 passed, 0 failed"
    exit 0
fi

tandem_build_plugins || fail
for plugin in "${plugins[@]}"; do
    echo "$plugin: $(stat -c %s "$plugin") bytes" || fail
done
cuobjdump=$(tandem_cuobjdump) || fail
exec /usr/bin/python3 tests/tools/check_local_memory.py "$cuobjdump" "${plugins[@]}"
