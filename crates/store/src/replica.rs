//! The replica: one database with every log, what the logs derive to, and the keys to read them.
//!
//! One writer. Everything that changes goes through a [`Txn`]; what [`Txn::commit`] returned is
//! durable. The caches here (roster, keys, space numbers) follow the database: they are replaced
//! only when a transaction has committed.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use pacsync_protocol::content::IdKeys;
use pacsync_protocol::crypto::{self, Entropy, Key};
use pacsync_protocol::identity::{DeviceKeys, VerifiedFounding};
use pacsync_protocol::roster::{Roster, RosterEntry, RosterKeys, roster_space};
use pacsync_protocol::segment::{Entry, SignedSegment};
use pacsync_protocol::{
    DeviceId, EpochId, Head, Incarnation, LogId, NodeId, Seq, ShortHash, SpaceId, VersionVector,
    cbor,
};
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable};

use crate::branches::{Chains, SpaceLogs, read_segments};
use crate::content::packs::PackEnd;
use crate::documents::{self, DocumentId, Settings};
use crate::error::StoreError;
use crate::tables::{
    ACKS, DOCUMENTS, FORMAT, LOGS, LogRecord, META, SEGMENTS, SPACES, SpaceRecord, incarnation_from,
};
use crate::txn::Txn;

/// Memory that the database may use for its cache, in bytes.
const CACHE_BYTES: usize = 4 << 20;

/// Who this replica is and what it belongs to.
#[derive(Debug, Clone)]
pub struct Identity {
    /// This device's keys.
    pub keys: DeviceKeys,
    /// The pac.
    pub founding: VerifiedFounding,
    /// The roster's keys.
    pub roster_keys: RosterKeys,
}

/// A space as this replica knows it.
#[derive(Debug, Clone)]
pub struct Space {
    /// Its local number; keys in the database begin with it.
    pub no: u32,
    /// Its id.
    pub id: SpaceId,
    /// Keys of the ids of its content; absent until an epoch record for this device is here.
    pub id_keys: Option<IdKeys>,
    /// Epoch keys that this device can open.
    pub(crate) epochs: BTreeMap<EpochId, Key>,
    /// The epoch that new segments use.
    pub(crate) write_epoch: Option<EpochId>,
}

impl Space {
    /// Whether this device has the key of an epoch.
    pub fn can_open(&self, epoch: &EpochId) -> bool {
        self.epochs.contains_key(epoch)
    }
}

/// One device's replica of a pac.
#[derive(Debug)]
pub struct Store {
    pub(crate) db: Database,
    pub(crate) identity: Identity,
    pub(crate) incarnation: Incarnation,
    pub(crate) roster: Roster,
    pub(crate) roster_space: SpaceId,
    pub(crate) spaces: BTreeMap<SpaceId, Space>,
    copied: bool,
}

impl Store {
    /// Opens the replica, or makes an empty one.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the database cannot be used, [`StoreError::InUse`] if another
    /// process has it, [`StoreError::UpdateNeeded`], [`StoreError::Io`].
    pub fn open(
        path: &Path,
        identity: Identity,
        rng: &mut dyn Entropy,
    ) -> Result<Self, StoreError> {
        Self::on(
            open_database(|builder| builder.create(path))?,
            identity,
            rng,
        )
    }

