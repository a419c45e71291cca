# shellcheck shell=dash
# A guest that has its disks and files (see init.sh): loads the modules that a test adds, runs
# the script and powers off.
date -s "@$(cat /now)" >/dev/null
# Everything from here on, informational lines too, is for the console.
echo 8 >/proc/sys/kernel/printk
echo "<6>LAB-BEGIN" >/dev/kmsg
echo "LAB-BEGIN $(uname -r)"
modules
# Where `md5` copies devices to: its own node, as scripts rename those in /dev.
if [ -e /sums.disk ]; then
    IFS=: read -r major minor <"/sys/block/$(basename "$(cat /sums.disk)")/dev"
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
