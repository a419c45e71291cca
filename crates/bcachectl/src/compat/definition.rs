//! What the old commands take: one definition yields the parser, the man pages and the completions.

use clap::{Arg, ArgAction, Command, ValueHint};

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn value(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value_name).help(help)
}

fn device(help: &'static str) -> Arg {
    Arg::new("device").value_name("DEV").value_hint(ValueHint::FilePath).help(help)
}

fn command(name: &'static str, about: &'static str) -> Command {
    Command::new(name).version(env!("CARGO_PKG_VERSION")).about(about).disable_help_flag(true)
}

/// All of them.
pub fn commands() -> Vec<Command> {
    vec![make_bcache(), super_show(), probe(), register(), export_cached()]
}

fn make_bcache() -> Command {
    command("make-bcache", "Format cache and backing devices of bcache")
        .arg(flag("cache", "Format the devices that follow as cache devices").short('C'))
        .arg(flag("bdev", "Format the devices that follow as backing devices").short('B'))
        .arg(value("bucket", "SIZE", "Bucket size, a power of two [default: 512k]").short('b'))
        .arg(
            value(
                "block",
                "SIZE",
                "Block size, a power of two [default: the largest logical block of the devices, \
                 4k for files]",
            )
            .short('w'),
        )
        .arg(flag("writeback", "Start backing devices in writeback mode"))
        .arg(flag("wipe-bcache", "Overwrite bcache superblocks"))
        .arg(flag("discard", "Discard cache devices now, and their buckets as they are reused"))
        .arg(
            value("cache_replacement_policy", "POLICY", "lru, fifo or random [default: lru]")
                .alias("cache-replacement-policy"),
        )
        .arg(
            value(
                "data_offset",
                "SECTORS",
                "Where the data of backing devices starts, in sectors; a unit behind the number \
                 is ignored [default: 16]",
            )
            .short('o')
            .alias("data-offset"),
        )
        .arg(value("cset-uuid", "UUID", "UUID of the cache set [default: a new one]"))
        .arg(value("label", "LABEL", "Label of the devices, at most 31 bytes").short('l'))
        .arg(flag("force", "Overwrite bcache superblocks where no dirty data can be lost"))
        .arg(Arg::new("U").short('U').action(ArgAction::SetTrue).hide(true))
        .arg(flag("help", "Print a summary of the options").short('h'))
        .arg(device("Block devices or image files").num_args(0..))
}

fn super_show() -> Command {
    command("bcache-super-show", "Print the superblock of a bcache device")
        .arg(
            Arg::new("force")
                .short('f')
                .action(ArgAction::SetTrue)
                .help("Go on where the checksum is wrong"),
        )
        .arg(device("A block device or an image file"))
}

fn probe() -> Command {
    command("probe-bcache", "Tell whether devices are bcache devices")
        .arg(
            Arg::new("output")
                .short('o')
                .value_name("FORMAT")
                .help("Format of the output: udev for one property a line"),
        )
        .arg(device("Block devices or image files").num_args(0..))
}

fn register() -> Command {
    command("bcache-register", "Register a bcache device with the kernel")
        .arg(device("A cache or backing device"))
}

fn export_cached() -> Command {
    command("bcache-export-cached", "Print what udev links a bcache volume by")
        .arg(device("A volume, such as /dev/bcache0"))
}
