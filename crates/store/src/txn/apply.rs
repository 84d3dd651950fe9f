//! Applying: what a held segment says enters the derived state once all that it rests on has.

use std::collections::{BTreeMap, BTreeSet};

use pacsync_protocol::crypto::Entropy;
use pacsync_protocol::roster::{RosterEntry, RosterError};
use pacsync_protocol::row::Row;
use pacsync_protocol::segment::{Entry, Header, VerifiedSegment};
use pacsync_protocol::{DeviceId, NodeId, RowId, Seq, SpaceId, Stamp, cbor};
use redb::{ReadableTable, WriteTransaction};

use super::Txn;
use crate::documents::{self, DocumentId};
use crate::error::StoreError;
use crate::index::Index;
use crate::replica::{Space, roster_entries, unlock};
use crate::tables::{
    DOCUMENTS, FRONTIER, LogRecord, PastEntry, SEGMENT_INDEX, SEGMENTS, SPACES, SegmentRecord,
    SpaceRecord,
};
use crate::tree::{Carrier, Causality, TreeError, TreeTables, is_grave};

pub(super) enum Counted {
    Yes,
    NotYet,
    Never(String),
}

impl Txn<'_> {
    /// Applies every held segment whose dependencies are here, settles the trees and writes
    /// what deterministically follows (rows that unify nodes).
    ///
    /// Cost: linear in the segments applied, times the number of logs.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn apply(&mut self, now_ms: u64, rng: &mut dyn Entropy) -> Result<(), StoreError> {
        self.renew_if_lost(rng)?;
        self.note_forks(now_ms)?;
        loop {
            let mut progress = false;
            let waiting: Vec<(u32, LogRecord)> = self
                .logs()?
                .into_iter()
                .filter(|(_, record)| record.applied < record.held)
                .collect();
            for (no, mut record) in waiting {
                while record.applied < record.held {
                    if !self.apply_next(no, &mut record, now_ms)? {
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
    fn apply_next(
        &mut self,
        no: u32,
        record: &mut LogRecord,
        now_ms: u64,
    ) -> Result<bool, StoreError> {
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
            let Some(ignored) = self.ignorable(&space, &entries)? else {
                self.out.lacking.insert(space.id);
                return Ok(false);
            };
            if !ignored.is_empty() {
                self.leave_out(space.no, no, header.last())?;
            }
            let nodes = self.take_entries(&space, no, header, entries, &ignored)?;
            self.note_arrival(space.no, no, header, &nodes, now_ms)?;
        }
        // A clock that runs ahead must not raise everyone's.
        let clock = header.clock.min(clock_bound);
        self.mark_applied(space.no, no, record, &segment, past, clock)?;
        Ok(true)
    }

    /// Causal past of a segment, or `None` while a dependency is not applied.
    pub(super) fn past_of(
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
            let Some((no, held, found)) = self.find_segment(record.space, dep)? else {
                return Ok(None);
            };
            if held.applied < dep.head.seq {
                return Ok(None);
            }
            add(no, dep.head.seq);
            for entry in found.past {
                add(entry.log, entry.seq);
            }
        }
        let before = match record.stem {
            // A branch begins where the chain that it leaves has come to.
            Some(stem) if record.applied == 0 => {
                let chains = self.chains(record.space, &record.id)?;
                if chains.get(&stem.log).is_none_or(|r| r.applied < stem.seq) {
                    return Ok(None);
                }
                add(stem.log, stem.seq);
                stem
            }
            _ => PastEntry {
                log: own,
                seq: record.applied,
            },
        };
        if let Some(before) = self.segment_record(before.log, before.seq)? {
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
            let Some((_, record, _)) = self.find_segment(roster, dep)? else {
                return Ok(false);
            };
            if record.applied < dep.head.seq {
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

    /// The rows of a segment that need no place here: they say that nodes are dead that are lacking
    /// because they were dead for good. `None` if another row rests on something that is lacking
    /// for that reason: what a checkpoint has left out is alive again, and a newer one has it.
    fn ignorable(
        &self,
        space: &Space,
        entries: &[Entry],
    ) -> Result<Option<BTreeSet<RowId>>, StoreError> {
        let mut ignorable = BTreeSet::new();
        if !self.has_left_out(space.no)? {
            return Ok(Some(ignorable));
        }
        let mut nodes = BTreeSet::new();
        let mut rows = BTreeSet::new();
        let mut tree = TreeTables::open(&self.tx, space.no)?;
        for entry in entries {
            let Entry::Row(bytes) = entry else { continue };
            let Ok(row) = Row::from_bytes(bytes) else {
                continue;
            };
            let id = Row::id_of(bytes);
            if row.is_birth() {
                nodes.insert(row.node);
            } else if is_grave(&row) && !nodes.contains(&row.node) && !tree.knows_node(&row.node)? {
                ignorable.insert(id);
                continue;
            }
            let parent = row.keys.at.as_ref().map(|at| at.parent);
            for node in [Some(row.node), parent, row.keys.into]
                .into_iter()
                .flatten()
            {
                if !nodes.contains(&node) && !tree.knows_node(&node)? {
                    return Ok(None);
                }
            }
            for past in &row.past {
                if !rows.contains(past) && !tree.knows_row(past)? {
                    return Ok(None);
                }
            }
            rows.insert(id);
        }
        Ok(Some(ignorable))
    }

    /// Returns the nodes that rows are about, but for those that need no place.
    fn take_entries(
        &mut self,
        space: &Space,
        no: u32,
        header: &Header,
        entries: Vec<Entry>,
        ignored: &BTreeSet<RowId>,
    ) -> Result<BTreeSet<NodeId>, StoreError> {
        let mut nodes = BTreeSet::new();
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
                        Ok(_) if ignored.contains(&Row::id_of(bytes)) => {}
                        Ok(row) => {
                            let carrier = Carrier { log: no, seq };
                            match tree.insert(Row::id_of(bytes), &row, bytes, carrier) {
                                Ok(_) => {
                                    nodes.insert(row.node);
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
        Ok(nodes)
    }

    pub(super) fn apply_change(
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

    pub(super) fn count_roster(
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

    pub(super) fn mark_applied(
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
    pub(crate) fn settle(
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
