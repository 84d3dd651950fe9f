//! Automerge documents: small, loaded when needed, fed by strangers.
//!
//! Never here: files. The gate accepts one plain change at a time, applies it on a copy and
//! catches panics of the library; what fails is quarantined by the caller.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::transaction::Transactable;
use automerge::{ActorId, Automerge, Change, ReadDoc, ScalarValue, Value};
use pacsync_protocol::crypto::{self, Entropy, domain};
use pacsync_protocol::segment::CHANGE_MAX;
use pacsync_protocol::{DeviceId, SpaceId};

/// Names a document within its space.
pub type DocumentId = [u8; 16];

/// Largest saved document, in bytes.
pub const DOCUMENT_MAX: usize = 4 << 20;

/// Why a change or a document was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Not a plain change chunk, or too long.
    #[error("not a plain change of at most {CHANGE_MAX} bytes")]
    NotAPlainChange,
    /// A dependency is not in the document.
    #[error("the change depends on changes that are not here")]
    MissingDependency,
    /// `start_op` does not follow from the dependencies.
    #[error("the change numbers its operations wrongly")]
    BadStart,
    /// The library refused it or panicked.
    #[error("the document library: {0}")]
    Library(String),
    /// The result would be too large.
    #[error("the document would exceed {DOCUMENT_MAX} bytes")]
    TooLarge,
}

/// The settings document of a space.
pub fn settings_id(space: &SpaceId) -> DocumentId {
    document_id(b"settings", space.as_bytes())
}

/// The profile document of a device, in the `home` space.
pub fn profile_id(device: &DeviceId) -> DocumentId {
    document_id(b"profile.", device.as_bytes())
}

fn document_id(kind: &[u8; 8], of: &[u8]) -> DocumentId {
    let digest = crypto::hash(domain::DOCUMENT_ID, &[kind, of]);
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    id
}

fn guarded<T>(f: impl FnOnce() -> Result<T, DocumentError>) -> Result<T, DocumentError> {
    catch_unwind(AssertUnwindSafe(f))
        .unwrap_or_else(|_| Err(DocumentError::Library("it panicked".into())))
}

fn library(error: impl std::fmt::Display) -> DocumentError {
    DocumentError::Library(error.to_string())
}

/// Applies one change to a saved document and returns the new saved form.
///
/// # Errors
/// [`DocumentError`]; the document is then unchanged.
pub fn apply(saved: Option<&[u8]>, change: &[u8]) -> Result<Vec<u8>, DocumentError> {
    apply_all(saved, &[change])
}

/// Applies changes to a saved document, each after its dependencies, and returns the new saved form.
///
/// # Errors
/// [`DocumentError`] if one of them is refused; the document is then unchanged.
pub fn apply_all<T: AsRef<[u8]>>(
    saved: Option<&[u8]>,
    changes: &[T],
) -> Result<Vec<u8>, DocumentError> {
    // Magic 4 bytes, checksum 4 bytes, then the chunk type: 1 is an uncompressed change.
    let magic = [0x85, 0x6f, 0x4a, 0x83];
    for change in changes {
        let change = change.as_ref();
        let plain = change.starts_with(&magic) && change.get(8) == Some(&1);
        if !plain || change.len() > CHANGE_MAX {
            return Err(DocumentError::NotAPlainChange);
        }
    }
    guarded(|| {
        let mut document = load(saved)?;
        for change in changes {
            let change = Change::from_bytes(change.as_ref().to_vec()).map_err(library)?;
            let mut highest = 0u64;
            for dep in change.deps() {
                let meta = document
                    .get_change_meta_by_hash(dep)
                    .ok_or(DocumentError::MissingDependency)?;
                highest = highest.max(meta.max_op);
            }
            if highest.checked_add(1) != Some(change.start_op().get()) {
                return Err(DocumentError::BadStart);
            }
            document.apply_changes([change]).map_err(library)?;
        }
        let saved = save(&document)?;
        // The library takes some changes into a document that it then refuses to load.
        load(Some(&saved))?;
        Ok(saved)
    })
}

/// All changes of a saved document, each after its dependencies, as [`apply_all`] takes them.
///
/// # Errors
/// [`DocumentError`].
pub fn changes(saved: &[u8]) -> Result<Vec<Vec<u8>>, DocumentError> {
    guarded(|| {
        let document = load(Some(saved))?;
        let changes = document.get_changes(&[]);
        Ok(changes.iter().map(|c| c.raw_bytes().to_vec()).collect())
    })
}

/// Hashes of the newest changes of a saved document, ascending.
///
/// # Errors
/// [`DocumentError`].
pub fn heads(saved: &[u8]) -> Result<Vec<[u8; 32]>, DocumentError> {
    guarded(|| {
        let mut heads: Vec<[u8; 32]> = load(Some(saved))?.get_heads().iter().map(|h| h.0).collect();
        heads.sort_unstable();
        Ok(heads)
    })
}

fn load(saved: Option<&[u8]>) -> Result<Automerge, DocumentError> {
    match saved {
        Some(bytes) => Automerge::load(bytes).map_err(library),
        None => Ok(Automerge::new()),
    }
}

fn save(document: &Automerge) -> Result<Vec<u8>, DocumentError> {
    let saved = document.save();
    if saved.len() > DOCUMENT_MAX {
        return Err(DocumentError::TooLarge);
    }
    Ok(saved)
}

/// A value in a flat document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setting {
    /// Text.
    Text(String),
    /// Yes or no.
    Flag(bool),
}

/// A document as a flat map. Flat, because two devices that create the same nested map
/// concurrently would each hide the other's.
pub type Settings = BTreeMap<String, Setting>;

