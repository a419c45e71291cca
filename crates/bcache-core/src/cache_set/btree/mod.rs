//! The btree: nodes, the walk over all of them, and looking up single places.

mod keys;
pub mod node;
pub mod overlap;
pub mod walk;

pub use keys::NodeKeys;
pub(crate) use keys::ShortKey;
pub use node::{FaultKind, LoadedNode, NodeFault, NodeReadError, SetInfo};
pub use walk::{ReadNode, WalkHandler, WalkOptions, walk};
