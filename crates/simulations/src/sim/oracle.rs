//! What users wrote, and what they took back knowingly.

use std::collections::{BTreeMap, BTreeSet};

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
    /// A text, which may go on in a merge: what counts are its lines.
    pub(crate) is_text: bool,
}

/// One line that a user wrote into a text. No two are equal.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) device: usize,
    pub(crate) path: String,
    /// A user who had it before them took it out, or the whole text.
    pub(crate) superseded: bool,
}

/// All versions.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) versions: BTreeMap<Written, Version>,
    pub(crate) lines: BTreeMap<Vec<u8>, Line>,
    next: u64,
}

/// The lines of a text.
pub(crate) fn lines_of(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty())
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
            is_text: false,
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
            is_text: false,
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

    /// A user has saved a text in place of another one.
    pub(crate) fn saved_text(
        &mut self,
        number: u64,
        device: usize,
        path: &str,
        bytes: Vec<u8>,
        before: &[u8],
    ) {
        let after: BTreeSet<&[u8]> = lines_of(&bytes).collect();
        for gone in lines_of(before).filter(|line| !after.contains(line)) {
            self.supersede_line(gone);
        }
        for line in after {
            self.lines.entry(line.to_vec()).or_insert_with(|| Line {
                device,
                path: path.to_owned(),
                superseded: false,
            });
        }
        let what = Written::file(&bytes);
        // Two edits may make the same of two texts: who overwrites one takes nothing from the other.
        let stands_elsewhere = self
            .versions
            .get(&what)
            .is_some_and(|v| v.moved || v.path != path);
        self.saved(what.clone(), number, device, path, bytes);
        if let Some(version) = self.versions.get_mut(&what) {
            version.is_text = true;
            version.moved = stands_elsewhere;
        }
    }

    fn supersede_line(&mut self, line: &[u8]) {
        if let Some(line) = self.lines.get_mut(line) {
            line.superseded = true;
        }
    }

    /// A user takes away all of these bytes' lines.
    pub(crate) fn supersede_lines(&mut self, bytes: &[u8]) {
        lines_of(bytes).for_each(|line| self.supersede_line(line));
    }

    /// Bytes that nobody wrote as a whole, each line of which somebody did: a merge.
    pub(crate) fn is_merge(&self, bytes: &[u8]) -> bool {
        !bytes.is_empty() && lines_of(bytes).all(|line| self.lines.contains_key(line))
    }
}
