//! What both commands have in common, as a user meets it: help and versions, mistakes on the command
//! line, output that cannot be written, completions, and tables on terminals of any size.

use anyhow::{Context as _, ensure};
use bcache_tests::cache::with_cache_set;
use bcache_tests::fixture::Fixture;
use bcache_tests::image::write_at;
use bcache_tests::need::unmet;
use bcache_tests::terminal::{Terminal, on_terminal};
use bcache_tests::{Need, Scratch, binary, tool};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::process::{Command, Output, Stdio};

const PROGRAMS: [&str; 2] = ["bcachectl", "bcache-bench"];

fn run(program: &str, arguments: &str) -> anyhow::Result<Output> {
    let mut command = Command::new(binary(program)?);
    command.args(arguments.split_whitespace()).stdin(Stdio::null());
    command.output().with_context(|| format!("run {program} {arguments}"))
}

#[test]
fn mistakes_are_2_and_told_in_one_sentence() -> anyhow::Result<()> {
    for (program, arguments, sentence) in [
        ("bcachectl", "chek", "there is no command chek; did you mean check?"),
        ("bcachectl", "check", "missing: <DEV>"),
        ("bcachectl", "check --sjon a", "there is no option --sjon; did you mean --json?"),
        ("bcachectl", "make -C --bucket 12x a", "--bucket: \"12x\" is not a size"),
        ("bcachectl", "make -C --cset-uuid 12 a", "--cset-uuid: \"12\" is not a UUID"),
        ("bcachectl", "invalidate a --bucket 9-5", "--bucket: the range 9-5 ends before it"),
        ("bcache-bench", "device a --writers 0", "--writers: \"0\" must be at least 1"),
        ("bcache-bench", "device a --seed x", "--seed: \"x\" is not a whole number"),
        ("bcache-bench", "device a --policy lrv", "--policy lrv: not one of lru, fifo, random"),
    ] {
        let output = run(program, arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{program} {arguments}: {}", output.status);
        ensure!(said.contains(sentence), "{program} {arguments}: {said}");
        ensure!(said.starts_with(&format!("{program}: ")), "{program} {arguments}: {said}");
        ensure!(said.lines().count() == 2 && said.contains("--help'"), "{said}");
        ensure!(output.stdout.is_empty(), "{program} {arguments} printed something");
    }
    for program in PROGRAMS {
        ensure!(run(program, "")?.status.code() == Some(2), "{program} alone");
    }
    Ok(())
}

#[test]
fn what_cannot_be_printed_is_a_failure() -> anyhow::Result<()> {
    for program in PROGRAMS {
        for arguments in ["--help", "--version", "completions bash"] {
            let ended = |stdout: Stdio| {
                let mut command = Command::new(binary(program)?);
                command.args(arguments.split(' ')).stdout(stdout).stderr(Stdio::piped());
                command.output().context("run it")
            };
            let full = ended(OpenOptions::new().write(true).open("/dev/full")?.into())?;
            let said = String::from_utf8_lossy(&full.stderr);
            ensure!(full.status.code() == Some(1), "{program} {arguments}: {}", full.status);
            ensure!(said.contains("No space left"), "{program} {arguments}: {said}");
            // A reader that has gone is none.
            let (reader, writer) = nix::unistd::pipe()?;
            drop(reader);
            let gone = ended(writer.into())?;
            ensure!(gone.status.success() && gone.stderr.is_empty(), "{program} {arguments}");
        }
    }
    Ok(())
}

/// How the program ended, with a reader of its output that takes `bytes` and goes away: at once, if none.
fn ended_unread(arguments: &[&OsStr], bytes: u64) -> anyhow::Result<(Option<i32>, String)> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let reader = (bytes > 0).then_some(File::from(reader));
    let mut command = Command::new(binary("bcachectl")?);
    let child = command.args(arguments).stdout(writer).stderr(Stdio::piped()).spawn()?;
    // It has the end for writing as well.
    drop(command);
    if let Some(reader) = reader {
        io::copy(&mut reader.take(bytes), &mut io::sink())?;
    }
    let output = child.wait_with_output()?;
    Ok((output.status.code(), String::from_utf8(output.stderr)?))
}

