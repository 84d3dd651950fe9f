//! One pass over a content: its id, and if it is big, its chunks and manifests.

use std::io;

use fastcdc::v2020;
use pacsync_protocol::ContentId;
use pacsync_protocol::content::{
    ChunkParams, IdKeys, ManifestBuilder, ManifestError, ManifestTree, Piece, PieceSource,
    SMALL_MAX,
};

use super::Source;

/// Bytes read at a time from a big content: several of the longest standard chunks,
/// so that little is moved, and few enough to stay near the processor.
const BUFFER: usize = 2 * 1024 * 1024;

/// What a pass over a content found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// Names the content.
    pub content_id: ContentId,
    /// Bytes.
    pub size: u64,
    /// The manifests; `None` for a content of at most [`SMALL_MAX`] bytes.
    pub manifest: Option<ManifestTree>,
}

impl Scanned {
    /// Says whether the content id alone names it.
    pub fn is_small(&self) -> bool {
        self.manifest.is_none()
    }
}

/// Why a pass gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// Reading failed.
    #[error("cannot read at byte {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// The medium's reason.
        source: io::Error,
    },
    /// The content is shorter or longer than expected: it changes while it is read.
    #[error("content of {expected} bytes became {relation}")]
    Resized {
        /// The size that the caller gave.
        expected: u64,
        /// How it differs now.
        relation: Relation,
    },
    /// The content cannot be described.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// How a size differs from what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// Fewer bytes.
    Shorter,
    /// More bytes.
    Longer,
}

impl std::fmt::Display for Relation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Shorter => "shorter",
            Self::Longer => "longer",
        })
    }
}

/// Names a content of `size` bytes and cuts it with the standard parameters.
/// Memory: 2 MiB, and 41 bytes a chunk for the manifests.
///
/// # Errors
/// [`ScanError`]. That the bytes stayed the same meanwhile is for the caller to check.
pub fn scan_content(
    source: &mut dyn Source,
    size: u64,
    keys: &IdKeys,
) -> Result<Scanned, ScanError> {
    scan_chunks(
        source,
        size,
        keys,
        ChunkParams::standard(keys),
        &mut |_, _| {},
    )
}

/// As [`scan_content`], with other parameters and a look at every piece and its bytes
/// as it is cut. A small content gives no pieces; zeros may come as several holes.
///
/// # Errors
/// [`ScanError`].
pub fn scan_chunks(
    source: &mut dyn Source,
    size: u64,
    keys: &IdKeys,
    params: ChunkParams,
    on_piece: &mut dyn FnMut(&Piece, &[u8]),
) -> Result<Scanned, ScanError> {
    let (content_id, manifest) = if size <= SMALL_MAX {
        (scan_small(source, size, keys)?, None)
    } else {
        let (id, tree) = scan_big(source, size, keys, params, on_piece)?;
        (id, Some(tree))
    };
    if read(source, size, &mut [0])? > 0 {
        return Err(ScanError::Resized {
            expected: size,
            relation: Relation::Longer,
        });
    }
    Ok(Scanned {
        content_id,
        size,
        manifest,
    })
}

fn scan_small(source: &mut dyn Source, size: u64, keys: &IdKeys) -> Result<ContentId, ScanError> {
    let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
    fill(source, 0, size, &mut bytes)?;
    Ok(keys.content_id(&bytes))
}

