//! What is wrong with a command line, in our own words.

use std::error::Error as _;
use std::num::{IntErrorKind, ParseIntError};

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// One sentence for what the parser found.
pub fn message(error: &clap::Error) -> String {
    let text = |kind| error.get(kind).map(texts).unwrap_or_default();
    let argument = bare(&text(ContextKind::InvalidArg).join(" "));
    let value = text(ContextKind::InvalidValue).join(" ");
    let hint =
        [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue]
            .into_iter()
            .find_map(|kind| text(kind).into_iter().next())
            .map_or_else(String::new, |word| format!("; did you mean {word}?"));
    match error.kind() {
        ErrorKind::InvalidValue if value.is_empty() => format!("{argument} needs a value"),
        ErrorKind::InvalidValue => {
            let valid = text(ContextKind::ValidValue).join(", ");
            format!("{argument} {value}: not one of {valid}{hint}")
        }
        ErrorKind::ValueValidation => invalid(&argument, &value, error),
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            format!("there is no option {argument}{hint}")
        }
        ErrorKind::UnknownArgument => format!("unexpected argument {argument}{hint}"),
        ErrorKind::InvalidSubcommand => {
            let command = text(ContextKind::InvalidSubcommand).join(" ");
            format!("there is no command {command}{hint}")
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = text(ContextKind::InvalidArg);
            format!("missing: {}", missing.join(", "))
        }
        ErrorKind::MissingSubcommand => "say what to do".to_owned(),
        ErrorKind::ArgumentConflict => {
            let prior: Vec<String> =
                text(ContextKind::PriorArg).iter().map(|it| bare(it)).collect();
            if prior.is_empty() || prior.contains(&argument) {
                format!("{argument} is given twice")
            } else {
                format!("{argument} cannot be used with {}", prior.join(" and "))
            }
        }
        ErrorKind::TooManyValues | ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues => {
            format!("{argument}: the wrong number of values")
        }
        ErrorKind::InvalidUtf8 => "an argument that has to be text is not UTF-8".to_owned(),
        _ => {
            let said = error.to_string();
            let line = said.lines().next().unwrap_or_default();
            line.trim_start_matches("error: ").to_owned()
        }
    }
}

fn texts(value: &ContextValue) -> Vec<String> {
    match value {
        ContextValue::String(text) => vec![text.clone()],
        ContextValue::Strings(texts) => texts.clone(),
        ContextValue::StyledStr(text) => vec![text.to_string()],
        ContextValue::StyledStrs(texts) => texts.iter().map(ToString::to_string).collect(),
        ContextValue::Number(number) => vec![number.to_string()],
        _ => Vec::new(),
    }
}

/// An option without the name of its value: `--bucket <SIZE>` is `--bucket`.
fn bare(argument: &str) -> String {
    match argument.split_once(' ') {
        Some((option, _)) if option.starts_with('-') => option.to_owned(),
        _ => argument.to_owned(),
    }
}

/// What a value's own parser says of it.
fn invalid(argument: &str, value: &str, error: &clap::Error) -> String {
    let Some(source) = error.source() else { return format!("{argument}: invalid {value}") };
    if let Some(number) = source.downcast_ref::<ParseIntError>() {
        let what = match number.kind() {
            IntErrorKind::Zero => "must be at least 1",
            IntErrorKind::PosOverflow => "is too large",
            IntErrorKind::NegOverflow => "is too small",
            _ => "is not a whole number",
        };
        return format!("{argument}: \"{value}\" {what}");
    }
    if source.is::<uuid::Error>() {
        return format!("{argument}: \"{value}\" is not a UUID");
    }
    let said = source.to_string();
    if said.contains(value) {
        format!("{argument}: {said}")
    } else {
        format!("{argument} {value}: {said}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, ArgAction, Command, value_parser};
    use std::num::NonZeroU32;

    fn command() -> Command {
        let run = Command::new("run")
            .arg(Arg::new("dev").required(true).value_name("DEV"))
            .arg(
                Arg::new("n")
                    .long("threads")
                    .value_name("N")
                    .value_parser(value_parser!(NonZeroU32)),
            )
            .arg(Arg::new("seed").long("seed").value_parser(value_parser!(u8)))
            .arg(Arg::new("uuid").long("uuid").value_parser(value_parser!(uuid::Uuid)))
            .arg(Arg::new("mode").long("mode").value_parser(["lru", "fifo"]))
            .arg(Arg::new("json").long("json").action(ArgAction::SetTrue))
            .arg(Arg::new("csv").long("csv").action(ArgAction::SetTrue).conflicts_with("json"));
        Command::new("program").subcommand_required(true).subcommand(run)
    }

    #[test]
    fn each_mistake_has_a_sentence_of_ours() {
        for (line, expected) in [
            ("run", "missing: <DEV>"),
            ("run d --threads 0", "--threads: \"0\" must be at least 1"),
            ("run d --threads x", "--threads: \"x\" is not a whole number"),
            ("run d --threads", "--threads needs a value"),
            ("run d --seed 256", "--seed: 256 is not in 0..=255"),
            ("run d --uuid 12", "--uuid: \"12\" is not a UUID"),
            ("run d --mode lrv", "--mode lrv: not one of lru, fifo; did you mean lru?"),
            ("run d --thread 1", "there is no option --thread; did you mean --threads?"),
            ("run d --json --csv", "--json cannot be used with --csv"),
            ("run d --json --json", "--json is given twice"),
            ("run d e", "unexpected argument e"),
            ("rum", "there is no command rum; did you mean run?"),
            ("", "say what to do"),
        ] {
            let words = std::iter::once("program").chain(line.split_whitespace());
            let error = command().try_get_matches_from(words).unwrap_err();
            assert_eq!(message(&error), expected, "{line}");
        }
    }
}
