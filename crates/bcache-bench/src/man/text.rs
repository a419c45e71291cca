//! The sections that no parser knows.

pub(super) type Sections = &'static [(&'static str, &'static str)];

pub(super) const SEE_ALSO: (&str, &str) = (
    "SEE ALSO",
    "bcache-bench(8), bcache-bench-compare(8), bcache-bench-device(8), bcache-bench-plot(8), \
     bcache-bench-record(8), bcache-bench-replay(8), bcache-bench-size(8), bcachectl(8)",
);

pub(super) const MAIN_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcache-bench drives the allocator of bcache, the block cache of the Linux kernel, and measures \
     its latency: not only the average, but up to the slowest one in ten thousand.

replay reads a trace of block requests and says which cache would serve it best. size says what a \
     cache costs before it is made. device makes a cache set on a device and runs writers on it. \
     compare and plot read the JSON reports that device writes, which hold whole histograms.",
)];

pub(super) const MAIN_AFTER: Sections = &[
    (
        "LATENCIES",
        "Times are kept in histograms from 1 ns to 1 hour with three significant digits.

At a fixed rate an operation's latency counts from when it was due, even if earlier ones were not \
     done by then. None is skipped: a stall of a second shows in every operation that was due in \
     that second. Without a rate the next operation begins when the previous one has ended, and its \
     latency counts from there; a stall then shows once.

Before an operation is due a writer sleeps, and spins for the last 100 microseconds, because sleeping \
     ends late. At more than 10,000 operations a second for each writer it never sleeps: each writer \
     then wants a CPU for itself, and so does the allocator.",
    ),
    (
        "TRACES",
        "With --trace device writes a line for each event, with the seconds since the run began:

0.000123456 alloc cache=0 bucket=77 reserve=none :: A bucket was allocated, for this use.

0.000123456 alloc_fail cache=0 reserve=none free=0 free_inc=12 blocked=0 :: No bucket was available \
         at once. free and free_inc count the buckets in the reserve and in free_inc; blocked counts \
         freed btree nodes whose parents were not written yet.

0.000123456 invalidate cache=0 bucket=77 sectors=1016 :: A bucket with so many sectors of data is to be used \
         again.

The kernel's tracepoints bcache_alloc, bcache_alloc_fail and bcache_invalidate report the same. \
     Writing the lines takes time, which is part of the latencies of such a run.",
    ),
    (
        "REPORTS",
        "A report in JSON is one object:

format :: 1. A program refuses reports of a format that it does not know.

version, command, started_unix_seconds, interrupted :: The program, what it was asked for, when, and \
         whether it was ended early.

settings :: What was asked for, by name. Reports with different settings are not compared.

environment :: cpu_model, cpus, kernel, clocksource, governors, clock, debug_build, and devices with \
         their model, size_bytes, rotational, write_cache and what is behind them.

runs :: What was run: each with name, elapsed_ns (0 where only parts were timed), operations, figures (a second, hit_ratio, \
         write_amplification; null where nothing of the kind was done), pace (late, late_ns_max, \
         spun_ns), counters, slices, and measures.

slices :: Operations a second in slices of time, one after the other: 20 to 40 of equal length in a \
         run of a second or more. compare estimates noise from the slices. Older reports have none.

measures :: For each: measure, count, min_ns, mean_ns, p50_ns, p90_ns, p99_ns, p99.9_ns, p99.99_ns, \
         max_ns, and histogram, which is HdrHistogram's V2 encoding, compressed, in base64.

ratios :: Figures of this report beside each other: name, value, baseline, unit. Where both took \
         turns, also turns: pairs, ratio_low and ratio_high (of the 95 % interval; null with too few \
         pairs).

warnings :: What makes figures dubious: each with a code and the numbers that belong to it.",
    ),
    (
        "WARNINGS",
        "debug_build :: The program was built without optimisation.

too_few_samples :: Fewer than ten samples lie beyond a percentile: p99.99 takes 100,000 samples.

short_run, limit_reached :: A run ended before its rate could be told from noise, or before it had \
         made the passes that were requested.

clocksource, clock_resolution :: The clock is not the CPU's counter, or coarse compared with what was \
         measured.

governor, frequency_changed :: The CPUs do not run at one frequency.

other_user_of_device :: Others read or wrote the device during the run.

loop_over_page_cache, image_file :: What was measured is not a device alone. Over a page cache a \
         ratio between runs that flush more and less often says little.

no_discard :: --discard was given, and the device takes no discards.

steal, other_programs, involuntary_switches :: The machine did something else as well.

more_threads_than_cpus, pace_not_kept :: The writers got in each other's way, or the rate was too high.",
    ),
    (
        "ENVIRONMENT",
        "NO_COLOR :: If set and not empty, output is not coloured. Output that does not go to a \
         terminal is never coloured.",
    ),
    (
        "EXIT STATUS",
        "0 :: All went well.

1 :: Refused, or failed before anything was written to a device.

2 :: Usage error.

3 :: Failed after a device was written to.

4 :: compare found something that has become worse.

130 :: device or replay was interrupted; the report has what was done by then.",
    ),
    (
        "EXAMPLES",
        "What does the allocator cost on this machine? An image file is made, used and removed:

    bcache-bench device --image bench.img --size 4G --duration 10s

Keep the reports of two runs and compare them:

    bcache-bench device --image bench.img --size 4G --export json=a.json
    bcache-bench device --image bench.img --size 4G --export json=b.json
    bcache-bench compare a.json b.json",
    ),
    SEE_ALSO,
];

