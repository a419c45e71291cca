//! What the kernel runs, read by a helper process so that a lock or a dead device holds up nothing.

use std::io;
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::Result;
use bcache_core::device::scan::Helper;
use bcache_core::device::sysfs::{BlockDir, Registered, Root};
use bcache_core::running::{self, Asker, Part, SLOW, Snapshot};

use crate::cli::ReadRunningArgs;

/// The hidden subcommand that [`serve`] is.
const SUBCOMMAND: &str = "read-running";

/// One that asks what runs below `root`; with `superblocks`, also what those of its devices say.
pub(crate) fn asker(root: Root, superblocks: bool) -> Asker {
    let mut helper = Helper::this_program(SUBCOMMAND);
    helper.arguments.push(root.base().into());
    if superblocks {
        helper.arguments.push("--superblocks".into());
    }
    Asker::new(root, helper, superblocks)
}

/// What the machine's kernel says of `device`; none where it does not answer.
pub(crate) fn registered(device: &BlockDir) -> Option<Registered> {
    static MACHINE: OnceLock<Option<Snapshot>> = OnceLock::new();
    let machine = MACHINE.get_or_init(|| asker(Root::system(), false).within(SLOW).ok());
    let snapshot = machine.as_ref()?;
    let is_silent = snapshot.silent.contains(&Part::Device(device.name().to_owned()));
    BlockDir::by_name(&snapshot.root, device.name()).filter(|_| !is_silent)?.bcache()
}

/// What the helper process does.
pub(crate) fn serve(args: &ReadRunningArgs) -> Result<ExitCode> {
    running::serve(&Root::at(&args.root), args.superblocks, io::stdin().lock(), io::stdout())?;
    Ok(ExitCode::SUCCESS)
}
