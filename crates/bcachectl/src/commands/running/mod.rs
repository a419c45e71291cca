//! Control of what the kernel runs: check, tell the kernel, wait for the proof.

mod lifecycle;
mod session;
mod set;
mod settings;
mod status;
mod volumes;
mod words;

pub(super) use lifecycle::{attach, detach, flush, register, resize, run, stop, unregister};
pub(super) use set::{get, set};
pub(super) use settings::settings;
pub(super) use status::status;
pub(super) use volumes::{label, volume};
