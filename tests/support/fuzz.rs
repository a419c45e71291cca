//! The bodies of the fuzz targets: each takes any bytes and panics when something is wrong. The
//! targets in `fuzz/` feed them what libFuzzer comes up with, `make check` a bounded number of
//! generated inputs.

use bcache_cli::out::{Out, Style};
use bcache_cli::rows::Format;
use bcache_core::device::testkit::MemoryDevice;
use bcache_core::device::{BlockDevice as _, ReadDevice as _};
use bcache_core::layout::superblock::{
    BCACHE_MAGIC, Kind, SB_BYTES, SB_OFFSET_BYTES, SB_SECTOR, Superblock,
};
use bcache_core::layout::verdict::{Target, Warning, kernel_verdict};
use bcache_core::units::Sectors;
use bcachectl::cli::ShowArgs;
use bcachectl::commands::show::show_device;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Sizes of the devices that superblocks are put on, in bytes: too short for one, of odd length,
/// small, and as large as is still quickly read.
const SIZES: [u64; 8] = [0, 4096, 6144, 8191, 8192, 3 << 20, 128 << 20, (1 << 30) + 12345 * 512];

/// Bits of the first byte of [`show`]'s input.
pub mod bits {
    /// Offset and magic are put right, without which nothing else is looked at.
    pub const MAGIC: u8 = 1;
    /// The checksum is put right.
    pub const CHECKSUM: u8 = 2;
    /// The device has logical blocks of 4 KiB.
    pub const BLOCK_4K: u8 = 4;
    /// JSON instead of tables.
    pub const JSON: u8 = 8;
    /// Tables as on a terminal.
    pub const TERMINAL: u8 = 16;
    /// Everything that the device holds, not the superblock alone.
    pub const ALL: u8 = 32;
}

/// Input for [`show`]: `options` of [`bits`], which of the sizes the device has, its bytes from the
/// superblock on.
pub fn show_input(options: u8, size: u8, superblock: &[u8]) -> Vec<u8> {
    [&[options, size], superblock].concat()
}

/// Any bytes as a superblock on a device, and what follows it: its verdict, and `bcachectl show` of
/// it in all its forms. Nothing panics, nothing is written, and what the verdict calls sound is.
///
/// # Panics
///
/// Where any of that does not hold.
pub fn show(data: &[u8]) {
    let [options, size, rest @ ..] = data else { return };
    let has = |bit: u8| options & bit != 0;
    let size_bytes = SIZES[usize::from(*size) % SIZES.len()];
    let mut bytes = rest.to_vec();
    if bytes.len() >= SB_BYTES && has(bits::MAGIC) {
        bytes[8..16].copy_from_slice(&SB_SECTOR.to_le_bytes());
        bytes[24..40].copy_from_slice(&BCACHE_MAGIC);
    }
    if let Some(mut superblock) = Superblock::from_bytes(&bytes) {
        assert_eq!(superblock.as_bytes(), &bytes[..SB_BYTES], "bytes are not kept");
        if has(bits::CHECKSUM) {
            superblock.update_checksum();
            bytes[..SB_BYTES].copy_from_slice(superblock.as_bytes());
        }
        judge(&superblock, size_bytes, if has(bits::BLOCK_4K) { 4096 } else { 512 });
    }
    show_on_device(&bytes, size_bytes, *options);
}

/// What the verdict promises of a superblock that it accepts without a fatal warning.
fn judge(superblock: &Superblock, size_bytes: u64, logical_block_bytes: u32) {
    let size = Sectors::from_bytes_floor(size_bytes);
    let target =
        Target { device_size: size, disk_size: size, logical_block_bytes, is_bcache_volume: false };
    let verdict = kernel_verdict(superblock, &target);
    assert_eq!(verdict, kernel_verdict(&superblock.clone(), &target));
    if !verdict.accepts() || verdict.warnings.iter().any(Warning::is_fatal) {
        return;
    }
    assert!(superblock.csum_ok() && superblock.magic_ok());
    match superblock.kind() {
        Some(Kind::Cache) => {
            let geometry = superblock.geometry().expect("an accepted cache has a geometry");
            assert!(geometry.size() <= size && superblock.replacement().is_some());
            assert!(geometry.prio_buckets() < geometry.nbuckets());
        }
        Some(Kind::Backing) => assert!(superblock.data_offset() < size),
        None => panic!("a device of no known kind is accepted"),
    }
}

fn show_on_device(bytes: &[u8], size_bytes: u64, options: u8) {
    let has = |bit: u8| options & bit != 0;
    // The whole logical blocks of what fits.
    let block = if has(bits::BLOCK_4K) { 4096 } else { 512 };
    let device = MemoryDevice::new(size_bytes).with_block(block);
    let fits = size_bytes.saturating_sub(SB_OFFSET_BYTES).min(bytes.len() as u64);
    let whole = fits / u64::from(block) * u64::from(block);
    let len = usize::try_from(whole).expect("no more than there are bytes");
    device.write_at(SB_OFFSET_BYTES.min(size_bytes), &bytes[..len]).expect("it fits");
    let before = device.content_hash();

    let args = ShowArgs {
        format: has(bits::JSON).then_some(Format::Json),
        all: has(bits::ALL),
        ..ShowArgs::default()
    };
    let terminal = has(bits::TERMINAL);
    let printed = Printed::default();
    let mut out = Out::new(
        printed.clone(),
        Style { terminal, colour: terminal, width: terminal.then_some(80) },
    );
    // An error is an answer, too; a panic is none.
    let result = show_device(&mut out, &args, &device);
    let printed = printed.0.lock().unwrap_or_else(PoisonError::into_inner);
    let text = std::str::from_utf8(&printed).expect("output is UTF-8");
    if has(bits::JSON) {
        if let Err(error) = serde_json::from_str::<serde_json::Value>(text) {
            assert!(result.is_err(), "no JSON ({error}), and no error: {text}");
        }
    } else if !terminal {
        assert!(!text.contains('\x1b'), "raw control characters: {text:?}");
    }
    assert!(result.is_err() || !text.is_empty(), "nothing is said");
    assert_eq!(device.content_hash(), before, "the device was written");
    assert_eq!(device.info().size_bytes, size_bytes);
}

/// What was printed, readable while the output still has it.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl io::Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
