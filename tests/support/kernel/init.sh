#!/bin/busybox sh
# shellcheck shell=dash
# The first process of a machine: mounts what scripts need, loads the modules and waits for
# disks. Here its state is kept, and a guest goes on: it finds its disks, takes its files from
# the last, and does what begin.sh says. The kernel's console is ttyS0; everything that
# is printed here and by the script goes to ttyS1, so that the two never mix
# within a line and the kernel's last words survive a power cut.
/bin/busybox mkdir -p /proc /sys /dev /tmp /sbin /usr/bin /usr/sbin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /usr/bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/
stty -F /dev/ttyS1 raw -echo
exec </dev/null >/dev/ttyS1 2>&1
# Loads what is in /modules/order, once.
modules() {
    [ -e /modules/order ] || return 0
    while read -r module; do
        insmod "/modules/$module" || echo "insmod $module: failed"
    done </modules/order
    rm /modules/order
}
modules
echo LAB-BOOTED
# The bus is looked through again: the disks were not there when the kernel did.
files=/sys/bus/pci/devices/0000:00:1e.0
until [ -e "$files" ]; do
    usleep 20000
    echo 1 >/sys/bus/pci/rescan
done
disk=$(basename "$files"/virtio*/block/*)
cd /
cpio -idu <"/dev/$disk" 2>/dev/null
# A script sees the test's disks and no other.
echo 1 >"$files/remove"
. /begin.sh
