//! How devices of one pac recognise each other before a word is said: a fresh
//! nonce and a MAC over it, in a TLS server name or an mDNS announcement.
//!
//! A beacon names nobody and changes with every nonce, so an onlooker without the
//! key learns nothing from it and cannot link two of them. It is no proof of
//! freshness: who recorded one can show it again, and then knows no more than
//! that it was one. Authentication is the handshake's affair.

use data_encoding::{BASE32_NOPAD, Encoding};
use subtle::ConstantTimeEq;

use crate::crypto::{Key, domain, hash, keyed_hash};

/// Length of a beacon's nonce in bytes.
pub const NONCE_LEN: usize = 16;
const MAC_LEN: usize = 16;
/// Unpadded base32 of nonce and MAC; fits a DNS label, which holds 63.
const TEXT_LEN: usize = 52;
/// What every server name ends in: the domain that is set aside for home
/// networks, so that the name is valid and says nothing.
const NAME_SUFFIX: &str = ".home.arpa";

const BASE32: Encoding = BASE32_NOPAD;

/// Makes the TLS server name that a device of the pac answers to. `key` is the
/// pac's discovery key or a [`slot_key`].
pub fn server_name(key: &Key, nonce: [u8; NONCE_LEN]) -> String {
    tag(key, domain::SNI_TAG, &nonce) + NAME_SUFFIX
}

/// Says whether a server name was made by [`server_name`] with the same key.
/// Upper and lower case are the same, as in DNS.
pub fn verify_server_name(key: &Key, name: &str) -> bool {
    name.len() == TEXT_LEN + NAME_SUFFIX.len()
        && name
            .split_at_checked(TEXT_LEN)
            .is_some_and(|(text, suffix)| {
                suffix.eq_ignore_ascii_case(NAME_SUFFIX) && verify(key, domain::SNI_TAG, text)
            })
}

/// Makes the TXT value of an mDNS announcement. `key` is the pac's discovery
/// key or a [`slot_key`].
pub fn announcement(key: &Key, nonce: [u8; NONCE_LEN]) -> String {
    tag(key, domain::MDNS_TAG, &nonce)
}

/// Says whether a TXT value was made by [`announcement`] with the same key.
pub fn verify_announcement(key: &Key, text: &str) -> bool {
    verify(key, domain::MDNS_TAG, text)
}

/// The key under which a pairing host is found: made from the public slot number
/// alone, never from the code's words, so that it tells nothing about them.
pub fn slot_key(slot: u16) -> Key {
    Key::from_bytes(hash(domain::PAIR_SLOT, &[&slot.to_be_bytes()]))
}

fn mac(key: &Key, domain: &str, nonce: &[u8; NONCE_LEN]) -> [u8; MAC_LEN] {
    let full = keyed_hash(&key.derive(domain), &[nonce]);
    let (mac, _) = full
        .split_first_chunk()
        .expect("a hash is longer than a MAC");
    *mac
}

fn tag(key: &Key, domain: &str, nonce: &[u8; NONCE_LEN]) -> String {
    let bytes = [*nonce, mac(key, domain, nonce)].concat();
    BASE32.encode(&bytes).to_ascii_lowercase()
}

fn verify(key: &Key, domain: &str, text: &str) -> bool {
    if text.len() != TEXT_LEN {
        return false;
    }
    let Ok(bytes) = BASE32.decode(text.to_ascii_uppercase().as_bytes()) else {
        return false;
    };
    let Some((nonce, found)) = bytes.split_first_chunk() else {
        return false;
    };
    found.ct_eq(&mac(key, domain, nonce)).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> Key {
        Key::from_bytes([byte; 32])
    }

    #[test]
    fn a_server_name_is_one_of_the_pac_and_in_dns_form() {
        let name = server_name(&key(1), [7; 16]);
        assert!(name.split('.').all(|label| (1..=63).contains(&label.len())));
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.')
        );
        assert!(verify_server_name(&key(1), &name));
        assert!(verify_server_name(&key(1), &name.to_ascii_uppercase()));
        assert!(!verify_server_name(&key(2), &name));
        assert_ne!(name, server_name(&key(1), [8; 16]));
    }

    #[test]
    fn a_tag_serves_one_purpose_only() {
        let name = server_name(&key(1), [7; 16]);
        let text = announcement(&key(1), [7; 16]);
        assert!(verify_announcement(&key(1), &text));
        assert!(!verify_announcement(&key(2), &text));
        assert!(!verify_announcement(
            &key(1),
            name.trim_end_matches(NAME_SUFFIX)
        ));
        assert!(!verify_server_name(&key(1), &(text + NAME_SUFFIX)));
    }

    #[test]
    fn slots_have_keys_of_their_own() {
        let name = server_name(&slot_key(1234), [7; 16]);
        assert!(verify_server_name(&slot_key(1234), &name));
        assert!(!verify_server_name(&slot_key(1235), &name));
    }

    proptest! {
        #[test]
        fn one_changed_character_is_refused(at in 0usize..62, to in "[a-z2-7.é]") {
            let name = server_name(&key(1), [7; 16]);
            let mut changed: Vec<String> = name.chars().map(String::from).collect();
            changed[at] = to;
            let changed = changed.concat();
            prop_assert_eq!(verify_server_name(&key(1), &changed), changed == name);
        }

        #[test]
        fn any_text_is_taken_without_harm(text in ".*") {
            prop_assert!(!verify_server_name(&key(1), &text));
            prop_assert!(!verify_announcement(&key(1), &text));
        }
    }
}
