//! Files that a report goes to.
//!
//! They are opened before the run, so that a path that cannot be written ends the command at once and
//! not after an hour. What a file held is kept until the report is there to replace it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::{Report, hgrm, plot};

/// Where a report is to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportPaths {
    /// JSON.
    pub json: Option<PathBuf>,
    /// Folder for `.hgrm` files, one for each run and measure.
    pub hgrm: Option<PathBuf>,
    /// Picture.
    pub svg: Option<PathBuf>,
    /// What the allocator does, line by line, while it does it.
    pub trace: Option<PathBuf>,
}

/// Opened and not written yet.
#[derive(Debug)]
pub struct Exports {
    json: Option<Target>,
    hgrm: Option<PathBuf>,
    svg: Option<Target>,
    trace: Option<Target>,
}

/// Why a report cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
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
    /// Opens all of `paths`.
    pub fn open(paths: &ExportPaths) -> Result<Self, ExportError> {
        let open = |path: &Option<PathBuf>| path.as_deref().map(Target::open).transpose();
        let hgrm = paths.hgrm.as_ref().map(|folder| writable_folder(folder)).transpose()?;
        let (json, svg, trace) = (open(&paths.json)?, open(&paths.svg)?, open(&paths.trace)?);
        let exports = Self { json, hgrm, svg, trace };
        let pairs = [
            (&exports.json, &exports.svg),
            (&exports.json, &exports.trace),
            (&exports.svg, &exports.trace),
        ];
        for (a, b) in pairs.into_iter().filter_map(|(a, b)| Some((a.as_ref()?, b.as_ref()?))) {
            if a.identity().is_some_and(|identity| Some(identity) == b.identity()) {
                return Err(ExportError::SameFile { a: a.path.clone(), b: b.path.clone() });
            }
        }
        Ok(exports)
    }

    /// Refuses exports that are one of `targets`, by whatever name. To be asked before a target is
    /// written to or made: an export that has just been made is found under the target's name.
    pub fn check_apart_from(&self, targets: &[PathBuf]) -> Result<(), ExportError> {
        for export in [&self.json, &self.svg, &self.trace].into_iter().flatten() {
            if let Some(target) = export.is_one_of(targets) {
                let (path, target) = (export.path.clone(), target.clone());
                return Err(ExportError::IsTarget { path, target });
            }
        }
        Ok(())
    }

    /// The file that the trace goes to, emptied, and its path.
    pub fn take_trace(&mut self) -> Result<Option<(PathBuf, File)>, ExportError> {
        self.trace.take().map(Target::into_file).transpose()
    }

    /// Writes `report` to all of them; the picture last, for there may be nothing to draw.
    pub fn write(self, report: &Report) -> Result<(), ExportError> {
        if let Some(target) = self.json {
            target.write(|out| {
                serde_json::to_writer_pretty(&mut *out, report)?;
                writeln!(out)
            })?;
        }
        if let Some(folder) = self.hgrm {
            for run in &report.runs {
                for measured in &run.measures {
                    let path = folder.join(hgrm_name(&run.name, measured.measure.key()));
                    Target::open(&path)?.write(|out| hgrm::write(out, &measured.histogram))?;
                }
            }
        }
        if let Some(target) = self.svg {
            let reports = std::slice::from_ref(report);
            let curves = plot::curves(reports, &[], &[]);
            let picture = plot::svg(&plot::title(&report.command, &[]), &curves);
            let picture = picture
                .map_err(|source| ExportError::Plot { path: target.path.clone(), source })?;
            target.write(|out| out.write_all(picture.as_bytes()))?;
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
    use crate::report::sample;

    #[test]
    fn everything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ExportPaths {
            json: Some(dir.path().join("report.json")),
            hgrm: Some(dir.path().join("a/b")),
            svg: Some(dir.path().join("report.svg")),
            trace: None,
        };
        fs::write(dir.path().join("report.svg"), "x".repeat(1 << 20)).unwrap();
        let mut report = sample::report(1_000, 1.0);
        report.runs.push(sample::run("fixed addresses", 10, 1.0));
        Exports::open(&paths).unwrap().write(&report).unwrap();
        assert_eq!(Report::load(&paths.json.unwrap()).unwrap().runs.len(), 2);
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
        let paths = ExportPaths {
            json: Some(old.clone()),
            hgrm: None,
            svg: Some(new.clone()),
            trace: None,
        };
        let exports = Exports::open(&paths).unwrap();
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
            ExportPaths { json: Some(path.clone()), ..ExportPaths::default() },
            ExportPaths { svg: Some(path), ..ExportPaths::default() },
            ExportPaths { svg: Some(dir.path().to_owned()), ..ExportPaths::default() },
            ExportPaths { hgrm: Some(file), ..ExportPaths::default() },
        ] {
            let error = Exports::open(&paths).unwrap_err();
            assert!(matches!(error, ExportError::Open { .. }), "{error}");
        }
    }

    #[test]
    fn an_export_never_overwrites_another_or_a_target() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let both = |json: &Path, svg: &Path| ExportPaths {
            json: Some(json.to_owned()),
            svg: Some(svg.to_owned()),
            hgrm: None,
            trace: None,
        };
        let error = Exports::open(&both(&file, &link)).unwrap_err();
        assert!(matches!(error, ExportError::SameFile { .. }), "{error}");
        assert!(!file.exists());
        let null = Path::new("/dev/null");
        Exports::open(&both(null, null)).unwrap().check_apart_from(&[null.to_owned()]).unwrap();
        let exports = Exports::open(&both(&file, null)).unwrap();
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
