//! What the page of `bcachectl list` says beside its options.

use super::text::{FILES, SEE_ALSO, Sections};

pub(super) const BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl list shows the bcache devices of the machine, set by set, each cache before the \
     backing devices of its set. It reads the superblock of every block device, and what sysfs says \
     of those that run. A device that does not answer does not hold up the others; list names it on \
     standard error. While the kernel holds bcache's lock, the state of running devices is unknown, \
     and they are named there, too.

On a terminal that is too narrow, whole columns are left out, and a line below names them. UUIDs, paths \
     and numbers are never broken.",
)];

pub(super) const AFTER: Sections = &[
    (
        "JSON",
        "With --json the output is an object with devices, a list of objects with the columns that were \
         asked for. Sizes are in bytes, also in csv; what is not known is null, and empty in csv.",
    ),
    (
        "EXIT STATUS",
        "0 :: All devices could be read.

1 :: One could not, or did not answer.

2 :: Usage error.",
    ),
    (
        "EXAMPLES",
        "The UUIDs of all backing devices that are dirty:

    bcachectl list -n -o state,uuid | awk '$1 == \"dirty\" { print $2 }'

The largest devices first, in bytes:

    bcachectl list --sort size --reverse --bytes -o size,device,kind",
    ),
    FILES,
    SEE_ALSO,
];
