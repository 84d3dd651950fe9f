//! Taking a checkpoint in: what it says is added to what is here, in one transaction.

use std::collections::BTreeMap;

use pacsync_protocol::checkpoint::{
    At, ChangeItem, Item, Place, RowItem, SegmentItem, VerifiedHeader, documents_root,
};
use pacsync_protocol::crypto::Entropy;
use pacsync_protocol::row::{Row, STAMP_MAX};
use pacsync_protocol::{Head, LogId, SegmentHash, Seq, SpaceId, cbor};
use redb::ReadableTable;

use super::{LoadError, PARTS, STARTED_FROM, rows_root};
use crate::documents::{self, DocumentId};
use crate::error::StoreError;
use crate::replica::NewSegment;
use crate::tables::{
    DOCUMENTS, FRONTIER, LOGS, LogRecord, PastEntry, SEGMENT_INDEX, SPACES, SegmentRecord,
    SpaceRecord,
};
use crate::tree::{Carrier, TreeError, TreeTables};
use crate::txn::Txn;

/// Outer: the store failed. Inner: the checkpoint is refused.
type Loaded<T> = Result<Result<T, LoadError>, StoreError>;

macro_rules! refuse {
    ($($why:tt)*) => {
        return Ok(Err(LoadError::Contradiction(format!($($why)*))))
    };
}

/// Goes on with what was loaded, or hands the refusal up.
macro_rules! check {
    ($loaded:expr) => {
        match $loaded? {
            Ok(value) => value,
            Err(refusal) => return Ok(Err(refusal)),
        }
    };
}

/// A log of the checkpoint.
#[derive(Debug)]
struct LoadedLog {
    no: u32,
    record: LogRecord,
    /// Where it ends.
    head: Head,
    /// The last segment that came.
    last: Seq,
    hash: Option<SegmentHash>,
}

/// Which kind of item came last; none may come before an earlier kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Log,
    Segment,
    Row,
    Change,
}

struct Loading {
    space: u32,
    id: SpaceId,
    clock: u64,
    kind: Kind,
    logs: Vec<LoadedLog>,
    /// Number in the checkpoint of the log that segments come of.
    log: usize,
    /// Highest clock of a segment.
    highest: u64,
    /// Documents that came.
    documents: BTreeMap<DocumentId, Known>,
}

/// Whether something of a document was here before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Yes,
    No,
}

