//! Taking a checkpoint in: what it says is added to what is here, in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use pacsync_protocol::checkpoint::{
    At, ChangeItem, Item, Place, RowItem, SegmentItem, VerifiedHeader, documents_root,
};
use pacsync_protocol::crypto::{Entropy, Key, RunningHash, domain};
use pacsync_protocol::row::{Keys, Life, Row, STAMP_MAX};
use pacsync_protocol::segment::Entry;
use pacsync_protocol::{Head, LogId, NodeId, SegmentHash, Seq, SpaceId, cbor};
use redb::ReadableTable;

use super::{LACKING, LoadError, NAMED, PARTS, STARTED_FROM};
use crate::documents::{self, DocumentId};
use crate::error::StoreError;
use crate::replica::NewSegment;
use crate::tables::{
    DOCUMENTS, FRONTIER, LOGS, LogRecord, PastEntry, SEGMENT_INDEX, SPACES, SegmentRecord,
    SpaceRecord,
};
use crate::tree::{Carrier, Ends, TreeError, TreeTables, is_within};
use crate::txn::{BRANCHES_MAX, LIVES_MAX, Txn};

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

/// A log of the checkpoint, or a branch of one.
#[derive(Debug)]
struct LoadedLog {
    id: LogId,
    /// Where it parts from an earlier one.
    stem: Option<At>,
    /// Where it ends.
    head: Head,
    /// The last segment that came.
    last: Seq,
    hash: Option<SegmentHash>,
    /// Where its segments stand here: the same chains may part elsewhere, as others came first.
    pieces: Vec<Piece>,
}

/// Segments of a log of the checkpoint that follow each other in one chain here.
#[derive(Debug, Clone, Copy)]
struct Piece {
    first: Seq,
    last: Seq,
    /// Local number of the chain.
    no: u32,
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
    /// The chains of the space that are here, with what the checkpoint adds to what they hold.
    chains: BTreeMap<u32, LogRecord>,
    /// Those that hold more now.
    longer: BTreeSet<u32>,
    /// Those that were not here.
    fresh: BTreeSet<u32>,
    /// Documents that came.
    documents: BTreeMap<DocumentId, Known>,
    /// Whether there were rows before: then those that come are noted.
    rows: Known,
    /// What was stable when nodes that were dead for good were left out.
    stable: Ends,
    /// Nodes that are here and were left out.
    dead: BTreeSet<NodeId>,
}

