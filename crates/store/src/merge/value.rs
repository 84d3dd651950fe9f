//! What a file of a format with keys says, without its formatting.

use std::collections::BTreeMap;

use super::regions::{Overlap, Region, regions};

/// Greatest nesting that is merged key by key.
pub const MAX_DEPTH: usize = 128;

/// A value, so that equal text of equal kind is equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Value {
    /// Kind and text.
    Scalar(char, String),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
}

impl Default for Value {
    fn default() -> Self {
        Self::Map(BTreeMap::new())
    }
}

/// What a parser made of a text.
#[derive(Debug)]
pub(super) struct Reading {
    /// How lenient a reader has to be to accept the text; 0 is the strictest.
    pub(super) grade: u8,
    /// What it says, unless that cannot be told key by key.
    pub(super) value: Option<Value>,
}

/// Names of an entry and of what it lies in, outermost first.
pub(super) type Path = Vec<String>;

/// Merges what the sides say.
///
/// # Errors
///
/// The path of the first value, in key order, that both sides changed.
pub(super) fn merge(base: &Value, ours: &Value, theirs: &Value) -> Result<Value, Path> {
    let mut path = Path::new();
    match step(Some(base), Some(ours), Some(theirs), &mut path) {
        Some(Some(value)) => Ok(value),
        _ => Err(path),
    }
}

/// The merged value (`None` inside: absent), or `None` with `path` at the conflict.
fn step(
    base: Option<&Value>,
    ours: Option<&Value>,
    theirs: Option<&Value>,
    path: &mut Path,
) -> Option<Option<Value>> {
    if ours == theirs || theirs == base {
        return Some(ours.cloned());
    }
    if ours == base {
        return Some(theirs.cloned());
    }
    match (base, ours, theirs) {
        (Some(Value::Map(_)) | None, Some(Value::Map(ours)), Some(Value::Map(theirs))) => {
            let none = BTreeMap::new();
            let base = if let Some(Value::Map(base)) = base {
                base
            } else {
                &none
            };
            let mut merged = BTreeMap::new();
            // Keys of the base alone are deleted by both.
            let added = theirs.keys().filter(|key| !ours.contains_key(*key));
            for key in ours.keys().chain(added) {
                path.push(key.clone());
                let value = step(base.get(key), ours.get(key), theirs.get(key), path)?;
                path.pop();
                if let Some(value) = value {
                    merged.insert(key.clone(), value);
                }
            }
            Some(Some(Value::Map(merged)))
        }
        (Some(Value::List(base)), Some(Value::List(ours)), Some(Value::List(theirs))) => {
            let found = regions(base, ours, theirs).map_err(|Overlap(_)| ()).ok()?;
            let mut merged = Vec::new();
            for region in found {
                let values = match region {
                    Region::Kept(range) => base.get(range),
                    Region::Ours(range) => ours.get(range),
                    Region::Theirs(range) => theirs.get(range),
                };
                merged.extend(values.unwrap_or_default().iter().cloned());
            }
            Some(Some(Value::List(merged)))
        }
        _ => None,
    }
}
