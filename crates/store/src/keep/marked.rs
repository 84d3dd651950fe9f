//! One space of a sweep: what of the packs is needed, since when the rest is not, and what of that
//! goes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use pacsync_protocol::content::{ManifestId, ObjectId, PieceSource, SMALL_MAX, Walk};
use pacsync_protocol::row::Content;
use pacsync_protocol::{ContentId, NodeId, Seq, SpaceId, VersionVector, cbor};
use redb::ReadableTable;

use super::sweep::Swept;
use super::{
    KeepPolicy, STEP_BYTES, STEP_OBJECTS, TEXT_MAX, is_part_of_text, is_text, packs_failed,
};
use crate::content::packs::{PackEnd, PackError, PackRef, PackStore};
use crate::documents::settings_id;
use crate::error::StoreError;
use crate::index::{Class, ContentTables, Index, IndexReader, PackedId, Replaced};
use crate::replica::{Space, Store};
use crate::tables::{LOGS, LogRecord};
use crate::tree::{Carrier, TreeReader};

/// Nodes that one step looks at.
const STEP_NODES: usize = 512;
/// Most nodes whose changes during a sweep are taken into account.
const CHANGED_MAX: usize = 65_536;

/// Something shows it.
const NEEDED: u8 = 1;
/// It is part of a content that is short enough for a text.
const OF_SMALL: u8 = 2;
/// A version that stays rests on it.
const BASE: u8 = 4;
/// A device that has not told yet what it knows may work on it: as a text it stays.
const UNTOLD: u8 = 8;

/// What is the same for all spaces of a sweep.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    /// Only what was in the packs before is looked at.
    pub(super) end: PackEnd,
    /// The time, as sweeps count it.
    pub(super) clock: u64,
}

impl Round {
    fn has(&self, at: &PackRef) -> bool {
        (at.pack, at.offset) < (self.end.pack, self.end.offset)
    }

    /// Whether the time of something is up.
    fn is_over(&self, length: Option<u64>, replaced: Replaced) -> bool {
        length.is_some_and(|length| self.clock.saturating_sub(replaced.since) >= length)
    }
}

/// What is to be done next, and from where on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Task {
    /// What do packs hold of it?
    Collect(Option<PackedId>),
    /// What of that is shown?
    Mark(Option<NodeId>),
    /// Since when is the rest not?
    Age(Option<PackedId>),
    /// What do versions that stay rest on?
    Bases(Option<PackedId>),
    Drop(Option<PackedId>),
}

/// One space, and what is known of what packs hold of it.
#[derive(Debug)]
pub(super) struct Marked {
    space: Space,
    policy: KeepPolicy,
    /// Beginnings of the ids of what packs hold. Two that are the same are kept if one of them is.
    flags: HashMap<u64, u8>,
    /// Bytes of what the policy counts in parts of the disk, by since when nothing shows it.
    by_age: BTreeMap<u64, u64>,
    /// What is from before goes, and of what is from then so many bytes.
    over: Option<(u64, u64)>,
    /// Numbers of logs, and up to where every device has them.
    stable: BTreeMap<u32, Seq>,
    /// What was put into the packs up to here was looked at for what it rests on.
    bases_to: Option<PackEnd>,
    /// Nodes that changed after they were marked, perhaps.
    changed: BTreeSet<NodeId>,
    /// There were too many of them: nothing is dropped this time.
    unsure: bool,
}

