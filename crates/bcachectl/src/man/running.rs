//! The sections of the pages about running devices.

use bcache_cli::man::{Page, Sections};

use super::text::{FILES, SEE_ALSO};

/// The statuses that the commands share.
const STATUS: (&str, &str) = (
    "EXIT STATUS",
    "0 :: Done, as sysfs confirms; or there was nothing to do; or --dry-run found no objection.

1 :: Refused, and nothing was written; or the kernel rejected it.

2 :: Usage error.

3 :: The kernel was told, but something else happened; the message says what.

4 :: The kernel was told, but did not finish within --timeout. It may still be working on it. If the \
     kernel does not answer before it is told anything, the status is 1.

130 :: Interrupted while the kernel was working on it. What cannot be cancelled continues.",
);

const JSON: (&str, &str) = (
    "JSON",
    "With --json the output is one object with dry_run and results, a list of objects with action, \
     target, state (planned, done, already-so, refused, failed), writes (a list of objects with file \
     and value), notes (a list of objects, each with a code), bcache (the bcache device it led to), \
     took_ms, error and kernel_log (what bcache logged meanwhile). It is printed when a command \
     fails, too.",
);

const NAMES: (&str, &str) = (
    "DEVICES",
    "Name a backing device by its path, by the path or name of the bcache device it runs as, or by \
                     its UUID; name a set by its UUID or by its cache device.",
);

const REGISTER_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl register tells the kernel to take devices into use. A backing device whose superblock \
     names a set attaches to it by itself as soon as both are registered; the order does not matter. \
     A device that is registered already is not an error.

register first judges the superblock as the kernel would. It refuses a device that is held, \
     read-only or a copy of one that is registered. It also refuses a cache whose backing device \
     went on without it after the cache failed: reads would return old contents. If a backing device \
     was started without its cache, the kernel drops what the cache holds of it. register then reads \
     all of the cache's metadata, and refuses if there is dirty data or it cannot tell; \
     --lose-dirty-data overrides this. The message says what to do first.

Registering a large cache takes minutes and cannot be interrupted. Meanwhile the kernel does not \
     answer queries about bcache.",
)];
const REGISTER_AFTER: Sections = &[
    JSON,
    STATUS,
    (
        "EXAMPLES",
        "A cache and its disk:

    bcachectl register /dev/nvme0n1 /dev/sdb",
    ),
    FILES,
    SEE_ALSO,
];

const ATTACH_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl attach attaches a running backing device to a cache set. Its bcache device may be \
     mounted. The command ends when the device is attached and its superblock says so.

attach accepts only a device that needs no other cache. The kernel itself would also attach one that \
     waits for its own set; if the new set had cached the device before, reads would return old \
     contents. attach refuses that. It also refuses a set whose blocks are larger than those of the \
     device.",
)];
const ATTACH_AFTER: Sections = &[
    NAMES,
    JSON,
    STATUS,
    (
        "EXAMPLES",
        "By the cache device, and by the set's UUID:

    bcachectl attach /dev/sdb /dev/nvme0n1
    bcachectl attach bcache0 0bd1bca4-7a2e-4d5c-9a39-f2b0a3a17b15",
    ),
    FILES,
    SEE_ALSO,
];

const DETACH_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl detach detaches a backing device from its cache. The kernel first writes the dirty \
     data back at full speed; this cannot be cancelled. The bcache device stays, may be mounted, and \
     runs on without a cache. Without --wait the command ends when the kernel has been told.",
)];
const DETACH_AFTER: Sections =
    &[NAMES, JSON, STATUS, ("EXAMPLES", "    bcachectl detach --wait bcache0"), FILES, SEE_ALSO];

const FLUSH_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl flush writes dirty data back to the last sector and waits until the superblock of the \
     backing device says clean. Meanwhile it sets writeback_delay and writeback_percent to 0 and \
     writeback_running to 1. It restores them afterwards, also if it fails or is interrupted by \
     SIGINT, SIGTERM or SIGHUP. After SIGKILL they stay changed: status says so, and the next flush \
     of the device restores them first. Until then the old values are in /run/bcachectl.

In writeback mode new writes make the device dirty again. With --writethrough the cache mode is \
     writethrough meanwhile.",
)];
const FLUSH_AFTER: Sections = &[
    NAMES,
    JSON,
    STATUS,
    (
        "EXAMPLES",
        "All devices of a set, for at most ten minutes:

    bcachectl flush --writethrough --timeout 10m /dev/nvme0n1",
    ),
    FILES,
    SEE_ALSO,
];

