#!/bin/sh
# Fetches Debian's udev and unpacks it in $BCACHE_TEST_CACHE/udev (default
# .cache/udev at the top of the workspace), for the guests in which the rules are
# tried. It is not installed: its daemon has no business on this machine.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
folder=${BCACHE_TEST_CACHE:-$top/.cache}/udev
mkdir -p "${folder%/*}"
# Tests run side by side: the first fetches, the others wait for it.
exec 9>"$folder.lock"
flock 9
[ ! -e "$folder/complete" ] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"
apt-get -q download udev >&2 || {
    # The package lists of a fresh machine are empty.
    apt-get -q update >&2
    apt-get -q download udev >&2
}
rm -rf "$folder"
mkdir -p "$folder"
dpkg-deb -x udev_*.deb "$folder"
touch "$folder/complete"