pub(super) const DEVICE_BEFORE: Sections = &[
    (
        "DESCRIPTION",
        "bcache-bench device makes a cache set on a device, starts the allocator thread, and runs \
     writers. Each allocates sectors for its streams, writes to them, and keeps an index of its data \
     in memory. The next garbage collection frees what was overwritten. It runs as often as the \
     kernel's: after a sixteenth of the cache was written, and when the allocator asks for it. Reads \
     that hit make their buckets young again; reads that miss put the data into the cache, as if it \
     had come from a backing device. Priorities and gens are written, named in the journal and \
     flushed for real before a bucket is used again.

Everything on the device is lost. As with bcachectl-make(8), what would be lost is shown, and the \
     program asks first. With several devices one allocator spreads the writes over all of them.",
    ),
    (
        "LENGTH",
        "A run ends after --duration, or when its operations add up to --amount bytes. All \
     operations count: writes, reads that hit, and reads that miss. If --reserves turns an operation \
     into an allocation from another reserve, it counts with the size that it would have had. \
     Without --io data nothing is written as data: the report then has operations a second, and \
     neither a bandwidth nor a write amplification.

Both are those of the allocator. The same writes without one (see COMPARISONS) take as long again. \
     They take turns with it: what the report says of each of them is as if its turns were one run.

With --rate, operations that are due before the end are still carried out, and their latencies \
     include the delay: if the device cannot keep the rate, a run lasts longer than --duration.

SIGINT (Ctrl-C) and SIGTERM end a run early, with its report. A second signal within half a second \
     counts as the same one; a later one aborts the program, and the devices stay as they are at \
     that moment. Ctrl-C at a question means no.",
    ),
    (
        "COMPARISONS",
        "In the same run, unless --no-baseline is given:

fixed addresses :: The same writes without an allocator: each stream fills a fixed extent as large \
         as a bucket, then its next one, and a write that goes over the end of an extent becomes \
         two, as with an allocator. Extents are taken in turn, and from all over the device where \
         the policy would: with LRU once each was written, with random always. On an image file or a \
         loop device everything is written once before, so that the file has its blocks. Only for a \
         single device, --io data, and no --reserves but none.

turns :: The allocator and fixed addresses take turns of a quarter of a second: one, the other, the \
         other again, the first. So a device that changes meanwhile changes for both. Before the other \
         goes on, all writes have ended, so has a chain of prio sets that was being written, and the \
         device was flushed. That counts. The ratio is that of their bandwidths over all pairs of turns \
         that were not cut short. Its 95 % interval is that of the percentile bootstrap: pairs are drawn \
         2,000 times, as many as there are each time. With fewer than 20 pairs there is none. With --keep \
         fixed addresses run before the allocator, for they would overwrite what is to stay, and there \
         are no pairs. Over a cache that is flushed only at the end of a turn, they write less to the \
         medium than the allocator, which flushes often. With --read-share there is no ratio: a miss \
         causes a write with an allocator, and a read here.

prio writes alone :: Chains of prio sets while nothing else is written, and beside them sequential \
         write: the same bytes one after the other, flushed as often. Their bandwidths are those of the median \
         chain. Only for a single device.",
    ),
    (
        "WHAT IS LEFT",
        "An image file is removed, and the superblock of a device is wiped. With --keep the cache set stays \
     as it is: bcachectl check finds nothing in it, and a kernel registers it. The data that was written \
     has no keys there, so that to the kernel all buckets are free.",
    ),
];

