//! Completions for shells: commands, options, values, and devices where devices are wanted.
//!
//! Those for zsh and fish are clap_complete's. Its script for bash stops after the command where the
//! program's name has a hyphen, and offers files for every value, so that one is made here.

use std::fmt::Write as _;

use clap::{Arg, Command, ValueHint};
use clap_complete::Shell;

/// Names of values that are block devices.
const DEVICES: [&str; 4] = ["DEV", "DEVICE", "CACHE", "BACKING"];

/// What completes a value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// One of these.
    Words(Vec<String>),
    /// Block devices, and files, which may be images.
    Devices,
    Files,
    Folders,
    /// Nothing that a shell could know.
    Nothing,
}

/// The script for `shell`. Hidden commands and options are not completed.
pub fn script(command: &Command, name: &str, shell: Shell) -> Vec<u8> {
    let mut visible = visible(command);
    if shell == Shell::Bash {
        visible.build();
        return bash(&visible, name).into_bytes();
    }
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible, name, &mut script);
    script
}

/// `command` without what is hidden; values that are no paths complete nothing.
fn visible(command: &Command) -> Command {
    let visible_arguments = command.get_arguments().filter(|it| !it.is_hide_set());
    let arguments = visible_arguments.cloned().map(|it| match it.get_value_hint() {
        ValueHint::Unknown if takes_value(&it) => it.value_hint(ValueHint::Other),
        _ => it,
    });
    let mut shown = Command::new(command.get_name().to_owned())
        .args(arguments)
        .groups(command.get_groups().cloned())
        .disable_help_flag(command.is_disable_help_flag_set())
        .disable_version_flag(command.is_disable_version_flag_set())
        .disable_help_subcommand(true)
        .subcommands(command.get_subcommands().filter(|it| !it.is_hide_set()).map(visible));
    if let Some(version) = command.get_version() {
        shown = shown.version(version.to_owned());
    }
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    shown
}

/// Whether a value follows: options such as `--cache` of `make` say of what comes after them what it is.
fn takes_value(argument: &Arg) -> bool {
    let count = argument.get_num_args();
    argument.get_action().takes_values() && count.is_none_or(|count| count.max_values() > 0)
}

fn source(argument: &Arg) -> Source {
    let words = argument.get_possible_values();
    if !words.is_empty() {
        let visible = words.iter().filter(|word| !word.is_hide_set());
        return Source::Words(visible.map(|word| word.get_name().to_owned()).collect());
    }
    let is_device = || {
        let names = argument.get_value_names().unwrap_or_default();
        names.iter().any(|name| DEVICES.contains(&name.as_str()))
    };
    let is_folder = || {
        let names = argument.get_value_names().unwrap_or_default();
        names.iter().any(|name| matches!(name.as_str(), "FOLDER" | "DIR"))
    };
    match argument.get_value_hint() {
        ValueHint::AnyPath | ValueHint::FilePath if is_device() => Source::Devices,
        ValueHint::AnyPath if is_folder() => Source::Folders,
        ValueHint::AnyPath | ValueHint::FilePath => Source::Files,
        ValueHint::DirPath => Source::Folders,
        _ => Source::Nothing,
    }
}

/// Lines that complete from `source`.
fn reply(source: &Source, function: &str) -> String {
    let from =
        |generator: &str| format!("mapfile -t COMPREPLY < <(compgen {generator} -- \"$cur\")");
    match source {
        Source::Words(words) => from(&format!("-W '{}'", words.join(" "))),
        Source::Devices => format!("{function}_devices"),
        Source::Files => format!("compopt -o filenames; {}", from("-f")),
        Source::Folders => format!("compopt -o filenames; {}", from("-d")),
        Source::Nothing => "return".to_owned(),
    }
}

fn bash(command: &Command, name: &str) -> String {
    let function = format!("_{}", name.replace('-', "_"));
    let mut steps = String::new();
    let mut places = String::new();
    describe(command, "", &function, &mut steps, &mut places);
    format!(
        "\
# bash completion for {name}

{function}_devices() {{
    local devices
    devices=$(lsblk --noheadings --paths --raw --output NAME 2>/dev/null)
    compopt -o filenames
    mapfile -t COMPREPLY < <(compgen -W \"$devices\" -- \"$cur\"; compgen -f -- \"$cur\")
}}

{function}() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}} place= i
    COMPREPLY=()
    # --option=value is three words to bash.
    if [[ $prev == = ]]; then
        prev=${{COMP_WORDS[COMP_CWORD - 2]}}
    elif [[ $cur == = ]]; then
        cur=
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case \"$place ${{COMP_WORDS[i]}}\" in
{steps}        esac
    done
    case $place in
{places}    esac
}}

complete -F {function} {name}
"
    )
}

/// Adds how a command is recognised among the words, and what is completed there.
fn describe(
    command: &Command,
    place: &str,
    function: &str,
    steps: &mut String,
    places: &mut String,
) {
    let mut options = String::new();
    let mut values = String::new();
    let mut words: Vec<String> = Vec::new();
    let mut positional = Source::Nothing;
    for argument in command.get_arguments() {
        if argument.is_positional() {
            positional = match (positional, source(argument)) {
                (Source::Nothing, other) => other,
                (Source::Devices, _) | (_, Source::Devices) => Source::Devices,
                (first, _) => first,
            };
            continue;
        }
        let mut spellings: Vec<String> =
            argument.get_short().map(|short| format!("-{short}")).into_iter().collect();
        spellings.extend(argument.get_long().map(|long| format!("--{long}")));
        if takes_value(argument) {
            let reply = reply(&source(argument), function);
            // Writing to a string cannot fail.
            let _ = writeln!(values, "            {}) {reply}; return ;;", spellings.join(" | "));
        }
        for spelling in spellings {
            let _ = write!(options, "{}{spelling}", if options.is_empty() { "" } else { " " });
        }
    }
    for subcommand in command.get_subcommands() {
        let name = subcommand.get_name();
        let below = format!("{place} {name}");
        words.push(name.to_owned());
        let _ = writeln!(steps, "            '{below}') place='{below}' ;;");
        describe(subcommand, &below, function, steps, places);
    }
    if !words.is_empty() {
        positional = Source::Words(words);
    }
    let _ = write!(
        places,
        "        '{place}')
            case $prev in
{values}            esac
            if [[ $cur == -* ]]; then
                mapfile -t COMPREPLY < <(compgen -W '{options}' -- \"$cur\")
            else
                {}
            fi
            ;;
",
        reply(&positional, function)
    );
}
