//! Files that a report goes to.
//!
//! They are opened before the run, so that a path that cannot be written ends the command at once and
//! not after an hour. What a file held is kept until the report is there to replace it.

use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::unistd::{AccessFlags, access};

use clap::ValueEnum;

use hdrhistogram::Histogram;

use super::{hgrm, plot};

/// What a report can be written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum ExportFormat {
    /// All of it.
    Json,
    /// Its figures, a line each, as numbers without units.
    Csv,
    /// Its tables.
    Markdown,
    /// Percentile distributions, a file for each run and measure.
    Hgrm,
    /// A picture.
    Svg,
}

impl fmt::Display for ExportFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

/// A file, or for percentile distributions a folder, and what is written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportTo {
    /// As what.
    pub format: ExportFormat,
    /// Where to.
    pub path: PathBuf,
}

/// Not `FORMAT=FILE`.
#[derive(Debug, thiserror::Error)]
#[error("\"{text}\" is not FORMAT=FILE, with json, csv, markdown, svg or hgrm as FORMAT")]
pub struct ExportToError {
    /// What it is.
    text: String,
}

impl FromStr for ExportTo {
    type Err = ExportToError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (format, path) = text.split_once('=').filter(|(_, path)| !path.is_empty())?;
            let format = ExportFormat::from_str(format, false).ok()?;
            Some(Self { format, path: path.into() })
        };
        parse().ok_or_else(|| ExportToError { text: text.to_owned() })
    }
}

/// What can be exported.
pub trait Export {
    /// What it can be written as.
    const FORMATS: &'static [ExportFormat];

    /// Writes it as all but percentile distributions.
    fn write(&self, format: ExportFormat, out: &mut dyn Write) -> Result<(), NotWritten>;

    /// Its percentile distributions, each with the name of its file.
    fn distributions(&self) -> Vec<(String, &Histogram<u64>)> {
        Vec::new()
    }
}

/// Why one of them was not written.
#[derive(Debug, thiserror::Error)]
pub enum NotWritten {
    /// Writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// There is no picture.
    #[error(transparent)]
    Plot(#[from] plot::PlotError),
}

/// Where a report is to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportPaths {
    /// When it is there.
    pub files: Vec<ExportTo>,
    /// What the allocator does, line by line, while it does it.
    pub trace: Option<PathBuf>,
}

/// Opened and not written yet.
#[derive(Debug)]
pub struct Exports {
    /// Pictures come last, for there may be nothing to draw.
    files: Vec<(ExportFormat, Target)>,
    folders: Vec<PathBuf>,
    trace: Option<Target>,
}

/// Why a report cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Not something that a report of this kind can be written as.
    #[error("this report cannot be written as {format}, only as {}", formats.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    NoSuchFormat {
        /// As what.
        format: ExportFormat,
        /// As what it can.
        formats: &'static [ExportFormat],
    },
    /// A file or folder cannot be opened for writing.
    #[error("cannot write to {}", path.display())]
    Open {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Two exports to one file.
    #[error("{} and {} are one file: one report would overwrite the other", a.display(), b.display())]
    SameFile {
        /// One path.
        a: PathBuf,
        /// The other.
        b: PathBuf,
    },
    /// A file or device that the run itself writes to.
    #[error("{} is what the run writes to ({}): a report there would destroy it", path.display(), target.display())]
    IsTarget {
        /// The export.
        path: PathBuf,
        /// What the run writes to.
        target: PathBuf,
    },
    /// A report that is read.
    #[error("{} is a report that is read ({}): a picture there would destroy it", path.display(), report.display())]
    IsReport {
        /// The export.
        path: PathBuf,
        /// The report.
        report: PathBuf,
    },
    /// Writing failed.
    #[error("writing {} failed", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The picture cannot be drawn.
    #[error("no picture was written to {}", path.display())]
    Plot {
        /// The file.
        path: PathBuf,
        /// Why.
        source: plot::PlotError,
    },
}

