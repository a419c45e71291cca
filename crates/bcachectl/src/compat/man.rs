//! The man pages of the old names.

use anyhow::Result;
use bcache_cli::man::{self, Files, Overview, Page};

use super::definition;

type Sections = &'static [(&'static str, &'static str)];

const SEE_ALSO: (&str, &str) = (
    "SEE ALSO",
    "bcache-tools-compat(7), make-bcache(8), bcache-super-show(8), bcachectl(8), bcachectl-make(8), \
     bcachectl-show(8)",
);

const MAKE_BEFORE: Sections = &[(
    "DESCRIPTION",
    "make-bcache writes the superblocks that make block devices cache and backing devices. -C and \
     -B hold for all devices that follow. A cache device and backing devices made in one command \
     share a cache set, and are attached as soon as both are registered.

make-bcache examines all devices before it writes anything, and never writes what the kernel would \
     refuse. If udev runs, make-bcache returns when udev has processed the devices.

This is bcachectl(8) under an old name. Options, output and exit status are those of bcache-tools \
     1.0.8; bcache-tools-compat(7) lists what differs. bcachectl-make(8) has more checks, a dry run \
     and JSON.

Sizes are numbers with k, M, G or T (powers of 1024).",
)];

const MAKE_AFTER: Sections = &[
    (
        "EXIT STATUS",
        "0 :: All devices are formatted.

1 :: Anything else, --help included.",
    ),
    (
        "EXAMPLES",
        "A cache and a disk for it:

    make-bcache -C /dev/nvme0n1 -B /dev/sdb

A disk for a set that exists, in writeback mode:

    make-bcache -B /dev/sdc --writeback --cset-uuid 0bd1bca4-7a2e-4d5c-9a39-f2b0a3a17b15

A cache device anew, over the bcache superblock that it has:

    make-bcache --wipe-bcache -C /dev/nvme0n1",
    ),
    SEE_ALSO,
];

const SHOW_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcache-super-show prints the superblock of a cache or backing device, or of an image file of \
     one, a field a line: the name, tabs, the value. It only reads.

This is bcachectl(8) under an old name. Options, output and exit status are those of bcache-tools \
     1.0.8; bcache-tools-compat(7) lists what differs. bcachectl-show(8) tells more: whether the \
     kernel would register the device, what it holds, and whether it may be wiped.",
)];

const SHOW_AFTER: Sections = &[
    (
        "EXIT STATUS",
        "0 :: The superblock was printed.

1 :: Usage error.

2 :: The device cannot be read, or has no bcache superblock, or its checksum is wrong and -f was \
         not given.

3 :: A backing device of a development version of bcache.",
    ),
    (
        "EXAMPLES",
        "The set that a device belongs to:

    bcache-super-show /dev/sdb | awk '$1 == \"cset.uuid\" { print $2 }'",
    ),
    SEE_ALSO,
];

const BCACHE_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcache lists bcache devices and controls those that the kernel runs. It needs root.

This is bcachectl(8) under an old name: the command of bcache-tools 1.1, with its subcommands, output \
     and exit statuses; bcache-tools-compat(7) lists what differs.

show prints a line for each device with a bcache superblock: name, version and role, state, the \
     volume that it runs as, and the cache that it is attached to. -m adds UUIDs; -d prints one \
     superblock as bcache-super-show(8) does. Flash-only volumes are not listed.

unregister, attach and detach return when the kernel has begun; the states in \
     /sys/block/DEV/bcache tell when it is done.",
)];

const BCACHE_AFTER: Sections = &[
    (
        "EXIT STATUS",
        "0 :: Done. Also: a subcommand that is not known, after a summary of those that are.

1 :: Not done, or a usage error.",
    ),
    (
        "EXAMPLES",
        "A disk for a cache that runs:

    bcache make -B /dev/sdc
    bcache attach /dev/nvme0n1 /dev/sdc
    bcache set-cachemode /dev/sdc writeback

What is attached to what:

    bcache tree",
    ),
    SEE_ALSO,
];

const PROBE_BEFORE: Sections = &[(
    "DESCRIPTION",
    "probe-bcache prints a line for each of the devices \
     that is a bcache device and nothing else, and silently skips the others.

This is bcachectl(8) under an old name. Options, output and exit status are those of bcache-tools \
     1.0.8, except that it does find bcache devices: see bcache-tools-compat(7). udev and blkid(8) \
     know bcache by themselves.",
)];

const PROBE_AFTER: Sections = &[
    (
        "EXIT STATUS",
        "0 :: Always, but

1 :: for an output format that is not known.",
    ),
    ("EXAMPLES", "    probe-bcache -o udev /dev/sdb"),
    SEE_ALSO,
];

