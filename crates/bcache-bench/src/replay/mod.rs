//! Replaying a trace through modelled caches: which bucket size, which policy, how large an SSD.

pub mod ideal;
