//! What the kernel runs, read by a helper process so that a lock or a dead device holds up nothing.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bcache_core::device::scan::Helper;
use bcache_core::device::sysfs::{BlockDir, Registered, Root};
use bcache_core::running::{self, Asker, Files, NAMES_LIMIT, Part, Question, SLOW, Snapshot};

use crate::cli::ReadRunningArgs;

/// The hidden subcommand that [`serve`] is.
const SUBCOMMAND: &str = "read-running";

/// How often it is looked whether somebody wants the end.
const POLL: Duration = Duration::from_millis(100);

/// One that asks what runs below `root`.
pub(crate) fn asker(root: Root, question: Question) -> Asker {
    let mut helper = Helper::this_program(SUBCOMMAND);
    helper.arguments.push(root.base().into());
    let options = [
        (question.superblocks, "--superblocks"),
        (question.files == Files::OfView, "--of-view"),
        (question.files == Files::Priorities, "--priorities"),
    ];
    let options = options.iter().filter(|(is_asked, _)| *is_asked);
    helper.arguments.extend(options.map(|(_, option)| option.into()));
    Asker::new(root, helper, question)
}

/// The whole answer, for who cannot do with a part of it. It is waited for until nothing has come for
/// the time `limit`, or until `stop`; after a second `program` says so.
///
/// # Errors
/// When the kernel does not answer in time, or does not list its devices.
pub(crate) fn whole(
    asker: &mut Asker,
    limit: Duration,
    stop: &AtomicBool,
    program: &str,
) -> Result<Snapshot> {
    const UNREADABLE: &str = "cannot read /sys";
    asker.ask();
    let mut told = false;
    loop {
        if let Some(answer) = asker.answer(POLL.min(limit)) {
            return answer.context(UNREADABLE);
        }
        if stop.load(Ordering::Relaxed) {
            bail!("interrupted while the kernel did not answer; nothing was written");
        }
        let Some(quiet) = asker.quiet() else {
            if asker.since().is_none_or(|since| since.elapsed() >= NAMES_LIMIT) {
                bail!(UNREADABLE);
            }
            continue;
        };
        if quiet >= limit {
            let words = silence(&asker.silent(), quiet);
            return Err(anyhow!(words.unwrap_or_else(|| UNREADABLE.to_owned())));
        }
        if !told && quiet >= SLOW {
            told = true;
            // Where standard error is closed, nobody is told.
            let _ = writeln!(
                io::stderr(),
                "{program}: waiting for the kernel, which does not answer while it registers a cache"
            );
        }
    }
}

/// Most that are named in one line.
const NAMED_MAX: usize = 8;

/// What does not answer, in words; none where everything does.
pub(crate) fn silence(silent: &BTreeSet<Part>, waited: Duration) -> Option<String> {
    let mut names: Vec<String> = silent.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    if let Some(more) = silent.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        names.push(format!("{more} more"));
    }
    let (last, others) = names.split_last()?;
    let names = match others {
        [] => last.clone(),
        others => format!("{} and {last}", others.join(", ")),
    };
    let verb = if silent.len() == 1 { "does" } else { "do" };
    let lock = silent.iter().any(|it| !matches!(it, Part::Superblock(_)));
    let why = if lock {
        ": the kernel holds bcache's lock, as it does while it registers a cache"
    } else {
        ""
    };
    Some(format!("{names} {verb} not answer for {} s{why}", waited.as_secs()))
}

/// What the machine's kernel says of `device`; none where it does not answer.
pub(crate) fn registered(device: &BlockDir) -> Option<Registered> {
    static MACHINE: OnceLock<Option<Snapshot>> = OnceLock::new();
    let question = Question::default();
    let machine = MACHINE.get_or_init(|| asker(Root::system(), question).within(SLOW).ok());
    let snapshot = machine.as_ref()?;
    let is_silent = snapshot.silent.contains(&Part::Device(device.name().to_owned()));
    BlockDir::by_name(&snapshot.root, device.name()).filter(|_| !is_silent)?.bcache()
}

/// What the helper process does.
pub(crate) fn serve(args: &ReadRunningArgs) -> Result<ExitCode> {
    let files = match (args.of_view, args.priorities) {
        (true, _) => Files::OfView,
        (false, true) => Files::Priorities,
        (false, false) => Files::All,
    };
    let question = Question { superblocks: args.superblocks, files };
    running::serve(&Root::at(&args.root), question, io::stdin().lock(), io::stdout())?;
    Ok(ExitCode::SUCCESS)
}
