//! Merges the text of files that were edited in several places at once: pure functions of the
//! file's name, the content all edits began from, and the edited contents.
//!
//! Never here: rows, ancestry (which content is the base is decided by the caller), the disk, clocks
//! or randomness. The same arguments give the same bytes on every device.
//!
//! # Rules
//!
//! - A side equal to the base yields to the others, and equal sides count once. What is left of
//!   that, if it is one side, is the result, whatever kind of file it is.
//! - More than two sides are folded in the order given: the first two are merged, the result is
//!   merged with the third over the same base, and so on. A conflict in any step is a conflict of
//!   the whole. The order is the caller's; row-id order is the same everywhere.
//! - No common ancestor is an empty base: sides that both wrote something at the same place
//!   conflict; in a format with keys, different keys come together.
//! - Text is UTF-8 without NUL bytes. Anything else is never merged.
//! - A byte-order mark, the line ending (LF or CRLF) and a missing newline at the end are settled by
//!   themselves and do not make the lines they touch differ.
//! - *Lines*: changes that overlap, touch or insert at the same place are a conflict unless they are
//!   equal; at least one unchanged line has to lie between two changes. Two devices that append to
//!   one history file therefore conflict: which line comes first would be a guess.
//! - *Keys* (JSON with comments, TOML, INI and its relatives, YAML): what each side says about each
//!   key is compared first. A key that both changed to different values, or that one deleted and the
//!   other changed, is a conflict and ends the matter. Lists are compared element by element, with the
//!   rule for lines; an element is one unit. A key of an INI file that is written several times is
//!   one unit with all its values. If the keys agree, the text is made: by lines if that gives
//!   exactly the expected keys, else entry by entry (an entry is a key, its value and the comments
//!   above it), in the first side's order with the other side's new entries after the neighbour they had
//!   there. The result is read again: it has to hold exactly the expected keys and values, and every
//!   comment line that a side added, or else it is a conflict.
//! - A comment above a key is apart from its value, so two sides may change one each. What stands on
//!   one line is one unit, except in JSON, where many keys may share a line.
//! - A file that its format's parser refuses, or that uses what cannot be told apart by keys (YAML
//!   anchors, tags and several documents; duplicate keys; nesting past [`MAX_DEPTH`]) is merged by
//!   lines; where both sides could be read, so must the result. JSON stays as strict as its sides.
//!
//! # Limits
//!
//! [`MAX_BYTES`] for the base, each side and the result; [`MAX_SIDES`] different sides; [`MAX_DEPTH`] levels
//! of keys. The comparison of lines matches those that occur once and has a budget for the rest; when
//! it is used up, all that is left between two matched lines counts as one change. Lines merged by
//! lines alone are not understood: two far-apart edits of a script or of XML may not fit each other.

mod diff;
mod format;
mod frame;
mod ini;
mod json;
mod keyed;
mod layout;
mod lines;
mod outline;
mod regions;
#[cfg(test)]
mod tests;
mod toml;
mod value;
mod yaml;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use value::MAX_DEPTH;

use format::Format;

/// Version of the merge function. Any change that can alter a result raises it; so does a new
/// version of a parser or of the diff that alters one.
pub const VERSION: u32 = 1;

/// Greatest size of a base, a side or a result, in bytes.
pub const MAX_BYTES: usize = 1 << 20;

/// Greatest number of different sides.
pub const MAX_SIDES: usize = 16;

/// What became of a merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All edits are in these bytes.
    Merged(Vec<u8>),
    /// A person has to decide.
    Conflict(Conflict),
}

/// Why contents were not merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// A content is not UTF-8 text.
    #[error("not text")]
    NotText,
    /// A content, or the merged one, is larger than [`MAX_BYTES`].
    #[error("more than {MAX_BYTES} bytes")]
    TooLarge,
    /// There are more than [`MAX_SIDES`] different sides.
    #[error("{0} different versions, more than {MAX_SIDES}")]
    TooManySides(usize),
    /// Both sides changed the same lines, or lines next to each other.
    #[error("both changed the text at line {line}")]
    Lines {
        /// First line concerned, in the base, from 1; one past the last for additions at the end.
        line: usize,
    },
    /// Both sides changed the same entry.
    #[error("both changed {}", place(.path))]
    Key {
        /// Names of the entry and of what it lies in, outermost first; empty for the whole file.
        path: Vec<String>,
    },
    /// The edits do not overlap, but the result would not be a sound file of its format.
    #[error("the merged text would not be valid")]
    Invalid,
    /// A parser failed on these contents.
    #[error("the text could not be read")]
    Unreadable,
}

fn place(path: &[String]) -> String {
    if path.is_empty() {
        "the whole file".to_owned()
    } else {
        path.join(" > ")
    }
}

/// Merges the sides, edited from the base, of the file with this name (without directories).
///
/// The sides come in an order that is the same on every device.
pub fn merge(name: &[u8], base: Option<&[u8]>, sides: &[&[u8]]) -> Outcome {
    // The parsers are other people's code that reads whatever is on a disk.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        fold(name, base.unwrap_or_default(), sides)
    }));
    match outcome {
        Ok(Ok(bytes)) => Outcome::Merged(bytes),
        Ok(Err(conflict)) => Outcome::Conflict(conflict),
        Err(_) => Outcome::Conflict(Conflict::Unreadable),
    }
}

fn fold(name: &[u8], base: &[u8], sides: &[&[u8]]) -> Result<Vec<u8>, Conflict> {
    let mut different: Vec<&[u8]> = Vec::new();
    for side in sides {
        if *side != base && !different.contains(side) {
            different.push(side);
            if different.len() > MAX_SIDES {
                return Err(Conflict::TooManySides(different.len()));
            }
        }
    }
    let Some((first, rest)) = different.split_first() else {
        return Ok(base.to_vec());
    };
    let mut merged = first.to_vec();
    for side in rest {
        let format = Format::of(name);
        let next = pair(format, text(base)?, text(&merged)?, text(side)?)?;
        merged = next.into_bytes();
    }
    if rest.is_empty() || merged.len() <= MAX_BYTES {
        Ok(merged)
    } else {
        Err(Conflict::TooLarge)
    }
}

fn text(bytes: &[u8]) -> Result<&str, Conflict> {
    if bytes.len() > MAX_BYTES {
        return Err(Conflict::TooLarge);
    }
    if bytes.contains(&0) {
        return Err(Conflict::NotText);
    }
    std::str::from_utf8(bytes).map_err(|_| Conflict::NotText)
}

fn pair(format: Format, base: &str, ours: &str, theirs: &str) -> Result<String, Conflict> {
    // A step of a fold can come to what it began from, or to the next side.
    if ours == theirs || theirs == base {
        return Ok(ours.to_owned());
    }
    if ours == base {
        return Ok(theirs.to_owned());
    }
    let framed = frame::Framed::new(base, ours, theirs);
    let (base, ours, theirs) = framed.texts();
    let merged = if format == Format::Lines {
        lines::merge(base, ours, theirs)?
    } else {
        keyed::merge(format, base, ours, theirs)?
    };
    Ok(framed.finish(merged))
}
