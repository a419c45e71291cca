//! Images that stock kernels wrote, kept compressed in `fixtures/kernel-images`, each with the
//! kernel's own figures and messages from that run.

use crate::image::{Scratch, write_sparse};
use crate::kept;
use crate::kernel::Log;
use anyhow::{Context as _, ensure};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

/// One set of images, unpacked into a folder that vanishes with the value.
#[derive(Debug)]
pub struct Fixture {
    /// Its folder's name, such as `clean-612`.
    pub name: String,
    /// The cache device.
    pub cache: PathBuf,
    /// The backing devices in the order of their registration.
    pub backing: Vec<PathBuf>,
    /// What the kernel that wrote the images said.
    pub log: Log,
    _scratch: Scratch,
}

impl Fixture {
    /// The names of all sets, sorted.
    pub fn names() -> anyhow::Result<Vec<String>> {
        let folder = folder("kernel-images");
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        ensure!(!names.is_empty(), "no images in {}", folder.display());
        names.sort();
        Ok(names)
    }

    /// The kernel's log of a set, without its images.
    pub fn log(name: &str) -> anyhow::Result<Log> {
        let path = folder("kernel-images").join(name).join("kernel.log");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Log::parse(&text, ""))
    }

    /// Unpacks the images of a set, sparsely.
    pub fn unpack(name: &str) -> anyhow::Result<Self> {
        let scratch = Scratch::new()?;
        let from = folder("kernel-images").join(name);
        let cache = unpack(&from.join("cache.img.zst"), &scratch)?;
        let mut backing = Vec::new();
        loop {
            let packed = from.join(format!("back{}.img.zst", backing.len()));
            if !packed.exists() {
                break;
            }
            backing.push(unpack(&packed, &scratch)?);
        }
        let log = Self::log(name)?;
        Ok(Self { name: name.to_owned(), cache, backing, log, _scratch: scratch })
    }

    /// All images in the order in which the kernel had them as vda, vdb, ...: the first backing
    /// device, the cache, the other backing devices.
    pub fn disks(&self) -> Vec<&Path> {
        let mut disks: Vec<&Path> = self.backing.iter().map(PathBuf::as_path).collect();
        disks.insert(disks.len().min(1), &self.cache);
        disks
    }
}

/// A superblock that a stock kernel was offered, and what it said: a line of
/// `fixtures/kernel-verdicts`. The device had 128 MiB and logical blocks of 512 bytes.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Verdict {
    /// Number of the case, from 0.
    pub case: usize,
    /// Whether it is meant as a backing device's.
    pub backing: bool,
    /// Its flags.
    pub flags: u64,
    /// Whether the kernel accepted it.
    pub kernel_accepts: bool,
    /// The kernel's reason for refusing it, empty when it accepted.
    pub kernel_error: String,
    /// The first 16 KiB of the device, the superblock at byte 4096.
    #[serde(skip)]
    pub record: Vec<u8>,
}

impl Verdict {
    /// Size of the device that each superblock was on.
    pub const DEVICE_SIZE: u64 = 128 << 20;

    /// All cases, in the order of their numbers.
    pub fn all() -> anyhow::Result<Vec<Self>> {
        const RECORD_SIZE: usize = 16 << 10;
        let lines = fs::read_to_string(folder("kernel-verdicts").join("verdicts-6.1.jsonl"))
            .context("read the verdicts")?;
        let packed = File::open(folder("kernel-verdicts").join("records.img.zst"))
            .context("open the records")?;
        let records = zstd::decode_all(packed).context("unpack the records")?;
        let mut verdicts = lines
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
            .collect::<anyhow::Result<Vec<Self>>>()?;
        let count = records.len() / RECORD_SIZE;
        ensure!(
            count == verdicts.len() && count > 0,
            "{count} records, {} verdicts",
            verdicts.len()
        );
        for (index, (verdict, record)) in
            verdicts.iter_mut().zip(records.chunks(RECORD_SIZE)).enumerate()
        {
            ensure!(verdict.case == index, "case {} in line {index}", verdict.case);
            verdict.record = record.to_vec();
        }
        Ok(verdicts)
    }
}

/// A folder of `tests/fixtures`.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Unpacks `NAME.zst` as `NAME` into the scratch folder. That takes a while: it is done once, and copied.
pub fn unpack(packed: &Path, scratch: &Scratch) -> anyhow::Result<PathBuf> {
    let name = packed.file_stem().context("a file name")?.to_string_lossy();
    let bytes = fs::read(packed).with_context(|| format!("read {}", packed.display()))?;
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let image = kept(format!("images/{:016x}", hasher.finish()), |file| {
        write_sparse(zstd::Decoder::new(&bytes[..])?, file.as_file_mut())
            .with_context(|| format!("unpack {}", packed.display()))
    })?;
    scratch.copy(&name, &image)
}
