#!/bin/sh
# Tries the Debian package in trees of Debian releases (arguments; default: bookworm
# and trixie): installed in the place of bcache-tools and back, purged, the initramfs
# made anew each time and what it holds run, the tree booted from a bcache device by
# initramfs-tools and by dracut, and lintian. Says each step once it is done.
# `make check-deb` calls it: it wants root, mmdebstrap, lintian, QEMU, a network, the
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
trap 'rm -rf --one-file-system "$work"' EXIT
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

    # The first process of the booted tree: says what udev and the kernel have made of the devices, also
    # after the cold plug that systemd does, and switches off.
    cat >"$tree/root-check" <<'END'
#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -o remount,rw /
for kind in proc sysfs devtmpfs; do
    case $kind in sysfs) on=/sys ;; devtmpfs) on=/dev ;; *) on=/proc ;; esac
    mountpoint -q $on || mount -t $kind $kind $on
done
links() {
    echo "BOOT links $1 $(ls /dev/bcache/by-uuid 2>&1)"
}
# What systemd leaves on the line is not this one's.
echo
echo "BOOT root $(awk '$2 == "/" { print $1, $3 }' /proc/mounts | tail -n 1)"
links before
/usr/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add --subsystem-match=block
udevadm settle --timeout=60
links after
bcachectl status --timeout 60s
echo "BOOT status $?"
echo "BOOT again $(dmesg | grep -c 'device already registered')"
sync
echo o >/proc/sysrq-trigger
sleep 60
END
    chmod 755 "$tree/root-check"
    # The tree as a file system in a backing device, and its cache, in writeback mode.
    make_root() {
        truncate -s 1200M "$tree/tmp/backing"
        truncate -s 256M "$tree/tmp/cache"
        in_tree bcachectl make --writeback --cache /tmp/cache --bdev /tmp/backing >"$work/log" 2>&1 ||
            fail "make"
        mv "$tree/tmp/backing" "$tree/tmp/cache" "$work"
        # The initramfs has the modules that it needs.
        mv "$tree/usr/lib/modules" "$work/modules"
        # Behind the superblock, which takes 8 KiB.
        mke2fs -q -t ext4 -b 4096 -E offset=8192 -U "$root_uuid" -d "$tree" "$work/backing" \
            $((1200 * 256 - 2)) >"$work/log" 2>&1 || fail "mke2fs"
        mv "$work/modules" "$tree/usr/lib/modules"
    }
    # boots IMAGE: with this initramfs, from the bcache device.
    boots() {
        timeout 400 qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
            -machine q35,accel=tcg -m 1024 -serial stdio -kernel "$tree/boot/vmlinuz-$kernel" \
            -initrd "$1" \
            -append "root=UUID=$root_uuid ro init=/root-check console=ttyS0 loglevel=4 rd.shell=0" \
            -drive "if=virtio,format=raw,cache=unsafe,file=$work/backing" \
            -drive "if=virtio,format=raw,cache=unsafe,file=$work/cache" >"$work/log" 2>&1 </dev/null ||
            fail "QEMU"
        tr -d '\r' <"$work/log" >"$work/said"
        for line in 'BOOT root /dev/bcache0 ext4' 'BOOT status 0' 'BOOT again 0'; do
            grep -qx "$line" "$work/said" || fail "no $line"
        done
        for when in before after; do
            grep -Eqx "BOOT links $when [0-9a-f-]{36}" "$work/said" || fail "no link $when the cold plug"
        done
        grep -q 'attached-' "$work/said" || fail "not attached"
    }
    root_uuid=11111111-2222-4333-8444-555555555555

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
    make_root
    boots "$tree/boot/initrd.img-$kernel"
    # And with dirty data of the root file system on the cache.
    boots "$tree/boot/initrd.img-$kernel"
    say "installed again; initramfs-tools boots from a bcache device, twice, with its links and no" \
        "second registration"
    apt purge bcachectl || fail "cannot be purged"
    left=$(about_bcache)
    [ -z "$left" ] || fail "left behind: $left"
    in_tree lsinitramfs "/boot/initrd.img-$kernel" >"$work/initramfs"
    ! grep -q bcache-register "$work/initramfs" || fail "the initramfs was not made anew"
    say "purged: nothing left, nor in the initramfs"

    apt install /tmp/ours.deb dracut || fail "dracut"
    mount -t proc proc "$tree/proc"
    dracut_status=0
    in_tree dracut --no-hostonly --kver "$kernel" /tmp/dracut.img >"$work/log" 2>&1 || dracut_status=$?
    umount "$tree/proc"
    [ $dracut_status = 0 ] || fail "dracut has made no image"
    boots "$tree/tmp/dracut.img"
    say "dracut boots from the same device"
    rm -rf "$tree"
done
suite="all of $*"
say "passed"
