//! What the page of `bcachectl image` says beside its options.

use super::text::{FILES, SEE_ALSO, Sections};

pub(super) const BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl image create writes the metadata of a cache device to a small file: superblock, \
     journal, prio sets, uuid table and btree nodes. Cached data is not in it. The rest of a bucket \
     behind a structure is blanked, because it may be old data. Use the file to report damage, or to \
     try a command on a copy.

A metadata image opens like a device in bcachectl-show(8), bcachectl-check(8) and \
     bcachectl-invalidate(8) with --dry-run. They report whatever is not in it as absent. It cannot \
     be written to; restore it first.

With --anonymize, UUIDs and labels are replaced, equal ones by equal ones, and so are the magics and \
     checksums that depend on them. A wrong checksum stays wrong. Sizes, sectors and times are kept.

bcachectl image restore writes an image back to a new sparse file of the size of the device. With \
     --force it writes over a file or device that is there. If that holds, or may hold, data that \
     exists nowhere else, --lose-dirty-data is needed as well. Only the metadata is written. \
     Restored to the device that it was made from, an image takes the cache back to its state at \
     that time, which loses data if the cache was used since. The superblock is zeroed first and \
     written last, and everything is read back. After a power cut the device has no superblock, or \
     is complete; run the restore again to complete it.",
)];

pub(super) const AFTER: Sections = &[
    (
        "FORMAT",
        "docs/metadata-image.md in the source describes the format. Every part of an image has a \
         checksum; a damaged image is refused.",
    ),
    (
        "JSON",
        "image create --json prints one object with path, output, anonymized (true or false), \
         device_bytes, metadata_bytes, journal_buckets, prio_sets, uuid_table (true or false), \
         btree_nodes and unreadable (structures that are not in the image).

image restore --json prints one object with image, path, created (true or false), device_bytes and \
         metadata_bytes.",
    ),
    (
        "EXIT STATUS",
        "0 :: All went well.

1 :: Refused, or failed before anything was written.

2 :: Usage error.

3 :: Writing failed: the image is incomplete, or the device has no superblock.

4 :: Some structures cannot be read, and are not in the image.",
    ),
    (
        "EXAMPLES",
        "For a bug report:

    bcachectl image create --anonymize /dev/nvme0n1 -o cache.bci

What would check say?

    bcachectl check cache.bci

A copy to try a command on:

    bcachectl image restore cache.bci try.img
    bcachectl invalidate --all-clean --yes try.img",
    ),
    FILES,
    SEE_ALSO,
];
