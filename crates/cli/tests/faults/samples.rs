//! Contents that check themselves, and chance that repeats.

use std::fs;
use std::io;
use std::path::Path;

/// SplitMix64: the same seed, the same run.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed of this run: `PACSYNC_SEED`, or a fixed one.
    pub(crate) fn from_environment() -> Self {
        let seed = std::env::var("PACSYNC_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        Self(seed.unwrap_or(0x5EED))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn pick<'t, T>(&mut self, of: &'t [T]) -> Option<&'t T> {
        let at = usize::try_from(self.below(of.len() as u64)).ok()?;
        of.get(at)
    }

    /// A new generator for another thread.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

const MAGIC: &[u8; 8] = b"\0sealed\n";

/// Bytes of a given length, at least 32, that end with a check sum over all before. They hold
/// zeros, so that nobody takes them for text and merges them.
pub(crate) fn sealed(chance: &mut Chance, len: usize) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    while bytes.len() + 8 < len.max(32) {
        bytes.extend_from_slice(&chance.next().to_le_bytes());
    }
    bytes.truncate(len.max(32) - 8);
    let sum = check_sum(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// True if the bytes are whole.
pub(crate) fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
        && bytes
            .split_last_chunk::<8>()
            .is_some_and(|(body, sum)| check_sum(body) == u64::from_le_bytes(*sum))
}

fn check_sum(bytes: &[u8]) -> u64 {
    let mut sum = Chance::new(bytes.len() as u64);
    for piece in bytes.chunks(8) {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(piece) {
            *to = *from;
        }
        sum.0 ^= u64::from_le_bytes(word);
        sum.next();
    }
    sum.next()
}

/// Writes a file as careful programs do: aside, on the same file system, then renamed.
pub(crate) fn save(aside: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(aside, bytes)?;
    fs::rename(aside, path)
}

#[test]
fn what_is_cut_or_mixed_is_not_whole() {
    let mut chance = Chance::new(1);
    for len in [32, 33, 100, 5000] {
        let mut bytes = sealed(&mut chance, len);
        assert_eq!(bytes.len(), len);
        assert!(is_sealed(&bytes));
        assert!(!is_sealed(bytes.get(..len - 1).expect("shorter")));
        bytes.push(0);
        assert!(!is_sealed(&bytes));
    }
}
