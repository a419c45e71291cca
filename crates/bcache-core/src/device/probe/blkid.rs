//! What libblkid finds.
//!
//! libblkid's usual answer is one signature, and "ambivalent" where there are several: a caller who
//! takes that for "nothing" destroys data. Here every signature is listed, as wipefs does, and the
//! partitions of a table with what is in each.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use libblkid_rs::{
    BlkidErr, BlkidPartition, BlkidProbe, BlkidProbeRet, BlkidSafeprobeRet, BlkidSublks,
    BlkidSublksFlags,
};

use super::{Depth, ProbeError, UdevView, probe_range};
use crate::device::signature::{Partition, Signature, SignatureKind};
use crate::units::Sectors;

/// Signatures that a device may carry before probing gives up: the walk must end whatever libblkid
/// says, and no real device has as many.
const SIGNATURES_MAX: usize = 64;

fn failed(path: &Path, step: &'static str) -> impl FnOnce(BlkidErr) -> ProbeError {
    let path = path.to_owned();
    move |source| ProbeError::Blkid { path, step, source: source.into() }
}

/// What libblkid finds in `range` (start and length in bytes), or in the whole file.
pub(super) fn signatures(
    path: &Path,
    file: &File,
    range: Option<(i64, i64)>,
    depth: Depth,
) -> Result<Vec<Signature>, ProbeError> {
    let failed = |step| failed(path, step);
    let mut probe = BlkidProbe::new().map_err(failed("start probing"))?;
    // To libblkid a size of 0 is the rest of the file.
    let (start, len) = range.unwrap_or((0, 0));
    probe.set_device(file.as_raw_fd(), start, len).map_err(failed("open"))?;
    if probe.get_size() <= 0 {
        // An empty image; libblkid fails on it.
        return Ok(Vec::new());
    }
    probe.enable_superblocks(true).map_err(failed("start probing"))?;
    probe
        .set_superblock_flags(BlkidSublksFlags::new(vec![
            BlkidSublks::Label,
            BlkidSublks::Uuid,
            BlkidSublks::Type,
            BlkidSublks::Usage,
            BlkidSublks::Magic,
            BlkidSublks::Badcsum,
        ]))
        .map_err(failed("start probing"))?;
    probe.enable_partitions(true).map_err(failed("start probing"))?;

    let mut found: Vec<Signature> = Vec::new();
    while found.len() < SIGNATURES_MAX {
        match probe.do_probe().map_err(failed("probe"))? {
            BlkidProbeRet::Done => break,
            BlkidProbeRet::Success => {}
        }
        if let Some(type_name) = value(&probe, "TYPE") {
            found.push(Signature {
                kind: SignatureKind::of_superblock(value(&probe, "USAGE").as_deref(), &type_name),
                type_name,
                label: value(&probe, "LABEL"),
                uuid: value(&probe, "UUID"),
                magic_offset: value(&probe, "SBMAGIC_OFFSET").and_then(|text| text.parse().ok()),
                copy_offsets: Vec::new(),
                bad_checksum: probe.has_value("SBBADCSUM").unwrap_or(false),
                magic_wiped: false,
                partitions: Vec::new(),
            });
        } else if let Some(type_name) = value(&probe, "PTTYPE") {
            found.push(Signature {
                kind: SignatureKind::PartitionTable,
                type_name,
                label: None,
                uuid: value(&probe, "PTUUID"),
                magic_offset: None,
                copy_offsets: Vec::new(),
                bad_checksum: false,
                magic_wiped: false,
                partitions: Vec::new(),
            });
        }
    }
    if let Some(table) = found.iter_mut().find(|found| found.kind == SignatureKind::PartitionTable)
    {
        // The walk above has overwritten what libblkid remembers of the table: ask anew. It lists
        // nothing where a nested table makes no sense; that there is a table is known all the same.
        table.partitions = partitions(file, range, &table.type_name).unwrap_or_default();
        if depth == Depth::Device {
            for partition in &mut table.partitions {
                partition.contents = contents(path, file, &probe, partition)?;
            }
        }
    }
    Ok(found)
}

/// A value of the last result, where there is one that can be represented.
fn value(probe: &BlkidProbe, name: &str) -> Option<String> {
    probe.lookup_value(name).ok()
}

