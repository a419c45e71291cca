//! The sections that no parser knows.

type Sections = &'static [(&'static str, &'static str)];

const SEE_ALSO: (&str, &str) = (
    "SEE ALSO",
    "bcachectl(8), bcachectl-make(8), bcachectl-show(8), bcachectl-invalidate(8), bcache-bench(8), blkid(8), losetup(8), \
     wipefs(8)

The kernel's own text is Documentation/admin-guide/bcache.rst.",
);

const FILES: (&str, &str) = (
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

It works on devices that the kernel does not run at the moment, and on image files of them; looking \
     is possible on devices in use, too. Whatever it writes is planned and shown first, and the \
     stock kernel agrees with the result.",
)];

pub(super) const MAIN_AFTER: Sections = &[
    (
        "ENVIRONMENT",
        "NO_COLOR :: If set to anything, tables have no colours. They have neither colours nor \
         borders where the output is no terminal.",
    ),
    (
        "EXIT STATUS",
        "0 :: All went well.

1 :: Refused, or failed before anything was written.

2 :: The command line makes no sense.

3 :: Failed after writing had begun; the message says what became of each device.

The pages of the commands add what is theirs.",
    ),
    FILES,
    SEE_ALSO,
];

pub(super) const MAKE_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl make writes the superblocks that make block devices, or image files, cache and \
     backing devices. Options stand where make-bcache(8) has them, and mean the same: --cache and \
     --bdev hold for all devices that follow.

A cache and backing devices that are made in one command share a cache set: registering them \
     attaches the backing devices. Backing devices that are made alone can be given a set with \
     --cset-uuid, or be attached later through sysfs. A set has one cache device; several cache \
     devices in one command become sets of their own.

All devices are looked at and everything is planned before the first byte is written. Refused is \
     what the kernel would refuse, or would accept and then hang on; a device that is mounted, held, \
     or registered; and a device that holds anything libblkid knows, unless --wipe-bcache (for a \
     bcache superblock) or --force (for all else) allows to destroy it. On a terminal, make shows \
     what would be destroyed and asks. --dry-run shows every write and does none of them.

The bucket size is the unit in which the cache is reused. The default is 512 KiB; a cache device \
     too small for 513 of them, which is the least the kernel works with, gets smaller ones, and \
     the output says so. Buckets over 16 MiB need superblock version 5, which kernels before 5.11 \
     do not read.

Sizes are whole numbers with k, M, G or T (powers of 1024; KiB, MiB, ... mean the same).",
)];

pub(super) const MAKE_AFTER: Sections = &[
    (
        "JSON",
        "With --json the output is one object with dry_run and devices. Each device has the keys \
         that bcachectl-show(8) documents, and: formatted (whether the superblock is on the device \
         now), created, destroys and notes (lists of text), error (text, where it failed), and \
         steps, a list of objects with step (write, discard, flush), what, offset_bytes and bytes.",
    ),
    (
        "EXIT STATUS",
        "0 :: All devices are formatted and read back as planned; or --dry-run found no objection.

1 :: Refused or failed, and nothing was written.

2 :: The command line makes no sense.

3 :: Failed after writing had begun. The message names the devices that are formatted, the one in \
         an undefined state, and those not written.",
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
     backing device to the set whose UUID it carries), and what the running kernel says of them.

With devices it shows each superblock in full: whether its checksum is right; whether the kernel \
     would register it, and if not, why, in the kernel's own words; what the kernel would accept and \
     choke on; flags and features by name, unknown bits kept; and for a backing device, where its \
     data starts and the command that reaches it without bcache. If the backing device is dirty, its \
     data is incomplete without the cache.",
)];

