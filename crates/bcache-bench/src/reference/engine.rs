//! The reference engine behind its one lock, with the waiting and waking of the kernel's thread.

