//! bcachectl-recovery(7): from what the kernel logs to what can be done.

use bcache_cli::man::Overview;

use super::text::Sections;

pub(super) const PAGE: Overview = Overview {
    name: "bcachectl-recovery",
    section: 7,
    about: "from what the kernel logs about bcache to what can be done",
    sections: SECTIONS,
};

const SECTIONS: Sections = &[
    (
        "DESCRIPTION",
        "This page lists what the kernel says when bcache is in trouble, what it means, and which command \
         helps. Look for the words of your log; numbers and names of devices differ. In the commands, \
         /dev/nvme0n1 stands for the cache device and /dev/sdb for the backing device. The names after \
         \"check:\" are those of the findings of bcachectl-check(8).",
    ),
    (
        "BEFORE ANYTHING ELSE",
        "Do not format anything, and do not run a backing device without its cache: in writeback mode the \
         cache may hold data that exists nowhere else. Do not register the devices again and again. See \
         first what there is; this writes nothing:

    bcachectl check /dev/nvme0n1 /dev/sdb
    bcachectl show --dirty /dev/nvme0n1

If the cache device has read errors, copy all of it with a tool that goes on after errors, and work on \
         the copy. Keep the metadata as it is now, and let every command that writes save what it \
         overwrites:

    bcachectl image create /dev/nvme0n1 -o cache.bci
    bcachectl repair --undo repair.undo /dev/nvme0n1 /dev/sdb
    bcachectl undo repair.undo

These work on devices that the kernel does not run, and on copies of them in files.",
    ),
    (
        "THE SUPERBLOCK IS REFUSED",
        "Not a bcache superblock (bad magic) :: The magic is overwritten, as wipefs(8) does it, or this is \
         no bcache device. Where the rest is in place, repair restores it. (check: superblock-magic, \
         backing-refused)

    bcachectl repair /dev/nvme0n1
    bcachectl repair /dev/sdb

Not a bcache superblock (bad offset) :: The device has no superblock in this place: another device, \
         another partition, or it was overwritten. show tells what is on each device of the machine. Where \
         the rest of a cache set is behind it, repair makes the superblock again; name a backing device of \
         the set, which has the whole of the set's UUID. (check: superblock-gone)

    bcachectl show
    bcachectl repair /dev/nvme0n1 /dev/sdb

Bad checksum :: The superblock is damaged. repair puts the checksum right where all that the superblock \
         says is true of the device, and the set reads by it. (check: superblock-refused)

    bcachectl repair --dry-run /dev/nvme0n1 /dev/sdb
    bcachectl repair --accept superblock-checksum /dev/nvme0n1 /dev/sdb

Invalid superblock: device too small :: The device or partition is smaller than it was. Make it as large \
         as it was. Until then nothing can be said about the data at the end. (check: superblock-cut-off)

    bcachectl check /dev/nvme0n1 /dev/sdb

Superblock block size smaller than device block size :: The set was made for smaller blocks than this \
         device has: it was copied from another disk. Put it on a device with such blocks, or on a loop \
         device with --sector-size. (check: superblock-refused)

    bcachectl show --superblock /dev/nvme0n1

device already registered :: Nothing is wrong: udev was faster. On old kernels all other refusals look \
         alike to the program that registers; the reason is in the log alone.

    bcachectl status

device busy :: Something else holds the device: a file system, RAID, LVM, device-mapper or multipath. \
         The refusal names it.

    bcachectl register --dry-run /dev/nvme0n1",
    ),
    (
        "THE CACHE SET IS REFUSED",
        "In these cases the volumes do not appear. The devices still have their data.

no journal entries found :: The journal is empty or overwritten. The data is there, but nothing tells \
         where the btree is. repair searches the device for it; what was written last may be lost. Copy the \
         whole device first. (check: journal-empty)

    bcachectl repair --dry-run /dev/nvme0n1 /dev/sdb
    bcachectl repair --undo repair.undo --accept journal --accept btree-node --accept uuid-table \
         /dev/nvme0n1 /dev/sdb

journal entries A-B missing! (replaying X-Y) :: Entries that replay needs are lost. repair makes new \
         metadata from what is left; it says of which sectors newer data may be lost. export saves the \
         volume without changing anything. (check: journal-gap)

    bcachectl repair --dry-run /dev/nvme0n1 /dev/sdb
    bcachectl repair --undo repair.undo --accept journal /dev/nvme0n1 /dev/sdb
    bcachectl export /dev/nvme0n1 /dev/sdb -o volume.img

bad csum reading priorities :: A prio set is damaged, and the set is refused with \"IO error reading \
         priorities\". The gens of buckets can be told from the pointers to them. (check: prio-damaged)

    bcachectl repair --dry-run /dev/nvme0n1 /dev/sdb
    bcachectl repair --undo repair.undo --accept prio-sets /dev/nvme0n1 /dev/sdb

bad btree header at bucket N, block 0, 0 keys :: A btree node is overwritten. Of the root, repair finds \
         the leaves on the device. (check: btree-node)

    bcachectl repair --dry-run /dev/nvme0n1 /dev/sdb
    bcachectl repair --undo repair.undo --accept btree-node /dev/nvme0n1 /dev/sdb

bad checksum at bucket N, block B, K keys :: A set of keys in a btree node is damaged. Where the journal \
         still has these keys, repair is certain and needs no --accept. (check: btree-node)

    bcachectl repair --undo repair.undo /dev/nvme0n1 /dev/sdb

unsupported bset version :: As above: what is in the place of a btree node is none. (check: btree-node)

    bcachectl repair --dry-run /dev/nvme0n1 /dev/sdb
    bcachectl repair --undo repair.undo --accept btree-node /dev/nvme0n1 /dev/sdb
    bcachectl export /dev/nvme0n1 /dev/sdb -o volume.img

replay journal failed :: The journal was read, and its keys could not be put into the btree. The lines \
         before it name the node. If check finds nothing, write the dirty data back without the kernel. \
         (check: btree-node, journal-bad-key, btree-uncovered)

    bcachectl check /dev/nvme0n1 /dev/sdb
    bcachectl writeback --undo writeback.undo /dev/nvme0n1 /dev/sdb",
    ),
    (
        "THE SET IS REGISTERED, AND DATA IS WRONG OR MISSING",
        "bad csum, N bytes, offset O :: A journal entry is damaged. After a power cut that is normal for the \
         last one. If newer ones stand behind it, the kernel does not see them and goes back to an older \
         state: stop the set before anything is written. (check: journal-torn, journal-hidden, \
         journal-newest-lost, journal-search)

    bcachectl stop /dev/nvme0n1
    bcachectl check /dev/nvme0n1 /dev/sdb
    bcachectl repair --undo repair.undo /dev/nvme0n1 /dev/sdb

Couldn't find uuid for DEV in set :: The uuid table is damaged or the backing device is of an older state \
         of the set. The cache may hold its dirty data all the same. Do not attach it to anything. repair makes the \
         table again; name all backing devices of the set. Where nothing tells whose a volume is and you know it, \
         say it with --owner. (check: uuid-not-a-table, backing-not-in-table)

    bcachectl check /dev/nvme0n1 /dev/sdb
    bcachectl repair --dry-run /dev/nvme0n1 /dev/sdb
    bcachectl repair --undo repair.undo /dev/nvme0n1 /dev/sdb

stale dirty pointer :: A bucket with the only copy of data was reused, or its gen is wrong. Reads give the \
         old data of the backing device. Stop the set. (check: key-stale-dirty)

    bcachectl stop /dev/nvme0n1
    bcachectl check /dev/nvme0n1 /dev/sdb

key too stale: N, need_gc M :: Pointers are too far behind the gens of their buckets, or these gens are \
         wrong; the kernel switches the cache off. export reads the volume all the same. (check: \
         key-too-stale)

    bcachectl check /dev/nvme0n1 /dev/sdb
    bcachectl export /dev/nvme0n1 /dev/sdb -o volume.img

inconsistent ptrs: mark = M, level = L :: A bucket is used for data and for metadata. (check: \
         key-inconsistent)

    bcachectl export /dev/nvme0n1 /dev/sdb -o volume.img",
    ),
    (
        "DEVICES FAIL WHILE THEY RUN",
        "too many IO errors reading from cache, disabling caching :: The cache failed. What follows depends \
         on the lines after this one.

    bcachectl status

conditional_stop_bcache_device() stop_when_cache_set_failed of bcache0 is \"auto\" and cache is clean, \
         keep it alive. :: The volume goes on without its cache, and its superblock still names the set. If \
         the old cache is registered again now, reads give old data. Follow what status says, and keep \
         the old cache away.

    bcachectl status /dev/sdb
    bcachectl stop /dev/sdb

conditional_stop_bcache_device() stop_when_cache_set_failed of bcache0 is \"auto\" and cache is dirty, \
         stop it to avoid potential data corruption. :: The volume is gone and nothing is lost yet. If the \
         cache can be read again, register both. If it has errors, save the volume from the cache itself: \
         sectors that cannot be read are listed. In a copy they would be zeroes, which nothing tells from \
         data. (check: backing-unreadable, btree-unreadable)

    bcachectl register /dev/nvme0n1 /dev/sdb
    bcachectl export /dev/nvme0n1 /dev/sdb -o volume.img

stop bcache0: too many IO errors on backing device X :: The disk failed. Its dirty data is still in the \
         cache. Copy the disk to another one of the same size or larger, and write back to that.

    bcachectl writeback --dry-run /dev/nvme0n1 disk-copy.img

journal io error :: The cache could not write its journal. What was written since may be lost. As with \
         errors in reading, the set is switched off.

    bcachectl status
    bcachectl check /dev/nvme0n1 /dev/sdb",
    ),
    (
        "NO WORD IN THE LOG",
        "The volume does not appear :: The backing device waits for its cache. If the cache is lost for good \
         and the device is clean, it can be started alone. If it is dirty, run says so and refuses.

    bcachectl list
    bcachectl run --dry-run /dev/sdb

A partition table was written to a backing device, or its start was overwritten :: Nothing says any more that \
         it is one. Its cache knows it, and repair makes the superblock again. Do not put a file system on it. \
         Name all backing devices of the set. (check: backing-unreadable)

    bcachectl check /dev/nvme0n1 /dev/sdb
    bcachectl repair --dry-run /dev/nvme0n1 /dev/sdb
    bcachectl repair --undo repair.undo --accept superblock-gone /dev/nvme0n1 /dev/sdb

A backing device was run without its cache :: The kernel drops the dirty data on that cache when both are \
         registered. Save it first. (check: backing-state-stale, backing-released)

    bcachectl export --dirty-only /dev/nvme0n1 /dev/sdb -o volume.img
    bcachectl writeback --detach --ran-alone --dry-run /dev/nvme0n1 /dev/sdb

A cache with dirty data was formatted anew, or got the superblock of another :: As long as it was not registered \
         since, its old set is still there. Repair brings it back from under a new cache. In all other cases, copy \
         the device, and put zeroes over the superblock of the copy, with the command that check gives: repair \
         makes that again. (check: superblock-covers-set, backing-set-covered, backing-is-cache)

    bcachectl check /dev/nvme0n1 /dev/sdb
    bcachectl repair --undo repair.undo --accept superblock-covers-set /dev/nvme0n1 /dev/sdb
    bcachectl check COPY /dev/sdb
    bcachectl repair --dry-run COPY /dev/sdb

The cache was put back from an older copy, or its disk was away :: The kernel has registered the backing \
         device since, and takes the old data in the cache for newer. Look for the cache that was used last. \
         Without it, keep what only the old one has. If the clock was wrong at one of the two times that \
         check names, and nothing was written to the device since, write the dirty data back and detach. \
         (check: backing-newer)

    bcachectl check /dev/nvme0n1 /dev/sdb
    bcachectl export --dirty-only /dev/nvme0n1 /dev/sdb -o volume.img
    bcachectl writeback --detach --ran-alone --dry-run /dev/nvme0n1 /dev/sdb

The cache is to be taken out without the kernel :: Write all dirty data back and detach. Then the backing \
         device needs no cache.

    bcachectl writeback --verify --detach /dev/nvme0n1 /dev/sdb",
    ),
    (
        "SEE ALSO",
        "bcachectl(8), bcachectl-check(8), bcachectl-show(8), bcachectl-export(8), bcachectl-repair(8), \
         bcachectl-writeback(8), bcachectl-image(8), bcachectl-undo(8), bcachectl-status(8)",
    ),
];
