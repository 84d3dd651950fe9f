//! Forked logs: two segments with one number in one life of one writer.
//!
//! A device key that is in use in two places forks its logs; so does a liar. Each chain of segments is
//! kept whole from where it leaves another one, as a record of its own that begins at its *stem*.
//! What the chains are called is a function of the segments alone, whichever came first: at each
//! parting the chain with the lowest segment hash keeps the name that led there, every other one
//! is the branch that its first own segment names.

use std::collections::BTreeMap;

use pacsync_protocol::crypto::{self, Entropy};
use pacsync_protocol::{Dep, Incarnation, LogId, SegmentHash, Seq};
use redb::ReadableTable;

use super::Txn;
use crate::error::StoreError;
use crate::tables::{FORKED, LogRecord, META, SEGMENT_INDEX, SegmentRecord};
use pacsync_protocol::cbor;

impl Txn<'_> {
    /// The log that this replica writes.
    pub(crate) fn own_log(&self) -> LogId {
        let own = self.store.own_log();
        LogId {
            incarnation: self.life.unwrap_or(own.incarnation),
            ..own
        }
    }

    /// Begins a new life: nothing more is written to the logs of the one before, which are logs
    /// like anybody's from now on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn renew(&mut self, rng: &mut dyn Entropy) -> Result<(), StoreError> {
        let life = Incarnation::from_bytes(crypto::random(rng));
        self.tx
            .open_table(META)?
            .insert("incarnation", life.as_bytes().as_slice())?;
        self.life = Some(life);
        self.lost_own = false;
        self.out.renewed = true;
        Ok(())
    }

    /// Begins a new life if the own log was found to go on elsewhere.
    pub(crate) fn renew_if_lost(&mut self, rng: &mut dyn Entropy) -> Result<(), StoreError> {
        match self.lost_own {
            true => self.renew(rng),
            false => Ok(()),
        }
    }

    /// All chains of the life that a log belongs to.
    pub(crate) fn chains(
        &self,
        space_no: u32,
        log: &LogId,
    ) -> Result<BTreeMap<u32, LogRecord>, StoreError> {
        let logs = self.logs()?.into_iter();
        Ok(logs
            .filter(|(_, record)| record.is_of(space_no, log))
            .collect())
    }

    /// The chain that has a segment, whatever it is called, and what is kept of the segment.
    pub(super) fn find_segment(
        &self,
        space_no: u32,
        dep: &Dep,
    ) -> Result<Option<(u32, LogRecord, SegmentRecord)>, StoreError> {
        for (no, record) in self.chains(space_no, &dep.log)? {
            if let Some(found) = self.segment_record(no, dep.head.seq)?
                && found.hash.to_short() == dep.head.hash
            {
                return Ok(Some((no, record, found)));
            }
        }
        Ok(None)
    }

    /// Names the chains of a life anew.
    pub(crate) fn relabel(&mut self, space_no: u32, log: &LogId) -> Result<(), StoreError> {
        let trunk = LogId::new(log.device, log.incarnation);
        let chains = self.chains(space_no, log)?;
        let roots = chains.iter().filter(|(_, record)| record.stem.is_none());
        let roots: Vec<(u32, Seq)> = roots.map(|(no, _)| (*no, 0)).collect();
        let mut partings = vec![(trunk, roots)];
        while let Some((name, ways)) = partings.pop() {
            let mut ways = ways
                .into_iter()
                .map(|(no, after)| Ok(self.next_hash(no, after)?.map(|hash| (hash, no, after))))
                .filter_map(Result::transpose)
                .collect::<Result<Vec<_>, StoreError>>()?;
            ways.sort_unstable();
            let Some(((_, no, after), others)) = ways.split_first() else {
                continue;
            };
            for (hash, no, after) in others {
                let branch = Some(hash.to_short());
                partings.push((LogId { branch, ..trunk }, vec![(*no, *after)]));
            }
            let stems = chains
                .iter()
                .filter_map(|(branch, r)| Some((*branch, r.stem?)));
            let leaving: Vec<_> = stems
                .filter(|(_, stem)| stem.log == *no && stem.seq > *after)
                .collect();
            let Some(seq) = leaving.iter().map(|(_, stem)| stem.seq).min() else {
                if let Some(record) = chains.get(no) {
                    let record = LogRecord {
                        id: name,
                        ..record.clone()
                    };
                    self.put_log(*no, &record)?;
                }
                continue;
            };
            let here = leaving.iter().filter(|(_, stem)| stem.seq == seq);
            let mut ways = vec![(*no, seq)];
            // A branch has its own segments after its stem alone.
            ways.extend(here.map(|(branch, _)| (*branch, seq)));
            partings.push((name, ways));
        }
        Ok(())
    }

    /// The hash of the first segment of a chain behind a number.
    fn next_hash(&self, no: u32, after: Seq) -> Result<Option<SegmentHash>, StoreError> {
        let table = self.tx.open_table(SEGMENT_INDEX)?;
        let mut range = table.range((no, after + 1)..=(no, Seq::MAX))?;
        let Some(item) = range.next() else {
            return Ok(None);
        };
        let record: SegmentRecord = cbor::decode("segment record", item?.1.value())?;
        Ok(Some(record.hash))
    }

    /// Notes when the forks that this transaction met were met.
    pub(crate) fn note_forks(&mut self, now_ms: u64) -> Result<(), StoreError> {
        let mut table = self.tx.open_table(FORKED)?;
        for (_, device) in &self.out.forked {
            if table.get(device.as_bytes())?.is_none() {
                table.insert(device.as_bytes(), now_ms)?;
            }
        }
        Ok(())
    }
}
