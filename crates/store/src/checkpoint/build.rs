//! Making a checkpoint, part by part, from one read transaction.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use pacsync_protocol::checkpoint::{
    At, ChangeItem, Header, Item, PART_BYTES, Place, RowItem, SegmentItem, VERSION, VerifiedHeader,
    documents_root,
};
use pacsync_protocol::crypto::{self, Entropy, Key};
use pacsync_protocol::{LogId, NodeId, RowId, Seq, SpaceId, VersionVector, cbor};
use redb::{ReadTransaction, ReadableTable};

use super::{left_out_before, rows_root};
use crate::branches::SpaceLogs;
use crate::documents::{self, DocumentId};
use crate::error::StoreError;
use crate::replica::Store;
use crate::tables::{
    DOCUMENTS, LOGS, LogRecord, PastEntry, SEGMENT_INDEX, SPACES, SegmentRecord, SpaceRecord,
};
use crate::tree::{Carrier, TreeReader};

/// Rows whose place is known at a time: each pass over all rows brings so many into order.
const WINDOW: usize = 262_144;
/// Rows read at a time.
const ROWS_READ: usize = 256;
/// Most items in a part, well below what a receiver takes.
const PART_ITEMS: usize = 16_384;

/// Where a row stands among all: how many entries the segment of a carrier has in its causal past
/// with itself, the least of its carriers. What a row rests on has a lower one, or comes before
/// it in the same segment.
type Order = (u64, Carrier, RowId);

/// What comes next.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Logs(usize),
    Segments { log: usize, after: Seq },
    Rows { after: Option<Order> },
    Documents { after: Option<DocumentId> },
    Done,
}

/// A log, or a branch of one.
#[derive(Debug, Clone, Copy)]
struct BuiltLog {
    /// Its local number.
    no: u32,
    id: LogId,
    stem: Option<PastEntry>,
    /// Last entry that is applied.
    last: Seq,
}

/// A checkpoint of what a space has applied, being made. It holds a read transaction: what the
/// replica does meanwhile is not in it.
pub struct Builder {
    tx: ReadTransaction,
    space: u32,
    key: Key,
    header: VerifiedHeader,
    /// The place is the number in the checkpoint.
    logs: Vec<BuiltLog>,
    numbers: BTreeMap<u32, u32>,
    left_out: BTreeSet<NodeId>,
    stage: Stage,
    /// A part takes no further item once it has so many bytes.
    part_bytes: usize,
    /// How many rows a window takes, and those of it that come next.
    pub(super) window_max: usize,
    window: VecDeque<RowId>,
    /// Made, and in no part yet.
    waiting: VecDeque<Item>,
    next: u64,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Builder(part {})", self.next)
    }
}

/// A part, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its number.
    pub number: u64,
    /// Whether more follow.
    pub place: Place,
    /// The sealed bytes.
    pub bytes: Vec<u8>,
}

fn damaged(error: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged(error.to_string())
}

impl Store {
    /// Begins a checkpoint of what is applied of a space. What is dead for good at what is
    /// `stable`, for all but who gets it, is left out.
    ///
    /// Cost: two passes over all rows.
    ///
    /// # Errors
    /// [`StoreError`], [`StoreError::NoKey`] without a key to seal it with.
    pub fn checkpoint(
        &self,
        id: &SpaceId,
        stable: VersionVector,
        now_ms: u64,
        rng: &mut dyn Entropy,
    ) -> Result<Builder, StoreError> {
        let space = self.space(id)?;
        let epoch = space.write_epoch.ok_or(StoreError::NoKey(*id))?;
        let key = space.epochs.get(&epoch).ok_or(StoreError::NoKey(*id))?;
        let roster = self.applied(&self.roster_space())?;
        let tx = self.read()?;
        let mut logs = vec![];
        let mut vector = VersionVector::new();
        for item in tx.open_table(LOGS)?.iter()? {
            let (no, bytes) = item?;
            let record: LogRecord = cbor::decode("log record", bytes.value())?;
            if record.space == space.no
                && let Some(head) = record.applied_head()
            {
                logs.push(BuiltLog {
                    no: no.value(),
                    id: record.id,
                    stem: record.stem,
                    last: record.applied,
                });
                vector.advance(record.id, head);
            }
        }
        let heads = logs.iter().map(|log| (log.no, log.last)).collect();
        let names = SpaceLogs::of(self.read()?, space.no)?;
        // What was left out before stays out.
        let mut dead_at = left_out_before(&tx, space.no)?;
        for (no, seq) in names.ends(&stable)?.0 {
            let end = dead_at.entry(no).or_default();
            *end = seq.max(*end);
        }
        let tree = TreeReader::open(&tx, space.no)?;
        let left_out = tree.left_out(&heads, &dead_at)?;
        let rows = rows_root(tree.carried()?, &heads, &left_out)?;
        drop(tree);
        let clock = match tx.open_table(SPACES)?.get(space.no)? {
            Some(bytes) => cbor::decode::<SpaceRecord>("space record", bytes.value())?.clock,
            None => 0,
        };
        let header = Header {
            version: VERSION,
            space: *id,
            device: self.identity().keys.id(),
            vector,
            stable: names.vector(&dead_at)?,
            roster,
            rows: rows.into(),
            documents: saved_root(&tx, space.no)?.into(),
            epoch,
            clock,
            time_ms: now_ms,
            salt: crypto::random::<16>(rng).into(),
        };
        let numbers = logs.iter().zip(0..).map(|(log, n)| (log.no, n));
        Ok(Builder {
            space: space.no,
            key: key.clone(),
            header: header.sign(&self.identity().keys.sign)?,
            numbers: numbers.collect(),
            tx,
            logs,
            left_out,
            stage: Stage::Logs(0),
            part_bytes: PART_BYTES,
            window_max: WINDOW,
            window: VecDeque::new(),
            waiting: VecDeque::new(),
            next: 0,
        })
    }
}

