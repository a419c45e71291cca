#!/bin/sh
# Runs `make check` as the README has it in bare trees of Debian releases (arguments; default:
# bookworm and trixie), where nothing is but make, git and certificates. `make check-bare` calls
# it: it wants root, mmdebstrap, loop devices and a network. A tree takes some 25 GiB in
# $BCACHE_TEST_CACHE/bare (default .cache/bare), and is removed once its run has passed.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
cache=${BCACHE_TEST_CACHE:-$top/.cache}/bare
[ $# -gt 0 ] || set -- bookworm trixie

mkdir -p "$cache"
for suite; do
    begun=$(date +%s)
    tree=$cache/$suite
    rm -rf --one-file-system "$tree"
    mmdebstrap -q --variant=minbase --include=git,make,ca-certificates "$suite" "$tree"
    # The machine's way to the network: names, and whom it trusts.
    cp /etc/resolv.conf "$tree/etc/resolv.conf"
    cp /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/"
    git clone -q "$top" "$tree/root/source"
    # What is mounted is gone with the namespace, however the run ends.
    unshare --mount --propagation private sh -eu -c '
        tree=$1
        mount -t proc proc "$tree/proc"
        mount -t sysfs sysfs "$tree/sys"
        mount --rbind /dev "$tree/dev"
        mount -t tmpfs tmpfs "$tree/run"
        exec chroot "$tree" /usr/bin/env -i HOME=/root TERM=dumb CI=true \
            SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
            PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
            make -C /root/source check
    ' sh "$tree"
    rm -rf --one-file-system "$tree"
    echo "bare.sh: $suite: make check passed ($(($(date +%s) - begun)) s)"
done
