//! Packs: append-only files of objects that no worktree file holds, such as history
//! and the losers of concurrent edits.
//!
//! A put writes, a sync makes durable; whoever keeps an index commits its rows only
//! after the sync. Plain, because plain files lie beside them on any device that has a
//! worktree; the file modes are what protects both.
//!
//! Never here: the index from ids to places, and the decision of what to keep.

mod files;
mod memory;
mod record;
mod versions;
mod walk;

use std::io;

use pacsync_protocol::SpaceId;
use pacsync_protocol::content::{IdKeys, ObjectId};

pub use files::{DiskFiles, PackFiles};
pub use memory::{MemoryFiles, Operation};
pub use record::OBJECT_MAX;
pub use versions::FindObject;
pub use walk::{PackEntry, Records};

use record::{HEADER_LEN, Header};
use walk::{Behind, Step, Walker, read_up_to};

/// A pack that has this many bytes is followed by the next one.
pub const PACK_MAX: u64 = 256 * 1024 * 1024;
/// zstd level: the fastest that still halves text.
const ZSTD_LEVEL: i32 = 1;

/// Why a pack operation failed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The medium failed. `StorageFull` in `source` means that the disk is full.
    #[error("cannot {doing} pack {pack}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which pack; 0 for the directory.
        pack: u32,
        /// The medium's reason.
        source: io::Error,
    },
    /// No intact object of the expected id is there.
    #[error("pack {pack} is damaged at byte {offset}")]
    Corrupt {
        /// Which pack.
        pack: u32,
        /// Where.
        offset: u64,
    },
    /// What the object is a delta against cannot be read.
    #[error("the version {base} that it rests on cannot be read: {why}")]
    Base {
        /// The one at fault.
        base: ObjectId,
        /// What is wrong with it.
        why: Box<PackError>,
    },
    /// The index knows no place of it.
    #[error("no pack is known to hold {object}")]
    Missing {
        /// What was sought.
        object: ObjectId,
    },
    /// A later version of pacsync wrote the record.
    #[error("pack {pack} has a record of version {found} at byte {offset}: an update is needed")]
    Version {
        /// Which pack.
        pack: u32,
        /// Where.
        offset: u64,
        /// The version found.
        found: u8,
    },
    /// The object is longer than [`OBJECT_MAX`].
    #[error("an object of {len} bytes does not fit in a pack")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
    },
    /// An earlier put of this batch was lost; nothing of the batch may be indexed.
    #[error("earlier writes to the packs were lost")]
    BatchLost,
    /// There is no further pack number.
    #[error("too many packs")]
    Full,
}

impl PackError {
    /// Says whether the disk, or the user's share of it, is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Where an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackRef {
    /// Number of the pack.
    pub pack: u32,
    /// First byte of the record.
    pub offset: u64,
    /// Bytes of the record, header included; not the object's length.
    pub len: u32,
}

/// A place up to which packs are whole, in the order of writing. The default comes
/// before everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PackEnd {
    /// Number of the pack; 0 if there is none.
    pub pack: u32,
    /// End of its last record.
    pub offset: u64,
}

/// What opening found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenReport {
    /// Bytes of a torn write that were cut off.
    pub torn: u64,
    /// The last pack has damage before intact records. It is left as it is, and a new one
    /// is begun; [`PackStore::records`] skips the damage. If nothing that the index names is
    /// hit, it was a batch that a crash cut up before its sync.
    pub damaged: bool,
    /// There are fewer bytes than the index relies on: objects are missing.
    pub missing: bool,
}

/// The packs of one device.
pub struct PackStore {
    files: Box<dyn PackFiles>,
    compressor: zstd::bulk::Compressor<'static>,
    /// The record being written; kept to save allocations.
    record: Vec<u8>,
    pack_max: u64,
    /// Where the next record goes. Pack 0, or one that is sealed, is never written.
    end: PackEnd,
    sealed: bool,
    /// Start of what this process wrote to the last pack and no sync made durable.
    synced: u64,
    /// Set if an earlier process perhaps left bytes that are not durable: what is from here
    /// to `synced` is written anew before the next sync, since a sync that failed back
    /// then may have dropped them for good, though reads show them.
    inherited: Option<u64>,
    /// Bytes may lie behind `end`.
    ragged: bool,
    /// A pack may lack its directory entry after a crash.
    dir_unsynced: bool,
    /// A sync between two packs failed, which the batch's own sync has to report.
    lost: bool,
    recent: versions::Recent,
}

