//! The sweep: what of the packs is shown, since when the rest is not, and dropping what the policy
//! does not keep; then packs that are mostly empty are copied together and removed.
//!
//! In bounded steps. Memory: about 20 bytes for each object that packs hold of one space. Time:
//! linear in rows, objects and the chunks that contents of more than 128 KiB have.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use pacsync_protocol::content::{ManifestId, ObjectId, PieceSource, SMALL_MAX, Walk};
use pacsync_protocol::row::Content;
use pacsync_protocol::{ContentId, NodeId, Seq, SpaceId, VersionVector, cbor};
use redb::ReadTransaction;

use super::{KeepPolicy, TEXT_MAX, is_part_of_text, is_text};
use crate::content::packs::{PackEnd, PackError, PackRef, PackStore};
use crate::documents::settings_id;
use crate::error::StoreError;
use crate::index::{Class, ContentTables, Index, IndexReader, PackedId, Replaced};
use crate::replica::{Space, Store};
use crate::tables::{LOGS, LogRecord, META};
use crate::tree::{Carrier, TreeReader};

/// Objects that one step looks at.
const STEP_OBJECTS: usize = 2_048;
/// Nodes that one step looks at.
const STEP_NODES: usize = 512;
/// Bytes that one step reads or copies.
const STEP_BYTES: u64 = 8 << 20;
/// Most nodes whose changes during a sweep are taken into account.
const CHANGED_MAX: usize = 65_536;
/// The clock of a device counts no more than this between two sweeps: one that jumps, or a device
/// that was off, must not make everything old at once.
const TICK_MAX_MS: u64 = 7 * 86_400_000;
/// The last pack is closed, to be copied, once so many bytes of it are of no use.
const SEAL_BYTES: u64 = 32 << 20;

/// Something shows it.
const NEEDED: u8 = 1;
/// It is part of a content that is short enough for a text.
const OF_SMALL: u8 = 2;
/// A version that stays rests on it.
const BASE: u8 = 4;
/// A device that has not told yet what it knows may work on it: as a text it stays.
const UNTOLD: u8 = 8;

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects that are not kept any more.
    pub dropped: u64,
    /// Their bytes in packs.
    pub bytes: u64,
    /// Packs that were removed.
    pub packs: u64,
    /// Whether another sweep would drop something at once: what is found old is dropped by the
    /// next one at the earliest.
    pub again: bool,
}

#[derive(Debug, Clone)]
enum Stage {
    /// The next space, or the packs once none is left.
    Next,
    /// What do packs hold of it?
    Collect(Option<PackedId>),
    /// What of that is shown?
    Mark(Option<NodeId>),
    /// Since when is the rest not?
    Age(Option<PackedId>),
    /// What do versions that stay rest on?
    Bases(Option<PackedId>),
    Drop(Option<PackedId>),
    /// How much of each pack is of use?
    Count(VecDeque<u32>, Option<PackedId>),
    Compact,
    /// Of which of those that were copied is nothing of use left?
    Recount(VecDeque<u32>, Option<PackedId>),
    Done,
}

/// One space of the sweep.
#[derive(Debug)]
struct Marked {
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
    bases_to: PackEnd,
    /// Nodes that changed after they were marked, perhaps.
    changed: BTreeSet<NodeId>,
    /// There were too many of them: nothing is dropped this time.
    unsure: bool,
}

/// A sweep under way.
#[derive(Debug)]
pub struct Sweep {
    end: PackEnd,
    clock: u64,
    stage: Stage,
    spaces: VecDeque<SpaceId>,
    current: Option<Marked>,
    stable: BTreeMap<SpaceId, VersionVector>,
    /// Bytes of use by pack.
    live: BTreeMap<u32, u64>,
    compact: VecDeque<u32>,
    /// The pack that is copied, and up to where.
    copying: Option<(u32, u64)>,
    /// Packs that may be removed, if nothing of them is indexed.
    empty: Vec<u32>,
    swept: Swept,
}

fn packs(error: PackError) -> StoreError {
    StoreError::Packs(error.to_string())
}