fn scan_big(
    source: &mut dyn Source,
    size: u64,
    keys: &IdKeys,
    params: ChunkParams,
    on_piece: &mut dyn FnMut(&Piece, &[u8]),
) -> Result<(ContentId, ManifestTree), ScanError> {
    params.check().map_err(ManifestError::from)?;
    let cutter = Cutter::new(params);
    let mut hasher = keys.content_hasher();
    let mut builder = ManifestBuilder::new(keys, params);
    let mut buffer = vec![0; BUFFER.max(cutter.max)];
    // The buffer holds the content from `offset - start` to `loaded`; `start..end` is not cut yet.
    let (mut start, mut end) = (0, 0);
    let (mut offset, mut loaded) = (0u64, 0u64);
    while offset < size {
        if end - start < cutter.max && loaded < size {
            buffer.copy_within(start..end, 0);
            end -= start;
            start = 0;
            let left = usize::try_from(size - loaded).unwrap_or(usize::MAX);
            let free = buffer.get_mut(end..).unwrap_or_default();
            let take = left.min(free.len());
            let free = free.get_mut(..take).unwrap_or_default();
            fill(source, loaded, size, free)?;
            hasher.update(free);
            end += take;
            loaded += take as u64;
        }
        let window = buffer.get(start..end).unwrap_or_default();
        let chunk = cutter.cut(window);
        let len = chunk.len() as u64;
        let source = if is_zeros(chunk) {
            builder.hole(len)?;
            PieceSource::Hole
        } else {
            let id = keys.chunk_id(chunk);
            let len = u32::try_from(len).map_err(|_| ManifestError::Size { size: len })?;
            builder.chunk(id, len)?;
            PieceSource::Chunk(id)
        };
        on_piece(
            &Piece {
                offset,
                len,
                source,
            },
            chunk,
        );
        start += chunk.len();
        offset += len;
    }
    Ok((hasher.finish(), builder.finish()?))
}

/// FastCDC with tables made once.
struct Cutter {
    min: usize,
    avg: usize,
    max: usize,
    masks: (u64, u64),
    gear: std::borrow::Cow<'static, [u64]>,
    gear_ls: std::borrow::Cow<'static, [u64]>,
}

impl Cutter {
    fn new(params: ChunkParams) -> Self {
        let level = match params.normalisation {
            0 => v2020::Normalization::Level0,
            1 => v2020::Normalization::Level1,
            2 => v2020::Normalization::Level2,
            _ => v2020::Normalization::Level3,
        };
        let avg = params.avg as usize;
        // The library's masks reach from 64 bytes to 4 MiB, levels included.
        let masks = v2020::select_masks(avg.clamp(512, 2 * 1024 * 1024), level);
        let (gear, gear_ls) = v2020::get_gear_with_seed(params.seed);
        Self {
            min: params.min as usize,
            avg,
            max: params.max as usize,
            masks,
            gear,
            gear_ls,
        }
    }

    /// The first chunk of a window that holds `max` bytes or all that is left.
    fn cut<'w>(&self, window: &'w [u8]) -> &'w [u8] {
        let (short, long) = self.masks;
        let (_, len) = v2020::cut_gear(
            window,
            self.min,
            self.avg,
            self.max,
            short,
            long,
            short << 1,
            long << 1,
            &self.gear,
            &self.gear_ls,
        );
        window.get(..len).unwrap_or(window)
    }
}

fn is_zeros(bytes: &[u8]) -> bool {
    // Most data fails at the first byte; zeros are compared in wide steps.
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks.iter().all(|block| *block == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

/// Reads exactly `buf` at `offset` of a content of `size` bytes.
fn fill(source: &mut dyn Source, offset: u64, size: u64, buf: &mut [u8]) -> Result<(), ScanError> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match read(source, offset + done as u64, rest)? {
            0 => {
                return Err(ScanError::Resized {
                    expected: size,
                    relation: Relation::Shorter,
                });
            }
            count => done += count,
        }
    }
    Ok(())
}

