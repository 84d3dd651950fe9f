//! Reading packs from front to back: at start, and to rebuild an index.

use std::collections::VecDeque;
use std::io;

use pacsync_protocol::SpaceId;
use pacsync_protocol::content::ObjectId;

use super::files::PackFiles;
use super::record::{self, HEADER_LEN, Header, MAGIC};
use super::{PackError, PackRef};

/// Bytes read at a time.
const WINDOW: usize = 1024 * 1024;
/// Places that look like a record and are checked when one is sought behind damage;
/// bounds the hashing that hostile content can cause.
const CANDIDATES_MAX: u32 = 1024;

/// What a record holds and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackEntry {
    /// Where.
    pub at: PackRef,
    /// The space whose keys name it.
    pub space: SpaceId,
    /// Its name.
    pub id: ObjectId,
    /// Its length in bytes when read.
    pub size: u32,
}

pub(super) enum Step {
    Record(PackEntry),
    /// No intact record is here.
    Bad,
    End,
}

/// Whether intact records follow damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behind {
    Record(u64),
    Nothing,
    /// There were too many places to look at.
    Unknown,
}

/// Reads one pack through a window.
pub(super) struct Walker<'f> {
    files: &'f dyn PackFiles,
    pack: u32,
    len: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl<'f> Walker<'f> {
    pub(super) fn new(files: &'f dyn PackFiles, pack: u32, len: u64) -> Self {
        Self {
            files,
            pack,
            len,
            window: Vec::new(),
            window_at: 0,
        }
    }

    /// Looks at the record at `offset`.
    pub(super) fn step(&mut self, offset: u64) -> Result<Step, PackError> {
        if offset >= self.len {
            return Ok(Step::End);
        }
        let Some(header) = self.bytes(offset, HEADER_LEN)?.and_then(Header::parse) else {
            return Ok(Step::Bad);
        };
        let len = header.record_len();
        let pack = self.pack;
        match self.bytes(offset, len)? {
            Some(record) if header.is_intact(record) => {
                let [len, size] = [len, header.size].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
                let at = PackRef { pack, offset, len };
                Ok(Step::Record(PackEntry {
                    at,
                    space: header.space,
                    id: header.id,
                    size,
                }))
            }
            _ => Ok(Step::Bad),
        }
    }

    /// The version of a record at `offset` that was written by a later pacsync.
    pub(super) fn foreign_version(&mut self, offset: u64) -> Result<Option<u8>, PackError> {
        Ok(match self.bytes(offset, MAGIC.len() + 1)? {
            Some(four) if four.starts_with(&MAGIC) && !record::begins(four) => four
                .last()
                .filter(|version| version.is_ascii_digit())
                .map(|version| version - b'0'),
            _ => None,
        })
    }

    /// Seeks an intact record behind the damage at `offset`.
    pub(super) fn behind(&mut self, offset: u64) -> Result<Behind, PackError> {
        let mut at = offset + 1;
        for _ in 0..CANDIDATES_MAX {
            let Some(found) = self.magic(at)? else {
                return Ok(Behind::Nothing);
            };
            if matches!(self.step(found)?, Step::Record(_)) {
                return Ok(Behind::Record(found));
            }
            at = found + 1;
        }
        Ok(Behind::Unknown)
    }

    /// The next place from `at` on where a header could begin.
    fn magic(&mut self, mut at: u64) -> Result<Option<u64>, PackError> {
        loop {
            let left = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX);
            if left < HEADER_LEN {
                return Ok(None);
            }
            let Some(bytes) = self.bytes(at, left.min(WINDOW))? else {
                return Ok(None);
            };
            if let Some(found) = bytes.windows(4).position(record::begins) {
                return Ok(Some(at + found as u64));
            }
            at += (bytes.len() - MAGIC.len()) as u64;
        }
    }

    /// `len` bytes at `offset`, or `None` if the pack ends before.
    fn bytes(&mut self, offset: u64, len: usize) -> Result<Option<&[u8]>, PackError> {
        let Some(end) = offset
            .checked_add(len as u64)
            .filter(|end| *end <= self.len)
        else {
            return Ok(None);
        };
        if offset < self.window_at || end > self.window_at + self.window.len() as u64 {
            let rest = usize::try_from(self.len - offset).unwrap_or(usize::MAX);
            self.window.resize(len.max(WINDOW.min(rest)), 0);
            let read = read_up_to(self.files, self.pack, offset, &mut self.window)?;
            self.window.truncate(read);
            self.window_at = offset;
        }
        let start = usize::try_from(offset - self.window_at).unwrap_or(usize::MAX);
        Ok(self.window.get(start..).and_then(|rest| rest.get(..len)))
    }
}

/// Fills `buf` as far as the pack reaches; the number of bytes read.
pub(super) fn read_up_to(
    files: &dyn PackFiles,
    pack: u32,
    offset: u64,
    buf: &mut [u8],
) -> Result<usize, PackError> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match files.read_at(pack, offset + done as u64, rest) {
            Ok(0) => break,
            Ok(count) => done += count.min(rest.len()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(PackError::Io {
                    doing: "read",
                    pack,
                    source,
                });
            }
        }
    }
    Ok(done)
}

/// Iterates records in the order of their writing. Damage is an `Err`, after which it
/// goes on with the next intact record.
pub struct Records<'f> {
    files: &'f dyn PackFiles,
    packs: VecDeque<(u32, u64)>,
    current: Option<Walker<'f>>,
    offset: u64,
}

impl std::fmt::Debug for Records<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records")
            .field("packs", &self.packs)
            .finish_non_exhaustive()
    }
}

impl<'f> Records<'f> {
    /// Packs with the lengths to trust; the first one from `offset` on.
    pub(super) fn new(files: &'f dyn PackFiles, packs: VecDeque<(u32, u64)>, offset: u64) -> Self {
        let mut records = Self {
            files,
            packs,
            current: None,
            offset: 0,
        };
        records.next_pack();
        records.offset = offset;
        records
    }

    fn next_pack(&mut self) {
        let files = self.files;
        self.current = self
            .packs
            .pop_front()
            .map(|(pack, len)| Walker::new(files, pack, len));
        self.offset = 0;
    }

    fn advance(&mut self) -> Result<Option<PackEntry>, PackError> {
        while let Some(walker) = &mut self.current {
            let offset = self.offset;
            match walker.step(offset)? {
                Step::End => self.next_pack(),
                Step::Record(entry) => {
                    self.offset += u64::from(entry.at.len);
                    return Ok(Some(entry));
                }
                Step::Bad => {
                    let pack = walker.pack;
                    match walker.behind(offset)? {
                        Behind::Record(at) => self.offset = at,
                        Behind::Nothing | Behind::Unknown => self.next_pack(),
                    }
                    return Err(PackError::Corrupt { pack, offset });
                }
            }
        }
        Ok(None)
    }
}

impl Iterator for Records<'_> {
    type Item = Result<PackEntry, PackError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.advance();
        if matches!(step, Err(PackError::Io { .. })) {
            // A medium that fails once may fail for ever: no endless errors.
            self.next_pack();
        }
        step.transpose()
    }
}
