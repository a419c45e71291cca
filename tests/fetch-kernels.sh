#!/bin/sh
# Fetches the stock Debian kernels that the tests boot, those named on the command
# line (default: 6.1, 6.12 and newest). A series is the newest of it that this
# machine's apt sources offer; `newest` is the newest that Debian packages at all,
# in trixie-backports or sid. Each ends up unpacked in
# $BCACHE_TEST_CACHE/kernels/NAME (default .cache/kernels/NAME at the top of the
# workspace); the file `release` in it names the kernel and is written last, so a
# folder with one is complete. Which kernel each is, is printed.
# A series that this machine's release of Debian does not have comes from the
# release that does, on the same mirror.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
cache=${BCACHE_TEST_CACHE:-$top/.cache}/kernels
PATH=$PATH:/usr/sbin:/sbin

# Days after which a newer one is looked for in place of `newest`.
newest_days=7

# The newest package of series $1, or of all for `newest`: Debian 12 names them linux-image-6.1.0-50-amd64,
# its backports linux-image-6.12.111+deb12-amd64, Debian 13 linux-image-6.12.48+deb13-amd64.
newest() {
    if [ "$1" = newest ]; then
        apt_do apt-cache pkgnames linux-image- |
            grep -E '^linux-image-[0-9]+\.[0-9.]+(\+deb[0-9]+(u[0-9]+)?)?-amd64$' |
            sort -V | tail -n 1
        return
    fi
    series=$(printf '%s' "$1" | sed 's/\./\\./g')
    apt_do apt-cache pkgnames "linux-image-$1." |
        grep -E "^linux-image-$series\.[0-9]+(-[0-9]+)?(\+deb[0-9]+(u[0-9]+)?)?-amd64$" |
        sort -V | tail -n 1
}

# Where apt looks: `own`, as this machine is set up, `releases`, in those that have one of the
# series, or `newest`, in the suites with the newest kernels. Lists of the latter two are kept
# apart, so that nothing here changes.
from=own
apt_do() {
    command=$1
    shift
    if [ "$from" = own ]; then
        "$command" "$@"
    else
        "$command" -o Dir::Etc::SourceList="$cache/apt/$from/sources.list" \
            -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$cache/apt/$from/lists" \
            -o Dir::Cache="$cache/apt/$from/cache" \
            -o APT::Sandbox::User="$(id -un)" "$@"
    fi
}

# look_in FROM SUITE...: makes lists of those suites of this machine's mirror.
look_in() {
    from=$1
    shift
    # shellcheck disable=SC2016 # apt's own variable
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' |
        sort -u | head -n 1)
    [ -n "$mirror" ] || return 0
    mkdir -p "$cache/apt/$from/lists/partial" "$cache/apt/$from/cache/archives/partial"
    printf "deb $mirror %s main\n" "$@" >"$cache/apt/$from/sources.list"
    # A suite that the mirror does not have is no reason to go without the others.
    apt_do apt-get -q update >&2 || true
}

# The package lists of a fresh machine are empty; reading them needs root.
refresh_lists() {
    if [ "$from" != own ]; then
        apt_do apt-get -q update >&2
    elif [ "$(id -u)" = 0 ]; then
        apt-get -q update >&2
    elif command -v sudo >/dev/null; then
        sudo apt-get -q update >&2
    else
        echo "fetch-kernels: the package lists may be stale: run 'apt-get update' as root" >&2
    fi
}

# Package $1 into folder $2, with the packages that hold its parts: since 7.1 the kernel and its
# modules are packages of their own. As root, apt would warn that its own user cannot write there.
download() {
    parts=$(apt_do apt-cache depends "$1" |
        sed -n 's/^ *Depends: <*\(linux-\(base\|binary\|modules\)-[0-9][^<>]*\)>*$/\1/p')
    # The list is words, one a package.
    # shellcheck disable=SC2086
    (cd "$2" && apt_do apt-get -q -o APT::Sandbox::User=root download "$1" $parts >&2)
}

# Says which kernel $1 is.
tell() {
    echo "fetch-kernels: $1 is $(cat "$cache/$1/release")"
}

fetch() {
    into=$cache/$1
    if [ -s "$into/release" ]; then
        if [ "$1" != newest ] ||
            [ -z "$(find "$into/release" -mtime "+$((newest_days - 1))")" ]; then
            tell "$1"
            return
        fi
    fi
    if [ "$1" = newest ]; then
        look_in newest trixie-backports sid
        package=$(newest newest)
        if [ -s "$into/release" ]; then
            # No newer one, or no network: the one that is there goes on serving.
            if [ -z "$package" ] || [ "$package" = "linux-image-$(cat "$into/release")" ]; then
                [ -z "$package" ] || touch "$into/release"
                tell newest
                return
            fi
        fi
        if [ -z "$package" ]; then
            echo "fetch-kernels: no newest kernel: the mirror '$mirror' offers none in" \
                "trixie-backports or sid" >&2
            exit 1
        fi
    else
        from=own
        package=$(newest "$1")
    fi
    if [ -z "$package" ]; then
        refresh_lists
        package=$(newest "$1")
    fi
    if [ -z "$package" ]; then
        look_in releases bookworm trixie
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
    for deb in "$work"/*.deb; do
        dpkg -x "$deb" "$work"
        rm "$deb"
    done
    # Since usrmerge some packages put the modules under usr; depmod wants lib.
    [ -d "$work/lib/modules" ] || ln -s usr/lib "$work/lib"
    release=${package#linux-image-}
    depmod -b "$work" "$release"
    echo "$release" >"$work/release"
    # With it go the states of machines that have booted it.
    rm -rf "$into" "$into"-*.state
    mv "$work" "$into"
    trap - EXIT
    tell "$1"
}

mkdir -p "$cache"
[ $# -gt 0 ] || set -- 6.1 6.12 newest
for series; do
    fetch "$series"
done
