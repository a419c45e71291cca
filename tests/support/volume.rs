//! Volumes as the reader sees them, for comparison with what a kernel read.

use anyhow::{Context as _, ensure};
use bcache_core::cache_set::{Below, CacheSet, VolumeReader};
use bcache_core::device::{AlignedBuf, ReadDevice, open_read};
use bcache_core::ops::make::read_superblock;
use bcache_core::units::Sectors;
use std::io::Write as _;
use std::path::Path;
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

/// The MD5 sum of a backing device's data alone, as if there were no cache.
pub fn md5_of_device(path: &Path) -> anyhow::Result<String> {
    let device = open_read(path)?;
    let sb = read_superblock(&device)?.context("no superblock")?;
    let start = sb.data_offset();
    let size = device.info().size() - start;
    sum(size.bytes(), &mut |offset, part| Ok(device.read_at(start.bytes() + offset, part)?))
}

fn md5(mut reader: VolumeReader<'_, '_>, size: Sectors) -> anyhow::Result<String> {
    sum(size.bytes(), &mut |offset, part| Ok(reader.read_at(offset, part)?))
}

/// The MD5 sum of so many bytes.
pub(crate) fn sum(
    bytes: u64,
    read_at: &mut dyn FnMut(u64, &mut [u8]) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let mut md5sum = Command::new("md5sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("run md5sum")?;
    let mut pipe = md5sum.stdin.take().context("md5sum's input")?;
    let mut chunk = AlignedBuf::zeroed(CHUNK_BYTES);
    let mut offset = 0;
    while offset < bytes {
        let len = usize::try_from(bytes - offset)?.min(chunk.len());
        let part = chunk.get_mut(..len).context("a part of the chunk")?;
        read_at(offset, part)?;
        pipe.write_all(part).context("write to md5sum")?;
        offset += len as u64;
    }
    drop(pipe);
    let output = md5sum.wait_with_output().context("wait for md5sum")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