const STOP_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl stop stops a backing device, or a set with all of its backing devices and flash-only \
     volumes. The command ends when others can open the devices. Dirty data stays on the cache, and \
     is there when both are registered again.

A bcache device that is mounted, held or used as swap is refused, and the users are named. --lazy \
     stops it nevertheless: those who have it open can go on using it, nobody else can open it, and \
     it disappears at the last close. This cannot be cancelled.",
)];
const STOP_AFTER: Sections = &[
    NAMES,
    JSON,
    STATUS,
    ("EXAMPLES", "    umount /home\n    bcachectl stop bcache0"),
    FILES,
    SEE_ALSO,
];

const UNREGISTER_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl unregister takes a cache set out of use: the kernel writes all dirty data back and \
     detaches the backing devices, which run on, mounted or not. Flash-only volumes stop; their data \
     stays on the cache.

With --wipe the cache device is claimed as soon as the kernel lets go of it, so that udev does not \
     register it again. All of it is read, and its superblock is zeroed only if it certainly holds \
     no dirty data and no flash-only volume.",
)];
const UNREGISTER_AFTER: Sections = &[
    NAMES,
    JSON,
    STATUS,
    (
        "EXAMPLES",
        "Take the SSD away for good:

    bcachectl unregister --wipe /dev/nvme0n1",
    ),
    FILES,
    SEE_ALSO,
];

const RUN_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl run starts a backing device without the cache that it waits for. The superblock then \
     says \"inconsistent\", and whatever that cache holds of the device is no longer used.

A device that runs already, because its cache failed, is stopped, registered and started again: only \
     this records in its superblock that it went on without its cache. It must not be in use.

If the device is clean, nothing is lost. If it is dirty, the latest writes are only on the cache, \
     and the kernel silently drops them as soon as it sees both again. In this case type \"lose \
     dirty data\" on a terminal, or give --lose-dirty-data. Wipe the old cache before the kernel \
     sees it again.",
)];
const RUN_AFTER: Sections =
    &[NAMES, JSON, STATUS, ("EXAMPLES", "    bcachectl run /dev/sdb"), FILES, SEE_ALSO];

const LABEL_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl label gives a running backing device or a flash-only volume a label. The label is \
     kept in the superblock, or in the cache. udev makes a link named after the label of a backing \
     device.",
)];
const LABEL_AFTER: Sections =
    &[NAMES, JSON, STATUS, ("EXAMPLES", "    bcachectl label bcache0 home"), FILES, SEE_ALSO];

const VOLUME_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl volume create makes a flash-only volume: a block device that is on the cache alone. \
     Its data stays dirty for ever and exists nowhere else. Its size is at least a bucket and at \
     most what the cache has available. The kernel would accept any size, and a volume of size 0 \
     takes a slot for ever and hides all volumes after it.

bcachectl volume remove removes a volume and its data. The volume must not be in use.",
)];
const VOLUME_AFTER: Sections = &[
    NAMES,
    JSON,
    STATUS,
    (
        "EXAMPLES",
        "    bcachectl volume create --label scratch /dev/nvme0n1 20G
    bcachectl volume remove bcache1",
    ),
    FILES,
    SEE_ALSO,
];

const RESIZE_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl resize makes the new size of a grown backing device available. No kernel can do this \
     while the device runs, so resize stops it and registers it again. Unmount it first. Dirty data \
     stays on the cache meanwhile. Grow the file system afterwards.",
)];
const RESIZE_AFTER: Sections = &[
    NAMES,
    JSON,
    STATUS,
    (
        "EXAMPLES",
        "    lvextend -L +100G vg/slow
    umount /home
    bcachectl resize bcache0",
    ),
    FILES,
    SEE_ALSO,
];

const REPLACE_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl replace-cache moves all backing devices of a set to another cache device, because the \
     old one wears out or is too small: the size of a cache device is fixed when it is made. The \
     bcache devices stay, and may be mounted all the time.

NEW is an empty device, which is formatted with the block size and the replacement policy of the old \
     one; or an existing cache device, registered or not. Anything else is refused, and so is a set \
     with flash-only volumes, whose data cannot be moved.

