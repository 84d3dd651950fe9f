//! The vectors of `docs/vectors`: each file is made anew and compared, and what it says is
//! checked as `docs/wire.md` describes it, with nothing but the primitives' own crates.
//!
//! With `PACSYNC_WRITE_VECTORS` set, the files are written instead of compared. The frames of a
//! session, `wire.json`, are the wire codec's own test.

mod checkpoint;
mod content;
mod identity;
mod log;
mod pairing;

use pacsync_protocol::crypto::{Key, SigningKey};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use serde_json::Value;

/// Compares `made` with the stored file, or writes it.
fn stored(file: &str, made: &Value) -> Value {
    let path = format!("{}/../../docs/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("PACSYNC_WRITE_VECTORS").is_some() {
        let text = serde_json::to_string_pretty(made).expect("JSON") + "\n";
        std::fs::write(&path, text).expect("the vectors can be written");
    }
    let text = std::fs::read_to_string(&path).expect("the vectors can be read");
    let stored: Value = serde_json::from_str(&text).expect("the vectors are JSON");
    assert_eq!(&stored, made, "{file} is not what this program makes");
    stored
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    data_encoding::HEXLOWER.encode(bytes.as_ref())
}

/// The bytes of a hex field.
fn bytes(from: &Value, field: &str) -> Vec<u8> {
    let text = from[field]
        .as_str()
        .unwrap_or_else(|| panic!("field {field}"));
    data_encoding::HEXLOWER
        .decode(text.as_bytes())
        .unwrap_or_else(|_| panic!("field {field} is hex"))
}

fn array<const N: usize>(from: &Value, field: &str) -> [u8; N] {
    bytes(from, field)
        .try_into()
        .unwrap_or_else(|_| panic!("field {field} has {N} bytes"))
}

fn items<'v>(from: &'v Value, field: &str) -> &'v [Value] {
    from[field]
        .as_array()
        .unwrap_or_else(|| panic!("field {field} is a list"))
}

/// `H(domain, message)` of the page: BLAKE3 in its key derivation mode.
fn h(domain: &str, message: &[u8]) -> [u8; 32] {
    blake3::derive_key(domain, message)
}

/// `K(key, message)` of the page: keyed BLAKE3.
fn k(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    *blake3::keyed_hash(key, message).as_bytes()
}

/// Checks an Ed25519 signature in its wire form over `H(domain, message)`.
fn assert_signed(signer: &[u8; 32], domain: &str, message: &[u8], signature: &[u8]) {
    let (alg, raw) = signature.split_first().expect("an algorithm byte");
    assert_eq!(*alg, 1, "Ed25519");
    let raw: &[u8; 64] = raw.try_into().expect("64 bytes");
    ed25519_dalek::VerifyingKey::from_bytes(signer)
        .expect("a key")
        .verify_strict(
            &h(domain, message),
            &ed25519_dalek::Signature::from_bytes(raw),
        )
        .expect("the signature holds");
}

/// XChaCha20-Poly1305, for opening.
fn open(key: &[u8; 32], nonce: &[u8; 24], aad: &[u8], sealed: &[u8]) -> Vec<u8> {
    use chacha20poly1305::aead::{Aead, KeyInit, Payload};
    chacha20poly1305::XChaCha20Poly1305::new(key.into())
        .decrypt(nonce.into(), Payload { msg: sealed, aad })
        .expect("it opens")
}

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

/// The writer in the vectors.
fn signer() -> SigningKey {
    SigningKey::from_seed(&[0x11; 32])
}

fn epoch_key() -> Key {
    Key::from_bytes([0x22; 32])
}

/// Every domain string of the program is in the page's table, and no other is.
#[test]
fn the_page_lists_every_domain() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/wire.md")).expect("the page can be read");
    let (_, table) = page.split_once("\n## Domains\n").expect("the section");
    let (table, _) = table.split_once("\n## ").expect("the next section");
    let listed = quoted(table, '`');
    let mut used = std::collections::BTreeSet::new();
    for part in ["protocol", "store", "daemon"] {
        sources(&root.join("crates").join(part).join("src"), &mut used);
    }
    assert_eq!(listed, used);
}

fn sources(dir: &std::path::Path, into: &mut std::collections::BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file");
            into.extend(quoted(&text, '"'));
        }
    }
}

/// All `pacsync v1 …` between two quotes.
fn quoted(text: &str, quote: char) -> std::collections::BTreeSet<String> {
    let begin = format!("{quote}pacsync v1 ");
    let starts = text.match_indices(&begin).map(|(at, _)| at + 1);
    let rest = starts.filter_map(|at| text.get(at..)?.split(quote).next());
    rest.map(str::to_owned).collect()
}