/// Reads the known kinds of values at the root of a saved document.
///
/// # Errors
/// [`DocumentError::Library`] if it does not load.
pub fn read(saved: Option<&[u8]>) -> Result<Settings, DocumentError> {
    guarded(|| {
        let document = load(saved)?;
        let mut settings = Settings::new();
        for key in document.keys(automerge::ROOT).collect::<Vec<_>>() {
            let value = document
                .get(automerge::ROOT, key.as_str())
                .map_err(library)?;
            if let Some((Value::Scalar(scalar), _)) = value {
                match scalar.as_ref() {
                    ScalarValue::Str(text) => {
                        settings.insert(key, Setting::Text(text.to_string()));
                    }
                    ScalarValue::Boolean(flag) => {
                        settings.insert(key, Setting::Flag(*flag));
                    }
                    _ => {}
                }
            }
        }
        Ok(settings)
    })
}

/// What a write made: the change to log, and the document's new saved form.
pub type Written = (Vec<u8>, Vec<u8>);

/// Writes values; `None` where nothing differs.
/// The actor is fresh for every call: devices and their disks get cloned.
///
/// # Errors
/// [`DocumentError`].
pub fn write(
    saved: Option<&[u8]>,
    values: &Settings,
    rng: &mut dyn Entropy,
) -> Result<Option<Written>, DocumentError> {
    let before = read(saved)?;
    if values
        .iter()
        .all(|(key, value)| before.get(key) == Some(value))
    {
        return Ok(None);
    }
    let actor = ActorId::from(crypto::random::<16>(rng));
    guarded(|| {
        let mut document = load(saved)?.with_actor(actor);
        let mut tx = document.transaction();
        for (key, value) in values {
            let scalar = match value {
                Setting::Text(text) => ScalarValue::Str(text.as_str().into()),
                Setting::Flag(flag) => ScalarValue::Boolean(*flag),
            };
            tx.put(automerge::ROOT, key.as_str(), scalar)
                .map_err(library)?;
        }
        tx.commit();
        let change = document
            .get_last_local_change()
            .ok_or_else(|| DocumentError::Library("no change was made".into()))?;
        let bytes = change.raw_bytes().to_vec();
        Ok(Some((bytes, save(&document)?)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng;

    fn set(saved: Option<&[u8]>, key: &str, value: Setting, seed: u64) -> (Vec<u8>, Vec<u8>) {
        let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(seed);
        let values = Settings::from([(key.to_owned(), value)]);
        write(saved, &values, &mut rng)
            .expect("writes")
            .expect("differs")
    }

    #[test]
    fn changes_carry_settings_between_replicas_in_any_order() {
        let (c1, a) = set(None, "name", Setting::Text("home".into()), 1);
        let b = apply(None, &c1).expect("applies");
        assert_eq!(read(Some(&a)), read(Some(&b)));
        let (c2, a) = set(Some(&a), "x", Setting::Flag(true), 2);
        let (c3, b) = set(Some(&b), "y", Setting::Flag(false), 3);
        let a = apply(Some(&a), &c3).expect("applies");
        let b = apply(Some(&b), &c2).expect("applies");
        assert_eq!(read(Some(&a)).expect("reads").len(), 3);
        assert_eq!(read(Some(&a)), read(Some(&b)));
    }

    #[test]
    fn a_document_is_its_changes() {
        let (c1, a) = set(None, "name", Setting::Text("home".into()), 1);
        let (c2, left) = set(Some(&a), "x", Setting::Flag(true), 2);
        let (c3, _) = set(Some(&a), "x", Setting::Flag(false), 3);
        let both = apply(Some(&left), &c3).expect("applies");
        let all = changes(&both).expect("reads");
        assert_eq!(all.len(), 3);
        assert_eq!(all.first(), Some(&c1));
        assert!(all.contains(&c2) && all.contains(&c3));
        let again = apply_all(None, &all).expect("applies");
        assert_eq!(heads(&again), heads(&both));
        assert_eq!(heads(&both).expect("reads").len(), 2);
        // What is there already changes nothing.
        let twice = apply_all(Some(&again), &all).expect("applies");
        assert_eq!(heads(&twice), heads(&both));
        assert_eq!(read(Some(&twice)), read(Some(&both)));
    }

    #[test]
    fn the_gate_refuses_what_is_not_a_plain_fitting_change() {
        let (c1, a) = set(None, "name", Setting::Text("home".into()), 1);
        let (c2, _) = set(Some(&a), "x", Setting::Flag(true), 2);
        assert_eq!(apply(None, &c2), Err(DocumentError::MissingDependency));
        assert_eq!(apply(None, &a), Err(DocumentError::NotAPlainChange));
        assert_eq!(apply(None, &[0; 100]), Err(DocumentError::NotAPlainChange));
        for at in 0..c1.len() {
            let mut bytes = c1.clone();
            bytes[at] ^= 0x55;
            let _ = apply(None, &bytes);
            let _ = read(Some(&bytes));
        }
    }

    #[test]
    fn a_start_op_near_the_limit_is_refused() {
        let (_, a) = set(None, "name", Setting::Text("home".into()), 1);
        let (bytes, _) = set(Some(&a), "x", Setting::Flag(true), 2);
        let mut expanded = Change::from_bytes(bytes).expect("a change").decode();
        expanded.start_op = std::num::NonZeroU64::new(u64::from(u32::MAX) - 5).expect("not zero");
        let forged: Change = expanded.into();
        assert_eq!(
            apply(Some(&a), forged.raw_bytes()),
            Err(DocumentError::BadStart)
        );
    }
}
