#!/usr/bin/env bash
# Installs what is missing, builds, serves the embedded model tensor-parallel over two worker processes, asks it one
# question, and goes on serving until Ctrl-C.
#
#   launcher/quickstart.sh               the above
#   launcher/quickstart.sh --once        stop after the answer; exit 0 only if it was right
#   launcher/quickstart.sh --build-only  stop after the build: build/release/tandem
set -euo pipefail
cd "$(dirname "$0")/.."
. launcher/install.sh

once=0
build_only=0
for argument in "$@"; do
    case $argument in
    --once) once=1 ;;
    --build-only) build_only=1 ;;
    *)
        sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
    esac
done

tandem_install
tandem_build release tandem
[ $build_only = 1 ] && exit 0

folder=$(mktemp -d)
server=
stop() {
    trap - EXIT INT TERM
    [ -n "$server" ] && kill -TERM "$server" 2>/dev/null && wait "$server" || true
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

build/release/tandem serve configs/cpu-x2.yaml --set http.port=0 >"$folder/ready" &
server=$!
for _ in $(seq 600); do
    grep -q '^ready ' "$folder/ready" && break
    kill -0 "$server" 2>/dev/null || { echo "the server did not start; see its messages above" >&2; exit 1; }
    sleep 0.1
done
address=$(sed -n 's/^ready http=//p' "$folder/ready")
[ -n "$address" ] || { echo "the server was not ready within 60 s" >&2; exit 1; }

question='What is 407 - 1295?'
printf '\n> %s\n' "$question"
build/release/tandem chat "http://$address" --once "$question" | tee "$folder/answer"
right=1
tail -n 1 "$folder/answer" | grep -q -- '-888[^0-9]*$' && right=0
if [ $once = 1 ]; then
    [ $right = 0 ] || echo "the answer does not end in -888" >&2
    exit $right
fi

cat <<END

Serving at http://$address until Ctrl-C. Try:

    build/release/tandem chat http://$address
    curl -s http://$address/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"model": "tandem-r1-tiny", "messages": [{"role": "user", "content": "What is 12 * 34?"}]}'
END
wait "$server"