impl Exports {
    /// Opens all of `paths` for what is an `E`.
    pub fn open<E: Export>(paths: &ExportPaths) -> Result<Self, ExportError> {
        let mut exports = Self { files: Vec::new(), folders: Vec::new(), trace: None };
        for ExportTo { format, path } in &paths.files {
            if !E::FORMATS.contains(format) {
                return Err(ExportError::NoSuchFormat { format: *format, formats: E::FORMATS });
            }
            match format {
                ExportFormat::Hgrm => exports.folders.push(writable_folder(path)?),
                _ => exports.files.push((*format, Target::open(path)?)),
            }
        }
        exports.files.sort_by_key(|(format, _)| *format);
        exports.trace = paths.trace.as_deref().map(Target::open).transpose()?;
        let targets: Vec<&Target> = exports.targets().collect();
        for (index, a) in targets.iter().enumerate() {
            let same = |b: &&&Target| a.identity().is_some() && a.identity() == b.identity();
            if let Some(b) = targets.iter().take(index).find(same) {
                return Err(ExportError::SameFile { a: b.path.clone(), b: a.path.clone() });
            }
        }
        Ok(exports)
    }

    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.files.iter().map(|(_, target)| target).chain(&self.trace)
    }

    /// Refuses exports that are one of `targets`, by whatever name. To be asked before a target is
    /// written to or made: an export that has just been made is found under the target's name.
    pub fn check_apart_from(&self, targets: &[PathBuf]) -> Result<(), ExportError> {
        for export in self.targets() {
            if let Some(target) = export.is_one_of(targets) {
                let (path, target) = (export.path.clone(), target.clone());
                return Err(ExportError::IsTarget { path, target });
            }
        }
        Ok(())
    }

    /// Refuses exports that are one of the files that are read, by whatever name.
    pub fn check_not_read(&self, read: &[PathBuf]) -> Result<(), ExportError> {
        self.targets().try_for_each(|export| export.check_apart_from(read))
    }

    /// The file that the trace goes to, emptied, and its path.
    pub fn take_trace(&mut self) -> Result<Option<(PathBuf, File)>, ExportError> {
        self.trace.take().map(Target::into_file).transpose()
    }

    /// Writes `report` to all of them.
    pub fn write<E: Export>(self, report: &E) -> Result<(), ExportError> {
        for folder in self.folders {
            for (name, histogram) in report.distributions() {
                let target = Target::open(&folder.join(name))?;
                target.write(|out| hgrm::write(out, histogram))?;
            }
        }
        for (format, target) in self.files {
            // What the file held stays until there is something to replace it.
            let mut bytes = Vec::new();
            report.write(format, &mut bytes).map_err(|why| match why {
                NotWritten::Io(source) => ExportError::Write { path: target.path.clone(), source },
                NotWritten::Plot(source) => ExportError::Plot { path: target.path.clone(), source },
            })?;
            target.write(|out| out.write_all(&bytes))?;
        }
        Ok(())
    }
}

/// Name of the percentile file of one run and measure.
pub fn hgrm_name(run: &str, measure: &str) -> String {
    let run: String =
        run.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("{run}-{measure}.hgrm")
}

/// Makes the folder where it is not there, and asks whether files can be made in it.
fn writable_folder(folder: &Path) -> Result<PathBuf, ExportError> {
    let failed = |source| ExportError::Open { path: folder.to_owned(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    access(folder, AccessFlags::W_OK | AccessFlags::X_OK)
        .map_err(|errno| failed(io::Error::from(errno)))?;
    Ok(folder.to_owned())
}

/// What two paths to the same contents have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    File { device: u64, inode: u64 },
    BlockDevice(u64),
}

impl Identity {
    /// `None` for what keeps nothing that could be overwritten, such as a pipe or a terminal.
    fn of(metadata: &Metadata) -> Option<Self> {
        if metadata.is_file() {
            Some(Self::File { device: metadata.dev(), inode: metadata.ino() })
        } else if metadata.file_type().is_block_device() {
            Some(Self::BlockDevice(metadata.rdev()))
        } else {
            None
        }
    }
}

/// A file that is open for writing and still holds what it held.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    file: File,
    /// Made by us and not written: it goes again when the run fails.
    is_new: bool,
}

impl Target {
    /// Opens a file, or makes an empty one.
    pub fn open(path: &Path) -> Result<Self, ExportError> {
        let failed = |source| ExportError::Open { path: path.to_owned(), source };
        let made = OpenOptions::new().write(true).create_new(true).open(path);
        let (file, is_new) = match made {
            Ok(file) => (file, true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                (OpenOptions::new().write(true).open(path).map_err(failed)?, false)
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { path: path.to_owned(), file, is_new })
    }

    fn identity(&self) -> Option<Identity> {
        self.file.metadata().ok().and_then(|metadata| Identity::of(&metadata))
    }

    /// Which of `paths` is another name of the file, or the same.
    fn is_one_of<'a>(&self, paths: &'a [PathBuf]) -> Option<&'a PathBuf> {
        let identity = self.identity()?;
        let is = |path: &&PathBuf| {
            fs::metadata(path).is_ok_and(|it| Identity::of(&it) == Some(identity))
        };
        paths.iter().find(is)
    }

    /// Refuses a file that is one of `reports`, by whatever name.
    pub fn check_apart_from(&self, reports: &[PathBuf]) -> Result<(), ExportError> {
        match self.is_one_of(reports) {
            Some(report) => {
                let (path, report) = (self.path.clone(), report.clone());
                Err(ExportError::IsReport { path, report })
            }
            None => Ok(()),
        }
    }

    /// Replaces what the file holds.
    pub fn write(
        mut self,
        write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
    ) -> Result<(), ExportError> {
        self.is_new = false;
        let write = || {
            // A pipe or a terminal has nothing to cut off.
            if self.file.metadata()?.is_file() {
                self.file.set_len(0)?;
            }
            let mut out = BufWriter::new(&self.file);
            write(&mut out)?;
            out.flush()
        };
        write().map_err(|source| ExportError::Write { path: self.path.clone(), source })
    }
}

