//! Reading a stream by lines and by records, in bounded memory.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use super::TraceError;
use super::skipped::{SkipReason, Skipped};
use super::source::Input;

/// No line of a trace is longer.
const LINE_MAX: usize = 64 << 10;

/// A stream of lines.
pub(super) struct Lines {
    input: Input,
    line: Vec<u8>,
    pub(super) skipped: Skipped,
}

impl Lines {
    pub(super) fn new(input: Input) -> Self {
        Self { input, line: Vec::new(), skipped: Skipped::default() }
    }

    /// The next line that is text and neither empty nor too long, without its end; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(&str, &mut Skipped)>, TraceError> {
        loop {
            self.line.clear();
            let limit = LINE_MAX as u64 + 1;
            let read = self.input.by_ref().take(limit).read_until(b'\n', &mut self.line)?;
            if read == 0 {
                return Ok(None);
            }
            if read > LINE_MAX {
                self.skipped.add(SkipReason::TooLong);
                self.skip_line()?;
                continue;
            }
            match std::str::from_utf8(&self.line) {
                Ok(text) if text.trim().is_empty() => {}
                // The borrow checker does not see that the loop ends here.
                Ok(_) => break,
                Err(_) => self.skipped.add(SkipReason::NotUnderstood),
            }
        }
        let text = std::str::from_utf8(&self.line).unwrap_or_default();
        Ok(Some((text.trim_end_matches(['\n', '\r']), &mut self.skipped)))
    }

    fn skip_line(&mut self) -> Result<(), TraceError> {
        while self.line.last() != Some(&b'\n') {
            self.line.clear();
            let limit = LINE_MAX as u64;
            if self.input.by_ref().take(limit).read_until(b'\n', &mut self.line)? == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// Fills `record`; false at the end of the stream. A record that is cut off is counted.
pub(super) fn fill(
    input: &mut Input,
    record: &mut [u8],
    skipped: &mut Skipped,
) -> Result<bool, TraceError> {
    let mut filled = 0;
    while filled < record.len() {
        match input.read(&mut record[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    if filled != 0 && filled < record.len() {
        skipped.add(SkipReason::CutOff);
    }
    Ok(filled == record.len())
}

/// Passes over `bytes`; false when the stream ends before.
pub(super) fn pass_over(input: &mut Input, bytes: u64) -> Result<bool, TraceError> {
    Ok(std::io::copy(&mut input.by_ref().take(bytes), &mut std::io::sink())? == bytes)
}

/// Numbers the devices of a trace in the order in which they come.
#[derive(Clone, Debug, Default)]
pub(super) struct Devices {
    names: Vec<String>,
    numbers: HashMap<String, u16>,
}

impl Devices {
    pub(super) fn number(&mut self, name: &str) -> Result<u16, TraceError> {
        if let Some(number) = self.numbers.get(name) {
            return Ok(*number);
        }
        let number = u16::try_from(self.names.len()).map_err(|_| TraceError::TooManyDevices)?;
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        Ok(number)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.names.clone()
    }
}
