//! Holding: the chain of a log goes on, its writer may write, there is room.

use std::collections::BTreeMap;

use pacsync_protocol::segment::VerifiedSegment;
use pacsync_protocol::{DeviceId, cbor};
use redb::ReadableTable;

use super::Txn;
use crate::error::{Refusal, StoreError};
use crate::replica::NewSegment;
use crate::tables::{LOGS, LogRecord, PastEntry, SEGMENT_INDEX, SEGMENTS, SegmentRecord};

/// Most logs of one device in one space: each is a life that ended with its index.
pub(crate) const LIVES_MAX: usize = 64;
/// Most branches of one device in one space. An honest writer parts from a clone once for each time
/// that it is cloned; of a hostile one's further branches nothing is kept.
pub(crate) const BRANCHES_MAX: usize = 16;
/// Most keys without a grant whose roster segments are held.
pub const UNKNOWN_KEYS_MAX: usize = 16;
/// Most bytes of roster segments held of each such key.
pub const UNKNOWN_BYTES_MAX: u64 = 1 << 20;

/// Where a segment belongs.
enum Place {
    /// At the end of a chain.
    End(u32, LogRecord),
    /// It begins a log.
    New,
    /// It leaves a chain after a segment, or another first one.
    Branch(Option<PastEntry>),
}

impl Txn<'_> {
    /// Holds a received segment if one of its log's chains goes on with it or parts before it. Already held: no error.
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
        if log.branch.is_some() {
            return Ok(Err(Refusal::Bad("a header that names a branch".into())));
        }
        let chains = self.chains(space_no, &log)?;
        for no in chains.keys() {
            let found = self.segment_record(*no, header.last())?;
            if found.is_some_and(|found| found.hash == segment.hash()) {
                return Ok(Ok(()));
            }
        }
        let goes_on = chains.iter().find(|(_, record)| {
            header.first == record.held + 1 && header.prev == Some(record.held_hash)
        });
        let place = match (goes_on, header.prev) {
            (Some((no, record)), _) => Place::End(*no, record.clone()),
            (None, None) if chains.is_empty() => Place::New,
            (None, None) => Place::Branch(None),
            (None, Some(prev)) => {
                let mut stem = None;
                for no in chains.keys() {
                    let found = self.segment_record(*no, header.first - 1)?;
                    if found.is_some_and(|found| found.hash == prev) {
                        let seq = header.first - 1;
                        stem = Some(PastEntry { log: *no, seq });
                    }
                }
                match stem {
                    Some(stem) => Place::Branch(Some(stem)),
                    None => return Ok(Err(Refusal::Gap { log })),
                }
            }
        };
        let most = match place {
            Place::End(..) => None,
            Place::New => Some((false, LIVES_MAX)),
            Place::Branch(_) => Some((true, BRANCHES_MAX)),
        };
        if let Some((branches, most)) = most {
            let logs = self.logs()?;
            let count = logs
                .iter()
                .filter(|(_, r)| r.space == space_no && r.id.device == log.device)
                .filter(|(_, r)| r.id.branch.is_some() == branches)
                .count();
            if count >= most {
                return Ok(Err(Refusal::TooManyLogs { log }));
            }
        }
        if header.space == roster_space && !self.has_room(space_no, segment)? {
            return Ok(Err(Refusal::NoRoom { log }));
        }
        self.lost_own |= log == self.own_log();
        let stem = match &place {
            Place::Branch(stem) => Some(*stem),
            Place::End(..) | Place::New => None,
        };
        let found = match place {
            Place::End(no, record) => Some((no, record)),
            Place::New | Place::Branch(_) => None,
        };
        let no = self.put_segment(space_no, found, segment)?;
        if let Some(stem) = stem {
            let record = self.chains(space_no, &log)?.remove(&no);
            if let Some(mut record) = record {
                record.stem = stem;
                self.put_log(no, &record)?;
            }
            self.relabel(space_no, &log)?;
            self.out.forked.insert((header.space, log.device));
        }
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
                    stem: None,
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
            log: record.id,
            head: segment.head(),
            entries: u64::from(header.count),
            bytes: segment.bytes().to_vec(),
        });
        Ok(no)
    }
}
