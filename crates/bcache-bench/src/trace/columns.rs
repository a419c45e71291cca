//! Which column of a CSV is what.

use std::str::FromStr;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Time, in units of so many ns (10^exponent for decimals): s, ms, us, 100ns, ns.
    Time {
        /// ns of one unit.
        unit_ns: u64,
    },
    /// First byte.
    OffsetBytes,
    /// First sector.
    OffsetSectors,
    /// Length in bytes.
    SizeBytes,
    /// Length in sectors.
    SizeSectors,
    /// Direction: Read, R, r or 0 is a read; Write, W, w or 1 a write; D, Discard, Trim a discard.
    Op,
    /// Device or volume.
    Device,
    /// Process.
    Process,
    /// Nothing that matters.
    Ignored,
}

/// The columns of a CSV, from the left. Further ones are not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns(Vec<Column>);

/// What is wrong with a list of columns.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColumnsError {
    /// No such column.
    #[error(
        "\"{name}\" is no column; there are time-s, time-ms, time-us, time-100ns, time-ns, \
         offset-bytes, offset-sectors, size-bytes, size-sectors, op, device, process, and - for \
         others"
    )]
    Unknown {
        /// What was given.
        name: String,
    },
    /// A column that no trace can do without.
    #[error("an offset and a size are needed among the columns")]
    Missing,
}

impl FromStr for Columns {
    type Err = ColumnsError;

    fn from_str(text: &str) -> Result<Self, ColumnsError> {
        let columns: Vec<Column> = text
            .split(',')
            .map(|name| {
                Ok(match name.trim() {
                    "time-s" => Column::Time { unit_ns: 1_000_000_000 },
                    "time-ms" => Column::Time { unit_ns: 1_000_000 },
                    "time-us" => Column::Time { unit_ns: 1000 },
                    "time-100ns" => Column::Time { unit_ns: 100 },
                    "time-ns" => Column::Time { unit_ns: 1 },
                    "offset-bytes" => Column::OffsetBytes,
                    "offset-sectors" => Column::OffsetSectors,
                    "size-bytes" => Column::SizeBytes,
                    "size-sectors" => Column::SizeSectors,
                    "op" => Column::Op,
                    "device" => Column::Device,
                    "process" => Column::Process,
                    "-" => Column::Ignored,
                    name => return Err(ColumnsError::Unknown { name: name.to_owned() }),
                })
            })
            .collect::<Result<_, _>>()?;
        let has = |of: &[Column]| columns.iter().any(|column| of.contains(column));
        if has(&[Column::OffsetBytes, Column::OffsetSectors])
            && has(&[Column::SizeBytes, Column::SizeSectors])
        {
            Ok(Self(columns))
        } else {
            Err(ColumnsError::Missing)
        }
    }
}

impl Columns {
    /// From the left.
    pub fn iter(&self) -> impl Iterator<Item = Column> + '_ {
        self.0.iter().copied()
    }

    fn of(columns: &[Column]) -> Self {
        Self(columns.to_vec())
    }

    /// MSR Cambridge: `Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime`.
    pub fn msr() -> Self {
        use Column::{Device, Ignored, OffsetBytes, Op, SizeBytes, Time};
        // The host is told apart by the reader: it belongs to the device's name.
        Self::of(&[Time { unit_ns: 100 }, Device, Device, Op, OffsetBytes, SizeBytes, Ignored])
    }

    /// Tencent: `Timestamp,Offset,Size,IOType,VolumeID`.
    pub fn tencent() -> Self {
        use Column::{Device, OffsetSectors, Op, SizeSectors, Time};
        Self::of(&[Time { unit_ns: 1_000_000_000 }, OffsetSectors, SizeSectors, Op, Device])
    }

    /// Alibaba: `device_id,opcode,offset,length,timestamp`.
    pub fn alibaba() -> Self {
        use Column::{Device, OffsetBytes, Op, SizeBytes, Time};
        Self::of(&[Device, Op, OffsetBytes, SizeBytes, Time { unit_ns: 1000 }])
    }

    /// UMass, SPC: `ASU,LBA,Size,Opcode,Timestamp`.
    pub fn spc() -> Self {
        use Column::{Device, OffsetSectors, Op, SizeBytes, Time};
        Self::of(&[Device, OffsetSectors, SizeBytes, Op, Time { unit_ns: 1_000_000_000 }])
    }
}
