//! What the kernel is asked about, each of which may not answer.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Something that answers for itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The files of a set.
    Set(Uuid),
    /// The `bcache` files of a device.
    Device(String),
    /// The superblock on a device.
    Superblock(String),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(uuid) => write!(f, "the set {uuid}"),
            Self::Device(name) => f.write_str(name),
            Self::Superblock(name) => write!(f, "the superblock of {name}"),
        }
    }
}
