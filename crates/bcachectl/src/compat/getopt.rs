//! Options as getopt(3) reads them, from a command's definition.
//!
//! The old commands read their options with it, and scripts rely on its habits: `-b512k`,
//! clustered letters, long options cut short, options behind devices, the last one of two that
//! contradict each other.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{Arg, Command};

/// What the next words of a command line are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// An option by its name in the definition, with its value where it takes one.
    Option(String, Option<OsString>),
    /// Anything that is no option.
    Operand(OsString),
    /// An option that makes no sense, with the message that getopt(3) prints.
    Wrong(String),
}

/// Reads the words of a command line in their order.
pub(super) struct Words<'a> {
    program: &'a str,
    options: Vec<Arg>,
    /// Whether `--name` is an option.
    long: bool,
    arguments: VecDeque<OsString>,
    /// Letters of a cluster that are still to be read.
    cluster: VecDeque<u8>,
    only_operands: bool,
}

impl<'a> Words<'a> {
    /// Reads `arguments` by the options of `definition`. Without `long`, a `--name` is a cluster of
    /// letters that begins with a dash.
    pub(super) fn new(
        program: &'a str,
        definition: &Command,
        long: bool,
        arguments: &[OsString],
    ) -> Self {
        Self {
            program,
            options: definition.get_arguments().filter(|it| !it.is_positional()).cloned().collect(),
            long,
            arguments: arguments.iter().cloned().collect(),
            cluster: VecDeque::new(),
            only_operands: false,
        }
    }

    fn letter(&mut self, letter: u8) -> Word {
        let option = self
            .options
            .iter()
            .find(|it| it.get_short().is_some_and(|it| it == char::from(letter)));
        let Some(option) = option else {
            let letter = char::from(letter);
            return Word::Wrong(format!("{}: invalid option -- '{letter}'", self.program));
        };
        let id = option.get_id().to_string();
        if !takes_value(option) {
            return Word::Option(id, None);
        }
        // What is left of the word is the value; else it is the next word.
        let rest: Vec<u8> = self.cluster.drain(..).collect();
        let value = if rest.is_empty() {
            self.arguments.pop_front()
        } else {
            Some(OsString::from_vec(rest))
        };
        match value {
            Some(value) => Word::Option(id, Some(value)),
            None => Word::Wrong(format!(
                "{}: option requires an argument -- '{}'",
                self.program,
                char::from(letter)
            )),
        }
    }

    fn name(&mut self, word: &[u8]) -> Word {
        let (name, value) = match word.iter().position(|&byte| byte == b'=') {
            Some(at) => (&word[..at], Some(OsString::from_vec(word[at + 1..].to_vec()))),
            None => (word, None),
        };
        let (name, typed) = (String::from_utf8_lossy(name), String::from_utf8_lossy(word));
        let known: Vec<(String, &Arg)> = self
            .options
            .iter()
            .flat_map(|option| names(option).into_iter().map(move |name| (name, option)))
            .filter(|(known, _)| known.starts_with(&*name))
            .collect();
        let exact = known.iter().find(|(known, _)| *known == name);
        let program = self.program;
        let Some((full, option)) = exact.or_else(|| known.first()) else {
            return Word::Wrong(format!("{program}: unrecognized option '--{typed}'"));
        };
        if exact.is_none() && known.iter().any(|(_, other)| other.get_id() != option.get_id()) {
            let names: Vec<_> = known.iter().map(|(name, _)| format!("'--{name}'")).collect();
            return Word::Wrong(format!(
                "{program}: option '--{typed}' is ambiguous; possibilities: {}",
                names.join(" ")
            ));
        }
        let id = option.get_id().to_string();
        match (takes_value(option), value) {
            (false, None) => Word::Option(id, None),
            (false, Some(_)) => {
                Word::Wrong(format!("{program}: option '--{full}' doesn't allow an argument"))
            }
            (true, Some(value)) => Word::Option(id, Some(value)),
            (true, None) => {
                let missing = format!("{program}: option '--{full}' requires an argument");
                match self.arguments.pop_front() {
                    Some(value) => Word::Option(id, Some(value)),
                    None => Word::Wrong(missing),
                }
            }
        }
    }
}

