//! Buffers that O_DIRECT takes as they are.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// A page, aligned as one: no device wants more.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

const PAGE: usize = 4096;

/// A byte buffer that begins on a page boundary and owns whole pages.
#[derive(Clone)]
pub struct AlignedBuf {
    pages: Vec<Page>,
    len: usize,
}

impl AlignedBuf {
    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let count = len.div_ceil(PAGE);
        // Without memory this ends the program as any vector does. A shorter buffer would pass for
        // a write that was made.
        let pages = Page::new_vec_zeroed(count).unwrap_or_else(|_| vec![Page([0; PAGE]); count]);
        Self { pages, len }
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// The same, followed by zeroes, in `len` bytes; what does not fit is left out.
    pub fn padded(bytes: &[u8], len: usize) -> Self {
        let mut buf = Self::zeroed(len);
        buf.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        buf
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let bytes = self.pages.as_bytes();
        bytes.get(..self.len).unwrap_or(bytes)
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        let bytes = self.pages.as_mut_bytes();
        let end = len.min(bytes.len());
        bytes.split_at_mut(end).0
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

/// Where two stretches of a device, each a first byte and a length, lie over one another: the places in
/// the first, and those in the second.
pub(crate) fn overlap(
    first: (u64, usize),
    second: (u64, u64),
) -> Option<(Range<usize>, Range<usize>)> {
    let end = |at: u64, len: u64| at.saturating_add(len);
    let from = first.0.max(second.0);
    let to = end(first.0, first.1 as u64).min(end(second.0, second.1));
    let within = |base: u64| {
        let index = |byte: u64| usize::try_from(byte.checked_sub(base)?).ok();
        Some(index(from)?..index(to)?)
    };
    (from < to).then(|| within(first.0).zip(within(second.0))).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_of_one_length_and_none_where_nothing_is_shared() {
        assert_eq!(overlap((10, 10), (15, 10)), Some((5..10, 0..5)));
        assert_eq!(overlap((10, 10), (5, 100)), Some((0..10, 5..15)));
        assert_eq!(overlap((10, 10), (12, 3)), Some((2..5, 0..3)));
        for apart in [(0, 10), (20, 5), (15, 0)] {
            assert_eq!(overlap((10, 10), apart), None);
        }
        assert_eq!(
            overlap((u64::MAX - 1, 10), (0, u64::MAX)),
            Some((0..1, usize::MAX - 1..usize::MAX))
        );
    }

    #[test]
    fn buffers_are_aligned_and_of_their_length() {
        for len in [0, 1, 512, 4096, 4097, 1 << 20] {
            let mut buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_ptr().addr() % PAGE, 0);
            buf.fill(0xa5);
            assert!(AlignedBuf::copy_of(&buf).iter().all(|&b| b == 0xa5));
        }
    }
}
