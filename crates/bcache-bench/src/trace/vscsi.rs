//! vscsi: what VMware's vscsiStats records, little-endian, version 1 (32 bytes) and 2 (40 bytes).

use super::records::fill;
use super::skipped::{SkipReason, Skipped};
use super::source::Input;
use super::{Op, Reader, Request, TraceError, checked, sectors_of};

/// Which of the two layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

const SECTOR: u64 = 512;

pub(super) struct Vscsi {
    input: Input,
    version: Version,
    skipped: Skipped,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Which version a trace begins with: told by the version fields of its first records.
pub(super) fn version(beginning: &[u8]) -> Option<Version> {
    let all = |size: usize, at: usize, version: u16| {
        let mut records = beginning.chunks_exact(size).take(16).peekable();
        records.peek().is_some() && records.all(|record| u16_at(record, at) == version)
    };
    if all(32, 14, 0x0100) {
        Some(Version::V1)
    } else if all(40, 2, 0x0200) {
        Some(Version::V2)
    } else {
        None
    }
}

impl Vscsi {
    pub(super) fn new(input: Input, version: Version) -> Self {
        Self { input, version, skipped: Skipped::default() }
    }
}

impl Reader for Vscsi {
    fn next_request(&mut self) -> Result<Option<Request>, TraceError> {
        let mut record = [0; 40];
        let (size, command, bytes, block, time, version) = match self.version {
            Version::V1 => (32, 12, 4, 16, 24, (14, 0x0100)),
            Version::V2 => (40, 0, 8, 16, 24, (2, 0x0200)),
        };
        while fill(&mut self.input, &mut record[..size], &mut self.skipped)? {
            if u16_at(&record, version.0) != version.1 {
                self.skipped.add(SkipReason::NotUnderstood);
                continue;
            }
            // READ(6), (10), (12), (16) and WRITE alike.
            let op = match u16_at(&record, command) {
                0x08 | 0x28 | 0xa8 | 0x88 => Op::Read,
                0x0a | 0x2a | 0xaa | 0x8a => Op::Write,
                _ => {
                    self.skipped.add(SkipReason::OtherCommand);
                    continue;
                }
            };
            let sector = u64_at(&record, block);
            let (_, sectors) = sectors_of(0, u64::from(u32_at(&record, bytes)));
            let request = Request {
                time_ns: u64_at(&record, time).saturating_mul(1000),
                sector: sector.min(u64::MAX / SECTOR),
                sectors,
                op,
                ..Request::default()
            };
            if let Some(request) = checked(request, &mut self.skipped) {
                return Ok(Some(request));
            }
        }
        Ok(None)
    }

    fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    fn devices(&self) -> Vec<String> {
        vec!["vscsi".to_owned()]
    }
}
