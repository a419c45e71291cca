//! The codes of findings: stable, never reused, each with what it means and what to do.

use std::fmt::Write as _;

use serde::{Serialize, Serializer};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Nothing is lost and the kernel does not mind.
    Untidy,
    /// What was to be checked could not be: nothing is known of it.
    NotChecked,
    /// The kernel registers the set; data may be lost, wrong or unreachable.
    DataAtRisk,
    /// The kernel refuses to register the set, or gives it up when it comes across this.
    KernelRefuses,
}

impl Severity {
    /// The words for it in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Untidy => "untidy",
            Self::NotChecked => "not checked",
            Self::DataAtRisk => "data at risk",
            Self::KernelRefuses => "kernel refuses",
        }
    }
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

macro_rules! codes {
    ($($variant:ident = $number:literal, $name:literal, $severity:ident, $meaning:literal, $advice:literal;)*) => {
        /// What kind of finding it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(
                #[doc = $meaning]
                $variant = $number,
            )*
        }

        impl Code {
            /// Every code, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its number.
            pub const fn number(self) -> u16 {
                match self { $(Self::$variant => $number),* }
            }

            /// Its name, for scripts.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// How bad such a finding usually is; a single one can be less so.
            pub const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity),* }
            }

            /// Whether it is about a backing device, not the cache.
            pub const fn is_backing(self) -> bool {
                self.number() / 100 == 7
            }

            /// What it means.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),* }
            }

            /// What a person can do.
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice),* }
            }
        }
    };
}