pub(super) const SHOW_AFTER: Sections = &[
    (
        "JSON",
        "With --json the output is one object with devices, and errors where a device could not be \
         read. Numbers are numbers, never text. Each device has:

path :: As it was given.

kind :: cache, backing, or null where there is no bcache superblock.

size_sectors :: Size in sectors of 512 bytes.

superblock :: null, or an object with checksum (ok or bad), version, uuid, set_uuid, label, flags, \
         flags_unknown, seq, block_size_sectors, last_mount, feature_compat, feature_incompat, \
         feature_ro_compat; for a cache bucket_size_sectors, nbuckets, first_bucket, \
         njournal_buckets, nr_in_set, nr_this_dev, replacement, sync, discard; for a backing device \
         data_offset_sectors, cache_mode, state.

kernel :: An object with accepts (true or false), error (null, or the kernel's message) and warnings \
         (a list of text).

data :: For a backing device: offset_bytes, losetup, mount, needs_cache.

found :: What else libblkid finds on the device; absent where there is nothing.

in_use :: Who holds the device; absent where nobody does.

running :: What sysfs says of a registered device: device, set_uuid, state, cache_mode, dirty_data.",
    ),
    (
        "EXIT STATUS",
        "0 :: Every device named carries a bcache superblock with a good checksum; without devices \
         named, every device of the machine could be looked at.

1 :: Some device could not be read, carries no bcache superblock, or one with a bad checksum.

2 :: The command line makes no sense.",
    ),
    (
        "EXAMPLES",
        "What is there, and what belongs together:

    bcachectl show

Would the kernel take this image?

    bcachectl show --json cache.img | jq '.devices[0].kernel'",
    ),
    FILES,
    SEE_ALSO,
];

pub(super) const INVALIDATE_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl invalidate takes buckets out of the cache on a device that the kernel does not run \
     at the moment. Whatever was cached there is then read from the backing device. It does what \
     the kernel does when it reuses a bucket: the bucket's gen is raised by one, which makes every \
     pointer to it stale.

Only clean data goes. Refused are buckets with dirty data, for the backing device lacks it; buckets \
     of the journal, the prio chain, the uuid table and the btree; and buckets whose gen is 96 ahead \
     of the oldest pointer to them, the kernel's own limit. Each refusal says what is at stake and \
     what can be done instead. If a bucket that was named, by --bucket or --sectors, is refused, \
     nothing is written unless --skip-refused is given. The other selections take only what may go: \
     --volume takes the buckets with clean data of a volume and lists those of them that hold dirty \
     data too, --all-clean lists those at the limit.

Sectors have 512 bytes. --sectors counts from the start of the device, as the device itself reports \
     bad sectors; on a partition, its start has to be taken off. A bucket goes as a whole, with the \
     clean data of all volumes in it. --coldest takes buckets by their priority, which falls as they \
     go unused; P% is a share of the buckets with clean data that may go. --policy does as the \
     kernel's allocator would right after registration, with the same code as the allocator of \
     bcache-bench(8): buckets without any data come first.

The cache set is read as the kernel reads it, the journal included. A set with damage is refused. \
     Then the new priorities and gens are written to unused buckets and flushed, read back, and made \
     current by one journal entry, which is flushed too. Last the whole set is read again, and every \
     bucket and volume must be as planned. A power cut at any time leaves the old state or the new \
     one, and both are sound. On a terminal, invalidate shows what would go and asks.

A device in use is refused. To stop a running cache, unmount its bcache devices, write 1 to \
     /sys/block/bcacheN/bcache/stop of each, and to /sys/fs/bcache/UUID/stop.",
)];

pub(super) const INVALIDATE_AFTER: Sections = &[
    (
        "JSON",
        "With --json the output is one object, for --dry-run too:

invalidated :: A list of objects with bucket, prio, gen_before, gen_after and sectors (in use by \
         data).

refused :: A list of objects with bucket and reason (text). A range past the end of the device is \
         one of them, with its first bucket.

prio_chain :: The buckets of the new prio chain, head first; empty where nothing is written.

journal_seq :: The number of the new journal entry, or null.",
    ),
    (
        "EXIT STATUS",
        "0 :: The buckets are invalidated, and the set was read again to prove it; or there was \
         nothing to invalidate; or --dry-run found no objection.

1 :: Refused, or failed, and nothing is invalidated: the cache is as it was. At most unused buckets \
         were written.

2 :: The command line makes no sense.

3 :: The journal entry was given to the device, which failed before it was durable. The cache is \
         wholly as it was or wholly as planned, and sound either way.

4 :: Everything was written and flushed, but could not be read again to prove it.

5 :: What was read back is not what was written: the device is failing, and its state undefined.",
    ),
    (
        "EXAMPLES",
        "The coldest third of a cache that has become slow, shown and not done:

    bcachectl invalidate /dev/nvme0n1 --coldest 30% --dry-run

What covers eight sectors that the SSD cannot read any more:

    bcachectl invalidate /dev/nvme0n1 --sectors 81920+8

All clean data of the volume labelled home, in a script:

    bcachectl invalidate /dev/nvme0n1 --volume home --yes --json",
    ),
    FILES,
    SEE_ALSO,
];
