//! What libblkid finds on a device.
