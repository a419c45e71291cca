//! The sections of `replay` and `size` that no parser knows.

use super::text::{SEE_ALSO, Sections};

pub(super) const REPLAY_BEFORE: Sections = &[
    (
        "DESCRIPTION",
        "bcache-bench replay runs the requests of a block trace through many cache models in memory, \
     and says which cache would have served the trace best: how large, with which bucket size, \
     policy and sequential cutoff. It needs neither root nor a device.

The allocator is that of bcache-core, which behaves like the kernel's. The model around it covers \
     which requests bypass the cache and why, what a read miss puts into it, what a write does in \
     each mode, and garbage collection. The answer comes first, in words: the smallest cache that is \
     within a point of the best. A table of all caches that were tried follows, with notes on it.",
    ),
    (
        "TRACES",
        "The format is detected from the content; zstd and gzip are decompressed. Ctrl-C while a \
     trace is piped in ends the trace, and replay uses what came until then. Records that are not \
     requests are counted by kind.

blktrace :: The binary files of blktrace(8), one a CPU, given by name or as NAME for NAME.blktrace.0 and \
         on, or one stream: blktrace -d /dev/sdb -o - | bcache-bench replay -. They are merged by time.

blkparse :: What blkparse(1) prints. Its lines of action Q are requests.

iolog :: fio's, version 2 and 3. Several files are several devices.

msr, tencent, alibaba, spc :: CSV files of well-known collections. Other ones with --columns.

biosnoop, perf :: What biosnoop of bcc prints, and the text of perf script and trace-cmd report with the \
         event block_bio_queue (or block_rq_issue).

vscsi, oraclegeneral, arc, disksim :: Formats that other simulators use.",
    ),
    (
        "TABLE",
        "hits :: Share of reads of which every sector was cached. by bytes: share of the sectors \
         read that came from the cache. kernel's: the cache_hit_ratio of sysfs, which leaves out \
         what bypasses.

LRU blocks :: Hit ratio of exact LRU on 4 KiB blocks, in a cache of the same size without buckets, \
         bypass or metadata. The difference is what those cost.

bypassed :: Share of all bytes that bypassed the cache.

to SSD :: Bytes written to the SSD: data and prio sets. Journal and btree are not counted.

sample too small :: --sample leaves fewer than 513 buckets, which cannot be modelled.

refused :: The kernel takes no cache of fewer than 513 buckets.",
    ),
];

pub(super) const REPLAY_AFTER: Sections = &[
    (
        "WHAT IS NOT MODELLED",
        "Congestion: the kernel's default thresholds send requests past a busy cache, which \
     congested_read_threshold_us=0 and congested_write_threshold_us=0 switch off (bcachectl-set(8)). How long a \
     garbage collection takes: kernels since 6.10 choose by position while one runs, older ones wait for its \
     end; with policy lru a kernel's hit ratio differs from the model's by about a point for it. Background \
     writeback is an estimate from the trace's times.

A chain of prio sets is assumed to take 2.5 ms; requests that find no bucket ready meanwhile bypass \
     the cache. A cache of few buckets has few ready: on a slower SSD or machine it caches less than \
     is said here.

The requests of a trace without processes count as those of one task. Sequential I/O is detected per \
     task, so one stream makes other requests bypass the cache for a while: a cutoff of 0 shows how \
     much that is.",
    ),
    (
        "DEVICE",
        "With --device the requests are also made on a device, one at a time through direct I/O: at the \
     trace's times, or with --ignore-times as fast as possible. All data on it is lost, unless the trace only reads. On a bcache device \
     the kernel's own counters can then be read: sysfs has them 14 seconds later at most.",
    ),
    (
        "EXIT STATUS",
        "0 :: All went well.

1 :: The trace could not be read, or a device was refused.

2 :: Usage error.

3 :: A device failed after it was written to.

130 :: Interrupted; the report has the cells that were finished.",
    ),
    (
        "EXAMPLES",
        "How large an SSD?

    blktrace -d /dev/sdb -w 3600 -o - | bcache-bench replay --svg curve.svg -

Which bucket size, if it is to be 256 GiB and in writeback mode?

    bcache-bench replay --cache-size 256G --bucket 64k,256k,1M --mode writeback --tbw 600T sdb",
    ),
    SEE_ALSO,
];

pub(super) const SIZE_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcache-bench size says what a cache of a size costs for each bucket size, before it is made: memory of \
     the kernel, space for metadata, prio sets written beside the data, what is read at registration, and the \
     limits that the bucket size meets. It writes nothing.",
)];

pub(super) const SIZE_AFTER: Sections = &[
    (
        "EXIT STATUS",
        "0 :: All went well.

1 :: The device could not be opened.

2 :: Usage error.",
    ),
    SEE_ALSO,
];

pub(super) const RECORD_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcache-bench record records the requests made on a device, through the kernel's block trace, so \
     that bcache-bench-replay(8) can replay them. It needs root and debugfs, and does not read the \
     data. The file is what blktrace writes, with the CPUs' records one after the other, compressed \
     with zstd. Record the device that would become the backing device, in its busy hours.

Where debugfs is locked down, biosnoop -Q of bcc and perf record -e block:block_bio_queue record what replay \
     reads as well.",
)];

pub(super) const RECORD_AFTER: Sections = &[
    (
        "EXIT STATUS",
        "0 :: All went well, also when it was ended with Ctrl-C.

1 :: The device could not be traced, no request was made, or the kernel dropped some.

2 :: Usage error.",
    ),
    (
        "EXAMPLES",
        "An hour of /dev/sdb, and then the answer:

    bcache-bench record /dev/sdb --for 1h --output sdb.zst
    bcache-bench replay sdb.zst",
    ),
    SEE_ALSO,
];
