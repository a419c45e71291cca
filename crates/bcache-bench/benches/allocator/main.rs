//! The parts of the allocator in memory, without I/O, beside the reference engine: `make bench`, or
//! `cargo bench -p bcache-bench --bench allocator -- invalidate|bucket|sector`.
//!
//! They print tables, or with `--json` reports, which `bcache-bench compare` and `plot` read. Run by
//! `cargo test`, which gives no `--bench`, the benches test themselves: small, and for no figures.

#![allow(unreachable_pub)] // a program has no public surface

mod bucket;
mod cli;
mod engines;
mod harness;
mod invalidate;
mod sector;
mod show;
mod tests;

use std::process::ExitCode;

use anyhow::Result;
use bcache_bench::exit::{ExitError, Failure};
use bcache_cli::is_broken_pipe;
use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        return tests::run();
    }
    match run(&Cli::parse().command) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            let refused = Failure::Refused.into();
            error.downcast_ref::<ExitError>().map_or(refused, |error| error.status).into()
        }
    }
}

fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Invalidate(args) => show::invalidate(args),
        Command::Bucket(args) => show::bucket(args),
        Command::Sector(args) => show::sector(args),
        Command::All => {
            for name in ["invalidate", "bucket", "sector"] {
                run(&Cli::parse_from(["bench", name]).command)?;
                println!();
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
