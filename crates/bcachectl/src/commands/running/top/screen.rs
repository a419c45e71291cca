//! The screen of `top`: what is drawn, and what keys do. 80 columns and 24 lines are enough.

use std::time::Duration;

use bcache_core::running::Severity;
use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};
use uuid::Uuid;

use super::figures::{Figures, Sample};
use super::words::{self, DEVICE_COLUMNS, NAMES, SET_COLUMNS};
use crate::cli::running::TopSort;

/// Most lines for sets, so that devices have room on a small terminal.
const SETS_MAX: u16 = 6;

/// Most findings that are shown.
const FINDINGS_MAX: u16 = 2;

/// What is shown.
pub(super) struct Screen {
    sort: TopSort,
    interval: Duration,
    colour: bool,
    figures: Option<Figures>,
    last: Option<Sample>,
    /// The name of the device that was picked: rows move when they are sorted.
    picked: Option<String>,
    /// The set whose devices are shown alone.
    only: Option<Uuid>,
    paused: bool,
    /// What has not answered for a second or longer, in words.
    blocked: Option<String>,
    error: Option<String>,
}

impl Screen {
    pub(super) fn new(sort: TopSort, interval: Duration, colour: bool) -> Self {
        Self {
            sort,
            interval,
            colour,
            figures: None,
            last: None,
            picked: None,
            only: None,
            paused: false,
            blocked: None,
            error: None,
        }
    }

    /// Whether no new look is wanted.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Takes a new look.
    pub(super) fn take(&mut self, sample: Sample) {
        let mut figures = Figures::new(self.last.as_ref(), &sample);
        figures.sort(self.sort);
        self.figures = Some(figures);
        self.last = Some(sample);
        self.error = None;
    }

    /// Takes the reason why there is no look.
    pub(super) fn fail(&mut self, error: String) {
        self.error = Some(error);
    }

    /// What has not answered for a second or longer, in words.
    pub(super) fn blocked(&mut self, words: Option<String>) {
        self.blocked = words;
    }

    /// The names of the devices that are shown, in their order.
    fn names(&self) -> Vec<&String> {
        let devices = self.figures.iter().flat_map(|it| &it.devices);
        let shown = devices.filter(|row| self.only.is_none() || row.set == self.only);
        shown.map(|row| &row.name).collect()
    }

    fn index(&self) -> usize {
        let names = self.names();
        names.iter().position(|name| Some(*name) == self.picked.as_ref()).unwrap_or(0)
    }

    fn pick(&mut self, to: impl FnOnce(usize) -> usize) {
        let index = to(self.index());
        let names = self.names();
        let picked = names.get(index.min(names.len().saturating_sub(1)));
        self.picked = picked.map(|name| (*name).clone());
    }

    fn sort_by(&mut self, sort: TopSort) {
        self.sort = sort;
        if let Some(figures) = &mut self.figures {
            figures.sort(sort);
        }
    }

