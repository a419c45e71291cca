//! The sections that no parser knows.

pub(super) type Sections = &'static [(&'static str, &'static str)];

pub(super) const SEE_ALSO: (&str, &str) = (
    "SEE ALSO",
    "bcachectl(8), bcachectl-make(8), bcachectl-show(8), bcachectl-check(8), \
     bcachectl-invalidate(8), bcachectl-list(8), bcachectl-export(8), bcachectl-serve(8), bcachectl-writeback(8), bcachectl-repair(8), \
     bcachectl-undo(8), bcachectl-recovery(7), bcachectl-image(8), bcachectl-register(8), bcachectl-status(8), bcache-bench(8), blkid(8), \
     losetup(8), wipefs(8)

The kernel's own text is Documentation/admin-guide/bcache.rst.",
);

pub(super) const FILES: (&str, &str) = (
    "FILES",
    "/sys/fs/bcache/register :: Writing the path of a device here registers it with the kernel.

/sys/fs/bcache/UUID :: A running cache set.

/sys/block/DEV/bcache :: A registered device. Writing a set's UUID to attach in it attaches a \
     backing device.",
);

pub(super) const MAIN_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl formats, inspects and repairs the devices of bcache, the block cache of the Linux \
     kernel: an SSD (the cache device) in front of disks (backing devices).

make, check and invalidate work on devices that the kernel does not run at the moment, and on image \
     files of them. show and list work on devices in use, too. register, attach and others control \
     the running kernel, and status shows its state. Whatever is written is planned and shown first, \
     and the stock kernel accepts the result.",
)];

pub(super) const MAIN_AFTER: Sections = &[
    (
        "ENVIRONMENT",
        "NO_COLOR :: If set and not empty, output is not coloured. Output that does not go to a \
         terminal is never coloured.",
    ),
    (
        "EXIT STATUS",
        "0 :: All went well.

1 :: Refused, or failed before anything was written.

2 :: Usage error.

3 :: Failed after writing had begun; the message says what became of each device.

The man pages of the commands list further statuses.",
    ),
    (
        "EXAMPLES",
        "First steps: make a cache of an SSD partition and a backing device of a disk, attached to each \
         other, and see what was made:

    bcachectl make --cache /dev/nvme0n1p4 --bdev /dev/sdb
    bcachectl show

Is a cache in order, and is there data that only it has?

    bcachectl check /dev/nvme0n1p4 /dev/sdb
    bcachectl show --dirty /dev/nvme0n1p4

The same on files, without root and without a risk:

    truncate --size 1G cache.img disk.img
    bcachectl make --cache cache.img --bdev disk.img
    bcachectl show cache.img disk.img",
    ),
    FILES,
    SEE_ALSO,
];

pub(super) const MAKE_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl make writes the superblocks that make block devices, or image files, cache and \
     backing devices. Options have the places and meanings that they have for make-bcache(8): \
     --cache and --bdev apply to all devices that follow.

A cache and backing devices that are made in one command share a cache set: registering them \
     attaches the backing devices. Backing devices that are made alone can be given a set with \
     --cset-uuid, or be attached later through sysfs. A set has one cache device; several cache \
     devices in one command become sets of their own.

make examines all devices and plans everything before it writes the first byte. It refuses what the \
     kernel would refuse, or would accept and then hang on; a device that is mounted, held or \
     registered; and a bcache device itself (/dev/bcacheN). It also refuses a device that holds \
     anything, unless an option allows make to destroy it: --wipe-bcache for a bcache superblock, \
     even in a partition, with its magic wiped, or gone; --force for everything else, unknown data \
     included. On a terminal, make names every device, shows what would be destroyed and asks. \
     --dry-run shows every write and does none of them; it claims the devices as a real run does, \
     and refuses what a real run would refuse. If make removes a partition table, it tells the \
     kernel.

