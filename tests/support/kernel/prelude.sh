# shellcheck shell=sh
# What every guest script may call. The lines printed here in capitals are read
# by `Log` (log.rs), which documents their grammar.

# Begins a new part of the log, which the test asks for by this name.
stage() {
    echo "STAGE $1"
    echo "<6>LAB-STAGE $1" >/dev/kmsg
}

# wait_for SECONDS COMMAND...: until COMMAND succeeds; fails when time is over.
wait_for() {
    wait_tries=$(($1 * 10))
    shift
    until "$@" 2>/dev/null; do
        wait_tries=$((wait_tries - 1))
        if [ "$wait_tries" -le 0 ]; then
            echo "wait_for: timed out: $*"
            return 1
        fi
        usleep 100000
    done
}

# register DEV: offers the device to the kernel. The mark in the kernel's log
# tells whose the error lines after it are: kernel 6.12 leaves the name out.
register() {
    echo "<6>LAB-REGISTER $1" >/dev/kmsg
    if echo "$1" 2>/dev/null >/sys/fs/bcache/register; then
        echo "REGISTER $1 accepted"
    else
        echo "REGISTER $1 refused"
        return 1
    fi
}

# The UUIDs of the registered sets, one a line.
sets() {
    for set_dir in /sys/fs/bcache/*-*-*-*-*; do
        [ ! -d "$set_dir" ] || basename "$set_dir"
    done
}

# attach DEV [SET]: attaches a registered backing device, by default to the only set.
attach() {
    wait_for 10 test -e "/sys/block/$(basename "$1")/bcache/attach"
    echo "${2:-$(sets)}" >"/sys/block/$(basename "$1")/bcache/attach"
}

# md5 DEV [BYTES]: of the whole device or its first BYTES (a multiple of 4 KiB),
# read past the page cache, so that it is what bcache itself would return. With
# /sums, a whole device, or a file, is copied there, and the host makes the sum.
md5() {
    if [ -z "${2:-}" ] && [ -b /sums ]; then
        md5_at=$(cat /sums.next 2>/dev/null || echo 0)
        if [ -b "$1" ]; then
            md5_bytes=$(blockdev --getsize64 "$1")
            md5_from=iflag=direct
        else
            md5_bytes=$(stat -c %s "$1")
            md5_from=
        fi
        # shellcheck disable=SC2086
        dd if="$1" $md5_from of=/sums bs=1M seek="$md5_at" oflag=direct conv=notrunc 2>/dev/null
        echo "$((md5_at + md5_bytes / 1048576 + 1))" >/sums.next
        echo "COPIED $md5_at $md5_bytes $1"
    elif [ -n "${2:-}" ]; then
        md5_sum=$(dd if="$1" bs=4k count="$(($2 / 4096))" iflag=direct 2>/dev/null | md5sum)
        echo "MD5 ${md5_sum%% *}  $1:$2"
    else
        md5_sum=$(dd if="$1" bs=1M iflag=direct 2>/dev/null | md5sum)
        echo "MD5 ${md5_sum%% *}  $1"
    fi
}

# figure NAME FILE: what FILE says. A file that is not there leaves no figure.
figure() {
    if figure_text=$(cat "$2" 2>/dev/null); then
        echo "SYSFS $1"
        echo "$figure_text"
    else
        echo "figure: cannot read $2"
    fi
}

# set_figures [SET]: the figures of a set (by default the only one) and of its caches.
set_figures() {
    figures_dir=/sys/fs/bcache/${1:-$(sets)}
    for cache_dir in "$figures_dir"/cache[0-9]*; do
        cache_name=$(basename "$cache_dir")
        for figure_name in priority_stats nbuckets cache_replacement_policy; do
            figure "$cache_name/$figure_name" "$cache_dir/$figure_name"
        done
    done
    for figure_name in cache_available_percent root_usage_percent tree_depth \
        average_key_size internal/btree_nodes internal/btree_used_percent; do
        figure "$figure_name" "$figures_dir/$figure_name"
    done
}

# bdev_figures DEV...: the figures of backing devices.
bdev_figures() {
    for bdev; do
        bdev_dir=/sys/block/$(basename "$bdev")/bcache
        for figure_name in dirty_data state cache_mode running; do
            figure "$bdev_dir/$figure_name" "$bdev_dir/$figure_name"
        done
    done
}

# capture NAME COMMAND...: runs a command and keeps its output and exit status apart.
capture() {
    capture_name=$1
    shift
    echo "CAPTURE $capture_name"
    capture_status=0
    "$@" 2>&1 || capture_status=$?
    echo
    echo "CAPTURE-END $capture_status"
}

# Waits until nobody holds the disk: a refused one too is let go of a moment later.
wait_free() {
    # The partition table is not read again as long as someone does.
    wait_for 60 blockdev --rereadpt "$1"
}

bcache_gone() {
    for bcache_dir in /sys/block/bcache* /sys/block/*/bcache /sys/fs/bcache/*-*-*-*-*; do
        [ ! -e "$bcache_dir" ] || return 1
    done
}

# Stops every bcache device and set, as a clean shutdown does, and waits until
# they are gone and the disks are free again, a moment later than sysfs shows.
# What is dirty stays dirty and attached.
stop_all() {
    stop_disks=
    for bcache_dir in /sys/block/*/bcache; do
        disk_dir=${bcache_dir%/bcache}
        case $disk_dir in
        */bcache[0-9]*) ;;
        *) [ ! -e "$bcache_dir" ] || stop_disks="$stop_disks /dev/$(basename "$disk_dir")" ;;
        esac
    done
    for bcache_dir in /sys/block/bcache*/bcache /sys/block/*/bcache /sys/fs/bcache/*-*-*-*-*; do
        [ ! -e "$bcache_dir/stop" ] || echo 1 2>/dev/null >"$bcache_dir/stop" || true
    done
    wait_for 60 bcache_gone
    for disk in $stop_disks; do
        wait_free "$disk"
    done
}

# A power cut: the machine resets at once, nothing is written back first. Says
# so before, and waits for that line to leave the port.
crash() {
    echo CRASH
    stty -F /dev/ttyS1 raw
    echo b >/proc/sysrq-trigger
    sleep 60
}
