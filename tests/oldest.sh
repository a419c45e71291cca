#!/bin/sh
# Compiles the workspace, tests and all, with Debian 13's compiler: the oldest that it
# is to build with (rust-version in Cargo.toml). `make check-oldest` calls it: it wants
# root, mmdebstrap and a network. The tree of that release is kept in
# $BCACHE_TEST_CACHE/oldest (default .cache/oldest), with what Cargo built in it.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
cache=${BCACHE_TEST_CACHE:-$top/.cache}/oldest
tree=$cache/trixie

if [ ! -d "$tree" ]; then
    mkdir -p "$cache"
    rm -rf --one-file-system "$cache/new"
    mmdebstrap -q --variant=minbase \
        --include=cargo,rustc,gcc,libc6-dev,pkg-config,libblkid-dev,libclang-dev,ca-certificates \
        trixie "$cache/new"
    mv "$cache/new" "$tree"
fi
[ -c "$tree/dev/null" ] || mknod -m 666 "$tree/dev/null" c 1 3
# The machine's way to the network: names, and whom it trusts.
cp /etc/resolv.conf "$tree/etc/resolv.conf"
cp /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/" 2>/dev/null || true
rm -rf "$tree/src"
mkdir -p "$tree/src"
git -C "$top" ls-files -z | tar -C "$top" -c --null --files-from=- | tar -C "$tree/src" -x

chroot "$tree" /usr/bin/env HOME=/root CARGO_HOME=/root/.cargo CARGO_TARGET_DIR=/root/target \
    PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -c '
        rustc --version
        cd /src
        cargo check --locked --workspace --all-targets'
echo "oldest.sh: the workspace compiles with Debian 13's compiler"
