//! What is cached at a place of a volume.

use std::cell::RefCell;
use std::ops::ControlFlow;

use bcache_cli::rows::{Column, Line, List, Row};
use bcache_core::cache_set::view::LookupError;
use bcache_core::cache_set::{CacheSet, KeySource};
use serde::Serialize;

use crate::cli::lists::LookupPlace;
use crate::stakes::VolumeReport;

/// A stretch of a volume in the list.
#[derive(Clone, Debug, Serialize)]
pub struct ExtentRow {
    /// Slot of the volume.
    pub volume: u32,
    /// First sector, as keys count: of the backing device.
    pub start: u64,
    /// Sector after the last.
    pub end: u64,
    /// First sector of `/dev/bcacheN`, where the backing device is present.
    pub bcache_start: Option<u64>,
    /// "cached", "dirty", or "absent": on the backing device only.
    pub state: &'static str,
    /// First sector on the cache device.
    pub cache_sector: Option<u64>,
    /// Its bucket.
    pub bucket: Option<u64>,
    /// Where the key stands: "btree" or "journal"; null where there is none.
    pub source: Option<&'static str>,
    /// Bucket of the btree node with the key.
    pub node: Option<u64>,
    /// What became of the key, where there is one.
    pub key: Option<&'static str>,
}

impl Row for ExtentRow {
    const COLUMNS: &'static [Column] = &[
        Column::new("volume", 7),
        Column::new("start", 12),
        Column::new("end", 12),
        Column::new("bcache start", 12).lost(4),
        Column::new("state", 7),
        Column::new("sector", 12),
        Column::new("bucket", 9),
        Column::new("source", 7).lost(2),
        Column::new("node", 9).lost(3),
        Column::new("key", 0).lost(5),
    ];

    fn cells(&self, line: &mut Line) {
        line.cell(self.volume);
        line.cell(self.start);
        line.cell(self.end);
        line.maybe(self.bcache_start);
        line.cell(self.state);
        line.maybe(self.cache_sector);
        line.maybe(self.bucket);
        line.maybe(self.source);
        line.maybe(self.node);
        line.maybe(self.key);
    }
}

/// Places of volumes, looked up as they are written.
pub struct Lookups<'s, 'd> {
    set: &'s CacheSet<'d>,
    places: Vec<(VolumeReport, &'s LookupPlace)>,
    limit: Option<u64>,
    failed: RefCell<Option<LookupError>>,
}

impl<'s, 'd> Lookups<'s, 'd> {
    /// Of these places, at most `limit` stretches.
    pub fn new(
        set: &'s CacheSet<'d>,
        places: Vec<(VolumeReport, &'s LookupPlace)>,
        limit: Option<u64>,
    ) -> Self {
        Self { set, places, limit, failed: RefCell::default() }
    }

    /// Why a place could not be looked up, once the list is written.
    pub fn failed(&self) -> Option<LookupError> {
        self.failed.borrow_mut().take()
    }
}

impl List for Lookups<'_, '_> {
    type Row = ExtentRow;

    fn each(&self, row: &mut dyn FnMut(&ExtentRow) -> ControlFlow<()>) {
        let geometry = self.set.geometry();
        let mut view = self.set.view();
        let mut left = self.limit.unwrap_or(u64::MAX);
        if left == 0 {
            return;
        }
        let mut flow = ControlFlow::Continue(());
        for (volume, place) in &self.places {
            let end = place.sector.saturating_add(place.len);
            let result = view.lookup(volume.slot, place.sector, end, &mut |extent| {
                let (source, node) = match extent.origin {
                    Some(KeySource::Btree { node, .. }) => (Some("btree"), Some(node.0)),
                    Some(KeySource::Journal { .. }) => (Some("journal"), None),
                    _ => (None, None),
                };
                flow = row(&ExtentRow {
                    volume: volume.slot,
                    start: extent.start,
                    end: extent.end,
                    bcache_start: volume
                        .data_offset_sectors
                        .and_then(|offset| extent.start.checked_sub(offset)),
                    state: match (extent.cached, extent.dirty) {
                        (Some(_), true) => "dirty",
                        (Some(_), false) => "cached",
                        (None, _) => "absent",
                    },
                    cache_sector: extent.cached.map(|sector| sector.0),
                    bucket: extent.cached.map(|sector| geometry.sector_to_bucket(sector).0),
                    source,
                    node,
                    key: extent.key.map(|key| self.set.key_state(&key, 0).name()),
                });
                left -= 1;
                if left == 0 {
                    flow = ControlFlow::Break(());
                }
                flow
            });
            if let Err(error) = result {
                self.failed.borrow_mut().get_or_insert(error);
            }
            if flow.is_break() {
                return;
            }
        }
    }
}
