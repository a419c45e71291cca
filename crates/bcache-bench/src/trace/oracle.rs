//! oracleGeneral: libCacheSim's format of 24 bytes. Objects have no order: each is given a place of
//! its own, and sequential detection finds nothing in it.

use super::records::fill;
use super::skipped::Skipped;
use super::source::Input;
use super::{Reader, Request, TraceError, checked, sectors_of};

const RECORD: usize = 24;
/// Objects lie this many sectors apart, so that none continues another.
const APART_SECTORS: u64 = 1 << 16;

pub(super) struct Oracle {
    input: Input,
    skipped: Skipped,
}

/// Seconds, object, bytes, number of the next access.
fn parts(record: &[u8; RECORD]) -> (u32, u64, u32, u64) {
    let u32_at = |at: usize| {
        u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
    };
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    (u32_at(0), u64_at(4), u32_at(12), u64_at(16))
}

/// Times that do not fall, sizes that could be, and next accesses that lie ahead.
pub(super) fn looks_like(beginning: &[u8]) -> bool {
    let mut last = 0;
    let mut count = 0;
    for (number, chunk) in (1u64..).zip(beginning.chunks_exact(RECORD).take(64)) {
        let Ok(record) = <&[u8; RECORD]>::try_from(chunk) else { return false };
        let (seconds, _, bytes, next) = parts(record);
        let ahead = next >= i64::MAX.unsigned_abs() || (next >= number && next < 1 << 40);
        if seconds < last || bytes == 0 || bytes > 1 << 30 || !ahead {
            return false;
        }
        last = seconds;
        count += 1;
    }
    count >= 2
}

impl Oracle {
    pub(super) fn new(input: Input) -> Self {
        Self { input, skipped: Skipped::default() }
    }
}

impl Reader for Oracle {
    fn next_request(&mut self) -> Result<Option<Request>, TraceError> {
        let mut record = [0; RECORD];
        while fill(&mut self.input, &mut record, &mut self.skipped)? {
            let (seconds, object, bytes, _) = parts(&record);
            let (_, sectors) = sectors_of(0, u64::from(bytes));
            // 2^48 sectors hold 2^32 such places; a multiplication spreads the objects over them.
            let place = object.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            let request = Request {
                time_ns: u64::from(seconds) * 1_000_000_000,
                sector: place.saturating_mul(APART_SECTORS),
                sectors,
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
        vec!["objects".to_owned()]
    }
}
