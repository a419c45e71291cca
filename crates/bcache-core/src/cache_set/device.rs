//! A cache device with a superblock that says where everything is.

use crate::device::{AlignedBuf, DeviceError, ReadDevice, partition_with_bcache};
use crate::layout::SetMagic;
use crate::layout::superblock::{Kind, SB_BYTES, SB_OFFSET_BYTES, Superblock};
use crate::layout::verdict::{Verdict, kernel_verdict};
use crate::units::{BucketIndex, Geometry, Sectors};

/// Why a device cannot be read as a cache device at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The superblock could not be read.
    #[error("the superblock cannot be read")]
    Device(#[from] DeviceError),
    /// The magic is not there.
    #[error("no bcache superblock at sector 8")]
    NotBcache,
    /// There is no superblock, and what is left of a cache set does not tell what it was.
    #[error(
        "no bcache superblock at sector 8, and the journal of a cache set is at {at}: what it holds \
         cannot be told"
    )]
    Remains {
        /// Where an entry of its journal is.
        at: Sectors,
    },
    /// There is no superblock on the disk, and one in a partition of it.
    #[error("no bcache superblock at sector 8, and one in partition {number}: name the partition")]
    InPartition {
        /// The partition.
        number: u32,
    },
    /// It is a backing device, which holds no cache set.
    #[error("a backing device: it holds no journal, btree or prios")]
    BackingDevice,
    /// A version that no kernel knows.
    #[error("superblock version {version} is unknown")]
    UnknownVersion {
        /// The version.
        version: u64,
    },
    /// Bucket or block sizes, or numbers of buckets, that make no device.
    #[error("the superblock's sizes make no sense: {nbuckets} buckets of {bucket_size} sectors")]
    BadGeometry {
        /// Buckets.
        nbuckets: u64,
        /// Sectors of a bucket.
        bucket_size: u64,
    },
    /// The buckets reach past the end of the device: too many of them to be read all the same (see
    /// [`TRUNCATED_NBUCKETS_MAX`]), or it was to be written.
    #[error("the {nbuckets} buckets cover {needed}, the device has {size}")]
    TooSmall {
        /// Buckets.
        nbuckets: u64,
        /// What the buckets cover.
        needed: Sectors,
        /// What there is.
        size: Sectors,
    },
}

impl OpenError {
    /// Why `device`, which has no superblock of bcache, is none of its devices.
    pub fn without_superblock(device: &dyn ReadDevice) -> Self {
        partition_with_bcache(device).map_or(Self::NotBcache, |number| Self::InPartition { number })
    }
}

/// Most buckets of a device that is shorter than they are, such as the beginning of an image. What
/// is left of it is read, and all of it takes the 8 bytes a bucket that [`CacheSet`] needs: at most
/// 268 MB, whatever a damaged superblock says. A device as long as its buckets bounds that itself.
///
/// [`CacheSet`]: crate::cache_set::CacheSet
pub const TRUNCATED_NBUCKETS_MAX: u64 = 1 << 25;

/// A readable cache device: device, superblock and geometry.
///
/// A superblock whose checksum is wrong, or that the kernel refuses for another reason, is taken as
/// long as its figures make a device: [`CacheDevice::verdict`] has the refusal. What lies past the end
/// of a device that is too short cannot be read.
#[derive(Clone)]
pub struct CacheDevice<'d> {
    device: &'d dyn ReadDevice,
    sb: Superblock,
    geometry: Geometry,
    verdict: Verdict,
}

impl<'d> CacheDevice<'d> {
    /// Reads the superblock.
    pub fn open(device: &'d dyn ReadDevice) -> Result<Self, OpenError> {
        match read_superblock(device)?.filter(Superblock::magic_ok) {
            Some(sb) => Self::with_superblock(device, sb),
            None => Err(OpenError::without_superblock(device)),
        }
    }

