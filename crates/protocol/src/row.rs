//! Rows: immutable facts about nodes.
//!
//! Canonical bytes: `[node, [past…], {key: value…}]`, keys ascending. A row's id is the
//! hash of those bytes; they hold neither author nor time.

use std::collections::BTreeMap;
use std::fmt;

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};

use crate::cbor::{DecodeError, at_most};
use crate::crypto::{self, domain};
use crate::ids::{ContentId, NodeId, RowId, Stamp};

/// Prefix of the names that pacsync uses for its own temporary files; refused at the gate.
pub const RESERVED_PREFIX: &[u8] = b".pacsync~";
/// Longest name, in bytes.
pub const NAME_MAX: usize = 1024;
/// Most rows that one row may name as its past.
pub const PAST_MAX: usize = 256;
/// Most bytes of content that ride inline in a row, and the longest target of a symlink.
pub const INLINE_MAX: usize = 1024;
/// Longest canonical row, in bytes.
pub const ROW_MAX: usize = 16 * 1024;
/// Highest stamp that the gate takes; leaves room so that `+ 1` never overflows.
pub const STAMP_MAX: Stamp = 1 << 56;

/// A file name: bytes, never empty, `.`, `..`, with `/` or NUL, or reserved.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Vec<u8>);

/// Why bytes are not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, `.` or `..`.
    #[error("a name may not be empty, `.` or `..`")]
    Special,
    /// Holds `/` or NUL.
    #[error("a name may hold neither `/` nor NUL")]
    BadByte,
    /// Over [`NAME_MAX`] bytes.
    #[error("a name may be at most {NAME_MAX} bytes")]
    TooLong,
    /// Begins with [`RESERVED_PREFIX`].
    #[error("names that begin with `.pacsync~` are reserved")]
    Reserved,
}

impl Name {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`NameError`] says which rule is broken.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, NameError> {
        let bytes = bytes.into();
        if bytes.is_empty() || bytes == b"." || bytes == b".." {
            return Err(NameError::Special);
        }
        if bytes.iter().any(|&b| b == b'/' || b == 0) {
            return Err(NameError::BadByte);
        }
        if bytes.len() > NAME_MAX {
            return Err(NameError::TooLong);
        }
        if bytes.starts_with(RESERVED_PREFIX) {
            return Err(NameError::Reserved);
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link; its target is its content.
    Symlink,
    /// Something that a later version knows: held, neither rendered nor deleted.
    Other(u64),
}

impl Kind {
    fn code(self) -> u64 {
        match self {
            Self::File => 0,
            Self::Dir => 1,
            Self::Symlink => 2,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u64) -> Self {
        match code {
            0 => Self::File,
            1 => Self::Dir,
            2 => Self::Symlink,
            other => Self::Other(other),
        }
    }
}

/// A placement: parent, name, and the stamp that orders moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    /// The directory.
    pub parent: NodeId,
    /// The name in it.
    pub name: Name,
    /// 1 + the highest stamp in the writer's causal past in the space.
    pub stamp: Stamp,
}

/// What a file holds: id, size and time belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Keyed hash of the whole plaintext.
    pub id: ContentId,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
    /// The content itself where it is at most [`INLINE_MAX`] bytes, or a symlink's target.
    pub inline: Option<Vec<u8>>,
}

impl Content {
    /// What a symlink with this content points to; `None` if it cannot be a target.
    pub fn target(&self) -> Option<&[u8]> {
        let target = self.inline.as_deref()?;
        (!target.is_empty() && !target.contains(&0)).then_some(target)
    }
}

/// Whether a node lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Deleted.
    Dead,
    /// Alive.
    Live,
}

/// The keys that a row writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// Key 0; in birth rows only.
    pub kind: Option<Kind>,
    /// Key 1.
    pub at: Option<At>,
    /// Key 2.
    pub content: Option<Content>,
    /// Key 3: 0777 bits.
    pub mode: Option<u16>,
    /// Key 4.
    pub life: Option<Life>,
    /// Key 5: the node that this one was unified into.
    pub into: Option<NodeId>,
    /// Key 6: born by the first scan of a newly attached root.
    pub adopted: bool,
    /// Key 7: version of the merge function that made this content.
    pub merge: Option<u32>,
    /// Keys that this version does not know (8 `xattrs` and 9 `owner` are reserved): kept as raw CBOR.
    pub unknown: BTreeMap<u64, Vec<u8>>,
}

/// One immutable fact about a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The node.
    pub node: NodeId,
    /// Newest rows of the node's group that the writer had seen; sorted, no duplicates.
    /// Empty in a birth row.
    pub past: Vec<RowId>,
    /// What it writes.
    pub keys: Keys,
}

impl Row {
    /// Makes a row; sorts `past`.
    pub fn new(node: NodeId, mut past: Vec<RowId>, keys: Keys) -> Self {
        past.sort_unstable();
        past.dedup();
        Self { node, past, keys }
    }

    /// True for the row that makes the node.
    pub fn is_birth(&self) -> bool {
        self.past.is_empty()
    }

