//! The page of `bcachectl repair`.

use super::text::{SEE_ALSO, Sections};

pub(in crate::man) const BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl repair mends a damaged cache set, and says what it cannot mend. Where it can tell what was \
     there, it restores the bytes. Where it cannot, it makes new metadata from all that can be read. What \
     bcachectl export could read for certain is never lost.

Each change has a code and a class: certain, likely or guess. Those that are certain are made after \
     confirmation. The others are made only where --accept names their code.

flipped-bit :: One bit was flipped in a journal entry, a prio set, a btree node or a superblock. The \
     checksum names it.

superblock-field :: One field of a superblock was changed, up to 32 bits in a row, and nothing else. The \
     checksum names it.

superblock-magic :: The magic of a superblock was wiped, as wipefs(8) does, and the checksum proves that \
     nothing else was, but for one bit perhaps. Likely if a backing device holds something else now, such as swap \
     space.

superblock-gone :: The superblock of a cache was overwritten, and the journal and the prio sets behind it \
     prove its sizes. One of the set's backing devices must be named, unless all volumes are flash-only. The \
     label, the device's own UUID and the replacement policy are lost.

superblock-gone (backing device) :: The superblock of a backing device was overwritten, for instance by a \
     partition table. Named beside its cache, it is made again from the uuid table. Its data tells which volume it \
     is: clean data in the cache is what the device has. That is certain if the cache has no dirty data of \
     the volume, and has data of its first sectors, so that the data offset must be 16. Else it is likely: \
     dirty data would be older than what was written to the device without the cache since, and the data \
     offset may have been another one. Where data tells nothing, it is a guess: one volume and one device are \
     left over, or --owner says it. So it is if something else was made on the device, or if more than a \
     partition table was overwritten. It is refused where clean data contradicts, and where the device is too \
     small. The state becomes dirty and the cache mode writeback if the cache has dirty data, else clean and \
     writethrough. The block size is that of the set. What stands before the superblock becomes zeroes, and the kernel forgets the partitions of a table there. If the data \
     proves the volume, clean data of the first and last 32 KiB is written back. What else was overwritten of \
     the volume is lost.

superblock-checksum :: The checksum of a superblock is wrong, the kernel would accept all that it says, and \
     the whole set reads by it, or can be made again from what does; or the cache knows the backing device. \
     Likely.

superblock-sync :: The superblock says that the cache is new, and a cache set is on it. The kernel would \
     start the set afresh. A guess: a kernel whose attribute synchronous is 0 writes no journal, and what it \
     did then is lost.

superblock-policy :: The replacement policy is one that the kernel does not know, and over which its \
     allocator would spin for ever. It becomes lru. Certain: only the choice of what is dropped depends on it.

last-seq :: A journal entry says that replay begins after it. Replay begins where that of the entry before \
     does. Likely.

journal :: Damage in the journal hides newer entries from the kernel, which would go back to an older state \
     without a word. Certain where replay lacks no entry. Where it does, newer keys for some sectors may be \
     lost: likely. So may they be where a key of an entry cannot be right. Of a journal without any entry, root, uuid table and prio chain are searched for. What was \
     written last may have been there alone: a guess.

prio-sets :: Prio sets are lost. The gens of buckets come from the pointers to them. Likely.

uuid-table :: The uuid table is lost, or slots of it are. A volume is known by what is left of its slot; by \
     its clean data, where that is the data of one backing device and of no other; or by an older table that still \
     stands in some bucket. That is certain where the journal names that table, or where something else \
     confirms it, and likely otherwise. It is a guess where one volume and one device are left. Name all \
     backing devices of the set. A flash-only volume is known by an older table alone. Where nothing tells \
     whose a volume with dirty data is, the table is not made, unless --owner or --flash-only says it, which is a \
     guess. It is refused where the volume or the device is known to be another's, where the volume has data in \
     places that the device does not have, or where its clean data is not the device's.

btree-node :: A btree node is damaged or cannot be read; or its keys contradict themselves or other nodes, \
     though its checksums are right. The journal keeps what was inserted until it is \
     overwritten. Certain where it has all that the node lacks. Likely where it has every entry since the \
     cache was made, for the kernel does not write moves of its garbage collection there. Else a guess: \
     dirty data may be lost in the sectors that are told. For a lost root, and for other nodes above the \
     leaves, the whole device is searched for the leaves. That is likely where they fit together, else a \
     guess. For a lost leaf, outdated copies of it are searched for, too.

keys :: Keys point to buckets that were reused, or that hold metadata. They are left out, and the kernel \
     does not show their data, either. Certain where they are clean, else a guess: their dirty data is lost. \
     Data of a flash-only volume that counts as clean becomes dirty, which is certain.

Devices are named in any order. Without a cache, what the checksum of a superblock proves is restored, \
     and no more.

The last five are one change: a new btree, a new prio chain, a new uuid table where it was lost, and a \
     journal entry, beside the old ones. Dirty data that can be read is kept, also where newer data for the \
     same sectors may be lost. Clean data in doubt is no longer cached: the backing device has it.

A repair of a superblock becomes likely where other damage is left: with its superblock restored, the \
     kernel may register the set, for udev does so by itself.

A journal entry is mended only where no other entry has its number. Else the kernel has gone on without \
     it, and what it says is of a state that is gone.

For what is not mended, repair says what else can be done. A device that cannot be read at some place of \
     the journal is copied first, and the copy is repaired. A device that is shorter than its superblock says \
     has to be made whole. What is readable of the volumes can be saved with bcachectl-export(8).

Every single change is one write of a logical block, and stands by itself. New metadata goes to buckets \
     that nothing points to, and becomes current with one journal entry. Superblocks come last. A power cut \
     leaves some of the changes made, and the command run again makes the others. Afterwards the set is read \
     again. A device in use is refused. For a copy of the metadata as it was, see bcachectl-image(8).",
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

2 :: The command line makes no sense.

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