A cache may hold data that exists nowhere else: dirty data, which the backing device lacks, and \
     flash-only volumes. make reads the cache and says how much of each volume would be lost. \
     --wipe-bcache is then not enough. Nor is it enough if make cannot tell, or if a backing device \
     needs its cache (state dirty or inconsistent). On a terminal, type the start of the UUID of its \
     set; elsewhere give --lose-dirty-data or --lose-set UUID.

make reads the data offset differently from make-bcache(8), which ignores the unit: 161280k means \
     161280 sectors there, and 161280 KiB (322560 sectors) here. A plain number means sectors for \
     both. make prints the value it uses, in sectors and in bytes.

The kernel attaches a backing device only if its blocks are not smaller than those of the set. With \
     --cset-uuid, make looks for the set's cache in the machine and refuses smaller blocks; where \
     the set is not found, it says so.

The kernel reuses the cache bucket by bucket. The default bucket size is 512 KiB. The kernel needs \
     at least 513 buckets: on a cache device too small for that, make uses smaller buckets, and says \
     so. A bucket holds at least two blocks: if the default block size is too large for that, make \
     uses smaller blocks. Buckets over 16 MiB need superblock version 5, which kernels before 5.11 \
     do not read.

Sizes are whole numbers with k, M, G or T (powers of 1024; KiB, MiB, ... mean the same).",
)];

pub(super) const MAKE_AFTER: Sections = &[
    (
        "JSON",
        "With --json the output is one object with dry_run and devices. Each device has the keys \
         that bcachectl-show(8) documents, of the superblock that is or was to be written, and: \
         state (formatted; undefined, which is neither as before nor formatted; or untouched, also \
         for a new image file that was removed again), formatted (whether the superblock is on the \
         device now), created (whether the image file is new), destroys and notes (lists of text), \
         error (text, where it failed), and steps, a list of objects with step (write, discard, \
         flush), what, offset_bytes and bytes.",
    ),
    (
        "EXIT STATUS",
        "0 :: All devices are formatted and read back as planned; or --dry-run found no objection.

1 :: Refused or failed, and nothing was written.

2 :: Usage error.

3 :: Failed after writing had begun. The message names the devices that are formatted, the one in \
         an undefined state, those not written, and new image files, which are removed again. Also: \
         all devices are formatted, but the report of it could not be written.",
    ),
    (
        "EXAMPLES",
        "A cache and a disk for it, attached as soon as both are registered:

    bcachectl make --cache /dev/nvme0n1 --bdev /dev/sdb

The same in writeback mode, with buckets of 2 MiB, shown and not done:

    bcachectl make --dry-run --bucket 2M --writeback -C /dev/nvme0n1 -B /dev/sdb

A backing device whose data starts at 1 MiB, for a set that exists:

    bcachectl make -B /dev/sdc -o 2048 --cset-uuid 0bd1bca4-7a2e-4d5c-9a39-f2b0a3a17b15

An image file to try things on:

    bcachectl make --cache /tmp/cache.img --size 1G",
    ),
    FILES,
    SEE_ALSO,
];

pub(super) const SHOW_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl show tells what bcache devices hold. It only reads, needs no privileges for image \
     files, and works on devices in use.

Without a device it lists every bcache device of the machine, which of them belong together (a \
     backing device to the set whose UUID it carries), and what the running kernel says of them: the \
     state is the kernel's where it runs the device, and what it runs is listed even if the \
     superblock is gone.

For each device named, it says first what the device is; whether the kernel would register it, and \
     if not, why, in the kernel's own words; what would be lost; and what you can do now. Then it \
     lists what the kernel would accept but cannot handle, and prints a short table. For a backing \
     device the table includes the type of its data, where the data starts, and the command to \
     access it without bcache. If only the cache has some of that data, a warning precedes the \
     command. With -v, or if the checksum is bad, every field of the superblock is shown: flags and \
     features by name, unknown bits as they are.

show examines all devices named together: a backing device can tell what its cache alone cannot, and \
     the other way round.

