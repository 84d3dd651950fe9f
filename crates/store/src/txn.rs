//! The one write transaction: taking in segments, applying them, writing own ones.
//!
//! A segment is *held* once its bytes are stored and its chain is whole, and *applied* once its
//! dependencies are: then its entries are in the derived state. Nothing is visible or
//! acknowledged before [`Txn::commit`].

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use pacsync_protocol::crypto::Entropy;
use pacsync_protocol::roster::{Roster, RosterEntry, RosterError};
use pacsync_protocol::row::{Row, STAMP_MAX};
use pacsync_protocol::segment::{
    DEPS_MAX, Draft, ENTRIES_MAX, Entry, Header, PLAIN_MAX, VerifiedSegment,
};
use pacsync_protocol::{DeviceId, Head, LogId, Seq, SpaceId, Stamp, cbor};
use redb::{ReadableTable, WriteTransaction};

use crate::documents::{self, DocumentId, Settings};
use crate::error::{Refusal, StoreError};
use crate::index::Index;
use crate::replica::{Committed, NewSegment, Space, Store, roster_entries, unlock};
use crate::tables::{
    ACKS, DOCUMENTS, FRONTIER, LOGS, LogRecord, META, PastEntry, QUARANTINE, SEGMENT_INDEX,
    SEGMENTS, SPACES, SegmentRecord, SpaceRecord,
};
use crate::tree::{Carrier, Causality, TreeError, TreeTables};

/// Room kept below [`PLAIN_MAX`] in own segments, and the aim for their size.
const OWN_SEGMENT_BYTES: usize = PLAIN_MAX / 8;
/// Most logs of one device in one space: each is a life that ended with its index.
const LIVES_MAX: usize = 64;
/// Most keys without a grant whose roster segments are held.
pub const UNKNOWN_KEYS_MAX: usize = 16;
/// Most bytes of roster segments held of each such key.
pub const UNKNOWN_BYTES_MAX: u64 = 1 << 20;
/// Most entries of an own segment.
const OWN_SEGMENT_ENTRIES: usize = ENTRIES_MAX / 4;

/// A write transaction. Dropping it takes everything back.
pub struct Txn<'s> {
    store: &'s mut Store,
    tx: WriteTransaction,
    /// The roster with what this transaction counted, if anything.
    roster: Option<Roster>,
    /// Spaces that are new or have new keys here.
    spaces: BTreeMap<SpaceId, Space>,
    out: Committed,
}

/// Makes every table, so that reads never meet a missing one.
pub(crate) fn make_tables(tx: &WriteTransaction) -> Result<(), StoreError> {
    tx.open_table(META)?;
    tx.open_table(SPACES)?;
    tx.open_table(LOGS)?;
    tx.open_table(SEGMENTS)?;
    tx.open_table(SEGMENT_INDEX)?;
    tx.open_table(FRONTIER)?;
    tx.open_table(DOCUMENTS)?;
    tx.open_table(QUARANTINE)?;
    tx.open_table(ACKS)?;
    crate::index::make_tables(tx)?;
    crate::tree::make_tables(tx)?;
    Ok(())
}

impl<'s> Txn<'s> {
    pub(crate) fn begin(store: &'s mut Store) -> Result<Self, StoreError> {
        let tx = store.db.begin_write()?;
        Ok(Self {
            store,
            tx,
            roster: None,
            spaces: BTreeMap::new(),
            out: Committed::default(),
        })
    }

    /// The underlying transaction, for tables of other modules.
    pub fn raw(&self) -> &WriteTransaction {
        &self.tx
    }

