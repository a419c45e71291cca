//! Map files in ddrescue's format: which parts of an exported volume there are.

use std::io::{self, Write};

use crate::units::SECTOR_BYTES;

/// What became of a part of the volume. The characters are those of GNU ddrescue's map files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// `+`: it is there.
    Taken,
    /// `?`: it was not asked for.
    NotAsked,
    /// `*`: there is something that is likely right, and it was not taken.
    Doubtful,
    /// `-`: it is lost, or cannot be read.
    Lost,
}

impl Status {
    /// The character in the map file.
    pub const fn character(self) -> char {
        match self {
            Self::Taken => '+',
            Self::NotAsked => '?',
            Self::Doubtful => '*',
            Self::Lost => '-',
        }
    }
}

/// Takes parts in order and joins neighbours of one status.
#[derive(Debug, Default)]
pub struct Runs {
    last: Option<(u64, u64, Status)>,
}

impl Runs {
    /// Adds the sectors `[start, end)`, which begin where the last part ended; gives the run that is
    /// finished by that.
    pub fn add(&mut self, start: u64, end: u64, status: Status) -> Option<(u64, u64, Status)> {
        match &mut self.last {
            Some((_, last_end, last)) if *last == status && *last_end == start => {
                *last_end = end;
                None
            }
            last => last.replace((start, end, status)),
        }
    }

    /// The last run.
    pub fn finish(&mut self) -> Option<(u64, u64, Status)> {
        self.last.take()
    }
}

/// Writes the head of a map file; `origin` says what made it.
pub fn write_head(out: &mut dyn Write, origin: &str) -> io::Result<()> {
    writeln!(out, "# Mapfile. Created by {origin}")?;
    writeln!(out, "# + there, ? not asked for, * likely right and left out, - lost or unreadable")?;
    writeln!(out, "# current_pos  current_status  current_pass")?;
    writeln!(out, "0x00000000     +               1")?;
    writeln!(out, "#      pos        size  status")
}

/// Writes the line of one run of sectors.
pub fn write_run(out: &mut dyn Write, (start, end, status): (u64, u64, Status)) -> io::Result<()> {
    let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
    let size = bytes(end.saturating_sub(start));
    writeln!(out, "0x{:08X}  0x{size:08X}  {}", bytes(start), status.character())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_file_is_ddrescues() {
        let mut out = Vec::new();
        write_head(&mut out, "a test").unwrap();
        let mut runs = Runs::default();
        let parts = [
            (0, 8, Status::Taken),
            (8, 16, Status::Taken),
            (16, 17, Status::Lost),
            (17, 20, Status::Doubtful),
            (20, 24, Status::NotAsked),
        ];
        for (start, end, status) in parts {
            if let Some(run) = runs.add(start, end, status) {
                write_run(&mut out, run).unwrap();
            }
        }
        write_run(&mut out, runs.finish().unwrap()).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "# Mapfile. Created by a test\n\
             # + there, ? not asked for, * likely right and left out, - lost or unreadable\n\
             # current_pos  current_status  current_pass\n\
             0x00000000     +               1\n\
             #      pos        size  status\n\
             0x00000000  0x00002000  +\n\
             0x00002000  0x00000200  -\n\
             0x00002200  0x00000600  *\n\
             0x00002800  0x00000800  ?\n"
        );
        assert_eq!(runs.finish(), None);
    }
}
