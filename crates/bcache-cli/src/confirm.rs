//! Asking before something is destroyed.

use std::io::{self, IsTerminal, Write};

use bcache_core::ops::make::DevicePlan;

/// Whether what formatting destroys may be destroyed: asks on a terminal. Elsewhere the overrides on
/// the command line are the consent, and so they are where nothing is destroyed.
///
/// # Errors
///
/// When the terminal cannot be read or written.
pub fn destroys(plans: &[DevicePlan]) -> io::Result<bool> {
    if !io::stdin().is_terminal() || plans.iter().all(|plan| plan.destroys.is_empty()) {
        return Ok(true);
    }
    let mut stderr = io::stderr();
    for plan in plans.iter().filter(|plan| !plan.destroys.is_empty()) {
        writeln!(
            stderr,
            "{} ({}) will be formatted as a bcache {} device. This destroys:",
            plan.facts.info.path.display(),
            plan.facts.info.size(),
            plan.facts.kind
        )?;
        for what in &plan.destroys {
            writeln!(stderr, "  - {what}")?;
        }
    }
    write!(stderr, "Go on? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
