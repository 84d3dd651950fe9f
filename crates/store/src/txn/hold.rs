//! Holding: the chain of a log goes on, its writer may write, there is room.

use std::collections::BTreeMap;

use pacsync_protocol::segment::VerifiedSegment;
use pacsync_protocol::{DeviceId, cbor};
use redb::ReadableTable;

use super::Txn;
use crate::error::{Refusal, StoreError};
use crate::replica::NewSegment;
use crate::tables::{LOGS, LogRecord, SEGMENT_INDEX, SEGMENTS, SegmentRecord};

/// Most logs of one device in one space: each is a life that ended with its index.
const LIVES_MAX: usize = 64;
/// Most keys without a grant whose roster segments are held.
pub const UNKNOWN_KEYS_MAX: usize = 16;
/// Most bytes of roster segments held of each such key.
pub const UNKNOWN_BYTES_MAX: u64 = 1 << 20;

impl Txn<'_> {
    /// Holds a received segment if its log's chain goes on with it. Already held: no error.
    ///
    /// # Errors
    /// Outer: the store failed. Inner: the segment was refused, nothing changed.
    pub fn hold(&mut self, segment: &VerifiedSegment) -> Result<Result<(), Refusal>, StoreError> {
        let header = segment.header();
        let log = header.log;
        let roster_space = self.store.roster_space;
        let known = header.space == roster_space || self.space(&header.space).is_ok();
        let allowed = header.space == roster_space
            || (known && self.roster().may_write(&log.device, &header.space));
        if !allowed {
            return Ok(Err(Refusal::NotAuthorised { log }));
        }
        let space_no = self.space_no(&header.space)?;
        let found = self.log(space_no, &log)?;
        if found.is_none() {
            let same =
                |record: &LogRecord| record.space == space_no && record.id.device == log.device;
            let lives = self
                .logs()?
                .iter()
                .filter(|(_, record)| same(record))
                .count();
            if lives >= LIVES_MAX {
                return Ok(Err(Refusal::TooManyLogs { log }));
            }
        }
        let (held, held_hash) = match &found {
            Some((_, record)) => (record.held, Some(record.held_hash)),
            None => (0, None),
        };
        if header.last() <= held {
            let no = found.map_or(0, |(no, _)| no);
            return Ok(match self.segment_record(no, header.last())? {
                Some(record) if record.hash == segment.hash() => Ok(()),
                _ => Err(Refusal::Fork { log }),
            });
        }
        if header.first <= held {
            return Ok(Err(Refusal::Fork { log }));
        }
        if header.first != held + 1 {
            return Ok(Err(Refusal::Gap { log }));
        }
        if header.prev != held_hash {
            return Ok(Err(Refusal::Fork { log }));
        }
        if header.space == roster_space && !self.has_room(space_no, segment)? {
            return Ok(Err(Refusal::NoRoom { log }));
        }
        self.put_segment(space_no, found, segment)?;
        Ok(Ok(()))
    }

    /// Whether a roster segment may be held: of a key without a grant only so much is, in case the
    /// grant comes later.
    fn has_room(&self, space_no: u32, segment: &VerifiedSegment) -> Result<bool, StoreError> {
        let author = segment.header().log.device;
        if self.roster().member(&author).is_some() {
            return Ok(true);
        }
        let mut unknown: BTreeMap<DeviceId, u64> = BTreeMap::new();
        for (_, record) in self.logs()? {
            let device = record.id.device;
            if record.space == space_no && self.roster().member(&device).is_none() {
                let bytes = unknown.entry(device).or_default();
                *bytes = bytes.saturating_add(record.bytes);
            }
        }
        let new = segment.bytes().len() as u64;
        Ok(match unknown.get(&author) {
            Some(held) => held.saturating_add(new) <= UNKNOWN_BYTES_MAX,
            None => unknown.len() < UNKNOWN_KEYS_MAX && new <= UNKNOWN_BYTES_MAX,
        })
    }

    pub(super) fn put_segment(
        &mut self,
        space: u32,
        found: Option<(u32, LogRecord)>,
        segment: &VerifiedSegment,
    ) -> Result<u32, StoreError> {
        let header = segment.header();
        let last = header.last();
        let (no, mut record) = match found {
            Some(found) => found,
            None => {
                let table = self.tx.open_table(LOGS)?;
                let no = table.last()?.map_or(1, |(no, _)| no.value() + 1);
                let record = LogRecord {
                    space,
                    id: header.log,
                    held: 0,
                    held_hash: segment.hash(),
                    applied: 0,
                    applied_hash: None,
                    bytes: 0,
                };
                (no, record)
            }
        };
        record.held = last;
        record.held_hash = segment.hash();
        record.bytes = record.bytes.saturating_add(segment.bytes().len() as u64);
        self.put_log(no, &record)?;
        let index = SegmentRecord {
            first: header.first,
            hash: segment.hash(),
            clock: header.clock,
            time_ms: header.time_ms,
            past: vec![],
        };
        self.tx
            .open_table(SEGMENTS)?
            .insert((no, last), segment.bytes())?;
        self.tx
            .open_table(SEGMENT_INDEX)?
            .insert((no, last), cbor::encode(&index).as_slice())?;
        self.out.segments.push(NewSegment {
            space: header.space,
            log: header.log,
            head: segment.head(),
            entries: u64::from(header.count),
            bytes: segment.bytes().to_vec(),
        });
        Ok(no)
    }
}
