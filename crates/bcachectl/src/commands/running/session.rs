//! What all commands on running devices share: the kernel's view, names, waiting, and the report.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bcache_cli::confirm::{is_yes, prompt};
use bcache_cli::out::Out;
use bcache_cli::progress::Progress as Bar;
use bcache_core::device::sysfs::{BlockDir, Root};
use bcache_core::running::control::{
    ControlError, Done, Note, Plan, Progress, Proof, Waiting, Write as KernelWrite, run,
};
use bcache_core::running::{Asker, Backing, Question, Set, View, Volume};
use serde::Serialize;
use uuid::Uuid;

use super::words;
use crate::ask::{asker, whole};
use crate::cli::running::ControlArgs;
use crate::exit::{ExitError, Failure};
use crate::interrupt;

/// How long the kernel's answer to the first look is waited for, unless told otherwise.
const LOOK_LIMIT: Duration = Duration::from_secs(60);

/// Limit for what the kernel does at once.
pub(super) const AT_ONCE: Duration = Duration::from_secs(60);

/// No limit, for what writes data back.
pub(super) const NO_LIMIT: Duration = Duration::ZERO;

/// A command at work.
pub(super) struct Session {
    pub(super) root: Root,
    pub(super) args: ControlArgs,
    /// Longest time for a wait; none for as long as it takes.
    limit: Option<Duration>,
    stop: Arc<AtomicBool>,
    asker: RefCell<Asker>,
    reports: Vec<Report>,
}

/// What became of one target.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    action: &'static str,
    target: String,
    state: State,
    /// The kernel was told, and what it then does was not waited for.
    #[serde(skip)]
    begun: bool,
    writes: Vec<KernelWrite>,
    notes: Vec<Note>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bcache: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kernel_log: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Planned,
    Done,
    AlreadySo,
    Refused,
    Failed,
}

