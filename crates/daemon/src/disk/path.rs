//! Paths relative to a worktree's root.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Why bytes are no [`RelPath`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A name of no bytes: a leading, trailing or doubled `/`.
    #[error("a path holds an empty name")]
    EmptyName,
    /// `.` or `..`.
    #[error("`.` and `..` are no names")]
    DotName,
    /// A name with a NUL, or a `/` in what should be one name.
    #[error("a name holds `/` or NUL")]
    ForbiddenByte,
}

/// A path relative to the root: names of bytes, none for the root itself.
///
/// No name is empty, `.` or `..`, or holds `/` or NUL, so a `RelPath` never climbs. Paths order
/// name by name: a directory comes right before everything beneath it, and what is beneath it is
/// one contiguous range of a sorted map. Clones share their bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RelPath(Arc<[u8]>);

impl RelPath {
    /// The root: no names.
    pub fn root() -> Self {
        Self(Arc::from(&[][..]))
    }

    /// Parses names joined by `/`; no bytes at all are the root.
    ///
    /// # Errors
    /// A name that is refused; see [`PathError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PathError> {
        if !bytes.is_empty() {
            for name in bytes.split(|byte| *byte == b'/') {
                check_name(name)?;
            }
        }
        Ok(Self(Arc::from(bytes)))
    }

    /// The names joined by `/`, without a leading one; empty for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends one name.
    ///
    /// # Errors
    /// A name that is refused; see [`PathError`].
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        check_name(name)?;
        if self.is_root() {
            return Ok(Self(Arc::from(name)));
        }
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        bytes.push(b'/');
        bytes.extend_from_slice(name);
        Ok(Self(bytes.into()))
    }

    /// Appends all names of a path.
    pub fn join_path(&self, beneath: &RelPath) -> Self {
        if self.is_root() {
            return beneath.clone();
        }
        if beneath.is_root() {
            return self.clone();
        }
        Self([&self.0, &b"/"[..], &beneath.0].concat().into())
    }

    /// The directory that holds the entry; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        self.split_last().map(|(parent, _)| Self(Arc::from(parent)))
    }

    /// The last name; `None` for the root.
    pub fn name(&self) -> Option<&[u8]> {
        self.split_last().map(|(_, name)| name)
    }

    /// Bytes of the parent and the last name; `None` for the root.
    pub(super) fn split_last(&self) -> Option<(&[u8], &[u8])> {
        if self.is_root() {
            return None;
        }
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => {
                let (parent, rest) = self.0.split_at(slash);
                Some((parent, rest.get(1..).unwrap_or_default()))
            }
            None => Some((&[], &self.0)),
        }
    }

    /// The names, outermost first.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &[u8]> + '_ {
        // Splitting no bytes would give one empty name.
        self.0
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
    }

    /// The number of names.
    pub fn depth(&self) -> usize {
        self.names().count()
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is `ancestor` or lies beneath it.
    pub fn starts_with(&self, ancestor: &RelPath) -> bool {
        self.strip_prefix(ancestor).is_some()
    }

    /// The path as seen from `ancestor`; `None` when it is neither `ancestor` nor beneath it.
    pub fn strip_prefix(&self, ancestor: &RelPath) -> Option<Self> {
        if ancestor.is_root() {
            return Some(self.clone());
        }
        match self.0.strip_prefix(&*ancestor.0)? {
            [] => Some(Self::root()),
            [b'/', beneath @ ..] => Some(Self(Arc::from(beneath))),
            _ => None,
        }
    }
}

fn check_name(name: &[u8]) -> Result<(), PathError> {
    match name {
        b"" => Err(PathError::EmptyName),
        b"." | b".." => Err(PathError::DotName),
        _ if name.contains(&b'/') || name.contains(&0) => Err(PathError::ForbiddenByte),
        _ => Ok(()),
    }
}

impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> Ordering {
        // Neighbours in a map share long beginnings, which are skipped in blocks.
        const BLOCK: usize = 16;
        let blocks = self.0.chunks(BLOCK).zip(other.0.chunks(BLOCK));
        let shared = BLOCK * blocks.take_while(|(ours, theirs)| ours == theirs).count();
        // No name holds NUL, so a separator that sorts as NUL compares name by name.
        let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
        let ours = self.0.get(shared..).unwrap_or_default();
        let theirs = other.0.get(shared..).unwrap_or_default();
        ours.iter().map(key).cmp(theirs.iter().map(key))
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Default for RelPath {
    fn default() -> Self {
        Self::root()
    }
}

impl fmt::Display for RelPath {
    /// Shows one line of text: control characters and bytes that are not UTF-8 are escaped; the
    /// root is `.`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        if self.is_root() {
            return f.write_char('.');
        }
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character.is_control() {
                    write!(f, "{}", character.escape_default())?;
                } else {
                    f.write_char(character)?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RelPath({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::from_bytes(text.as_bytes()).expect("a good path")
    }

    #[test]
    fn refuses_what_climbs_or_is_malformed() {
        for bad in [
            &b"/"[..],
            b"/a",
            b"a/",
            b"a//b",
            b".",
            b"..",
            b"a/../b",
            b"a/./b",
            b"a\0b",
        ] {
            assert!(RelPath::from_bytes(bad).is_err(), "{bad:?}");
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert!(path("x").join(bad).is_err(), "{bad:?}");
        }
        assert!(RelPath::from_bytes(b"...").is_ok());
    }

    #[test]
    fn takes_apart_what_it_puts_together() {
        let root = RelPath::root();
        assert_eq!((root.parent(), root.name(), root.depth()), (None, None, 0));
        let a = root.join(b"a").expect("a good name");
        assert_eq!(
            (a.parent(), a.name()),
            (Some(root.clone()), Some(&b"a"[..]))
        );
        let deep = a.join(b"b\xff\n").expect("a good name");
        assert_eq!(deep.parent(), Some(a.clone()));
        assert_eq!(deep.name(), Some(&b"b\xff\n"[..]));
        assert_eq!(deep.names().collect::<Vec<_>>(), [&b"a"[..], b"b\xff\n"]);
        assert_eq!(RelPath::from_bytes(deep.as_bytes()), Ok(deep.clone()));
        assert_eq!(deep.to_string(), "a/b\\xff\\n");
        assert_eq!(root.to_string(), ".");
        assert_eq!(path("x").join_path(&path("y/z")), path("x/y/z"));
        assert_eq!(path("x").join_path(&root), path("x"));
        assert_eq!(root.join_path(&path("x")), path("x"));
    }

    #[test]
    fn prefixes_are_whole_names() {
        assert!(path("a/b").starts_with(&path("a")));
        assert!(path("a/b").starts_with(&path("a/b")));
        assert!(path("a/b").starts_with(&RelPath::root()));
        assert!(!path("ab").starts_with(&path("a")));
        assert!(!path("a").starts_with(&path("a/b")));
        assert_eq!(path("a/b/c").strip_prefix(&path("a")), Some(path("b/c")));
        assert_eq!(path("a").strip_prefix(&path("a")), Some(RelPath::root()));
    }

    fn names() -> impl Strategy<Value = Vec<Vec<u8>>> {
        // Few different bytes, so that names share beginnings and lie around the separator.
        let byte = prop::sample::select(&b"a.0\x01\xff"[..]);
        let name = prop::collection::vec(byte, 1..20)
            .prop_filter("a good name", |name| check_name(name).is_ok());
        prop::collection::vec(name, 0..4)
    }

    proptest! {
        #[test]
        fn behaves_as_its_list_of_names(a in names(), b in names()) {
            let build = |names: &[Vec<u8>]| {
                names.iter().fold(RelPath::root(), |path, name| {
                    path.join(name).expect("a good name")
                })
            };
            let (path_a, path_b) = (build(&a), build(&b));
            prop_assert_eq!(path_a.cmp(&path_b), a.cmp(&b));
            prop_assert_eq!(path_a == path_b, a == b);
            prop_assert_eq!(path_a.starts_with(&path_b), a.starts_with(&b));
            prop_assert_eq!(path_a.names().collect::<Vec<_>>(), a.iter().collect::<Vec<_>>());
            let both = path_a.join_path(&path_b);
            prop_assert_eq!(both.strip_prefix(&path_a), Some(path_b));
            prop_assert_eq!(RelPath::from_bytes(both.as_bytes()), Ok(both));
        }
    }

    #[test]
    fn a_directory_sorts_right_before_what_is_beneath_it() {
        let mut paths = ["a.b", "a/z", "a", "a\x01", "b", "a/b/c", "a-", ""].map(path);
        paths.sort();
        let names = |path: &RelPath| path.names().map(<[u8]>::to_vec).collect::<Vec<_>>();
        let mut modelled = paths.clone();
        modelled.sort_by_key(names);
        assert_eq!(paths, modelled);
        assert_eq!(
            paths.map(|path| path.to_string())[..4],
            [".", "a", "a/b/c", "a/z"]
        );
    }
}
