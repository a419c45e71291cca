#!/bin/sh
# Fetches the stock Debian kernels that the tests boot, one of each series named
# on the command line (default: 6.1 and 6.12), the newest that this machine's apt
# sources offer. Each ends up unpacked in $BCACHE_TEST_CACHE/kernels/SERIES
# (default .cache/kernels/SERIES at the top of the workspace); the file `release`
# in it names the kernel and is written last, so a folder with one is complete.
# A series that this machine's release of Debian does not have comes from the
# release that does, on the same mirror.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
cache=${BCACHE_TEST_CACHE:-$top/.cache}/kernels
PATH=$PATH:/usr/sbin:/sbin

# The newest package of series $1: Debian 12 names them linux-image-6.1.0-50-amd64,
# its backports linux-image-6.12.111+deb12-amd64, Debian 13 linux-image-6.12.48+deb13-amd64.
newest() {
    series=$(printf '%s' "$1" | sed 's/\./\\./g')
    apt_do apt-cache pkgnames "linux-image-$1." |
        grep -E "^linux-image-$series\.[0-9]+(-[0-9]+)?(\+deb[0-9]+(u[0-9]+)?)?-amd64$" |
        sort -V | tail -n 1
}

# Where apt looks: `own`, as this machine is set up, or `releases`, in those that have one
# of the kernels. Lists of the latter are kept apart, so that nothing here changes.
from=own
apt_do() {
    command=$1
    shift
    if [ "$from" = own ]; then
        "$command" "$@"
    else
        "$command" -o Dir::Etc::SourceList="$cache/apt/sources.list" -o Dir::Etc::SourceParts=- \
            -o Dir::State::Lists="$cache/apt/lists" -o Dir::Cache="$cache/apt/cache" \
            -o APT::Sandbox::User="$(id -un)" "$@"
    fi
}

look_in_releases() {
    from=releases
    # shellcheck disable=SC2016 # apt's own variable
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' |
        sort -u | head -n 1)
    [ -n "$mirror" ] || return 0
    mkdir -p "$cache/apt/lists/partial" "$cache/apt/cache/archives/partial"
    printf "deb $mirror %s main\n" bookworm trixie >"$cache/apt/sources.list"
    apt_do apt-get -q update >&2
}

# The package lists of a fresh machine are empty; reading them needs root.
refresh_lists() {
    if [ "$from" = releases ]; then
        apt_do apt-get -q update >&2
    elif [ "$(id -u)" = 0 ]; then
        apt-get -q update >&2
    elif command -v sudo >/dev/null; then
        sudo apt-get -q update >&2
    else
        echo "fetch-kernels: the package lists may be stale: run 'apt-get update' as root" >&2
    fi
}

# Package $1 into folder $2. As root, apt would warn that its own user cannot write there.
download() {
    (cd "$2" && apt_do apt-get -q -o APT::Sandbox::User=root download "$1" >&2)
}

fetch() {
    into=$cache/$1
    [ -s "$into/release" ] && return
    from=own
    package=$(newest "$1")
    if [ -z "$package" ]; then
        refresh_lists
        package=$(newest "$1")
    fi
    if [ -z "$package" ]; then
        look_in_releases
        package=$(newest "$1")
    fi
    if [ -z "$package" ]; then
        echo "fetch-kernels: apt offers no linux-image-$1*-amd64;" \
            "6.1 is in Debian 12, 6.12 in Debian 13 and in Debian 12's backports;" \
            "add that suite to this machine's apt sources" >&2
        exit 1
    fi
    echo "fetch-kernels: $package"
    work=$(mktemp -d "$cache/$1.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    if ! download "$package" "$work"; then
        # Lists older than the archive name versions that are gone from it.
        refresh_lists
        package=$(newest "$1")
        download "$package" "$work"
    fi
    dpkg -x "$work"/*.deb "$work"
    rm "$work"/*.deb
    # Since usrmerge some packages put the modules under usr; depmod wants lib.
    [ -d "$work/lib/modules" ] || ln -s usr/lib "$work/lib"
    release=${package#linux-image-}
    depmod -b "$work" "$release"
    echo "$release" >"$work/release"
    rm -rf "$into"
    mv "$work" "$into"
    trap - EXIT
}

mkdir -p "$cache"
[ $# -gt 0 ] || set -- 6.1 6.12
for series; do
    fetch "$series"
done
