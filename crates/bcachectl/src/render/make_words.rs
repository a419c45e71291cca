//! What `make` says in terms of its options: one table from the facts of the core to the words of
//! the command line.

use bcache_core::layout::superblock::Kind;
use bcache_core::ops::make::{Fit, GatherError, MakeError, Note, Override, Setting};
use bcache_core::units::format_bytes;

/// The option that a setting is given by.
const fn option(setting: Setting) -> &'static str {
    match setting {
        Setting::BucketSize => "--bucket",
        Setting::Discard => "--discard",
        Setting::Replacement => "--cache-replacement-policy",
        Setting::DataOffset => "--data-offset",
        Setting::Writeback => "--writeback",
    }
}

/// The option that gives a permission.
pub const fn override_option(missing: Override) -> &'static str {
    match missing {
        Override::WipeBcache => "--wipe-bcache",
        Override::Force => "--force",
        Override::LoseDirtyData => "--lose-dirty-data",
    }
}

/// A note, with the option that it is about.
pub fn note(note: &Note) -> String {
    match note {
        Note::SettingUnused { setting } => format!(
            "{} is for {} devices, and none is made: it has no effect",
            option(*setting),
            setting.kind()
        ),
        Note::NoDiscard => "the device takes no discards: --discard has no effect".to_owned(),
        Note::DataOffset { .. } => format!("--data-offset: {note}"),
        _ => note.to_string(),
    }
}

/// A refusal, with the option that it is about and the one that helps.
pub fn refusal(error: &MakeError) -> String {
    use MakeError as E;
    match error {
        E::NoDevices => "name at least one device: --cache DEV... or --bdev DEV...".to_owned(),
        E::NilSetUuid => {
            format!("--cset-uuid: {error}; give another, or leave it out for a new one")
        }
        E::SeveralCaches { .. } => {
            format!("{error}; make them in separate commands, or leave out --bdev and --cset-uuid")
        }
        E::BucketNotPowerOfTwo { .. } | E::BucketTooSmall { .. } | E::BucketTooLarge { .. } => {
            format!("--bucket: {error}")
        }
        E::BlockNotPowerOfTwo { .. }
        | E::BlockOutOfRange { .. }
        | E::BlockSmallerThanDevice { .. } => format!("--block: {error}"),
        E::BlockSmallerThanSet { set, .. } => {
            format!("--block: {error}; give --block {}", option_size(set.bytes()))
        }
        E::OneBlockBuckets { block_size, smaller_block } => {
            let or = smaller_block
                .map_or_else(String::new, |size| format!(", or --block at most {size}"));
            let least = format_bytes(2 * block_size.bytes());
            format!("--bucket: {error}; give --bucket at least {least}{or}")
        }
        E::DataOffsetTooSmall { .. } | E::DataOffsetMisaligned { .. } => {
            format!("--data-offset: {error}")
        }
        E::DataOffsetPastEnd { asked: true, .. } => format!("--data-offset: {error}"),
        E::DataOffsetSplitsBlocks { .. } => {
            format!("--data-offset: {error}; choose a multiple, or a smaller --block")
        }
        E::TooFewBuckets { asked, fits, .. } => {
            let about = if *asked { "--bucket: " } else { "" };
            format!("{about}{error}{}", suggestion(*fits, *asked))
        }
        E::WouldDestroy { missing, set_uuid, .. } => {
            let options: Vec<&str> = missing.iter().map(|it| override_option(*it)).collect();
            let set = match set_uuid.filter(|_| missing.contains(&Override::LoseDirtyData)) {
                Some(uuid) => format!(" (or --lose-set {uuid})"),
                None => String::new(),
            };
            format!("{error}; to destroy it, add {}{set}", options.join(" and "))
        }
        E::SameDevice { .. }
        | E::PartitionOfDisk { .. }
        | E::LogicalBlockLargerThanPage { .. }
        | E::DataOffsetPastEnd { asked: false, .. }
        | E::DeviceTooShort { .. }
        | E::ReadOnly { .. }
        | E::Zoned { .. }
        | E::BcacheOnBcache { .. }
        | E::KernelRefuses { .. }
        | E::KernelWouldHang { .. } => error.to_string(),
    }
}

/// Whether the refusal is about the command line alone: no device would change it.
pub const fn is_usage(error: &MakeError) -> bool {
    use MakeError as E;
    matches!(
        error,
        E::NoDevices
            | E::SameDevice { .. }
            | E::NilSetUuid
            | E::SeveralCaches { .. }
            | E::BucketNotPowerOfTwo { .. }
            | E::BucketTooSmall { .. }
            | E::BucketTooLarge { .. }
            | E::BlockNotPowerOfTwo { .. }
            | E::BlockOutOfRange { .. }
            | E::DataOffsetTooSmall { .. }
    )
}

/// Why the facts about the devices cannot be had.
pub fn gathering(error: GatherError) -> anyhow::Error {
    match error {
        GatherError::Devices(error) => anyhow::anyhow!(refusal(&error)),
        GatherError::Exists { .. } => anyhow::anyhow!(
            "{error}; --size is for image files that do not (leave it out to use the file)"
        ),
        GatherError::Missing { .. } => {
            anyhow::anyhow!("{error}; to make it as an image file, give its --size")
        }
        GatherError::Look { .. } | GatherError::Device(_) => error.into(),
    }
}

/// A size as the options take it: in KiB where it is a whole number of them.
fn option_size(bytes: u64) -> String {
    if bytes % 1024 == 0 { format!("{}k", bytes >> 10) } else { bytes.to_string() }
}

fn suggestion(fits: Option<Fit>, bucket_asked: bool) -> String {
    match fits {
        None => "; the device is too small for a cache".to_owned(),
        Some(Fit { bucket_size, smaller_block: None }) => {
            format!("; --bucket {} fits", option_size(bucket_size.bytes()))
        }
        Some(Fit { bucket_size, smaller_block: Some(block) }) => {
            let block = format_bytes(block.bytes());
            if bucket_asked {
                let bucket = option_size(bucket_size.bytes());
                format!("; --bucket {bucket} with --block at most {block} fits")
            } else {
                format!("; --block at most {block} allows smaller ones, which fit")
            }
        }
    }
}

/// How many devices of a kind.
pub fn count(kind: Kind, devices: usize) -> String {
    let plural = if devices == 1 { "device" } else { "devices" };
    format!("{devices} {kind} {plural}")
}
