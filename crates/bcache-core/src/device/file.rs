//! Opening block devices and image files.
