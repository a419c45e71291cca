//! What `make` says of data that exists nowhere else, and what it takes to lose it: on images that
//! stock kernels wrote, whole and damaged.

use bcache_core::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES, Superblock};
use bcache_tests::fixture::Fixture;
use bcache_tests::image::{Contents, write_at};
use bcache_tests::terminal::Terminal;
use bcache_tests::{Scratch, tool};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Output, Stdio};

fn make(arguments: &[&str], device: &Path) -> Output {
    let mut command = tool::bcachectl().unwrap();
    command.arg("make").args(arguments).arg(device).stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn superblock(image: &Path) -> Superblock {
    let mut bytes = vec![0; SB_BYTES];
    File::open(image).unwrap().read_exact_at(&mut bytes, SB_OFFSET_BYTES).unwrap();
    Superblock::from_bytes(&bytes).unwrap()
}

/// The dirty sectors of the set, as `show` counts them.
fn dirty_sectors(image: &Path) -> u64 {
    let mut command = tool::bcachectl().unwrap();
    let output = command.args(["show", "--json", "--dirty"]).arg(image).output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    shown["devices"][0]["dirty"]["sectors"].as_u64().unwrap()
}

/// Refuses it with each of the words, and leaves the image as it is.
fn refuse(arguments: &[&str], image: &Path, words: &[&str]) {
    let before = Contents::of(image).unwrap();
    let output = make(arguments, image);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?}: no {word:?} in {said}");
    }
    assert!(Contents::of(image).unwrap() == before, "{arguments:?} wrote");
}

#[test]
fn dirty_data_is_told_and_takes_more_than_wipe_bcache() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let cache = &fixture.cache;
    let amount = bcache_core::units::format_bytes(dirty_sectors(cache) * 512);
    let volume = format!("{amount} of dirty data of volume 0 (");
    let set = superblock(cache).set_uuid().to_string();
    let or_set = format!("add --lose-dirty-data (or --lose-set {set})\n");
    refuse(
        &["-C"],
        cache,
        &[&volume, "exists nowhere else", "--wipe-bcache and --lose-dirty-data"],
    );
    for options in [&["--wipe-bcache", "-C"] as &[_], &["--wipe-bcache", "--yes", "--force", "-B"]]
    {
        refuse(options, cache, &[&volume, &or_set]);
    }
    // Another set's UUID is none.
    let other = "11111111-2222-3333-4444-555555555555";
    refuse(&["--wipe-bcache", "--lose-set", other, "-C"], cache, &[&volume, &or_set]);
    // The right one alone is not enough either.
    refuse(&["--lose-set", &set, "-C"], cache, &["add --wipe-bcache\n"]);
    let output = make(&["--wipe-bcache", "--lose-set", &set, "-n", "-C"], cache);
    assert!(output.status.success(), "{}", said(&output));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains(&volume), "{printed}");
    let output = make(&["--wipe-bcache", "--lose-set", &set, "-C"], cache);
    assert!(output.status.success(), "{}", said(&output));
    assert!(!superblock(cache).sync());
}

/// A set without dirty data needs no more than it did.
#[test]
fn a_clean_cache_is_overwritten_as_before() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    assert_eq!(dirty_sectors(&fixture.cache), 0);
    refuse(&["-C"], &fixture.cache, &["add --wipe-bcache\n"]);
    let output = make(&["--wipe-bcache", "-C"], &fixture.cache);
    assert!(output.status.success(), "{}", said(&output));
}

/// Volumes without a backing device are lost as a whole.
#[test]
fn a_flash_only_volume_is_told() {
    let fixture = Fixture::unpack("multi-612").unwrap();
    let words = &["flash-only volume", "--lose-dirty-data"];
    refuse(&["--wipe-bcache", "-C"], &fixture.cache, words);
}

/// What cannot be told is not taken for nothing.
#[test]
fn what_cannot_be_told_takes_the_same() {
    type Damage = fn(&Path);
    let unknown = "it cannot be told whether it has data that exists nowhere else";
    let damages: [(&str, Damage, &[&str]); 3] = [
        (
            "dirty-61",
            |cache| write_at(cache, 4096 + 24, &[0; 16]).unwrap(),
            &["its magic wiped", "10.9 MiB of dirty data"],
        ),
        (
            "dirty-61",
            |cache| {
                // In two places, so that the checksum does not tell what it was.
                write_at(cache, 4096 + 104, &[0]).unwrap();
                write_at(cache, 4096 + 80, &[1]).unwrap();
            },
            &["at least 10.9 MiB of dirty data"],
        ),
        // The journal, where the root of the btree is named.
        (
            "clean-612",
            |cache| {
                let sb = superblock(cache);
                let bucket = sb.bucket_size().bytes();
                for journal in sb.journal_buckets() {
                    let len = usize::try_from(bucket).unwrap();
                    write_at(cache, journal * bucket, &vec![0x5a; len]).unwrap();
                }
            },
            &[unknown],
        ),
    ];
    for (name, damage, words) in damages {
        let fixture = Fixture::unpack(name).unwrap();
        damage(&fixture.cache);
        let words = [words, &["add --lose-dirty-data"]].concat();
        refuse(&["--wipe-bcache", "-C"], &fixture.cache, &words);
        refuse(&["--wipe-bcache", "--force", "--yes", "-B"], &fixture.cache, &words);
        let output = make(&["--wipe-bcache", "--lose-dirty-data", "-n", "-C"], &fixture.cache);
        assert!(output.status.success(), "{}", said(&output));
    }
    // Whose magic alone is gone is read as it was: nothing is lost with this one.
    let fixture = Fixture::unpack("clean-612").unwrap();
    write_at(&fixture.cache, 4096 + 24, &[0xff; 16]).unwrap();
    refuse(&["-C"], &fixture.cache, &["its magic wiped", "add --wipe-bcache\n"]);
}

