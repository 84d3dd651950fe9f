//! Which paths of a space are rendered and scanned: longest match wins.

use std::collections::BTreeMap;

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use pacsync_store::documents::{Setting, Settings};

use crate::disk::RelPath;

/// Prefix of the keys in a settings document that say what is tracked.
const KEY: &str = "track/";

/// What a path is to the tracking map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Tracked.
    Tracked,
    /// Not tracked, but a directory above something that is.
    Above,
    /// Not tracked, and nothing beneath it is.
    Untracked,
}

/// Path → yes or no.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tracking {
    paths: BTreeMap<RelPath, bool>,
    /// Never scanned or rendered, nor what lies beneath: the daemon's own home, roots of other
    /// spaces.
    never: Vec<RelPath>,
}

impl Tracking {
    /// Tracks everything: whole-directory spaces.
    pub fn all() -> Self {
        Self {
            paths: BTreeMap::from([(RelPath::root(), true)]),
            never: vec![],
        }
    }

    /// Reads the map from a settings document; entries that are no paths are passed over.
    pub fn from_settings(settings: &Settings) -> Self {
        let paths = settings
            .iter()
            .filter_map(|(key, value)| {
                let Setting::Flag(flag) = value else {
                    return None;
                };
                let path = unescape(key.strip_prefix(KEY)?)?;
                Some((RelPath::from_bytes(&path).ok()?, *flag))
            })
            .collect();
        Self {
            paths,
            never: vec![],
        }
    }

    /// Leaves paths out, whatever the map says.
    #[must_use]
    pub fn without(mut self, mut never: Vec<RelPath>) -> Self {
        never.sort_unstable();
        self.never = never;
        self
    }

    /// The document key for a path.
    pub fn key(path: &RelPath) -> String {
        format!("{KEY}{}", escape(path.as_bytes()))
    }

    /// What a path is.
    pub fn class(&self, path: &RelPath) -> Class {
        // The usual case, without a look at each directory above.
        let whole = self.never.is_empty()
            && self.paths.len() == 1
            && self.paths.get(&RelPath::root()) == Some(&true);
        if whole || self.is_tracked(path) {
            return Class::Tracked;
        }
        if self.never.iter().any(|never| path.starts_with(never)) {
            return Class::Untracked;
        }
        let beneath = self
            .paths
            .range(path.clone()..)
            .take_while(|(p, _)| p.starts_with(path));
        if beneath.clone().any(|(_, yes)| *yes) {
            Class::Above
        } else {
            Class::Untracked
        }
    }

    /// True if the longest entry that covers the path says yes.
    pub fn is_tracked(&self, path: &RelPath) -> bool {
        if self.never.iter().any(|never| path.starts_with(never)) {
            return false;
        }
        let mut at = Some(path.clone());
        while let Some(path) = at {
            if let Some(yes) = self.paths.get(&path) {
                return *yes;
            }
            at = path.parent();
        }
        false
    }

    /// The paths that begin something tracked, ascending; none lies beneath another unless
    /// something between them is not tracked.
    pub fn roots(&self) -> Vec<RelPath> {
        self.paths
            .iter()
            .filter(|(path, yes)| {
                **yes && !path.parent().is_some_and(|parent| self.is_tracked(&parent))
            })
            .map(|(path, _)| path.clone())
            .collect()
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = (&RelPath, bool)> {
        self.paths.iter().map(|(path, yes)| (path, *yes))
    }
}

/// What a worktree tracked last, kept with its attachment: what changes while it is closed is
/// found when it is opened again.
#[derive(Debug, Default, Encode, Decode)]
#[cbor(map)]
pub(super) struct Tracked {
    #[n(0)]
    paths: Vec<TrackedPath>,
    #[n(1)]
    never: Vec<ByteVec>,
    /// Paths that became tracked and were not looked at since.
    #[n(2)]
    binding: Vec<ByteVec>,
}

#[derive(Debug, Encode, Decode)]
#[cbor(array)]
struct TrackedPath {
    #[n(0)]
    path: ByteVec,
    #[n(1)]
    yes: bool,
}

impl Tracked {
    pub(super) fn new(tracking: &Tracking, binding: &[RelPath]) -> Self {
        let bytes = |path: &RelPath| ByteVec::from(path.as_bytes().to_vec());
        let entries = tracking.entries();
        Self {
            paths: entries
                .map(|(path, yes)| TrackedPath {
                    path: bytes(path),
                    yes,
                })
                .collect(),
            never: tracking.never.iter().map(bytes).collect(),
            binding: binding.iter().map(bytes).collect(),
        }
    }

    pub(super) fn tracking(&self) -> Tracking {
        let entries = self.paths.iter();
        let paths = entries.filter_map(|entry| Some((path_of(&entry.path)?, entry.yes)));
        Tracking {
            paths: paths.collect(),
            never: self.never.iter().filter_map(path_of).collect(),
        }
    }

    pub(super) fn binding(&self) -> Vec<RelPath> {
        self.binding.iter().filter_map(path_of).collect()
    }
}

fn path_of(bytes: &ByteVec) -> Option<RelPath> {
    RelPath::from_bytes(bytes).ok()
}

fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '%' {
                text.push_str("%25")
            } else {
                text.push(c)
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("%{byte:02x}"));
        }
    }
    text
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let (hex, tail) = tail.split_at_checked(2)?;
            let hex = std::str::from_utf8(hex).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::from_bytes(text.as_bytes()).expect("a path")
    }

    #[test]
    fn the_longest_match_wins() {
        let map = [("a", true), ("a/b", false), ("a/b/c", true), ("x/y", true)];
        let tracking = Tracking {
            paths: map.iter().map(|(p, yes)| (path(p), *yes)).collect(),
            never: vec![path("a/never")],
        };
        assert_eq!(tracking.class(&path("a/never/x")), Class::Untracked);
        assert_eq!(tracking.class(&path("a/z")), Class::Tracked);
        assert_eq!(tracking.class(&path("a/b")), Class::Above);
        assert_eq!(tracking.class(&path("a/b/q")), Class::Untracked);
        assert_eq!(tracking.class(&path("a/b/c/d")), Class::Tracked);
        assert_eq!(tracking.class(&path("x")), Class::Above);
        assert_eq!(tracking.class(&RelPath::root()), Class::Above);
        assert_eq!(tracking.class(&path("xx")), Class::Untracked);
        let roots: Vec<String> = tracking.roots().iter().map(ToString::to_string).collect();
        assert_eq!(roots, ["a", "a/b/c", "x/y"]);
    }

    #[test]
    fn any_path_survives_the_settings_document() {
        let odd = RelPath::from_bytes(b"a%/\xff\n\"").expect("a path");
        let settings = Settings::from([(Tracking::key(&odd), Setting::Flag(true))]);
        assert!(Tracking::from_settings(&settings).is_tracked(&odd));
    }
}
