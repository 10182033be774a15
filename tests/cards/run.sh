#!/usr/bin/env bash
# On a host with one card or two: all that must hold on cards, and every figure of a topology. Builds nothing: it wants
# `cmake --preset cuda && cmake --build --preset cuda`, with numpy and the CUDA toolkit's compute-sanitizer. The last line
# reads "N passed, N failed".
#
#   tests/cards/run.sh [STEP ...]    some steps alone: ops sanitize group sums memory kills soak
#                                                      decode prefill serve comm load
#
# TANDEM_BUILD names another build than build/cuda, TANDEM_PLUGIN a plug-in, TANDEM_TOPOLOGY other files of configs/ than
# h100-x1.yaml and h100-x2.yaml, TANDEM_WEIGHTS another folder than /dev/shm for up to 70 GB of weights.
set -uo pipefail
cd "$(dirname "$0")/../.."
export TANDEM_BUILD=${TANDEM_BUILD:-build/cuda}
export TANDEM=${TANDEM:-$TANDEM_BUILD/tandem}
export TANDEM_PLUGIN=${TANDEM_PLUGIN:-$PWD/$TANDEM_BUILD/tandem_cuda13.so}
one=configs/${TANDEM_TOPOLOGY:-h100}-x1.yaml
two=configs/${TANDEM_TOPOLOGY:-h100}-x2.yaml
shapes=configs/models/DeepSeek-R1-Distill
weights=${TANDEM_WEIGHTS:-/dev/shm}
[ -x "$TANDEM" ] || { echo "no program at $TANDEM: build it, or name a build in TANDEM_BUILD" >&2; exit 1; }
cards=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
[ "$cards" -gt 0 ] || { echo "no card is here" >&2; exit 1; }
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
worlds=1 most=$one
[ "$cards" = 1 ] || worlds=1,2 most=$two

passed=0
failed=0
try() { # try COMMAND...: one test, with its output
    local start=$SECONDS
    echo "== $*"
    if "$@"; then
        passed=$((passed + 1))
    else
        echo "FAIL: ended with $? after $((SECONDS - start)) s"
        failed=$((failed + 1))
    fi
}
try_two() { # the same where there are two cards
    [ "$cards" = 1 ] || try "$@"
}
bench() {
    local name=$1
    shift
    try "$TANDEM_BUILD/benchmarks/$name" "$@"
}
test_group() {
    TANDEM_TEST_BACKEND=cuda TANDEM_TEST_CARDS=2 "$TANDEM_BUILD/tests/test_$1"
}
serve() { # serve TP MODEL CONFIG
    bench bench_serve --backend cuda --tp "$1" -- "$TANDEM" serve "$3" --model "$2" --set load_format=dummy \
        --set tokenizer=configs/models/tandem-r1-tiny --set engine.prefix_cache=false --set engine.max_model_len=4096
}
load() { # load SHAPE [FLAG ...]: its checkpoint is left in $checkpoint
    checkpoint=$(mktemp -d "$weights/tandem.XXXXXX")
    bench bench_load --shape "$1" --at "$checkpoint" "${@:2}"
}

step() {
    case $1 in
    ops) try tests/cards/ops.sh ;;
    sanitize) try tests/cards/ops.sh --sanitize ;;
    group)
        for name in parallel_cards model_same_bits model_reference; do
            try_two test_group $name
        done
        ;;
    sums)
        try python3 tests/cards/must_show_sums.py "$one"
        try_two python3 tests/cards/must_show_sums.py "$two"
        ;;
    memory)
        try python3 tests/cards/must_show_memory.py "$one" 32
        try python3 tests/cards/must_show_memory.py "$one" 40
        try_two python3 tests/cards/must_show_memory.py "$two" 40
        ;;
    kills) # of a model that is read again at each start
        load $shapes-Llama-8B --rounds 1 --keep
        try python3 tests/cards/must_show_kills.py "$most" --model "$checkpoint" --tokens 600 --kills 4 \
            --set tokenizer=configs/models/tandem-r1-tiny
        rm -rf "$checkpoint"
        ;;
    soak)
        try_two python3 tests/cards/must_show_soak.py "$two" --model $shapes-Llama-70B --seconds 120
        try_two python3 tests/cards/must_show_soak.py "$two" --model $shapes-Qwen-32B --seconds 60
        try python3 tests/cards/must_show_soak.py "$one" --model $shapes-Qwen-32B --seconds 60
        ;;
    decode)
        bench bench_decode --model $shapes-Llama-8B --random-weights --tp $worlds --batch 1,16,64 --context 1024 --workers
        [ "$cards" = 1 ] ||
            bench bench_decode --model $shapes-Qwen-32B --random-weights --tp 2 --batch 1,16,64 --context 1024 --workers
        [ "$cards" = 1 ] ||
            bench bench_decode --model $shapes-Llama-70B --random-weights --tp 2 --batch 1,16 --context 1024 --workers
        ;;
    prefill)
        bench bench_prefill --model $shapes-Llama-8B --random-weights --prompt 2048,8192 --no-ops
        for model in Qwen-32B Llama-70B; do
            [ "$cards" = 1 ] ||
                bench bench_prefill --model $shapes-$model --random-weights --tp 2 --prompt 2048,8192 --no-ops
        done
        ;;
    serve)
        serve 1 $shapes-Llama-8B "$one"
        [ "$cards" = 1 ] || serve 2 $shapes-Qwen-32B "$two"
        ;;
    comm) try_two "$TANDEM_BUILD/benchmarks/bench_comm" ;;
    load)
        load $shapes-Llama-8B
        rm -rf "$checkpoint"
        [ "$cards" = 1 ] || load $shapes-Qwen-32B --tp 2
        rm -rf "$checkpoint"
        ;;
    *)
        echo "there is no step $1" >&2
        exit 2
        ;;
    esac
}
[ $# != 0 ] || set -- ops sanitize group sums memory kills soak decode prefill serve comm load
for name in "$@"; do
    step "$name"
done
echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed != 0 ]
