//! The uuid table, slot by slot.

use std::ops::ControlFlow;
use std::path::Path;

use bcache_cli::rows::{Column, Line, List, Row};
use bcache_cli::text;
use bcache_core::cache_set::CacheSet;
use serde::Serialize;
use uuid::Uuid;

use crate::stakes::VolumeReport;

/// A slot in the list.
#[derive(Clone, Debug, Serialize)]
pub struct UuidRow {
    /// Its number: the inode of the volume's keys.
    pub slot: u32,
    /// UUID of the backing device, or of the flash-only volume.
    pub uuid: Uuid,
    /// Label.
    pub label: String,
    /// Whether the cache holds the only copy.
    pub flash_only: bool,
    /// Whether the device was detached.
    pub detached: bool,
    /// When it was first registered, in seconds since 1970.
    pub first_reg: u32,
    /// When it was last registered.
    pub last_reg: u32,
    /// When it was detached.
    pub invalidated: u32,
    /// Size of a flash-only volume.
    pub sectors: u64,
    /// All flags.
    pub flags: u32,
    /// The backing device, where it is present.
    pub backing: Option<String>,
}

impl Row for UuidRow {
    const COLUMNS: &'static [Column] = &[
        Column::new("slot", 5),
        Column::new("uuid", 36),
        Column::new("kind", 10).lost(2),
        Column::new("first_reg", 10).lost(4),
        Column::new("last_reg", 10).lost(3),
        Column::new("detached", 10).lost(1),
        Column::new("sectors", 12),
        Column::new("backing device", 14),
        Column::new("label", 0),
    ];

    fn cells(&self, line: &mut Line) {
        let day = |moment| (moment != 0).then(|| text::day(moment));
        line.cell(self.slot);
        line.cell(self.uuid);
        line.cell(match (self.detached, self.flash_only) {
            (true, _) => "detached",
            (_, true) => "flash-only",
            _ => "backing",
        });
        line.maybe(day(self.first_reg));
        line.maybe(day(self.last_reg));
        line.maybe(day(self.invalidated));
        line.maybe(self.flash_only.then_some(self.sectors));
        line.maybe(self.backing.as_deref());
        line.maybe(Some(&self.label).filter(|label| !label.is_empty()));
    }
}

/// The slots of a table that are or were in use.
pub struct Uuids<'s, 'd> {
    set: &'s CacheSet<'d>,
    volumes: &'s [VolumeReport],
    limit: Option<u64>,
}

impl<'s, 'd> Uuids<'s, 'd> {
    /// At most `limit` of them.
    pub const fn new(
        set: &'s CacheSet<'d>,
        volumes: &'s [VolumeReport],
        limit: Option<u64>,
    ) -> Self {
        Self { set, volumes, limit }
    }
}

impl List for Uuids<'_, '_> {
    type Row = UuidRow;

    fn each(&self, row: &mut dyn FnMut(&UuidRow) -> ControlFlow<()>) {
        let limit = self.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        for (slot, entry) in self.set.uuids.used().take(limit) {
            let volume = self.volumes.iter().find(|volume| volume.slot == slot);
            let backing = volume.and_then(|volume| volume.backing.as_deref());
            let slot = UuidRow {
                slot,
                uuid: entry.uuid,
                label: entry.label.to_string(),
                flash_only: entry.flash_only(),
                detached: entry.is_detached(),
                first_reg: entry.first_reg,
                last_reg: entry.last_reg,
                invalidated: entry.invalidated,
                sectors: entry.sectors.0,
                flags: entry.flags,
                backing: backing.map(Path::display).map(|path| path.to_string()),
            };
            if row(&slot).is_break() {
                return;
            }
        }
    }
}