impl Target {
    /// The file, emptied, for who writes to it as things happen.
    fn into_file(mut self) -> Result<(PathBuf, File), ExportError> {
        let take = || {
            if self.file.metadata()?.is_file() {
                self.file.set_len(0)?;
            }
            self.file.try_clone()
        };
        let path = self.path.clone();
        let file = take().map_err(|source| ExportError::Open { path: path.clone(), source })?;
        self.is_new = false;
        Ok((path, file))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.is_new {
            // Whatever ended the run is the better error.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Report, sample};

    fn to(files: &[(ExportFormat, &Path)]) -> ExportPaths {
        let to = |(format, path): &(ExportFormat, &Path)| ExportTo {
            format: *format,
            path: path.to_path_buf(),
        };
        ExportPaths { files: files.iter().map(to).collect(), trace: None }
    }

    fn open(paths: &ExportPaths) -> Result<Exports, ExportError> {
        Exports::open::<Report>(paths)
    }

    #[test]
    fn a_format_and_a_file_are_told_apart() {
        let svg: ExportTo = "svg=a=b.svg".parse().unwrap();
        assert_eq!((svg.format, svg.path), (ExportFormat::Svg, "a=b.svg".into()));
        for wrong in ["svg", "svg=", "png=a", "=a", "SVG=a"] {
            assert!(wrong.parse::<ExportTo>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn everything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let [json, csv, markdown] =
            ["report.json", "report.csv", "report.md"].map(|it| dir.path().join(it));
        let paths = to(&[
            (ExportFormat::Svg, &dir.path().join("report.svg")),
            (ExportFormat::Json, &json),
            (ExportFormat::Csv, &csv),
            (ExportFormat::Markdown, &markdown),
            (ExportFormat::Hgrm, &dir.path().join("a/b")),
        ]);
        fs::write(dir.path().join("report.svg"), "x".repeat(1 << 20)).unwrap();
        let mut report = sample::report(1_000, 1.0);
        report.runs.push(sample::run("fixed addresses", 10, 1.0));
        open(&paths).unwrap().write(&report).unwrap();
        assert_eq!(Report::load(&json).unwrap().runs.len(), 2);
        let lines = fs::read_to_string(csv).unwrap();
        assert!(lines.starts_with("run,measure,count,min_ns,p50_ns"), "{lines}");
        assert_eq!(lines.lines().count(), 5);
        assert!(lines.contains("\nfixed addresses,data_write,10,"), "{lines}");
        let tables = fs::read_to_string(markdown).unwrap();
        assert!(tables.starts_with("| latency | count | p50 |"), "{tables}");
        assert!(tables.contains("| allocator: bucket allocation | "), "{tables}");
        let picture = fs::read_to_string(dir.path().join("report.svg")).unwrap();
        assert!(picture.trim_end().ends_with("</svg>"));
        let mut names: Vec<_> = fs::read_dir(dir.path().join("a/b"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "allocator-bucket_allocation.hgrm",
                "allocator-data_write.hgrm",
                "fixed_addresses-bucket_allocation.hgrm",
                "fixed_addresses-data_write.hgrm"
            ]
        );
    }

    #[test]
    fn a_run_that_fails_leaves_everything_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("old.json");
        let new = dir.path().join("new.svg");
        fs::write(&old, "old").unwrap();
        let paths = to(&[(ExportFormat::Json, &old), (ExportFormat::Svg, &new)]);
        let exports = open(&paths).unwrap();
        assert!(new.exists());
        drop(exports);
        assert!(!new.exists());
        assert_eq!(fs::read_to_string(old).unwrap(), "old");
    }

    #[test]
    fn a_bad_path_is_found_before_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no/such/folder/report.json");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for paths in [
            to(&[(ExportFormat::Json, &path)]),
            to(&[(ExportFormat::Svg, &path)]),
            to(&[(ExportFormat::Csv, dir.path())]),
            to(&[(ExportFormat::Hgrm, &file)]),
        ] {
            let error = open(&paths).unwrap_err();
            assert!(matches!(error, ExportError::Open { .. }), "{error}");
        }
    }

    #[test]
    fn an_export_never_overwrites_another_or_a_target() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let both =
            |json: &Path, svg: &Path| to(&[(ExportFormat::Json, json), (ExportFormat::Svg, svg)]);
        let error = open(&both(&file, &link)).unwrap_err();
        assert!(matches!(error, ExportError::SameFile { .. }), "{error}");
        assert!(!file.exists());
        let null = Path::new("/dev/null");
        open(&both(null, null)).unwrap().check_apart_from(&[null.to_owned()]).unwrap();
        let exports = open(&both(&file, null)).unwrap();
        exports.check_apart_from(&[dir.path().join("other")]).unwrap();
        let error = exports.check_apart_from(&[link]).unwrap_err();
        assert!(matches!(error, ExportError::IsTarget { .. }), "{error}");
    }

    #[test]
    fn a_full_device_is_an_error() {
        let target = Target::open(Path::new("/dev/full")).unwrap();
        let error = target.write(|out| out.write_all(b"report")).unwrap_err();
        assert!(matches!(error, ExportError::Write { .. }), "{error}");
    }
}
