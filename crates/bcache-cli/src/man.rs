//! Man pages: what the parser knows, and the sections that have to be written.
//!
//! NAME and OPTIONS come from the parser, so that they cannot drift from it. The other sections are
//! text in a small notation: blank lines part paragraphs, lines that begin with four spaces are
//! examples, and `term :: meaning` is an entry of a list.

use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

/// Date on the pages: that of the release.
const DATE: &str = "2026-11-22";

/// Sections: title and text of each.
pub type Sections = &'static [(&'static str, &'static str)];

/// What the parser does not know of a command's page.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    subcommand: Option<&'static str>,
    synopsis: &'static [&'static str],
    before: Sections,
    after: Sections,
}

/// Pages by the names of their files.
pub type Files = Vec<(String, Vec<u8>)>;

/// The pages of `program`.
///
/// # Errors
/// When a page is about no command of it.
pub fn files(program: &Command, pages: impl IntoIterator<Item = Page>) -> Result<Files> {
    pages.into_iter().map(|page| page.file(program)).collect()
}

/// Writes pages to `folder`.
///
/// # Errors
/// When one cannot be written.
pub fn write(folder: &Path, files: Files) -> Result<()> {
    for (name, page) in files {
        let path = folder.join(&name);
        std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

impl Page {
    /// The page of a subcommand. The lines of `synopsis` lack the command's name, which is put before
    /// each; `before` and `after` stand on either side of OPTIONS.
    pub const fn of(
        subcommand: &'static str,
        synopsis: &'static [&'static str],
        before: Sections,
        after: Sections,
    ) -> Self {
        Self { subcommand: Some(subcommand), synopsis, before, after }
    }

    /// The page of a program itself.
    pub const fn of_program(
        synopsis: &'static [&'static str],
        before: Sections,
        after: Sections,
    ) -> Self {
        Self { subcommand: None, synopsis, before, after }
    }

    /// Its file and its text.
    fn file(self, program: &Command) -> Result<(String, Vec<u8>)> {
        let own = program.get_name();
        let Some(name) = self.subcommand else {
            return Ok((format!("{own}.8"), self.render(program, own, own)?));
        };
        let command = program.find_subcommand(name);
        let command = command.with_context(|| format!("no command {name}"))?;
        let page = self.render(command, &format!("{own}-{name}"), &format!("{own} {name}"))?;
        Ok((format!("{own}-{name}.8"), page))
    }

    /// The page called `name` of a command that is invoked by `invocation`.
    fn render(&self, command: &Command, name: &str, invocation: &str) -> io::Result<Vec<u8>> {
        // The package's own: that of the command has the revision of a build.
        let version = command.get_version().map_or("", |_| env!("CARGO_PKG_VERSION"));
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        // clap puts a parent's name into what it prints; the page has its own.
        let man = Man::new(command.clone().display_name(name).bin_name(invocation))
            .title(name.to_uppercase())
            .section("8")
            .date(DATE)
            .source(format!("bcache-tools-rs {version}"))
            .manual("System Administration");
        let mut page = Vec::new();
        man.render_title(&mut page)?;
        let mut roff = Roff::new();
        roff.control("SH", ["NAME"]);
        roff.text([roman(format!("{name} \\- {}", lower_first(&about)))]);
        roff.control("SH", ["SYNOPSIS"]);
        for (index, line) in self.synopsis.iter().enumerate() {
            if index > 0 {
                roff.control("br", []);
            }
            let mut inlines = vec![bold(invocation)];
            if !line.is_empty() {
                inlines.push(roman(" "));
                inlines.extend(synopsis(line));
            }
            roff.text(inlines);
        }
        for (title, text) in self.before {
            section(&mut roff, title, text);
        }
        // Roff escapes backslashes, and the dash of NAME has to be one.
        page.extend_from_slice(roff.render().replace("\\\\\\-", "\\-").as_bytes());
        if command.get_subcommands().any(|command| !command.is_hide_set()) {
            let mut roff = Roff::new();
            roff.control("SH", ["COMMANDS"]);
            for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
                roff.control("TP", []);
                roff.text([bold(command.get_name())]);
                let about = command.get_about().map(ToString::to_string).unwrap_or_default();
                roff.text([roman(about)]);
            }
            page.extend_from_slice(roff.render().as_bytes());
        }
        man.render_options_section(&mut page)?;
        let mut roff = Roff::new();
        for (title, text) in self.after {
            section(&mut roff, title, text);
        }
        page.extend_from_slice(roff.render().as_bytes());
        Ok(tidy(&page))
    }
}