Of a cache device that is in use, everything is read that the kernel reads at registration: the \
     journal, the prios, the uuid table and the whole btree. That completes the kernel's verdict, \
     and tells whether there is dirty data on the cache, how much, of which backing device, and \
     whether the cache is safe to wipe. Reading the btree takes some minutes for a cache of many \
     terabytes; --superblock skips it. The list of all devices of the machine reads only \
     superblocks, and of a new cache the places where its journal will be. A warning says if an old \
     journal of the same set is there, which would become valid again.

The output names the backing device of a volume if it is on the command line or in the machine. If there \
     is a copy of a device in the machine, it names both.

The lists (--prios, --journal, --uuids, --btree, --keys, --lookup) are printed while they are made, \
     and end early if the reader closes the pipe. Only --sort and --reverse keep 4 bytes per bucket \
     in memory. Reading the set takes 8 bytes per bucket, and the keys that the journal would \
     replay.

show presents the kernel's own view right after registration: keys of the journal laid over those of \
     the btree, gens raised by newer pointers, the marks of GC. The state of a running kernel is \
     newer than what its device holds; if the device is in use, a warning says that it may change \
     while it is read.",
)];

pub(super) const SHOW_AFTER: Sections = &[
    (
        "JSON",
        "With --json the output is one object with devices, and errors where a device could not be \
         read: path, error, and advice where something can be done. Numbers are numbers, \
         never text. Each device has:

path :: As it was given; bytes that are not UTF-8 are replaced.

kind :: cache, backing, or null where there is no bcache superblock.

size_sectors :: Size in sectors of 512 bytes.

superblock :: null, or an object with checksum (ok, bad or missing), version, uuid, set_uuid, label, flags, \
         flags_unknown, seq, block_size_sectors, last_mount, feature_compat, feature_incompat, \
         feature_ro_compat; for a cache bucket_size_sectors, nbuckets, first_bucket, \
         njournal_buckets, nr_in_set, nr_this_dev, replacement, sync, discard; for a backing device \
         data_offset_sectors, cache_mode, state.

kernel :: An object with accepts (true or false), error (null, or the kernel's message) and warnings \
         (a list of text).

data :: For a backing device: offset_bytes, losetup, mount, needs_cache, contents (what the data is, \
         as text, or null), commands (a list of commands that reach it without bcache).

found :: What else libblkid finds on the device; absent where there is nothing.

in_use :: Who holds the device; absent where nobody does. What was read from a device in use may be \
         inconsistent; a warning on standard error says so.

running :: What sysfs says of a registered device: device, set_uuid, state, cache_mode, dirty_data.

For a cache device there is more:

dirty :: An object with answer (none, present, unknown), sectors (of dirty data; those that are \
         certain where the answer is unknown; null where nothing could be read), safe_to_wipe \
         (true or false), volumes (a list of slots whose data would be lost), text (a list of \
         sentences). With --dirty also for a backing device.

stakes :: What exists nowhere else; for a backing device, what only its cache has. An object with \
         answer (none, present, unknown), at_least_sectors, at_most_sectors (null where nothing \
         bounds it) and volumes (a list of objects with slot, uuid, label, flash_only, \
         at_least_sectors, at_most_sectors). Unknown is never reported as none.

advice :: What can be done, most urgent first: a list of objects with code, text and command (or \
         null). The codes are stable: safe-to-wipe, stop-first, do-not-register, do-not-wipe, \
         grow-back, get-whole-device, copy-device, take-copy-away, uncover-older-set, register-and-detach, write-back-offline, \
         write-back-ran-alone, export, \
         repair, copy-flash-only, bring-backing, bring-cache, clear-dirty-state, do-not-run-alone, \
         check-contents, block-size, name-backing. Backing devices have stakes and advice, too.

problems, more_problems :: What is wrong with the set, as text; and the number of further problems, \
         if the list was cut.

usage :: With --usage: buckets (an object with total, unused, clean, dirty, metadata), percent (the \
         same as the kernel rounds it), available, available_percent, average, \
         sectors_per_quantile, quantiles (a list of 31 ages), gen_span_max, gen_span_limit, \
         buckets_at_limit, btree (an object with nodes, depth, keys, used_percent, \
         root_used_percent), ages (an object with step and counts), and volumes, a list of objects \
         with slot, uuid, label, flash_only, detached, cached_sectors, dirty_sectors, extents, \
         backing, backing_state, data_offset_sectors (the last three null where the device is not \
         present).

prios :: With --prios: a list of objects with bucket, prio, gen, last_gc, gen_span, mark (unused, \
         clean, dirty, metadata), sectors_used, use (null, or journal, prios, uuids, btree). The \
         list starts at the first bucket that the kernel uses.

journal :: With --journal: first_seq (the oldest entry on the device), last_seq (the newest), \
         replay_from, entries, replay_entries, replay_keys, buckets, current_bucket, \
         current_offset, gaps (a list of pairs), and entry_list, a list of objects with seq, \
         last_seq, index, bucket, offset, bytes, keys (null where the kernel does not look any \
         more), state (newest, replay, old).

uuids :: With --uuids: a list of objects with slot, uuid, label, flash_only, detached, first_reg, \
         last_reg, invalidated (seconds since 1970), sectors, flags, backing.

btree :: With --btree: nodes, depth, keys, usable_keys, bad_nodes, node_bytes, used_percent, \
         root_used_percent, root_bucket, and node_list, a list of objects with level, bucket, \
         cache_sector, end_volume, end_sector, keys, sets, written_bytes, fill_percent, error.

keys :: With --keys or --bucket: a list of objects, one for each pointer of a key, with source \
         (btree, journal), level, node, seq, volume, start, end, sectors, dirty, bucket, \
         cache_sector, gen, state (valid, hole, unavailable, stale, freed), stale_by. Keys of the \
         btree are listed whole, also where a key of the journal lies over them.

lookup :: With --lookup: a list of objects with volume, start, end, bcache_start, state (cached, \
         dirty, absent), cache_sector, bucket, source, node, key.

The rows that --format ndjson and csv print, one list at a time, are those objects.",
    ),
    (
        "LOOKING THINGS UP",
        "Sectors of a volume are counted as bcache's keys do: from the first sector of the backing \
         device, its superblock included. Sector 0 of /dev/bcacheN is the sector data offset (16, \
         as a rule) of the backing device; where that is present, the list has both. Flash-only \
         volumes have no such offset.

--lookup VOLUME:SECTOR says what is cached at a place, --bucket LIST what points into buckets. \
         Ages of buckets are distances from the prio 32768 of a bucket that was just used; the \
         quantiles are those of the kernel's priority_stats.",
    ),
    (
        "EXIT STATUS",
        "0 :: Every device named carries a bcache superblock with a good checksum; without devices \
         named, every device of the machine could be looked at.

1 :: Some device could not be read, carries no bcache superblock, or one with a bad checksum; or a \
         cache set is damaged, cut short or empty, so that keys may be missing from what is shown.

2 :: Usage error.

With --dirty, for scripts:

0 :: Every cache device may be wiped, and every backing device is complete.

1 :: This cannot be determined.

2 :: Usage error.

4 :: There is dirty data on a cache device, or a backing device needs some that is on its cache.

5 :: There is no dirty data, but a cache device must not be wiped: it is in use, or has a flash-only \
         volume to which nothing was written.",
    ),
    (
        "EXAMPLES",
        "What is there, and what belongs together:

    bcachectl show

May this cache be wiped?

    bcachectl show --dirty /dev/nvme0n1 || echo keep it

How is it used, and what is cached of the first MiB of /dev/bcache0?

    bcachectl show --usage --lookup 0:16+2048 /dev/nvme0n1

The ten coldest buckets with clean data:

    bcachectl show --prios --sort prio --format ndjson /dev/nvme0n1 |
        jq -c 'select(.mark == \"clean\")' | head

Would the kernel take this image?

    bcachectl show --json cache.img | jq '.devices[0].kernel'",
    ),
    FILES,
    SEE_ALSO,
];

pub(super) const CHECK_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl check looks for errors in the cache set on a cache device. It only reads, and does \
     not stop at the first finding. It checks the superblock, the journal, the prios, the uuid \
     table, the btree and all keys as the kernel does at registration, and also for errors that the \
     kernel does not look for.

The first line says whether the kernel would register the set and whether data is at risk. The \
     findings follow, each with its code, which stays the same in all versions; its severity; its \
     place; what was expected and what was found; and what you can do.

If backing devices are named as well, check also tells whether they belong to the set, and whether \
     their state matches what the cache holds. The devices can be in any order. If only backing \
     devices are named, check looks for their cache in the machine. If it is not there, check \
     examines each of them alone: whether the kernel accepts it, and whether it lacks data that only \
     its cache has. With --verify-clean, check compares the clean data in the cache with the backing \
     devices, which reads both.

check looks for copies of the devices in the rest of the machine: a cloned disk, a snapshot, a rescued \
     image as a loop device. The kernel registers the one that it meets first. While there is a copy, check \
     reports it and does not advise to register or write anything. Layers over one another, paths to one \
     disk, a disk and its partitions, and loop devices over the same file or device are no copies. Of image \
     files none is looked for.

A device in use changes while it is read, which looks like damage; stop the set first.",
)];