When the new set is registered and has the settings of the old one, the backing devices are moved \
     one after the other. Each is written back as by bcachectl-flush(8), detached and attached. In \
     between it runs without a cache, and holds all of its data. Finally the old set is \
     unregistered. With --wipe its superblock is wiped as by bcachectl unregister --wipe; otherwise \
     it stays, and a later boot may register it as a set without devices.

No data is lost if it is interrupted. status tells how far it got, and the same command completes \
     it. The list of devices that move is in /run/bcachectl until it is done, and is lost at a \
     reboot: then use bcachectl attach for those that had no cache at that moment.",
)];
const REPLACE_AFTER: Sections = &[
    NAMES,
    JSON,
    STATUS,
    (
        "EXAMPLES",
        "A larger SSD for all disks of the old one, which is then free:

    bcachectl replace-cache --dry-run /dev/nvme0n1 /dev/nvme1n1
    bcachectl replace-cache --wipe /dev/nvme0n1 /dev/nvme1n1",
    ),
    FILES,
    SEE_ALSO,
];

const SET_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl set changes settings of a running backing device or set. All values are checked \
     before the first is written. Each is read back: a value that the kernel changed or ignored is \
     an error, although the kernel itself reports success.

Numbers are in the kernel's unit, which bcachectl-get(8) shows, or have a unit of their own: 4M, 30s, \
     10%. Sizes and rates are powers of 1024. Settings that limit each other are written in the order \
     that works.

Most settings are lost when the device stops or the machine reboots.",
)];
const SET_AFTER: Sections = &[
    NAMES,
    JSON,
    STATUS,
    (
        "EXAMPLES",
        "    bcachectl set bcache0 sequential_cutoff=0 writeback_percent=20
    bcachectl set /dev/nvme0n1 congested_read_threshold_us=0",
    ),
    FILES,
    SEE_ALSO,
];

const GET_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl get lists the settings of a running backing device or set: value, default, unit, range, \
     and whether the value is kept when the device stops. Sizes are as the kernel prints them, cut \
     off after one decimal; with --json, bytes has the least and the most that the value can be.",
)];
const GET_AFTER: Sections = &[
    NAMES,
    (
        "EXIT STATUS",
        "0 :: All went well.

1 :: No such device, set or setting, or the kernel did not answer.

2 :: Usage error.",
    ),
    ("EXAMPLES", "    bcachectl get bcache0 sequential_cutoff"),
    FILES,
    SEE_ALSO,
];

