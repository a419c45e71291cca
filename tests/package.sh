#!/bin/sh
# Tries the Debian package in trees of Debian releases (arguments; default: bookworm
# and trixie): installed in the place of bcache-tools and back, the initramfs made
# anew with what registers bcache devices, and lintian. Wants root, mmdebstrap,
# lintian, a network, and the package, which `make deb` builds. Trees are kept in
# $BCACHE_TEST_CACHE/package (default .cache/package).
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
cache=${BCACHE_TEST_CACHE:-$top/.cache}
deb=$(ls "$top"/target/debian/bcachectl_*.deb) || {
    echo "package.sh: no package: run make deb first" >&2
    exit 1
}
[ $# -gt 0 ] || set -- bookworm trixie

fail() {
    echo "package.sh: $suite: $*" >&2
    exit 1
}

lintian --allow-root --fail-on error,warning "$deb"

mkdir -p "$cache/package"
kernel=$(cat "$cache/kernels/6.1/release")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
for suite; do
    kept=$cache/package/$suite.tar
    if [ ! -e "$kept" ]; then
        mmdebstrap --variant=minbase --include=initramfs-tools,bcache-tools,udev,kmod,e2fsprogs,zstd \
            "$suite" "$cache/package/new-$suite.tar" || fail "no tree"
        mv "$cache/package/new-$suite.tar" "$kept"
    fi
    tree=$work/$suite
    mkdir "$tree"
    tar -x --exclude='./dev/*' -f "$kept" -C "$tree"
    mknod -m 666 "$tree/dev/null" c 1 3
    cp /etc/resolv.conf "$tree/etc/resolv.conf"
    # A kernel's modules, for the initramfs: the test suite's own.
    cp -a "$cache/kernels/6.1/lib/modules" "$tree/usr/lib/"
    cp "$cache/kernels/6.1/boot/config-$kernel" "$cache/kernels/6.1/boot/vmlinuz-$kernel" "$tree/boot/"
    cp "$deb" "$tree/tmp/ours.deb"
    in_tree() {
        chroot "$tree" /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive \
            LC_ALL=C.UTF-8 "$@"
    }
    # The lists of the tree were cleaned.
    in_tree apt-get -q update
    in_tree depmod "$kernel"
    in_tree update-initramfs -c -k "$kernel"

    installed() {
        [ "$(in_tree dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
    }
    in_initramfs() {
        in_tree lsinitramfs "/boot/initrd.img-$kernel" | grep -q "$1"
    }

    # In the place of bcache-tools.
    installed bcache-tools || fail "bcache-tools is not in the tree"
    in_tree apt-get -q install -y --no-install-recommends /tmp/ours.deb || fail "cannot be installed"
    installed bcachectl || fail "not installed"
    ! installed bcache-tools || fail "bcache-tools is still there"
    for name in usr/lib/udev/bcache-register usr/lib/udev/bcache-export-cached \
        usr/lib/udev/rules.d/69-bcache.rules /bcache.ko; do
        in_initramfs "$name" || fail "the initramfs lacks $name"
    done
    ! in_initramfs keep-symlinks || fail "the initramfs has what bcache-tools brought"
    # What the initramfs holds runs: by its libraries and its name.
    in_tree sh -c "cd /tmp && unmkinitramfs /boot/initrd.img-$kernel x"
    for part in "$tree/tmp/x/main" "$tree/tmp/x"; do
        [ ! -e "$part/usr/lib/udev/bcache-register" ] || break
    done
    said=$(chroot "$part" /usr/lib/udev/bcache-register 2>&1) && fail "bcache-register without a device"
    [ "$said" = "bcache-register takes exactly one argument" ] || fail "in the initramfs: $said"
    in_tree sh -c 'truncate -s 300M /tmp/c && make-bcache -C /tmp/c && bcache-super-show /tmp/c' \
        | grep -q 'cache device' || fail "make-bcache"
    in_tree bcachectl --version

    # And back, and again.
    in_tree apt-get -q install -y --no-install-recommends bcache-tools || fail "no way back"
    ! installed bcachectl || fail "still there"
    in_tree dpkg --verify bcache-tools || fail "bcache-tools is not whole"
    in_tree sh -c '! test -e /usr/lib/udev/bcache-export-cached' || fail "left behind"
    in_initramfs bcache-register || fail "the initramfs of bcache-tools lacks bcache-register"
    in_tree apt-get -q install -y --no-install-recommends /tmp/ours.deb || fail "cannot come back"
    in_tree dpkg --verify bcachectl || fail "not whole"
    in_tree apt-get -q purge -y bcachectl || fail "cannot be purged"
    in_tree sh -c '! ls /usr/sbin/*bcache* /usr/lib/udev/*bcache* 2>/dev/null' || fail "left behind"
    rm -rf "$tree"
    echo "package.sh: $suite: passed"
done