/// A page about a subject rather than a command: text alone.
pub struct Overview {
    /// Its name and the file's.
    pub name: &'static str,
    /// The manual's section, such as 7.
    pub section: u8,
    /// What it is about, for the line under NAME.
    pub about: &'static str,
    /// Its sections.
    pub sections: Sections,
}

impl Overview {
    /// Its file and its text.
    pub fn file(&self) -> Result<(String, Vec<u8>)> {
        Ok((format!("{}.{}", self.name, self.section), self.render()?))
    }

    fn render(&self) -> io::Result<Vec<u8>> {
        let version = env!("CARGO_PKG_VERSION");
        let man = Man::new(Command::new(self.name))
            .title(self.name.to_uppercase())
            .section(self.section.to_string())
            .date(DATE)
            .source(format!("bcache-tools-rs {version}"))
            .manual("Miscellaneous Information");
        let mut page = Vec::new();
        man.render_title(&mut page)?;
        let mut roff = Roff::new();
        roff.control("SH", ["NAME"]);
        roff.text([roman(format!("{} \\- {}", self.name, self.about))]);
        for (title, text) in self.sections {
            section(&mut roff, title, text);
        }
        page.extend_from_slice(roff.render().replace("\\\\\\-", "\\-").as_bytes());
        Ok(tidy(&page))
    }
}

/// Options in bold, placeholders in italics, as man(7) wants them.
fn synopsis(line: &str) -> Vec<Inline> {
    let mut inlines = Vec::new();
    for (index, word) in line.split(' ').enumerate() {
        if index > 0 {
            inlines.push(roman(" "));
        }
        let bare = word.trim_matches(|c: char| "[].|".contains(c));
        let start = word.find(bare).unwrap_or(0);
        let (head, tail) = word.split_at(start);
        let (_, tail) = tail.split_at(bare.len());
        inlines.push(roman(head));
        let placeholder = !bare.is_empty() && bare.chars().all(|c| c.is_ascii_uppercase());
        inlines.push(if placeholder { italic(bare) } else { bold(bare) });
        inlines.push(roman(tail));
    }
    inlines.retain(|inline| *inline != roman(""));
    inlines
}

fn section(roff: &mut Roff, title: &str, text: &str) {
    roff.control("SH", [title]);
    let mut first = true;
    for block in text.trim().split("\n\n") {
        let lines: Vec<&str> = block.lines().collect();
        if lines.iter().all(|line| line.starts_with("    ")) {
            roff.control("PP", []);
            roff.control("EX", []);
            for line in lines {
                roff.text([roman(line.to_owned())]);
            }
            roff.control("EE", []);
        } else if let Some((term, meaning)) = lines.join(" ").split_once(" :: ") {
            roff.control("TP", []);
            roff.text([bold(term)]);
            roff.text([roman(meaning)]);
        } else {
            if !first {
                roff.control("PP", []);
            }
            roff.text([roman(lines.join(" "))]);
        }
        first = false;
    }
}

/// Longest line of roff that mandoc's lint is content with.
const LINE_MAX: usize = 80;

/// Removes what mandoc's lint has reason to complain of: empty lines, paragraphs before sections,
/// repeated breaks and long lines.
fn tidy(page: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(page);
    let mut lines: Vec<String> = Vec::new();
    let mut example = false;
    for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        if line.starts_with(".SH") {
            while lines.last().is_some_and(|last| last == ".PP" || last == ".br") {
                lines.pop();
            }
        }
        if line == ".br" && lines.last().is_some_and(|last| last == ".br") {
            continue;
        }
        match line {
            ".EX" => example = true,
            ".EE" => example = false,
            _ => {}
        }
        if example || line.starts_with('.') || line.len() <= LINE_MAX {
            lines.push(line.to_owned());
        } else {
            wrap(line, &mut lines);
        }
    }
    let mut tidy = lines.join("\n");
    tidy.push('\n');
    tidy.into_bytes()
}

/// Breaks a line of text between words; a line never begins with what roff takes for a command.
fn wrap(line: &str, lines: &mut Vec<String>) {
    let mut current = String::new();
    for word in line.split(' ') {
        let command = word.starts_with(['.', '\'']);
        if !current.is_empty() && !command && current.len() + 1 + word.len() > LINE_MAX {
            lines.push(std::mem::take(&mut current));
        }
        if !current.is_empty() {
            current.push(' ');
        }
        current.push_str(word);
    }
    lines.push(current);
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}
