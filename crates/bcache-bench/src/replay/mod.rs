//! Replaying a trace through modelled caches: which bucket size, which policy, how large an SSD.

pub mod answer;
pub mod cells;
pub mod device;
pub mod ideal;
pub mod picture;
pub mod plan;
pub mod render;
pub mod report;
pub mod run;
pub mod warning;
pub mod words;