/// What a name on the command line stands for.
#[derive(Debug)]
pub(super) enum Target<'v> {
    Backing(&'v Backing),
    Set(&'v Set),
    Volume(&'v Set, &'v Volume),
}

impl Session {
    /// `usual` is the limit where none was given; zero for none.
    pub(super) fn new(args: ControlArgs, usual: Duration) -> Result<Self> {
        let stop = interrupt::install().context("cannot catch signals")?;
        let limit = Some(args.timeout.unwrap_or(usual)).filter(|limit| !limit.is_zero());
        let root = Root::system();
        let asker = RefCell::new(asker(root.clone(), Question::default()));
        Ok(Self { root, args, limit, stop, asker, reports: Vec::new() })
    }

    /// What the kernel runs.
    pub(super) fn view(&self) -> Result<View> {
        let limit = self.limit.unwrap_or(LOOK_LIMIT);
        view_of(&mut self.asker.borrow_mut(), limit, &self.stop)
    }

    /// Carries out `plan`, or reports it.
    pub(super) fn carry_out(&mut self, plan: &Plan) -> Result<Option<Done>> {
        self.carry_out_with(plan, |plan, waiting| run(plan, waiting).map(|done| (done, None)))
    }

    /// The same, `act` doing the work; it may tell how long it took in milliseconds.
    pub(super) fn carry_out_with(
        &mut self,
        plan: &Plan,
        act: impl FnOnce(&Plan, &mut Waiting<'_>) -> Result<(Done, Option<u64>), ControlError>,
    ) -> Result<Option<Done>> {
        let mut report = Report {
            action: plan.action,
            target: plan.target.clone(),
            state: State::Planned,
            begun: plan.action == "detach" && plan.proof == Proof::Written,
            writes: plan.writes.clone(),
            notes: plan.notes.clone(),
            bcache: None,
            took_ms: None,
            error: None,
            kernel_log: Vec::new(),
        };
        if plan.notes.contains(&Note::AlreadySo) {
            report.state = State::AlreadySo;
        }
        if self.args.dry_run || report.state == State::AlreadySo {
            self.reports.push(report);
            return Ok(None);
        }
        let mut told = Told::new(&plan.target);
        let mut progress = |progress: Progress| told.progress(progress);
        let mut waiting = Waiting {
            root: &self.root,
            limit: self.limit,
            stop: &self.stop,
            progress: &mut progress,
        };
        let result = act(plan, &mut waiting);
        told.bar.finish();
        match result {
            Ok((done, took_ms)) => {
                report.state = State::Done;
                report.bcache.clone_from(&done.bcache);
                report.kernel_log.clone_from(&done.log);
                report.took_ms = took_ms;
                self.reports.push(report);
                Ok(Some(done))
            }
            Err(error) => {
                report.state = State::Failed;
                report.error = Some(error.to_string());
                self.reports.push(report);
                let failure = match &error {
                    ControlError::Write { .. } => Failure::Refused,
                    ControlError::NotDone { .. } => Failure::NotDone,
                    ControlError::Interrupted { .. } => Failure::Interrupted,
                    ControlError::Otherwise { .. } | ControlError::NotRestored { .. } => {
                        Failure::Partial
                    }
                };
                let error = anyhow!(error).context(format!("{}: {}", plan.target, plan.action));
                Err(self.fail(ExitError::wrap(failure, error)))
            }
        }
    }

    /// Reports something that was done to `target` without the kernel's files.
    pub(super) fn add_done(&mut self, action: &'static str, target: &str) {
        self.reports.push(Report {
            action,
            target: target.to_owned(),
            state: State::Done,
            begun: false,
            writes: Vec::new(),
            notes: Vec::new(),
            bcache: None,
            took_ms: None,
            error: None,
            kernel_log: Vec::new(),
        });
    }

    /// Reports what was done before an error, so that JSON is whole.
    pub(super) fn fail(&mut self, error: anyhow::Error) -> anyhow::Error {
        if self.args.json {
            // The error at hand says more than a report that cannot be written.
            let _ = self.print();
        }
        error
    }

    /// An error of the target, before anything is written.
    pub(super) fn refuse(
        &mut self,
        action: &'static str,
        target: &str,
        error: &bcache_core::running::control::Refusal,
    ) -> anyhow::Error {
        let text = words::refusal(error);
        self.reports.push(Report {
            action,
            target: target.to_owned(),
            state: State::Refused,
            begun: false,
            writes: Vec::new(),
            notes: Vec::new(),
            bcache: None,
            took_ms: None,
            error: Some(text.clone()),
            kernel_log: Vec::new(),
        });
        self.fail(anyhow!("{target}: {action} refused: {text}"))
    }

    /// Prints the report and ends well.
    pub(super) fn finish(&self) -> Result<ExitCode> {
        self.print()?;
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self) -> Result<()> {
        #[derive(Serialize)]
        struct All<'r> {
            dry_run: bool,
            results: &'r [Report],
        }
        let mut out = Out::stdout();
        if self.args.json {
            out.json(&All { dry_run: self.args.dry_run, results: &self.reports })?;
            return out.finish();
        }
        for report in &self.reports {
            let did = match report.state {
                State::Planned => words::would(report.action),
                State::AlreadySo => words::already(report.action),
                _ if report.begun => words::begun(report.action),
                _ => words::done(report.action),
            };
            let bcache = report.bcache.as_ref().map(|it| format!(", runs as {it}"));
            writeln!(out, "{}: {did}{}", report.target, bcache.unwrap_or_default())?;
            for note in report.notes.iter().filter(|note| **note != Note::AlreadySo) {
                writeln!(out, "  {}", words::note(note))?;
            }
            if self.args.dry_run {
                for write in &report.writes {
                    writeln!(out, "  {} > {}", write.value.trim_end(), write.file.display())?;
                }
            }
        }
        out.finish()
    }

    /// The set that `name` stands for.
    pub(super) fn set<'v>(&self, view: &'v View, name: &str) -> Result<&'v Set> {
        match target(&self.root, view, name)? {
            Target::Set(set) => Ok(set),
            Target::Backing(backing) => {
                bail!("{name} is the backing device {}, not a set or its cache", backing.name)
            }
            Target::Volume(..) => bail!("{name} is a flash-only volume, not a set or its cache"),
        }
    }

    /// The backing device that `name` stands for.
    pub(super) fn backing<'v>(&self, view: &'v View, name: &str) -> Result<&'v Backing> {
        match target(&self.root, view, name)? {
            Target::Backing(backing) => Ok(backing),
            Target::Set(set) => bail!("{name} is the set {}, not a backing device", set.uuid),
            Target::Volume(..) => {
                bail!("{name} is a flash-only volume, which has no backing device")
            }
        }
    }
}

