//! Reading and writing files of any size, direct and buffered; claims.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::device::AlignedBuf;
use crate::units::Sectors;

fn dir() -> TempDir {
    TempDir::new().unwrap()
}

fn image(dir: &TempDir, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join("image");
    fs::write(&path, bytes).unwrap();
    path
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 7 + i / 512) % 251).unwrap()).collect()
}

fn open(path: &Path, access: Access, direct: Direct) -> Handle {
    Handle::open(path, access, direct).unwrap()
}

/// Reads at the end of an image whose size is no multiple of anything, with and without
/// direct access, and through the path that block devices take.
#[test]
fn every_byte_of_an_odd_image_can_be_read() {
    let dir = dir();
    for size in [0usize, 1, 511, 513, 4095, 4097, 10_000, (1 << 20) + 4097] {
        let bytes = pattern(size);
        let path = image(&dir, &bytes);
        let mut handles = vec![
            open(&path, Access::Read, Direct::WherePossible),
            open(&path, Access::Read, Direct::Never),
        ];
        let mut bounced = open(&path, Access::Read, Direct::WherePossible);
        bounced.buffered = None;
        handles.push(bounced);
        for handle in &handles {
            assert_eq!(handle.info.size_bytes, size as u64);
            for start in [0, 1, 512, 4096, size.saturating_sub(1), size.saturating_sub(700)] {
                let start = start.min(size);
                let mut buf = vec![0; size - start];
                handle.read_at(start as u64, &mut buf).unwrap();
                assert_eq!(buf, bytes.get(start..).unwrap_or_default(), "size {size} from {start}");
            }
            let past = handle.read_at(size as u64, &mut [0]);
            assert!(matches!(past, Err(DeviceError::OutOfRange { .. })));
        }
    }
}

#[test]
fn an_image_that_shrinks_is_an_error_and_not_old_bytes() {
    let dir = dir();
    let path = image(&dir, &pattern(16384));
    let reader = open_read(&path).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(6000).unwrap();
    for (offset, len) in [(8192u64, 4096usize), (4096, 4096), (5999, 3)] {
        let mut buf = AlignedBuf::zeroed(len);
        match reader.read_at(offset, &mut buf) {
            Err(DeviceError::Io { operation: Operation::Read, offset: at, source, .. }) => {
                assert_eq!((at, source.kind()), (offset, io::ErrorKind::UnexpectedEof));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write { block: usize, blocks: usize, fill: u8, skew: usize },
    Discard { block: usize, blocks: usize },
    Read { offset: usize, len: usize },
    Flush,
}

const BLOCKS: usize = 96;

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let range = || (0..BLOCKS, 0..40usize).prop_map(|(at, len)| (at, len.min(BLOCKS - at)));
    let op = prop_oneof![
        (range(), 1u8.., prop_oneof![Just(0), Just(512), 1..9usize])
            .prop_map(|((block, blocks), fill, skew)| Op::Write { block, blocks, fill, skew }),
        range().prop_map(|(block, blocks)| Op::Discard { block, blocks }),
        (0..BLOCKS * 512, 0..30_000usize)
            .prop_map(|(offset, len)| Op::Read { offset, len: len.min(BLOCKS * 512 - offset) }),
        Just(Op::Flush),
    ];
    proptest::collection::vec(op, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Aligned and unaligned accesses mixed, from memory of any alignment: direct and buffered
    /// descriptors see each other's writes.
    #[test]
    fn an_image_behaves_as_a_vector_of_bytes(ops in ops(), never_direct: bool) {
        let dir = dir();
        let path = dir.path().join("image");
        let device = create_image(&path, BLOCKS as u64 * 512).unwrap();
        let mut model = vec![0u8; BLOCKS * 512];
        for op in ops {
            match op {
                Op::Write { block, blocks, fill, skew } => {
                    let mut memory = AlignedBuf::zeroed(blocks * 512 + skew);
                    memory.fill(fill);
                    device.write_at(block as u64 * 512, &memory[skew..]).unwrap();
                    model[block * 512..][..blocks * 512].fill(fill);
                }
                Op::Discard { block, blocks } => {
                    device.discard(block as u64 * 512, blocks as u64 * 512).unwrap();
                    model[block * 512..][..blocks * 512].fill(0);
                }
                Op::Read { offset, len } => {
                    let mut buf = AlignedBuf::zeroed(len);
                    device.read_at(offset as u64, &mut buf).unwrap();
                    prop_assert_eq!(&*buf, &model[offset..][..len]);
                }
                Op::Flush => device.flush().unwrap(),
            }
        }
        drop(device);
        prop_assert_eq!(&fs::read(&path).unwrap(), &model);
        let direct = if never_direct { Direct::Never } else { Direct::WherePossible };
        let mut all = vec![0; model.len()];
        open(&path, Access::Read, direct).read_at(0, &mut all).unwrap();
        prop_assert_eq!(all, model);
    }
}

#[test]
fn writes_must_be_whole_blocks_in_range() {
    let dir = dir();
    let path = image(&dir, &[5; 4096 + 100]);
    let device = open_write(&path).unwrap();
    assert!(matches!(device.write_at(100, &[0; 512]), Err(DeviceError::Misaligned { .. })));
    assert!(matches!(device.write_at(0, &[0; 100]), Err(DeviceError::Misaligned { .. })));
    assert!(matches!(device.discard(4096, 512), Err(DeviceError::OutOfRange { .. })));
    assert!(matches!(device.write_at(4096, &[0; 512]), Err(DeviceError::OutOfRange { .. })));
    assert_eq!(fs::read(&path).unwrap(), [5; 4196]);
}

#[test]
fn one_writer_at_a_time_and_readers_any_time() {
    let dir = dir();
    let path = image(&dir, &[0; 8192]);
    let writer = open_write(&path).unwrap();
    match open_write(&path) {
        Err(error @ DeviceError::Busy { .. }) => {
            let text = error.to_string();
            assert!(text.ends_with("is in use; locked by another process"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    open_read(&path).unwrap();
    drop(writer);
    open_write(&path).unwrap();
}

#[test]
fn a_new_image_is_sparse_and_never_replaces_a_file() {
    let dir = dir();
    let path = dir.path().join("new");
    let device = create_image(&path, 8 << 30).unwrap();
    assert_eq!(device.info().size(), Sectors(16 << 20));
    assert!(fs::metadata(&path).unwrap().blocks() < 100);
    drop(device);
    assert!(matches!(
        create_image(&path, 4096),
        Err(DeviceError::Create { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists
    ));
    assert_eq!(fs::metadata(&path).unwrap().len(), 8 << 30);
    let impossible = dir.path().join("impossible");
    assert!(matches!(create_image(&impossible, u64::MAX), Err(DeviceError::Create { .. })));
    assert!(!impossible.exists());
}

#[test]
fn what_is_no_device_is_refused() {
    let dir = dir();
    assert!(matches!(open_read(dir.path()), Err(DeviceError::NotADevice { .. })));
    assert!(matches!(open_write("/dev/null"), Err(DeviceError::NotADevice { .. })));
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(open_read(&fifo), Err(DeviceError::NotADevice { .. })));
    assert!(matches!(
        open_read(dir.path().join("nothing")),
        Err(DeviceError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound
    ));
}
