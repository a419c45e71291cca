//! Writing a chain of prio sets through an [`AllocatorIo`].

use super::core::Refiller;
use super::io::AllocatorIo;
use super::planted::{self, Bug};
use super::prios::PrioWriteError;
use super::table::TableError;

/// Writes a chain of prio sets at once and makes it current, outside the thread: to bring a cache into
/// use, and to have its newest prios on the device when it is put down. Prios must not be
/// blocked.
///
/// Nothing of `free_inc` becomes ready by it.
pub fn write_prios<Io: AllocatorIo>(
    refiller: &Refiller<'_>,
    io: &mut Io,
) -> Result<(), WriteError<Io::Error>> {
    let mut written = write_sets(refiller, io);
    let journal_tried = written.is_ok();
    if journal_tried {
        written = write_entry(refiller, io);
    }
    match written {
        Ok(()) => Ok(refiller.prio_write_commit()?),
        Err(error) => {
            refiller.prio_write_abort(journal_tried)?;
            Err(error)
        }
    }
}

/// Names the chain again whose journal entry failed, if there is one, so that it is current for
/// certain and the buckets of the older ones are free: on a full cache there may be no others for the
/// next chain. Its sets were flushed before the entry was tried the first time.
fn settle_doubt<Io: AllocatorIo>(
    refiller: &Refiller<'_>,
    io: &mut Io,
) -> Result<(), WriteError<Io::Error>> {
    let head = refiller.core().prio_chains().in_doubt().and_then(|chain| chain.first().copied());
    let Some(head) = head else { return Ok(()) };
    io.write_journal_entry(head).map_err(WriteError::Io)?;
    io.flush().map_err(WriteError::Io)?;
    Ok(refiller.prio_doubt_settled()?)
}

/// Writes the sets of a new chain, and makes them durable.
pub(crate) fn write_sets<Io: AllocatorIo>(
    refiller: &Refiller<'_>,
    io: &mut Io,
) -> Result<(), WriteError<Io::Error>> {
    settle_doubt(refiller, io)?;
    refiller.prio_write_begin()?;
    // All buckets before the first write: where one is missing, the others are free again at once, and
    // nothing may then be on its way to them.
    let mut sets = Vec::new();
    while let Some(set) = refiller.prio_write_next()? {
        sets.push(set);
    }
    for set in &sets {
        io.write_prio_set(set, refiller.core().table()).map_err(WriteError::Io)?;
    }
    if !planted::is(Bug::SkippedFlush) {
        io.flush().map_err(WriteError::Io)?;
    }
    Ok(())
}

/// Writes the journal entry that makes them current.
pub(crate) fn write_entry<Io: AllocatorIo>(
    refiller: &Refiller<'_>,
    io: &mut Io,
) -> Result<(), WriteError<Io::Error>> {
    if let Some(head) = refiller.prio_write_head() {
        io.write_journal_entry(head).map_err(WriteError::Io)?;
        io.flush().map_err(WriteError::Io)?;
    }
    Ok(())
}

/// Why a chain of prio sets was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError<E: std::error::Error + 'static> {
    /// The reserves hold too few buckets for it.
    #[error("too few free buckets for the prio sets")]
    TooFewBuckets,
    /// A thread, or another, refills the reserves: it writes prios itself.
    #[error("the reserves of the cache are being refilled by another")]
    RefillerTaken,
    /// The table is not consistent.
    #[error("the bucket table is inconsistent")]
    Table(#[from] TableError),
    /// The device failed.
    #[error("writing priorities and gens failed")]
    Io(#[source] E),
}

impl<E: std::error::Error + 'static> From<PrioWriteError> for WriteError<E> {
    fn from(error: PrioWriteError) -> Self {
        match error {
            PrioWriteError::TooFewBuckets { .. } => Self::TooFewBuckets,
            PrioWriteError::Table(error) => Self::Table(error),
        }
    }
}