fn read(source: &mut dyn Source, offset: u64, buf: &mut [u8]) -> Result<usize, ScanError> {
    loop {
        match source.read_at(offset, buf) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(count) if count <= buf.len() => return Ok(count),
            Ok(_) => {
                let source = io::Error::other("more bytes than asked for");
                return Err(ScanError::Read { offset, source });
            }
            Err(source) => return Err(ScanError::Read { offset, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use pacsync_protocol::content::Walk;
    use pacsync_protocol::crypto::Key;
    use proptest::prelude::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    use super::*;

    fn keys() -> IdKeys {
        IdKeys::derive(&Key::from_bytes([5; 32]))
    }

    /// Cuts so fine that small contents have many chunks.
    fn fine() -> ChunkParams {
        ChunkParams {
            min: 256,
            avg: 1024,
            max: 4096,
            normalisation: 1,
            seed: 99,
        }
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        ChaCha20Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
        bytes
    }

    /// Gives a few bytes at a time, and is interrupted now and then.
    struct Ragged<'c> {
        content: &'c [u8],
        rng: ChaCha20Rng,
        longest: u32,
    }

    impl Source for Ragged<'_> {
        fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
            if self.rng.next_u32().is_multiple_of(7) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let most = 1 + (self.rng.next_u32() % self.longest) as usize;
            let most = most.min(buf.len());
            self.content.read_at(offset, &mut buf[..most])
        }
    }

    fn scan(content: &[u8], params: ChunkParams) -> Scanned {
        let mut source = content;
        scan_chunks(
            &mut source,
            content.len() as u64,
            &keys(),
            params,
            &mut |_, _| {},
        )
        .expect("a slice can be scanned")
    }

    fn tree(scanned: &Scanned) -> &ManifestTree {
        scanned.manifest.as_ref().expect("a big content")
    }

    fn pieces(scanned: &Scanned) -> Vec<Piece> {
        let (keys, tree) = (keys(), tree(scanned));
        let lookup = |id: &_| tree.object(id).map(<[u8]>::to_vec);
        Walk::new(&keys, &tree.top.id, &tree.top.bytes, lookup)
            .expect("a valid top")
            .collect::<Result<_, _>>()
            .expect("a whole tree")
    }

    fn sources(scanned: &Scanned) -> BTreeSet<[u8; 32]> {
        let chunk = |piece: Piece| match piece.source {
            PieceSource::Chunk(id) => Some(*id.as_bytes()),
            PieceSource::Hole => None,
        };
        pieces(scanned).into_iter().filter_map(chunk).collect()
    }

    /// What the pieces must be: the library's own iterator over the whole content at once.
    fn model(content: &[u8], params: ChunkParams) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        let (min, avg, max) = (
            params.min as usize,
            params.avg as usize,
            params.max as usize,
        );
        let level = v2020::Normalization::Level1;
        for cut in v2020::FastCDC::with_level_and_seed(content, min, avg, max, level, params.seed) {
            let bytes = &content[cut.offset..cut.offset + cut.length];
            let (offset, len) = (cut.offset as u64, cut.length as u64);
            if bytes.iter().any(|byte| *byte != 0) {
                let source = PieceSource::Chunk(keys().chunk_id(bytes));
                pieces.push(Piece {
                    offset,
                    len,
                    source,
                });
            } else if let Some(last) = pieces
                .last_mut()
                .filter(|last| last.source == PieceSource::Hole)
            {
                last.len += len;
            } else {
                pieces.push(Piece {
                    offset,
                    len,
                    source: PieceSource::Hole,
                });
            }
        }
        pieces
    }

    #[test]
    fn a_small_content_is_not_cut() {
        for len in [0, 1, SMALL_MAX as usize] {
            let content = noise(1, len);
            let scanned = scan(&content, ChunkParams::standard(&keys()));
            assert!(scanned.is_small());
            assert_eq!(scanned.content_id, keys().content_id(&content));
        }
        assert!(!scan(&noise(1, SMALL_MAX as usize + 1), fine()).is_small());
    }

    #[test]
    fn another_size_than_expected_is_an_error() {
        for len in [10, 200_000] {
            let content = noise(1, len);
            for (size, relation) in [(len - 1, Relation::Longer), (len + 1, Relation::Shorter)] {
                let error = scan_content(&mut content.as_slice(), size as u64, &keys());
                assert!(
                    matches!(error, Err(ScanError::Resized { relation: found, .. }) if found == relation)
                );
            }
        }
    }

    #[test]
    fn zeros_are_one_hole() {
        let scanned = scan(&vec![0; 5_000_001], ChunkParams::standard(&keys()));
        let hole = Piece {
            offset: 0,
            len: 5_000_001,
            source: PieceSource::Hole,
        };
        assert_eq!(pieces(&scanned), [hole]);
    }

    #[test]
    fn an_inserted_or_appended_byte_changes_few_chunks_and_manifests() {
        let content = noise(2, 6_000_000);
        let before = scan(&content, fine());
        let objects = |scanned: &Scanned| -> BTreeSet<_> {
            tree(scanned).objects().map(|object| object.id).collect()
        };
        assert!(objects(&before).len() > 8, "several leaves");
        for at in [0, 1, 70_001, 3_000_000, 5_999_999, 6_000_000] {
            let mut edited = content.clone();
            edited.insert(at, 7);
            let after = scan(&edited, fine());
            let chunks = sources(&after).difference(&sources(&before)).count();
            assert!((1..=4).contains(&chunks), "{chunks} new chunks at {at}");
            let manifests = objects(&after).difference(&objects(&before)).count();
            assert!(manifests <= 4, "{manifests} new manifests at {at}");
        }
    }

    #[test]
    fn standard_boundaries_never_change() {
        // A change here makes every device send big files anew once they are touched.
        let scanned = scan(&noise(3, 3_000_000), ChunkParams::standard(&keys()));
        let lengths: Vec<u64> = pieces(&scanned).iter().map(|piece| piece.len).collect();
        assert_eq!(lengths, LENGTHS);
        assert_eq!(tree(&scanned).top.id.to_string(), TOP);
    }

    const LENGTHS: [u64; 20] = [
        178299, 166278, 48040, 165252, 63174, 142741, 44058, 268162, 208929, 142454, 134129,
        193315, 150846, 146094, 158565, 211101, 178343, 166989, 190021, 43210,
    ];
    const TOP: &str = "paokuhbtqjkzz5zxfvh5ykn7gp32nfrx2hugkjuecrpnbnybhomq";

    fn contents() -> impl Strategy<Value = Vec<u8>> {
        // Runs of noise, zeros and a repeated pattern, so that every kind of piece occurs.
        let run = (any::<u64>(), 0..3u8, 1..90_000usize).prop_map(|(seed, kind, len)| match kind {
            0 => vec![0; len],
            1 => vec![seed as u8; len],
            _ => noise(seed, len),
        });
        proptest::collection::vec(run, 3..8).prop_map(|runs| runs.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn read_sizes_do_not_matter_and_the_pieces_are_the_content(
            content in contents(), seed in any::<u64>(), longest in 1000..3_000_000u32,
        ) {
            let rng = ChaCha20Rng::seed_from_u64(seed);
            let mut ragged = Ragged { content: &content, rng, longest };
            let mut joined = Vec::new();
            let mut on_piece = |piece: &Piece, bytes: &[u8]| {
                assert_eq!(piece.offset, joined.len() as u64);
                assert_eq!(piece.len, bytes.len() as u64);
                joined.extend_from_slice(bytes);
            };
            let size = content.len() as u64;
            let scanned = scan_chunks(&mut ragged, size, &keys(), fine(), &mut on_piece)
                .expect("scans");
            prop_assert_eq!(&scanned, &scan(&content, fine()));
            prop_assert_eq!(scanned.content_id, keys().content_id(&content));
            if !scanned.is_small() {
                prop_assert_eq!(&joined, &content);
                prop_assert_eq!(pieces(&scanned), model(&content, fine()));
            }
        }
    }

    #[test]
    fn a_content_beyond_the_buffer_is_cut_as_in_one_piece() {
        let mut content = noise(4, 9_000_000);
        content[3_000_000..6_000_000].fill(0);
        let params = ChunkParams::standard(&keys());
        assert_eq!(pieces(&scan(&content, params)), model(&content, params));
    }

    #[test]
    #[ignore = "a measurement, run by hand with --release"]
    #[allow(clippy::print_stderr)]
    fn bench_scan() {
        let content = noise(1, 256 << 20);
        for _ in 0..3 {
            let start = std::time::Instant::now();
            let scanned = scan(&content, ChunkParams::standard(&keys()));
            let seconds = start.elapsed().as_secs_f64();
            let chunks = pieces(&scanned).len();
            eprintln!(
                "{:.0} MB/s, {chunks} chunks",
                content.len() as f64 / 1e6 / seconds
            );
        }
    }
}
