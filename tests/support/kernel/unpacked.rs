//! A stock kernel without what unpacks it, which QEMU boots as it is.
//!
//! A guest without KVM takes two seconds to unpack the kernel, at each boot. What is unpacked is the same
//! kernel, byte for byte.

use crate::kept;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

/// Where in a bzImage its header says how many sectors of 512 bytes come before the kernel's code, less
/// the first one; and where the packed kernel is in that, and how long.
const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// The ELF note by which QEMU finds the entry: its type, 18, and name.
const PVH_NOTE: &[u8] = b"\x12\0\0\0Xen\0";

/// The kernel that is packed in `image`, kept in `folder` of the cache.
///
/// # Errors
/// When it cannot be unpacked, or is none that QEMU boots.
pub(super) fn unpacked(image: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    kept(folder.join("vmlinux"), |file| {
        let kernel = unpack(&fs::read(image)?);
        Ok(file.write_all(&kernel.with_context(|| format!("unpack {}", image.display()))?)?)
    })
}

fn unpack(image: &[u8]) -> anyhow::Result<Vec<u8>> {
    let number = |at: usize| -> anyhow::Result<usize> {
        let bytes = image.get(at..at + 4).context("no header")?;
        Ok(u32::from_le_bytes(bytes.try_into()?).try_into()?)
    };
    let setup_sectors = usize::from(*image.get(SETUP_SECTORS).context("no header")?);
    let start = (setup_sectors + 1) * 512 + number(PAYLOAD_OFFSET)?;
    let packed = image.get(start..start + number(PAYLOAD_LENGTH)?).context("no payload")?;
    // The size of what is packed comes behind it.
    let mut kernel = Vec::new();
    if packed.starts_with(XZ) {
        let mut xz = Command::new("xz")
            .args(["--decompress", "--stdout", "--single-stream"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("run xz")?;
        let mut stdin = xz.stdin.take().context("xz's input")?;
        let packed = packed.to_vec();
        // It may end before it has read what comes behind.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&packed)));
        let output = xz.wait_with_output().context("wait for xz")?;
        drop(writer.join());
        ensure!(output.status.success(), "xz failed: {}", output.status);
        kernel = output.stdout;
    } else if packed.starts_with(ZSTD) {
        zstd::Decoder::new(packed)?.single_frame().read_to_end(&mut kernel)?;
    }
    ensure!(kernel.starts_with(b"\x7fELF"), "not packed by xz or zstd");
    ensure!(kernel.windows(PVH_NOTE.len()).any(|it| it == PVH_NOTE), "no entry for QEMU");
    Ok(kernel)
}
