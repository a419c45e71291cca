//! The kernel's binary trace (`linux/blktrace_api.h`): one merged stream, or a file for each CPU.
//!
//! Records are in the byte order of the machine that recorded them, which the magic tells. Files of
//! several CPUs are merged by time; sequence numbers are not looked at, for where the file of a CPU
//! is missing they would make one drop what the others have.

use std::path::{Path, PathBuf};

use super::number::unsigned32;
use super::records::{Devices, fill, pass_over};
use super::skipped::{SkipReason, Skipped};
use super::source::Input;
use super::{Flags, Op, Reader, Request, TraceError, checked, sectors_of};

const RECORD: usize = 48;
/// `BLK_IO_TRACE_MAGIC`; the last byte is the version.
const MAGIC: u32 = 0x6561_7400;
const MAGIC_MASK: u32 = 0xffff_ff00;

/// Categories, in the high half of the action.
const WRITE: u32 = 1 << 1;
const FLUSH: u32 = 1 << 2;
const SYNC: u32 = 1 << 3;
const NOTIFY: u32 = 1 << 10;
const AHEAD: u32 = 1 << 11;
const META: u32 = 1 << 12;
const DISCARD: u32 = 1 << 13;
const FUA: u32 = 1 << 15;
/// Actions, in the low half.
const QUEUE: u32 = 1;
const PLUG: u32 = 10;
const UNPLUG_TIMER: u32 = 12;

/// In which order the bytes of numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Little,
    Big,
}

/// The order of a stream that begins with a record.
pub(super) fn order(beginning: &[u8]) -> Option<Order> {
    let bytes = *beginning.first_chunk()?;
    if beginning.len() < RECORD {
        return None;
    }
    if u32::from_le_bytes(bytes) & MAGIC_MASK == MAGIC {
        Some(Order::Little)
    } else if u32::from_be_bytes(bytes) & MAGIC_MASK == MAGIC {
        Some(Order::Big)
    } else {
        None
    }
}

/// One stream of records, with the request that is next in it.
struct Stream {
    input: Input,
    order: Order,
    next: Option<(u32, Request)>,
    /// Nothing more comes.
    ended: bool,
}

pub(super) struct Blktrace {
    streams: Vec<Stream>,
    devices: Devices,
    skipped: Skipped,
}

struct Record([u8; RECORD], Order);

impl Record {
    fn u32(&self, at: usize) -> u32 {
        let bytes = [self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]];
        match self.1 {
            Order::Little => u32::from_le_bytes(bytes),
            Order::Big => u32::from_be_bytes(bytes),
        }
    }

    fn u64(&self, at: usize) -> u64 {
        let (first, second) = (u64::from(self.u32(at)), u64::from(self.u32(at + 4)));
        match self.1 {
            Order::Little => second << 32 | first,
            Order::Big => first << 32 | second,
        }
    }

    fn pdu_len(&self) -> u64 {
        let bytes = [self.0[46], self.0[47]];
        u64::from(match self.1 {
            Order::Little => u16::from_le_bytes(bytes),
            Order::Big => u16::from_be_bytes(bytes),
        })
    }

    /// Device and request, or why it is none.
    fn request(&self) -> Result<(u32, Request), SkipReason> {
        let action = self.u32(28);
        let (category, stage) = (action >> 16, action & 0xffff);
        let is = |bits: u32| category & bits != 0;
        if is(NOTIFY) || (PLUG..=UNPLUG_TIMER).contains(&stage) {
            return Err(SkipReason::Notice);
        }
        if stage != QUEUE {
            return Err(SkipReason::OtherStage);
        }
        let op = if is(DISCARD) {
            Op::Discard
        } else if is(WRITE) {
            Op::Write
        } else {
            Op::Read
        };
        let mut flags = Flags::NONE;
        for (bits, flag) in
            [(SYNC | FLUSH | FUA, Flags::SYNC), (AHEAD, Flags::READAHEAD), (META, Flags::META)]
        {
            if is(bits) {
                flags = flags.with(flag);
            }
        }
        let (_, sectors) = sectors_of(0, u64::from(self.u32(24)));
        let request = Request {
            time_ns: self.u64(8),
            sector: self.u64(16),
            process: Some(self.u32(32)),
            sectors,
            device: 0,
            op,
            flags,
        };
        Ok((self.u32(36), request))
    }
}

impl Stream {
    /// Reads on to the next request.
    fn advance(&mut self, skipped: &mut Skipped) -> Result<(), TraceError> {
        self.next = None;
        let mut bytes = [0; RECORD];
        while !self.ended {
            if !fill(&mut self.input, &mut bytes, skipped)? {
                self.ended = true;
                break;
            }
            let record = Record(bytes, self.order);
            if record.u32(0) & MAGIC_MASK != MAGIC {
                // Where the next record would begin is not known any more.
                skipped.add(SkipReason::NotUnderstood);
                self.ended = true;
                break;
            }
            if !pass_over(&mut self.input, record.pdu_len())? {
                skipped.add(SkipReason::CutOff);
                self.ended = true;
            }
            match record.request() {
                Err(reason) => skipped.add(reason),
                Ok((device, request)) => {
                    if let Some(request) = checked(request, skipped) {
                        self.next = Some((device, request));
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Blktrace {
    pub(super) fn new(inputs: Vec<(Input, Order)>) -> Result<Self, TraceError> {
        let mut skipped = Skipped::default();
        let mut streams = Vec::new();
        for (input, order) in inputs {
            let mut stream = Stream { input, order, next: None, ended: false };
            stream.advance(&mut skipped)?;
            streams.push(stream);
        }
        Ok(Self { streams, devices: Devices::default(), skipped })
    }
}

impl Reader for Blktrace {
    fn next_request(&mut self) -> Result<Option<Request>, TraceError> {
        let time = |stream: &Stream| stream.next.map(|(_, request)| request.time_ns);
        let earliest = self
            .streams
            .iter_mut()
            .filter(|stream| stream.next.is_some())
            .min_by_key(|stream| time(stream));
        let Some(stream) = earliest else { return Ok(None) };
        let Some((number, request)) = stream.next.take() else { return Ok(None) };
        stream.advance(&mut self.skipped)?;
        let name = format!("{},{}", number >> 20, number & 0xf_ffff);
        Ok(Some(Request { device: self.devices.number(&name)?, ..request }))
    }

    fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    fn devices(&self) -> Vec<String> {
        self.devices.names()
    }
}

/// The per-CPU files of `NAME`: `NAME.blktrace.0` and on, as blkparse's -i takes them.
pub(super) fn files_of(name: &Path) -> Vec<PathBuf> {
    let prefix = format!("{}.blktrace.", name.file_name().unwrap_or_default().to_string_lossy());
    let folder = name.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut files: Vec<(u32, PathBuf)> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let rest = name.strip_prefix(&prefix)?;
            let cpu = rest.split('.').next().and_then(unsigned32)?;
            Some((cpu, entry.path()))
        })
        .collect();
    files.sort();
    files.into_iter().map(|(_, path)| path).collect()
}