const SETTINGS_BEFORE: Sections = &[
    (
        "DESCRIPTION",
        "The kernel forgets most settings of bcache when a device stops. bcachectl settings save writes \
     those of all registered devices and sets to a file, /etc/bcachectl.toml by default; settings apply \
     sets them again. What a superblock keeps (such as cache_mode and label) is left out.

When the file is rewritten, its entries for devices and sets that are not registered are kept, but \
     not their comments.

apply skips devices and sets that are not registered, and settings that this kernel does not have. \
     If one setting cannot be set, the others still are.",
    ),
    (
        "AT BOOT",
        "Where /etc/bcachectl.toml exists, the udev rules start bcachectl-settings@.service, or \
     settings apply itself where there is no systemd, for each bcache device that appears. udev is \
     not told of some changes, such as an attach to a running device: run settings apply \
     afterwards.",
    ),
    (
        "FILE",
        "The file is TOML. version is 1. Tables are named backing.\"UUID\" by the UUID of a backing \
     device, and set.\"UUID\" by that of a set; each has settings by the names that bcachectl get lists. \
     Values are numbers, true and false, or texts as bcachectl set takes them, such as \"4M\".

The kernel shows sizes cut off after one decimal. The file gets the roundest number that is shown \
     like this, and a comment with the range: correct it if you had set another one.",
    ),
];
const SETTINGS_AFTER: Sections = &[
    NAMES,
    JSON,
    STATUS,
    (
        "EXAMPLES",
        "Try settings, keep them, and see what a boot would set:

    bcachectl set bcache0 sequential_cutoff=16M writeback_percent=20
    bcachectl settings save
    bcachectl settings apply --dry-run

    # /etc/bcachectl.toml, shortened by hand
    version = 1
    [backing.\"59d7e240-1d9f-4595-b7c7-753e909e7196\"]
    sequential_cutoff = \"16M\"
    writeback_percent = 20",
    ),
    FILES,
    SEE_ALSO,
];

const STATUS_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl status shows the state of running sets and devices. Problems come first, with the \
     steps to solve them. It only reads, and never reads files that are costly for the kernel \
     (priority_stats).

A backing device is attached-clean, attached-dirty, plain (it needs no cache), waiting (for the set \
     that its superblock names), detaching, forced (it was started without its cache), or \
     cache-lost: it runs without the cache that its superblock names, because that failed. The last \
     two are dangerous: when the cache comes back, the kernel silently drops dirty data or returns \
     old contents. An attachment to another set than the superblock names is dangerous, too: reads \
     may return what that set cached of the device before. A device that is being detached looks \
     attached until its last sector is written back, and is detaching only after that.

Hits and misses are the kernel's counts of reads since registration. They change every 13.6 seconds, \
     and are too low where there were more than 4,800 a second; the amount that bypassed the cache \
     is a lower bound. --interval measures rates, and the share of the bytes that came from the \
     cache, from the block layer's exact counts.

While the kernel registers a cache it gives only names and counts of sets and devices. status waits \
     for a second, or for --timeout. It then names on standard error what has not answered, shows \
     the rest, and exits with status 1. The same applies to the superblock of a device that does not \
     answer.

--recorded also takes a folder that contains sys, such as the one that sos report makes.",
)];
const STATUS_AFTER: Sections = &[
    NAMES,
    (
        "JSON",
        "With --json the output is one object with sets, unattached (backing devices of no set), \
     findings and, where there are any, not_answering: a list of objects with set, device or superblock. \
     Numbers that the kernel rounds are objects with low and high, the least and the most \
     that the true value can be.

sets :: uuid, cache, cache_bytes, bucket_bytes, nbuckets, available_percent, replacement, io_errors, \
     gc_age_seconds, hits, misses, hit_ratio, backing, volumes.

backing, unattached :: device, bcache, uuid, label, set, state, superblock_state, cache_mode, bytes, \
     dirty_bytes, dirty_target_bytes, writeback_rate_bytes, clean_in (when: clean, never, after-next-write, \
     full-speed, when-idle, or seconds with seconds), io_errors, hits, misses, hit_ratio, bypassed_bytes, rates \
     (with --interval), why (with --why).

volumes :: bcache, slot, label, bytes.

findings :: code, severity (danger, warning, note), text, way_out (a list of steps). The codes: \
     cache-lost, forced, other-set, waiting, io-disabled, not-synchronous, panics, io-errors, full, \
     writeback-stopped, taken-for-clean, closing, unknown; and of what commands have begun: flushing, flush-killed, \
     replacing-cache, replacement-unfinished.",
    ),
    (
        "METRICS",
        "With --prometheus the names are those of node_exporter's bcache collector where the meaning \
     is the same. For a rounded number the metric is the middle of its range, and 0 if it reads \
     0.0k: the kernel counts in sectors. node_bcache_average_key_size_bytes is in bytes, and \
     node_exporter's average_key_size_sectors, which is in bytes too, is left out. \
     bcache_backing_info and bcache_cache_info join the slot numbers to names; bcache_backing_state \
     is 1 for the state that a device is in.",
    ),
    (
        "EXIT STATUS",
        "0 :: There is no danger. There may be warnings and notes.

1 :: The kernel's files could not be read, there is no such device, or something did not answer and \
     is not shown.

2 :: Usage error.

4 :: A device or set is in a state that loses data, or has returned wrong data; the output says what \
     to do.",
    ),
    (
        "EXAMPLES",
        "What bypasses the cache, and how well does the cache work now?

    bcachectl status --why --interval 30s bcache0

For node_exporter's textfile collector:

    bcachectl status --prometheus >/var/lib/node_exporter/bcache.prom",
    ),
    FILES,
    SEE_ALSO,
];

