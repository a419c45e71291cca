//! What is on a group of devices: what each is, what belongs together, what would be lost, and what
//! a person can do now.
//!
//! [`Device::read`] opens each device once and keeps what it found. [`Group::new`] puts devices
//! together: the volumes of each cache get their owners, backing devices get their standing towards
//! the caches, and from both follow the [`Stakes`] and the [`Advice`]. Whatever has to know whether
//! data is at stake asks here; nothing else decides it again.
//!
//! What cannot be told is said to be unknown. It is never taken for none.

mod advice;
mod advise;
mod apart;
mod backing;
mod copies;
mod cut_off;
mod device;
mod doubt;
mod group;
mod member;
mod older;
mod stakes;
mod volume;

pub use advice::{Advice, Danger};
pub use apart::Apart;
pub use backing::{BackingDevice, BackingDevices, SearchMachine, SearchSeen, Seen, Standing};
pub use copies::{Copied, of_device as copies_of_device};
pub use cut_off::CutOff;
pub use device::{Contents, Device, Identity, InspectError, OlderSet, SetContents, take_cache};
pub use doubt::Doubt;
pub use group::Group;
pub use member::{Member, Relation};
pub(crate) use older::older_set;
pub use stakes::{Answer, Stakes, VolumeStakes};
pub(crate) use volume::label_text;
pub use volume::{FindVolumeError, Owner, Volume, Volumes, find_slot};
