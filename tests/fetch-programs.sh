#!/bin/sh
# Fetches programs that use bcache, unpacked in $BCACHE_TEST_CACHE/programs (default
# .cache/programs at the top of the workspace): libblockdev with its kbd plugin and
# what that needs, and Prometheus' node_exporter. Debian 12 is the last release that
# has the plugin, so they come from there. Nothing is installed.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
folder=${BCACHE_TEST_CACHE:-$top/.cache}/programs
mkdir -p "${folder%/*}"
# Tests run side by side: the first fetches, the others wait for it.
exec 9>"$folder.lock"
flock 9
[ ! -e "$folder/complete" ] || exit 0

# The guests have the C library of this machine, which may be newer.
packages='libblockdev-kbd2 libblockdev-utils2 libbytesize1 libglib2.0-0 libkmod2 libmpfr6 libgmp10
libpcre2-8-0 libffi8 libselinux1 libmount1 libblkid1 libudev1 zlib1g liblzma5 libzstd1 libssl3
prometheus-node-exporter'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/debs" "$work/tree"
# Where this machine has Debian from; before the first update apt cannot tell whose a source is.
repositories() {
    # shellcheck disable=SC2016 # apt's own variable
    apt-get indextargets --format '$(REPO_URI)' "$@" | sort -u | head -n 1
}
mirror=$(repositories 'Origin: Debian' 'Label: Debian')
[ -n "$mirror" ] || mirror=$(repositories)
[ -n "$mirror" ] || {
    echo "fetch-programs: apt has no source to take them from" >&2
    exit 1
}
echo "deb $mirror bookworm main" >"$work/sources.list"
# Lists of their own, so that nothing of this machine's changes. As root, apt would warn that its own
# user cannot write here.
apt_do() {
    apt-get -q -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State::Lists="$work/lists" -o Dir::State::Status=/dev/null \
        -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root "$@" >&2
}
apt_do update
cd "$work/debs"
# The list is words, one a package.
# shellcheck disable=SC2086
apt_do download $packages
for deb in *.deb; do
    dpkg-deb -x "$deb" "$work/tree"
done
rm -rf "$folder"
mkdir -p "$folder/lib" "$folder/bin"
find "$work/tree/usr/lib" "$work/tree/lib" -name '*.so.*' -exec cp -a {} "$folder/lib" \;
cp "$work/tree/usr/bin/prometheus-node-exporter" "$folder/bin"
touch "$folder/complete"