/// What is in a partition of the device that `probe` is of.
fn contents(
    path: &Path,
    file: &File,
    probe: &BlkidProbe,
    partition: &Partition,
) -> Result<Vec<Signature>, ProbeError> {
    let end = partition.start.bytes().saturating_add(partition.size.bytes());
    let fits = u64::try_from(probe.get_size()).is_ok_and(|size| end <= size);
    // An extended partition holds a chain of tables; the logical ones in it are listed themselves.
    let is_extended = matches!(partition.type_id.as_str(), "0x5" | "0xf" | "0x85");
    match (i64::try_from(partition.start.bytes()), i64::try_from(partition.size.bytes())) {
        (Ok(start), Ok(len)) if fits && len > 0 && !is_extended => {
            probe_range(path, file, Some((start, len)), Depth::Partition)
        }
        _ => Ok(Vec::new()),
    }
}

fn partitions(
    file: &File,
    range: Option<(i64, i64)>,
    type_name: &str,
) -> Result<Vec<Partition>, BlkidErr> {
    let mut probe = BlkidProbe::new()?;
    let (start, len) = range.unwrap_or((0, 0));
    probe.set_device(file.as_raw_fd(), start, len)?;
    probe.enable_superblocks(false)?;
    probe.enable_partitions(true)?;
    let mut list = probe.get_partitions()?;
    let table_id = list.get_table().and_then(|table| table.get_id()).ok();
    let mut partitions = Vec::new();
    for index in 0..list.number_of_partitions()? {
        let partition = list.get_partition(index)?;
        partitions.push(describe_partition(&partition, type_name, table_id.as_deref())?);
    }
    Ok(partitions)
}

fn describe_partition(
    partition: &BlkidPartition<'_>,
    type_name: &str,
    table_id: Option<&str>,
) -> Result<Partition, BlkidErr> {
    let number = partition.get_partno()?;
    let sectors = |count: i64| Sectors(u64::try_from(count).unwrap_or(0));
    let uuid = if type_name == "dos" {
        // Not a UUID, so that the binding cannot give it; this is how libblkid makes it up.
        table_id.map(|id| format!("{id}-{number:02x}"))
    } else {
        partition.get_uuid().ok().flatten().map(|uuid| uuid.to_string())
    };
    Ok(Partition {
        number,
        start: sectors(*partition.get_start().as_ref()),
        size: sectors(*partition.get_size().as_ref()),
        type_id: partition
            .get_type_string()
            .unwrap_or_else(|_| format!("0x{:x}", partition.get_type())),
        label: partition.get_name().ok().flatten().filter(|name| !name.is_empty()),
        uuid,
        contents: Vec::new(),
    })
}

/// What udev's own call of libblkid makes of the device.
pub(super) fn udev_view(path: &Path, file: &File) -> Result<UdevView, ProbeError> {
    let mut probe = BlkidProbe::new().map_err(failed(path, "start probing"))?;
    probe.set_device(file.as_raw_fd(), 0, 0).map_err(failed(path, "open"))?;
    if probe.get_size() <= 0 {
        return Ok(UdevView::Nothing);
    }
    probe.enable_superblocks(true).map_err(failed(path, "start probing"))?;
    probe
        .set_superblock_flags(BlkidSublksFlags::new(vec![BlkidSublks::Type, BlkidSublks::Usage]))
        .map_err(failed(path, "start probing"))?;
    let answer = match probe.do_safeprobe() {
        // libblkid 2.41 (Debian 13) has one answer for an error and for several signatures.
        Err(error) => {
            let mut several = signatures(path, file, None, Depth::Partition)?;
            several.retain(|found| found.kind != SignatureKind::PartitionTable);
            if several.len() < 2 {
                return Err(failed(path, "probe")(error));
            }
            BlkidSafeprobeRet::Ambiguous
        }
        Ok(answer) => answer,
    };
    Ok(match answer {
        BlkidSafeprobeRet::Ambiguous => UdevView::Ambiguous,
        BlkidSafeprobeRet::None => UdevView::Nothing,
        BlkidSafeprobeRet::Success => match value(&probe, "TYPE") {
            Some(type_name) if type_name == "bcache" => UdevView::Bcache,
            Some(type_name) => UdevView::Other { type_name },
            None => UdevView::Nothing,
        },
    })
}
