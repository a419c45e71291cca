//! The page of `bcachectl repair`.

use super::text::{SEE_ALSO, Sections};

pub(in crate::man) const BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl repair mends a damaged cache set where what was there before can be told, and says what it \
     cannot mend. It restores bytes; it makes nothing up, and drops nothing that can be read.

Each change has a code and a class. Those that are certain are made after confirmation: a checksum \
     proves them. Those that are likely are made only where --accept names their code.

flipped-bit :: One bit was flipped in a journal entry, a prio set, a btree node or a superblock. The \
     checksum names it.

superblock-magic :: The magic of a superblock was wiped, as wipefs(8) does, and the checksum proves that \
     nothing else was.

superblock-checksum :: The checksum of a superblock is wrong, the kernel would accept all that it says, and \
     the whole set reads without an error by it; or the cache knows the backing device. Likely.

A repair of a superblock becomes likely where other damage is left: with its superblock restored, the \
     kernel may register the set, for udev does so by itself.

A journal entry is mended only where no other entry has its number. Else the kernel has gone on without \
     it, and what it says is of a state that is gone.

Every change is one write of a single logical block, and stands by itself; superblocks come last, after a \
     flush. A power cut leaves some of the changes made, and the command run again makes the others. \
     Afterwards the set is read again. A device in use is refused.",
)];

pub(in crate::man) const AFTER: Sections = &[
    (
        "JSON",
        "With --json the output is one object:

state :: planned (--dry-run), done, or nothing (nothing is changed).

changes :: A list of objects with code, class (certain or likely), device, place (text), offset_bytes (the \
         first byte that changes) and accepted (whether it is made).

left :: What is wrong once all changes are made: a list of text.

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

After a wipefs of the wrong device:

    bcachectl repair /dev/nvme0n1",
    ),
    SEE_ALSO,
];