    /// The id of canonical row bytes.
    pub fn id_of(bytes: &[u8]) -> RowId {
        RowId::from_bytes(crypto::hash(domain::ROW, &[bytes]))
    }

    /// The node that canonical row bytes are about.
    pub fn node_of(bytes: &[u8]) -> Option<NodeId> {
        // An array of three, and a string of 16 bytes in it.
        let rest = bytes.strip_prefix(&[0x83, 0x50])?;
        NodeId::from_slice(rest.get(..NodeId::LEN)?)
    }

    /// The row's id. Encodes the row: prefer [`Row::id_of`] where bytes are at hand.
    pub fn id(&self) -> RowId {
        Self::id_of(&self.to_bytes())
    }

    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::new(Vec::with_capacity(160));
        self.write(&mut e)
            .expect("encoding to memory does not fail");
        e.into_writer()
    }

    fn write(
        &self,
        e: &mut Encoder<Vec<u8>>,
    ) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        let k = &self.keys;
        e.array(3)?
            .bytes(self.node.as_bytes())?
            .array(self.past.len() as u64)?;
        for id in &self.past {
            e.bytes(id.as_bytes())?;
        }
        let known = [
            k.kind.is_some(),
            k.at.is_some(),
            k.content.is_some(),
            k.mode.is_some(),
            k.life.is_some(),
            k.into.is_some(),
            k.adopted,
            k.merge.is_some(),
        ];
        let count = known.iter().filter(|set| **set).count() + k.unknown.len();
        e.map(count as u64)?;
        if let Some(kind) = k.kind {
            e.u8(0)?.u64(kind.code())?;
        }
        if let Some(at) = &k.at {
            e.u8(1)?
                .array(3)?
                .bytes(at.parent.as_bytes())?
                .bytes(at.name.as_bytes())?;
            e.u64(at.stamp)?;
        }
        if let Some(content) = &k.content {
            e.u8(2)?
                .array(if content.inline.is_some() { 4 } else { 3 })?;
            e.bytes(content.id.as_bytes())?
                .u64(content.size)?
                .i64(content.mtime_ns)?;
            if let Some(inline) = &content.inline {
                e.bytes(inline)?;
            }
        }
        if let Some(mode) = k.mode {
            e.u8(3)?.u16(mode)?;
        }
        if let Some(life) = k.life {
            e.u8(4)?.bool(life == Life::Live)?;
        }
        if let Some(into) = k.into {
            e.u8(5)?.bytes(into.as_bytes())?;
        }
        if k.adopted {
            e.u8(6)?.bool(true)?;
        }
        if let Some(merge) = k.merge {
            e.u8(7)?.u32(merge)?;
        }
        for (key, raw) in &k.unknown {
            e.u64(*key)?;
            e.writer_mut().extend_from_slice(raw);
        }
        Ok(())
    }

    /// Decodes canonical bytes and checks every bound of a single row.
    ///
    /// # Errors
    /// [`DecodeError`]; also for bytes that are not the canonical form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        at_most("row", bytes.len(), ROW_MAX)?;
        let row = Self::read(bytes).map_err(|e| DecodeError::Malformed {
            what: "row",
            why: e.to_string(),
        })?;
        row.check()?;
        if row.to_bytes() != bytes {
            return Err(DecodeError::NotCanonical { what: "row" });
        }
        Ok(row)
    }

    fn read(bytes: &[u8]) -> Result<Self, minicbor::decode::Error> {
        let bad = minicbor::decode::Error::message;
        let mut d = Decoder::new(bytes);
        if d.array()? != Some(3) {
            return Err(bad("row is not an array of three"));
        }
        let node = d.decode()?;
        let count = d.array()?.ok_or_else(|| bad("past of unknown length"))?;
        if count > PAST_MAX as u64 {
            return Err(bad("past is too long"));
        }
        let past = (0..count)
            .map(|_| d.decode())
            .collect::<Result<Vec<RowId>, _>>()?;
        let mut keys = Keys::default();
        let count = d.map()?.ok_or_else(|| bad("map of unknown length"))?;
        let mut before = None;
        for _ in 0..count {
            let key = d.u64()?;
            if before.is_some_and(|b| b >= key) {
                return Err(bad("keys are not ascending"));
            }
            before = Some(key);
            match key {
                0 => keys.kind = Some(Kind::from_code(d.u64()?)),
                1 => {
                    if d.array()? != Some(3) {
                        return Err(bad("at is not an array of three"));
                    }
                    let parent = d.decode()?;
                    let name = Name::new(d.bytes()?).map_err(|_| bad("not a name"))?;
                    keys.at = Some(At {
                        parent,
                        name,
                        stamp: d.u64()?,
                    });
                }
                2 => {
                    let len = d.array()?;
                    if !matches!(len, Some(3 | 4)) {
                        return Err(bad("content is not an array of three or four"));
                    }
                    let (id, size, mtime_ns) = (d.decode()?, d.u64()?, d.i64()?);
                    let inline = if len == Some(4) {
                        Some(d.bytes()?.to_vec())
                    } else {
                        None
                    };
                    keys.content = Some(Content {
                        id,
                        size,
                        mtime_ns,
                        inline,
                    });
                }
                3 => keys.mode = Some(d.u16()?),
                4 => keys.life = Some(if d.bool()? { Life::Live } else { Life::Dead }),
                5 => keys.into = Some(d.decode()?),
                6 => keys.adopted = d.bool()?,
                7 => keys.merge = Some(d.u32()?),
                key => {
                    let start = d.position();
                    skip_kept(&mut d)?;
                    let raw = bytes.get(start..d.position()).unwrap_or_default().to_vec();
                    keys.unknown.insert(key, raw);
                }
            }
        }
        if d.position() != bytes.len() {
            return Err(bad("bytes left over"));
        }
        Ok(Self { node, past, keys })
    }

    fn check(&self) -> Result<(), DecodeError> {
        let invalid = |what| Err(DecodeError::Invalid { what });
        if self.past.windows(2).any(|w| w[0] >= w[1]) {
            return invalid("row: past is not sorted");
        }
        if self.is_birth() != self.keys.kind.is_some() {
            return invalid("row: kind belongs to the birth row and only there");
        }
        if self.is_birth() && self.keys.at.is_none() {
            return invalid("row: a birth without a place");
        }
        if self.keys.adopted && !self.is_birth() {
            return invalid("row: adopted outside a birth row");
        }
        if self.node == NodeId::ROOT {
            return invalid("row: the root has no rows");
        }
        if let Some(at) = &self.keys.at
            && (at.parent == self.node || at.stamp == 0 || at.stamp > STAMP_MAX)
        {
            return invalid("row: place");
        }
        if self.keys.mode.is_some_and(|mode| mode > 0o777) {
            return invalid("row: mode");
        }
        if self.keys.into == Some(self.node) || self.keys.into == Some(NodeId::ROOT) {
            return invalid("row: into");
        }
        if let Some(content) = &self.keys.content
            && let Some(inline) = &content.inline
            && (inline.len() > INLINE_MAX || inline.len() as u64 != content.size)
        {
            return invalid("row: inline content");
        }
        if self.keys.kind == Some(Kind::Symlink) {
            let target = self.keys.content.as_ref().and_then(Content::target);
            if target.is_none() {
                return invalid("row: symlink target");
            }
        }
        Ok(())
    }
}

