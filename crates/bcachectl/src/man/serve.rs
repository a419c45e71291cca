//! What the page of `bcachectl serve` says beside its options.

use super::text::{FILES, SEE_ALSO, Sections};

pub(super) const BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl serve gives NBD clients a volume as /dev/bcacheN would show it, over a Unix socket. With it \
     a file system can be mounted, or a few files copied, without the kernel running the set and without \
     room for a copy of the volume. It reads what bcachectl-export(8) reads, and takes the devices in the \
     same way: they are only read, and a device in use is refused.

Reading what export would leave out fails with an input/output error: data that is lost or unreadable, \
     and without --likely what is only likely right. Nothing is made up. Writing is refused; the client is \
     told so when it connects.

Who can open the socket can read all of the volume. It is made for its owner alone. One client is served \
     at a time, others wait. Ctrl-C ends the serving and removes the socket.

A file system with a journal is mounted with options that keep it from replaying: -o ro,noload for ext4, \
     -o ro,norecovery for XFS.",
)];

pub(super) const AFTER: Sections = &[
    (
        "PROTOCOL",
        "Fixed newstyle handshake without TLS; one export, whose name is empty; simple replies. Offsets and \
         lengths may be any, up to 32 MiB at once.",
    ),
    (
        "EXIT STATUS",
        "0 :: It was ended by a signal; or with --once the first client is gone.

1 :: Refused, or failed.

2 :: The command line makes no sense.",
    ),
    (
        "EXAMPLES",
        "Look into the file system of a set that the kernel refuses:

    bcachectl serve /dev/nvme0n1 /dev/sdb --socket /run/volume.sock
    nbd-client -unix /run/volume.sock /dev/nbd0
    mount -o ro,noload /dev/nbd0 /mnt

Copy the volume to a qcow2 image:

    qemu-img convert -O qcow2 'nbd+unix:///?socket=/run/volume.sock' volume.qcow2",
    ),
    FILES,
    SEE_ALSO,
];
