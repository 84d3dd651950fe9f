//! Reading forked logs: which chain is meant, what of it a peer lacks.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use pacsync_protocol::{
    Dep, DeviceId, Head, Incarnation, LogId, Seq, ShortHash, SpaceId, VersionVector, cbor,
};
use redb::{ReadTransaction, ReadableTable};

use crate::error::StoreError;
use crate::replica::Store;
use crate::tables::{FORKED, LOGS, LogRecord, SEGMENT_INDEX, SEGMENTS, SegmentRecord};
use crate::tree::Ends;

/// Most heads in a trail.
const TRAIL_MAX: usize = 256;

/// All chains of one life of one writer in a space.
pub(crate) struct Chains {
    chains: BTreeMap<u32, LogRecord>,
}

/// The records that a chain runs through, the oldest first, and up to where in each.
pub(crate) struct Chain {
    parts: Vec<(u32, Seq)>,
}

fn hash_in(tx: &ReadTransaction, no: u32, seq: Seq) -> Result<Option<ShortHash>, StoreError> {
    let index = tx.open_table(SEGMENT_INDEX)?;
    let Some(bytes) = index.get((no, seq))? else {
        return Ok(None);
    };
    let record: SegmentRecord = cbor::decode("segment record", bytes.value())?;
    Ok(Some(record.hash.to_short()))
}

impl Chains {
    pub(crate) fn of(tx: &ReadTransaction, space: u32, log: &LogId) -> Result<Self, StoreError> {
        Self::that(tx, |record| record.is_of(space, log))
    }

    fn that(tx: &ReadTransaction, fits: impl Fn(&LogRecord) -> bool) -> Result<Self, StoreError> {
        let mut chains = BTreeMap::new();
        for item in tx.open_table(LOGS)?.iter()? {
            let (no, bytes) = item?;
            let record: LogRecord = cbor::decode("log record", bytes.value())?;
            if fits(&record) {
                chains.insert(no.value(), record);
            }
        }
        Ok(Self { chains })
    }

    /// The chain with a name.
    pub(crate) fn named(&self, log: &LogId) -> Option<Chain> {
        let (no, _) = self.chains.iter().find(|(_, record)| record.id == *log)?;
        Some(self.through(*no, Seq::MAX))
    }

    /// The chain up to a segment.
    fn to(&self, tx: &ReadTransaction, head: &Head) -> Result<Option<Chain>, StoreError> {
        for no in self.chains.keys() {
            if hash_in(tx, *no, head.seq)? == Some(head.hash) {
                return Ok(Some(self.through(*no, head.seq)));
            }
        }
        Ok(None)
    }

    fn through(&self, no: u32, last: Seq) -> Chain {
        let mut parts = vec![(no, last)];
        let mut at = no;
        // A stem is older than what grows on it, so its number is lower.
        while let Some(stem) = self.chains.get(&at).and_then(|record| record.stem)
            && stem.log < at
        {
            parts.push((stem.log, stem.seq));
            at = stem.log;
        }
        parts.reverse();
        Chain { parts }
    }
}

/// All logs of a space, for many questions at once.
pub struct SpaceLogs {
    tx: ReadTransaction,
    chains: Chains,
}

impl SpaceLogs {
    pub(crate) fn of(tx: ReadTransaction, space: u32) -> Result<Self, StoreError> {
        let chains = Chains::that(&tx, |record| record.space == space)?;
        Ok(Self { tx, chains })
    }

    /// The head of a log at an exact segment end, if that segment is held.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn hash_at(&self, log: &LogId, seq: Seq) -> Result<Option<ShortHash>, StoreError> {
        match self.chains.named(log) {
            Some(chain) => chain.hash_at(&self.tx, seq),
            None => Ok(None),
        }
    }

    /// Up to where a vector goes in the logs here, by number. Inner: false if one of its heads is
    /// none here; the others are there.
    pub(crate) fn ends(&self, vector: &VersionVector) -> Result<(Ends, bool), StoreError> {
        let mut ends = Ends::new();
        let mut all = true;
        for (log, head) in vector.iter() {
            if self.hash_at(&log, head.seq)? != Some(head.hash) {
                all = false;
                continue;
            }
            for (no, last) in self.chains.named(&log).into_iter().flat_map(|c| c.parts) {
                let end = ends.entry(no).or_default();
                *end = last.min(head.seq).max(*end);
            }
        }
        Ok((ends, all))
    }

    /// The names of ends.
    pub(crate) fn vector(&self, ends: &Ends) -> Result<VersionVector, StoreError> {
        let mut vector = VersionVector::new();
        for (no, seq) in ends {
            if let Some(record) = self.chains.chains.get(no)
                && let Some(hash) = hash_in(&self.tx, *no, *seq)?
            {
                vector.advance(record.id, Head { seq: *seq, hash });
            }
        }
        Ok(vector)
    }
}

impl Chain {
    pub(crate) fn hash_at(
        &self,
        tx: &ReadTransaction,
        seq: Seq,
    ) -> Result<Option<ShortHash>, StoreError> {
        for (no, last) in &self.parts {
            if seq <= *last {
                return hash_in(tx, *no, seq);
            }
        }
        Ok(None)
    }
}