/// The status is what the answer was, whoever read it. A stream that was not read to its end is not whole.
#[test]
fn a_reader_that_goes_away_leaves_the_exit_status() -> anyhow::Result<()> {
    let fixture = Fixture::unpack("dirty-61")?;
    let (cache, backing) = (fixture.cache.as_os_str(), fixture.backing[0].as_os_str());
    let expect = |words: &str, devices: &[&OsStr], bytes: u64, status: i32| {
        let words = words.split(' ').map(OsStr::new);
        let arguments: Vec<&OsStr> = words.chain(devices.iter().copied()).collect();
        let (code, said) = ended_unread(&arguments, bytes)?;
        ensure!(code == Some(status), "{arguments:?}: {code:?}, {said}");
        ensure!(!said.contains("pipe"), "{arguments:?}: {said}");
        anyhow::Ok(())
    };
    let both = [cache, backing];
    expect("show --dirty", &[cache], 0, 4)?;
    expect("show --dirty --json", &[cache], 0, 4)?;
    expect("check", &both, 0, 0)?;
    expect("export -o -", &both, 100_000, 3)?;
    expect("image create -o -", &[cache], 0, 3)?;
    // Read to the end, they are whole.
    expect("export -o -", &both, u64::MAX, 0)?;
    expect("image create -o -", &[cache], u64::MAX, 0)?;
    let root = with_cache_set(&fixture.cache, |set| {
        Ok(set.geometry().bucket_to_sector(set.root.ptrs()[0].bucket(set.geometry())).bytes())
    })?;
    write_at(&fixture.cache, root, &[0; 4096])?;
    for format in ["check", "check --json"] {
        expect(format, &both, 0, 4)?;
    }
    expect("show", &[cache], 0, 1)?;
    expect("repair --dry-run", &both, 0, 4)
}

#[test]
fn versions_are_those_of_the_package() -> anyhow::Result<()> {
    for program in PROGRAMS {
        let output = run(program, "--version")?;
        let text = String::from_utf8(output.stdout)?;
        let start = format!("{program} {}", env!("CARGO_PKG_VERSION"));
        ensure!(text.starts_with(&start), "{text}");
        // A revision, where there is one, is in parentheses.
        let rest = text.trim_start_matches(&start).trim();
        ensure!(rest.is_empty() || rest.starts_with('(') && rest.ends_with(')'), "{text}");
    }
    Ok(())
}

