//! Where a sector allocator gets buckets.

use super::super::error::AllocError;
use super::super::pointer::SetPointer;
use super::super::reserves::Reserve;
use super::super::shared::Allocator;
use super::super::table::TableError;

/// Where the sector allocator gets buckets.
pub trait BucketSource: Send + Sync {
    /// Allocates a bucket, with one pin.
    fn alloc(&self, reserve: Reserve, wait: bool) -> Result<SetPointer, AllocError>;

    /// Takes a pin on a bucket that was allocated here. [`AllocError::Failed`]: its cache has failed
    /// since, and it is not to be written to.
    fn pin(&self, pointer: &SetPointer) -> Result<(), AllocError>;

    /// Drops a pin on a bucket.
    fn unpin(&self, pointer: &SetPointer) -> Result<(), AllocError>;
}

/// The only cache of its set.
impl BucketSource for Allocator {
    fn alloc(&self, reserve: Reserve, wait: bool) -> Result<SetPointer, AllocError> {
        self.alloc_pointer(reserve, wait)
    }

    fn pin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        if self.has_failed() {
            return Err(AllocError::Failed);
        }
        if self.core().table().pin_through(pointer.bucket, pointer.bucket_gen)? {
            Ok(())
        } else {
            let (bucket, ptr_gen) = (pointer.bucket, pointer.bucket_gen);
            Err(TableError::StalePointer { bucket, ptr_gen }.into())
        }
    }

    fn unpin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        Ok(self.core().table().unpin(pointer.bucket)?)
    }
}

impl<S: BucketSource + ?Sized> BucketSource for std::sync::Arc<S> {
    fn alloc(&self, reserve: Reserve, wait: bool) -> Result<SetPointer, AllocError> {
        (**self).alloc(reserve, wait)
    }

    fn pin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        (**self).pin(pointer)
    }

    fn unpin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        (**self).unpin(pointer)
    }
}