    /// Opens the replica on any medium: memory in tests, a simulated disk.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(
        medium: impl redb::StorageBackend,
        identity: Identity,
        rng: &mut dyn Entropy,
    ) -> Result<Self, StoreError> {
        let db = open_database(|builder| builder.create_with_backend(medium))?;
        Self::on(db, identity, rng)
    }

    fn on(db: Database, identity: Identity, rng: &mut dyn Entropy) -> Result<Self, StoreError> {
        let incarnation = prepare(&db, rng)?;
        let roster = Roster::new(identity.founding.clone());
        let roster_space = roster_space(&identity.founding.id());
        let mut store = Self {
            db,
            identity,
            incarnation,
            roster,
            roster_space,
            spaces: BTreeMap::new(),
            copied: false,
        };
        store.reload()?;
        Ok(store)
    }

    /// Rebuilds the caches from the database.
    fn reload(&mut self) -> Result<(), StoreError> {
        let tx = self.db.begin_read()?;
        let mut numbers = BTreeMap::new();
        for item in tx.open_table(SPACES)?.iter()? {
            let (no, bytes) = item?;
            let record: SpaceRecord = cbor::decode("space record", bytes.value())?;
            numbers.insert(record.id, no.value());
        }
        self.roster = self.replay_roster(&tx, numbers.get(&self.roster_space).copied())?;
        drop(tx);
        self.spaces = numbers
            .into_iter()
            .map(|(id, no)| {
                (
                    id,
                    unlock(&self.roster, &self.identity, &self.roster_space, id, no),
                )
            })
            .collect();
        Ok(())
    }

    fn replay_roster(&self, tx: &ReadTransaction, no: Option<u32>) -> Result<Roster, StoreError> {
        let mut roster = Roster::new(self.identity.founding.clone());
        let Some(no) = no else { return Ok(roster) };
        let segments = tx.open_table(SEGMENTS)?;
        let mut waiting = Vec::new();
        for item in tx.open_table(LOGS)?.iter()? {
            let (log_no, bytes) = item?;
            let record: LogRecord = cbor::decode("log record", bytes.value())?;
            if record.space != no {
                continue;
            }
            for item in segments.range((log_no.value(), 0)..=(log_no.value(), record.applied))? {
                let (_, bytes) = item?;
                let segment = SignedSegment::parse(bytes.value())?.assume_verified();
                let entries = roster_entries(segment.open(&self.identity.roster_keys.roster)?);
                waiting.push((record.id.device, entries));
            }
        }
        // All of them counted once, so each counts again as soon as its author does.
        let mut stuck = 0;
        let mut queue: std::collections::VecDeque<_> = waiting.into();
        while let Some((author, entries)) = queue.pop_front() {
            match roster.apply(&author, &entries) {
                Ok(_) => stuck = 0,
                Err(_) => {
                    queue.push_back((author, entries));
                    stuck += 1;
                    if stuck > queue.len() {
                        break;
                    }
                }
            }
        }
        Ok(roster)
    }

    /// Says where the database lies. If it lay elsewhere before, it is a copy: what it was copied from
    /// may still be written, so a new life begins. True if so.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn settle_at(&mut self, place: &[u8], rng: &mut dyn Entropy) -> Result<bool, StoreError> {
        let before = {
            let tx = self.read()?;
            let table = tx.open_table(META)?;
            table.get("place")?.map(|bytes| bytes.value().to_vec())
        };
        if before.as_deref() == Some(place) {
            return Ok(false);
        }
        let mut txn = self.begin()?;
        txn.raw().open_table(META)?.insert("place", place)?;
        if before.is_some() {
            txn.renew(rng)?;
        }
        txn.commit()?;
        self.copied = before.is_some();
        Ok(self.copied)
    }

    /// Whether the database turned out to be a copy when it was opened.
    pub fn is_copied(&self) -> bool {
        self.copied
    }

    /// Begins the one write transaction.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin(&mut self) -> Result<Txn<'_>, StoreError> {
        Txn::begin(self)
    }

    /// Begins a read transaction.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn read(&self) -> Result<ReadTransaction, StoreError> {
        Ok(self.db.begin_read()?)
    }

    /// Who this replica is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The roster as counted so far.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The roster's own space.
    pub fn roster_space(&self) -> SpaceId {
        self.roster_space
    }

    /// All spaces but the roster.
    pub fn spaces(&self) -> impl Iterator<Item = &Space> {
        let roster = self.roster_space;
        self.spaces.values().filter(move |space| space.id != roster)
    }

    /// One space.
    ///
    /// # Errors
    /// [`StoreError::UnknownSpace`].
    pub fn space(&self, id: &SpaceId) -> Result<&Space, StoreError> {
        self.spaces.get(id).ok_or(StoreError::UnknownSpace(*id))
    }

    /// The log that this replica writes in every space.
    pub fn own_log(&self) -> LogId {
        LogId::new(self.identity.keys.sign.id(), self.incarnation)
    }

    /// What is durable here of a space.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn held(&self, space: &SpaceId) -> Result<VersionVector, StoreError> {
        self.vector(space, |record| Some(record.held_head()))
    }

    /// What the derived state of a space contains.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn applied(&self, space: &SpaceId) -> Result<VersionVector, StoreError> {
        self.vector(space, LogRecord::applied_head)
    }

    fn vector(
        &self,
        space: &SpaceId,
        head: impl Fn(&LogRecord) -> Option<Head>,
    ) -> Result<VersionVector, StoreError> {
        let Some(space) = self.spaces.get(space) else {
            return Ok(VersionVector::new());
        };
        let tx = self.db.begin_read()?;
        let mut vector = VersionVector::new();
        for item in tx.open_table(LOGS)?.iter()? {
            let (_, bytes) = item?;
            let record: LogRecord = cbor::decode("log record", bytes.value())?;
            if record.space == space.no
                && let Some(head) = head(&record)
            {
                vector.advance(record.id, head);
            }
        }
        Ok(vector)
    }

    /// Logs of which more is held than applied: something that they rest on is not here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn waiting(&self) -> Result<Vec<Waiting>, StoreError> {
        let tx = self.db.begin_read()?;
        let mut waiting = vec![];
        for item in tx.open_table(LOGS)?.iter()? {
            let (_, bytes) = item?;
            let record: LogRecord = cbor::decode("log record", bytes.value())?;
            let space = self.spaces.values().find(|space| space.no == record.space);
            if record.applied < record.held
                && let Some(space) = space
            {
                waiting.push(Waiting {
                    space: space.id,
                    log: record.id,
                    applied: record.applied,
                    held: record.held,
                });
            }
        }
        Ok(waiting)
    }

    /// Highest clock of the space's applied segments.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn clock(&self, space: &SpaceId) -> Result<u64, StoreError> {
        let space = self.space(space)?;
        let tx = self.db.begin_read()?;
        let table = tx.open_table(SPACES)?;
        let Some(bytes) = table.get(space.no)? else {
            return Ok(0);
        };
        Ok(cbor::decode::<SpaceRecord>("space record", bytes.value())?.clock)
    }

    /// Segments of a log from the one that holds entry `from`, at most `max_bytes` but at least
    /// one; and whether more follow.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn segments(
        &self,
        space: &SpaceId,
        log: &LogId,
        from: Seq,
        max_bytes: usize,
    ) -> Result<(Vec<Vec<u8>>, bool), StoreError> {
        let Some(space) = self.spaces.get(space) else {
            return Ok((vec![], false));
        };
        let tx = self.db.begin_read()?;
        let chains = Chains::of(&tx, space.no, log)?;
        let Some(chain) = chains.named(log) else {
            return Ok((vec![], false));
        };
        read_segments(&tx, &chain, from, max_bytes)
    }

    /// Bytes of the segments of a space that are held, without those that were pruned.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn segment_bytes(&self, space: &SpaceId) -> Result<u64, StoreError> {
        let no = self.space(space)?.no;
        let tx = self.db.begin_read()?;
        let mut bytes = 0u64;
        for item in tx.open_table(LOGS)?.iter()? {
            let record: LogRecord = cbor::decode("log record", item?.1.value())?;
            if record.space == no {
                bytes = bytes.saturating_add(record.bytes);
            }
        }
        Ok(bytes)
    }

    /// The head of a log at an exact segment end, if that segment is held.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn hash_at(
        &self,
        space: &SpaceId,
        log: &LogId,
        seq: Seq,
    ) -> Result<Option<ShortHash>, StoreError> {
        let Some(space) = self.spaces.get(space) else {
            return Ok(None);
        };
        let tx = self.db.begin_read()?;
        match Chains::of(&tx, space.no, log)?.named(log) {
            Some(chain) => chain.hash_at(&tx, seq),
            None => Ok(None),
        }
    }

    /// The logs of a space as they are now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn logs_of(&self, space: &SpaceId) -> Result<Option<SpaceLogs>, StoreError> {
        let Some(space) = self.spaces.get(space) else {
            return Ok(None);
        };
        SpaceLogs::of(self.db.begin_read()?, space.no).map(Some)
    }

    /// A flat document of a space.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn document(&self, space: &SpaceId, id: &DocumentId) -> Result<Settings, StoreError> {
        let Some(space) = self.spaces.get(space) else {
            return Ok(Settings::new());
        };
        let tx = self.db.begin_read()?;
        let table = tx.open_table(DOCUMENTS)?;
        let saved = table.get((space.no, id))?;
        documents::read(saved.as_ref().map(|bytes| bytes.value()))
            .map_err(|e| StoreError::Damaged(e.to_string()))
    }

    /// The newest signed acks of a space, by device.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn acks(&self, space: &SpaceId) -> Result<Vec<Vec<u8>>, StoreError> {
        let Some(space) = self.spaces.get(space) else {
            return Ok(vec![]);
        };
        let tx = self.db.begin_read()?;
        let table = tx.open_table(ACKS)?;
        let range = table.range((space.no, &[0; 32])..=(space.no, &[255; 32]))?;
        range.map(|item| Ok(item?.1.value().to_vec())).collect()
    }

    /// Up to where packs are whole and indexed, for [`crate::content::packs::PackStore::open`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn pack_end(&self) -> Result<Option<PackEnd>, StoreError> {
        let tx = self.db.begin_read()?;
        let table = tx.open_table(META)?;
        let Some(bytes) = table.get("pack_end")? else {
            return Ok(None);
        };
        let Some((pack, offset)) = bytes.value().split_first_chunk::<4>() else {
            return Ok(None);
        };
        let Ok(offset) = offset.try_into() else {
            return Ok(None);
        };
        Ok(Some(PackEnd {
            pack: u32::from_be_bytes(*pack),
            offset: u64::from_be_bytes(offset),
        }))
    }

    /// Why parts of received segments were not applied, newest last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn quarantine(&self) -> Result<Vec<String>, StoreError> {
        let tx = self.db.begin_read()?;
        let table = tx.open_table(crate::tables::QUARANTINE)?;
        table
            .iter()?
            .map(|item| Ok(item?.1.value().to_owned()))
            .collect()
    }
}

