#!/bin/sh
# Installs the Debian packages that building and testing need, those that are not
# there yet. Arguments: `build`, `test` or both (default); `package` for tests/package.sh.
set -eu

build='gcc libc6-dev pkg-config libblkid-dev libclang-dev'
# Debian 13's udevadm, which guests run, needs libsystemd-shared.
test='qemu-system-x86 busybox-static kmod cpio xz-utils mount mandoc bcache-tools e2fsprogs dmsetup
qemu-utils nbd-client gddrescue libsystemd-shared'
package='mmdebstrap lintian'

# The oldest compiler that the workspace builds with (rust-version in Cargo.toml).
oldest=1.85.0
recent_enough() {
    [ "$(printf '%s\n%s\n' "$oldest" "${1%%[-+~]*}" | sort -V | head -n 1)" = "$oldest" ]
}

[ $# -gt 0 ] || set -- build test
wanted=
for group; do
    case $group in
    build) wanted="$wanted $build" ;;
    test) wanted="$wanted $test" ;;
    package) wanted="$wanted $package" ;;
    *)
        echo "usage: install-deps.sh [build] [test] [package]" >&2
        exit 2
        ;;
    esac
done

missing=
for package in $wanted; do
    case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
    'install ok installed') ;;
    *) missing="$missing $package" ;;
    esac
done

# A compiler that is there already is kept, wherever it came from.
rust=
command -v cargo >/dev/null || rust=yes

if [ -n "$missing$rust" ]; then
    if [ "$(id -u)" = 0 ]; then
        sudo=
    elif command -v sudo >/dev/null; then
        sudo='sudo -E'
    else
        [ -z "$rust" ] || missing="$missing cargo"
        echo "install-deps: as root, run: apt-get install$missing" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    $sudo apt-get -q update
    if [ -n "$rust" ]; then
        # Debian 12 has a newer compiler than its own beside it, for building browsers.
        if recent_enough "$(apt-cache policy rustc | sed -n 's/^ *Candidate: //p')"; then
            missing="$missing cargo rustfmt rust-clippy"
        else
            missing="$missing cargo-web rustfmt-web rust-web-clippy"
        fi
    fi
    # The list is words, one a package.
    # shellcheck disable=SC2086
    $sudo apt-get -q install -y --no-install-recommends $missing
fi

version=$(rustc --version | cut -d' ' -f2)
if ! recent_enough "$version"; then
    echo "install-deps: rustc $version is too old, $oldest or newer is needed: Debian's cargo-web (12) or cargo (13) has it, or rustup" >&2
    exit 1
fi