/// Segments of a chain from the one that holds entry `from`, at most `max_bytes` but at least one;
/// and whether more follow.
pub(crate) fn read_segments(
    tx: &ReadTransaction,
    chain: &Chain,
    from: Seq,
    max_bytes: usize,
) -> Result<(Vec<Vec<u8>>, bool), StoreError> {
    let table = tx.open_table(SEGMENTS)?;
    let mut segments = Vec::new();
    let mut total = 0;
    for (no, last) in &chain.parts {
        if from > *last {
            continue;
        }
        for item in table.range((*no, from)..=(*no, *last))? {
            let (_, bytes) = item?;
            let bytes = bytes.value();
            if !segments.is_empty() && total + bytes.len() > max_bytes {
                return Ok((segments, true));
            }
            total += bytes.len();
            segments.push(bytes.to_vec());
        }
    }
    Ok((segments, false))
}

impl Store {
    /// Whether a segment is held, in whichever chain of its log.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn holds(&self, space: &SpaceId, dep: &Dep) -> Result<bool, StoreError> {
        let Ok(space) = self.space(space) else {
            return Ok(false);
        };
        let tx = self.read()?;
        let chains = Chains::of(&tx, space.no, &dep.log)?;
        Ok(chains.to(&tx, &dep.head)?.is_some())
    }

    /// Whether all that a vector names is applied, whatever its logs are called here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn has_applied(&self, space: &SpaceId, vector: &VersionVector) -> Result<bool, StoreError> {
        if self.applied(space)?.covers(vector) {
            return Ok(true);
        }
        let no = self.space(space)?.no;
        let tx = self.read()?;
        for (log, head) in vector.iter() {
            let chains = Chains::of(&tx, no, &log)?;
            let mut found = false;
            for (chain, record) in &chains.chains {
                found |= record.applied >= head.seq
                    && hash_in(&tx, *chain, head.seq)? == Some(head.hash);
            }
            let longer = chains.chains.len() == 1
                && chains
                    .chains
                    .values()
                    .all(|record| record.applied >= head.seq);
            if !found && !longer {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a vector names a segment that is not applied here. Numbers do not tell: a fork has the
    /// same ones twice, and is not known as one before both of its chains are here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn lacks(&self, space: &SpaceId, vector: &VersionVector) -> Result<bool, StoreError> {
        let no = self.space(space)?.no;
        let tx = self.read()?;
        let mut lives: BTreeMap<(DeviceId, Incarnation), Vec<(u32, Seq)>> = BTreeMap::new();
        for (chain, record) in Chains::that(&tx, |record| record.space == no)?.chains {
            let life = (record.id.device, record.id.incarnation);
            lives.entry(life).or_default().push((chain, record.applied));
        }
        for (log, head) in vector.iter().filter(|(_, head)| head.seq > 0) {
            let chains = lives.get(&(log.device, log.incarnation));
            let mut found = false;
            for (chain, applied) in chains.into_iter().flatten() {
                found |= *applied >= head.seq && hash_in(&tx, *chain, head.seq)? == Some(head.hash);
            }
            if !found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Heads by which a peer finds what it shares with this replica of a log: of every chain the
    /// end, and backwards from there at distances that double.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn trail(&self, space: &SpaceId, log: &LogId) -> Result<Vec<Head>, StoreError> {
        let space = self.space(space)?;
        let tx = self.read()?;
        let index = tx.open_table(SEGMENT_INDEX)?;
        let mut trail = vec![];
        for no in Chains::of(&tx, space.no, log)?.chains.keys() {
            let (mut below, mut step) = (Seq::MAX, 1);
            while trail.len() < TRAIL_MAX
                && let Some(item) = index.range((*no, 0)..=(*no, below))?.next_back()
            {
                let (key, bytes) = item?;
                let seq = key.value().1;
                let record: SegmentRecord = cbor::decode("segment record", bytes.value())?;
                let hash = record.hash.to_short();
                trail.push(Head { seq, hash });
                let Some(next) = seq.checked_sub(step) else {
                    break;
                };
                below = next;
                step = step.saturating_mul(2);
            }
        }
        Ok(trail)
    }

    /// Segments up to `to` that whoever has sent this trail lacks, from the last one that it
    /// shares: the first `max_bytes` of them but at least one. Empty where they are not here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn branch(
        &self,
        space: &SpaceId,
        to: &Dep,
        trail: &[Head],
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let Ok(space) = self.space(space) else {
            return Ok(vec![]);
        };
        let tx = self.read()?;
        let Some(chain) = Chains::of(&tx, space.no, &to.log)?.to(&tx, &to.head)? else {
            return Ok(vec![]);
        };
        let mut shared = 0;
        for head in trail {
            if head.seq > shared
                && head.seq <= to.head.seq
                && chain.hash_at(&tx, head.seq)? == Some(head.hash)
            {
                shared = head.seq;
            }
        }
        Ok(read_segments(&tx, &chain, shared + 1, max_bytes)?.0)
    }

    /// Devices of which a log has forked, and when that was first met here, in milliseconds
    /// since 1970.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forked(&self) -> Result<Vec<(DeviceId, u64)>, StoreError> {
        let tx = self.read()?;
        let table = tx.open_table(FORKED)?;
        table
            .iter()?
            .map(|item| {
                let (device, since) = item?;
                Ok((DeviceId::from_bytes(*device.value()), since.value()))
            })
            .collect()
    }
}
