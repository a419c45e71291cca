//! What every command prints for people: piped, and on terminals of 80 and of 200 columns. A change is
//! looked at, and taken over with `cargo build --workspace --bins`, and then
//! `INSTA_UPDATE=always cargo test --workspace --test snapshots`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use bcache_tests::cache::{bucket_byte, with_cache_set};
use bcache_tests::image::write_at;
use bcache_tests::need::unmet;
use bcache_tests::terminal::on_terminal;
use bcache_tests::{Fixture, Need, Scratch, binary, workspace_root};

/// Names of the snapshots, and the commands. What they work on is made by [`prepare`].
const COMMANDS: &[(&str, &str)] = &[
    ("show_dirty_pair", "bcachectl show dirty.cache dirty.0"),
    ("show_clean_backing", "bcachectl show clean.0"),
    ("show_verbose", "bcachectl show -v dirty.cache"),
    ("show_superblock", "bcachectl show --superblock dirty.cache dirty.0"),
    ("show_dirty", "bcachectl show --dirty dirty.cache dirty.0"),
    ("show_several", "bcachectl show several.cache several.0 several.1"),
    ("show_usage", "bcachectl show --usage clean.cache"),
    ("show_uuids", "bcachectl show --uuids several.cache"),
    ("show_journal", "bcachectl show --journal --limit 3 dirty.cache"),
    ("show_btree", "bcachectl show --btree --limit 3 dirty.cache"),
    ("show_keys", "bcachectl show --keys --limit 3 dirty.cache"),
    ("show_prios", "bcachectl show --prios --limit 5 dirty.cache"),
    ("show_lookup", "bcachectl show --lookup 0:16+2048 --limit 5 dirty.cache"),
    ("show_broken", "bcachectl show broken.cache"),
    ("show_nothing", "bcachectl show blank.img"),
    ("check_sound", "bcachectl check dirty.cache dirty.0"),
    ("check_broken", "bcachectl check broken.cache"),
    ("check_settled", "bcachectl check broken.cache clean.0"),
    ("check_prios", "bcachectl check prios.cache dirty.0"),
    ("check_backing", "bcachectl check dirty.0"),
    ("check_head", "bcachectl check head.cache"),
    ("invalidate", "bcachectl invalidate -n --coldest 2 clean.cache"),
    ("invalidate_refused", "bcachectl invalidate -n --bucket 1-9 dirty.cache"),
    ("writeback", "bcachectl writeback -n dirty.cache dirty.0"),
    ("writeback_refused", "bcachectl writeback -n dirty.cache clean.0"),
    ("export_refused", "bcachectl export dirty.cache dirty.0 --volume 7 -o never"),
    ("serve_refused", "bcachectl serve head.cache --volume 0 --socket never"),
    ("repair", "bcachectl repair -n prios.cache dirty.0"),
    ("repair_nothing", "bcachectl repair -n clean.cache"),
    ("make", "bcachectl make -n -C blank.img"),
    ("make_refused", "bcachectl make -C dirty.cache"),
    ("make_usage", "bcachectl make --bucket 3 -C blank.img"),
    ("status", "bcachectl status --recorded RECORDED/dirty-6.12.sysfs"),
    ("status_why", "bcachectl status --why --recorded RECORDED/dirty-6.12.sysfs"),
    ("status_lost", "bcachectl status --recorded RECORDED/cache-lost-6.12.sysfs"),
    ("super_show", "bcache-super-show dirty.cache"),
    ("bench_size", "bcache-bench size 100G --bucket 512k"),
    (
        "bench_replay",
        "bcache-bench replay --cache-size 1G,2G --bucket 512k TRACES/dev-server.iolog.zst",
    ),
    ("no_command", "bcachectl"),
    ("unknown_option", "bcachectl show --dirt x"),
];

