//! The page of `bcachectl writeback`.

type Sections = &'static [(&'static str, &'static str)];

pub(in crate::man) const BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl writeback copies dirty data from a cache to the backing devices that it belongs to, and \
     makes the cache clean, without the kernel running the set. Afterwards the backing devices hold all \
     of their data, and the set can go on as it was: the kernel registers it with nothing left to write \
     back.

Dirty data is copied in the order of the backing device's sectors, to several backing devices at the \
     same time, and each of them is flushed. With --verify all of it is read back and compared. Only \
     then is the cache made clean: a new btree and prio chain are written to unused buckets, flushed \
     and read back, and one journal entry makes them current. Finally the superblocks of the backing \
     devices are set clean. A power cut at any time leaves the cache as it was or clean, and sound \
     either way; run the same command again to complete the rest.

Volumes whose backing device is not named stay dirty, and so do those that --volume leaves out. A \
     flash-only volume has no backing device: its data stays in the cache.

With --detach the volumes are removed from the cache set as well, their clean data included. The \
     backing devices then run alone, as after a detach by the kernel.

writeback refuses a cache set with damage, even damage that the kernel ignores if \
     bcachectl-repair(8) mends it for certain: older data would be written back. It refuses a device \
     in use; a backing device of another set, one that the cache does not know, and one too small \
     for its dirty data. It also refuses a backing device that ran without its cache since (its \
     state is none or inconsistent, or the kernel registered it after this cache was last there), \
     because its data may be newer than the cache. If you know that nothing was written to such a \
     device, give --ran-alone with --detach: the dirty data in the cache then replaces what is there.

If there is a copy in the machine of a device that you name, writeback uses the one that you named, and a \
     warning on standard error says so: make sure that it is the right one.

If the cache is full, the coldest buckets with clean data are invalidated first. If there are none, \
     the journal alone makes the data clean, and the kernel's next garbage collection does the rest.

On a terminal, writeback shows what it would do and asks. Without a terminal it needs --yes, unless \
     --dry-run is given.",
)];

pub(in crate::man) const AFTER: Sections = &[
    (
        "JSON",
        "With --json the output is one object, also for --dry-run and where a run failed:

state :: planned (--dry-run), nothing (there is nothing to write), done, unchanged, old, old-or-new \
         (both with exit status 3), new (4), or undefined (5).

method :: How the cache is made clean: none (it is), metadata, invalidate-first, or journal.

detach :: Whether the volumes are detached.

volumes :: A list of objects with slot (null where only the superblock is left to do), uuid, label, \
         backing (the path), backing_state (before), dirty_sectors and dirty_extents.

kept :: Volumes that stay dirty: a list of objects with slot, uuid, flash_only and dirty_sectors.

invalidated_buckets :: Buckets with clean data that are invalidated to make room.

journal_seq :: The number of the newest journal entry that is written, or null.

superblocks :: How many superblocks of backing devices were written.

steps :: With --dry-run, the writes to the cache in their order: a list of objects with step (write, \
         flush), what, offset_bytes and bytes. The sequence numbers inside btree nodes are drawn anew \
         for each run. Empty otherwise.",
    ),
    (
        "EXIT STATUS",
        "0 :: All is written back, and the cache was read again to prove it; or there was nothing to \
         write; or --dry-run found no objection.

1 :: Refused, or failed, and nothing was written.

2 :: Usage error.

3 :: Failed halfway. The cache still has all dirty data, or is marked clean after all of it reached \
         the backing devices. Run the command again.

4 :: All dirty data is on the backing devices and the cache is clean. A later step failed, such as \
         setting a backing device clean, which the kernel does by itself.

5 :: What was read back is not what was written: a device is failing.

6 :: As 0, but the report could not be written.",
    ),
    (
        "EXAMPLES",
        "What would be written back, and where to:

    bcachectl writeback --dry-run /dev/nvme0n1 /dev/sdb /dev/sdc

Do it, compare all of it, and make the disk independent of the cache:

    bcachectl writeback --verify --detach /dev/nvme0n1 /dev/sdb",
    ),
    ("SEE ALSO", "bcachectl(8), bcachectl-check(8), bcachectl-show(8), bcachectl-invalidate(8)"),
];
