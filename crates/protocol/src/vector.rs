//! Version vectors: what a replica holds, exactly, in one entry per log.

use std::collections::BTreeMap;

use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::ids::{LogId, Seq, ShortHash};

/// Most logs that a vector on the wire may name.
pub const VECTOR_MAX: usize = 65_536;

/// The end of a log: highest sequence number held, and the hash of the segment that ends there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(array)]
pub struct Head {
    /// Number of the last entry.
    #[n(0)]
    pub seq: Seq,
    /// Hash of the segment that holds it.
    #[n(1)]
    pub hash: ShortHash,
}

/// A log and its end, as dependencies name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(array)]
pub struct Dep {
    /// The log.
    #[n(0)]
    pub log: LogId,
    /// The segment in it.
    #[n(1)]
    pub head: Head,
}

/// Log → head. On the wire: an array of `[log, [seq, hash]]`, ascending by log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VersionVector {
    heads: BTreeMap<LogId, Head>,
}

impl VersionVector {
    /// An empty vector.
    pub fn new() -> Self {
        Self::default()
    }

    /// The head of a log.
    pub fn get(&self, log: &LogId) -> Option<Head> {
        self.heads.get(log).copied()
    }

    /// Highest entry held of a log; 0 for none.
    pub fn seq(&self, log: &LogId) -> Seq {
        self.heads.get(log).map_or(0, |head| head.seq)
    }

    /// Raises a log's head; a lower one changes nothing.
    pub fn advance(&mut self, log: LogId, head: Head) {
        let entry = self.heads.entry(log).or_insert(head);
        if entry.seq < head.seq {
            *entry = head;
        }
    }

    /// Raises every head to at least `other`'s.
    pub fn merge(&mut self, other: &Self) {
        for (log, head) in other.iter() {
            self.advance(log, head);
        }
    }

    /// True if this holds everything that `other` does, by number.
    pub fn covers(&self, other: &Self) -> bool {
        other.iter().all(|(log, head)| self.seq(&log) >= head.seq)
    }

    /// Heads in ascending order of logs.
    pub fn iter(&self) -> impl Iterator<Item = (LogId, Head)> + '_ {
        self.heads.iter().map(|(log, head)| (*log, *head))
    }

    /// Number of logs.
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// True without any log.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }
}

impl FromIterator<(LogId, Head)> for VersionVector {
    fn from_iter<T: IntoIterator<Item = (LogId, Head)>>(iter: T) -> Self {
        let mut vector = Self::new();
        for (log, head) in iter {
            vector.advance(log, head);
        }
        vector
    }
}

impl<C> Encode<C> for VersionVector {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        c: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(self.heads.len() as u64)?;
        for (log, head) in self.iter() {
            Dep { log, head }.encode(e, c)?;
        }
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for VersionVector {
    fn decode(d: &mut Decoder<'b>, c: &mut C) -> Result<Self, minicbor::decode::Error> {
        let bad = minicbor::decode::Error::message;
        let count = d.array()?.ok_or_else(|| bad("vector of unknown length"))?;
        if count > VECTOR_MAX as u64 {
            return Err(bad("vector is too long"));
        }
        let mut heads = BTreeMap::new();
        for _ in 0..count {
            let dep = Dep::decode(d, c)?;
            if heads
                .last_key_value()
                .is_some_and(|(log, _)| *log >= dep.log)
            {
                return Err(bad("vector is not ascending"));
            }
            heads.insert(dep.log, dep.head);
        }
        Ok(Self { heads })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cbor;
    use crate::ids::{DeviceId, Incarnation};

    fn log(n: u8) -> LogId {
        LogId::new(
            DeviceId::from_bytes([n; 32]),
            Incarnation::from_bytes([n; 16]),
        )
    }

    fn head(seq: Seq) -> Head {
        Head {
            seq,
            hash: ShortHash::from_bytes([seq as u8; 16]),
        }
    }

    #[test]
    fn vectors_order_by_what_they_hold() {
        let a: VersionVector = [(log(1), head(3)), (log(2), head(1))].into_iter().collect();
        let mut b: VersionVector = [(log(1), head(2))].into_iter().collect();
        assert!(a.covers(&b) && !b.covers(&a));
        b.merge(&a);
        assert_eq!(a, b);
        b.advance(log(1), head(1));
        assert_eq!(b.seq(&log(1)), 3);
    }

    #[test]
    fn a_vector_has_one_encoding() {
        let a: VersionVector = [(log(2), head(3)), (log(1), head(1))].into_iter().collect();
        let bytes = cbor::encode(&a);
        assert_eq!(
            cbor::decode_canonical::<VersionVector>("vector", &bytes),
            Ok(a)
        );
    }
}
