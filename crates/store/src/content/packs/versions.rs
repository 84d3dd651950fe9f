//! Versions of one text: each a delta against an older one, so that a thousand small edits take
//! little more than the edits.
//!
//! The chain is one of skips: version `n` rests on version `n` with its lowest set bit cleared. So
//! a version needs at most [`STEPS_MAX_LOG2`] others to be read, and damage to one of them hits
//! few. What has little in common with what came before begins a new chain.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pacsync_protocol::content::{IdKeys, ObjectId};
use pacsync_protocol::{ContentId, SpaceId};

use super::record::{self, Delta, Header, OBJECT_MAX};
use super::{PackError, PackRef, PackStore};

/// Base-2 logarithm of the length of a chain.
const STEPS_MAX_LOG2: u32 = 12;
/// zstd level of deltas.
const LEVEL: i32 = 3;
/// Window of deltas as a power of two: a content and the one before it, both of 1 MiB.
const WINDOW_LOG2: u32 = 22;
/// Bytes of versions that were read or written last and are kept in memory.
const RECENT_BYTES: usize = 2 << 20;

/// Where an object is, by its id: the index, which is not here.
pub type FindObject<'f> = &'f dyn Fn(&ObjectId) -> Option<PackRef>;

/// A version as it was read.
#[derive(Debug, Clone)]
struct Version {
    id: ContentId,
    /// Where it stands in its chain; 0 rests on nothing.
    step: u16,
    bytes: Arc<Vec<u8>>,
}

/// The versions that were used last. All of them had the content that their id names.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<VecDeque<(PackRef, Version)>>);

impl Recent {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(PackRef, Version)>> {
        // Whole at every point where a panic could poison the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, at: &PackRef, id: &ContentId) -> Option<Version> {
        let held = self.lock();
        let found = held.iter().find(|(place, v)| place == at && v.id == *id);
        found.map(|(_, version)| version.clone())
    }

    fn keep(&self, at: PackRef, version: &Version) {
        let mut held = self.lock();
        held.retain(|(place, _)| *place != at);
        held.push_front((at, version.clone()));
        let mut bytes = 0;
        held.retain(|(_, version)| {
            bytes += version.bytes.len();
            bytes <= RECENT_BYTES
        });
    }
}

impl PackStore {
    /// Appends a content, as a delta against the one that came before it where that is worth it.
    /// The caller answers for its id.
    ///
    /// # Errors
    /// As [`PackStore::put`]. That the one before cannot be read is none.
    pub fn put_version(
        &mut self,
        space: &SpaceId,
        id: &ContentId,
        object: &[u8],
        before: Option<&ContentId>,
        keys: &IdKeys,
        find: FindObject<'_>,
    ) -> Result<PackRef, PackError> {
        let base = before.and_then(|before| self.base_after(before, keys, find));
        let delta = base.and_then(|base| {
            let frame = compress(&base.bytes, object).ok()?;
            is_worth_it(&frame, object).then_some((base, frame))
        });
        let mut version = Version {
            id: *id,
            step: 0,
            bytes: Arc::new(object.to_vec()),
        };
        let at = match delta {
            Some((base, frame)) => {
                version.step = base.step_after;
                let delta = Delta {
                    base: base.id,
                    step: base.step_after,
                    frame: &frame,
                };
                self.begin_record()?;
                record::write_delta(&mut self.record, space, id, object.len(), &delta);
                self.append_record()?
            }
            None => self.put(space, &ObjectId::Content(*id), object)?,
        };
        self.recent.keep(at, &version);
        Ok(at)
    }

    /// Reads an object, a version or not, and checks it against its id.
    ///
    /// # Errors
    /// [`PackError::Corrupt`] if it is not there or not what it was; [`PackError::Base`] names the
    /// version that is at fault if it is one that this one rests on; [`PackError::Io`].
    pub fn get_version(
        &self,
        at: &PackRef,
        id: &ObjectId,
        keys: &IdKeys,
        find: FindObject<'_>,
    ) -> Result<Vec<u8>, PackError> {
        let ObjectId::Content(content) = id else {
            return self.get(at, id, keys);
        };
        let version = self.read_version(at, content, keys, find)?.0;
        Ok(Arc::unwrap_or_clone(version.bytes))
    }

    /// The content that a record rests on; `None` if it rests on nothing.
    ///
    /// # Errors
    /// [`PackError::Corrupt`] if it is damaged or another; [`PackError::Io`].
    pub fn rests_on(&self, at: &PackRef, id: &ContentId) -> Result<Option<ContentId>, PackError> {
        Ok(match self.read_record(at, id)? {
            Record::Whole(_) => None,
            Record::Delta { base, .. } => Some(base),
        })
    }

    /// What the version after `before` rests on.
    fn base_after(&self, before: &ContentId, keys: &IdKeys, find: FindObject<'_>) -> Option<Base> {
        let at = find(&ObjectId::Content(*before))?;
        let (last, below) = self.read_version(&at, before, keys, find).ok()?;
        let step_after = last.step.checked_add(1)?;
        if u32::from(step_after) >= 1 << STEPS_MAX_LOG2 {
            return None;
        }
        let wanted = step_after & (step_after - 1);
        let mut base = last;
        let mut below = below;
        // All that the last one rests on has it among it; mostly it was read for it just now.
        while base.step > wanted {
            let id = below?;
            let at = find(&ObjectId::Content(id))?;
            (base, below) = self.read_version(&at, &id, keys, find).ok()?;
        }
        Some(Base {
            id: base.id,
            bytes: base.bytes,
            step_after,
        })
    }

