//! Control of what the kernel runs: check, tell the kernel, wait for the proof.

mod flush;
mod lifecycle;
mod records;
mod replace;
mod session;
mod set;
mod settings;
mod status;
mod top;
mod volumes;
mod words;

pub(super) use flush::flush;
pub(super) use lifecycle::{attach, detach, register, resize, run, stop, unregister};
pub(super) use replace::replace_cache;
pub(super) use set::{get, set};
pub(super) use settings::settings;
pub(super) use status::status;
pub(super) use top::top;
pub(super) use volumes::{label, volume};