fn open_database(
    create: impl FnOnce(&redb::Builder) -> Result<Database, redb::DatabaseError>,
) -> Result<Database, StoreError> {
    // The library may panic on a file that was altered behind its back.
    catch_unwind(AssertUnwindSafe(|| {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        create(&builder)
    }))
    .map_err(|_| StoreError::Damaged("it cannot be read".into()))?
    .map_err(|error| match error {
        redb::DatabaseError::Storage(redb::StorageError::Io(e))
            if e.kind() == std::io::ErrorKind::InvalidData =>
        {
            StoreError::Damaged(e.to_string())
        }
        redb::DatabaseError::UpgradeRequired(_) => StoreError::UpdateNeeded {
            found: 0,
            known: FORMAT,
        },
        other => other.into(),
    })
}

fn prepare(db: &Database, rng: &mut dyn Entropy) -> Result<Incarnation, StoreError> {
    let tx = db.begin_write()?;
    let incarnation = {
        let mut meta = tx.open_table(META)?;
        let found = meta.get("format")?.map(|v| v.value().to_vec());
        match found {
            None => {
                meta.insert("format", FORMAT.to_be_bytes().as_slice())?;
            }
            Some(bytes) => {
                let found = bytes
                    .as_slice()
                    .try_into()
                    .map(u64::from_be_bytes)
                    .unwrap_or(0);
                if found != FORMAT {
                    return Err(StoreError::UpdateNeeded {
                        found,
                        known: FORMAT,
                    });
                }
            }
        }
        let stored = meta
            .get("incarnation")?
            .and_then(|v| incarnation_from(v.value()));
        match stored {
            Some(incarnation) => incarnation,
            None => {
                let fresh = Incarnation::from_bytes(crypto::random(rng));
                meta.insert("incarnation", fresh.as_bytes().as_slice())?;
                fresh
            }
        }
    };
    crate::txn::make_tables(&tx)?;
    tx.commit()?;
    Ok(incarnation)
}

