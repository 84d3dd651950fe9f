//! Appending: what this replica writes itself, sealed, held and applied in one go.

use pacsync_protocol::crypto::Entropy;
use pacsync_protocol::row::{Row, STAMP_MAX};
use pacsync_protocol::segment::{DEPS_MAX, Draft, ENTRIES_MAX, Entry, PLAIN_MAX};
use pacsync_protocol::{Head, LogId, Seq, SpaceId, Stamp, cbor};
use redb::ReadableTable;

use super::Txn;
use super::apply::Counted;
use crate::documents::{self, DocumentId, Settings};
use crate::error::StoreError;
use crate::replica::{Space, roster_entries};
use crate::tables::{DOCUMENTS, FRONTIER, LOGS, LogRecord};
use crate::tree::{Carrier, TreeTables};

/// Room kept below [`PLAIN_MAX`] in own segments, and the aim for their size.
const OWN_SEGMENT_BYTES: usize = PLAIN_MAX / 8;
/// Most entries of an own segment.
const OWN_SEGMENT_ENTRIES: usize = ENTRIES_MAX / 4;

impl Txn<'_> {
    /// Writes entries to this replica's own log, as one segment where they fit, and applies them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn append(
        &mut self,
        space: &SpaceId,
        entries: Vec<Entry>,
        now_ms: u64,
        rng: &mut dyn Entropy,
    ) -> Result<(), StoreError> {
        self.append_unsettled(space, entries, now_ms, rng)?;
        if *space != self.store.roster_space {
            self.settle(space, now_ms, rng)?;
        }
        Ok(())
    }

    pub(super) fn append_unsettled(
        &mut self,
        space_id: &SpaceId,
        entries: Vec<Entry>,
        now_ms: u64,
        rng: &mut dyn Entropy,
    ) -> Result<(), StoreError> {
        self.renew_if_lost(rng)?;
        let mut rest = entries.into_iter().peekable();
        while rest.peek().is_some() {
            let mut batch = Vec::new();
            let mut bytes = 0;
            while let Some(entry) = rest.next_if(|entry| {
                batch.is_empty()
                    || (batch.len() < OWN_SEGMENT_ENTRIES
                        && bytes + entry_len(entry) <= OWN_SEGMENT_BYTES)
            }) {
                bytes += entry_len(&entry);
                batch.push(entry);
            }
            self.append_segment(space_id, batch, now_ms, rng)?;
        }
        Ok(())
    }

    fn append_segment(
        &mut self,
        space_id: &SpaceId,
        entries: Vec<Entry>,
        now_ms: u64,
        rng: &mut dyn Entropy,
    ) -> Result<(), StoreError> {
        let space_no = self.space_no(space_id)?;
        let space = self.space(space_id)?.clone();
        let epoch = space.write_epoch.ok_or(StoreError::NoKey(*space_id))?;
        let key = space
            .epochs
            .get(&epoch)
            .ok_or(StoreError::NoKey(*space_id))?;
        let log = self.own_log();
        let found = self.log(space_no, &log)?;
        let prev = found
            .as_ref()
            .map(|(_, record)| (record.held, record.held_hash));
        let highest = entries
            .iter()
            .filter_map(placement_stamp)
            .max()
            .unwrap_or(0);
        let draft = Draft {
            space: *space_id,
            log,
            prev,
            deps: self.heads(space_no, Some(&log))?,
            roster_deps: match self.store.spaces.get(&self.store.roster_space) {
                Some(roster) if *space_id != self.store.roster_space => {
                    self.heads(roster.no, None)?
                }
                _ => vec![],
            },
            clock: highest.max(self.clock(space_no)?),
            epoch,
            time_ms: now_ms,
            entries,
        };
        let entries = draft.entries.clone();
        let segment = draft.seal(key, &self.store.identity.keys.sign, rng)?;
        let header = segment.header().clone();
        let fresh = LogRecord {
            space: space_no,
            id: log,
            held: 0,
            held_hash: segment.hash(),
            applied: 0,
            applied_hash: None,
            bytes: 0,
            stem: None,
        };
        let before = found.as_ref().map_or(fresh, |(_, record)| record.clone());
        let no = self.put_segment(space_no, found, &segment)?;
        let Some(past) = self.past_of(&segment, no, &before)? else {
            return Err(StoreError::Damaged(
                "own dependencies are not applied".into(),
            ));
        };
        if *space_id == self.store.roster_space {
            let author = self.store.identity.keys.sign.id();
            match self.count_roster(&author, roster_entries(entries))? {
                Counted::Yes => {}
                Counted::NotYet => return Err(StoreError::NotAllowed("no grant".into())),
                Counted::Never(why) => return Err(StoreError::NotAllowed(why)),
            }
        } else {
            self.take_own(&space, no, header.first, entries)?;
        }
        let mut record = LogRecord {
            held: header.last(),
            held_hash: segment.hash(),
            bytes: before.bytes.saturating_add(segment.bytes().len() as u64),
            ..before
        };
        self.mark_applied(space_no, no, &mut record, &segment, past, header.clock)
    }

    fn take_own(
        &mut self,
        space: &Space,
        no: u32,
        first: Seq,
        entries: Vec<Entry>,
    ) -> Result<(), StoreError> {
        let mut tree = TreeTables::open(&self.tx, space.no)?;
        let mut changes = vec![];
        for (offset, entry) in entries.into_iter().enumerate() {
            match entry {
                Entry::Row(bytes) => {
                    let row = Row::from_bytes(&bytes)?;
                    let carrier = Carrier {
                        log: no,
                        seq: first + offset as u64,
                    };
                    tree.insert(Row::id_of(&bytes), &row, &bytes, carrier)?;
                }
                Entry::Change { document, bytes } => changes.push((document, bytes)),
                Entry::Roster(_) | Entry::DeletesConfirmed | Entry::Unknown(_) => {}
            }
        }
        drop(tree);
        for (document, bytes) in changes {
            self.apply_change(space, document, &bytes)?
                .map_err(|e| StoreError::Misuse(e.to_string()))?;
        }
        Ok(())
    }

    /// Writes values into a flat document; true if anything differed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn write_document(
        &mut self,
        space: &SpaceId,
        document: DocumentId,
        values: &Settings,
        now_ms: u64,
        rng: &mut dyn Entropy,
    ) -> Result<bool, StoreError> {
        let no = self.space(space)?.no;
        let saved = {
            let table = self.tx.open_table(DOCUMENTS)?;
            table
                .get((no, &document))?
                .map(|bytes| bytes.value().to_vec())
        };
        let made = documents::write(saved.as_deref(), values, rng)
            .map_err(|e| StoreError::Misuse(e.to_string()))?;
        let Some((bytes, _)) = made else {
            return Ok(false);
        };
        self.append(space, vec![Entry::Change { document, bytes }], now_ms, rng)?;
        Ok(true)
    }

    /// The stamp for the next placement: one above everything seen in the space.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn next_stamp(&self, space: &SpaceId) -> Result<Stamp, StoreError> {
        let clock = self.clock(self.space(space)?.no)?;
        if clock >= STAMP_MAX - (1 << 32) {
            return Err(StoreError::Misuse("the space's clock is exhausted".into()));
        }
        Ok(clock + 1)
    }

    /// Maximal applied segments, without those of `except`.
    fn heads(
        &self,
        space_no: u32,
        except: Option<&LogId>,
    ) -> Result<Vec<pacsync_protocol::Dep>, StoreError> {
        let mut heads = vec![];
        let frontier = self.tx.open_table(FRONTIER)?;
        let logs = self.tx.open_table(LOGS)?;
        for item in frontier.range((space_no, 0)..=(space_no, u32::MAX))? {
            let (key, seq) = item?;
            let no = key.value().1;
            let Some(bytes) = logs.get(no)? else { continue };
            let record: LogRecord = cbor::decode("log record", bytes.value())?;
            if except == Some(&record.id) {
                continue;
            }
            let Some(found) = self.segment_record(no, seq.value())? else {
                continue;
            };
            let head = Head {
                seq: seq.value(),
                hash: found.hash.to_short(),
            };
            heads.push(pacsync_protocol::Dep {
                log: record.id,
                head,
            });
        }
        heads.sort_unstable();
        // What is left out stays in the frontier and is covered by a later segment.
        heads.truncate(DEPS_MAX);
        Ok(heads)
    }
}

fn entry_len(entry: &Entry) -> usize {
    8 + match entry {
        Entry::Row(bytes) | Entry::Change { bytes, .. } => bytes.len(),
        Entry::Roster(entry) => cbor::encode(entry).len(),
        Entry::DeletesConfirmed | Entry::Unknown(_) => 0,
    }
}

fn placement_stamp(entry: &Entry) -> Option<Stamp> {
    match entry {
        Entry::Row(bytes) => Row::from_bytes(bytes).ok()?.keys.at.map(|at| at.stamp),
        _ => None,
    }
}
