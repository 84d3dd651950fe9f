//! A big content's manifests: many small objects below a top one, cut where the
//! ids say so, so that a change in one place leaves all but one or two as they were.

use super::manifest::{ChunkParams, Entry, Manifest, ManifestError};
use super::{IdKeys, MANIFEST_DEPTH_MAX, MANIFEST_ENTRIES_MAX, ManifestId, ObjectId};
use crate::ids::ChunkId;

/// Fewest entries of an object that is followed by another one. With the mask:
/// about 380 entries and 16 KiB an object, which covers some 50 MiB.
const SPLIT_MIN: usize = 128;
/// An object ends after an entry whose id has these bits clear.
const SPLIT_MASK: u8 = 0xff;
/// Most entries of an object below the top; rarely reached, see the mask.
const SPLIT_MAX: usize = 2048;

/// A manifest's bytes and their name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestObject {
    /// Names the bytes.
    pub id: ManifestId,
    /// The canonical encoding.
    pub bytes: Vec<u8>,
}

/// All manifest objects of one content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestTree {
    /// The one that stands for the whole content.
    pub top: ManifestObject,
    /// Those below; a child comes before its parent. An id may come twice.
    pub below: Vec<ManifestObject>,
    /// Bytes of content.
    pub size: u64,
}

impl ManifestTree {
    /// The bytes of one object of the tree.
    pub fn object(&self, id: &ManifestId) -> Option<&[u8]> {
        std::iter::once(&self.top)
            .chain(&self.below)
            .find(|object| object.id == *id)
            .map(|object| object.bytes.as_slice())
    }

    /// Every object, children before their parents, the top one last.
    pub fn objects(&self) -> impl Iterator<Item = &ManifestObject> {
        self.below.iter().chain(std::iter::once(&self.top))
    }
}

/// Makes a manifest tree from runs in the content's order. Holds about 41 bytes a chunk.
#[derive(Debug)]
pub struct ManifestBuilder<'k> {
    keys: &'k IdKeys,
    params: ChunkParams,
    /// Entries not yet in an object, by level.
    open: [Vec<Entry>; MANIFEST_DEPTH_MAX],
    below: Vec<ManifestObject>,
    size: u64,
    /// Zeros seen since the last chunk.
    hole: u64,
}

impl<'k> ManifestBuilder<'k> {
    /// Starts with no content.
    pub fn new(keys: &'k IdKeys, params: ChunkParams) -> Self {
        Self {
            keys,
            params,
            open: [const { Vec::new() }; MANIFEST_DEPTH_MAX],
            below: Vec::new(),
            size: 0,
            hole: 0,
        }
    }

    /// Adds the next chunk.
    ///
    /// # Errors
    /// [`ManifestError`] if the tree would break a limit.
    pub fn chunk(&mut self, id: ChunkId, len: u32) -> Result<(), ManifestError> {
        self.close_hole()?;
        self.add(0, Entry::Chunk { id, len })
    }

    /// Adds zeros. Neighbouring holes become one.
    ///
    /// # Errors
    /// [`ManifestError::Size`] if the content is too long.
    pub fn hole(&mut self, len: u64) -> Result<(), ManifestError> {
        self.hole = self
            .hole
            .checked_add(len)
            .ok_or(ManifestError::Size { size: u64::MAX })?;
        Ok(())
    }

    /// Closes the open objects.
    ///
    /// # Errors
    /// [`ManifestError::Size`] for an empty content; else as [`ManifestBuilder::chunk`].
    pub fn finish(mut self) -> Result<ManifestTree, ManifestError> {
        self.close_hole()?;
        for level in 0..MANIFEST_DEPTH_MAX {
            let above = self
                .open
                .iter()
                .skip(level + 1)
                .any(|entries| !entries.is_empty());
            if !above {
                let entries = self.take(level);
                if entries.is_empty() {
                    break;
                }
                let top = self.object(level, entries)?;
                return Ok(ManifestTree {
                    top,
                    below: self.below,
                    size: self.size,
                });
            }
            self.close(level)?;
        }
        Err(ManifestError::Size { size: self.size })
    }

    fn close_hole(&mut self) -> Result<(), ManifestError> {
        match std::mem::take(&mut self.hole) {
            0 => Ok(()),
            len => self.add(0, Entry::Hole { len }),
        }
    }

