#!/bin/busybox sh
# shellcheck shell=dash
# The first process of a guest: mounts what the script needs, loads the modules,
# runs the script and powers off. The kernel's console is ttyS0; everything that
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
# Everything from here on, informational lines too, is for the console.
echo 8 >/proc/sys/kernel/printk
echo "<6>LAB-BEGIN" >/dev/kmsg
echo "LAB-BEGIN $(uname -r)"
while read -r module; do
    insmod "/modules/$module" || echo "insmod $module: failed"
done </modules/order
# Where `md5` copies devices to (sums=DISK on the command line comes as a variable):
# its own node, as scripts rename those in /dev.
if [ -n "${sums:-}" ]; then
    IFS=: read -r major minor <"/sys/block/$sums/dev"
    mknod /sums b "$major" "$minor"
fi
# Signs of life: a guest that gives none has a machine that stalled.
(while sleep 10; do echo "<6>LAB-ALIVE" >/dev/kmsg; done) &
# A script that fails in the middle must not look as if it had reached its end.
sh -e -c '. /prelude.sh; . /script.sh'
echo "LAB-STATUS $?"
echo LAB-END
# Completes when the last byte has left the port.
stty -F /dev/ttyS1 raw
poweroff -f