fn short(id: &PackedId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *id;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl Marked {
    /// `None` where nothing can be said of a space: without its keys, or its settings.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn open(
        store: &Store,
        id: &SpaceId,
        stable: Option<&VersionVector>,
    ) -> Result<Option<Self>, StoreError> {
        let space = store.space(id)?.clone();
        let settings = match store.document(id, &settings_id(id)) {
            Ok(settings) if space.id_keys.is_some() => settings,
            Ok(_) | Err(StoreError::Damaged(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut known = BTreeMap::new();
        if let Some(vector) = stable {
            for item in store.read()?.open_table(LOGS)?.iter()? {
                let (no, record) = item?;
                let record: LogRecord = cbor::decode("log record", record.value())?;
                let head = vector.get(&record.id).filter(|_| record.space == space.no);
                known.extend(head.map(|head| (no.value(), head.seq)));
            }
        }
        Ok(Some(Self {
            space,
            policy: KeepPolicy::from_settings(&settings),
            flags: HashMap::new(),
            by_age: BTreeMap::new(),
            over: None,
            stable: known,
            bases_to: None,
            changed: BTreeSet::new(),
            unsure: false,
        }))
    }

    pub(super) fn space_id(&self) -> SpaceId {
        self.space.id
    }

    pub(super) fn changed(&mut self, node: &NodeId) {
        self.changed.insert(*node);
        if self.changed.len() > CHANGED_MAX {
            self.changed.clear();
            self.unsure = true;
        }
    }

    /// Does a bounded piece of a task; what comes next, `None` after the last one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn step(
        &mut self,
        task: Task,
        store: &mut Store,
        packs: &PackStore,
        round: Round,
        swept: &mut Swept,
    ) -> Result<Option<Task>, StoreError> {
        match task {
            Task::Collect(from) => self.collect(store, round, from),
            Task::Mark(from) => self.mark(store, from).map(Some),
            Task::Age(from) => self.age(store, packs, round, from).map(Some),
            Task::Bases(from) => self.bases(store, packs, round, from).map(Some),
            Task::Drop(from) => self.drop_old(store, packs, round, from, swept),
        }
    }

    fn collect(
        &mut self,
        store: &Store,
        round: Round,
        from: Option<PackedId>,
    ) -> Result<Option<Task>, StoreError> {
        let tx = store.read()?;
        let index = IndexReader::new(&tx, self.space.no);
        let found = index.packed_after(from.as_ref(), STEP_OBJECTS)?;
        let Some((last, _)) = found.last().copied() else {
            return Ok((!self.flags.is_empty()).then_some(Task::Mark(None)));
        };
        let old = found.iter().filter(|(_, at)| round.has(at));
        self.flags.extend(old.map(|(id, _)| (short(id), 0)));
        Ok(Some(Task::Collect(Some(last))))
    }

    fn mark(&mut self, store: &Store, from: Option<NodeId>) -> Result<Task, StoreError> {
        let tx = store.read()?;
        let tree = TreeReader::open(&tx, self.space.no)?;
        let tables = IndexReader::new(&tx, self.space.no).contents()?;
        let (groups, last) = tree.groups_after(from.as_ref(), STEP_NODES)?;
        for node in groups {
            self.mark_node(&tree, &tables, &node)?;
        }
        Ok(match last {
            Some(last) => Task::Mark(Some(last)),
            None => Task::Age(None),
        })
    }

    fn age(
        &mut self,
        store: &mut Store,
        packs: &PackStore,
        round: Round,
        from: Option<PackedId>,
    ) -> Result<Task, StoreError> {
        let txn = store.begin()?;
        let mut index = txn.index(self.space.no)?;
        let found = index.packed_after(from.as_ref(), STEP_OBJECTS)?;
        let mut last = None;
        let mut read = 0;
        let mut news = false;
        for (id, at) in &found {
            if read >= STEP_BYTES {
                break;
            }
            last = Some(*id);
            let flags = self.flags.get(&short(id)).copied();
            let Some(flags) = flags.filter(|_| round.has(at)) else {
                continue;
            };
            if flags & NEEDED != 0 {
                news |= index.set_replaced(id, None)?;
                continue;
            }
            let replaced = match index.replaced(id)? {
                Some(replaced) => replaced,
                None => {
                    read += u64::from(at.len);
                    let class = self.class(&index, packs, id, at, flags)?;
                    let replaced = Replaced {
                        class,
                        since: round.clock,
                    };
                    news |= index.set_replaced(id, Some(replaced))?;
                    replaced
                }
            };
            if replaced.class == Class::Rest && !round.is_over(self.policy.rest.ms(), replaced) {
                *self.by_age.entry(replaced.since).or_default() += u64::from(at.len);
            }
        }
        if news {
            txn.commit_lazily()?;
        }
        if last.is_some() {
            return Ok(Task::Age(last));
        }
        self.limit(packs);
        Ok(match self.policy.text.ms() {
            Some(_) => Task::Bases(None),
            None => Task::Drop(None),
        })
    }

    /// What is too much for the disk: the oldest.
    fn limit(&mut self, packs: &PackStore) {
        let size = packs.medium_size().unwrap_or(u64::MAX);
        let room = size / 100 * u64::from(self.policy.percent);
        let mut sum = 0u64;
        for (since, bytes) in self.by_age.iter().rev() {
            sum = sum.saturating_add(*bytes);
            if sum > room {
                self.over = Some((*since, sum - room));
                break;
            }
        }
    }

    fn bases(
        &mut self,
        store: &Store,
        packs: &PackStore,
        round: Round,
        from: Option<PackedId>,
    ) -> Result<Task, StoreError> {
        let tx = store.read()?;
        let index = IndexReader::new(&tx, self.space.no);
        let tables = index.contents()?;
        let found = index.packed_after(from.as_ref(), STEP_OBJECTS / 8)?;
        let Some((last, _)) = found.last().copied() else {
            return Ok(Task::Drop(None));
        };
        for (id, at) in &found {
            let replaced = index.replaced(id)?;
            let goes = replaced.is_some_and(|r| round.is_over(self.policy.text.ms(), r));
            if !goes {
                self.note_bases(&tables, packs, id, at)?;
            }
        }
        Ok(Task::Bases(Some(last)))
    }

    fn drop_old(
        &mut self,
        store: &mut Store,
        packs: &PackStore,
        round: Round,
        from: Option<PackedId>,
        swept: &mut Swept,
    ) -> Result<Option<Task>, StoreError> {
        if self.unsure {
            return Ok(None);
        }
        if !self.changed.is_empty() {
            let tx = store.read()?;
            let tree = TreeReader::open(&tx, self.space.no)?;
            let tables = IndexReader::new(&tx, self.space.no).contents()?;
            for _ in 0..STEP_NODES {
                let Some(node) = self.changed.pop_first() else {
                    break;
                };
                self.mark_node(&tree, &tables, &node)?;
            }
            return Ok(Some(Task::Drop(from)));
        }
        let txn = store.begin()?;
        let mut index = txn.index(self.space.no)?;
        if self.policy.text.ms().is_some() {
            // Versions that came while the rest was looked at.
            let tables = index.contents()?;
            let fresh = packs.records(self.bases_to.unwrap_or(round.end));
            for entry in fresh.map_err(packs_failed)? {
                match entry {
                    Ok(entry) => self.note_bases(&tables, packs, entry.id.as_bytes(), &entry.at)?,
                    Err(PackError::Corrupt { .. }) => {}
                    Err(error) => return Err(packs_failed(error)),
                }
            }
            self.bases_to = Some(packs.end());
        }
        let found = index.packed_after(from.as_ref(), STEP_OBJECTS)?;
        let last = found.last().map(|(id, _)| *id);
        let mut dropped = 0u64;
        for (id, at) in &found {
            let Some(replaced) = index.replaced(id)? else {
                continue;
            };
            let flags = self.flags.get(&short(id)).copied();
            let stays = match replaced.class {
                Class::Text => NEEDED | BASE | UNTOLD,
                Class::Rest => NEEDED,
            };
            // What came after the beginning was not looked at.
            if !round.has(at) || flags.is_none_or(|flags| flags & stays != 0) {
                continue;
            }
            if !self.goes(round, replaced, u64::from(at.len)) {
                continue;
            }
            if replaced.since == round.clock {
                swept.again = true;
                continue;
            }
            index.remove_packed(id)?;
            dropped += 1;
            swept.bytes += u64::from(at.len);
        }
        if dropped > 0 {
            swept.dropped += dropped;
            txn.commit_lazily()?;
        }
        Ok(last.map(|last| Task::Drop(Some(last))))
    }

    fn is_stable(&self, carrier: Carrier) -> bool {
        let seq = self.stable.get(&carrier.log);
        seq.is_some_and(|seq| carrier.seq <= *seq)
    }

    /// Notes which of what packs hold is needed for a node.
    fn mark_node(
        &mut self,
        tree: &TreeReader,
        tables: &dyn ContentTables,
        node: &NodeId,
    ) -> Result<(), StoreError> {
        let Some(state) = tree.node(node)? else {
            return Ok(());
        };
        let shown = state.content.as_ref().filter(|_| !state.dead);
        let in_conflict = !state.losers.is_empty();
        let rows = tree.rows_of_node(node)?;
        // Before it lies what no device works on that has not told what it wrote.
        let told = rows
            .iter()
            .rposition(|past| past.row.keys.content.is_some() && self.is_stable(past.carrier));
        for (n, past) in rows.iter().enumerate() {
            let Some(content) = &past.row.keys.content else {
                continue;
            };
            let shows = shown.is_some_and(|shown| shown.content.id == content.id);
            let mut flag = 0;
            if shows || in_conflict {
                flag |= NEEDED;
            }
            if content.size <= TEXT_MAX && told.is_none_or(|told| n >= told) {
                flag |= UNTOLD;
            }
            if (SMALL_MAX + 1..=TEXT_MAX).contains(&content.size) {
                flag |= OF_SMALL;
            }
            self.flag(tables, content, flag)?;
        }
        Ok(())
    }

    /// Says of the objects of a content what is known of it.
    fn flag(
        &mut self,
        tables: &dyn ContentTables,
        content: &Content,
        flag: u8,
    ) -> Result<(), StoreError> {
        if flag == 0 || content.inline.is_some() {
            return Ok(());
        }
        if let Some(flags) = self.flags.get_mut(&short(content.id.as_bytes())) {
            *flags |= flag;
        }
        let Some(top) = tables.manifest_of(&content.id)? else {
            return Ok(());
        };
        let Some(bytes) = tables.manifest(&top)? else {
            return Ok(());
        };
        let Some(keys) = &self.space.id_keys else {
            return Ok(());
        };
        // A manifest that is not here, or not true, says that the content is not here as a whole. One
        // that cannot be read now says nothing.
        let failed = RefCell::new(None);
        let lookup = |id: &ManifestId| match tables.manifest(id) {
            Ok(found) => found,
            Err(error) => {
                failed.borrow_mut().get_or_insert(error);
                None
            }
        };
        if let Ok(walk) = Walk::new(keys, &top, &bytes, lookup) {
            for piece in walk.map_while(Result::ok) {
                if let PieceSource::Chunk(chunk) = piece.source
                    && let Some(flags) = self.flags.get_mut(&short(chunk.as_bytes()))
                {
                    *flags |= flag;
                }
            }
        }
        failed.into_inner().map_or(Ok(()), Err)
    }

    /// Whether something is a text or a part of one. What cannot be read now is taken for one.
    fn class(
        &self,
        index: &Index<'_>,
        packs: &PackStore,
        id: &PackedId,
        at: &PackRef,
        flags: u8,
    ) -> Result<Class, StoreError> {
        let Ok(entry) = packs.entry(at) else {
            return Ok(Class::Text);
        };
        let of_text = match entry.id {
            ObjectId::Content(_) => u64::from(entry.size) <= TEXT_MAX,
            _ => flags & OF_SMALL != 0,
        };
        let Some(keys) = self.space.id_keys.as_ref().filter(|_| of_text) else {
            return Ok(Class::Rest);
        };
        let tables = index.contents()?;
        let find = |object: &ObjectId| tables.packed(object.as_bytes()).ok().flatten();
        let bytes = packs.get_version(at, &entry.id, keys, &find);
        let is_text = match (entry.id, bytes) {
            _ if entry.id.as_bytes() != id => true,
            (ObjectId::Content(_), Ok(bytes)) => is_text(&bytes),
            (_, Ok(bytes)) => is_part_of_text(&bytes),
            (_, Err(_)) => true,
        };
        Ok(if is_text { Class::Text } else { Class::Rest })
    }

    /// Whether the policy keeps something no longer.
    fn goes(&mut self, round: Round, replaced: Replaced, bytes: u64) -> bool {
        match replaced.class {
            Class::Text => round.is_over(self.policy.text.ms(), replaced),
            Class::Rest if round.is_over(self.policy.rest.ms(), replaced) => true,
            Class::Rest => match &mut self.over {
                Some((since, _)) if replaced.since < *since => true,
                Some((since, left)) if replaced.since == *since && *left > 0 => {
                    *left = left.saturating_sub(bytes);
                    true
                }
                _ => false,
            },
        }
    }

    /// What a version that stays rests on stays, too.
    fn note_bases(
        &mut self,
        tables: &dyn ContentTables,
        packs: &PackStore,
        id: &PackedId,
        at: &PackRef,
    ) -> Result<(), StoreError> {
        let (mut id, mut at) = (ContentId::from_bytes(*id), *at);
        loop {
            let base = match packs.rests_on(&at, &id) {
                Ok(Some(base)) => base,
                // A chunk is no content, and rests on nothing; what is damaged cannot be read anyway.
                Ok(None) | Err(PackError::Corrupt { .. }) => break,
                Err(error) => return Err(packs_failed(error)),
            };
            let flags = self.flags.entry(short(base.as_bytes())).or_default();
            if *flags & BASE != 0 {
                break;
            }
            *flags |= BASE;
            let Some(place) = tables.packed(base.as_bytes())? else {
                break;
            };
            (id, at) = (base, place);
        }
        Ok(())
    }
}