pub(super) const CHECK_AFTER: Sections = &[
    (
        "SEVERITY",
        "kernel refuses :: The kernel does not register the set, or gives it up when it comes across \
         this.

data at risk :: The kernel registers the set; data may be lost, wrong or unreachable.

not checked :: What was to be checked could not be, such as a backing device of another set. That \
         says nothing of the data.

untidy :: Nothing is lost, and the kernel does not mind. A power failure leaves such things.",
    ),
    (
        "JSON",
        "With --json the output is one object with path, backing (a list of paths), registers (true \
         or false), in_use (a list of text), registration (accepted, initialised, or an object \
         refused with code and reason), data_at_risk, dirty (a list of objects with slot, uuid, \
         label, flash_only, dirty_sectors), incomplete (whether there may be more than was found), \
         unread (whether some part could not be read), worst (the severity of the worst finding, \
         listed or not: untidy, not-checked, data-at-risk, kernel-refuses; or null), \
         findings (a list of objects with code, number, severity, place, expected, found, advice), \
         counts (an object: findings of each code, listed or not), stakes and advice (as \
         bcachectl-show(8) has them) and exit_status.",
    ),
    (
        "EXIT STATUS",
        "The sum of these, as fsck(8) has them, or 2 on a usage error:

0 :: No errors. Findings of severity untidy are listed but are not errors, even if one of them \
         leaves open whether data is at risk.

4 :: Errors were found, and left uncorrected.

8 :: The device, or a part of it, could not be read, or it is not a bcache device.",
    ),
    (
        "EXAMPLES",
        "Is this cache in order, and does the disk belong to it?

    bcachectl check /dev/nvme0n1 /dev/sdb

The same with everything that is cached compared, for a program:

    bcachectl check --json --verify-clean cache.img disk.img",
    ),
    FILES,
    SEE_ALSO,
];

