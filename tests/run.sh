#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test; the last line reads "N passed, N failed".
#
#   tests/run.sh [FILTER]   FILTER: only programs whose name contains it
#   tests/run.sh --long     also the long runs (tests/e2e/must_show_*.py)
#   tests/run.sh --fuzz     also every fuzz target for 10 s under AddressSanitizer and UBSan (installs clang)
set -uo pipefail
cd "$(dirname "$0")/.."
. launcher/install.sh

filter=""
long=0
fuzz=0
for argument in "$@"; do
    case $argument in
    --long) long=1 ;;
    --fuzz) fuzz=1 ;;
    *) filter=$argument ;;
    esac
done

# With g++, pkgconf and mandoc what is installed is built against, and its manual read. tshark runs the stream protocol's
# dissector: 25 MB to download and 133 MB installed, without what it recommends.
tandem_install python3 python3-numpy g++ pkgconf mandoc valgrind tshark || exit 1
# The distribution's own: another python3 on PATH may lack numpy.
export TANDEM_PYTHON=/usr/bin/python3
passed=0
failed=0

count() { # count NAME EXIT_CODE LAST_LINE: adds a program's own counts, or one failure when it died without any
    local name=$1 code=$2 line=$3
    if [[ $line =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed ]]; then
        passed=$((passed + BASH_REMATCH[1]))
        failed=$((failed + BASH_REMATCH[2]))
        [ "$code" = 0 ] || [ "${BASH_REMATCH[2]}" != 0 ] || failed=$((failed + 1))
    else
        echo "FAIL $name: ended with $code and no summary"
        failed=$((failed + 1))
    fi
}

# As many programs run at a time as there are processors; each one's output comes out whole, when it has ended.
slots=$(nproc)
trap 'trap - INT; kill 0' INT # the shell has what runs behind it ignore Ctrl-C
declare -A names=() outputs=() started=() # of the running ones, by process id

finish_one() {
    local pid code
    wait -n -p pid "${!names[@]}"
    code=$?
    echo "== ${names[$pid]} ($((SECONDS - started[$pid])) s)"
    cat "${outputs[$pid]}"
    count "${names[$pid]}" $code "$(tail -n 1 "${outputs[$pid]}")"
    rm -f "${outputs[$pid]}"
    unset "names[$pid]" "outputs[$pid]" "started[$pid]"
}

finish_all() {
    while [ ${#names[@]} != 0 ]; do
        finish_one
    done
}

start() { # start NAME COMMAND...: once there is a place
    local name=$1 output
    shift
    [ ${#names[@]} -lt "$slots" ] || finish_one
    output=$(mktemp)
    "$@" >"$output" 2>&1 &
    names[$!]=$name
    outputs[$!]=$output
    started[$!]=$SECONDS
}

run() { # run NAME COMMAND...: unless the filter leaves it out
    [[ $1 != *"$filter"* ]] || start "$@"
}

replay() { # replay BUILD: every fuzz target over its committed corpus, one test each
    local program name ok=0 bad=0
    for program in "$1"/fuzz/fuzz_*; do
        name=$(basename "$program")
        [[ -x $program && $name == *"$filter"* ]] || continue
        if "$program" "tests/fuzz/corpus/${name#fuzz_}" >"$1/replay.log" 2>&1; then
            ok=$((ok + 1))
        else
            cat "$1/replay.log"
            echo "FAIL $name over its corpus"
            bad=$((bad + 1))
        fi
    done
    echo "$ok passed, $bad failed"
}

# A preset that does not build is a failed test, not the end of the run.
for preset in release asan; do
    if ! tandem_build $preset all; then
        failed=$((failed + 1))
        continue
    fi
    for program in build/$preset/tests/test_*; do
        run "$preset/$(basename "$program")" "$program"
    done
    start "$preset, corpora of the fuzz targets" replay build/$preset
    finish_all
done

# The client library is held to leave nothing behind, and to read nothing that was not written.
for name in $(cat tests/memcheck.txt); do
    run "memcheck/$name" valgrind -q --leak-check=full --error-exitcode=99 build/release/tests/"$name"
done

run cuda/plugins tests/cuda_plugins.sh
finish_all

if tandem_build tsan all_tests; then
    for name in $(cat tests/tsan.txt); do
        run "tsan/$name" build/tsan/tests/"$name"
    done
    finish_all
else
    failed=$((failed + 1))
fi

# Mutates the committed corpus without adding to it; a finding is printed with its input in base64.
fuzz_for_10_s() {
    local program=$1 name corpus
    name=$(basename "$program")
    corpus=$(mktemp -d)
    cp -r "tests/fuzz/corpus/${name#fuzz_}/." "$corpus"
    "$program" -max_total_time=10 -max_len=4096 -timeout=10 -rss_limit_mb=4096 -artifact_prefix="$corpus/" \
        -verbosity=0 "$corpus" && echo "1 passed, 0 failed"
}
if [ $fuzz = 1 ]; then
    tandem_install clang libclang-rt-14-dev || exit 1
    if tandem_build fuzz all_fuzz; then
        for program in build/fuzz/fuzz/fuzz_*; do
            [ -x "$program" ] && run "fuzz/$(basename "$program")" fuzz_for_10_s "$program"
        done
    else
        failed=$((failed + 1))
    fi
fi

run tidy python3 tests/tidy.py
for file in tests/e2e/test_*.py; do
    [ -e "$file" ] && run "e2e/$(basename "$file" .py)" python3 "$file"
done
if [ $long = 1 ]; then
    tandem_install dpkg-dev file lintian debootstrap || exit 1
    for file in tests/e2e/must_show_*.py; do
        [ -e "$file" ] && run "long/$(basename "$file" .py)" python3 "$file"
    done
fi

finish_all
echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed != 0 ] # a filter that fits nothing has shown nothing