/// A backing device that needs its cache is the owner of what that holds.
#[test]
fn the_owner_of_dirty_data_is_not_overwritten_by_the_way() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let words = &["its cache may have dirty data of it", "add --lose-dirty-data"];
    refuse(&["--wipe-bcache", "-B"], &fixture.backing[0], words);
    let fixture = Fixture::unpack("clean-612").unwrap();
    let output = make(&["--wipe-bcache", "-B"], &fixture.backing[0]);
    assert!(output.status.success(), "{}", said(&output));
}

/// On a terminal it asks, and takes anything but yes for a no.
#[test]
fn on_a_terminal_it_asks() {
    for (answer, options, written) in [
        ("n\n", "", false),
        ("\n", "", false),
        ("maybe\n", "", false),
        // End of file, as Ctrl-D sends it.
        ("\x04", "", false),
        ("y\n", "", true),
        ("yes\n", "", true),
        ("\x04", "--yes", true),
    ] {
        let scratch = Scratch::new().unwrap();
        let image = scratch.sparse("image", 40 << 20).unwrap();
        // Swap of version 1, with its last page and a label.
        for (offset, bytes) in [
            (1024, &[1, 0, 0, 0, 255, 9][..]),
            (1036, &[7; 16]),
            (1052, b"my-swap"),
            (4086, b"SWAPSPACE2"),
        ] {
            write_at(&image, offset, bytes).unwrap();
        }
        let before = Contents::of(&image).unwrap();
        let terminal = Terminal::new(80).unwrap();
        terminal.type_keys(answer).unwrap();
        let mut command = tool::bcachectl().unwrap();
        command.args(["make", "--force", "-B"]).arg(&image).args(options.split_whitespace());
        let output = command.stdin(terminal.stdio().unwrap()).output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.success(), written, "{answer:?}: {said}");
        assert_eq!(said.contains("my-swap"), options.is_empty(), "{answer:?}: {said}");
        assert_eq!(Contents::of(&image).unwrap() != before, written, "{answer:?}: {said}");
    }
}

/// On a terminal the UUID must be typed.
#[test]
fn on_a_terminal_the_uuid_is_typed() {
    let fixture = Fixture::unpack("dirty-61").unwrap();
    let set = superblock(&fixture.cache).set_uuid().to_string();
    let start = &set[..8];
    for (answers, written) in [
        ("y\n".to_owned(), false),
        ("y\ny\n".to_owned(), false),
        (format!("{}\ny\n", &set[..7]), false),
        (format!("{start}\nn\n"), false),
        (format!("{start}\ny\n"), true),
    ] {
        let before = superblock(&fixture.cache);
        let terminal = Terminal::new(80).unwrap();
        terminal.type_keys(&answers).unwrap();
        let mut command = tool::bcachectl().unwrap();
        command.args(["make", "--wipe-bcache", "-C"]).arg(&fixture.cache);
        command.stdin(terminal.stdio().unwrap());
        let output = command.output().unwrap();
        let said = said(&output);
        assert!(said.contains("of dirty data of volume 0") && said.contains(&set), "{said}");
        assert_eq!(output.status.success(), written, "{answers:?}: {said}");
        assert_eq!(superblock(&fixture.cache) != before, written, "{answers:?}");
    }
}

/// Every device is named in the question, also one on which nothing was found.
#[test]
fn the_question_names_every_device() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    let blank = fixture.cache.with_file_name("blank");
    File::create(&blank).unwrap().set_len(64 << 20).unwrap();
    let terminal = Terminal::new(80).unwrap();
    terminal.type_keys("n\n").unwrap();
    let mut command = tool::bcachectl().unwrap();
    command.args(["make", "--wipe-bcache", "-C"]).arg(&fixture.cache).arg("-B").arg(&blank);
    command.stdin(terminal.stdio().unwrap());
    let said = said(&command.output().unwrap());
    let nothing = format!(
        "{} (64 MiB) will be formatted as a bcache backing device. Nothing was found on it.",
        blank.display()
    );
    assert!(said.contains(&nothing), "{said}");
    let cache = format!("{} (", fixture.cache.display());
    assert!(said.contains(&cache) && said.contains("This destroys:"), "{said}");
}
