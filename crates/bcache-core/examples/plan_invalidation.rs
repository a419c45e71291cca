//! Plans the invalidation of the coldest buckets of a cache, and writes nothing.
//!
//! ```text
//! cargo run -p bcache-core --example plan_invalidation -- cache.img 10
//! ```

use std::error::Error;

use bcache_core::cache_set::ReadOptions;
use bcache_core::device::open_read;
use bcache_core::ops::invalidate::{self, Amount, Options, Selection, TrustedSet};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("name a cache device or an image of one")?;
    let count = arguments.next().ok_or("say how many buckets")?.parse()?;
    let device = open_read(path)?;
    let read = ReadOptions::default();
    // Only a set that the kernel would register as it is can be changed.
    let set = TrustedSet::read(&device, &read, &mut |_| {})?;
    let options = Options {
        selection: Selection::Coldest(Amount::Count(count)),
        skip_refused: false,
        walk: read.walk,
    };
    let plan = invalidate::plan(set, &options)?;
    for target in plan.chosen.targets() {
        println!(
            "bucket {}: gen {} to {}, {} of clean data",
            target.bucket, target.gen_before, target.gen_after, target.sectors
        );
    }
    println!("{} buckets; nothing was written", plan.chosen.target_count());
    Ok(())
}
