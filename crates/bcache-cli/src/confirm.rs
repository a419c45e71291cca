//! Asking before something is destroyed.

use std::io::{self, IsTerminal, Write};

use bcache_core::ops::make::DevicePlan;

/// Characters of a set UUID that are enough to name it.
const UUID_START: usize = 8;

/// Whether what formatting destroys may be destroyed: asks on a terminal. Elsewhere the overrides on
/// the command line are the consent, and so they are where nothing is destroyed.
///
/// With `ask_for_sets`, data that exists nowhere else takes more than a yes: the UUID of its set, or
/// the start of it, must be typed.
///
/// # Errors
///
/// When the terminal cannot be read or written.
pub fn destroys(plans: &[DevicePlan], ask_for_sets: bool) -> io::Result<bool> {
    if !io::stdin().is_terminal() || plans.iter().all(|plan| plan.destroys.is_empty()) {
        return Ok(true);
    }
    ask(plans, ask_for_sets, &mut io::stderr(), &mut || {
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        Ok(answer)
    })
}

/// Asks on the terminal whether to go on; what is to be done was said before.
///
/// # Errors
///
/// When the terminal cannot be read or written.
pub fn go_on() -> io::Result<bool> {
    prompt("Go on? [y/N] ").map(|answer| is_yes(&answer))
}

/// Asks `question` on the terminal; the answer, without blanks around it.
///
/// # Errors
///
/// When the terminal cannot be read or written.
pub fn prompt(question: &str) -> io::Result<String> {
    let mut stderr = io::stderr();
    write!(stderr, "{question}")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(answer.trim().to_owned())
}

/// Whether an answer is a yes.
pub fn is_yes(answer: &str) -> bool {
    matches!(answer, "y" | "Y" | "yes")
}

fn ask(
    plans: &[DevicePlan],
    ask_for_sets: bool,
    out: &mut dyn Write,
    read: &mut dyn FnMut() -> io::Result<String>,
) -> io::Result<bool> {
    for plan in plans {
        let facts = &plan.facts;
        write!(
            out,
            "{} ({}) will be formatted as a bcache {} device. ",
            facts.info.path.display(),
            facts.info.size(),
            facts.kind
        )?;
        match (facts.create, plan.destroys.is_empty()) {
            (true, _) => writeln!(out, "It is a new image file.")?,
            (false, true) => writeln!(out, "Nothing was found on it.")?,
            (false, false) => writeln!(out, "This destroys:")?,
        }
        for what in &plan.destroys {
            writeln!(out, "  - {what}")?;
        }
    }
    if ask_for_sets {
        for plan in plans {
            let facts = &plan.facts;
            let Some(set) = facts.at_stake.set_uuid() else {
                let path = facts.info.path.display().to_string();
                if facts.at_stake.is_nothing() {
                    continue;
                }
                write!(
                    out,
                    "Data on {path} that exists nowhere else may be lost for good. To go on, type \
                     that path: "
                )?;
                out.flush()?;
                if read()?.trim() != path {
                    return Ok(false);
                }
                continue;
            };
            let set = set.to_string();
            write!(
                out,
                "Data of the set {set} may be lost for good. To go on, type the first \
                 {UUID_START} characters of that UUID: "
            )?;
            out.flush()?;
            let answer = read()?.trim().to_lowercase();
            if answer.len() < UUID_START || !set.starts_with(&answer) {
                return Ok(false);
            }
        }
    }
    write!(out, "Go on? [y/N] ")?;
    out.flush()?;
    Ok(is_yes(read()?.trim()))
}
