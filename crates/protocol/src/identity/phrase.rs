//! The owner's phrase and the root keys made from it.

use std::fmt;

use bip39::{Language, Mnemonic};
use zeroize::Zeroizing;

use crate::crypto::{self, Entropy, SigningKey, UnsealingKey, domain};

/// Words of a phrase.
pub const PHRASE_WORDS: usize = 24;

/// Looks up a word of the English BIP39 list. A beginning of four letters or
/// more is as good as the word: no two words of the list share one.
pub(crate) fn word_index(text: &str) -> Option<u16> {
    let text = Zeroizing::new(text.to_ascii_lowercase());
    Language::English.find_word(&text).or_else(|| {
        let unique = match Language::English.words_by_prefix(&text) {
            [word] if text.len() >= 4 => Some(*word),
            _ => None,
        };
        unique.and_then(|word| Language::English.find_word(word))
    })
}

/// Why a text is not a phrase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PhraseError {
    /// The number of words is wrong.
    #[error("a phrase has {PHRASE_WORDS} words, this one has {found}")]
    WordCount {
        /// Words found.
        found: usize,
    },
    /// A word is not in the list.
    #[error("word {position}, \"{word}\", is not a word of a phrase; check its spelling")]
    UnknownWord {
        /// Position of the word, counted from 1.
        position: usize,
        /// What stands there.
        word: String,
    },
    /// All words are known, but they do not belong together.
    #[error("the words do not fit together: one is wrong or two are swapped")]
    Checksum,
}

/// The owner's secret: 24 English words that hold 32 random bytes. Never
/// printed but by [`Phrase::reveal`], wiped on drop.
#[derive(Clone)]
pub struct Phrase(Mnemonic);

impl Phrase {
    /// Draws a new phrase.
    pub fn generate(rng: &mut dyn Entropy) -> Self {
        let entropy = Zeroizing::new(crypto::random::<32>(rng));
        Self(
            Mnemonic::from_entropy_in(Language::English, entropy.as_slice())
                .expect("32 bytes are a valid length"),
        )
    }

    /// Reads a phrase as a person types it: any case, any spacing, numbers
    /// before the words, words cut to four letters.
    ///
    /// # Errors
    /// [`PhraseError`], which names the wrong word.
    pub fn parse(text: &str) -> Result<Self, PhraseError> {
        let words: Vec<&str> = text
            .split(|c: char| c.is_whitespace() || c.is_ascii_digit() || ".,;:-".contains(c))
            .filter(|word| !word.is_empty())
            .collect();
        if words.len() != PHRASE_WORDS {
            return Err(PhraseError::WordCount { found: words.len() });
        }
        let list = Language::English.word_list();
        let mut full = Zeroizing::new(String::with_capacity(PHRASE_WORDS * 9));
        for (position, word) in (1..).zip(words) {
            let known = word_index(word)
                .and_then(|index| list.get(usize::from(index)))
                .ok_or_else(|| PhraseError::UnknownWord {
                    position,
                    word: word.to_owned(),
                })?;
            full.push_str(known);
            full.push(' ');
        }
        Mnemonic::parse_in_normalized(Language::English, &full)
            .map(Self)
            .map_err(|_| PhraseError::Checksum)
    }

    /// The words, separated by spaces: to be shown once and never logged.
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(PHRASE_WORDS * 9));
        for word in self.0.words() {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(word);
        }
        text
    }

    /// Derives the root keys. Takes some milliseconds: the phrase is stretched.
    pub fn root_keys(&self) -> RootKeys {
        let seed = Zeroizing::new(self.0.to_seed_normalized(""));
        let sign = Zeroizing::new(crypto::hash(domain::ROOT_SIGN, &[seed.as_slice()]));
        let seal = Zeroizing::new(crypto::hash(domain::ROOT_SEAL, &[seed.as_slice()]));
        RootKeys {
            sign: SigningKey::from_seed(&sign),
            unseal: UnsealingKey::from_seed(&seal),
        }
    }
}

impl fmt::Debug for Phrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Phrase(..)")
    }
}

/// The secret keys of a pac's root, made from its phrase.
#[derive(Clone, Debug)]
pub struct RootKeys {
    /// Signs the founding record and the founder's grant.
    pub sign: SigningKey,
    /// Opens the epoch keys, which are all sealed to the root too.
    pub unseal: UnsealingKey,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand_core::SeedableRng;

    fn rng() -> rand_chacha::ChaCha20Rng {
        rand_chacha::ChaCha20Rng::seed_from_u64(1)
    }

    /// The list's first word 23 times and the one that its checksum asks for.
    fn plain_phrase() -> String {
        format!("{}art", "abandon ".repeat(23))
    }

    #[test]
    fn a_phrase_survives_being_typed() {
        let phrase = Phrase::generate(&mut rng());
        let text = phrase.reveal();
        assert_eq!(text.split(' ').count(), PHRASE_WORDS);
        let typed: String = text
            .split(' ')
            .enumerate()
            .map(|(i, word)| {
                let cut: String = word.chars().take(4).collect();
                format!("{}. {}\n\t", i + 1, cut.to_uppercase())
            })
            .collect();
        assert_eq!(Phrase::parse(&typed).expect("is read").reveal(), text);
    }

    #[test]
    fn a_wrong_phrase_is_refused_by_word() {
        let parse = |text: &str| Phrase::parse(text).map(|_| ()).expect_err("is refused");
        assert_eq!(parse("abandon art"), PhraseError::WordCount { found: 2 });
        assert_eq!(parse(&"abandon ".repeat(24)), PhraseError::Checksum);
        let misspelt = plain_phrase().replacen("abandon", "abundon", 1);
        assert_eq!(
            parse(&misspelt),
            PhraseError::UnknownWord {
                position: 1,
                word: "abundon".into()
            }
        );
        assert!(
            parse(&plain_phrase().replace("art", "ar"))
                .to_string()
                .contains("word 24")
        );
    }

    #[test]
    fn a_phrase_gives_the_same_root_for_ever() {
        let root = Phrase::parse(&plain_phrase()).expect("is read").root_keys();
        let again = Phrase::parse(&plain_phrase()).expect("is read").root_keys();
        assert_eq!(root.sign.id(), again.sign.id());
        assert_eq!(root.unseal.public(), again.unseal.public());
        assert_ne!(root.sign.expose_seed(), root.unseal.expose_seed());
        assert_eq!(
            root.sign.id().to_string(),
            "cno55oh7i7szhacnkhkm7sow7merjq7olhoelszorennlfgsqc5a",
            "a phrase written down today must open the pac in twenty years"
        );
    }

    #[test]
    fn secrets_do_not_print() {
        let phrase = Phrase::generate(&mut rng());
        assert_eq!(
            format!("{phrase:?} {:?}", phrase.root_keys()),
            "Phrase(..) RootKeys { sign: SigningKey(..), unseal: UnsealingKey(..) }"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_refused_without_panic(text in ".*") {
            prop_assert!(Phrase::parse(&text).is_err());
        }
    }
}