/// The images that the commands name, in a folder of their own.
fn prepare() -> anyhow::Result<Scratch> {
    let scratch = Scratch::new()?;
    for (fixture, name) in [("dirty-61", "dirty"), ("clean-612", "clean"), ("multi-612", "several")]
    {
        let images = Fixture::unpack(fixture)?;
        std::fs::copy(&images.cache, scratch.path(&format!("{name}.cache")))?;
        for (index, backing) in images.backing.iter().enumerate() {
            std::fs::copy(backing, scratch.path(&format!("{name}.{index}")))?;
        }
    }
    scratch.sparse("blank.img", 64 << 20)?;
    let broken = scratch.copy("broken.cache", &scratch.path("clean.cache"))?;
    let root = with_cache_set(&broken, |set| Ok(set.root.ptrs().first().map(|it| it.offset())))?;
    write_at(&broken, root.context("a root")?.bytes(), &[0; 4096])?;
    let prios = scratch.copy("prios.cache", &scratch.path("dirty.cache"))?;
    let bucket = with_cache_set(&prios, |set| Ok(set.prios.buckets.first().map(|it| it.0)))?;
    let at = bucket_byte(&prios, bucket.context("a prio bucket")?)?;
    write_at(&prios, at, &vec![0; 65536])?;
    let head = scratch.copy("head.cache", &scratch.path("dirty.cache"))?;
    std::fs::OpenOptions::new().write(true).open(head)?.set_len(8192)?;
    Ok(scratch)
}

fn command(line: &str, folder: &Path) -> anyhow::Result<Command> {
    let mut words = line.split_whitespace();
    let name = words.next().context("a command")?;
    let fixtures = workspace_root().join("tests/fixtures");
    let mut command = match name {
        "bcachectl" | "bcache-bench" => Command::new(binary(name)?),
        _ => {
            // The old names are ours by the name that we are called by.
            let link = folder.join(name);
            if !link.exists() {
                std::os::unix::fs::symlink(binary("bcachectl")?, &link)?;
            }
            Command::new(link)
        }
    };
    for word in words {
        let word = word
            .replace("RECORDED", &fixtures.join("running").display().to_string())
            .replace("TRACES", &fixtures.join("traces").display().to_string());
        command.arg(word);
    }
    command.current_dir(folder).stdin(Stdio::null()).env("NO_COLOR", "1");
    Ok(command)
}

/// UUIDs that are new each time, and the workspace's path, replaced.
fn settled(text: &str, line: &str) -> String {
    let mut text = text.replace(&workspace_root().display().to_string(), "TOP");
    if line.starts_with("bcachectl make") {
        let is_uuid =
            |word: &str| word.len() == 36 && word.bytes().filter(|byte| *byte == b'-').count() == 4;
        let found: Vec<String> =
            text.split_whitespace().filter(|word| is_uuid(word)).map(str::to_owned).collect();
        for uuid in found {
            text = text.replace(&uuid, "UUUUUUUU-UUUU-UUUU-UUUU-UUUUUUUUUUUU");
        }
    }
    text
}

/// A command's output in its three forms; a terminal's is left out where it is what is piped.
fn printed(line: &str, folder: &Path) -> anyhow::Result<String> {
    let output = command(line, folder)?.output()?;
    let piped = settled(&String::from_utf8(output.stdout)?, line);
    let errors = settled(&String::from_utf8(output.stderr)?, line);
    let status = output.status.code().context("ended by a signal")?;
    let mut text = format!("$ {line}\n{piped}");
    if !errors.is_empty() {
        write!(text, "-- standard error\n{errors}")?;
    }
    writeln!(text, "-- exit status {status}")?;
    for columns in [80, 200] {
        let (shown, status) = on_terminal(command(line, folder)?, columns)?;
        ensure!(status.code() == output.status.code(), "{line}: {status} on a terminal");
        let shown = settled(&shown, line);
        if shown == piped {
            writeln!(text, "-- {columns} columns: the same")?;
        } else {
            write!(text, "-- {columns} columns\n{shown}")?;
        }
    }
    Ok(text)
}

#[test]
fn what_people_see_is_what_was_agreed() -> anyhow::Result<()> {
    if unmet(&[Need::Terminals]).is_some() {
        return Ok(());
    }
    let scratch = prepare()?;
    let folder = scratch.path("");
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for (name, line) in COMMANDS {
            let text = printed(line, &folder).with_context(|| (*line).to_owned())?;
            insta::assert_snapshot!(*name, text);
        }
        Ok(())
    })
}
