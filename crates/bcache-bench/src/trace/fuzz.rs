//! What the fuzz target of traces runs: any bytes, as any format, must come back with an end or an
//! error, and nothing but requests that could be.

use std::io::Cursor;

use clap::ValueEnum as _;

use super::{Format, LoadOptions, SECTOR_MAX, SECTORS_MAX, from_reader, load};

/// The first byte chooses a format, or detection.
#[allow(clippy::missing_panics_doc)] // a panic is a finding
pub fn trace(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let formats = Format::value_variants();
    // With one more that stands for detection.
    let format = formats.get(usize::from(*first) % (formats.len() + 1)).copied();
    let Ok(requests) = from_reader(Cursor::new(rest.to_vec()), format, None) else { return };
    let mut count = 0;
    for request in requests {
        let Ok(request) = request else { break };
        assert!(request.sectors > 0 && u64::from(request.sectors) <= SECTORS_MAX);
        assert!(request.end() <= SECTOR_MAX);
        count += 1;
        assert!(count <= rest.len().max(1 << 20), "more requests than bytes");
    }
    if let Ok(requests) = from_reader(Cursor::new(rest.to_vec()), format, None) {
        if let Ok(trace) = load(requests, &LoadOptions::default()) {
            assert!(trace.requests.is_sorted_by_key(|request| request.time_ns));
        }
    }
}
