//! What history keeps for how long: the keep policy of a space, and the sweep that carries it out.
//!
//! Only what packs hold and nothing shows is ever dropped: no row, no file, no side of a conflict,
//! no text that an edit not heard of yet may rest on. The time that counts is how long *this*
//! device has known that nothing shows a content any more, so no clock but its own matters, and
//! that one only a week at a time.

mod compact;
mod marked;
mod policy;
mod sweep;

use crate::content::packs::PackError;
use crate::error::StoreError;

pub use policy::{KeepFor, KeepPolicy, KeepPolicyError};
pub use sweep::{Sweep, Swept};

/// Objects that one step looks at.
const STEP_OBJECTS: usize = 2_048;
/// Bytes that one step reads or copies.
const STEP_BYTES: u64 = 8 << 20;

fn packs_failed(error: PackError) -> StoreError {
    StoreError::Packs(error.to_string())
}

/// Longest text whose versions are kept as texts. Bytes.
pub const TEXT_MAX: u64 = 1 << 20;

/// Whether bytes are a text: without NUL, or UTF-8.
pub fn is_text(bytes: &[u8]) -> bool {
    !bytes.contains(&0) || std::str::from_utf8(bytes).is_ok()
}

/// The same of a part of something, which may begin and end within a character.
fn is_part_of_text(bytes: &[u8]) -> bool {
    if !bytes.contains(&0) {
        return true;
    }
    let start = bytes
        .iter()
        .take(3)
        .take_while(|b| **b & 0xc0 == 0x80)
        .count();
    let rest = bytes.get(start..).unwrap_or_default();
    match std::str::from_utf8(rest) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_text_is_told_from_other_things() {
        let text = "früher\0 war es so".as_bytes();
        assert!(is_text(text));
        for from in 0..text.len() {
            for to in from..text.len() {
                assert!(is_part_of_text(&text[from..to]), "{from}..{to}");
            }
        }
        assert!(!is_part_of_text(&[0x50, 0, 0xff, 0x41]));
        assert!(!is_part_of_text(&[0x80, 0x80, 0x80, 0x80, 0]));
    }
}
