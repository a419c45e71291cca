//! What the page of `bcachectl undo` says beside its options.

use super::text::{SEE_ALSO, Sections};

pub(super) const BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl undo reverts what make, invalidate, repair, writeback or image restore wrote. Given \
     --undo FILE, these commands save to that file what they are going to overwrite, and what they \
     write instead. The file is durable before their first write; where it cannot be written, they \
     write nothing.

undo restores the old contents in reverse order, with the same flushes. So a power cut leaves a \
     state that the command itself could have left. Run the same undo again to complete it. A \
     command that failed halfway can be undone, too. Finally undo reads everything back.

Before its first write, undo compares the devices with the file. It refuses a device if anything \
     else was written to the same places since. It also refuses a device that was in use since: a \
     cache whose superblock or journal has changed (the kernel changes them each time it starts the \
     set), and, after make or image restore, a device whose first 16 MiB or last 1 MiB have changed.

After writeback, undo restores the metadata of the cache and the superblocks of the backing devices. \
     Data that was copied to the backing devices stays there, and is dirty in the cache again. undo \
     compares all of this data on the cache and on the backing device, and refuses if they differ: \
     the backing device was then written to since, and the cache would hide that. After --detach it \
     compares clean data as well.

Undo several commands in reverse order. Once the kernel has started a set, its command cannot be \
     undone: keep udev from registering a device if you may want to undo what you do to it. Image \
     files that a command made are not in the file; remove them. Discarded data cannot be restored, \
     so make takes either --discard or --undo. If make removed a partition table, have the kernel \
     read it again with partprobe(8).

By default undo takes the devices that the command was given. If they have other names now, name \
     them after the file, in the order that --dry-run shows. A device in use is refused. On a \
     terminal, undo asks. Without a terminal it needs --yes, unless --dry-run is given.",
)];

pub(super) const AFTER: Sections = &[
    (
        "FORMAT",
        "docs/metadata-image.md in the source describes the format. Every part of the file has a \
         checksum; a damaged file is refused. It holds parts of the devices, and only its owner can read \
         it.",
    ),
    (
        "JSON",
        "With --json the output is one object with state (planned, nothing or done), command (the one \
         that is undone) and devices, a list of objects with path, saved_path, size_bytes and \
         differing_bytes (how much is put back).",
    ),
    (
        "EXIT STATUS",
        "0 :: All is as it was; or --dry-run found no objection.

1 :: Refused, or failed, and nothing was written.

2 :: Usage error.

3 :: Failed halfway. Run the command again.

5 :: What was read back is not what was put back: a device is failing.",
    ),
    (
        "EXAMPLES",
        "Repair a cache, and take it back:

    bcachectl repair --undo repair.undo /dev/nvme0n1 /dev/sdb
    bcachectl undo --dry-run repair.undo
    bcachectl undo repair.undo

The same on a machine where the disks are called differently:

    bcachectl undo repair.undo /dev/nvme1n1 /dev/sdc",
    ),
    SEE_ALSO,
];
