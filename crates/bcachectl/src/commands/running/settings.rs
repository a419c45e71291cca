//! `settings save` and `settings apply`: what a stop loses, kept in a file by UUID.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bcache_cli::out::Out;
use bcache_core::device::sysfs::BlockDir;
use bcache_core::running::control::{Change, most_of};
use bcache_core::running::{
    Attributes, DeviceState, Rounded, Scope, TUNABLES, Tunable, Unit, View,
};
use serde::Deserialize;
use uuid::Uuid;

use super::session::{AT_ONCE, Session, Target, read_view, target};
use super::set::{Owner, change, unit};
use crate::cli::running::{SettingsArgs, SettingsCommand};
use crate::exit::{ExitError, Failure};

/// The file's version.
const VERSION: u32 = 1;

/// The file: tables `backing."UUID"` and `set."UUID"`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default)]
    backing: BTreeMap<Uuid, BTreeMap<String, Value>>,
    #[serde(default)]
    set: BTreeMap<Uuid, BTreeMap<String, Value>>,
}

/// A value: a number, a flag, or a text as `bcachectl set` takes it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Value {
    Number(u64),
    Flag(bool),
    Text(String),
}

impl Value {
    fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Flag(flag) => u8::from(*flag).to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

/// Runs `bcachectl settings`.
pub(in crate::commands) fn settings(args: &SettingsArgs) -> Result<ExitCode> {
    match &args.command {
        SettingsCommand::Save { file, timeout } => save(file, *timeout),
        SettingsCommand::Apply { file, device, control } => {
            let text = fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let parsed = parse(&text).with_context(|| file.display().to_string())?;
            apply(&parsed, device.as_deref(), Session::new(*control, AT_ONCE)?)
        }
    }
}

fn parse(text: &str) -> Result<File> {
    let file: File = toml::from_str(text).map_err(|error| anyhow!("{}", error.message()))?;
    if file.version != VERSION {
        bail!("version {} is not known; this program knows {VERSION}", file.version);
    }
    Ok(file)
}

fn save(path: &Path, limit: Duration) -> Result<ExitCode> {
    let view = read_view(limit)?;
    if view.sets.is_empty() && view.backing.is_empty() {
        // An empty file in the place of what was saved before would lose that.
        bail!("no bcache device is running, so there are no settings to save; nothing was written");
    }
    let old = if path == Path::new("-") { File::default() } else { not_there(path, &view)? };
    let mut text = as_toml(&view);
    add_old(&mut text, &old);
    if path == Path::new("-") {
        let mut out = Out::stdout();
        out.write_all(text.as_bytes())?;
        out.finish()?;
        return Ok(ExitCode::SUCCESS);
    }
    // A power cut leaves the old file or the new one.
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().context("the file needs a name")?.to_string_lossy();
    let new = folder.join(format!(".{name}.new"));
    let write = || {
        let mut file = fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    let kept: Vec<String> = old.backing.keys().chain(old.set.keys()).map(Uuid::to_string).collect();
    if !kept.is_empty() {
        // Where standard error is closed, nobody is told.
        let _ = writeln!(
            io::stderr(),
            "bcachectl: {} keeps what it said of devices and sets that are not registered: {}",
            path.display(),
            kept.join(", ")
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What the file says of devices and sets that are not registered: nothing where there is no file.
fn not_there(path: &Path, view: &View) -> Result<File> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(File::default()),
        Err(error) => return Err(anyhow!(error).context(format!("cannot read {}", path.display()))),
    };
    // A file of another version, or with a mistake in it, is not written over.
    let mut file =
        parse(&text).with_context(|| format!("{}: what is in it would be lost", path.display()))?;
    file.backing.retain(|uuid, _| !view.backing.iter().any(|it| it.uuid == Some(*uuid)));
    file.set.retain(|uuid, _| view.set(*uuid).is_none());
    Ok(file)
}

fn add_old(text: &mut String, old: &File) {
    for (kind, tables) in [("backing", &old.backing), ("set", &old.set)] {
        for (uuid, values) in tables {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "\n# not registered when this was saved\n[{kind}.\"{uuid}\"]");
            for (name, value) in values {
                let value = match value {
                    Value::Number(number) => number.to_string(),
                    Value::Flag(flag) => flag.to_string(),
                    Value::Text(text) => format!("{text:?}"),
                };
                let _ = writeln!(text, "{name} = {value}");
            }
        }
    }
}

/// Everything that a stop loses, of all devices and sets.
fn as_toml(view: &View) -> String {
    let mut text = String::from(
        "# Settings of bcache devices that the kernel forgets when they stop.\n\
         # `bcachectl settings apply` sets them again; `bcachectl get` explains each.\n\
         # Sizes are in bytes. Remove the lines that should stay as the kernel has them.\n",
    );
    // Writing to a string cannot fail.
    let _ = writeln!(text, "version = {VERSION}");
    for backing in &view.backing {
        let Some(uuid) = backing.uuid else { continue };
        let label = backing.label.as_ref().map(|it| format!(", label {it:?}")).unwrap_or_default();
        let _ = writeln!(text, "\n# {}{label}\n[backing.\"{uuid}\"]", backing.name);
        add_values(&mut text, &backing.attributes, true, backing.set.is_some());
    }
    for set in &view.sets {
        let cache = set.cache.as_ref().map_or("none", |it| it.name.as_str());
        let _ = writeln!(text, "\n# cache {cache}\n[set.\"{}\"]", set.uuid);
        add_values(&mut text, &set.attributes, false, true);
    }
    text
}

fn add_values(text: &mut String, of: &Attributes, is_backing: bool, has_cache: bool) {
    for tunable in TUNABLES {
        let skipped = tunable.persists
            || (tunable.scope == Scope::Backing) != is_backing
            // Without a cache it is 0 whatever it was.
            || (tunable.name == "writeback_running" && !has_cache);
        if skipped {
            continue;
        }
        let Some(read) = tunable.read(of) else { continue };
        let (value, comment) = written(tunable, &read);
        let mark = if read == tunable.default { "default" } else { "default: " };
        let default = if read == tunable.default { "" } else { tunable.default };
        let _ = writeln!(
            text,
            "{} = {value} # {}; {mark}{default}{comment}",
            tunable.name,
            unit(tunable.unit)
        );
    }
}

/// A value as the file has it, and what has to be said of it.
fn written(tunable: &Tunable, read: &str) -> (String, String) {
    match tunable.unit {
        Unit::Choice(_) => (format!("{read:?}"), String::new()),
        Unit::Bytes => match read.parse::<Rounded>() {
            Ok(rounded) => (
                rounded.roundest().to_string(),
                format!(
                    "; the kernel says {read}, which is {} to {}",
                    rounded.low(),
                    rounded.high()
                ),
            ),
            Err(_) => (format!("{read:?}"), String::new()),
        },
        _ => (read.to_owned(), String::new()),
    }
}

/// Sets what the file says of each device and set that is there. Those that are not are passed over:
/// they may come later, and with them the next call.
fn apply(file: &File, device: Option<&str>, mut session: Session) -> Result<ExitCode> {
    let view = settled(&session, device)?;
    let only = match device {
        Some(name) => Some(match target(&session.root, &view, name)? {
            Target::Backing(backing) => {
                (backing.uuid.with_context(|| format!("{name} has no UUID"))?, backing.set)
            }
            Target::Set(set) | Target::Volume(set, _) => (set.uuid, None),
        }),
        None => None,
    };
    let wanted = |uuid: Uuid| only.is_none_or(|(own, set)| own == uuid || set == Some(uuid));
    let mut failed = Vec::new();
    let of_backing = file.backing.iter().filter_map(|(uuid, values)| {
        let backing = view.backing.iter().find(|it| it.uuid == Some(*uuid))?;
        let owner = Owner {
            name: backing.name.clone(),
            attributes: backing.attributes.clone(),
            is_backing: true,
        };
        Some((*uuid, owner, values))
    });
    let of_set = file.set.iter().filter_map(|(uuid, values)| {
        let set = view.set(*uuid)?;
        let owner =
            Owner { name: uuid.to_string(), attributes: set.attributes.clone(), is_backing: false };
        Some((*uuid, owner, values))
    });
    let all: Vec<_> = of_backing.chain(of_set).filter(|(uuid, ..)| wanted(*uuid)).collect();
    for (_, owner, values) in all {
        let changes = changes_of(&owner, values);
        if let Err(error) = changes.and_then(|changes| change(&mut session, &owner, changes)) {
            failed.push(format!("{error:#}"));
        }
    }
    let done = session.finish();
    match failed.first() {
        None => done,
        Some(first) => {
            // One device that fails keeps no other from its settings.
            for error in failed.iter().skip(1) {
                let _ = writeln!(io::stderr(), "bcachectl: {error}");
            }
            Err(ExitError::wrap(Failure::Partial, anyhow!("{first}")))
        }
    }
}

/// How long a device that appears may lack a part of its files.
const APPEARS: Duration = Duration::from_secs(5);

/// The view in which `device` is whole.
///
/// As the kernel starts a device, udev hears of it before its directory of bcache and its link to the
/// set are there.
fn settled(session: &Session, device: Option<&str>) -> Result<View> {
    let begun = Instant::now();
    loop {
        let view = session.view()?;
        let appears = device.is_some_and(|name| match target(&session.root, &view, name) {
            Ok(Target::Backing(backing)) => DeviceState::of(backing) == DeviceState::CacheLost,
            Ok(_) => false,
            Err(_) => {
                name.starts_with("bcache") && BlockDir::by_name(&session.root, name).is_some()
            }
        });
        if !appears || begun.elapsed() >= APPEARS {
            return Ok(view);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn changes_of(owner: &Owner, values: &BTreeMap<String, Value>) -> Result<Vec<Change>> {
    let has_cache = owner.attributes.has("cache");
    let mut changes = Vec::new();
    for (name, value) in values {
        let tunable = Tunable::find(name, owner.is_backing)
            .map_err(|error| anyhow!("{}: {error}", owner.name))?;
        // Its attach sets it to 1; until then there is nothing to run.
        if name == "writeback_running" && !has_cache {
            continue;
        }
        // A setting that this kernel does not have is no reason to leave out the others.
        if tunable.read(&owner.attributes).is_none() {
            continue;
        }
        let most = most_of(tunable, &owner.attributes);
        // The file was written by a person who meant it, or from a machine that had it.
        let value = tunable
            .parse(&value.text(), most, true)
            .map_err(|error| anyhow!("{}: {error}", owner.name))?;
        changes.push(Change { tunable, value });
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_strictly() {
        let text = "version = 1\n[backing.\"11111111-2222-4333-8444-555555555555\"]\n\
                    sequential_cutoff = \"4M\"\nwriteback_delay = 60\nwriteback_metadata = false\n";
        let file = parse(text).unwrap();
        let values: Vec<String> =
            file.backing.values().flat_map(|it| it.values().map(Value::text)).collect();
        assert_eq!(values, ["4M", "60", "0"]);
        for text in ["", "version = 2", "version = 1\nother = 5", "version = 1\n[backing.x]"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn devices_that_are_not_there_keep_their_settings() {
        let folder = tempfile::tempdir().unwrap();
        let recorded =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/running/dirty-6.12.sysfs");
        let tree = fs::read_to_string(recorded).unwrap();
        let root = bcache_core::running::recorded::unpack(&tree, folder.path()).unwrap();
        let view = View::read(&root).unwrap();
        let there = view.backing[0].uuid.unwrap();
        let path = folder.path().join("settings");
        let absent = "11111111-2222-4333-8444-555555555555";
        let old = format!(
            "version = 1\n[backing.\"{absent}\"]\nsequential_cutoff = \"4M\"\n\
             writeback_metadata = false\n[backing.\"{there}\"]\nwriteback_delay = 7\n\
             [set.\"{absent}\"]\njournal_delay_ms = 5\n"
        );
        fs::write(&path, old).unwrap();
        let kept = not_there(&path, &view).unwrap();
        let mut text = as_toml(&view);
        add_old(&mut text, &kept);
        let file = parse(&text).unwrap();
        let uuid = Uuid::try_parse(absent).unwrap();
        let values: Vec<String> = file.backing[&uuid].values().map(Value::text).collect();
        assert_eq!(values, ["4M", "0"]);
        assert_eq!(file.set[&uuid]["journal_delay_ms"].text(), "5");
        // What runs is as it runs.
        assert_eq!(file.backing[&there]["writeback_delay"].text(), "30");
        assert_eq!((file.backing.len(), file.set.len()), (2, 2));
        assert!(not_there(&folder.path().join("none"), &view).unwrap().backing.is_empty());
        fs::write(&path, "version = 9\n").unwrap();
        assert!(not_there(&path, &view).is_err());
    }

    #[test]
    fn what_was_rounded_is_written_in_bytes() {
        let cutoff = Tunable::find("sequential_cutoff", true).unwrap();
        let (value, comment) = written(cutoff, "4.0M");
        assert_eq!(value, "4194304");
        assert!(comment.contains("4.0M"), "{comment}");
        let mode = Tunable::find("readahead_cache_policy", true).unwrap();
        assert_eq!(written(mode, "meta-only").0, "\"meta-only\"");
    }
}