impl Iterator for Words<'_> {
    type Item = Word;

    fn next(&mut self) -> Option<Word> {
        if let Some(letter) = self.cluster.pop_front() {
            return Some(self.letter(letter));
        }
        let word = self.arguments.pop_front()?;
        let bytes = word.as_bytes();
        if self.only_operands || bytes.len() < 2 || bytes[0] != b'-' {
            return Some(Word::Operand(word));
        }
        if bytes == b"--" {
            self.only_operands = true;
            return self.next();
        }
        if self.long && bytes[1] == b'-' {
            return Some(self.name(&bytes[2..]));
        }
        self.cluster = bytes[1..].iter().copied().collect();
        self.next()
    }
}

fn takes_value(option: &Arg) -> bool {
    option.get_action().takes_values()
}

/// All names of an option, in the order in which they are told.
fn names(option: &Arg) -> Vec<String> {
    let aliases = option.get_all_aliases().unwrap_or_default();
    option.get_long().into_iter().chain(aliases).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use clap::ArgAction;

    use super::*;

    fn words(arguments: &[&str], long: bool) -> Vec<Word> {
        let flag = |id: &'static str| Arg::new(id).long(id).action(ArgAction::SetTrue);
        let definition = Command::new("program")
            .arg(flag("bdev").short('B'))
            .arg(flag("wipe"))
            .arg(flag("write"))
            .arg(Arg::new("bucket").short('b').long("bucket"))
            .arg(Arg::new("offset").long("data_offset").alias("data-offset"));
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        Words::new("program", &definition, long, &arguments).collect()
    }

    fn option(id: &str, value: &str) -> Word {
        Word::Option(id.to_owned(), Some(value.into()))
    }

    fn flag(id: &str) -> Word {
        Word::Option(id.to_owned(), None)
    }

    fn wrong(text: &str) -> Word {
        Word::Wrong(format!("program: {text}"))
    }

    #[test]
    fn options_and_operands_mix() {
        assert_eq!(
            words(&["x", "-Bb4k", "y", "--bucket=8k", "--bucket", "-1", "-", "--", "-B"], true),
            [
                Word::Operand("x".into()),
                flag("bdev"),
                option("bucket", "4k"),
                Word::Operand("y".into()),
                option("bucket", "8k"),
                option("bucket", "-1"),
                Word::Operand("-".into()),
                Word::Operand("-B".into()),
            ]
        );
    }

    #[test]
    fn long_options_may_be_cut_short() {
        assert_eq!(words(&["--bd", "--data=3"], true), [flag("bdev"), option("offset", "3")]);
        assert_eq!(
            words(&["--wi", "--w", "--b=3"], true),
            [
                flag("wipe"),
                wrong("option '--w' is ambiguous; possibilities: '--wipe' '--write'"),
                wrong("option '--b=3' is ambiguous; possibilities: '--bdev' '--bucket'"),
            ]
        );
    }

    #[test]
    fn mistakes_are_told_and_reading_goes_on() {
        assert_eq!(
            words(&["-xB", "--foo", "--wipe=3", "--bucket"], true),
            [
                wrong("invalid option -- 'x'"),
                flag("bdev"),
                wrong("unrecognized option '--foo'"),
                wrong("option '--wipe' doesn't allow an argument"),
                wrong("option '--bucket' requires an argument"),
            ]
        );
        assert_eq!(words(&["-b"], true), [wrong("option requires an argument -- 'b'")]);
        assert_eq!(
            words(&["--B"], false),
            [wrong("invalid option -- '-'"), flag("bdev")],
            "without long options a dash is a letter"
        );
    }
}