impl std::fmt::Debug for PackStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackStore")
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl PackStore {
    /// Opens packs. `known` is what the last [`PackStore::sync`] returned that the index has
    /// committed; without it the whole last pack is read to find its end, and records that an
    /// earlier process wrote but failed to sync can't be told from durable ones.
    ///
    /// # Errors
    /// [`PackError::Io`], [`PackError::Version`].
    pub fn open(
        files: Box<dyn PackFiles>,
        known: Option<PackEnd>,
    ) -> Result<(Self, OpenReport), PackError> {
        let io = |source| PackError::Io {
            doing: "list",
            pack: 0,
            source,
        };
        let packs = files.list().map_err(io)?;
        let (pack, len) = packs.last().copied().unwrap_or_default();
        let mut report = OpenReport::default();
        let index_kept = known.is_some();
        let known = known.unwrap_or_default();
        report.missing = known > PackEnd { pack, offset: len };
        let from = if known.pack == pack && known.offset <= len {
            known.offset
        } else {
            0
        };
        let mut walker = Walker::new(&*files, pack, len);
        let mut offset = from;
        while let Step::Record(entry) = walker.step(offset)? {
            offset += u64::from(entry.at.len);
        }
        if offset < len {
            if let Some(found) = walker.foreign_version(offset)? {
                return Err(PackError::Version {
                    pack,
                    offset,
                    found,
                });
            }
            // Behind a known end nothing was acknowledged, so there whatever follows
            // damage may go. Else damage may be old, and what is behind it of use.
            report.damaged = from == 0 && walker.behind(offset)? != Behind::Nothing;
        }
        let compressor =
            zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(|source| PackError::Io {
                doing: "prepare",
                pack: 0,
                source,
            })?;
        // Places that an index may still name are not used a second time.
        let sealed = report.damaged || report.missing;
        let end = match () {
            () if known.pack > pack => PackEnd {
                pack: known.pack,
                offset: 0,
            },
            () if sealed => PackEnd { pack, offset: len },
            () => PackEnd { pack, offset },
        };
        // What no index names can be written anew without risk; the rest stays untouched.
        let rewritable = if index_kept && !report.missing {
            from
        } else {
            end.offset
        };
        let mut store = Self {
            files,
            compressor,
            record: Vec::new(),
            pack_max: PACK_MAX,
            end,
            sealed,
            synced: end.offset,
            inherited: (from < offset && end.pack == pack).then_some(rewritable),
            ragged: false,
            dir_unsynced: pack > 0,
            lost: false,
            recent: versions::Recent::default(),
        };
        if !sealed && offset < len {
            report.torn = len - offset;
            store.ragged = true;
            // A disk that can't be written now is no reason not to read.
            let _ = store.trim();
        }
        Ok((store, report))
    }

    /// Begins new packs at another length than [`PACK_MAX`], in bytes.
    pub fn set_pack_max(&mut self, bytes: u64) {
        self.pack_max = bytes;
    }

    /// Appends an object of at most [`OBJECT_MAX`] bytes, whose id the caller answers for.
    /// The place is good to be indexed only after the next successful [`PackStore::sync`].
    ///
    /// # Errors
    /// [`PackError::TooLarge`]; [`PackError::Io`], after which earlier puts of the batch still
    /// count and later ones may be tried; [`PackError::BatchLost`] until the next sync.
    pub fn put(
        &mut self,
        space: &SpaceId,
        id: &ObjectId,
        object: &[u8],
    ) -> Result<PackRef, PackError> {
        if object.len() > OBJECT_MAX {
            return Err(PackError::TooLarge { len: object.len() });
        }
        self.begin_record()?;
        record::write(&mut self.record, &mut self.compressor, space, id, object);
        self.append_record()
    }

    fn begin_record(&self) -> Result<(), PackError> {
        if self.lost {
            return Err(PackError::BatchLost);
        }
        Ok(())
    }

    fn append_record(&mut self) -> Result<PackRef, PackError> {
        let len = self.record.len() as u64;
        let full = self.end.offset > 0 && self.end.offset.saturating_add(len) > self.pack_max;
        if self.end.pack == 0 || self.sealed || full {
            self.begin_pack()?;
        }
        self.trim()?;
        let PackEnd { pack, offset } = self.end;
        if let Err(source) = self.files.write_at(pack, offset, &self.record) {
            self.ragged = true;
            // If this fails too, the next put tries again.
            let _ = self.trim();
            return Err(PackError::Io {
                doing: "append to",
                pack,
                source,
            });
        }
        self.end.offset += len;
        Ok(PackRef {
            pack,
            offset,
            len: u32::try_from(len).unwrap_or(u32::MAX),
        })
    }

    /// Makes every put so far durable: one fdatasync for the batch. Returns what
    /// [`PackStore::open`] wants to know next time; commit it with the batch's index rows.
    ///
    /// # Errors
    /// [`PackError::Io`], [`PackError::BatchLost`]: no place returned since the last success may
    /// be used; the store itself goes on.
    pub fn sync(&mut self) -> Result<PackEnd, PackError> {
        if std::mem::take(&mut self.lost) {
            return Err(PackError::BatchLost);
        }
        self.sync_pack()?;
        if self.dir_unsynced {
            let pack = self.end.pack;
            self.files.sync_dir().map_err(|source| PackError::Io {
                doing: "sync the directory of",
                pack,
                source,
            })?;
            self.dir_unsynced = false;
        }
        Ok(self.end)
    }

    /// Reads an object that rests on no other and checks it against its id.
    ///
    /// # Errors
    /// [`PackError::Corrupt`] if it is not there or not what it was; [`PackError::Io`].
    pub fn get(&self, at: &PackRef, id: &ObjectId, keys: &IdKeys) -> Result<Vec<u8>, PackError> {
        let record = self.bytes_at(at)?;
        Header::parse(&record)
            .filter(|header| header.id == *id)
            .and_then(|header| header.object(record))
            .filter(|object| keys.names(id, object))
            .ok_or(PackError::Corrupt {
                pack: at.pack,
                offset: at.offset,
            })
    }

    /// The bytes of a record, fewer if the pack ends before.
    fn bytes_at(&self, at: &PackRef) -> Result<Vec<u8>, PackError> {
        let len = at.len as usize;
        if !(HEADER_LEN..=HEADER_LEN + OBJECT_MAX).contains(&len) {
            return Err(PackError::Corrupt {
                pack: at.pack,
                offset: at.offset,
            });
        }
        let mut record = vec![0; len];
        let read = read_up_to(&*self.files, at.pack, at.offset, &mut record)?;
        record.truncate(read);
        Ok(record)
    }

    /// Every record from `from` on, in the order of writing: with the default everything, to
    /// rebuild an index; with what the index knows, what it missed. Sync before indexing.
    ///
    /// # Errors
    /// [`PackError::Io`] if the packs can't be listed.
    pub fn records(&self, from: PackEnd) -> Result<Records<'_>, PackError> {
        let mut packs = self.list()?;
        packs.retain(|(pack, _)| (from.pack..=self.end.pack).contains(pack));
        if let Some((_, len)) = packs.last_mut().filter(|(pack, _)| *pack == self.end.pack) {
            *len = self.end.offset.min(*len);
        }
        let first = packs.first().is_some_and(|(pack, _)| *pack == from.pack);
        Ok(Records::new(
            &*self.files,
            packs.into(),
            if first { from.offset } else { 0 },
        ))
    }

    /// Every record of one pack from `offset` on, in the order of writing; damage is passed over as
    /// by [`PackStore::records`].
    ///
    /// # Errors
    /// [`PackError::Io`] if the packs can't be listed.
    pub fn records_of(&self, pack: u32, offset: u64) -> Result<Records<'_>, PackError> {
        let mut packs = self.list()?;
        packs.retain(|(number, _)| *number == pack);
        if let Some((_, len)) = packs.last_mut().filter(|_| pack == self.end.pack) {
            *len = self.end.offset.min(*len);
        }
        Ok(Records::new(&*self.files, packs.into(), offset))
    }

    /// Numbers and lengths in bytes of all packs, in order of number.
    ///
    /// # Errors
    /// [`PackError::Io`].
    pub fn list(&self) -> Result<Vec<(u32, u64)>, PackError> {
        self.files.list().map_err(|source| PackError::Io {
            doing: "list",
            pack: 0,
            source,
        })
    }

    /// Size in bytes of the medium that the packs are on.
    ///
    /// # Errors
    /// [`PackError::Io`].
    pub fn medium_size(&self) -> Result<u64, PackError> {
        self.files.medium_size().map_err(|source| PackError::Io {
            doing: "find the disk of",
            pack: 0,
            source,
        })
    }

    /// Up to where packs are written, whether or not that is synced yet.
    pub fn end(&self) -> PackEnd {
        self.end
    }

    /// What is at a place, without a look at its body.
    ///
    /// # Errors
    /// [`PackError::Corrupt`] if no record of that length is there; [`PackError::Io`].
    pub fn entry(&self, at: &PackRef) -> Result<PackEntry, PackError> {
        let mut head = [0; HEADER_LEN];
        read_up_to(&*self.files, at.pack, at.offset, &mut head)?;
        let header = Header::parse(&head).filter(|h| h.record_len() == at.len as usize);
        let header = header.ok_or(PackError::Corrupt {
            pack: at.pack,
            offset: at.offset,
        })?;
        Ok(PackEntry {
            at: *at,
            space: header.space,
            id: header.id,
            size: u32::try_from(header.size).unwrap_or(u32::MAX),
        })
    }

    /// Appends a record once more, byte for byte. As with [`PackStore::put`] the new place is good
    /// after the next sync.
    ///
    /// # Errors
    /// As [`PackStore::put`]; [`PackError::Corrupt`] if it is damaged.
    pub fn copy(&mut self, at: &PackRef) -> Result<PackRef, PackError> {
        self.begin_record()?;
        let record = self.bytes_at(at)?;
        let intact = Header::parse(&record)
            .is_some_and(|h| h.record_len() == record.len() && h.is_intact(&record));
        if !intact {
            return Err(PackError::Corrupt {
                pack: at.pack,
                offset: at.offset,
            });
        }
        self.record = record;
        self.append_record()
    }

    /// Lets the next put begin a new pack, so that the last one may be removed.
    pub fn seal(&mut self) {
        if self.trim().is_ok() {
            self.sealed = true;
        }
    }

    /// Removes a pack of which nothing is indexed any more, by what is *durably* committed. The
    /// last pack stays, so that no place is used twice.
    ///
    /// # Errors
    /// [`PackError::Io`].
    pub fn remove(&mut self, pack: u32) -> Result<(), PackError> {
        if pack == self.end.pack {
            return Ok(());
        }
        self.files.remove(pack).map_err(|source| PackError::Io {
            doing: "remove",
            pack,
            source,
        })
    }

    /// Bytes of all packs together.
    ///
    /// # Errors
    /// [`PackError::Io`].
    pub fn size(&self) -> Result<u64, PackError> {
        Ok(self.list()?.iter().map(|(_, len)| len).sum())
    }

    fn begin_pack(&mut self) -> Result<(), PackError> {
        // Only the last pack may have a torn end, so this one must be whole first.
        if !self.sealed {
            self.trim()?;
        }
        if let Err(error) = self.sync_pack() {
            self.lost = true;
            return Err(error);
        }
        let pack = self.end.pack.checked_add(1).ok_or(PackError::Full)?;
        self.files.create(pack).map_err(|source| PackError::Io {
            doing: "create",
            pack,
            source,
        })?;
        self.end = PackEnd { pack, offset: 0 };
        self.synced = 0;
        self.inherited = None;
        self.sealed = false;
        self.dir_unsynced = true;
        Ok(())
    }

    fn sync_pack(&mut self) -> Result<(), PackError> {
        let PackEnd { pack, offset } = self.end;
        if offset == self.synced && self.inherited.is_none() {
            return Ok(());
        }
        if let Some(from) = self.inherited {
            self.rewrite(from)?;
        }
        if let Err(source) = self.files.sync(pack) {
            // The kernel may have dropped the bytes and forgotten that it did, though reads still
            // show them: write them anew, and leave none for another process to trust.
            if offset > self.synced {
                self.end.offset = self.synced;
                self.ragged = true;
                let _ = self.trim();
            }
            return Err(PackError::Io {
                doing: "sync",
                pack,
                source,
            });
        }
        self.synced = offset;
        self.inherited = None;
        Ok(())
    }

    /// Writes what the last pack shows from `from` to `synced` over itself, so that
    /// the kernel syncs it once more.
    fn rewrite(&mut self, mut from: u64) -> Result<(), PackError> {
        let pack = self.end.pack;
        let mut bytes = vec![0; 1024 * 1024];
        while from < self.synced {
            let left = usize::try_from(self.synced - from).unwrap_or(usize::MAX);
            let part = bytes.get_mut(..left.min(1024 * 1024)).unwrap_or_default();
            let read = read_up_to(&*self.files, pack, from, part)?;
            let part = part.get(..read).filter(|part| !part.is_empty());
            let part = part.ok_or(PackError::Corrupt { pack, offset: from })?;
            self.files
                .write_at(pack, from, part)
                .map_err(|source| PackError::Io {
                    doing: "rewrite",
                    pack,
                    source,
                })?;
            from += read as u64;
        }
        Ok(())
    }

    /// Cuts off what lies behind the end.
    fn trim(&mut self) -> Result<(), PackError> {
        let PackEnd { pack, offset } = self.end;
        if self.ragged {
            self.files
                .truncate(pack, offset)
                .map_err(|source| PackError::Io {
                    doing: "truncate",
                    pack,
                    source,
                })?;
            self.ragged = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
