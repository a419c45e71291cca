//! What a cache device holds beyond its superblock, as `show` and `check` tell of it: reports that
//! become JSON, and lists that are made while they are written.

pub mod btree;
pub mod buckets;
pub mod dirty;
pub mod journal;
pub mod keys;
pub mod lookup;
pub mod reading;
pub mod usage;
pub mod uuids;
pub mod volumes;

pub use dirty::{Answer, DirtyAnswer};
pub use reading::Reading;
pub use volumes::{BackingDevices, VolumeReport, Volumes};
