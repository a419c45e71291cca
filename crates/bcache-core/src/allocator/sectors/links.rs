//! Doubly linked lists over 128 items, without a pointer.
//!
//! Up to 128 lists share one pair of arrays: places 0 to 127 are the items, 128 to 255 the heads.
//! Every index is a byte and the arrays have 256 places, so no access can be out of range.

#![allow(clippy::indexing_slicing)] // the indices are bytes, the arrays have 256 places

/// An item, 0 to 127.
pub(super) type Item = u8;

const HEADS: u8 = 0x80;

/// The lists. Every item is in one of them at most; one that is in none is linked to itself.
#[derive(Debug)]
pub(super) struct Links {
    prev: [u8; 256],
    next: [u8; 256],
}

impl Links {
    pub(super) fn new() -> Self {
        let mut own = [0; 256];
        for (place, at) in (0u8..=255).zip(&mut own) {
            *at = place;
        }
        Self { prev: own, next: own }
    }

    /// Appends an item that is in no list.
    pub(super) fn push_back(&mut self, list: u8, item: Item) {
        let head = HEADS | list;
        let last = self.prev[usize::from(head)];
        self.next[usize::from(last)] = item;
        self.prev[usize::from(item)] = last;
        self.next[usize::from(item)] = head;
        self.prev[usize::from(head)] = item;
    }

    /// Takes an item out of its list.
    pub(super) fn remove(&mut self, item: Item) {
        let (prev, next) = (self.prev[usize::from(item)], self.next[usize::from(item)]);
        self.next[usize::from(prev)] = next;
        self.prev[usize::from(next)] = prev;
        self.prev[usize::from(item)] = item;
        self.next[usize::from(item)] = item;
    }

    /// Moves an item to the end of a list.
    pub(super) fn move_back(&mut self, list: u8, item: Item) {
        // The last of that list already: frequent, where one stream writes on.
        if self.next[usize::from(item)] != HEADS | list {
            self.remove(item);
            self.push_back(list, item);
        }
    }

    /// The first item of a list.
    pub(super) fn first(&self, list: u8) -> Option<Item> {
        self.after(HEADS | list)
    }

    /// The item after another.
    pub(super) fn after(&self, item: Item) -> Option<Item> {
        Some(self.next[usize::from(item)]).filter(|&place| place < HEADS)
    }

    /// The last item of a list.
    pub(super) fn last(&self, list: u8) -> Option<Item> {
        self.before(HEADS | list)
    }

    /// The item before another.
    pub(super) fn before(&self, item: Item) -> Option<Item> {
        Some(self.prev[usize::from(item)]).filter(|&place| place < HEADS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(links: &Links, list: u8) -> Vec<Item> {
        let forth: Vec<_> =
            std::iter::successors(links.first(list), |&item| links.after(item)).collect();
        let mut back: Vec<_> =
            std::iter::successors(links.last(list), |&item| links.before(item)).collect();
        back.reverse();
        assert_eq!(forth, back);
        forth
    }

    #[test]
    fn lists_keep_their_order_and_do_not_mix() {
        let mut links = Links::new();
        for item in 0..5 {
            links.push_back(item % 2, item);
        }
        assert_eq!((items(&links, 0), items(&links, 1)), (vec![0, 2, 4], vec![1, 3]));
        links.move_back(0, 4);
        links.move_back(0, 0);
        links.move_back(127, 3);
        assert_eq!(items(&links, 0), [2, 4, 0]);
        assert_eq!((items(&links, 1), items(&links, 127)), (vec![1], vec![3]));
        links.remove(1);
        assert!(items(&links, 1).is_empty());
    }
}
