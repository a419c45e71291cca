//! The page of `bcachectl repair`.

use super::text::{SEE_ALSO, Sections};

pub(in crate::man) const BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl repair mends a damaged cache set, and says what it cannot mend. Where it can tell what was \
     there, it restores the bytes. Where it cannot, it makes new metadata from all that can be read. It never \
     loses what bcachectl export could read for certain.

Name the devices in any order. Without a cache, repair restores only what the checksum of a superblock \
     proves.

Each change has a code and a class: certain, likely or guess. Certain changes are made after confirmation. \
     The others are made only if --accept names their code.

flipped-bit :: One bit was flipped in a journal entry, a prio set, a btree node or a superblock. The \
     checksum names it. Certain.

superblock-field :: One field of a superblock was changed, up to 32 bits in a row, and nothing else. The \
     checksum names it. Certain.

superblock-magic :: The magic of a superblock was wiped, as wipefs(8) does. The checksum proves that \
     nothing else was changed, except perhaps one bit. Certain, but only likely if a backing device holds \
     something else now, such as swap space.

superblock-gone :: The superblock of a cache was overwritten. The journal and the prio sets behind it prove \
     its sizes. Name one of the set's backing devices, unless all volumes are flash-only. The label, the \
     device's own UUID and the replacement policy are lost. Certain.

superblock-covers-set :: A cache was formatted anew and not registered since: the old set is behind the new \
     superblock. Its own is made again as if it were gone. A guess, because whoever formatted the cache may \
     have meant to.

superblock-gone (backing device) :: The superblock of a backing device was overwritten, for instance by a \
     partition table. Name the device beside its cache: the uuid table has what the superblock said. Repair \
     finds the volume by comparing the cache's clean data with the device. Certain if the data proves the \
     volume, the cache has no dirty data of it, and its first sectors are cached, so that the data offset \
     must be 16. Likely if the cache has dirty data, which may be older than what was written to the device \
     without the cache since, or if the data offset may have been another one. A guess if no data tells and \
     one volume and one device are left over, or --owner names the device; also if something else was made \
     on the device, or more than a partition table was overwritten. Refused if clean data contradicts, or if \
     the device is too small.

A new superblock of a backing device says dirty and writeback if the cache has dirty data, else clean and \
     writethrough. Its block size is that of the set. What stands before it becomes zeroes, and the kernel \
     forgets the partitions of a table there. If the data proves the volume, clean data of the first and last \
     32 KiB is written back to the device. Whatever else was overwritten of the volume is lost.

superblock-checksum :: The checksum of a superblock is wrong, and the kernel would accept all else in it. \
     Likely, if the whole set reads by it or can be made again from what does, or if the cache knows the \
     backing device. Otherwise it is not changed.

superblock-sync :: The superblock says that the cache is new, but it holds a cache set, which the kernel \
     would start afresh. A guess: with the attribute synchronous at 0 a kernel writes no journal, and what it \
     did then is lost.

superblock-policy :: The kernel does not know the replacement policy, and its allocator would spin for ever. \
     The policy becomes lru. Certain: only the choice of what is dropped depends on it.

last-seq :: A journal entry says that replay begins after itself. Replay begins where the entry before says. \
     Likely.

journal :: Damage in the journal hides newer entries from the kernel, which would go back to an older state \
     without a word. Certain if replay lacks no entry. Likely if it does, or if an entry has a key that cannot \
     be right: newer keys for some sectors may be lost. A guess if the journal has no entry at all: repair \
     searches the device for the root, the uuid table and the prio chain, and what was written last may be \
     lost.

prio-sets :: Prio sets are lost. The gens of buckets come from the pointers to them. Likely.

uuid-table :: The uuid table is lost, or slots of it are. Name all backing devices of the set. A volume is \
     known by what is left of its slot; by its clean data, if one backing device has the same and no other; \
     or by an older table that still stands in some bucket, which is all that tells of a flash-only volume. \
     Certain if the journal names that table or something else confirms it, else likely. A guess if one \
     volume and one device are left over. If nothing tells whose a volume with dirty data is, no table is \
     made until --owner or --flash-only says it, which is a guess. Refused if the volume or the device is \
     known to be another's, if the device is too small for the volume, or if its clean data is not the \
     device's.