/// What bash offers for the last of `words`.
fn completed(program: &str, words: &[&str]) -> anyhow::Result<Vec<String>> {
    let script = run(program, "completions bash")?.stdout;
    let function = format!("_{}", program.replace('-', "_"));
    let driver = format!(
        "{}\nCOMP_WORDS=({program} \"$@\"); COMP_CWORD=$#; {function}; \
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        String::from_utf8(script)?
    );
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", &driver, "bash"]).args(words).stdin(Stdio::null());
    let output = bash.output().context("run bash")?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

#[test]
fn bash_completes_in_every_command() -> anyhow::Result<()> {
    if unmet(&[Need::Program("bash", "bash")]).is_some() {
        return Ok(());
    }
    for (program, command) in
        [("bcachectl", bcachectl::cli::command()), ("bcache-bench", bcache_bench::cli::command())]
    {
        let offered = completed(program, &[""])?;
        ensure!(!offered.contains(&"man".to_owned()), "{program}: {offered:?}");
        let visible = command.get_subcommands().filter(|it| !it.is_hide_set());
        for subcommand in visible {
            let name = subcommand.get_name();
            ensure!(offered.iter().any(|it| it == name), "{program}: no {name} in {offered:?}");
            let options = completed(program, &[name, "-"])?;
            for argument in subcommand.get_arguments().filter(|it| !it.is_hide_set()) {
                let Some(long) = argument.get_long() else { continue };
                let long = format!("--{long}");
                ensure!(options.contains(&long), "{program} {name}: no {long} in {options:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn bash_completes_values() -> anyhow::Result<()> {
    if unmet(&[Need::Program("bash", "bash"), Need::Program("lsblk", "util-linux")]).is_some() {
        return Ok(());
    }
    let policies = ["lru", "fifo", "random"];
    ensure!(completed("bcache-bench", &["device", "--policy", ""])? == policies);
    ensure!(completed("bcache-bench", &["device", "--policy", "=", "f"])? == ["fifo"]);
    // Neither files nor anything else where nothing can be known.
    ensure!(completed("bcachectl", &["make", "--label", ""])?.is_empty());
    ensure!(completed("bcachectl", &["make", "--bucket", ""])?.is_empty());
    // Devices and files where devices are wanted.
    let scratch = Scratch::new()?;
    let image = scratch.sparse("with blank.img", 1 << 20)?;
    let image = image.to_str().context("a path")?;
    let start = image.trim_end_matches("blank.img");
    ensure!(completed("bcachectl", &["check", start])? == [image]);
    let listed = Command::new("lsblk").args(["-npro", "NAME"]).output()?;
    let devices = String::from_utf8(listed.stdout)?;
    let offered = completed("bcachectl", &["show", "--dirty", "/dev/"])?;
    for device in devices.lines() {
        ensure!(offered.iter().any(|it| it == device), "no {device} in {offered:?}");
    }
    Ok(())
}

/// A UUID, a path or a number is whole or absent on a terminal of any width; one of size 0 is not
/// narrow.
#[test]
fn nothing_is_broken_on_a_terminal_of_any_width() -> anyhow::Result<()> {
    if unmet(&[Need::Terminals]).is_some() {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let cache = scratch.sparse("cache.img", 64 << 20)?;
    let backing = scratch.sparse("backing.img", 64 << 20)?;
    tool::make(["-C".as_ref(), cache.as_os_str(), "-B".as_ref(), backing.as_os_str()])?;
    let plain =
        Command::new(binary("bcachectl")?).arg("show").arg(&cache).arg(&backing).output()?;
    let plain = String::from_utf8(plain.stdout)?;
    ensure!(plain.lines().all(|line| line.trim_end() == line), "trailing blanks:\n{plain}");
    let all: Vec<&str> = plain.split_whitespace().collect();
    let is_uuid = |word: &&&str| word.len() == 36 && word.matches('-').count() == 4;
    let uuids: Vec<&&str> = all.iter().filter(is_uuid).collect();
    ensure!(!uuids.is_empty(), "{plain}");
    for columns in [0, 20, 37, 40, 64, 80, 100, 132, 200, 250] {
        let mut command = Command::new(binary("bcachectl")?);
        command.arg("show").arg(&cache).arg(&backing);
        let (shown, status) = on_terminal(command, columns)?;
        ensure!(status.success(), "{status}");
        for word in shown.split_whitespace() {
            let piece = word.trim_end_matches([',', ')', '.', ':']);
            let part = uuids.iter().any(|uuid| piece.len() > 8 && uuid.contains(piece));
            ensure!(!part || uuids.iter().any(|uuid| **uuid == piece), "{columns}: {shown}");
            ensure!(
                !piece.starts_with('/') || all.iter().any(|it| it.contains(piece)),
                "{columns}: {word} in\n{shown}"
            );
        }
        if columns == 0 {
            ensure!(!shown.contains("too narrow"), "{shown}");
        }
    }
    Ok(())
}

/// Colours are for terminals, and only without `NO_COLOR`.
#[test]
fn plain_unless_on_a_terminal() -> anyhow::Result<()> {
    if unmet(&[Need::Terminals]).is_some() {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let cache = scratch.sparse("cache.img", 64 << 20)?;
    tool::make(["-C".as_ref(), cache.as_os_str()])?;
    let shown = |columns: u16, no_color: Option<&str>| {
        let terminal = Terminal::new(columns)?;
        let mut command = tool::bcachectl()?;
        command.arg("show").arg(&cache).env("TERM", "xterm").stdout(terminal.stdio()?);
        match no_color {
            Some(value) => command.env("NO_COLOR", value),
            None => command.env_remove("NO_COLOR"),
        };
        let (shown, status) = terminal.watch(command)?;
        ensure!(status.success(), "{status}: {shown}");
        Ok(shown)
    };
    let plain = String::from_utf8(tool::bcachectl()?.arg("show").arg(&cache).output()?.stdout)?;
    ensure!(!plain.contains('\x1b') && plain.is_ascii(), "{plain}");
    let coloured = shown(80, None)?;
    ensure!(coloured.contains("\x1b[") && coloured.contains("accepts it"), "{coloured:?}");
    ensure!(shown(80, Some(""))?.contains("\x1b["), "an empty NO_COLOR is none");
    let uncoloured = shown(80, Some("1"))?;
    ensure!(!uncoloured.contains("\x1b[") && uncoloured.contains("accepts it"), "{uncoloured:?}");
    // A serial console does not tell its width.
    ensure!(shown(0, None)?.contains("accepts it"), "squeezed");
    Ok(())
}
