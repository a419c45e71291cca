//! Man pages: what the parser knows, and the sections that have to be written.
//!
//! NAME and OPTIONS come from the parser, so that they cannot drift from it. The other sections are
//! text in a small notation: blank lines part paragraphs, lines that begin with four spaces are
//! examples, and `term :: meaning` is an entry of a list.

use std::io;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

/// Date on the pages: that of the release.
const DATE: &str = "2026-11-22";

/// A page.
pub struct Page {
    /// Its name and the file's, such as `bcachectl-make`.
    pub name: &'static str,
    /// What the parser knows of the command.
    pub command: Command,
    /// Lines of SYNOPSIS, each without the command's name: the name is put before it.
    pub synopsis: &'static [&'static str],
    /// The name in SYNOPSIS, such as `bcachectl make`.
    pub invocation: &'static str,
    /// Sections before OPTIONS.
    pub before: &'static [(&'static str, &'static str)],
    /// Sections after OPTIONS.
    pub after: &'static [(&'static str, &'static str)],
}

impl Page {
    /// File name of the page.
    pub fn file_name(&self) -> String {
        format!("{}.8", self.name)
    }

    /// The page in roff.
    pub fn render(&self) -> io::Result<Vec<u8>> {
        // The package's own: that of the command has the revision of a build.
        let version = self.command.get_version().map_or("", |_| env!("CARGO_PKG_VERSION"));
        let about = self.command.get_about().map(ToString::to_string).unwrap_or_default();
        // clap puts a parent's name into what it prints; the page has its own.
        let command = self.command.clone().display_name(self.name).bin_name(self.invocation);
        let man = Man::new(command)
            .title(self.name.to_uppercase())
            .section("8")
            .date(DATE)
            .source(format!("bcache-tools-rs {version}"))
            .manual("System Administration");
        let mut page = Vec::new();
        man.render_title(&mut page)?;
        let mut roff = Roff::new();
        roff.control("SH", ["NAME"]);
        roff.text([roman(format!("{} \\- {}", self.name, lower_first(&about)))]);
        roff.control("SH", ["SYNOPSIS"]);
        for (index, line) in self.synopsis.iter().enumerate() {
            if index > 0 {
                roff.control("br", []);
            }
            let mut inlines = vec![bold(self.invocation)];
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
        if self.command.get_subcommands().any(|command| !command.is_hide_set()) {
            let mut roff = Roff::new();
            roff.control("SH", ["COMMANDS"]);
            for command in self.command.get_subcommands().filter(|command| !command.is_hide_set()) {
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
    pub sections: &'static [(&'static str, &'static str)],
}

impl Overview {
    /// File name of the page.
    pub fn file_name(&self) -> String {
        format!("{}.{}", self.name, self.section)
    }

    /// The page in roff.
    pub fn render(&self) -> io::Result<Vec<u8>> {
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