fn short(id: &PackedId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *id;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

fn is_before(at: &PackRef, end: PackEnd) -> bool {
    (at.pack, at.offset) < (end.pack, end.offset)
}

impl Sweep {
    /// Begins a sweep of all spaces. `stable` says what every device has of a space; of one that is
    /// not in it no text goes. `wall_ms` is the time.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin(
        store: &mut Store,
        packs: &PackStore,
        stable: BTreeMap<SpaceId, VersionVector>,
        wall_ms: u64,
    ) -> Result<Self, StoreError> {
        let (clock, last) = read_clock(&store.read()?)?;
        let gone = last.map_or(0, |last| wall_ms.saturating_sub(last));
        let clock = clock.saturating_add(gone.min(TICK_MAX_MS));
        let txn = store.begin()?;
        let bytes = [clock.to_be_bytes(), wall_ms.to_be_bytes()].concat();
        txn.raw()
            .open_table(META)?
            .insert("keep_clock", bytes.as_slice())?;
        txn.commit_lazily()?;
        Ok(Self {
            end: packs.end(),
            clock,
            stage: Stage::Next,
            spaces: store.spaces().map(|space| space.id).collect(),
            current: None,
            stable,
            live: BTreeMap::new(),
            compact: VecDeque::new(),
            copying: None,
            empty: vec![],
            swept: Swept::default(),
        })
    }

    /// When the last sweep of a replica began, by its device's clock, in milliseconds since 1970.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last(store: &Store) -> Result<Option<u64>, StoreError> {
        Ok(read_clock(&store.read()?)?.1)
    }

    /// A node has new rows: what they show may be needed from now on.
    pub fn changed(&mut self, space: &SpaceId, node: &NodeId) {
        let current = self.current.as_mut();
        if let Some(current) = current.filter(|current| current.space.id == *space) {
            current.changed.insert(*node);
            if current.changed.len() > CHANGED_MAX {
                current.changed.clear();
                current.unsure = true;
            }
        }
    }

    /// Does a bounded piece of the work; what was done once all is.
    ///
    /// # Errors
    /// [`StoreError`]; after [`StoreError::Packs`] the sweep is to be given up.
    pub fn step(
        &mut self,
        store: &mut Store,
        packs: &mut PackStore,
    ) -> Result<Option<Swept>, StoreError> {
        let stage = std::mem::replace(&mut self.stage, Stage::Done);
        self.stage = match stage {
            Stage::Next => self.next_space(store)?,
            Stage::Collect(from) => self.collect(store, from)?,
            Stage::Mark(from) => self.mark(store, from)?,
            Stage::Age(from) => self.age(store, packs, from)?,
            Stage::Bases(from) => self.bases(store, packs, from)?,
            Stage::Drop(from) => self.drop_old(store, packs, from)?,
            Stage::Count(rest, from) => self.count(store, packs, rest, from)?,
            Stage::Compact => self.compact(store, packs)?,
            Stage::Recount(rest, from) => self.recount(store, packs, rest, from)?,
            Stage::Done => Stage::Done,
        };
        Ok(matches!(self.stage, Stage::Done).then_some(self.swept))
    }

    fn next_space(&mut self, store: &Store) -> Result<Stage, StoreError> {
        let Some(id) = self.spaces.pop_front() else {
            self.current = None;
            let spaces = store.spaces().map(|space| space.no).collect();
            return Ok(Stage::Count(spaces, None));
        };
        let space = store.space(&id)?.clone();
        // Without its keys nothing can be said of what is in it.
        if space.id_keys.is_none() {
            return Ok(Stage::Next);
        }
        let settings = store.document(&id, &settings_id(&id))?;
        let mut stable = BTreeMap::new();
        if let Some(vector) = self.stable.get(&id) {
            let tx = store.read()?;
            let logs = tx.open_table(LOGS)?;
            for item in redb::ReadableTable::iter(&logs)? {
                let (no, record) = item?;
                let record: LogRecord = cbor::decode("log record", record.value())?;
                let head = vector.get(&record.id).filter(|_| record.space == space.no);
                stable.extend(head.map(|head| (no.value(), head.seq)));
            }
        }
        self.current = Some(Marked {
            space,
            policy: KeepPolicy::from_settings(&settings),
            flags: HashMap::new(),
            by_age: BTreeMap::new(),
            over: None,
            stable,
            bases_to: self.end,
            changed: BTreeSet::new(),
            unsure: false,
        });
        Ok(Stage::Collect(None))
    }

    fn collect(&mut self, store: &Store, from: Option<PackedId>) -> Result<Stage, StoreError> {
        let end = self.end;
        let Some(current) = &mut self.current else {
            return Ok(Stage::Next);
        };
        let tx = store.read()?;
        let index = IndexReader::new(&tx, current.space.no);
        let found = index.packed_after(from.as_ref(), STEP_OBJECTS)?;
        let Some((last, _)) = found.last().copied() else {
            let empty = current.flags.is_empty();
            return Ok(if empty {
                Stage::Next
            } else {
                Stage::Mark(None)
            });
        };
        let old = found.iter().filter(|(_, at)| is_before(at, end));
        current.flags.extend(old.map(|(id, _)| (short(id), 0)));
        Ok(Stage::Collect(Some(last)))
    }

    fn mark(&mut self, store: &Store, from: Option<NodeId>) -> Result<Stage, StoreError> {
        let Some(current) = &mut self.current else {
            return Ok(Stage::Next);
        };
        let tx = store.read()?;
        let tree = TreeReader::open(&tx, current.space.no)?;
        let tables = IndexReader::new(&tx, current.space.no).contents()?;
        let (groups, last) = tree.groups_after(from.as_ref(), STEP_NODES)?;
        for node in groups {
            current.mark(&tree, &tables, &node)?;
        }
        Ok(match last {
            Some(last) => Stage::Mark(Some(last)),
            None => Stage::Age(None),
        })
    }

    fn age(
        &mut self,
        store: &mut Store,
        packs: &PackStore,
        from: Option<PackedId>,
    ) -> Result<Stage, StoreError> {
        let Some(current) = &mut self.current else {
            return Ok(Stage::Next);
        };
        let txn = store.begin()?;
        let mut index = txn.index(current.space.no)?;
        let found = index.packed_after(from.as_ref(), STEP_OBJECTS)?;
        let mut last = None;
        let mut read = 0;
        for (id, at) in &found {
            if read >= STEP_BYTES {
                break;
            }
            last = Some(*id);
            let Some(flags) = current.flags.get(&short(id)).copied() else {
                continue;
            };
            if !is_before(at, self.end) {
                continue;
            }
            if flags & NEEDED != 0 {
                index.set_replaced(id, None)?;
                continue;
            }
            let replaced = match index.replaced(id)? {
                Some(replaced) => replaced,
                None => {
                    read += u64::from(at.len);
                    let class = current.class(&index, packs, id, at, flags)?;
                    let replaced = Replaced {
                        class,
                        since: self.clock,
                    };
                    index.set_replaced(id, Some(replaced))?;
                    replaced
                }
            };
            if replaced.class == Class::Rest
                && !is_over(current.policy.rest.ms(), self.clock, replaced)
            {
                *current.by_age.entry(replaced.since).or_default() += u64::from(at.len);
            }
        }
        txn.commit_lazily()?;
        if last.is_some() {
            return Ok(Stage::Age(last));
        }
        let size = packs.medium_size().unwrap_or(u64::MAX);
        let room = size / 100 * u64::from(current.policy.percent);
        let mut sum = 0u64;
        for (since, bytes) in current.by_age.iter().rev() {
            sum = sum.saturating_add(*bytes);
            if sum > room {
                current.over = Some((*since, sum - room));
                break;
            }
        }
        Ok(match current.policy.text.ms() {
            Some(_) => Stage::Bases(None),
            None => Stage::Drop(None),
        })
    }

    fn bases(
        &mut self,
        store: &Store,
        packs: &PackStore,
        from: Option<PackedId>,
    ) -> Result<Stage, StoreError> {
        let Some(current) = &mut self.current else {
            return Ok(Stage::Next);
        };
        let tx = store.read()?;
        let index = IndexReader::new(&tx, current.space.no);
        let tables = index.contents()?;
        let found = index.packed_after(from.as_ref(), STEP_OBJECTS / 8)?;
        let Some((last, _)) = found.last().copied() else {
            return Ok(Stage::Drop(None));
        };
        for (id, at) in &found {
            let replaced = index.replaced(id)?;
            let goes = replaced.is_some_and(|r| is_over(current.policy.text.ms(), self.clock, r));
            if !goes {
                current.note_bases(&tables, packs, id, at)?;
            }
        }
        Ok(Stage::Bases(Some(last)))
    }

    fn drop_old(
        &mut self,
        store: &mut Store,
        packs: &PackStore,
        from: Option<PackedId>,
    ) -> Result<Stage, StoreError> {
        let Some(current) = &mut self.current else {
            return Ok(Stage::Next);
        };
        if current.unsure {
            self.swept.again = true;
            return Ok(Stage::Next);
        }
        if !current.changed.is_empty() {
            let tx = store.read()?;
            let tree = TreeReader::open(&tx, current.space.no)?;
            let tables = IndexReader::new(&tx, current.space.no).contents()?;
            for _ in 0..STEP_NODES {
                let Some(node) = current.changed.pop_first() else {
                    break;
                };
                current.mark(&tree, &tables, &node)?;
            }
            return Ok(Stage::Drop(from));
        }
        let txn = store.begin()?;
        let mut index = txn.index(current.space.no)?;
        if current.policy.text.ms().is_some() {
            // Versions that came while the rest was looked at.
            let tables = index.contents()?;
            let fresh = packs.records(current.bases_to).map_err(self::packs)?;
            for entry in fresh.flatten() {
                current.note_bases(&tables, packs, entry.id.as_bytes(), &entry.at)?;
            }
            current.bases_to = packs.end();
        }
        let found = index.packed_after(from.as_ref(), STEP_OBJECTS)?;
        let last = found.last().map(|(id, _)| *id);
        let mut dropped = 0u64;
        for (id, at) in &found {
            let Some(replaced) = index.replaced(id)? else {
                continue;
            };
            let flags = current.flags.get(&short(id)).copied();
            let stays = match replaced.class {
                Class::Text => NEEDED | BASE | UNTOLD,
                Class::Rest => NEEDED,
            };
            // What came after the beginning was not looked at.
            if !is_before(at, self.end) || flags.is_none_or(|flags| flags & stays != 0) {
                continue;
            }
            if !current.goes(self.clock, replaced, u64::from(at.len)) {
                continue;
            }
            if replaced.since == self.clock {
                self.swept.again = true;
                continue;
            }
            index.remove_packed(id)?;
            dropped += 1;
            self.swept.bytes += u64::from(at.len);
        }
        if dropped > 0 {
            self.swept.dropped += dropped;
            txn.commit_lazily()?;
        }
        Ok(match last {
            Some(last) => Stage::Drop(Some(last)),
            None => Stage::Next,
        })
    }

    /// Adds up what is of use of each pack; what remains to be added.
    fn add_up(
        &mut self,
        store: &Store,
        mut rest: VecDeque<u32>,
        from: Option<PackedId>,
    ) -> Result<(VecDeque<u32>, Option<PackedId>), StoreError> {
        let Some(space) = rest.front().copied() else {
            return Ok((rest, None));
        };
        let tx = store.read()?;
        let found = IndexReader::new(&tx, space).packed_after(from.as_ref(), STEP_OBJECTS)?;
        for (_, at) in &found {
            *self.live.entry(at.pack).or_default() += u64::from(at.len);
        }
        let last = found.last().map(|(id, _)| *id);
        if last.is_none() {
            rest.pop_front();
        }
        Ok((rest, last))
    }

    fn count(
        &mut self,
        store: &Store,
        packs: &mut PackStore,
        rest: VecDeque<u32>,
        from: Option<PackedId>,
    ) -> Result<Stage, StoreError> {
        if !rest.is_empty() {
            let (rest, from) = self.add_up(store, rest, from)?;
            return Ok(Stage::Count(rest, from));
        }
        for (pack, len) in packs.list().map_err(self::packs)? {
            let live = self.live.get(&pack).copied().unwrap_or(0);
            let garbage = len.saturating_sub(live);
            if garbage <= len / 2 || pack > self.end.pack {
                continue;
            }
            if pack == packs.end().pack {
                if garbage < SEAL_BYTES {
                    continue;
                }
                packs.seal();
            }
            self.compact.push_back(pack);
        }
        Ok(Stage::Compact)
    }

    /// Copies what is indexed of a pack. Nothing is put into it any more meanwhile.
    fn compact(&mut self, store: &mut Store, packs: &mut PackStore) -> Result<Stage, StoreError> {
        let (pack, mut offset) = match self.copying.take() {
            Some(under_way) => under_way,
            None => match self.compact.pop_front() {
                Some(pack) => (pack, 0),
                None if self.empty.is_empty() => return Ok(Stage::Done),
                None => {
                    self.live.clear();
                    let spaces = store.spaces().map(|space| space.no).collect();
                    return Ok(Stage::Recount(spaces, None));
                }
            },
        };
        if self.live.get(&pack).copied().unwrap_or(0) == 0 {
            self.empty.push(pack);
            return Ok(Stage::Compact);
        }
        let mut entries = vec![];
        let mut bytes = 0;
        for entry in packs.records_of(pack, offset).map_err(self::packs)? {
            // What is damaged stays indexed, and its pack with it.
            let Ok(entry) = entry else { continue };
            offset = entry.at.offset + u64::from(entry.at.len);
            bytes += u64::from(entry.at.len);
            entries.push(entry);
            if bytes >= STEP_BYTES || entries.len() >= STEP_OBJECTS {
                self.copying = Some((pack, offset));
                break;
            }
        }
        let txn = store.begin()?;
        let mut moved = 0;
        for entry in entries {
            let Ok(space) = txn.space(&entry.space).map(|space| space.no) else {
                continue;
            };
            let mut index = txn.index(space)?;
            let id = entry.id.as_bytes();
            let at = index.contents()?.packed(id)?;
            if at != Some(entry.at) {
                continue;
            }
            let place = match packs.copy(&entry.at) {
                Ok(place) => place,
                Err(PackError::Corrupt { .. }) => continue,
                Err(error) => return Err(self::packs(error)),
            };
            index.put_packed(id, &place)?;
            moved += 1;
        }
        if moved > 0 {
            txn.set_pack_end(packs.sync().map_err(self::packs)?)?;
            txn.commit()?;
        }
        if self.copying.is_none() {
            self.empty.push(pack);
        }
        Ok(Stage::Compact)
    }

    /// Removes packs of which nothing is indexed: what was put meanwhile may have been counted in
    /// part only, and what is damaged was not copied.
    fn recount(
        &mut self,
        store: &mut Store,
        packs: &mut PackStore,
        rest: VecDeque<u32>,
        from: Option<PackedId>,
    ) -> Result<Stage, StoreError> {
        if !rest.is_empty() {
            let (rest, from) = self.add_up(store, rest, from)?;
            return Ok(Stage::Recount(rest, from));
        }
        // That nothing of them is indexed must outlive a crash that they do not.
        store.begin()?.commit()?;
        for pack in std::mem::take(&mut self.empty) {
            if self.live.contains_key(&pack) || pack == packs.end().pack {
                continue;
            }
            packs.remove(pack).map_err(self::packs)?;
            self.swept.packs += 1;
        }
        Ok(Stage::Done)
    }
}

