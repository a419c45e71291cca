//! bcache-bench
use bcache_bench::memory::{Engine, invalidate};
fn main() {
    let n: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    let r = invalidate::run(
        n,
        std::env::args().nth(2).unwrap().parse().unwrap(),
        if std::env::args().nth(3).is_some() { Engine::Fast } else { Engine::Both },
        1,
    )
    .unwrap();
    let s = r.sum_ns as f64;
    println!(
        "sum {} pass {:?} ref {:?} pass/sum {:.2} rescale/sum {:.2} ref/pass {:.1}",
        r.sum_ns,
        r.pass_ns,
        r.reference_pass_ns,
        r.pass_ns.unwrap() as f64 / s,
        r.rescale_ns.unwrap() as f64 / s,
        r.reference_pass_ns.unwrap_or(1) as f64 / r.pass_ns.unwrap() as f64
    );
}
