#!/bin/sh
# Installs the Debian packages that building and testing need, those that are not
# there yet. Arguments: `build`, `test` or both (default).
set -eu

build='gcc libc6-dev pkg-config libblkid-dev libclang-dev'
test='qemu-system-x86 busybox-static kmod cpio xz-utils mount mandoc bcache-tools e2fsprogs'

[ $# -gt 0 ] || set -- build test
wanted=
for group; do
    case $group in
    build) wanted="$wanted $build" ;;
    test) wanted="$wanted $test" ;;
    *)
        echo "usage: install-deps.sh [build] [test]" >&2
        exit 2
        ;;
    esac
done

# A compiler that is there already is kept, wherever it came from.
command -v cargo >/dev/null || wanted="$wanted cargo rustfmt rust-clippy"

missing=
for package in $wanted; do
    case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
    'install ok installed') ;;
    *) missing="$missing $package" ;;
    esac
done

if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then
        sudo=
    elif command -v sudo >/dev/null; then
        sudo='sudo -E'
    else
        echo "install-deps: as root, run: apt-get install$missing" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    $sudo apt-get -q update
    # The list is words, one a package.
    # shellcheck disable=SC2086
    $sudo apt-get -q install -y --no-install-recommends $missing
fi

version=$(rustc --version | cut -d' ' -f2)
oldest=1.85.0
if [ "$(printf '%s\n%s\n' "$oldest" "${version%%-*}" | sort -V | head -n 1)" != "$oldest" ]; then
    echo "install-deps: rustc $version is too old, $oldest or newer is needed: Debian 13 has it, else use rustup" >&2
    exit 1
fi