/// Root over all documents of a space.
fn saved_root(tx: &ReadTransaction, space: u32) -> Result<[u8; 32], StoreError> {
    let mut all: Vec<(DocumentId, Vec<[u8; 32]>)> = vec![];
    for item in tx
        .open_table(DOCUMENTS)?
        .range((space, &[0; 16])..=(space, &[255; 16]))?
    {
        let (key, saved) = item?;
        all.push((
            *key.value().1,
            documents::heads(saved.value()).map_err(damaged)?,
        ));
    }
    Ok(documents_root(
        all.iter().map(|(id, heads)| (id, heads.as_slice())),
    ))
}

impl Builder {
    /// Makes smaller parts than usual.
    #[must_use]
    pub fn in_parts_of(mut self, bytes: usize) -> Self {
        self.part_bytes = bytes.min(PART_BYTES);
        self
    }

    /// The signed header.
    pub fn header(&self) -> &VerifiedHeader {
        &self.header
    }

    /// Number of the part that comes next.
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// The next part; `None` after the last one.
    ///
    /// Cost: linear in the part; besides one pass over all rows for every 262,144 of them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn next_part(&mut self, rng: &mut dyn Entropy) -> Result<Option<Part>, StoreError> {
        if matches!(self.stage, Stage::Done) && self.waiting.is_empty() && self.next > 0 {
            return Ok(None);
        }
        let mut items = vec![];
        let mut bytes = 0;
        while bytes < self.part_bytes && items.len() < PART_ITEMS {
            let Some(item) = self.item()? else { break };
            bytes += len_of(&item);
            items.push(item);
        }
        // One ahead, to know whether this part is the last one.
        let place = match self.item()? {
            Some(item) => {
                self.waiting.push_front(item);
                Place::Within
            }
            None => Place::Last,
        };
        let number = self.next;
        let bytes = self
            .header
            .seal_part(&self.key, number, place, &items, rng)
            .map_err(damaged)?;
        self.next += 1;
        Ok(Some(Part {
            number,
            place,
            bytes,
        }))
    }

    fn item(&mut self) -> Result<Option<Item>, StoreError> {
        loop {
            if let Some(item) = self.waiting.pop_front() {
                return Ok(Some(item));
            }
            if !self.window.is_empty() {
                self.rows()?;
                continue;
            }
            match self.stage {
                Stage::Logs(n) => match self.logs.get(n) {
                    Some(log) => {
                        let stem = log.stem.map(|stem| {
                            self.at(Carrier {
                                log: stem.log,
                                seq: stem.seq,
                            })
                        });
                        let item = Item::Log(log.id, stem.transpose()?);
                        self.waiting.push_back(item);
                        self.stage = Stage::Logs(n + 1);
                    }
                    None => self.stage = Stage::Segments { log: 0, after: 0 },
                },
                Stage::Segments { log, after } => self.segments(log, after)?,
                Stage::Rows { after } => self.order(after)?,
                Stage::Documents { after } => self.document(after)?,
                Stage::Done => return Ok(None),
            }
        }
    }

    fn at(&self, carrier: Carrier) -> Result<At, StoreError> {
        let log = self.numbers.get(&carrier.log).copied();
        let log = log.ok_or_else(|| damaged("a carrier in an unknown log"))?;
        Ok(At {
            log,
            seq: carrier.seq,
        })
    }

    /// Some hundred segments of a log.
    fn segments(&mut self, log: usize, after: Seq) -> Result<(), StoreError> {
        let Some(BuiltLog { no, last, .. }) = self.logs.get(log).copied() else {
            self.stage = Stage::Rows { after: None };
            return Ok(());
        };
        self.stage = Stage::Segments {
            log: log + 1,
            after: 0,
        };
        if after >= last {
            return Ok(());
        }
        let table = self.tx.open_table(SEGMENT_INDEX)?;
        for item in table.range((no, after + 1)..=(no, last))?.take(256) {
            let (key, bytes) = item?;
            let record: SegmentRecord = cbor::decode("segment record", bytes.value())?;
            let mut past = vec![];
            for entry in &record.past {
                past.push(self.at(Carrier {
                    log: entry.log,
                    seq: entry.seq,
                })?);
            }
            let last = key.value().1;
            self.waiting.push_back(Item::Segment(SegmentItem {
                log: u32::try_from(log).map_err(damaged)?,
                first: record.first,
                last,
                hash: record.hash,
                clock: record.clock,
                time_ms: record.time_ms,
                past,
            }));
            self.stage = Stage::Segments { log, after: last };
        }
        Ok(())
    }

    /// The rows that come next in order, as many as a window takes.
    fn order(&mut self, after: Option<Order>) -> Result<(), StoreError> {
        let tree = TreeReader::open(&self.tx, self.space)?;
        let index = self.tx.open_table(SEGMENT_INDEX)?;
        let mut window: BinaryHeap<Order> = BinaryHeap::new();
        for item in tree.carried()? {
            let row = item?;
            if self.left_out.contains(&row.node) {
                continue;
            }
            let mut least: Option<Order> = None;
            for carrier in row.carriers {
                let height = height(&index, carrier)?;
                let order = (height, carrier, row.id);
                least = Some(least.map_or(order, |least| least.min(order)));
            }
            let Some(order) = least else { continue };
            if after.is_some_and(|after| order <= after) {
                continue;
            }
            if window.len() < self.window_max {
                window.push(order);
            } else if window.peek().is_some_and(|highest| order < *highest) {
                window.pop();
                window.push(order);
            }
        }
        let window = window.into_sorted_vec();
        self.stage = match window.last() {
            Some(last) if window.len() == self.window_max => Stage::Rows { after: Some(*last) },
            _ => Stage::Documents { after: None },
        };
        self.window.extend(window.into_iter().map(|(_, _, id)| id));
        Ok(())
    }

    /// The next rows of the window.
    fn rows(&mut self) -> Result<(), StoreError> {
        let tree = TreeReader::open(&self.tx, self.space)?;
        for _ in 0..ROWS_READ {
            let Some(id) = self.window.pop_front() else {
                break;
            };
            let (row, _) = tree.row(&id)?.ok_or_else(|| damaged("a row is missing"))?;
            let mut carriers = vec![];
            for carrier in tree.carriers(&id)? {
                carriers.push(self.at(carrier)?);
            }
            self.waiting.push_back(Item::Row(RowItem {
                row: row.into(),
                carriers,
            }));
        }
        Ok(())
    }

    /// The changes of the next document.
    fn document(&mut self, after: Option<DocumentId>) -> Result<(), StoreError> {
        let table = self.tx.open_table(DOCUMENTS)?;
        let first = after.unwrap_or([0; 16]);
        let mut range = table.range((self.space, &first)..=(self.space, &[255; 16]))?;
        let next = loop {
            let Some(item) = range.next() else { break None };
            let (key, saved) = item?;
            let id = *key.value().1;
            if after != Some(id) {
                break Some((id, saved.value().to_vec()));
            }
        };
        let Some((id, saved)) = next else {
            self.stage = Stage::Done;
            return Ok(());
        };
        self.stage = Stage::Documents { after: Some(id) };
        for change in documents::changes(&saved).map_err(damaged)? {
            self.waiting.push_back(Item::Change(ChangeItem {
                document: id.into(),
                change: change.into(),
            }));
        }
        Ok(())
    }
}

/// How many entries the segment of a carrier has in its causal past, with itself.
fn height(
    index: &impl ReadableTable<(u32, u64), &'static [u8]>,
    carrier: Carrier,
) -> Result<u64, StoreError> {
    let mut range = index.range((carrier.log, carrier.seq)..=(carrier.log, Seq::MAX))?;
    let Some(item) = range.next() else {
        return Err(damaged("a row without its segment"));
    };
    let (key, bytes) = item?;
    let record: SegmentRecord = cbor::decode("segment record", bytes.value())?;
    let past = record.past.iter().map(|entry| entry.seq);
    Ok(past.fold(key.value().1, u64::saturating_add))
}

fn len_of(item: &Item) -> usize {
    match item {
        Item::Log(..) => 120,
        Item::Segment(segment) => 64 + 16 * segment.past.len(),
        Item::Row(row) => 16 + row.row.len() + 12 * row.carriers.len(),
        Item::Change(change) => 32 + change.change.len(),
    }
}
