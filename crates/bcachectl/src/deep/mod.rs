//! What a cache device holds beyond its superblock, as `show` and `check` tell of it: reports that
//! become JSON, and lists that are made while they are written.

pub mod btree;
pub mod buckets;
pub mod journal;
pub mod keys;
pub mod lookup;
pub mod usage;
pub mod uuids;