    /// Takes `sb` for the device's superblock, whatever stands on the device: for one whose fields
    /// were damaged and can be told from the rest.
    pub fn with_superblock(device: &'d dyn ReadDevice, sb: Superblock) -> Result<Self, OpenError> {
        match sb.kind() {
            Some(Kind::Cache) => {}
            Some(Kind::Backing) => return Err(OpenError::BackingDevice),
            None => return Err(OpenError::UnknownVersion { version: sb.version() }),
        }
        let geometry = sb.geometry().ok_or(OpenError::BadGeometry {
            nbuckets: sb.nbuckets(),
            bucket_size: sb.bucket_size().0,
        })?;
        let info = device.info();
        if geometry.nbuckets() > TRUNCATED_NBUCKETS_MAX {
            fits(&geometry, info.size())?;
        }
        let verdict = kernel_verdict(&sb, &info.target());
        Ok(Self { device, sb, geometry, verdict })
    }

    /// Whether all buckets are on the device.
    pub fn is_whole(&self) -> Result<(), OpenError> {
        fits(&self.geometry, self.device.info().size())
    }

    /// The device.
    pub fn device(&self) -> &'d dyn ReadDevice {
        self.device
    }

    /// The superblock.
    pub const fn superblock(&self) -> &Superblock {
        &self.sb
    }

    /// Gives the set its UUID, where its superblock did not survive with all of it.
    pub(crate) fn name_set(&mut self, set_uuid: uuid::Uuid) {
        self.sb.edit(|edit| _ = edit.set_uuid(set_uuid));
    }

    /// Its geometry.
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What the kernel says of the superblock alone.
    pub const fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// The magics of the set's structures.
    pub fn magic(&self) -> SetMagic {
        self.sb.set_magic()
    }

    /// The journal buckets, in the journal's order; numbers out of range are left out.
    ///
    /// The kernel refuses a superblock that names any such bucket.
    pub fn journal_buckets(&self) -> Vec<BucketIndex> {
        self.sb
            .journal_buckets()
            .map(BucketIndex)
            .filter(|&bucket| self.geometry.contains(bucket))
            .collect()
    }

    /// Fills `buf` from the byte `offset` of `bucket`.
    pub fn read_bucket(
        &self,
        bucket: BucketIndex,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), DeviceError> {
        let start = self.geometry.bucket_to_sector(bucket).bytes();
        self.device.read_at(start.saturating_add(offset), buf)
    }
}

/// What stands where a superblock would be; `None` where the device is too short for one. The magic
/// need not be right.
pub fn read_superblock(
    device: &(impl ReadDevice + ?Sized),
) -> Result<Option<Superblock>, DeviceError> {
    if device.info().size_bytes < SB_OFFSET_BYTES + SB_BYTES as u64 {
        return Ok(None);
    }
    let mut bytes = AlignedBuf::zeroed(SB_BYTES);
    device.read_at(SB_OFFSET_BYTES, &mut bytes)?;
    Ok(Superblock::from_bytes(&bytes))
}

/// The same of a device that has to be long enough for one.
pub(crate) fn expect_superblock(
    device: &(impl ReadDevice + ?Sized),
) -> Result<Superblock, DeviceError> {
    read_superblock(device)?.ok_or_else(|| DeviceError::OutOfRange {
        path: device.info().path.clone(),
        offset: SB_OFFSET_BYTES,
        len: SB_BYTES as u64,
        size_bytes: device.info().size_bytes,
    })
}

fn fits(geometry: &Geometry, size: Sectors) -> Result<(), OpenError> {
    let (nbuckets, needed) = (geometry.nbuckets(), geometry.size());
    if needed > size { Err(OpenError::TooSmall { nbuckets, needed, size }) } else { Ok(()) }
}

impl std::fmt::Debug for CacheDevice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CacheDevice")
            .field("path", &self.device.info().path)
            .field("sb", &self.sb)
            .field("geometry", &self.geometry)
            .finish_non_exhaustive()
    }
}
