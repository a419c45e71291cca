//! A binary heap in an array, children of `i` at `2i + 1` and `2i + 2`, as on-disk-format.md §9.3 has it.
//!
//! `before(l, r)` says that `l` belongs below `r`: with "l is less" the greatest is on top.

/// Moves the item at `i` down until both its children belong below it.
pub(super) fn sift<T>(heap: &mut [T], mut i: usize, before: &impl Fn(&T, &T) -> bool) {
    loop {
        let mut child = 2 * i + 1;
        if child >= heap.len() {
            return;
        }
        if child + 1 < heap.len() && before(&heap[child], &heap[child + 1]) {
            child += 1;
        }
        if before(&heap[child], &heap[i]) {
            return;
        }
        heap.swap(i, child);
        i = child;
    }
}

/// Adds an item.
pub(super) fn add<T>(heap: &mut Vec<T>, item: T, before: &impl Fn(&T, &T) -> bool) {
    heap.push(item);
    let mut i = heap.len() - 1;
    while i > 0 {
        let parent = (i - 1) / 2;
        if before(&heap[i], &heap[parent]) {
            break;
        }
        heap.swap(i, parent);
        i = parent;
    }
    sift(heap, i, before);
}

/// Takes the item on top.
pub(super) fn pop<T>(heap: &mut Vec<T>, before: &impl Fn(&T, &T) -> bool) -> Option<T> {
    if heap.is_empty() {
        return None;
    }
    let top = heap.swap_remove(0);
    sift(heap, 0, before);
    Some(top)
}