    /// The derived tree of a space.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn tree(&self, space_no: u32) -> Result<TreeTables<'_>, StoreError> {
        Ok(TreeTables::open(&self.tx, space_no)?)
    }

    /// The worktree index of a space.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn index(&self, space_no: u32) -> Result<Index<'_>, StoreError> {
        Index::open(&self.tx, space_no)
    }

    /// Notes up to where packs are synced; belongs into the transaction that indexes the objects.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_pack_end(&self, end: crate::content::packs::PackEnd) -> Result<(), StoreError> {
        let bytes = [&end.pack.to_be_bytes()[..], &end.offset.to_be_bytes()[..]].concat();
        self.tx
            .open_table(META)?
            .insert("pack_end", bytes.as_slice())?;
        Ok(())
    }

    /// The roster, with what this transaction counted.
    pub fn roster(&self) -> &Roster {
        self.roster.as_ref().unwrap_or(&self.store.roster)
    }

    /// A space, with what this transaction learned.
    ///
    /// # Errors
    /// [`StoreError::UnknownSpace`].
    pub fn space(&self, id: &SpaceId) -> Result<&Space, StoreError> {
        self.spaces
            .get(id)
            .or_else(|| self.store.spaces.get(id))
            .ok_or(StoreError::UnknownSpace(*id))
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing took effect, but after an I/O error the store must be
    /// opened again.
    pub fn commit(self) -> Result<Committed, StoreError> {
        self.tx.commit()?;
        if let Some(roster) = self.roster {
            self.store.roster = roster;
        }
        self.store.spaces.extend(self.spaces);
        Ok(self.out)
    }

    /// Commits without waiting for the disk: for derived state that a restart may lose.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn commit_lazily(mut self) -> Result<Committed, StoreError> {
        self.tx.set_durability(redb::Durability::None)?;
        self.commit()
    }

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

    fn put_segment(
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

    /// Applies every held segment whose dependencies are here, settles the trees and writes
    /// what deterministically follows (rows that unify nodes).
    ///
    /// Cost: linear in the segments applied, times the number of logs.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn apply(&mut self, now_ms: u64, rng: &mut dyn Entropy) -> Result<(), StoreError> {
        loop {
            let mut progress = false;
            let waiting: Vec<(u32, LogRecord)> = self
                .logs()?
                .into_iter()
                .filter(|(_, record)| record.applied < record.held)
                .collect();
            for (no, mut record) in waiting {
                while record.applied < record.held {
                    if !self.apply_next(no, &mut record)? {
                        break;
                    }
                    progress = true;
                }
            }
            if !progress {
                break;
            }
        }
        let touched: Vec<SpaceId> = self.out.applied.iter().copied().collect();
        for space in touched {
            if space != self.store.roster_space {
                self.settle(&space, now_ms, rng)?;
            }
        }
        Ok(())
    }

    /// Applies the next segment of a log; false if it has to wait.
    fn apply_next(&mut self, no: u32, record: &mut LogRecord) -> Result<bool, StoreError> {
        let next = {
            let table = self.tx.open_table(SEGMENTS)?;
            let mut range = table.range((no, record.applied + 1)..=(no, Seq::MAX))?;
            match range.next() {
                Some(item) => item?.1.value().to_vec(),
                None => return Ok(false),
            }
        };
        let segment = pacsync_protocol::segment::SignedSegment::parse(&next)?.assume_verified();
        let header = segment.header();
        let roster_space = self.store.roster_space;
        let Some(past) = self.past_of(&segment, no, record)? else {
            return Ok(false);
        };
        if header.space != roster_space && !self.roster_has(&segment)? {
            return Ok(false);
        }
        let space = self.space(&header.space)?.clone();
        let Some(key) = space.epochs.get(&header.epoch) else {
            return Ok(false);
        };
        let entries = match segment.open(key) {
            Ok(entries) => entries,
            Err(error) => {
                self.quarantine(no, header.last(), &error.to_string())?;
                vec![]
            }
        };
        let clock_bound = self.clock_bound(&past, no, record, &entries)?;
        if header.clock > clock_bound {
            self.quarantine(
                no,
                header.last(),
                "its clock runs ahead of what it has seen",
            )?;
        } else if header.space == roster_space {
            match self.count_roster(&header.log.device, roster_entries(entries))? {
                Counted::Yes => {}
                Counted::NotYet => return Ok(false),
                Counted::Never(why) => self.quarantine(no, header.last(), &why)?,
            }
        } else {
            self.take_entries(&space, no, header, entries)?;
        }
        // A clock that runs ahead must not raise everyone's.
        let clock = header.clock.min(clock_bound);
        self.mark_applied(space.no, no, record, &segment, past, clock)?;
        Ok(true)
    }

    /// Causal past of a segment, or `None` while a dependency is not applied.
    fn past_of(
        &self,
        segment: &VerifiedSegment,
        own: u32,
        record: &LogRecord,
    ) -> Result<Option<Vec<PastEntry>>, StoreError> {
        let mut past: BTreeMap<u32, Seq> = BTreeMap::new();
        let mut add = |log: u32, seq: Seq| {
            let entry = past.entry(log).or_default();
            *entry = (*entry).max(seq);
        };
        for dep in &segment.header().deps {
            let Some((no, held)) = self.log(record.space, &dep.log)? else {
                return Ok(None);
            };
            if held.applied < dep.head.seq {
                return Ok(None);
            }
            let Some(found) = self.segment_record(no, dep.head.seq)? else {
                return Ok(None);
            };
            if found.hash.to_short() != dep.head.hash {
                return Ok(None);
            }
            add(no, dep.head.seq);
            for entry in found.past {
                add(entry.log, entry.seq);
            }
        }
        if record.applied > 0
            && let Some(before) = self.segment_record(own, record.applied)?
        {
            for entry in before.past {
                add(entry.log, entry.seq);
            }
        }
        past.remove(&own);
        Ok(Some(
            past.into_iter()
                .map(|(log, seq)| PastEntry { log, seq })
                .collect(),
        ))
    }

    fn roster_has(&self, segment: &VerifiedSegment) -> Result<bool, StoreError> {
        let Some(roster) = self
            .store
            .spaces
            .get(&self.store.roster_space)
            .map(|s| s.no)
        else {
            return Ok(segment.header().roster_deps.is_empty());
        };
        for dep in &segment.header().roster_deps {
            let Some((no, record)) = self.log(roster, &dep.log)? else {
                return Ok(false);
            };
            let found = self.segment_record(no, dep.head.seq)?;
            let same = found.is_some_and(|found| found.hash.to_short() == dep.head.hash);
            if record.applied < dep.head.seq || !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One above the highest clock of the dependencies for each placement of its own.
    fn clock_bound(
        &self,
        past: &[PastEntry],
        own: u32,
        record: &LogRecord,
        entries: &[Entry],
    ) -> Result<Stamp, StoreError> {
        let mut highest = 0;
        let heads = past.iter().map(|entry| (entry.log, entry.seq));
        for (log, seq) in heads.chain([(own, record.applied)]) {
            if let Some(found) = self.segment_record(log, seq)? {
                highest = highest.max(found.clock);
            }
        }
        let placements = entries
            .iter()
            .filter(|entry| match entry {
                Entry::Row(bytes) => Row::from_bytes(bytes).is_ok_and(|row| row.keys.at.is_some()),
                _ => false,
            })
            .count();
        Ok(highest.saturating_add(placements as u64))
    }

    fn take_entries(
        &mut self,
        space: &Space,
        no: u32,
        header: &Header,
        entries: Vec<Entry>,
    ) -> Result<(), StoreError> {
        let confirmed = entries.contains(&Entry::DeletesConfirmed);
        let mut seq = header.first;
        let mut trouble = None;
        {
            let mut tree = TreeTables::open(&self.tx, space.no)?;
            for entry in &entries {
                if let Entry::Row(bytes) = entry {
                    match Row::from_bytes(bytes) {
                        Ok(row)
                            if row
                                .keys
                                .at
                                .as_ref()
                                .is_some_and(|at| at.stamp > header.clock) =>
                        {
                            trouble = Some("a placement is stamped above its clock".to_owned());
                        }
                        Ok(row) => {
                            let carrier = Carrier { log: no, seq };
                            match tree.insert(Row::id_of(bytes), &row, bytes, carrier) {
                                Ok(_) => {
                                    if confirmed {
                                        self.out.confirmed.insert((space.id, row.node));
                                    }
                                }
                                Err(error @ TreeError::Hostile { .. }) => {
                                    trouble = Some(error.to_string());
                                }
                                Err(error) => return Err(error.into()),
                            }
                        }
                        Err(error) => trouble = Some(error.to_string()),
                    }
                }
                seq += 1;
            }
        }
        for entry in entries {
            match entry {
                Entry::Change { document, bytes } => {
                    if let Err(error) = self.apply_change(space, document, &bytes)? {
                        trouble = Some(error.to_string());
                    }
                }
                Entry::Unknown(tag) => {
                    trouble = Some(format!("entry kind {tag} is of a later version"));
                }
                Entry::Roster(_) => trouble = Some("a roster entry outside the roster".into()),
                Entry::Row(_) | Entry::DeletesConfirmed => {}
            }
        }
        if let Some(why) = trouble {
            self.quarantine(no, header.last(), &why)?;
        }
        Ok(())
    }

    fn apply_change(
        &mut self,
        space: &Space,
        document: DocumentId,
        change: &[u8],
    ) -> Result<Result<(), documents::DocumentError>, StoreError> {
        let mut table = self.tx.open_table(DOCUMENTS)?;
        let saved = table
            .get((space.no, &document))?
            .map(|bytes| bytes.value().to_vec());
        let next = match documents::apply(saved.as_deref(), change) {
            Ok(next) => next,
            Err(error) => return Ok(Err(error)),
        };
        table.insert((space.no, &document), next.as_slice())?;
        self.out.documents.insert((space.id, document));
        Ok(Ok(()))
    }

    fn count_roster(
        &mut self,
        author: &DeviceId,
        entries: Vec<RosterEntry>,
    ) -> Result<Counted, StoreError> {
        let mut roster = self.roster().clone();
        let change = match roster.apply(author, &entries) {
            Ok(change) => change,
            Err(RosterError::NotAMember(_) | RosterError::NotCovered { .. }) => {
                return Ok(Counted::NotYet);
            }
            Err(error) => return Ok(Counted::Never(error.to_string())),
        };
        self.roster = Some(roster);
        self.out.roster = true;
        for id in change.spaces {
            let no = self.space_no(&id)?;
            let space = unlock(
                self.roster.as_ref().unwrap_or(&self.store.roster),
                &self.store.identity,
                &self.store.roster_space,
                id,
                no,
            );
            self.spaces.insert(id, space);
        }
        Ok(Counted::Yes)
    }

    fn mark_applied(
        &mut self,
        space_no: u32,
        no: u32,
        record: &mut LogRecord,
        segment: &VerifiedSegment,
        past: Vec<PastEntry>,
        clock: Stamp,
    ) -> Result<(), StoreError> {
        let header = segment.header();
        let last = header.last();
        {
            let mut frontier = self.tx.open_table(FRONTIER)?;
            let mut covered = vec![];
            for item in frontier.range((space_no, 0)..=(space_no, u32::MAX))? {
                let (key, seq) = item?;
                let log = key.value().1;
                let behind = past.iter().any(|p| p.log == log && p.seq >= seq.value());
                if behind || log == no {
                    covered.push(log);
                }
            }
            for log in covered {
                frontier.remove((space_no, log))?;
            }
            frontier.insert((space_no, no), last)?;
        }
        let index = SegmentRecord {
            first: header.first,
            hash: segment.hash(),
            clock,
            time_ms: header.time_ms,
            past,
        };
        self.tx
            .open_table(SEGMENT_INDEX)?
            .insert((no, last), cbor::encode(&index).as_slice())?;
        record.applied = last;
        record.applied_hash = Some(segment.hash());
        self.put_log(no, record)?;
        {
            let mut table = self.tx.open_table(SPACES)?;
            let stored = table.get(space_no)?.map(|bytes| bytes.value().to_vec());
            if let Some(bytes) = stored {
                let mut space: SpaceRecord = cbor::decode("space record", &bytes)?;
                if space.clock < clock {
                    space.clock = clock;
                    table.insert(space_no, cbor::encode(&space).as_slice())?;
                }
            }
        }
        self.out.applied.insert(header.space);
        Ok(())
    }

    /// Settles the tree of a space until nothing follows any more.
    fn settle(
        &mut self,
        space: &SpaceId,
        now_ms: u64,
        rng: &mut dyn Entropy,
    ) -> Result<(), StoreError> {
        let no = self.space(space)?.no;
        let own = self.store.identity.keys.sign.id();
        // Each round unifies at least one pair, so the rounds end; two are the rule.
        loop {
            let settled = {
                let mut tree = TreeTables::open(&self.tx, no)?;
                let causality = Behind { tx: &self.tx };
                tree.settle(&causality)?
            };
            if !settled.changed.is_empty() {
                let mut index = Index::open(&self.tx, no)?;
                for node in settled.changed {
                    if index.is_attached() {
                        index.mark_pending(&node)?;
                    }
                    self.out.changed.insert((*space, node));
                }
            }
            if settled.unify.is_empty() || !self.roster().may_write(&own, space) {
                return Ok(());
            }
            let entries = settled
                .unify
                .iter()
                .map(|row| Entry::Row(row.to_bytes()))
                .collect();
            self.append_unsettled(space, entries, now_ms, rng)?;
        }
    }

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

    fn append_unsettled(
        &mut self,
        space_id: &SpaceId,
        entries: Vec<Entry>,
        now_ms: u64,
        rng: &mut dyn Entropy,
    ) -> Result<(), StoreError> {
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
        let log = self.store.own_log();
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

    /// Keeps a verified ack if it is newer than the one held. True if it was.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put_ack(
        &mut self,
        space: &SpaceId,
        device: &DeviceId,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let no = self.space(space)?.no;
        self.tx
            .open_table(ACKS)?
            .insert((no, device.as_bytes()), bytes)?;
        Ok(())
    }

    fn clock(&self, space_no: u32) -> Result<Stamp, StoreError> {
        let table = self.tx.open_table(SPACES)?;
        let Some(bytes) = table.get(space_no)? else {
            return Ok(0);
        };
        Ok(cbor::decode::<SpaceRecord>("space record", bytes.value())?.clock)
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

    fn logs(&self) -> Result<Vec<(u32, LogRecord)>, StoreError> {
        let table = self.tx.open_table(LOGS)?;
        table
            .iter()?
            .map(|item| {
                let (no, bytes) = item?;
                Ok((no.value(), cbor::decode("log record", bytes.value())?))
            })
            .collect()
    }

    fn log(&self, space_no: u32, id: &LogId) -> Result<Option<(u32, LogRecord)>, StoreError> {
        let found = self
            .logs()?
            .into_iter()
            .find(|(_, r)| r.space == space_no && r.id == *id);
        Ok(found)
    }

    fn put_log(&self, no: u32, record: &LogRecord) -> Result<(), StoreError> {
        self.tx
            .open_table(LOGS)?
            .insert(no, cbor::encode(record).as_slice())?;
        Ok(())
    }

    fn segment_record(&self, no: u32, last: Seq) -> Result<Option<SegmentRecord>, StoreError> {
        let table = self.tx.open_table(SEGMENT_INDEX)?;
        let Some(bytes) = table.get((no, last))? else {
            return Ok(None);
        };
        Ok(Some(cbor::decode("segment record", bytes.value())?))
    }

    fn quarantine(&self, no: u32, seq: Seq, why: &str) -> Result<(), StoreError> {
        self.tx.open_table(QUARANTINE)?.insert((no, seq), why)?;
        Ok(())
    }

    /// The number of a space; a new one where it has none yet.
    fn space_no(&mut self, id: &SpaceId) -> Result<u32, StoreError> {
        if let Ok(space) = self.space(id) {
            return Ok(space.no);
        }
        let mut table = self.tx.open_table(SPACES)?;
        let no = table.last()?.map_or(1, |(no, _)| no.value() + 1);
        let record = SpaceRecord { id: *id, clock: 0 };
        table.insert(no, cbor::encode(&record).as_slice())?;
        drop(table);
        let space = unlock(
            self.roster(),
            &self.store.identity,
            &self.store.roster_space,
            *id,
            no,
        );
        self.spaces.insert(*id, space);
        Ok(no)
    }
}

enum Counted {
    Yes,
    NotYet,
    Never(String),
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

/// Causality by the stored past of segments.
struct Behind<'t> {
    tx: &'t WriteTransaction,
}

impl Causality for Behind<'_> {
    fn saw(&self, later: Carrier, earlier: Carrier) -> bool {
        if later.log == earlier.log && earlier.seq <= later.seq {
            return true;
        }
        let look = || -> Result<bool, StoreError> {
            let table = self.tx.open_table(SEGMENT_INDEX)?;
            let mut range = table.range((later.log, later.seq)..=(later.log, Seq::MAX))?;
            let Some(item) = range.next() else {
                return Ok(false);
            };
            let (key, record) = item?;
            if later.log == earlier.log {
                // The order within a segment says nothing: it applies as a whole.
                return Ok(earlier.seq <= key.value().1);
            }
            let record: SegmentRecord = cbor::decode("segment record", record.value())?;
            Ok(record
                .past
                .iter()
                .any(|p| p.log == earlier.log && p.seq >= earlier.seq))
        };
        look().unwrap_or(false)
    }
}
