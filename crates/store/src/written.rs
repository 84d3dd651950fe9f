//! Who wrote a row, and when: what its segments say, since rows hold neither.

use pacsync_protocol::{DeviceId, RowId, Seq, SpaceId, cbor};

use crate::error::StoreError;
use crate::replica::Store;
use crate::tables::{LOGS, LogRecord, SEGMENT_INDEX, SegmentRecord};
use crate::tree::TreeReader;

/// One writing of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Written {
    /// When, by the writer's clock, in milliseconds since 1970: for display only.
    pub time_ms: u64,
    /// By whom.
    pub device: DeviceId,
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
        let logs = tx.open_table(LOGS)?;
        let segments = tx.open_table(SEGMENT_INDEX)?;
        let mut written = vec![];
        for carrier in carriers {
            let Some(log) = logs.get(carrier.log)? else {
                continue;
            };
            let log: LogRecord = cbor::decode("log record", log.value())?;
            let range = (carrier.log, carrier.seq)..=(carrier.log, Seq::MAX);
            let Some(segment) = segments.range(range)?.next() else {
                continue;
            };
            let segment: SegmentRecord = cbor::decode("segment record", segment?.1.value())?;
            written.push(Written {
                time_ms: segment.time_ms,
                device: log.id.device,
            });
        }
        written.sort_unstable();
        Ok(written)
    }
}