const REGISTER_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcache-register has the kernel register a cache or backing device. udev rules of bcache-tools run it for each \
     bcache device that appears; by hand, bcachectl(8) is more convenient.

A device that is registered already is left alone, and so is one that is read-only: some kernels \
     would write to it. Also left alone is a cache whose backing device went on without it, if reads \
     would return old contents or dirty data would be dropped. So is a backing device that was \
     started without its cache, if that cache is registered and holds dirty data of it.

This is bcachectl(8) under an old name; bcache-tools-compat(7) lists what differs from bcache-tools \
     1.0.8.",
)];

const REGISTER_AFTER: Sections = &[
    (
        "EXIT STATUS",
        "0 :: The device is registered.

1 :: It is not: the message and the kernel's log say why.",
    ),
    ("EXAMPLES", "    modprobe bcache && /usr/lib/udev/bcache-register /dev/sdb"),
    SEE_ALSO,
];

const EXPORT_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcache-export-cached prints, one a line, the properties by which udev's rules name a volume \
     such as bcache0: CACHED_UUID and CACHED_LABEL of a backing device; CACHED_LABEL, \
     CACHED_SET_UUID and CACHED_VOLUME of a flash-only volume. It reads sysfs and no device.

bcache-tools 1.1 has a script of this name; here it is bcachectl(8).",
)];

const EXPORT_AFTER: Sections = &[
    (
        "EXIT STATUS",
        "0 :: Always, but

1 :: where not one device is named.",
    ),
    ("EXAMPLES", "    /usr/lib/udev/bcache-export-cached /dev/bcache0"),
    SEE_ALSO,
];

const STATUS_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcache-status prints settings, use and statistics of all running sets, with --sub-status also \
     of their devices. Without an option for a period it prints the statistics since registration.

It reads priority_stats, for which the kernel sorts all buckets of the cache and holds its lock: do not \
     run it in a loop. bcachectl-status(8) and bcachectl-top(8) tell more and cost less. The statistics \
     are the kernel's: they change every 13.6 seconds, and counts that grow fast are too low.

bcache-tools 1.1 has a command of this name; here it is bcachectl(8).",
)];

const STATUS_AFTER: Sections = &[
    (
        "EXIT STATUS",
        "0 :: All went well, or bcache is not loaded.

1 :: A file of the kernel could not be written.

2 :: Usage error.",
    ),
    ("EXAMPLES", "    bcache-status --sub-status --all"),
    SEE_ALSO,
];

