#!/usr/bin/env bash
# On a host with cards: every host-side test of the kernels, on a card, against the same plain computations as on the
# processor. Needs the test programs (the target all_tests) and a plug-in; TANDEM_BUILD and TANDEM_PLUGIN name others.
#
#   tests/cards/ops.sh               the op table, the sampler, the device services, the models against transformers
#   tests/cards/ops.sh --sanitize    the op table and the sampler under compute-sanitizer: memcheck, then racecheck
set -uo pipefail
cd "$(dirname "$0")/../.."
tests=${TANDEM_BUILD:-build/release}/tests
export TANDEM_TEST_BACKEND=cuda TANDEM_PLUGIN=${TANDEM_PLUGIN:-$PWD/build/cuda/tandem_cuda13.so}
[ -r "$TANDEM_PLUGIN" ] || { echo "no plug-in at $TANDEM_PLUGIN; build it, or name one in TANDEM_PLUGIN" >&2; exit 1; }

failed=0
run() { # run NAME COMMAND...: the last lines of a program that passed, everything of one that did not
    local name=$1 output code
    shift
    output=$(mktemp)
    echo "== $name"
    "$@" >"$output" 2>&1
    code=$?
    if [ $code = 0 ]; then
        tail -n 1 "$output"
    else
        tail -n 40 "$output"
        echo "FAIL $name: ended with $code"
        failed=1
    fi
    rm -f "$output"
}

if [ "${1:-}" = --sanitize ]; then
    sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
    [ -x "$sanitizer" ] || { echo "compute-sanitizer is not here; it comes with the CUDA toolkit" >&2; exit 1; }
    for tool in memcheck racecheck; do
        for name in kernels_ops kernels_sample; do
            run "$tool $name" "$sanitizer" --tool $tool --target-processes all --error-exitcode 9 --print-limit 5 \
                "$tests/test_$name" --timeout 600
        done
    done
    exit $failed
fi
for name in kernels_services kernels_ops kernels_sample model_reference model_same_bits; do
    run $name "$tests/test_$name"
done
exit $failed