pub(super) const DEVICE_AFTER: Sections = &[
    (
        "EXIT STATUS",
        "0 :: All went well; also after an interruption, which the report says.

1 :: Refused, or failed before anything was written to a device.

2 :: Usage error.

3 :: Failed after a device was written to. Also: the report could not be printed or exported; each \
         is tried even if the other fails.",
    ),
    (
        "EXAMPLES",
        "What does a bucket size of 2 MiB do to the tail?

    bcache-bench device --bucket 512k --export json=a.json /dev/nvme0n1
    bcache-bench device --bucket 2M --export json=b.json /dev/nvme0n1
    bcache-bench compare --force a.json b.json

Half reads, and 20,000 operations a second, whatever the device makes of it:

    bcache-bench device --read-share 50 --rate 20000 --block-sizes 4k=70,64k=30 /dev/nvme0n1

Without a device:

    bcache-bench device --image /var/tmp/cache.img --size 8G --duration 20s",
    ),
    SEE_ALSO,
];

pub(super) const COMPARE_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcache-bench compare says what changed from report A to report B, for each run and measure that \
     both have, percentile by percentile.

The number of samples gives a 99 % confidence interval for each percentile, its range. The column \
     \"by chance\" shows what these ranges make of the change. A percentile has changed when its \
     ranges in A and B do not meet and it moved by more than --threshold. Everything else is \
     reported as no change beyond the noise, or as too few samples to say. The maximum of a run is a \
     single sample and is not compared.

For a rate the range follows from how much the operations a second varied between five consecutive \
     parts of the run. A run of less than a second, or a report without these figures, has too few \
     samples to say. The ranges of the run's percentiles are widened by as much: what disturbed the \
     rate, such as another program or a slow phase of the device, disturbed them, too.

Reports whose settings differ are refused, and the settings are named; --force compares them \
     nevertheless. Another machine, kernel, device or build is named, but is no reason to refuse.",
)];

pub(super) const COMPARE_AFTER: Sections = &[
    (
        "JSON",
        "With --json the output is one object with threshold, settings and environment (what differs: \
         name, a, b), unmatched (run, measure, only_in), latencies (run, measure, percentile, a and b \
         with value_ns, low_ns and high_ns, ratio, ratio_low, ratio_high, verdict) and rates (run, name, a, b, ratio, \
         ratio_low and ratio_high, which are null where nobody knows, verdict). A verdict is no_change, better, worse or too_few_samples.",
    ),
    (
        "EXIT STATUS",
        "0 :: Nothing has become worse.

1 :: A report could not be read, or the settings differ.

2 :: Usage error.

4 :: Something has become worse.",
    ),
    (
        "EXAMPLES",
        "Did it get slower?

    bcache-bench compare before.json after.json

What do two writers change? The settings differ on purpose:

    bcache-bench compare --force one-writer.json two-writers.json",
    ),
    SEE_ALSO,
];

pub(super) const PLOT_BEFORE: Sections = &[(
    "DESCRIPTION",
    "bcache-bench plot draws the latencies of one or more reports into one picture: latency on a \
     logarithmic axis, percentiles on an axis that gives each further nine the same space. A curve \
     ends with a dot at its last sample.

With several measures each has a colour, and dashes tell reports and runs apart; with one measure each \
     report and run has a colour, and a dash when all twelve colours are taken. Reports of rates alone have no \
     latencies to draw.",
)];

pub(super) const PLOT_AFTER: Sections = &[
    (
        "EXIT STATUS",
        "0 :: The picture was written.

1 :: A report could not be read, has nothing to draw, or the picture could not be written, or would \
         have replaced a report.

2 :: Usage error.",
    ),
    (
        "EXAMPLES",
        "Bucket allocation before and after:

    bcache-bench plot before.json after.json -m bucket-allocation -o change.svg",
    ),
    SEE_ALSO,
];
