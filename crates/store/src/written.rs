//! Who wrote a row, and when: what its segments say, since rows hold neither.

use pacsync_protocol::{DeviceId, RowId, Seq, SpaceId, cbor};
use redb::{ReadOnlyTable, ReadTransaction};

use crate::error::StoreError;
use crate::replica::Store;
use crate::tables::{LOGS, LogRecord, SEGMENT_INDEX, SegmentRecord};
use crate::tree::{Carrier, TreeReader};

/// One writing of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Written {
    /// When, by the writer's clock, in milliseconds since 1970: for display only.
    pub time_ms: u64,
    /// By whom.
    pub device: DeviceId,
}

/// Answers who wrote what, as of one read transaction.
#[derive(Debug)]
pub struct Writers {
    logs: ReadOnlyTable<u32, &'static [u8]>,
    segments: ReadOnlyTable<(u32, u64), &'static [u8]>,
}

impl Writers {
    /// Opens the tables.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(tx: &ReadTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            logs: tx.open_table(LOGS)?,
            segments: tx.open_table(SEGMENT_INDEX)?,
        })
    }

    /// Who wrote an entry; `None` if its log or its segment is not here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn of(&self, carrier: Carrier) -> Result<Option<Written>, StoreError> {
        let Some(log) = self.logs.get(carrier.log)? else {
            return Ok(None);
        };
        let log: LogRecord = cbor::decode("log record", log.value())?;
        let range = (carrier.log, carrier.seq)..=(carrier.log, Seq::MAX);
        let Some(segment) = self.segments.range(range)?.next() else {
            return Ok(None);
        };
        let segment: SegmentRecord = cbor::decode("segment record", segment?.1.value())?;
        Ok(Some(Written {
            time_ms: segment.time_ms,
            device: log.id.device,
        }))
    }
}

impl Store {
    /// Who wrote a row, the earliest first; several where devices came to the same row each by
    /// itself. Empty for an unknown row.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn written(&self, space: &SpaceId, row: &RowId) -> Result<Vec<Written>, StoreError> {
        let no = self.space(space)?.no;
        let tx = self.read()?;
        let carriers = TreeReader::open(&tx, no)?.carriers(row)?;
        let writers = Writers::open(&tx)?;
        let mut written = vec![];
        for carrier in carriers {
            written.extend(writers.of(carrier)?);
        }
        written.sort_unstable();
        Ok(written)
    }
}
