# Sourced by launcher/quickstart.sh and tests/run.sh: finds out which Debian packages are missing and installs them.
# Without root it says what to install and stops; with nothing missing it needs no root.

tandem_cmake_flags=()
tandem_packages="gcc libc6-dev cmake ninja-build libuv1-dev libyaml-dev libjansson-dev libpcre2-dev"

tandem_missing_packages() {
    local package missing=""
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) == *"ok installed"* ]] || missing="$missing $package"
    done
    # llhttp: the library where the distribution has it (Debian 13), else the C sources in node-llhttp (Debian 12).
    if [ ! -f /usr/share/llhttp/llhttp.c ] && [ -z "$(find /usr/include /usr/local/include -name llhttp.h 2>/dev/null)" ]
    then
        if apt-cache show libllhttp-dev >/dev/null 2>&1; then
            missing="$missing libllhttp-dev"
        else
            missing="$missing node-llhttp"
        fi
    fi
    echo "$missing"
}

tandem_install() { # tandem_install [PACKAGE ...]: what every build needs, and these besides
    local missing
    missing=$(tandem_missing_packages $tandem_packages "$@")
    [ -z "$missing" ] && return 0
    if [ "$(id -u)" != 0 ]; then
        echo "These packages are missing; install them as root and run this again:" >&2
        echo "    apt-get install --no-install-recommends$missing" >&2
        return 1
    fi
    echo "installing:$missing" >&2
    apt-get update -qq >&2 || return 1
    missing=$(tandem_missing_packages $tandem_packages "$@") # now that the package lists are there
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
}

# tandem_build PRESET TARGET...: configures, with the array tandem_cmake_flags, and builds; shows the log when it fails
tandem_build() {
    local preset=$1 log
    shift
    mkdir -p build
    log=build/$preset.log
    echo "building ($preset)" >&2
    if ! { cmake --preset "$preset" "${tandem_cmake_flags[@]}" && cmake --build --preset "$preset" --target "$@"; } >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        echo "the build failed; the whole log is in $log" >&2
        return 1
    fi
}
