//! Prints prio and gen of every bucket of a cache that holds anything.
//!
//! ```text
//! cargo run -p bcache-core --example prios -- /dev/nvme0n1p4
//! ```

use std::error::Error;

use bcache_core::cache_set::{CacheDevice, CacheSet, NoVisitor, ReadOptions};
use bcache_core::device::open_read;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("name a cache device or an image of one")?;
    let device = open_read(path)?;
    let set = CacheSet::read(CacheDevice::open(&device)?, &ReadOptions::default(), &mut NoVisitor)?;
    for (number, bucket) in set.table.as_slice().iter().enumerate() {
        if bucket.prio().0 != 0 {
            println!("{number:8} prio {:5} gen {:3}", bucket.prio(), bucket.bucket_gen());
        }
    }
    Ok(())
}