    fn add(&mut self, level: usize, entry: Entry) -> Result<(), ManifestError> {
        if level == 0 {
            self.size = self
                .size
                .checked_add(entry.size())
                .ok_or(ManifestError::Size { size: u64::MAX })?;
        }
        let size = self.size;
        let open = self
            .open
            .get_mut(level)
            .ok_or(ManifestError::Size { size })?;
        open.push(entry);
        let count = open.len();
        if level + 1 == MANIFEST_DEPTH_MAX {
            // Nothing can be above this level, so it is not split but only bounded.
            return if count > MANIFEST_ENTRIES_MAX {
                Err(ManifestError::Size { size })
            } else {
                Ok(())
            };
        }
        if count >= SPLIT_MAX || (count >= SPLIT_MIN && ends_object(&entry)) {
            self.close(level)?;
        }
        Ok(())
    }

    /// Makes an object of a level's open entries and enters it one level up.
    fn close(&mut self, level: usize) -> Result<(), ManifestError> {
        let entries = self.take(level);
        if entries.is_empty() {
            return Ok(());
        }
        let len = entries.iter().map(Entry::size).sum();
        let object = self.object(level, entries)?;
        let id = object.id;
        self.below.push(object);
        self.add(level + 1, Entry::Sub { id, len })
    }

    fn take(&mut self, level: usize) -> Vec<Entry> {
        self.open
            .get_mut(level)
            .map(std::mem::take)
            .unwrap_or_default()
    }

    fn object(&self, level: usize, entries: Vec<Entry>) -> Result<ManifestObject, ManifestError> {
        let level = u8::try_from(level).map_err(|_| ManifestError::Size { size: self.size })?;
        let bytes = Manifest::new(level, self.params, entries)?.encode();
        Ok(ManifestObject {
            id: self.keys.manifest_id(&bytes),
            bytes,
        })
    }
}

fn ends_object(entry: &Entry) -> bool {
    let [first, ..] = match entry {
        Entry::Chunk { id, .. } => *id.as_bytes(),
        Entry::Sub { id, .. } => *id.as_bytes(),
        Entry::Hole { .. } => return false,
    };
    first & SPLIT_MASK == 0
}

/// Where the bytes of a piece come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceSource {
    /// The chunk of this id.
    Chunk(ChunkId),
    /// Zeros.
    Hole,
}

/// A run of content at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First byte, counted from the content's start.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Where they come from.
    pub source: PieceSource,
}

/// Iterates the pieces of a content in order; ends after the first error.
///
/// The lookup gives a lower manifest's bytes, `None` if they are not here; they are
/// checked against their id. Holds at most three manifests at a time. The number of pieces
/// is bounded by the content's size, so compare [`Walk::size`] with what the row says first.
#[derive(Debug)]
pub struct Walk<'k, L> {
    keys: &'k IdKeys,
    lookup: L,
    /// From the top down: the manifest and the number of entries passed.
    stack: Vec<(Manifest, usize)>,
    size: u64,
    offset: u64,
}

impl<'k, L: FnMut(&ManifestId) -> Option<Vec<u8>>> Walk<'k, L> {
    /// Starts at the top manifest, whose bytes are checked against `id`.
    ///
    /// # Errors
    /// [`ManifestError`] if they are not a valid manifest of that id.
    pub fn new(
        keys: &'k IdKeys,
        id: &ManifestId,
        bytes: &[u8],
        lookup: L,
    ) -> Result<Self, ManifestError> {
        let top = checked(keys, id, bytes)?;
        Ok(Self {
            keys,
            lookup,
            size: top.size(),
            stack: vec![(top, 0)],
            offset: 0,
        })
    }

    /// Bytes of the whole content.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn step(&mut self) -> Result<Option<Piece>, ManifestError> {
        while let Some((manifest, passed)) = self.stack.last_mut() {
            let Some(entry) = manifest.entries().get(*passed).copied() else {
                self.stack.pop();
                continue;
            };
            *passed += 1;
            let (level, shortest) = (manifest.level(), manifest.params().min);
            let source = match entry {
                Entry::Sub { id, len } => {
                    let bytes = (self.lookup)(&id).ok_or(ManifestError::Missing { id })?;
                    let below = checked(self.keys, &id, &bytes)?;
                    // A short last chunk is right only at the very end of the content.
                    let ends = self.offset.checked_add(len) == Some(self.size);
                    let short = matches!(below.entries().last(),
                        Some(Entry::Chunk { len, .. }) if *len < shortest);
                    let fits = below.level().checked_add(1) == Some(level)
                        && below.size() == len
                        && below.params() == manifest.params();
                    if !fits || (below.level() == 0 && short && !ends) {
                        return Err(ManifestError::Misfit { id });
                    }
                    self.stack.push((below, 0));
                    continue;
                }
                Entry::Chunk { id, .. } => PieceSource::Chunk(id),
                Entry::Hole { .. } => PieceSource::Hole,
            };
            let piece = Piece {
                offset: self.offset,
                len: entry.size(),
                source,
            };
            // Sums were checked in each object, and each one against the entry above.
            self.offset = self.offset.saturating_add(piece.len);
            return Ok(Some(piece));
        }
        Ok(None)
    }
}