impl Txn<'_> {
    /// Keeps a part of a checkpoint that is being received; the first one replaces what was kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn stage_part(
        &mut self,
        space: &SpaceId,
        number: u64,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        if number == 0 {
            self.drop_parts(space)?;
        }
        let no = self.space(space)?.no;
        self.tx.open_table(PARTS)?.insert((no, number), bytes)?;
        Ok(())
    }

    /// Forgets the parts that were kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn drop_parts(&mut self, space: &SpaceId) -> Result<(), StoreError> {
        let no = self.space(space)?.no;
        self.tx
            .open_table(PARTS)?
            .retain_in((no, 0)..=(no, u64::MAX), |_, _| false)?;
        Ok(())
    }

    /// Takes in the checkpoint whose parts are kept, and then what is held on top of it. Drop the
    /// transaction if it is refused.
    ///
    /// Cost: that of inserting its rows, plus one pass over all rows.
    ///
    /// # Errors
    /// Outer: the store failed. Inner: the checkpoint is refused.
    pub fn load(
        &mut self,
        header: &VerifiedHeader,
        now_ms: u64,
        rng: &mut dyn Entropy,
    ) -> Loaded<()> {
        let says = header.header();
        let space = self.space(&says.space)?.clone();
        let Some(key) = space.epochs.get(&says.epoch) else {
            return Ok(Err(LoadError::NoKey));
        };
        let mut loading = Loading {
            space: space.no,
            id: space.id,
            clock: says.clock,
            kind: Kind::Log,
            logs: vec![],
            log: 0,
            highest: 0,
            documents: BTreeMap::new(),
        };
        let parts = {
            let table = self.tx.open_table(PARTS)?;
            let last = table
                .range((space.no, 0)..=(space.no, u64::MAX))?
                .next_back();
            match last {
                Some(item) => item?.0.value().1 + 1,
                None => refuse!("it has no parts"),
            }
        };
        for number in 0..parts {
            let part = {
                let table = self.tx.open_table(PARTS)?;
                let found = table.get((space.no, number))?;
                found.map(|bytes| bytes.value().to_vec())
            };
            let Some(part) = part else {
                refuse!("part {number} is missing")
            };
            let place = match number + 1 == parts {
                true => Place::Last,
                false => Place::Within,
            };
            let items = match header.open_part(key, number, place, &part) {
                Ok(items) => items,
                Err(error) => return Ok(Err(error.into())),
            };
            check!(self.take_items(&mut loading, header, items));
        }
        if loading.kind == Kind::Log {
            check!(self.end_of_logs(&loading, header));
        }
        check!(loading.end_of_segments());
        check!(self.compare(&loading, header));
        self.raise(loading)?;
        self.drop_parts(&says.space)?;
        self.tx
            .open_table(STARTED_FROM)?
            .insert(space.no, header.bytes())?;
        self.apply(now_ms, rng)?;
        Ok(Ok(()))
    }

    fn take_items(
        &mut self,
        loading: &mut Loading,
        header: &VerifiedHeader,
        items: Vec<Item>,
    ) -> Loaded<()> {
        let mut changes: Vec<ChangeItem> = vec![];
        let mut rows = vec![];
        for item in items {
            let kind = match &item {
                Item::Log(_) => Kind::Log,
                Item::Segment(_) => Kind::Segment,
                Item::Row(_) => Kind::Row,
                Item::Change(_) => Kind::Change,
            };
            if kind < loading.kind {
                refuse!("its items are in no order");
            }
            if loading.kind == Kind::Log && kind > Kind::Log {
                check!(self.end_of_logs(loading, header));
            }
            if loading.kind <= Kind::Segment && kind > Kind::Segment {
                check!(loading.end_of_segments());
            }
            loading.kind = kind;
            match item {
                Item::Log(id) => check!(self.take_log(loading, header, id)),
                Item::Segment(segment) => check!(self.take_segment(loading, segment)),
                Item::Row(row) => rows.push(row),
                Item::Change(change) => changes.push(change),
            }
        }
        check!(self.take_rows(loading, rows));
        let mut rest = changes.as_slice();
        while let Some(first) = rest.first() {
            let same = rest.iter().take_while(|c| c.document == first.document);
            let (now, later) = rest.split_at(same.count());
            check!(self.take_changes(loading, *first.document, now));
            rest = later;
        }
        Ok(Ok(()))
    }

    fn take_log(
        &mut self,
        loading: &mut Loading,
        header: &VerifiedHeader,
        id: LogId,
    ) -> Loaded<()> {
        let Some(head) = header.header().vector.get(&id) else {
            refuse!("a log that its vector does not name");
        };
        let (no, record) = match self.log(loading.space, &id)? {
            Some(found) => found,
            None => {
                let table = self.tx.open_table(LOGS)?;
                let no = table.last()?.map_or(1, |(no, _)| no.value() + 1);
                drop(table);
                let record = LogRecord {
                    space: loading.space,
                    id,
                    held: 0,
                    held_hash: SegmentHash::from_bytes([0; 32]),
                    applied: 0,
                    applied_hash: None,
                    bytes: 0,
                    stem: None,
                };
                self.put_log(no, &record)?;
                (no, record)
            }
        };
        if loading.logs.iter().any(|log| log.no == no) {
            refuse!("a log twice");
        }
        loading.logs.push(LoadedLog {
            no,
            record,
            head,
            last: 0,
            hash: None,
        });
        Ok(Ok(()))
    }

    fn end_of_logs(&self, loading: &Loading, header: &VerifiedHeader) -> Loaded<()> {
        if loading.logs.len() != header.header().vector.len() {
            refuse!("not all logs that its vector names");
        }
        Ok(Ok(()))
    }

    fn take_segment(&mut self, loading: &mut Loading, item: SegmentItem) -> Loaded<()> {
        let number = item.log as usize;
        if number < loading.log || number >= loading.logs.len() {
            refuse!("a segment of an unknown log");
        }
        loading.log = number;
        let mut past = vec![];
        for at in &item.past {
            let Some(log) = loading.log_at(at) else {
                refuse!("a segment with a past that is not in it");
            };
            past.push(PastEntry { log, seq: at.seq });
        }
        past.sort_unstable_by_key(|entry| entry.log);
        let clock = loading.clock;
        let Some(log) = loading.logs.get_mut(number) else {
            refuse!("a segment of an unknown log");
        };
        let follows = log.last.checked_add(1) == Some(item.first) && item.last >= item.first;
        if !follows || item.last > log.head.seq || item.clock > clock.min(STAMP_MAX) {
            refuse!("a segment that does not follow the one before");
        }
        let twice = past.windows(2).any(|pair| match pair {
            [a, b] => a.log == b.log,
            _ => false,
        });
        if twice || past.iter().any(|entry| entry.log == log.no) {
            refuse!("a segment with a past that is none");
        }
        log.last = item.last;
        log.hash = Some(item.hash);
        loading.highest = loading.highest.max(item.clock);
        let found = self.segment_record(log.no, item.last)?;
        let known = found.is_some();
        if found.is_some_and(|found| found.hash != item.hash || found.first != item.first)
            || (!known && item.first <= log.record.held)
        {
            return Ok(Err(LoadError::Fork));
        }
        if item.last > log.record.applied {
            let record = SegmentRecord {
                first: item.first,
                hash: item.hash,
                clock: item.clock,
                time_ms: item.time_ms,
                past,
            };
            self.tx
                .open_table(SEGMENT_INDEX)?
                .insert((log.no, item.last), cbor::encode(&record).as_slice())?;
        }
        Ok(Ok(()))
    }

    fn take_rows(&mut self, loading: &Loading, items: Vec<RowItem>) -> Loaded<()> {
        if items.is_empty() {
            return Ok(Ok(()));
        }
        let mut tree = TreeTables::open(&self.tx, loading.space)?;
        for item in items {
            let row = match Row::from_bytes(&item.row) {
                Ok(row) => row,
                Err(error) => refuse!("{error}"),
            };
            if row
                .keys
                .at
                .as_ref()
                .is_some_and(|at| at.stamp > loading.clock)
            {
                refuse!("a placement that is stamped above its clock");
            }
            if item.carriers.is_empty() {
                refuse!("a row that nobody wrote");
            }
            for at in &item.carriers {
                let Some(log) = loading.log_at(at) else {
                    refuse!("a row written after its vector");
                };
                let carrier = Carrier { log, seq: at.seq };
                match tree.insert(Row::id_of(&item.row), &row, &item.row, carrier) {
                    Ok(_) => {}
                    Err(error @ TreeError::Hostile { .. }) => refuse!("{error}"),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(Ok(()))
    }

    fn take_changes(
        &mut self,
        loading: &mut Loading,
        document: DocumentId,
        changes: &[ChangeItem],
    ) -> Loaded<()> {
        let mut table = self.tx.open_table(DOCUMENTS)?;
        let saved = table
            .get((loading.space, &document))?
            .map(|bytes| bytes.value().to_vec());
        let known = match saved {
            Some(_) => Known::Yes,
            None => Known::No,
        };
        loading.documents.entry(document).or_insert(known);
        let bytes: Vec<&[u8]> = changes.iter().map(|c| c.change.as_slice()).collect();
        match documents::apply_all(saved.as_deref(), &bytes) {
            Ok(next) => table.insert((loading.space, &document), next.as_slice())?,
            Err(error) => refuse!("a document in it: {error}"),
        };
        self.out.documents.insert((loading.id, document));
        Ok(Ok(()))
    }

    /// Whether what came is what the signed header says.
    fn compare(&self, loading: &Loading, header: &VerifiedHeader) -> Loaded<()> {
        let says = header.header();
        let heads = loading
            .logs
            .iter()
            .map(|log| (log.no, log.head.seq))
            .collect();
        let tree = TreeTables::open(&self.tx, loading.space)?;
        let (rows, _) = rows_root(tree.carried()?, &heads)?;
        drop(tree);
        if rows != *says.rows {
            refuse!("its rows are not those that its header signs");
        }
        // Where more of a document was here, its heads are not the checkpoint's alone.
        if loading.documents.values().all(|known| *known == Known::No) {
            let table = self.tx.open_table(DOCUMENTS)?;
            let mut all = vec![];
            for id in loading.documents.keys() {
                if let Some(saved) = table.get((loading.space, id))? {
                    let heads = documents::heads(saved.value());
                    all.push((*id, heads.map_err(|e| StoreError::Damaged(e.to_string()))?));
                }
            }
            let root = documents_root(all.iter().map(|(id, heads)| (id, heads.as_slice())));
            if root != *says.documents {
                refuse!("its documents are not those that its header signs");
            }
        }
        Ok(Ok(()))
    }

    /// Raises heads, frontier and clock to what was loaded.
    fn raise(&mut self, loading: Loading) -> Result<(), StoreError> {
        for mut log in loading.logs {
            let Some(hash) = log.hash else { continue };
            let (seq, record) = (log.head.seq, &mut log.record);
            if record.applied >= seq {
                continue;
            }
            if record.held < seq {
                record.held = seq;
                record.held_hash = hash;
                self.out.segments.push(NewSegment {
                    space: loading.id,
                    log: record.id,
                    head: log.head,
                    entries: 0,
                    bytes: vec![],
                });
            }
            record.applied = seq;
            record.applied_hash = Some(hash);
            self.put_log(log.no, record)?;
        }
        self.derive_frontier(loading.space)?;
        let mut table = self.tx.open_table(SPACES)?;
        let stored = table.get(loading.space)?.map(|b| b.value().to_vec());
        if let Some(bytes) = stored {
            let mut space: SpaceRecord = cbor::decode("space record", &bytes)?;
            space.clock = space.clock.max(loading.highest);
            table.insert(loading.space, cbor::encode(&space).as_slice())?;
        }
        self.out.applied.insert(loading.id);
        Ok(())
    }

    /// The applied ends of logs that no other one has in its past.
    fn derive_frontier(&mut self, space: u32) -> Result<(), StoreError> {
        let mut ends = vec![];
        let mut behind: BTreeMap<u32, Seq> = BTreeMap::new();
        for (no, record) in self.logs()? {
            if record.space != space || record.applied == 0 {
                continue;
            }
            ends.push((no, record.applied));
            let past = self.segment_record(no, record.applied)?;
            for entry in past.map(|found| found.past).unwrap_or_default() {
                let seq = behind.entry(entry.log).or_default();
                *seq = (*seq).max(entry.seq);
            }
        }
        let mut frontier = self.tx.open_table(FRONTIER)?;
        frontier.retain_in((space, 0)..=(space, u32::MAX), |_, _| false)?;
        for (no, last) in ends {
            if behind.get(&no).is_none_or(|seen| *seen < last) {
                frontier.insert((space, no), last)?;
            }
        }
        Ok(())
    }
}

impl Loading {
    /// The local number of a log, if the checkpoint goes as far as this entry of it.
    fn log_at(&self, at: &At) -> Option<u32> {
        let log = self.logs.get(at.log as usize)?;
        (1..=log.head.seq).contains(&at.seq).then_some(log.no)
    }

    fn end_of_segments(&self) -> Loaded<()> {
        for log in &self.logs {
            let hash = log.hash.map(|hash| hash.to_short());
            if log.last != log.head.seq || hash != Some(log.head.hash) {
                refuse!("a log that does not end where its vector says");
            }
        }
        Ok(Ok(()))
    }
}
