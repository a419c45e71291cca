//! The label of a device.

use std::fmt;

use serde::Serialize;

use super::SB_LABEL_BYTES;

/// A label: up to 32 bytes, text by custom only.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Label(pub(super) [u8; SB_LABEL_BYTES]);

impl Label {
    /// From the field's bytes.
    pub const fn from_bytes(bytes: [u8; SB_LABEL_BYTES]) -> Self {
        Self(bytes)
    }

    /// From text of at most 31 bytes without NUL, so that the label ends with one; `None` otherwise.
    pub fn new(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() >= SB_LABEL_BYTES || bytes.contains(&0) {
            return None;
        }
        let mut label = [0; SB_LABEL_BYTES];
        label.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Some(Self(label))
    }

    /// The bytes before the first NUL.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// All 32 bytes.
    pub const fn raw(&self) -> &[u8; SB_LABEL_BYTES] {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.as_bytes().is_empty()
    }
}

impl fmt::Display for Label {
    /// The text, with what is not printable as Rust-style escapes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for chunk in self.as_bytes().utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() {
                    text.extend(c.escape_default());
                } else {
                    text.push(c);
                }
            }
            for byte in chunk.invalid() {
                text.extend(format!("\\x{byte:02x}").chars());
            }
        }
        f.pad(&text)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for Label {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