/// Whether the time of something is up.
fn is_over(length: Option<u64>, clock: u64, replaced: Replaced) -> bool {
    length.is_some_and(|length| clock.saturating_sub(replaced.since) >= length)
}

fn read_clock(tx: &ReadTransaction) -> Result<(u64, Option<u64>), StoreError> {
    let table = tx.open_table(META)?;
    let Some(bytes) = table.get("keep_clock")? else {
        return Ok((0, None));
    };
    let Some((clock, wall)) = bytes.value().split_first_chunk::<8>() else {
        return Ok((0, None));
    };
    let wall = wall.try_into().ok().map(u64::from_be_bytes);
    Ok((u64::from_be_bytes(*clock), wall))
}

impl Marked {
    fn is_stable(&self, carrier: Carrier) -> bool {
        let seq = self.stable.get(&carrier.log);
        seq.is_some_and(|seq| carrier.seq <= *seq)
    }

    /// Notes which of what packs hold is needed for a node.
    fn mark(
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
        let lookup = |id: &ManifestId| tables.manifest(id).ok().flatten();
        let Ok(walk) = Walk::new(keys, &top, &bytes, lookup) else {
            return Ok(());
        };
        for piece in walk {
            let Ok(piece) = piece else { break };
            if let PieceSource::Chunk(chunk) = piece.source
                && let Some(flags) = self.flags.get_mut(&short(chunk.as_bytes()))
            {
                *flags |= flag;
            }
        }
        Ok(())
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
    fn goes(&mut self, clock: u64, replaced: Replaced, bytes: u64) -> bool {
        match replaced.class {
            Class::Text => is_over(self.policy.text.ms(), clock, replaced),
            Class::Rest if is_over(self.policy.rest.ms(), clock, replaced) => true,
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
        // A chunk is no content, and rests on nothing.
        while let Ok(Some(base)) = packs.rests_on(&at, &id) {
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