fn checked(keys: &IdKeys, id: &ManifestId, bytes: &[u8]) -> Result<Manifest, ManifestError> {
    if !keys.names(&ObjectId::Manifest(*id), bytes) {
        return Err(ManifestError::WrongBytes { id: *id });
    }
    Manifest::decode(bytes)
}

impl<L: FnMut(&ManifestId) -> Option<Vec<u8>>> Iterator for Walk<'_, L> {
    type Item = Result<Piece, ManifestError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.stack.clear();
        }
        step.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Key;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn keys() -> IdKeys {
        IdKeys::derive(&Key::from_bytes([3; 32]))
    }

    fn params(keys: &IdKeys) -> ChunkParams {
        ChunkParams::standard(keys)
    }

    /// Chunks of 128 KiB named by their numbers.
    fn chunks(keys: &IdKeys, numbers: impl Iterator<Item = u64>) -> Vec<(ChunkId, u32)> {
        numbers
            .map(|n| (keys.chunk_id(&n.to_le_bytes()), 128 * 1024))
            .collect()
    }

    fn build(keys: &IdKeys, chunks: &[(ChunkId, u32)]) -> ManifestTree {
        let mut builder = ManifestBuilder::new(keys, params(keys));
        for (id, len) in chunks {
            builder.chunk(*id, *len).expect("within limits");
        }
        builder.finish().expect("not empty")
    }

    fn pieces(keys: &IdKeys, tree: &ManifestTree) -> Vec<Piece> {
        let lookup = |id: &ManifestId| tree.object(id).map(<[u8]>::to_vec);
        Walk::new(keys, &tree.top.id, &tree.top.bytes, lookup)
            .expect("a valid top")
            .collect::<Result<_, _>>()
            .expect("a whole tree")
    }

    fn ids(tree: &ManifestTree) -> BTreeSet<ManifestId> {
        tree.objects().map(|object| object.id).collect()
    }

    #[test]
    fn a_gibibyte_has_a_small_top_and_an_insert_changes_few_objects() {
        let keys = keys();
        let before = build(&keys, &chunks(&keys, 0..8192));
        assert_eq!(before.size, 1 << 30);
        assert!(before.top.bytes.len() < 3000, "{}", before.top.bytes.len());
        for start in 0..20 {
            let inserted = std::iter::once(1_000_000 + start).chain(0..8192);
            let after = build(&keys, &chunks(&keys, inserted));
            let new: Vec<_> = ids(&after).difference(&ids(&before)).copied().collect();
            assert!(new.len() <= 4, "{} new objects", new.len());
        }
        let after = build(&keys, &chunks(&keys, 0..8193));
        assert_eq!(
            ids(&after).difference(&ids(&before)).count(),
            2,
            "last leaf and top"
        );
    }

    #[test]
    fn a_huge_content_has_three_levels_and_reads_back() {
        let keys = keys();
        let chunks = chunks(&keys, 0..200_000);
        let tree = build(&keys, &chunks);
        let top = Manifest::decode(&tree.top.bytes).expect("valid");
        assert_eq!(top.level(), 2);
        let read = pieces(&keys, &tree);
        assert_eq!(read.len(), chunks.len());
        let mut offset = 0;
        for (piece, (id, len)) in read.iter().zip(&chunks) {
            assert_eq!(piece.source, PieceSource::Chunk(*id));
            assert_eq!((piece.offset, piece.len), (offset, u64::from(*len)));
            offset += piece.len;
        }
        assert_eq!(offset, tree.size);
    }

    #[test]
    fn a_content_of_repeated_chunks_stays_within_the_limits() {
        let keys = keys();
        let one = (ChunkId::from_bytes([1; 32]), 512 * 1024);
        let tree = build(&keys, &vec![one; 100_000]);
        assert_eq!(pieces(&keys, &tree).len(), 100_000);
    }

    #[test]
    fn an_empty_content_has_no_manifest() {
        let keys = keys();
        let builder = ManifestBuilder::new(&keys, params(&keys));
        assert_eq!(builder.finish(), Err(ManifestError::Size { size: 0 }));
    }

    #[test]
    fn neighbouring_holes_become_one() {
        let keys = keys();
        let mut builder = ManifestBuilder::new(&keys, params(&keys));
        builder.hole(10).expect("fits");
        builder.hole(20).expect("fits");
        let tree = builder.finish().expect("not empty");
        let hole = Piece {
            offset: 0,
            len: 30,
            source: PieceSource::Hole,
        };
        assert_eq!(pieces(&keys, &tree), [hole]);
    }

    #[test]
    fn a_missing_or_swapped_object_is_named() {
        let keys = keys();
        let tree = build(&keys, &chunks(&keys, 0..2000));
        let first = tree.below.first().expect("several leaves");
        let mut walk = Walk::new(&keys, &tree.top.id, &tree.top.bytes, |_| None).expect("top");
        assert_eq!(
            walk.next(),
            Some(Err(ManifestError::Missing { id: first.id }))
        );
        assert_eq!(walk.next(), None);
        let other = tree.top.bytes.clone();
        let mut walk = Walk::new(&keys, &tree.top.id, &tree.top.bytes, |_| {
            Some(other.clone())
        })
        .expect("top");
        assert_eq!(
            walk.next(),
            Some(Err(ManifestError::WrongBytes { id: first.id }))
        );
        let wrong = Walk::new(&keys, &first.id, &tree.top.bytes, |_| None).map(|_| ());
        assert_eq!(wrong, Err(ManifestError::WrongBytes { id: first.id }));
    }

    #[test]
    fn a_sub_of_another_size_or_level_does_not_fit() {
        let keys = keys();
        let leaf = build(&keys, &chunks(&keys, 0..4)).top;
        for (level, len) in [(1, 4 * 128 * 1024 + 1), (2, 4 * 128 * 1024)] {
            let entries = vec![Entry::Sub { id: leaf.id, len }];
            let top = Manifest::new(level, params(&keys), entries)
                .expect("valid")
                .encode();
            let id = keys.manifest_id(&top);
            let mut walk =
                Walk::new(&keys, &id, &top, |_| Some(leaf.bytes.clone())).expect("a valid top");
            assert_eq!(
                walk.next(),
                Some(Err(ManifestError::Misfit { id: leaf.id }))
            );
        }
    }

    #[test]
    fn a_short_chunk_is_taken_only_at_the_end() {
        let keys = keys();
        let short = build(&keys, &[(ChunkId::from_bytes([1; 32]), 5)]).top;
        let walk = |count: usize| {
            let entries = vec![
                Entry::Sub {
                    id: short.id,
                    len: 5
                };
                count
            ];
            let top = Manifest::new(1, params(&keys), entries)
                .expect("valid")
                .encode();
            let lookup = |_: &ManifestId| Some(short.bytes.clone());
            Walk::new(&keys, &keys.manifest_id(&top), &top, lookup)
                .expect("a valid top")
                .collect::<Result<Vec<_>, _>>()
        };
        assert_eq!(walk(1).expect("one short chunk").len(), 1);
        assert_eq!(walk(2), Err(ManifestError::Misfit { id: short.id }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn any_runs_read_back(
            runs in proptest::collection::vec((any::<u16>(), 0..5u8, 32_768..524_288u32), 1..3000),
        ) {
            let keys = keys();
            let mut builder = ManifestBuilder::new(&keys, params(&keys));
            let mut expected: Vec<Piece> = Vec::new();
            let mut offset = 0;
            for (n, kind, len) in runs {
                let source = if kind == 0 {
                    builder.hole(u64::from(len)).expect("fits");
                    PieceSource::Hole
                } else {
                    let id = keys.chunk_id(&n.to_le_bytes());
                    builder.chunk(id, len).expect("fits");
                    PieceSource::Chunk(id)
                };
                let len = u64::from(len);
                match expected.last_mut() {
                    Some(last) if source == PieceSource::Hole && last.source == source => {
                        last.len += len;
                    }
                    _ => expected.push(Piece { offset, len, source }),
                }
                offset += len;
            }
            let tree = builder.finish().expect("not empty");
            prop_assert_eq!(tree.size, offset);
            prop_assert_eq!(pieces(&keys, &tree), expected);
        }
    }
}