pub(super) const INVALIDATE_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl invalidate drops buckets from a cache that the kernel does not run at the moment. \
     Whatever was cached there is then read from the backing device. It does what the kernel does \
     when it reuses a bucket: the bucket's gen is raised by one, which makes every pointer to it \
     stale.

Only clean data is dropped. invalidate refuses buckets with dirty data, which the backing device \
     lacks; buckets of the journal, the prio chain, the uuid table and the btree; and buckets whose \
     gen is 96 ahead of the oldest pointer to them, the kernel's own limit. Each refusal says what \
     is at stake and what you can do instead. If a bucket named by --bucket or --sectors is refused, \
     nothing is written unless --skip-refused is given. The other selections take only buckets that \
     can be invalidated: --volume takes the buckets with clean data of a volume and lists those of \
     them that hold dirty data too; --all-clean lists those at the limit. These lists also say what \
     to do instead, and are not failures.

A freed btree node leaves a marker with a gen in its parent. The kernel does not count the marker \
     for this limit, but once the bucket's gen is 129 ahead of it, the marker sets the gen back. So \
     such a bucket is refused at 96, too.

Sectors have 512 bytes. --sectors counts from the start of the device, as the device itself reports \
     bad sectors; on a partition, subtract its start. A bucket is invalidated as a whole, with the \
     clean data of all volumes in it. --coldest takes buckets by their priority, which falls as they \
     go unused; P% is a share of the buckets with clean data that can be invalidated. --policy \
     chooses as the kernel's allocator would right after registration, with the same code as the \
     allocator of bcache-bench(8): buckets without any data come first. It may take fewer than \
     --count: random gives up after half as many draws as there are buckets, as the kernel does, and \
     the others when no more buckets can be invalidated. It then says after how many it gave up.

