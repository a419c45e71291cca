//! What the page of `bcachectl export` says beside its options.

use super::text::{FILES, SEE_ALSO, Sections};

pub(super) const BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl export copies a volume as /dev/bcacheN would show it: what the cache has, over the \
     backing device. The kernel need not run the set, and may even refuse it. The devices are only \
     read. A device in use is refused.

export saves as much as the damage allows. Each sector of the volume is one of four:

certain :: Everything that could contradict it was read. It is copied.

likely :: It can be read, but something that might contradict it is lost: journal entries, gens of \
     buckets, keys of a btree node; or a dirty key is stale, which the kernel ignores. It is left \
     out, unless --likely is given.

lost :: Nothing tells where the data is, because a btree node is lost.

unreadable :: It cannot be read from its device, and no other device has it. Clean data is on both devices.

What is left out reads as zeroes. A map file in the format of ddrescue(1) then says which sectors: + \
     is there, * is likely right and was left out, - is lost or unreadable, and ? was not requested.

With --dirty-only the file holds only what no backing device has, each sector where it belongs on \
     the volume: the first sector of the file is the first of /dev/bcacheN. Write it over the data \
     of the backing device to complete that. The backing device need not be present, and may have \
     run without its cache since. Where damage hides whether a sector is dirty, the map says * or -.

If the backing device is not named, it is looked for in the machine. If there is a copy of it as well, \
     export refuses to pick one: name it. If a device that you name has a copy in the machine, it is \
     read, and a warning on standard error says so.

Unlike the kernel, export does not go back to an older state where a damaged journal entry hides \
     newer ones.

A set whose superblock says that it was never used, or whose journal is lost, has no volumes to export.",
)];

pub(super) const AFTER: Sections = &[
    (
        "JSON",
        "With --json the output is one object with path, slot, uuid, label, output, map (null where \
         none was written), complete (true or false), problems (a list of text), size_sectors, \
         dirty_sectors, clean_sectors, backing_sectors, hole_sectors, not_asked_sectors, \
         likely_taken_sectors (of those taken), likely_left_sectors, lost_sectors, before_data_sectors (cached of \
         before the data offset, which is wrong then), reasons (an object \
         with sectors by reason: gens-lost, btree-damaged, journal-entries-lost, stale-dirty, displaced, \
         btree-node-lost, backing-device-missing, past-backing-device, unreadable) and interrupted.",
    ),
    (
        "EXIT STATUS",
        "0 :: Everything requested was exported, and is certain.

1 :: Refused, or failed before anything was written.

2 :: Usage error.

3 :: Writing failed: the output is incomplete.

4 :: Something was left out, or is only likely right. The map file says what. Also where the cache \
     holds data from before the data offset, which is wrong then, or one of the two devices may be \
     an old copy: what the cache holds clean is not on the backing device, or that was registered \
     after the cache was last there. --dirty-only takes what only the cache has.",
    ),
    (
        "EXAMPLES",
        "The volume of /dev/sdb as a sparse file:

    bcachectl export /dev/nvme0n1 /dev/sdb -o sdb.img

Compressed, to another host:

    bcachectl export /dev/nvme0n1 /dev/sdb -o - | zstd | ssh host 'cat >sdb.zst'

What only the cache has, of a disk that is gone:

    bcachectl export /dev/nvme0n1 --volume home --dirty-only --data-offset 16 -o home.dirty

Write it over the data of another copy of the disk with ddrescue:

    losetup -o 8192 /dev/loop0 disk.img
    ddrescue --domain-mapfile=home.dirty.map --force home.dirty /dev/loop0",
    ),
    FILES,
    SEE_ALSO,
];