pub(crate) fn roster_entries(entries: Vec<Entry>) -> Vec<RosterEntry> {
    entries
        .into_iter()
        .filter_map(|entry| match entry {
            Entry::Roster(entry) => Some(entry),
            _ => None,
        })
        .collect()
}

/// Opens what this device can of a space's epochs.
pub(crate) fn unlock(
    roster: &Roster,
    identity: &Identity,
    roster_space: &SpaceId,
    id: SpaceId,
    no: u32,
) -> Space {
    let mut space = Space {
        no,
        id,
        id_keys: None,
        epochs: BTreeMap::new(),
        write_epoch: None,
    };
    if id == *roster_space {
        let epoch = pacsync_protocol::roster::ROSTER_EPOCH;
        space
            .epochs
            .insert(epoch, identity.roster_keys.roster.clone());
        space.write_epoch = Some(epoch);
        return space;
    }
    let mut parents = BTreeSet::new();
    for record in roster.epochs(&id) {
        parents.extend(record.parents.iter().copied());
        if let Ok(Some(secret)) = record.open(&identity.keys.unseal) {
            for parent in &secret.parents {
                space.epochs.insert(parent.epoch, parent.key.clone());
            }
            space.epochs.insert(record.epoch, secret.key.clone());
            space
                .id_keys
                .get_or_insert_with(|| IdKeys::derive(&secret.id_key));
        }
    }
    space.write_epoch = space
        .epochs
        .keys()
        .find(|epoch| !parents.contains(*epoch))
        .copied();
    space
}

