//! Dropping the bytes of segments that every device has.

use pacsync_protocol::{Seq, SpaceId, VersionVector};
use redb::ReadableTable;

use crate::error::StoreError;
use crate::tables::SEGMENTS;
use crate::txn::Txn;

/// What a call has dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Segments.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether there is more to drop.
    pub more: bool,
}

impl Txn<'_> {
    /// Drops the bytes of applied segments that end at or below `stable`, at most `limit` of them.
    /// Never of the roster, and never where a log here is not the one that `stable` names,
    /// nor of a space with a forked log.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn prune(
        &mut self,
        space: &SpaceId,
        stable: &VersionVector,
        limit: usize,
    ) -> Result<Pruned, StoreError> {
        let mut pruned = Pruned::default();
        if *space == self.store.roster_space() {
            return Ok(pruned);
        }
        let space_no = self.space(space)?.no;
        let logs = self.logs()?;
        // Branches are asked for from where they part, which a stable vector does not say.
        let forked = |(_, record): &(u32, _)| {
            let record: &crate::tables::LogRecord = record;
            record.space == space_no && record.id.branch.is_some()
        };
        if logs.iter().any(forked) {
            return Ok(pruned);
        }
        for (no, mut record) in logs {
            let Some(head) = stable.get(&record.id) else {
                continue;
            };
            if record.space != space_no || record.applied < head.seq {
                continue;
            }
            let same = self
                .segment_record(no, head.seq)?
                .is_some_and(|found| found.hash.to_short() == head.hash);
            if !same {
                continue;
            }
            let mut table = self.tx.open_table(SEGMENTS)?;
            let mut doomed: Vec<(Seq, u64)> = vec![];
            for item in table.range((no, 0)..=(no, head.seq))? {
                let (key, bytes) = item?;
                if pruned.segments as usize + doomed.len() >= limit {
                    pruned.more = true;
                    break;
                }
                doomed.push((key.value().1, bytes.value().len() as u64));
            }
            for (last, bytes) in &doomed {
                table.remove((no, *last))?;
                pruned.bytes += bytes;
                record.bytes = record.bytes.saturating_sub(*bytes);
            }
            drop(table);
            if !doomed.is_empty() {
                pruned.segments += doomed.len() as u64;
                self.put_log(no, &record)?;
            }
            if pruned.more {
                break;
            }
        }
        Ok(pruned)
    }
}
