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

/// A command without options: not all of bcache-tools have `--help`, and none has `--version`.
fn command(name: &'static str, about: &'static str) -> Command {
    Command::new(name)
        .version(env!("CARGO_PKG_VERSION"))
        .about(about)
        .disable_help_flag(true)
        .disable_version_flag(true)
}

/// All of them.
pub fn commands() -> Vec<Command> {
    vec![make_bcache(), super_show(), bcache(), status(), probe(), register(), export_cached()]
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

fn bcache() -> Command {
    let subcommand = |name: &'static str, about: &'static str| {
        Command::new(name).about(about).disable_help_flag(true)
    };
    let backing = || device("A backing device");
    command("bcache", "Show and control bcache devices")
        .disable_help_subcommand(true)
        .subcommand(subcommand("make", "Format devices; takes the options of make-bcache(8)"))
        .subcommand(
            subcommand("show", "List bcache devices")
                .arg(flag("more", "Print UUIDs, too").short('m'))
                .arg(value("device", "DEV", "Print the superblock of one device").short('d'))
                .arg(flag("help", "Print a summary").short('h')),
        )
        .subcommand(subcommand("tree", "List running caches and what is attached to them"))
        .subcommand(subcommand("register", "Register a device").arg(device("A device")))
        .subcommand(
            subcommand(
                "unregister",
                "Stop a backing device, or flush and detach all of a cache's and stop it",
            )
            .arg(device("A device")),
        )
        .subcommand(
            subcommand("attach", "Attach a backing device to a cache set")
                .arg(Arg::new("set").value_name("SET").help("A set's UUID or its cache device"))
                .arg(backing()),
        )
        .subcommand(subcommand("detach", "Flush and detach a backing device").arg(backing()))
        .subcommand(
            subcommand("set-cachemode", "Set how a backing device is cached").arg(backing()).arg(
                Arg::new("mode")
                    .value_name("MODE")
                    .help("writethrough, writeback, writearound or none"),
            ),
        )
        .subcommand(
            subcommand("set-label", "Label a backing device")
                .arg(backing())
                .arg(Arg::new("label").value_name("LABEL").help("At most 31 bytes")),
        )
        .subcommand(subcommand("version", "Print the version of bcache-tools that this stands for"))
}

fn status() -> Command {
    command("bcache-status", "Print statistics and settings of running sets")
        .arg(flag("help", "Show this help message and exit"))
        .arg(flag("five-minute", "Print the last five minutes of stats.").short('f'))
        .arg(flag("hour", "Print the last hour of stats.").short('h'))
        .arg(flag("day", "Print the last day of stats.").short('d'))
        .arg(flag("total", "Print total stats.").short('t'))
        .arg(flag("all", "Print all stats.").short('a'))
        .arg(flag("reset-stats", "Reset stats after printing them.").short('r'))
        .arg(flag("sub-status", "Print subdevice status.").short('s'))
        .arg(flag("gc", "Invoke GC before printing status.").short('g'))
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