    /// Does what a key means; false for the end.
    pub(super) fn on_key(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if control => return false,
            KeyCode::Down | KeyCode::Char('j') => self.pick(|it| it + 1),
            KeyCode::Up | KeyCode::Char('k') => self.pick(|it| it.saturating_sub(1)),
            KeyCode::Home | KeyCode::Char('g') => self.pick(|_| 0),
            KeyCode::End | KeyCode::Char('G') => self.pick(|_| usize::MAX),
            KeyCode::Char('n') => self.sort_by(TopSort::Name),
            KeyCode::Char('r') => self.sort_by(TopSort::Read),
            KeyCode::Char('w') => self.sort_by(TopSort::Write),
            KeyCode::Char('h') => self.sort_by(TopSort::Hits),
            KeyCode::Char('d') => self.sort_by(TopSort::Dirty),
            KeyCode::Char(' ') => self.paused = !self.paused,
            KeyCode::Enter | KeyCode::Char('s') => {
                let index = self.index();
                let all = self.only.is_none();
                let mut devices = self.figures.iter().flat_map(|it| &it.devices);
                self.only = devices.nth(index).filter(|_| all).and_then(|row| row.set);
            }
            _ => {}
        }
        true
    }

    fn style(&self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    /// Draws everything.
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let rows = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
        let figures = self.figures.as_ref();
        let sets = rows(figures.map_or(0, |it| it.sets.len())).min(SETS_MAX);
        let findings = rows(figures.map_or(0, |it| it.findings.len())).min(FINDINGS_MAX);
        let [head, notices, set_area, device_area, detail, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(findings.saturating_add(1)),
            // A line for the names of the columns and an empty one.
            Constraint::Length(if sets > 0 { sets + 2 } else { 0 }),
            Constraint::Min(3),
            Constraint::Length(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(Paragraph::new(self.head()), head);
        frame.render_widget(Paragraph::new(self.notices()), notices);
        if let Some(figures) = figures {
            self.draw_sets(frame, set_area, figures);
            self.draw_devices(frame, device_area, figures);
        }
        let details = self.details();
        frame.render_widget(Paragraph::new(details), detail);
        let keys = "q quit  j/k pick  s its set only  n r w h d sort  space pause";
        frame.render_widget(
            Paragraph::new(keys).style(Style::new().add_modifier(Modifier::DIM)),
            foot,
        );
    }

    fn head(&self) -> Line<'_> {
        let sort = match self.sort {
            TopSort::Name => "name",
            TopSort::Read => "reads",
            TopSort::Write => "writes",
            TopSort::Hits => "hits",
            TopSort::Dirty => "dirty data",
        };
        let mut text = format!("every {} s, devices by {sort}", self.interval.as_secs());
        if self.only.is_some() {
            text += ", one set";
        }
        if self.paused {
            text += ", paused";
        }
        let bold = Style::new().add_modifier(Modifier::BOLD);
        Line::from(vec![Span::styled("bcachectl top  ", bold), Span::raw(text)])
    }

    /// What is wrong: with the kernel's answers first, then what it answered.
    fn notices(&self) -> Vec<Line<'_>> {
        let mut lines = Vec::new();
        let warn = self.style(Color::Yellow);
        if let Some(words) = &self.blocked {
            lines.push(Line::styled(words.as_str(), warn));
        } else if let Some(error) = &self.error {
            lines.push(Line::styled(error.as_str(), self.style(Color::Red)));
        } else if let Some(figures) = &self.figures {
            if figures.sets.is_empty() && figures.devices.is_empty() {
                lines.push(Line::raw(super::nothing(figures.available)));
            }
        }
        let found = self.figures.iter().flat_map(|it| &it.findings);
        for (severity, text) in found.take(usize::from(FINDINGS_MAX)) {
            let (word, colour) = match severity {
                Severity::Danger => ("DANGER", Color::Red),
                Severity::Warning => ("warning", Color::Yellow),
                Severity::Note => ("note", Color::Reset),
            };
            let word = Span::styled(word, self.style(colour));
            lines.push(Line::from(vec![word, Span::raw(format!(": {text}"))]));
        }
        lines
    }

    fn details(&self) -> Vec<Line<'_>> {
        let index = self.index();
        let devices = self.figures.iter().flat_map(|it| &it.devices);
        let mut shown = devices.filter(|row| self.only.is_none() || row.set == self.only);
        let Some(row) = shown.nth(index) else { return Vec::new() };
        words::details(row).into_iter().map(Line::raw).collect()
    }

    fn draw_sets(&self, frame: &mut Frame<'_>, area: Rect, figures: &Figures) {
        let rows = figures.sets.iter().map(|set| {
            let full = set.available_percent.is_some_and(|it| it < 5);
            let style = if set.stalled || full || set.io_errors.is_some_and(|it| it > 0) {
                self.style(Color::Yellow)
            } else {
                Style::new()
            };
            cells(&words::of_set(set)).style(style)
        });
        frame.render_widget(table(rows.collect(), &SET_COLUMNS), area);
    }

    fn draw_devices(&self, frame: &mut Frame<'_>, area: Rect, figures: &Figures) {
        let shown =
            figures.devices.iter().filter(|row| self.only.is_none() || row.set == self.only);
        let rows = shown.map(|row| {
            use bcache_core::running::DeviceState::{CacheLost, Forced, Unknown};
            let style = match row.state {
                CacheLost | Forced => self.style(Color::Red),
                Unknown => self.style(Color::Yellow),
                _ if row.stalled => self.style(Color::Yellow),
                _ => Style::new(),
            };
            cells(&words::of_device(row)).style(style)
        });
        let table = table(rows.collect(), &DEVICE_COLUMNS)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let mut state = TableState::new().with_selected(self.index());
        frame.render_stateful_widget(table, area, &mut state);
    }
}

fn cells(texts: &[String; 9]) -> Row<'static> {
    Row::new(texts.iter().enumerate().map(|(index, text)| {
        let line = Line::raw(text.clone());
        Cell::from(if index < NAMES { line } else { line.right_aligned() })
    }))
}

fn table<'r>(rows: Vec<Row<'r>>, columns: &[(&'static str, u16); 9]) -> Table<'r> {
    let header = cells(&columns.map(|(name, _)| name.to_owned()))
        .style(Style::new().add_modifier(Modifier::BOLD));
    let widths = columns.map(|(_, width)| Constraint::Length(width));
    Table::new(rows, widths).header(header).column_spacing(1)
}
