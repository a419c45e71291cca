//! Bytes to typed values and back, without I/O.
