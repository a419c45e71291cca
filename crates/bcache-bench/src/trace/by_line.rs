//! Formats of which each line stands for itself and names its device.

use super::records::{Devices, Lines};
use super::skipped::{SkipReason, Skipped};
use super::source::Input;
use super::{Reader, Request, TraceError, checked};

/// A format of such lines.
pub(super) trait LineFormat: Send {
    /// The device and the request of a line, or why it is none.
    fn parse<'a>(&mut self, line: &'a str) -> Result<(&'a str, Request), SkipReason>;
}

/// Reads one.
pub(super) struct ByLine<F> {
    lines: Lines,
    devices: Devices,
    format: F,
}

impl<F> ByLine<F> {
    pub(super) fn new(input: Input, format: F) -> Self {
        Self { lines: Lines::new(input), devices: Devices::default(), format }
    }
}

impl<F: LineFormat> Reader for ByLine<F> {
    fn next_request(&mut self) -> Result<Option<Request>, TraceError> {
        while let Some((line, skipped)) = self.lines.next()? {
            match self.format.parse(line) {
                Err(reason) => skipped.add(reason),
                Ok((device, request)) => {
                    let device = self.devices.number(device)?;
                    if let Some(request) = checked(Request { device, ..request }, skipped) {
                        return Ok(Some(request));
                    }
                }
            }
        }
        Ok(None)
    }

    fn skipped(&self) -> &Skipped {
        &self.lines.skipped
    }

    fn devices(&self) -> Vec<String> {
        self.devices.names()
    }
}
