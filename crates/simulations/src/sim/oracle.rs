//! What users wrote, and what they took back knowingly.

use std::collections::BTreeMap;

/// Bytes of a file, or a symlink's target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Written {
    File([u8; 32]),
    Symlink(Vec<u8>),
}

impl Written {
    pub(crate) fn file(bytes: &[u8]) -> Self {
        Self::File(*blake3::hash(bytes).as_bytes())
    }
}

/// One version that a user wrote. No two are equal.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    pub(crate) number: u64,
    pub(crate) device: usize,
    pub(crate) path: String,
    /// Empty for a state in the middle of a write.
    pub(crate) bytes: Option<Vec<u8>>,
    /// A user who had it before them overwrote or deleted it.
    pub(crate) superseded: Option<String>,
    /// It was in something that a user moved: where that meets other changes, it may be at two
    /// places.
    pub(crate) moved: bool,
}

/// All versions.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) versions: BTreeMap<Written, Version>,
    next: u64,
}

impl Oracle {
    pub(crate) fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A user has saved a whole version.
    pub(crate) fn saved(
        &mut self,
        what: Written,
        number: u64,
        device: usize,
        path: &str,
        bytes: Vec<u8>,
    ) {
        let version = Version {
            number,
            device,
            path: path.to_owned(),
            bytes: Some(bytes),
            superseded: None,
            moved: false,
        };
        self.versions.insert(what, version);
    }

    /// A state that a write passes through: it may be seen, and need not be kept.
    pub(crate) fn passing(&mut self, what: Written, number: u64, device: usize, path: &str) {
        self.versions.entry(what).or_insert(Version {
            number,
            device,
            path: path.to_owned(),
            bytes: None,
            superseded: None,
            moved: false,
        });
    }

    pub(crate) fn supersede(&mut self, what: &Written, by: &str) -> Option<u64> {
        let version = self.versions.get_mut(what)?;
        version.superseded.get_or_insert_with(|| by.to_owned());
        Some(version.number)
    }

    pub(crate) fn moved(&mut self, what: &Written) {
        if let Some(version) = self.versions.get_mut(what) {
            version.moved = true;
        }
    }
}