codes! {
    SuperblockRefused = 101, "superblock-refused", KernelRefuses,
        "The kernel refuses the superblock.",
        "Where the disk has larger blocks than the superblock says, nothing is damaged: copy the device to a disk with blocks as small, or put a loop device with smaller blocks over it. Else look at all of the superblock; one of the same device that was saved earlier can be written back.";
    SuperblockHazard = 102, "superblock-hazard", DataAtRisk,
        "The kernel accepts the superblock and comes to grief over it.",
        "Do not register the device. Copy the whole of it, then export its dirty data.";
    SuperblockUnknownFlags = 103, "superblock-unknown-flags", Untidy,
        "The superblock has flags that no kernel knows.",
        "Nothing needs to be done.";
    SuperblockCutOff = 104, "superblock-cut-off", DataAtRisk,
        "The device is shorter than the cache that its superblock describes.",
        "Make the partition as large as it was, or look at the whole device: what the rest holds cannot be told.";
    SuperblockUnsynced = 105, "superblock-unsynced", DataAtRisk,
        "The superblock says that the cache is new, and a cache set is on it.",
        "Do not register the device: the kernel would initialise it, and all that it holds would be lost. Copy the whole device first.";
    SuperblockMagic = 106, "superblock-magic", KernelRefuses,
        "The magic of the superblock is overwritten; everything else is in place.",
        "Nothing is lost yet. Do not format the device; a repair restores the magic.";
    SuperblockGone = 107, "superblock-gone", KernelRefuses,
        "The superblock is overwritten; the cache set behind it is there.",
        "Do not format the device; a repair makes the superblock again, with the help of a backing device.";
    SuperblockCoversSet = 108, "superblock-covers-set", DataAtRisk,
        "Behind the superblock is an older cache set, whose data may exist nowhere else.",
        "Do not register or format the device. Copy all of it, put zeroes over bytes 4096 to 8191 of the copy, and check that: the older set is found then.";
    SuperblockCopied = 109, "superblock-copied", DataAtRisk,
        "Another device is a copy of the cache, or the cache is a copy of it.",
        "Take the copy away before anything is registered or written: the kernel uses the one that it meets first, and udev offers it both.";
    JournalUnreadable = 201, "journal-unreadable", DataAtRisk,
        "A journal bucket cannot be read from the device.",
        "Copy the device to another one with a tool that goes on after errors and lists them, and check the copy: what could not be read is zeroes there.";
    JournalTorn = 202, "journal-torn", Untidy,
        "A journal entry was begun and is not whole.",
        "After a power failure this is normal: the kernel goes on from the entry before. Otherwise the last changes to the cache are lost.";
    JournalGap = 203, "journal-gap", KernelRefuses,
        "A journal entry that replay needs is missing.",
        "The set cannot be registered. Copy the whole device, then export its dirty data.";
    JournalSearch = 204, "journal-search", DataAtRisk,
        "The kernel's search of the journal does not find its newest entry.",
        "Do not register the device: the kernel would go back to an older state.";
    JournalChanged = 205, "journal-changed", Untidy,
        "The journal changed while it was read.",
        "The device is in use; stop the set and check again.";
    JournalKeys = 206, "journal-keys", DataAtRisk,
        "The keys of a journal entry do not fit it.",
        "Do not register the device; the kernel would read past the entry's end.";
    JournalLastSeq = 207, "journal-last-seq", KernelRefuses,
        "A journal entry needs entries that come after it.",
        "The set cannot be registered. Copy the whole device, then export its dirty data.";
    JournalEmpty = 208, "journal-empty", KernelRefuses,
        "The journal holds no entries.",
        "Do not format the device: its data is still there, and its btree would have to be searched for. Copy the whole device first.";
    JournalBadKey = 209, "journal-bad-key", KernelRefuses,
        "A key of the journal's replay range cannot be an extent.",
        "Do not register the device: replay would insert the key, or stop the kernel.";
    JournalHidden = 210, "journal-hidden", DataAtRisk,
        "Sound journal entries stand behind a damaged one, where the kernel does not find them.",
        "Do not register the device: the kernel would go back to the entry before the damage, and write over the others. Copy the whole of it first.";
    JournalNewestLost = 211, "journal-newest-lost", DataAtRisk,
        "The newest journal entries are damaged: one behind them was begun, so they were complete.",
        "Do not register the device: the kernel would go back to the state before them. Copy the whole of it first.";
    PrioUnreadable = 301, "prio-unreadable", KernelRefuses,
        "A prio set cannot be read from the device.",
        "Copy the device to another one with a tool that goes on after errors and lists them, and check the copy: what could not be read is zeroes there.";
    PrioDamaged = 302, "prio-damaged", KernelRefuses,
        "A prio set is damaged, or is not one of this set.",
        "The set cannot be registered. Copy the whole device, then export its dirty data.";
    PrioOutOfRange = 303, "prio-out-of-range", KernelRefuses,
        "The prio chain leads to a bucket that the device does not have.",
        "The set cannot be registered. Copy the whole device, then export its dirty data.";
    PrioInJournal = 304, "prio-in-journal", DataAtRisk,
        "The prio chain leads to a bucket of the journal.",
        "Do not register the device. Copy the whole of it, then export its dirty data.";
    PrioRepeated = 305, "prio-repeated", DataAtRisk,
        "The prio chain leads to one bucket twice.",
        "Do not register the device: the gens of some buckets are wrong.";
    PrioMixed = 306, "prio-mixed", DataAtRisk,
        "The prio sets of the chain are not of one write.",
        "Do not register the device: the gens of some buckets are older than they were.";
    UuidPointer = 401, "uuid-pointer", KernelRefuses,
        "The journal does not tell where the uuid table is.",
        "The set cannot be registered. Copy the whole device, then export its dirty data.";
    UuidUnreadable = 402, "uuid-unreadable", KernelRefuses,
        "The uuid table cannot be read from the device.",
        "Copy the device to another one with a tool that goes on after errors and lists them, and check the copy: what could not be read is zeroes there.";
    UuidRepeated = 403, "uuid-repeated", DataAtRisk,
        "Two volumes have the same uuid.",
        "The kernel uses the first; what is cached under the second is not seen.";
    UuidNotATable = 404, "uuid-not-a-table", DataAtRisk,
        "The uuid table is overwritten: nothing tells which volume belongs to which device.",
        "Do not register the device: the kernel would not find the owners of dirty data, and would start garbage as flash-only volumes. Copy the whole device first.";
    UuidSlot = 405, "uuid-slot", DataAtRisk,
        "A slot of the uuid table holds what no kernel writes.",
        "Do not register the device before its volumes are copied: the kernel takes the slot as it is.";
    UuidEmptyFlash = 406, "uuid-empty-flash", DataAtRisk,
        "A flash-only volume has no sectors: the kernel stops there and does not start those in higher slots.",
        "The data of the volumes in higher slots is still there. Copy it before the cache is changed.";
    UuidDetachedDirty = 407, "uuid-detached-dirty", DataAtRisk,
        "The cache holds dirty data of a volume whose slot is marked as detached: the kernel gave it up, as it does when a device is attached again that was detached as its cache failed.",
        "The kernel never writes this data back. Export it from the cache before the cache is made anew.";
    BtreeRoot = 501, "btree-root", KernelRefuses,
        "The journal does not tell where the btree is.",
        "The set cannot be registered, and its btree would have to be searched for. Copy the whole device; do not format it.";
    BtreeUnreadable = 502, "btree-unreadable", KernelRefuses,
        "A btree node cannot be read from the device.",
        "Copy the device to another one with a tool that goes on after errors and lists them, and check the copy: what could not be read is zeroes there.";
    BtreeNode = 503, "btree-node", KernelRefuses,
        "A btree node is damaged.",
        "The set cannot be registered. Copy the whole device, then export what the other nodes name.";
    BtreeBadExtent = 504, "btree-bad-extent", KernelRefuses,
        "A key in a leaf cannot be an extent.",
        "The kernel gives the set up when it reads the node. Copy the whole device, then export its dirty data.";
    BtreeBadPointer = 505, "btree-bad-pointer", KernelRefuses,
        "A key in an interior node cannot point to a node.",
        "The kernel gives the set up when it reads the node. Copy the whole device, then export its dirty data.";
    BtreeOrder = 506, "btree-order", DataAtRisk,
        "The keys of a set in a btree node are not in order, or one is cut off.",
        "Do not register the device: the kernel does not notice and reads wrong data.";
    BtreePastNode = 507, "btree-past-node", KernelRefuses,
        "A btree node holds keys past its own end.",
        "The kernel gives up at such a node, unless it is almost empty.";
    BtreeRevisited = 508, "btree-revisited", DataAtRisk,
        "Two keys of the btree lead to one node.",
        "Do not register the device. Copy the whole of it, then export its dirty data.";
    BtreeBeforeNode = 509, "btree-before-node", DataAtRisk,
        "A btree node holds keys that belong to the node before it.",
        "Do not register the device: what is found depends on where one looks.";
    BtreeUncovered = 510, "btree-uncovered", DataAtRisk,
        "The children of an interior btree node do not reach its end.",
        "Do not register the device: inserts past the last child fail.";
    BtreeLostKeys = 511, "btree-lost-keys", DataAtRisk,
        "A btree node has lost keys: the journal has newer ones for the same data.",
        "Do not register the device: the kernel does not notice, and the newer data would be lost. Copy the whole of it first; a repair takes the keys from the journal.";
    KeyStaleDirty = 601, "key-stale-dirty", DataAtRisk,
        "A key holds the only copy of data, and its bucket was reused.",
        "The data is lost. Check the filesystem on the volume.";
    KeyTooStale = 602, "key-too-stale", KernelRefuses,
        "A pointer is more than 96 gens behind its bucket.",
        "The kernel gives the set up when it meets the key. Copy the whole device, then export its dirty data.";
    KeyNewer = 603, "key-newer", Untidy,
        "An extent is of a newer gen than the prio set knows.",
        "The kernel takes the extent's gen. Nothing needs to be done.";
    KeyInconsistent = 604, "key-inconsistent", KernelRefuses,
        "Keys for data and for the btree point into one bucket.",
        "The kernel gives the set up. Copy the whole device, then export its dirty data.";
    KeyNoVolume = 605, "key-no-volume", DataAtRisk,
        "An extent is of a volume that the uuid table does not have.",
        "Clean data is of no use any more; dirty data cannot be reached through the kernel.";
    BucketShared = 606, "bucket-shared", DataAtRisk,
        "A bucket of journal, prios or uuids is used for something else too.",
        "Do not register the device. Copy the whole of it, then export its dirty data.";
    BucketOverused = 607, "bucket-overused", DataAtRisk,
        "The extents in a bucket are longer than the bucket: some overlap.",
        "Some of the data is wrong. Compare clean data with the backing device (--verify-clean).";
    BucketGenLimit = 608, "bucket-gen-limit", Untidy,
        "Buckets have gens so far ahead that they cannot be invalidated.",
        "The kernel reuses them after its next garbage collection.";
    VolumeFlashClean = 609, "volume-flash-clean", DataAtRisk,
        "A flash-only volume has extents that count as clean: the kernel may drop them.",
        "Copy the volume off before the cache is used again.";
    BackingUnreadable = 701, "backing-unreadable", NotChecked,
        "A device cannot be read, or is no backing device.",
        "A device that cannot be read may be the cache, too: copy it to another one with a tool that goes on after errors and lists them, and check the copy. Else name the right device; the list of the machine's devices has it. If this is the right one and its superblock is gone, a repair with its cache makes that again.";
    BackingRefused = 702, "backing-refused", KernelRefuses,
        "The kernel refuses a backing device's superblock.",
        "Where the disk has larger blocks than the superblock says, nothing is damaged: copy the device to a disk with blocks as small, or put a loop device with smaller blocks over it. Else a repair restores what its checksum proves, or what its cache confirms.";
    BackingOtherSet = 703, "backing-other-set", NotChecked,
        "A backing device belongs to another cache set, or it cannot be told that it belongs to none.",
        "Name the right device; the list of the machine's devices has it.";
    BackingNotInTable = 704, "backing-not-in-table", DataAtRisk,
        "A backing device says that it is attached, and the uuid table does not have it.",
        "Do not register both: the kernel would not find dirty data of the device, and may give it a slot with clean data of another. A repair enters the device in the table again where it can tell which slot is the device's.";
    BackingStateClean = 705, "backing-state-clean", DataAtRisk,
        "A backing device counts as clean, and the cache holds dirty data of it.",
        "Do not run the device without the cache: data would be lost.";
    BackingStateStale = 706, "backing-state-stale", DataAtRisk,
        "A backing device was run without its cache while the cache held dirty data of it.",
        "Do not register the two together: the kernel attaches the device and drops the dirty data. Export the dirty data first.";
    BackingTooSmall = 707, "backing-too-small", DataAtRisk,
        "The cache holds data past the end of a backing device.",
        "Name the right device, or undo its shrinking.";
    CleanMismatch = 708, "clean-mismatch", DataAtRisk,
        "Cached data that counts as clean is not what the backing device holds.",
        "One of the two is wrong: compare with a backup. Invalidating the buckets makes the backing device's data count.";
    BackingSetGone = 709, "backing-set-gone", DataAtRisk,
        "A backing device lacks data that a cache set holds, and this cache is not that set.",
        "Look for the old cache device and do not change it. Without it, what the backing device lacks is lost.";
    BackingReleased = 710, "backing-released", DataAtRisk,
        "The cache holds dirty data of a backing device that is no longer attached: the kernel detaches a device when its cache fails.",
        "Do not register or attach the device: the kernel would give up the dirty data. Save that from the cache first.";
    BackingMoved = 711, "backing-moved", DataAtRisk,
        "The cache holds dirty data of a backing device that is attached to another set now.",
        "Save the dirty data from the cache before this set is registered again.";
    BackingBlockSize = 712, "backing-block-size", KernelRefuses,
        "The blocks of the set are larger than those of a backing device: the kernel does not attach it.",
        "Make a cache whose blocks are no larger, or the backing device anew with larger ones after copying its data.";
    BackingWrittenBack = 713, "backing-written-back", Untidy,
        "The cache counts data as dirty that a clean backing device holds too: it was written back shortly before the set was stopped.",
        "The kernel writes it back once more after the next write to the device, or when the device is detached.";
    BackingDetached = 714, "backing-detached", Untidy,
        "A backing device is attached to no cache, and this cache holds nothing of it.",
        "Nothing needs to be done: the device needs no cache.";
    BackingDataOffset = 715, "backing-data-offset", DataAtRisk,
        "The cache holds data of a backing device from before the sector where its superblock says that the data begins: that offset is wrong.",
        "Do not register the device: all of its data would be in the wrong place. Export the dirty data with the right data offset, 16 unless the device was made with another.";
    BackingNewer = 716, "backing-newer", DataAtRisk,
        "A backing device was registered after this cache was last there: the cache may be an old copy, and another one of its set may hold newer data.",
        "Do not register the two together: old data would take the place of newer data. Look for the cache that was used last. If there is none, or the clock was wrong at that time, save the dirty data from the cache first.";
    BackingSetCovered = 717, "backing-set-covered", DataAtRisk,
        "A backing device lacks data of a cache set that is still on this cache device, under the superblock of another set.",
        "Do not register or format the cache. Copy all of it, put zeroes over bytes 4096 to 8191 of the copy, and check that with the backing device: its set is found then.";
    BackingIsCache = 718, "backing-is-cache", DataAtRisk,
        "Behind the superblock of a backing device is a cache set: the device is a cache.",
        "Do not register or format the device. Copy all of it, put zeroes over bytes 4096 to 8191 of the copy, and check that: its set is found then.";
    BackingCopied = 719, "backing-copied", DataAtRisk,
        "Another device is a copy of a backing device, or that is a copy of it.",
        "Take the copy away before anything is registered or written: the kernel attaches the one that it meets first, and dirty data may go to the wrong one.";
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// All codes as a table in Markdown: the contents of docs/findings.md after its introduction.
pub fn table() -> String {
    let mut table =
        String::from("| code | name | severity | meaning | what to do |\n|---|---|---|---|---|\n");
    for code in Code::ALL {
        // Writing into a String cannot fail.
        let _ = writeln!(
            table,
            "| {} | `{}` | {} | {} | {} |",
            code.number(),
            code.name(),
            code.severity(),
            code.meaning(),
            code.advice()
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_in_order() {
        assert!(Code::ALL.windows(2).all(|w| w[0].number() < w[1].number()));
        let mut names: Vec<_> = Code::ALL.iter().map(|code| code.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
    }

    #[test]
    fn the_documented_table_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/findings.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (introduction, rest) = text.split_once("| code |").unwrap();
        if std::env::var_os("BCACHE_BLESS").is_some() {
            std::fs::write(path, format!("{introduction}{}", table())).unwrap();
            return;
        }
        assert_eq!(format!("| code |{rest}"), table(), "docs/findings.md");
    }
}
