//! What the page of `bcachectl serve` says beside its options.

use super::text::{FILES, SEE_ALSO, Sections};

pub(super) const BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcachectl serve gives NBD clients a volume as /dev/bcacheN would show it, over a Unix socket. \
     Use it to mount a file system or copy a few files without the kernel running the set, or if there \
     is no room for a copy of the volume. It reads what bcachectl-export(8) reads. The devices are \
     only read, and a device in use is refused.

Like export, serve refuses to pick a backing device of which there is a copy in the machine, and warns of \
     copies of devices that you name.

Reading what export would leave out fails with an input/output error: data that is lost or \
     unreadable, and without --likely data that is only likely right. No data is made up. The volume \
     is read-only, and the client is told so when it connects.

Whoever can open the socket can read the whole volume, so only its owner can open it. One client is \
     served at a time; others wait. Ctrl-C ends serve and removes the socket.

Mount a journaling file system with options that keep it from replaying its journal: -o ro,noload \
     for ext4, -o ro,norecovery for XFS.",
)];

pub(super) const AFTER: Sections = &[
    (
        "PROTOCOL",
        "Fixed newstyle handshake without TLS; one export, whose name is empty; simple replies. Any \
         offset and length is accepted, up to 32 MiB per request.",
    ),
    (
        "EXIT STATUS",
        "0 :: Ended by a signal; or, with --once, the first client disconnected.

1 :: Refused, or failed.

2 :: Usage error.",
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