/// The kernel's view, read by a helper process: this one writes, and must end whatever the kernel does.
/// All that is written to is the machine's; all that a view reads is what was read at one moment.
pub(super) fn read_view(limit: Duration) -> Result<View> {
    let question = Question::default();
    view_of(&mut asker(Root::system(), question), limit, &AtomicBool::new(false))
}

fn view_of(asker: &mut Asker, limit: Duration, stop: &AtomicBool) -> Result<View> {
    whole(asker, limit, stop, "bcachectl")?.view().context("cannot read /sys")
}

/// What `name` stands for: a path, a kernel name, or a UUID.
pub(super) fn target<'v>(root: &Root, view: &'v View, name: &str) -> Result<Target<'v>> {
    if let Ok(uuid) = Uuid::try_parse(name) {
        if let Some(set) = view.set(uuid) {
            return Ok(Target::Set(set));
        }
        if let Some(backing) = view.backing.iter().find(|it| it.uuid == Some(uuid)) {
            return Ok(Target::Backing(backing));
        }
        bail!("no registered set or backing device has the UUID {name}");
    }
    let kernel_name = match BlockDir::of_path(root, Path::new(name)) {
        Some(device) => device.name().to_owned(),
        None => name.strip_prefix("/dev/").unwrap_or(name).replace('/', "!"),
    };
    if let Some(backing) = view.backing_device(&kernel_name) {
        return Ok(Target::Backing(backing));
    }
    if let Some(set) = view.set_of_cache(&kernel_name) {
        return Ok(Target::Set(set));
    }
    if let Some((set, volume)) = view.volume(&kernel_name) {
        return Ok(Target::Volume(set, volume));
    }
    let closing =
        view.closing.iter().find(|it| it.bcache == kernel_name || it.holds.contains(&kernel_name));
    if let Some(closing) = closing {
        bail!(
            "{name}: {} was stopped and is still open; it ends when the last user closes it",
            closing.bcache
        );
    }
    if !view.available {
        bail!("{name}: bcache is not loaded: run `modprobe bcache`");
    }
    bail!(
        "{name} is neither a registered device nor a set; `bcachectl register` registers a device"
    )
}

/// Asks on the terminal for a yes, or for the very word.
pub(super) fn ask(question: &str, word: Option<&str>) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    Ok(match word {
        Some(word) => prompt(&format!("{question} Type \"{word}\" to go on: "))? == word,
        None => is_yes(&prompt(&format!("{question} Go on? [y/N] "))?),
    })
}

/// What the user is told while the kernel works.
struct Told {
    bar: Bar,
    blocked: bool,
    most: u64,
}

impl Told {
    fn new(target: &str) -> Self {
        Self { bar: Bar::new(target.to_owned()), blocked: false, most: 0 }
    }

    fn progress(&mut self, progress: Progress) {
        match progress {
            Progress::Dirty(dirty) => {
                self.most = self.most.max(dirty.at_most());
                let done = self.most.saturating_sub(dirty.at_most());
                self.bar.set("bytes written back", done, self.most);
            }
            Progress::Blocked if !self.blocked => {
                self.blocked = true;
                // Where standard error is closed, nobody is told.
                let _ = writeln!(
                    io::stderr(),
                    "bcachectl: the kernel is still working and does not answer; this cannot be interrupted"
                );
            }
            Progress::Blocked => {}
        }
    }
}
