//! The short code: a public slot number that finds the host, and two secret words.

use std::fmt;

use bip39::Language;
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::{self, Entropy};
use crate::identity::word_index;

const SLOTS: u64 = 10_000;
const SLOT_DIGITS: usize = 4;

/// Why a text is not a pairing code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// The number or the words are missing, or there is more.
    #[error("a pairing code is four digits and two words, like 4821-apple-river")]
    Form,
    /// A word is not in the list.
    #[error("\"{word}\" is not a word of a pairing code; check its spelling")]
    UnknownWord {
        /// What stands there.
        word: String,
    },
}

/// A pairing code such as `4821-apple-river`. The number is public; the words
/// are never printed but by [`PairingCode::reveal`], and wiped on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct PairingCode {
    slot: u16,
    words: [u16; 2],
}

impl PairingCode {
    /// Draws a new code.
    pub fn generate(rng: &mut dyn Entropy) -> Self {
        let number = u64::from_be_bytes(crypto::random(rng));
        // The bias of the remainder is 10,000 in 2^64; the word list has 2^11 words.
        let slot = u16::try_from(number % SLOTS).expect("a remainder below 10,000");
        let words = [(); 2].map(|()| u16::from_be_bytes(crypto::random(rng)) & 0x7ff);
        Self { slot, words }
    }

    /// Reads a code as a person types it: any case, blanks or other signs between
    /// the parts, words cut to four letters.
    ///
    /// # Errors
    /// [`CodeError`].
    pub fn parse(text: &str) -> Result<Self, CodeError> {
        let text = text.trim_start_matches(|c: char| !c.is_alphanumeric());
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = text.split_at_checked(digits).ok_or(CodeError::Form)?;
        if digits != SLOT_DIGITS {
            return Err(CodeError::Form);
        }
        let slot = number.parse().map_err(|_| CodeError::Form)?;
        let mut parts = rest
            .split(|c: char| !c.is_alphanumeric())
            .filter(|part| !part.is_empty());
        let (Some(first), Some(second), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(CodeError::Form);
        };
        let index = |word: &str| {
            word_index(word).ok_or_else(|| CodeError::UnknownWord {
                word: word.to_owned(),
            })
        };
        Ok(Self {
            slot,
            words: [index(first)?, index(second)?],
        })
    }

    /// The public number, 0 to 9999, shown with four digits.
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// The whole code, to be shown to a person and never logged.
    pub fn reveal(&self) -> Zeroizing<String> {
        let [first, second] = self.words();
        Zeroizing::new(format!("{:04}-{first}-{second}", self.slot))
    }

    /// What SPAKE2 takes: the words, with one blank between.
    pub(super) fn password(&self) -> Zeroizing<String> {
        let [first, second] = self.words();
        Zeroizing::new(format!("{first} {second}"))
    }

    fn words(&self) -> [&'static str; 2] {
        let list = Language::English.word_list();
        self.words
            .map(|index| *list.get(usize::from(index)).expect("an index of the list"))
    }
}

impl Drop for PairingCode {
    fn drop(&mut self) {
        self.words.zeroize();
    }
}

impl fmt::Debug for PairingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PairingCode({:04}-..)", self.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand_core::SeedableRng;

    #[test]
    fn a_code_is_read_generously() {
        let code = PairingCode::parse("0042-apple-river").expect("is read");
        assert_eq!(code.reveal().as_str(), "0042-apple-river");
        for text in [
            " 0042 apple river ",
            "0042-APPLE-River",
            "0042 - appl - rive\n",
            "0042apple_river",
            "\"0042-apple-river\"",
        ] {
            assert_eq!(PairingCode::parse(text), Ok(code.clone()), "{text}");
        }
    }

    #[test]
    fn what_is_no_code_is_refused_by_what_is_wrong() {
        for text in [
            "",
            "0042",
            "0042-apple",
            "42-apple-river",
            "00421-apple-river",
            "0042-apple-river-x",
            "apple-river",
            "٠٠٤٢-apple-river",
        ] {
            assert_eq!(PairingCode::parse(text), Err(CodeError::Form), "{text}");
        }
        for (text, word) in [("0042-appel-river", "appel"), ("0042-apple-riv", "riv")] {
            assert_eq!(
                PairingCode::parse(text),
                Err(CodeError::UnknownWord { word: word.into() })
            );
        }
    }

    #[test]
    fn the_words_do_not_print() {
        let code = PairingCode::parse("0042-apple-river").expect("is read");
        assert_eq!(format!("{code:?}"), "PairingCode(0042-..)");
    }

    proptest! {
        #[test]
        fn every_code_is_read_as_it_is_shown(seed: u64) {
            let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(seed);
            let code = PairingCode::generate(&mut rng);
            prop_assert!(code.slot() < 10_000);
            prop_assert_eq!(PairingCode::parse(&code.reveal()), Ok(code));
        }

        #[test]
        fn any_text_is_refused_without_panic(text in ".*") {
            prop_assert!(PairingCode::parse(&text).is_err());
        }
    }
}
