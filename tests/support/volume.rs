//! Volumes as the reader sees them, for comparison with what a kernel read.

use anyhow::{Context as _, ensure};
use bcache_core::cache_set::{Below, CacheSet, VolumeReader};
use bcache_core::device::{AlignedBuf, ReadDevice};
use bcache_core::ops::make::read_superblock;
use bcache_core::units::Sectors;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// The MD5 sum of the whole volume of a backing device, read through the cache.
pub fn md5_of_backing(set: &CacheSet<'_>, device: &dyn ReadDevice) -> anyhow::Result<String> {
    let sb = read_superblock(device)?.context("no superblock")?;
    let (slot, _) = set.uuids.find(sb.uuid()).context("no slot with the device's UUID")?;
    let size = device.info().size() - sb.data_offset();
    md5(VolumeReader::new(set, slot, Below::Backing(device, sb.data_offset())), size)
}

/// The MD5 sum of a whole flash-only volume.
pub fn md5_of_flash_only(set: &CacheSet<'_>, slot: u32) -> anyhow::Result<String> {
    let entry = set.uuids.get(slot).context("no such slot")?;
    ensure!(entry.flash_only(), "slot {slot} is not a flash-only volume's");
    md5(VolumeReader::new(set, slot, Below::Nothing), entry.sectors)
}

fn md5(mut reader: VolumeReader<'_, '_>, size: Sectors) -> anyhow::Result<String> {
    let mut md5sum = Command::new("md5sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("run md5sum")?;
    let mut pipe = md5sum.stdin.take().context("md5sum's input")?;
    let mut chunk = AlignedBuf::zeroed(CHUNK_BYTES);
    let mut offset = 0;
    while offset < size.bytes() {
        let len = usize::try_from(size.bytes() - offset)?.min(chunk.len());
        let part = chunk.get_mut(..len).context("a part of the chunk")?;
        reader.read_at(offset, part)?;
        pipe.write_all(part).context("write to md5sum")?;
        offset += len as u64;
    }
    drop(pipe);
    let output = md5sum.wait_with_output().context("wait for md5sum")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
