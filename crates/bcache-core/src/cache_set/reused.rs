//! Whether an old journal waits on a cache device that the kernel would start afresh.
//!
//! The kernel does not wipe the journal of a cache whose `CACHE_SYNC` is clear, and knows entries by
//! the set's UUID alone. Where a set's UUID is used again on the device that had it, the old entries
//! have the higher sequence numbers, and win at the second registration (docs/on-disk-format.md
//! §1.5).

use crate::device::{AlignedBuf, DeviceError, ReadDevice};
use crate::layout::jset::{JSET_BYTES_MAX, Jset};
use crate::layout::superblock::{Kind, Superblock};
use crate::layout::verdict::Warning;
use crate::units::BucketIndex;

/// [`Warning::SetUuidReused`] where it holds for the superblock `sb` of `device`.
///
/// What is read is the start of each bucket that the kernel will make a journal bucket, for entries
/// are written from there on. Entries behind a start that somebody wiped are not looked for: that
/// takes the whole journal, up to 256 buckets. Of a device whose superblock is no good, or that
/// holds a set already, nothing is said.
pub fn set_uuid_reused(
    sb: &Superblock,
    device: &dyn ReadDevice,
) -> Result<Option<Warning>, DeviceError> {
    let is_new = sb.magic_ok() && sb.csum_ok() && sb.kind() == Some(Kind::Cache) && !sb.sync();
    let Some(geometry) = sb.geometry().filter(|_| is_new) else { return Ok(None) };
    let rest = usize::try_from(geometry.bucket_bytes()).unwrap_or(usize::MAX);
    let mut entry = AlignedBuf::zeroed(rest.min(JSET_BYTES_MAX));
    let first = geometry.first_bucket().0;
    let journal = first..first.saturating_add(geometry.njournal_buckets_default().into());
    for bucket in journal.map(BucketIndex).take_while(|bucket| geometry.contains(*bucket)) {
        device.read_at(geometry.bucket_to_sector(bucket).bytes(), &mut entry)?;
        if Jset::parse(&entry, sb.set_magic(), rest).is_ok() {
            return Ok(Some(Warning::SetUuidReused));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::device::BlockDevice;
    use crate::device::testkit::MemoryDevice;
    use crate::layout::bkey::Bkey;
    use crate::layout::jset::{JsetParams, encode};
    use crate::layout::superblock::{CacheParams, Label, Replacement};
    use crate::units::Sectors;

    const NBUCKETS: u64 = 600;
    const BUCKET: Sectors = Sectors(16);

    fn superblock(set_uuid: u128) -> Superblock {
        Superblock::new_cache(&CacheParams {
            uuid: Uuid::from_u128(1),
            set_uuid: Uuid::from_u128(set_uuid),
            label: Label::default(),
            nbuckets: NBUCKETS,
            bucket_size: BUCKET,
            block_size: 8,
            replacement: Replacement::Lru,
            discard: false,
        })
    }

    #[test]
    fn an_old_entry_of_the_same_set_is_found() {
        let sb = superblock(2 << 64);
        let first = u64::from(sb.first_bucket());
        let params = JsetParams {
            seq: 900,
            last_seq: 890,
            uuid_bucket: Bkey::default(),
            btree_root: Bkey::default(),
            btree_level: 0,
            prio_bucket: [0; 8],
            keys: &[],
        };
        let entry = encode(&params, sb.set_magic()).unwrap();
        // 600 buckets have four for the journal.
        for (bucket, found) in [(first, true), (first + 3, true), (first + 4, false)] {
            let device = MemoryDevice::new(NBUCKETS * BUCKET.bytes());
            assert_eq!(set_uuid_reused(&sb, &device).unwrap(), None);
            let mut block = entry.as_bytes().to_vec();
            block.resize(4096, 0);
            device.write_at(bucket * BUCKET.bytes(), &block).unwrap();
            let warning = found.then_some(Warning::SetUuidReused);
            assert_eq!(set_uuid_reused(&sb, &device).unwrap(), warning, "bucket {bucket}");
            // The entry of another set says nothing, nor does one whose journal is in use.
            assert_eq!(set_uuid_reused(&superblock(3 << 64), &device).unwrap(), None);
            let mut in_use = sb.clone();
            in_use.edit(|edit| {
                edit.sync(true);
            });
            assert_eq!(set_uuid_reused(&in_use, &device).unwrap(), None);
            // A torn one is none.
            block[200] ^= 1;
            device.write_at(bucket * BUCKET.bytes(), &block).unwrap();
            assert_eq!(set_uuid_reused(&sb, &device).unwrap(), None);
        }
    }
}