btree-node :: A btree node is damaged or cannot be read; or its checksums are right, but its keys contradict \
     each other or other nodes. The journal has what was inserted lately. Certain if the journal has all that \
     the node lacks. Likely if it has every entry since the cache was made: the kernel's garbage collection \
     moves data without writing it there. Else a guess, with the sectors in which dirty data may be lost. If \
     the root or another node above the leaves is lost, repair searches the whole device for the leaves: \
     likely if they fit together, else a guess. For a lost leaf it also searches for outdated copies.

keys :: Keys point to buckets that were reused, or that hold metadata. They are dropped; the kernel does not \
     show their data, either. Certain if they are clean. Else a guess: their dirty data is lost. Data of a \
     flash-only volume that counts as clean becomes dirty, which is certain.

The last five are one change: a new btree, a new prio chain, a new uuid table if it was lost, and a \
     journal entry, beside the old ones. Dirty data that can be read is kept, even if newer data for the same \
     sectors may be lost. Clean data in doubt is no longer cached: the backing device has it.

The repair of a superblock becomes likely if other damage is left: once the superblock is whole, udev may have \
     the kernel register the set.

A journal entry is mended only if no other entry has its number. Otherwise the kernel went on without it, and \
     what it says no longer holds.

For what repair does not mend, it says what else you can do. If the device has read errors in the \
     journal, copy the device and repair the copy. If the device is shorter than its superblock says, restore \
     its size first. bcachectl-export(8) saves what is readable of the volumes.

Every single change is one write of a logical block, and stands by itself. New metadata goes to buckets \
     that nothing points to, and becomes current with one journal entry. Superblocks come last. After a power \
     cut some of the changes are made; run the command again to make the others. Afterwards repair reads the \
     set again. It refuses a device in use. To keep a copy of the metadata as it was, see bcachectl-image(8).",
)];

pub(in crate::man) const AFTER: Sections = &[
    (
        "JSON",
        "With --json the output is one object:

state :: planned (--dry-run), done, or nothing (nothing is changed).

changes :: A list of objects with code, class (certain, likely or guess), device, place (text), offset_bytes (the \
         first byte that changes), accepted (whether it is made), volume (of a backing device whose superblock is gone, its slot; else null) \
         and reasons (what has to be known before it is made: a list of text).

new_metadata :: null, or an object with class, accepted, reasons (a list of objects with code, class and \
         reason), volumes, btree_nodes, prio_sets and journal_seq. Each volume has slot, uuid, flash_only, dirty_sectors \
         (kept), lost_sectors (dirty, and not kept), doubtful_sectors (of these, where newer data may be lost), left_out_sectors (clean data that \
         is no longer cached), unknown_from and unknown_to (in between, dirty data may be lost that nothing \
         tells of; null where none may).

left :: What is wrong once all accepted changes are made: a list of text.

advice :: What to do about what cannot be mended, whatever is accepted: a list of text.

dirty_sectors_before :: Dirty sectors that can be found now; null where the set cannot be read.

dirty_sectors_after :: The same once all changes are made. With problems left, there may be more.",
    ),
    (
        "EXIT STATUS",
        "0 :: Nothing is left to repair; or --dry-run found that nothing would be.

1 :: Refused, or failed, and nothing was written.

2 :: Usage error.

3 :: Failed after writing had begun. Each change stands by itself; run the command again.

4 :: Damage is left that repair cannot mend, or that --accept did not name.

5 :: What was read back is not what was written: a device is failing.",
    ),
    (
        "EXAMPLES",
        "What can be repaired?

    bcachectl repair --dry-run /dev/nvme0n1 /dev/sdb

The root of the btree is lost; what is overwritten is saved first:

    bcachectl repair --undo repair.undo --accept btree-node /dev/nvme0n1 /dev/sdb

The uuid table is lost, and you know that volume 0 is /dev/sdb and volume 1 a flash-only one of 10 GiB:

    bcachectl repair --accept uuid-table --owner 0=/dev/sdb --flash-only 1=10G /dev/nvme0n1 /dev/sdb

After a wipefs of the wrong device:

    bcachectl repair /dev/sdb

An installer made partitions on one of two backing devices:

    bcachectl repair --dry-run /dev/nvme0n1 /dev/sdb /dev/sdc
    bcachectl repair --undo repair.undo --accept superblock-gone /dev/nvme0n1 /dev/sdb /dev/sdc",
    ),
    SEE_ALSO,
];