const TOP_BEFORE: Sections = &[
    (
        "DESCRIPTION",
        "bcachectl top looks at the running sets and devices every second, or every --interval, and \
     shows them on the terminal; 80 columns and 24 lines are enough. With --batch it prints the same \
     as lines, once or more often. Problems come first; bcachectl-status(8) has the steps to solve \
     them.

Rates and hits come from the block layer's counts, which are exact. HITS is the share of the bytes \
     read that did not come from the backing device. It needs two samples; --batch begins with the \
     second.

While the kernel holds bcache's lock, as it does when it registers a cache, it does not answer. \
     After a second top says so; keys still work. With --batch it then prints what it has, names the \
     rest on standard error, and exits with status 1. It never reads priority_stats.",
    ),
    (
        "COLUMNS",
        "SET, CACHE :: The first characters of the set's UUID, and the cache device.

AVAIL :: Share of the buckets that are free or hold clean data.

READ/s, WRITE/s :: Bytes a second of the cache device, or of the bcache device.

GC AGE :: Time since the last garbage collection; now, if one has ended since the previous sample.

NODES :: Nodes of the btree, from the last garbage collection.

JOURNAL :: Journal entries whose keys are not yet all in the btree.

DEVICE :: The bcache device, or a backing device that does not run.

STATE :: As bcachectl-status(8) has it, or STALLED: reads and writes wait in bcache, and neither the \
     backing device nor the cache device has done anything since the previous sample. They wait for \
     a bucket, for room in the journal or for garbage collection; the kernel itself counts no such \
     waits.

DISK-R/s, DISK-W/s :: Bytes a second of the backing device, writeback included.

DIRTY :: Dirty data.

WAIT :: Reads and writes under way in the bcache device.",
    ),
    (
        "KEYS",
        "q :: End.

j, k, arrows, Home, End :: Select a device; the lines at the bottom show more about it.

s :: Show only the devices of its set, or all again.

n, r, w, h, d :: Sort by name, most read, most written, fewest hits, most dirty data.

space :: Pause.",
    ),
];
const TOP_AFTER: Sections = &[
    (
        "EXIT STATUS",
        "0 :: It was ended.

1 :: The terminal or the kernel's files could not be used.

2 :: Usage error.",
    ),
    (
        "EXAMPLES",
        "One sample over ten seconds, for a script:

    bcachectl top --once --interval 10s",
    ),
    FILES,
    SEE_ALSO,
];

/// The pages.
pub(super) const PAGES: [Page; 16] = [
    Page::of("register", &["[OPTIONS] DEV..."], REGISTER_BEFORE, REGISTER_AFTER),
    Page::of("attach", &["[OPTIONS] DEV SET"], ATTACH_BEFORE, ATTACH_AFTER),
    Page::of("detach", &["[OPTIONS] [ --wait ] DEV"], DETACH_BEFORE, DETACH_AFTER),
    Page::of("flush", &["[OPTIONS] DEV|SET"], FLUSH_BEFORE, FLUSH_AFTER),
    Page::of("stop", &["[OPTIONS] DEV|SET"], STOP_BEFORE, STOP_AFTER),
    Page::of("unregister", &["[OPTIONS] [ --wipe ] SET"], UNREGISTER_BEFORE, UNREGISTER_AFTER),
    Page::of("run", &["[OPTIONS] DEV"], RUN_BEFORE, RUN_AFTER),
    Page::of("label", &["[OPTIONS] DEV LABEL"], LABEL_BEFORE, LABEL_AFTER),
    Page::of(
        "volume",
        &[
            "create [ --dry-run ] [ --json ] [ --timeout TIME ] [ --label TEXT ] SET SIZE",
            "remove [ --dry-run ] [ --json ] [ --timeout TIME ] [ --yes ] DEV",
        ],
        VOLUME_BEFORE,
        VOLUME_AFTER,
    ),
    Page::of("resize", &["[OPTIONS] DEV"], RESIZE_BEFORE, RESIZE_AFTER),
    Page::of("replace-cache", &["[OPTIONS] [ --wipe ] OLD NEW"], REPLACE_BEFORE, REPLACE_AFTER),
    Page::of("set", &["[OPTIONS] DEV|SET NAME=VALUE..."], SET_BEFORE, SET_AFTER),
    Page::of("get", &["[OPTIONS] DEV|SET [NAME...]"], GET_BEFORE, GET_AFTER),
    Page::of(
        "settings",
        &[
            "save [ --timeout TIME ] [FILE]",
            "apply [ --dry-run ] [ --json ] [ --timeout TIME ] [ --device DEV|SET ] [FILE]",
        ],
        SETTINGS_BEFORE,
        SETTINGS_AFTER,
    ),
    Page::of("status", &["[OPTIONS] [DEV|SET]"], STATUS_BEFORE, STATUS_AFTER),
    Page::of(
        "top",
        &["[OPTIONS]", "[OPTIONS] --batch [ --count N ]", "[OPTIONS] --once"],
        TOP_BEFORE,
        TOP_AFTER,
    ),
];
