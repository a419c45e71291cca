#!/bin/sh
# Tries the Debian package in trees of Debian releases (arguments; default: bookworm
# and trixie): installed in the place of bcache-tools and back, purged, the initramfs
# made anew each time and what it holds run, and lintian. Says each step once it is
# done. `make check-deb` calls it: it wants root, mmdebstrap, lintian, a network, the
# package, which `make deb` builds, and the kernels of the tests. Trees are kept in
# $BCACHE_TEST_CACHE/package (default .cache/package).
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
cache=${BCACHE_TEST_CACHE:-$top/.cache}
deb=$(ls "$top"/target/debian/bcachectl_*.deb) || {
    echo "package.sh: no package: run make deb first" >&2
    exit 1
}
[ $# -gt 0 ] || set -- bookworm trixie

begun=$(date +%s)
suite=package
say() {
    echo "package.sh: $suite: $* ($(($(date +%s) - begun)) s)"
}
# What programs said is shown where a step fails, and only there.
fail() {
    [ ! -e "$work/log" ] || tail -n 40 "$work/log" >&2
    echo "package.sh: $suite: FAILED: $*" >&2
    exit 1
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

lintian --allow-root --fail-on error,warning "$deb" >"$work/log" 2>&1 || fail "lintian"
say "lintian: $(lintian --print-version): $(basename "$deb") has no errors and no warnings"

mkdir -p "$cache/package"
kernel=$(cat "$cache/kernels/6.1/release")
for suite; do
    kept=$cache/package/$suite.tar
    if [ ! -e "$kept" ]; then
        mmdebstrap --variant=minbase --include=initramfs-tools,bcache-tools,udev,kmod,e2fsprogs,zstd \
            "$suite" "$cache/package/new-$suite.tar" >"$work/log" 2>&1 || fail "no tree"
        mv "$cache/package/new-$suite.tar" "$kept"
        say "mmdebstrap made a tree"
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
    apt() {
        in_tree apt-get -q -y -o Dpkg::Use-Pty=0 --no-install-recommends "$@" >"$work/log" 2>&1
    }
    installed() {
        [ "$(in_tree dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
    }
    # The files and links about bcache below /usr and /etc, but for the kernel's.
    about_bcache() {
        in_tree find /usr /etc -name '*bcache*' ! -type d ! -path "/usr/lib/modules/*" ! -path '/usr/share/lintian/*'
    }
    # Each of them belongs to this package, where /lib may stand for /usr/lib.
    owned_by() {
        about_bcache | while read -r file; do
            in_tree dpkg-query -S "$file" "${file#/usr}" 2>/dev/null | grep -q "^$1: " || {
                echo "$file" >"$work/log"
                exit 1
            }
        done
    }
    in_initramfs() {
        in_tree lsinitramfs "/boot/initrd.img-$kernel" >"$work/initramfs"
        for name; do
            grep -q "$name" "$work/initramfs" || fail "the initramfs lacks $name"
        done
    }
    # What the initramfs holds runs: by its libraries and its name.
    runs_in_initramfs() {
        rm -rf "$tree/tmp/x"
        in_tree unmkinitramfs "/boot/initrd.img-$kernel" /tmp/x
        for part in "$tree/tmp/x/main" "$tree/tmp/x"; do
            [ ! -e "$part/usr/lib/udev/bcache-register" ] || break
        done
        said=$(chroot "$part" /usr/lib/udev/bcache-register 2>&1) && fail "bcache-register without a device"
        [ "$said" = "bcache-register takes exactly one argument" ] || fail "in the initramfs: $said"
    }

    # The lists of the tree were cleaned.
    apt update || fail "no package lists"
    in_tree depmod "$kernel"
    in_tree update-initramfs -c -k "$kernel" >"$work/log" 2>&1 || fail "no initramfs"
    installed bcache-tools || fail "bcache-tools is not in the tree"
    theirs=$(in_tree dpkg-query -W -f '${Version}' bcache-tools)
    about_bcache | sort >"$work/before"
    say "a tree with bcache-tools $theirs and its initramfs"

    ours_is_installed() {
        installed bcachectl || fail "not installed"
        ! installed bcache-tools || fail "bcache-tools is still there"
        in_tree dpkg --verify bcachectl >"$work/log" 2>&1 || fail "files are missing or changed"
        owned_by bcachectl || fail "bcache-tools left that behind"
        in_initramfs usr/lib/udev/bcache-register usr/lib/udev/bcache-export-cached \
            usr/lib/udev/rules.d/69-bcache.rules /bcache.ko
        ! grep -q keep-symlinks "$work/initramfs" || fail "the initramfs has what bcache-tools brought"
        runs_in_initramfs
    }
    apt install /tmp/ours.deb || fail "cannot be installed"
    ours_is_installed
    in_tree sh -c 'truncate -s 300M /tmp/c && make-bcache -C /tmp/c && bcache-super-show /tmp/c' \
        >"$work/log" 2>&1 || fail "make-bcache"
    grep -q 'cache device' "$work/log" || fail "bcache-super-show"
    say "$(in_tree bcachectl --version) installed over bcache-tools, no file of that left;" \
        "its initramfs registers; make-bcache and bcache-super-show run"

    apt install bcache-tools || fail "no way back"
    ! installed bcachectl || fail "still there"
    in_tree dpkg --verify bcache-tools >"$work/log" 2>&1 || fail "bcache-tools is not whole"
    owned_by bcache-tools || fail "left behind"
    about_bcache | sort >"$work/after"
    diff "$work/before" "$work/after" >"$work/log" || fail "the tree is not as it was"
    in_initramfs usr/lib/udev/bcache-register usr/lib/udev/rules.d/69-bcache.rules /bcache.ko
    say "back to bcache-tools: its $(wc -l <"$work/after") files as they were, its initramfs made anew"

    apt install /tmp/ours.deb || fail "cannot come back"
    ours_is_installed
    apt purge bcachectl || fail "cannot be purged"
    left=$(about_bcache)
    [ -z "$left" ] || fail "left behind: $left"
    in_tree lsinitramfs "/boot/initrd.img-$kernel" >"$work/initramfs"
    ! grep -q bcache-register "$work/initramfs" || fail "the initramfs was not made anew"
    say "installed again and purged: nothing left, nor in the initramfs"
    rm -rf "$tree"
done
suite="all of $*"
say "passed"