/// Skips one value of a type that is kept. Nesting costs no stack, and the row's length bounds it.
fn skip_kept(d: &mut Decoder<'_>) -> Result<(), minicbor::decode::Error> {
    match d.datatype()? {
        Type::Bytes | Type::String | Type::Bool | Type::Null => d.skip(),
        Type::U8 | Type::U16 | Type::U32 | Type::U64 => d.skip(),
        Type::I8 | Type::I16 | Type::I32 | Type::I64 => d.skip(),
        Type::Array | Type::Map => d.skip(),
        _ => Err(minicbor::decode::Error::message(
            "unknown key of an unsupported type",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn birth() -> Row {
        Row::new(
            NodeId::from_bytes([3; 16]),
            vec![],
            Keys {
                kind: Some(Kind::File),
                at: Some(At {
                    parent: NodeId::ROOT,
                    name: Name::new(*b"a").expect("a name"),
                    stamp: 1,
                }),
                content: Some(Content {
                    id: ContentId::from_bytes([4; 32]),
                    size: 2,
                    mtime_ns: -5,
                    inline: Some(b"hi".to_vec()),
                }),
                mode: Some(0o644),
                life: Some(Life::Live),
                ..Keys::default()
            },
        )
    }

    #[test]
    fn a_row_has_one_encoding() {
        let row = birth();
        let bytes = row.to_bytes();
        assert_eq!(Row::from_bytes(&bytes), Ok(row.clone()));
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(Row::from_bytes(&longer).is_err());
    }

    #[test]
    fn unknown_keys_are_kept() {
        let mut row = birth();
        row.keys
            .unknown
            .insert(8, minicbor::to_vec("later").expect("encodes"));
        assert_eq!(Row::from_bytes(&row.to_bytes()), Ok(row));
    }

    #[test]
    fn the_gate_refuses_bad_names_and_places() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", b".pacsync~x"] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        assert!(Name::new(vec![b'x'; NAME_MAX + 1]).is_err());
        let mut row = birth();
        row.keys.at = None;
        assert!(Row::from_bytes(&row.to_bytes()).is_err());
        let mut row = birth();
        row.keys.mode = Some(0o1777);
        assert!(Row::from_bytes(&row.to_bytes()).is_err());
        let mut row = birth();
        row.past = vec![RowId::from_bytes([1; 32])];
        assert!(Row::from_bytes(&row.to_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Row::from_bytes(&bytes);
        }

        #[test]
        fn a_mutated_row_is_refused_or_canonical(at in 0usize..120, to in any::<u8>()) {
            let mut bytes = birth().to_bytes();
            let at = at % bytes.len();
            bytes[at] = to;
            if let Ok(row) = Row::from_bytes(&bytes) {
                prop_assert_eq!(row.to_bytes(), bytes);
            }
        }
    }
}