/// A log whose next segment waits for something that it rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The space.
    pub space: SpaceId,
    /// The log.
    pub log: LogId,
    /// Its last entry in the derived state; 0 for none.
    pub applied: Seq,
    /// Its last durable entry.
    pub held: Seq,
}

/// A segment that became durable.
#[derive(Debug, Clone)]
pub struct NewSegment {
    /// The space.
    pub space: SpaceId,
    /// The log.
    pub log: LogId,
    /// The log's head with it.
    pub head: Head,
    /// How many entries it has; 0 if it came within a checkpoint.
    pub entries: u64,
    /// The bytes; empty if it came within a checkpoint.
    pub bytes: Vec<u8>,
}

/// What a committed transaction changed.
#[derive(Debug, Default)]
pub struct Committed {
    /// Segments that are durable now, in order.
    pub segments: Vec<NewSegment>,
    /// Groups whose state or visibility changed.
    pub changed: BTreeSet<(SpaceId, NodeId)>,
    /// Documents that changed.
    pub documents: BTreeSet<(SpaceId, DocumentId)>,
    /// True if the roster counts something new.
    pub roster: bool,
    /// Spaces whose applied vector grew.
    pub applied: BTreeSet<SpaceId>,
    /// Logs of which a branch was met: what they are called may have changed.
    pub forked: BTreeSet<(SpaceId, DeviceId)>,
    /// True if this replica writes new logs from now on.
    pub renewed: bool,
    /// Spaces of which a segment waits for rows that a checkpoint has left out.
    pub lacking: BTreeSet<SpaceId>,
    /// Rows of confirmed deletes arrived for these nodes.
    pub confirmed: BTreeSet<(SpaceId, NodeId)>,
}