const OVERVIEW: Sections = &[
    (
        "DESCRIPTION",
        "The commands of bcache-tools are here under their old names, and are all the one program \
         bcachectl(8): make-bcache(8), bcache-super-show(8), bcache(8), probe-bcache(8), \
         bcache-register(8), bcache-export-cached(8), bcache-status(8).

Their options, their output on both streams and their exit statuses are those of bcache-tools \
         1.0.8 (those of bcache and bcache-status: of 1.1), so that programs which call them and read what they print work as before. What \
         differs is listed here. It differs where the old command destroys data, writes what the \
         kernel refuses, or crashes.",
    ),
    (
        "MAKE-BCACHE",
        "Everything or nothing :: All devices are examined before the first is written. An error \
         about the second device leaves the first as it was, and nothing is printed about it.

Options that are not understood :: are an error. make-bcache 1.0.8 complains, leaves them out, and \
         formats.

--wipe-bcache in general :: works. In 1.0.8 it fails wherever libblkid knows bcache, which is everywhere today.

--wipe-bcache and --force :: overwrite a bcache superblock where no data is lost that exists nowhere \
         else. Where a cache holds dirty data or a flash-only volume, or that cannot be told, both \
         refuse: bcachectl-make(8) has --lose-dirty-data.

--label, -l :: sets a label, as in 1.1.

Sizes :: with anything but a unit behind the number are refused (64kfoo).

Number of buckets :: The kernel wants 513 buckets or more. 1.0.8 is content with 128.

Bucket and block sizes :: that the kernel refuses, or crashes over, are refused: buckets under 4 KiB \
         or of a single block, blocks over 4 KiB or smaller than the device's. Where blocks of the \
         default size would be as large as the buckets, smaller ones are used.

Replacement policies :: other than lru, fifo and random are refused. 1.0.8 writes nonsense to the \
         superblock, over which the kernel hangs.

--data-offset :: is in sectors, as before: the unit of 161280k is ignored, and a warning says so. \
         bcachectl-make(8) honours units. An offset past the end of the device is refused.

Several cache devices :: become sets of their own. 1.0.8 gives them one set UUID, and kernels since \
         5.10 refuse the second; together with backing devices or --cset-uuid they are refused.

The same device twice, or a disk and its partition :: are refused before anything is written.

Discards :: With --discard the cache device is discarded when it is made.

With --cset-uuid :: the journal of a cache device is zeroed: an old one of that set would be valid \
         again.

dev.sectors_per_bucket :: of a backing device is 1024 whatever --bucket says; nobody reads it there.

Devices too short, and special files :: are refused with a message. 1.0.8 says nothing.

Devices in use :: After the old message a second line tells who holds the device.

Other refusals :: are told in lines that begin with make-bcache: and a colon.",
    ),
    (
        "BCACHE-SUPER-SHOW",
        "Versions 5 and 6 :: are shown in full, as 1.1 does. 1.0.8 stops after the version.

A number of keys :: for which the checksum would reach past the superblock makes it wrong: [expected \
         none: N keys]. 1.0.8 reads past its buffer, and crashes.

Labels :: Bytes over 127 are printed as %c3, not as %ffffffc3.

Devices in use :: are read past the page cache, so that what is printed is what the kernel wrote.",
    ),
    (
        "BCACHE",
        "attach :: refuses a device that waits for its own set if another set is named: the kernel \
         would attach it, and return old data if that set cached the device before.

register :: is as bcache-register.

unregister :: takes backing devices with a data offset, too.

show -d :: prints what bcache-super-show prints.

The kernel and devices that do not answer :: do not block anything: show gives the state `unknown` \
         and names the device on standard error, attach waits for a minute, and the exit status is \
         1.

Paths :: of any form are taken. Devices are listed by name.",
    ),
    (
        "PROBE-BCACHE",
        "Prints a line for bcache devices. 1.0.8 skips what libblkid knows, which today is every \
         bcache device.",
    ),
    (
        "BCACHE-REGISTER",
        "Succeeds for a device that is registered already, without asking the kernel again. Refuses \
         read-only devices, to which kernel 6.12 would write, and a cache that failed and comes back \
         while its backing device went on without it: the kernel would attach it, and reads would \
         return its old contents. Refuses both if the backing device was started without the cache \
         and the cache holds dirty data of it: the kernel would drop that data. `bcachectl register` \
         says what to do.",
    ),
    (
        "BCACHE-STATUS",
        "Order :: Sets are listed by UUID, backing devices before cache devices. 1.1 has them in the \
         order of the kernel's directory.

Files that are missing :: such as discard on new kernels, are printed as empty or False. 1.1 crashes \
         over some of them, and over a device without a link in /dev/block, which is printed as ?.

--reset-stats :: clears the totals of the set and the figures of garbage collection, and nothing else: \
         so does 1.1.",
    ),
    (
        "SEE ALSO",
        "bcachectl(8), make-bcache(8), bcache-super-show(8), probe-bcache(8), bcache-register(8), \
         bcache-export-cached(8), bcache-status(8), udev(7)",
    ),
];

/// All pages, by file name.
pub fn pages() -> Result<Files> {
    let page = |name, synopsis, before, after| {
        man::files(&definition(name), [Page::of_program(synopsis, before, after)])
    };
    let pages = [
        page(
            "make-bcache",
            &["[OPTIONS] -C DEV... [ -B DEV... ]", "[OPTIONS] -B DEV..."],
            MAKE_BEFORE,
            MAKE_AFTER,
        ),
        page("bcache-super-show", &["[ -f ] DEV"], SHOW_BEFORE, SHOW_AFTER),
        page(
            "bcache",
            &[
                "make [OPTIONS] DEV...",
                "show [ -m ] [ -d DEV ]",
                "tree",
                "register|unregister DEV",
                "attach SET DEV",
                "detach DEV",
                "set-cachemode DEV MODE",
                "set-label DEV LABEL",
                "version",
            ],
            BCACHE_BEFORE,
            BCACHE_AFTER,
        ),
        page("probe-bcache", &["[ -o udev ] DEV..."], PROBE_BEFORE, PROBE_AFTER),
        page("bcache-register", &["DEV"], REGISTER_BEFORE, REGISTER_AFTER),
        page("bcache-export-cached", &["DEV"], EXPORT_BEFORE, EXPORT_AFTER),
        page(
            "bcache-status",
            &["[ -fhdta ] [ -s ] [ -g ] [ -r ]", "--help"],
            STATUS_BEFORE,
            STATUS_AFTER,
        ),
    ];
    let overview = Overview {
        name: "bcache-tools-compat",
        section: 7,
        about: "how the old names differ from bcache-tools",
        sections: OVERVIEW,
    };
    let mut files = vec![overview.file()?];
    for page in pages {
        files.extend(page?);
    }
    Ok(files)
}
