//! `bcache-bench plot`: reports become one picture.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cli::PlotArgs;
use crate::report::export::Target;
use crate::report::{Report, plot};

/// Runs `bcache-bench plot`.
pub fn run(args: &PlotArgs) -> Result<ExitCode> {
    let reports =
        args.reports.iter().map(|path| Report::load(path)).collect::<Result<Vec<_>, _>>()?;
    let names = names(&args.reports);
    let curves = plot::curves(&reports, &names, &args.measure);
    let title = args.title.clone().unwrap_or_else(|| {
        let command = reports.first().map_or("", |report| report.command.as_str());
        plot::title(command, &args.measure)
    });
    let picture = plot::svg(&title, &curves)
        .with_context(|| format!("no picture was written to {}", args.output.display()))?;
    let target = Target::open(&args.output)?;
    target.check_apart_from(&args.reports)?;
    target.write(|out| out.write_all(picture.as_bytes()))?;
    Ok(ExitCode::SUCCESS)
}

/// What the legend calls reports: the names of the files without folders and ending, where that
/// tells them apart.
pub fn names<P: AsRef<Path>>(paths: &[P]) -> Vec<String> {
    let short: Vec<String> = paths
        .iter()
        .map(|path| {
            let stem = path.as_ref().file_stem().unwrap_or(path.as_ref().as_os_str());
            stem.to_string_lossy().into_owned()
        })
        .collect();
    let unique = short.iter().enumerate().all(|(index, name)| !short[..index].contains(name));
    if unique { short } else { paths.iter().map(|it| it.as_ref().display().to_string()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_where_they_can_be() {
        assert_eq!(names(&["a/before.json", "b/after.json"]), ["before", "after"]);
        assert_eq!(names(&["a/run.json", "b/run.json"]), ["a/run.json", "b/run.json"]);
    }
}