invalidate reads the cache set as the kernel does, the journal included. It refuses a set with \
     damage. It also refuses a journal in which the new entry would expose others that the kernel \
     does not see now, and one whose replay range lacks entries (kernels before 6.19 leave such a \
     gap in a set with discard, and ignore it). It then writes the new priorities and gens to unused \
     buckets, flushes them and reads them back. One journal entry makes them current, and is flushed \
     too. Finally it reads the whole set again and verifies that every bucket and volume is as \
     planned. A power cut at any time leaves the old state or the new one, and both are sound. On a \
     terminal, invalidate shows what it would drop and asks. Without a terminal it needs --yes, \
     unless --dry-run is given.

A device in use is refused. To stop a running cache, unmount its bcache devices, write 1 to \
     /sys/block/bcacheN/bcache/stop of each, and to /sys/fs/bcache/UUID/stop.",
)];

pub(super) const INVALIDATE_AFTER: Sections = &[
    (
        "JSON",
        "With --json the output is one object, for --dry-run too, and where a run failed after it was \
         planned:

state :: planned (--dry-run), refused, done, unchanged (it failed with nothing invalidated), \
         old-or-new (exit status 3), unproven (4), or undefined (5).

invalidated :: A list of objects with bucket, prio, gen_before, gen_after and sectors (in use by \
         data). With the states old-or-new, unproven and undefined it is what was to be invalidated.

refused :: A list of objects with bucket, reason and kind (text). A range past the end of the device \
         is one of them, with its first bucket.

advice :: A list of objects with kind, buckets (how many are refused for it) and instead (what to do, \
         text): one for each kind of refusal.

gave_up :: Where a policy took fewer buckets than --count: an object with found and wanted; else null.

prio_chain :: The buckets of the new prio chain, head first; empty where nothing is written.

journal_seq :: The number of the new journal entry, or null.",
    ),
    (
        "EXIT STATUS",
        "0 :: The buckets are invalidated, and the set was read again to prove it; or there was \
         nothing to invalidate (also where all that --volume found is refused); or --dry-run found no \
         objection.

1 :: Refused, or failed, and nothing is invalidated: the cache is as it was. Only unused buckets may \
         have been written.

2 :: Usage error.

3 :: The device failed after it was sent the journal entry and before the entry was durable. The \
         cache is entirely as it was or entirely as planned, and sound either way.

4 :: Everything was written and flushed, but could not be read again to prove it.

5 :: What was read back is not what was written: the device is failing, and its state undefined.

6 :: As 0, the buckets are invalidated, but the report could not be written.",
    ),
    (
        "EXAMPLES",
        "The coldest 30 % of a cache that has become slow, shown and not done:

    bcachectl invalidate /dev/nvme0n1 --coldest 30% --dry-run

What covers eight sectors that the SSD cannot read any more:

    bcachectl invalidate /dev/nvme0n1 --sectors 81920+8

All clean data of the volume labelled home, in a script:

    bcachectl invalidate /dev/nvme0n1 --volume home --yes --json",
    ),
    FILES,
    SEE_ALSO,
];