/// Whether something of it was here before.
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
            chains: self.chains_of(space.no)?,
            longer: BTreeSet::new(),
            fresh: BTreeSet::new(),
            documents: BTreeMap::new(),
            rows: match self.tree(space.no)?.carried()?.next().transpose()? {
                Some(_) => Known::Yes,
                None => Known::No,
            },
            stable: Ends::new(),
            dead: BTreeSet::new(),
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
        // Where segments stand here is known only once all have come; what they rest on is said by
        // places.
        for number in 0..parts {
            let items = check!(self.items(space.no, header, key, number, parts));
            if !check!(self.take_logs(&mut loading, header, items)) {
                break;
            }
        }
        check!(loading.end_of_logs(header));
        check!(loading.end_of_segments());
        check!(self.take_stable(&mut loading, header));
        let ends = loading.ends();
        let knows = |(no, seq): (&u32, &Seq)| ends.get(no).is_some_and(|end| end >= seq);
        if !self.left_out_before(space.no)?.iter().all(knows) {
            // It may have what died since as if it lived.
            return Ok(Err(LoadError::Older));
        }
        loading.log = 0;
        for number in 0..parts {
            let items = check!(self.items(space.no, header, key, number, parts));
            check!(self.take_items(&mut loading, items));
        }
        check!(self.compare(&mut loading, header));
        let dead = std::mem::take(&mut loading.dead);
        let ends = loading.ends();
        self.raise(loading)?;
        self.note_forks(now_ms)?;
        self.renew_if_lost(rng)?;
        self.drop_parts(&says.space)?;
        self.tx
            .open_table(STARTED_FROM)?
            .insert(space.no, header.bytes())?;
        self.tx.open_table(LACKING)?.remove(space.no)?;
        self.apply(now_ms, rng)?;
        self.declare_dead(&says.space, &dead, &ends, now_ms, rng)?;
        Ok(Ok(()))
    }

    /// Where what is said to be stable stands here.
    fn take_stable(&mut self, loading: &mut Loading, header: &VerifiedHeader) -> Loaded<()> {
        for (id, head) in header.header().stable.iter() {
            let number = loading.logs.iter().position(|log| log.id == id);
            let number = number.and_then(|number| u32::try_from(number).ok());
            let at = number.map(|log| At { log, seq: head.seq });
            let Some((at, no)) = at.and_then(|at| Some((at, loading.log_at(&at)?))) else {
                refuse!("something stable that is not in it");
            };
            let hash = self
                .segment_record(no, head.seq)?
                .map(|s| s.hash.to_short());
            if hash != Some(head.hash) {
                refuse!("something stable that is not in it");
            }
            for piece in loading.pieces_to(&at).copied().collect::<Vec<_>>() {
                let end = loading.stable.entry(piece.no).or_default();
                *end = piece.last.min(at.seq).max(*end);
            }
        }
        Ok(Ok(()))
    }

    /// Says that nodes are dead that are here and that a checkpoint up to some ends left out, but for
    /// those with a content from after it: this replica was put back to before they died. Of those
    /// that live on, rows may be lacking.
    fn declare_dead(
        &mut self,
        space: &SpaceId,
        nodes: &BTreeSet<NodeId>,
        ends: &Ends,
        now_ms: u64,
        rng: &mut dyn Entropy,
    ) -> Result<(), StoreError> {
        let own = self.store.identity().keys.sign.id();
        if nodes.is_empty() {
            return Ok(());
        }
        let no = self.space(space)?.no;
        let mut lives = false;
        let mut graves: BTreeMap<NodeId, Vec<Entry>> = BTreeMap::new();
        {
            let tree = self.tree(no)?;
            for node in nodes {
                let Some(state) = tree.node(node)?.filter(|state| !state.dead) else {
                    continue;
                };
                let written_since = tree.rows_of_node(node)?.into_iter().any(|past| {
                    let before = ends
                        .get(&past.carrier.log)
                        .is_some_and(|e| past.carrier.seq <= *e);
                    past.row.keys.content.is_some() && !before
                });
                lives |= written_since || state.live_children > 0;
                if !written_since {
                    let keys = Keys {
                        life: Some(Life::Dead),
                        ..Keys::default()
                    };
                    let rows = tree.write_over(&state.id, &keys)?;
                    let entries = rows.iter().map(|row| Entry::Row(row.to_bytes()));
                    graves.insert(state.id, entries.collect::<Vec<_>>());
                }
            }
        }
        let may = self.roster().may_write(&own, space);
        if lives || !may {
            self.tx.open_table(LACKING)?.insert(no, ())?;
            self.out.lacking.insert(*space);
        }
        if !may {
            return Ok(());
        }
        let graves = graves.into_values().flatten().collect();
        self.append(space, graves, now_ms, rng)
    }

    fn chains_of(&self, space: u32) -> Result<BTreeMap<u32, LogRecord>, StoreError> {
        let logs = self.logs()?.into_iter();
        Ok(logs.filter(|(_, record)| record.space == space).collect())
    }

    /// The items of a part that is kept.
    fn items(
        &self,
        space: u32,
        header: &VerifiedHeader,
        key: &Key,
        number: u64,
        parts: u64,
    ) -> Loaded<Vec<Item>> {
        let part = {
            let table = self.tx.open_table(PARTS)?;
            let found = table.get((space, number))?;
            found.map(|bytes| bytes.value().to_vec())
        };
        let Some(part) = part else {
            refuse!("part {number} is missing")
        };
        let place = match number + 1 == parts {
            true => Place::Last,
            false => Place::Within,
        };
        match header.open_part(key, number, place, &part) {
            Ok(items) => Ok(Ok(items)),
            Err(error) => Ok(Err(error.into())),
        }
    }

    /// The logs and segments of a part; false if others follow them.
    fn take_logs(
        &mut self,
        loading: &mut Loading,
        header: &VerifiedHeader,
        items: Vec<Item>,
    ) -> Loaded<bool> {
        for item in items {
            match item {
                Item::Log(id, stem) => check!(loading.take_log(header, id, stem)),
                Item::Segment(segment) => check!(self.take_segment(loading, &segment)),
                Item::Row(_) | Item::Change(_) => return Ok(Ok(false)),
            }
        }
        Ok(Ok(true))
    }

    fn take_items(&mut self, loading: &mut Loading, items: Vec<Item>) -> Loaded<()> {
        let mut changes: Vec<ChangeItem> = vec![];
        let mut rows = vec![];
        for item in items {
            let kind = match &item {
                Item::Log(..) => Kind::Log,
                Item::Segment(_) => Kind::Segment,
                Item::Row(_) => Kind::Row,
                Item::Change(_) => Kind::Change,
            };
            if kind < loading.kind {
                refuse!("its items are in no order");
            }
            loading.kind = kind;
            match item {
                Item::Log(..) => {}
                Item::Segment(segment) => check!(self.take_past(loading, &segment)),
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

    /// Finds where a segment stands here, or adds it to what is here.
    fn take_segment(&mut self, loading: &mut Loading, item: &SegmentItem) -> Loaded<()> {
        let number = item.log as usize;
        if number < loading.log || number >= loading.logs.len() {
            refuse!("a segment of an unknown log");
        }
        loading.log = number;
        let Some(log) = loading.logs.get(number) else {
            refuse!("a segment of an unknown log");
        };
        let follows = log.last.checked_add(1) == Some(item.first) && item.last >= item.first;
        if !follows || item.last > log.head.seq || item.clock > loading.clock.min(STAMP_MAX) {
            refuse!("a segment that does not follow the one before");
        }
        let before = match (log.pieces.last(), log.stem) {
            (Some(piece), _) => Some((piece.no, piece.last)),
            (None, Some(stem)) => {
                let Some(no) = loading.log_at(&stem) else {
                    refuse!("a branch of what is not in it");
                };
                if self.segment_record(no, stem.seq)?.is_none() {
                    refuse!("a branch that parts within a segment");
                }
                Some((no, stem.seq))
            }
            (None, None) => None,
        };
        let of_life = loading.chains.iter();
        let of_life = of_life.filter(|(_, chain)| chain.is_of(loading.space, &log.id));
        let (mut found, mut is_first) = (None, true);
        for (no, _) in of_life {
            is_first = false;
            if let Some(here) = self.segment_record(*no, item.last)?
                && here.hash == item.hash
            {
                if here.first != item.first {
                    return Ok(Err(LoadError::Fork));
                }
                found = Some(*no);
            }
        }
        let no = match found {
            Some(no) => no,
            None => {
                let id = log.id;
                let end = before.filter(|(no, seq)| {
                    loading
                        .chains
                        .get(no)
                        .is_some_and(|chain| chain.held == *seq)
                });
                let no = match end {
                    Some((no, _)) => no,
                    None => {
                        let table = self.tx.open_table(LOGS)?;
                        let no = table.last()?.map_or(1, |(no, _)| no.value() + 1);
                        drop(table);
                        let stem = before.map(|(log, seq)| PastEntry { log, seq });
                        let branch = (!is_first).then(|| item.hash.to_short());
                        let most = if is_first { LIVES_MAX } else { BRANCHES_MAX };
                        let others = loading.chains.values().filter(|chain| {
                            chain.space == loading.space
                                && chain.id.device == id.device
                                && chain.id.branch.is_some() != is_first
                        });
                        if others.count() >= most {
                            refuse!("more logs of one device than are taken");
                        }
                        let record = LogRecord {
                            space: loading.space,
                            id: LogId { branch, ..id },
                            held: 0,
                            held_hash: SegmentHash::from_bytes([0; 32]),
                            applied: 0,
                            applied_hash: None,
                            bytes: 0,
                            stem,
                        };
                        self.put_log(no, &record)?;
                        loading.chains.insert(no, record);
                        loading.fresh.insert(no);
                        no
                    }
                };
                if let Some(chain) = loading.chains.get_mut(&no) {
                    chain.held = item.last;
                    chain.held_hash = item.hash;
                }
                loading.longer.insert(no);
                let trunk = LogId::new(id.device, id.incarnation);
                self.lost_own |= trunk == self.own_log();
                let record = SegmentRecord {
                    first: item.first,
                    hash: item.hash,
                    clock: item.clock,
                    time_ms: item.time_ms,
                    past: vec![],
                };
                self.tx
                    .open_table(SEGMENT_INDEX)?
                    .insert((no, item.last), cbor::encode(&record).as_slice())?;
                no
            }
        };
        let Some(log) = loading.logs.get_mut(number) else {
            refuse!("a segment of an unknown log");
        };
        log.last = item.last;
        log.hash = Some(item.hash);
        match log.pieces.last_mut() {
            Some(piece) if piece.no == no => piece.last = item.last,
            _ => log.pieces.push(Piece {
                first: item.first,
                last: item.last,
                no,
            }),
        }
        loading.highest = loading.highest.max(item.clock);
        Ok(Ok(()))
    }

    /// What a segment rests on, now that all places are known.
    fn take_past(&mut self, loading: &Loading, item: &SegmentItem) -> Loaded<()> {
        let own = At {
            log: item.log,
            seq: item.last,
        };
        let Some(no) = loading.log_at(&own) else {
            refuse!("a segment of an unknown log");
        };
        let mut logs: Vec<u32> = item.past.iter().map(|at| at.log).collect();
        logs.sort_unstable();
        logs.dedup();
        if logs.len() != item.past.len() || logs.contains(&item.log) {
            refuse!("a segment with a past that is none");
        }
        let before = item.first.checked_sub(1).filter(|before| {
            let log = loading.logs.get(item.log as usize);
            log.is_some_and(|log| log.stem.is_none_or(|stem| *before > stem.seq) && *before > 0)
        });
        let before = before.map(|seq| At { log: item.log, seq });
        let mut past: BTreeMap<u32, Seq> = BTreeMap::new();
        for at in item.past.iter().chain(&before) {
            if loading.log_at(at).is_none() {
                refuse!("a segment with a past that is not in it");
            }
            for piece in loading.pieces_to(at) {
                let seq = past.entry(piece.no).or_default();
                *seq = (*seq).max(piece.last.min(at.seq));
            }
        }
        past.remove(&no);
        let applied = loading.chains.get(&no).map_or(0, |chain| chain.applied);
        if item.last > applied {
            let past = past.into_iter().map(|(log, seq)| PastEntry { log, seq });
            let record = SegmentRecord {
                first: item.first,
                hash: item.hash,
                clock: item.clock,
                time_ms: item.time_ms,
                past: past.collect(),
            };
            self.tx
                .open_table(SEGMENT_INDEX)?
                .insert((no, item.last), cbor::encode(&record).as_slice())?;
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
            let id = Row::id_of(&item.row);
            if loading.rows == Known::Yes {
                self.tx
                    .open_table(NAMED)?
                    .insert((loading.space, id.as_bytes()), ())?;
            }
            for at in &item.carriers {
                let Some(log) = loading.log_at(at) else {
                    refuse!("a row written after its vector");
                };
                let carrier = Carrier { log, seq: at.seq };
                match tree.insert(id, &row, &item.row, carrier) {
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
    fn compare(&mut self, loading: &mut Loading, header: &VerifiedHeader) -> Loaded<()> {
        let says = header.header();
        let ends = loading.ends();
        let mut root = RunningHash::new(domain::CHECKPOINT_ROWS);
        {
            let tree = TreeTables::open(&self.tx, loading.space)?;
            let named = self.tx.open_table(NAMED)?;
            for item in tree.carried()? {
                let row = item?;
                if !is_within(&row.carriers, &ends) {
                    continue;
                }
                if loading.rows == Known::No
                    || named.get((loading.space, row.id.as_bytes()))?.is_some()
                {
                    root.update(row.id.as_bytes());
                } else if is_within(&row.carriers, &loading.stable) {
                    loading.dead.insert(row.node);
                } else {
                    refuse!("a row is not in it that somebody may not have seen yet");
                }
            }
        }
        self.tx.open_table(NAMED)?.retain_in(
            (loading.space, &[0; 32])..=(loading.space, &[255; 32]),
            |_, ()| false,
        )?;
        if root.finish() != *says.rows {
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
    fn raise(&mut self, mut loading: Loading) -> Result<(), StoreError> {
        let mut changed = loading.longer.clone();
        for (no, seq) in loading.ends() {
            let hash = self.segment_record(no, seq)?.map(|found| found.hash);
            if let Some(chain) = loading.chains.get_mut(&no)
                && chain.applied < seq
            {
                chain.applied = seq;
                chain.applied_hash = hash;
                changed.insert(no);
            }
        }
        let mut lives = BTreeSet::new();
        for no in &changed {
            if let Some(chain) = loading.chains.get(no) {
                self.put_log(*no, chain)?;
                if loading.fresh.contains(no) {
                    lives.insert(LogId::new(chain.id.device, chain.id.incarnation));
                }
            }
        }
        for life in lives {
            if self.chains(loading.space, &life)?.len() > 1 {
                self.relabel(loading.space, &life)?;
                self.out.forked.insert((loading.id, life.device));
            }
        }
        let chains = self.chains_of(loading.space)?;
        for no in &loading.longer {
            if let Some(chain) = chains.get(no) {
                self.out.segments.push(NewSegment {
                    space: loading.id,
                    log: chain.id,
                    head: chain.held_head(),
                    entries: 0,
                    bytes: vec![],
                });
            }
        }
        self.derive_frontier(loading.space)?;
        for (no, seq) in &loading.stable {
            self.leave_out(loading.space, *no, *seq)?;
        }
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
    fn take_log(
        &mut self,
        header: &VerifiedHeader,
        id: LogId,
        stem: Option<At>,
    ) -> Result<Result<(), LoadError>, StoreError> {
        let Some(head) = header.header().vector.get(&id) else {
            refuse!("a log that its vector does not name");
        };
        let before = |log: &LoadedLog| log.id == id || !log.pieces.is_empty();
        if self.logs.iter().any(before) {
            refuse!("a log twice, or behind segments");
        }
        if let Some(stem) = stem {
            let of_life = self
                .logs
                .get(stem.log as usize)
                .filter(|log| log.id.device == id.device && log.id.incarnation == id.incarnation);
            let within = |log: &LoadedLog| (1..=log.head.seq).contains(&stem.seq);
            if !of_life.is_some_and(within) || stem.seq >= head.seq {
                refuse!("a branch of what is not in it");
            }
        }
        self.logs.push(LoadedLog {
            id,
            stem,
            head,
            last: stem.map_or(0, |stem| stem.seq),
            hash: None,
            pieces: vec![],
        });
        Ok(Ok(()))
    }

    fn end_of_logs(&self, header: &VerifiedHeader) -> Loaded<()> {
        if self.logs.len() != header.header().vector.len() {
            refuse!("not all logs that its vector names");
        }
        Ok(Ok(()))
    }

    /// The chain here that has an entry.
    fn log_at(&self, at: &At) -> Option<u32> {
        let log = self.logs.get(at.log as usize)?;
        let mut pieces = log.pieces.iter();
        let piece = pieces.find(|piece| (piece.first..=piece.last).contains(&at.seq))?;
        Some(piece.no)
    }

    /// The pieces of a log up to an entry.
    fn pieces_to(&self, at: &At) -> impl Iterator<Item = &Piece> {
        let log = self.logs.get(at.log as usize);
        let pieces = log.into_iter().flat_map(|log| &log.pieces);
        let last = at.seq;
        pieces.filter(move |piece| piece.first <= last)
    }

    /// Up to where the checkpoint goes in each chain here.
    fn ends(&self) -> BTreeMap<u32, Seq> {
        let mut ends = BTreeMap::new();
        for piece in self.logs.iter().flat_map(|log| &log.pieces) {
            let end = ends.entry(piece.no).or_default();
            *end = piece.last.max(*end);
        }
        ends
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