    /// A version and what it rests on directly.
    fn read_version(
        &self,
        at: &PackRef,
        id: &ContentId,
        keys: &IdKeys,
        find: FindObject<'_>,
    ) -> Result<(Version, Option<ContentId>), PackError> {
        // From the one asked for down to one that is known or rests on nothing.
        let mut open: Vec<(Unread, PackRef)> = vec![];
        let (mut at, mut id) = (*at, *id);
        let mut below = None;
        let mut version = loop {
            let fault = |why| blame(open.last().map(|(above, _)| above.id), id, why);
            if let Some(known) = self.recent.get(&at, &id)
                && (known.step == 0 || !open.is_empty())
            {
                break known;
            }
            match self.read_record(&at, &id).map_err(fault)? {
                Record::Whole(bytes) => {
                    let version = Version {
                        id,
                        step: 0,
                        bytes: Arc::new(bytes),
                    };
                    check(&version, &at, keys).map_err(fault)?;
                    self.recent.keep(at, &version);
                    break version;
                }
                Record::Delta { base, unread } => {
                    let falls = open
                        .last()
                        .is_none_or(|(above, _)| above.step > unread.step);
                    if !falls || open.len() > STEPS_MAX_LOG2 as usize {
                        return Err(fault(corrupt(&at)));
                    }
                    let place = find(&ObjectId::Content(base));
                    let missing = || {
                        let object = ObjectId::Content(base);
                        blame(Some(id), base, PackError::Missing { object })
                    };
                    let place = place.ok_or_else(missing)?;
                    below.get_or_insert(base);
                    open.push((unread, at));
                    (at, id) = (place, base);
                }
            }
        };
        while let Some((unread, at)) = open.pop() {
            let fault = |why| blame(open.last().map(|(above, _)| above.id), unread.id, why);
            if version.step >= unread.step {
                return Err(fault(corrupt(&at)));
            }
            let bytes = decompress(&version.bytes, &unread).ok_or_else(|| fault(corrupt(&at)))?;
            version = Version {
                id: unread.id,
                step: unread.step,
                bytes: Arc::new(bytes),
            };
            check(&version, &at, keys).map_err(fault)?;
            self.recent.keep(at, &version);
        }
        Ok((version, below))
    }

    fn read_record(&self, at: &PackRef, id: &ContentId) -> Result<Record, PackError> {
        let record = self.bytes_at(at)?;
        let header = Header::parse(&record)
            .filter(|header| header.id == ObjectId::Content(*id) && header.is_intact(&record))
            .ok_or_else(|| corrupt(at))?;
        if let Some(delta) = header.delta(&record) {
            let unread = Unread {
                id: *id,
                step: delta.step,
                size: header.size,
                frame: delta.frame.to_vec(),
            };
            let base = delta.base;
            return Ok(Record::Delta { base, unread });
        }
        let bytes = header.object(record).ok_or_else(|| corrupt(at))?;
        Ok(Record::Whole(bytes))
    }
}

/// What a further version rests on.
struct Base {
    id: ContentId,
    bytes: Arc<Vec<u8>>,
    step_after: u16,
}

enum Record {
    Whole(Vec<u8>),
    Delta { base: ContentId, unread: Unread },
}

/// A delta that waits for what it rests on.
struct Unread {
    id: ContentId,
    step: u16,
    size: usize,
    frame: Vec<u8>,
}

fn corrupt(at: &PackRef) -> PackError {
    PackError::Corrupt {
        pack: at.pack,
        offset: at.offset,
    }
}

/// An error of the version asked for is told as it is; of one below with its name.
fn blame(above: Option<ContentId>, base: ContentId, why: PackError) -> PackError {
    match above {
        None => why,
        Some(_) => PackError::Base {
            base: ObjectId::Content(base),
            why: Box::new(why),
        },
    }
}

fn check(version: &Version, at: &PackRef, keys: &IdKeys) -> Result<(), PackError> {
    if keys.names(&ObjectId::Content(version.id), &version.bytes) {
        Ok(())
    } else {
        Err(corrupt(at))
    }
}

/// A delta must be small, or at least much smaller than the content by itself.
fn is_worth_it(frame: &[u8], object: &[u8]) -> bool {
    record::delta_fits(frame.len(), object.len())
        && (frame.len() <= object.len() / 16
            || zstd::bulk::compress(object, LEVEL).is_ok_and(|whole| frame.len() < whole.len() / 2))
}

fn compress(base: &[u8], object: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(vec![], LEVEL, base)?;
    encoder.long_distance_matching(true)?;
    encoder.window_log(WINDOW_LOG2)?;
    encoder.set_pledged_src_size(Some(object.len() as u64))?;
    encoder.write_all(object)?;
    encoder.finish()
}

fn decompress(base: &[u8], delta: &Unread) -> Option<Vec<u8>> {
    let mut decoder = zstd::stream::read::Decoder::with_ref_prefix(&*delta.frame, base).ok()?;
    decoder.window_log_max(WINDOW_LOG2 + 1).ok()?;
    let mut bytes = Vec::with_capacity(delta.size.min(OBJECT_MAX));
    let one_more = delta.size as u64 + 1;
    decoder.take(one_more).read_to_end(&mut bytes).ok()?;
    (bytes.len() == delta.size).then_some(bytes)
}

#[cfg(test)]
mod tests;
