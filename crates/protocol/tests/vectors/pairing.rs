//! One pairing, frame by frame. SPAKE2 itself is taken from its crate; everything around it is
//! done again here.

use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use minicbor::Decoder;
use minicbor::bytes::ByteSlice;
use pacsync_protocol::crypto::Key;
use pacsync_protocol::grant::Role;
use pacsync_protocol::identity::{DeviceKeys, DeviceName, FoundingRecord, Phrase};
use pacsync_protocol::pairing::{
    Consent, Host, Joiner, Offer, Output, PairingCode, RosterKeys, SpaceHint, Welcome,
};
use pacsync_protocol::{SpaceId, cbor};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use spake2::{Ed25519Group, Identity, Password, Spake2};

use super::{array, assert_signed, bytes, hex, rng, stored};

const EXPORTER: [u8; 32] = [0xee; 32];
const JOINER_SEED: u64 = 7;

fn frames(mut poll: impl FnMut() -> Option<Output>) -> Vec<Vec<u8>> {
    let mut frames = vec![];
    while let Some(output) = poll() {
        if let Output::Send(frame) = output {
            frames.push(frame);
        }
    }
    frames
}

fn of_host(host: &mut Host) -> Vec<Vec<u8>> {
    frames(|| host.poll_output())
}

fn of_joiner(joiner: &mut Joiner) -> Vec<Vec<u8>> {
    frames(|| joiner.poll_output())
}

fn welcome() -> Welcome {
    let root = Phrase::generate(&mut rng(8)).root_keys();
    Welcome {
        founding: FoundingRecord::found(&root, 1_700_000_000_000, &mut rng(9)),
        keys: RosterKeys::Full {
            roster: Key::from_bytes([0x33; 32]),
            private: Key::from_bytes([0x44; 32]),
        },
        segments: vec![b"first segment".to_vec(), b"second segment".to_vec()],
        addresses: vec!["192.0.2.1:4711".into()],
        spaces: vec![SpaceHint {
            space: SpaceId::from_bytes([0x66; 16]),
            name: "home".into(),
        }],
    }
}

fn made() -> Value {
    let mut host_rng = rng(6);
    let mut offer = Offer::new(Role::Member, 0, &mut host_rng);
    let host_keys = DeviceKeys::generate(&mut rng(10));
    let joiner_keys = DeviceKeys::generate(&mut rng(11));
    let name = |text| DeviceName::new(text).expect("a name");
    let code = offer.code().clone();
    let mut joiner = Joiner::new(
        1,
        &code,
        &EXPORTER,
        &joiner_keys,
        &name("phone"),
        &mut rng(JOINER_SEED),
    );
    let mut all: Vec<(&str, Vec<u8>)> = vec![];
    let hello = of_joiner(&mut joiner).remove(0);
    let answered = offer.answer(
        2,
        &EXPORTER,
        &host_keys,
        &name("laptop"),
        &hello,
        &mut host_rng,
    );
    let mut host = answered.expect("is answered");
    all.push(("joiner", hello));
    let mut to_joiner = of_host(&mut host);
    let mut agreed = false;
    while !to_joiner.is_empty() {
        for frame in to_joiner.drain(..) {
            joiner.handle(3, &frame).expect("takes it");
            all.push(("host", frame));
        }
        let mut to_host = of_joiner(&mut joiner);
        if to_host.is_empty() && !agreed {
            agreed = true;
            joiner.confirm(4).expect("agrees");
            host.confirm(4, Consent::Person).expect("agrees");
            to_host = of_joiner(&mut joiner);
        } else if to_host.is_empty() {
            joiner.stored().expect("is stored");
            to_host = of_joiner(&mut joiner);
        }
        for frame in to_host {
            host.handle(5, &frame).expect("takes it");
            all.push(("joiner", frame));
        }
        to_joiner = of_host(&mut host);
        if agreed && host.deliver(6, welcome()).is_ok() {
            to_joiner = of_host(&mut host);
        }
    }
    let list: Vec<Value> = all
        .iter()
        .map(|(from, frame)| json!({ "from": from, "frame": hex(frame) }))
        .collect();
    json!({
        "about": "One pairing as a member; docs/wire.md, Pairing. The joiner's SPAKE2 scalar comes \
            from ChaCha20 seeded with joiner_seed (rand_chacha's seed_from_u64).",
        "code": code.reveal().as_str(),
        "exporter": hex(EXPORTER),
        "joiner_seed": JOINER_SEED,
        "host_id": hex(host_keys.id().as_bytes()),
        "joiner_id": hex(joiner_keys.id().as_bytes()),
        "frames": list,
    })
}

#[test]
fn a_pairing_is_that_of_the_page() {
    let v = stored("pairing.json", &made());
    let frames: Vec<Vec<u8>> = super::items(&v, "frames")
        .iter()
        .map(|frame| bytes(frame, "frame"))
        .collect();
    let types: Vec<u8> = frames.iter().map(|frame| frame[1]).collect();
    assert_eq!(types, [1, 2, 3, 3, 4, 5, 6, 7]);
    let (hello, answer) = (&frames[0], &frames[1]);
    let code = PairingCode::parse(v["code"].as_str().expect("text")).expect("a code");
    let text = code.reveal();
    let words = text.split_once('-').expect("a slot").1.replace('-', " ");
    let (exchange, message) = Spake2::<Ed25519Group>::start_a_with_rng(
        &Password::new(words.as_bytes()),
        &Identity::new(b"joiner"),
        &Identity::new(b"host"),
        rng(v["joiner_seed"].as_u64().expect("a seed")),
    );
    assert_eq!(message, field(hello, 3));
    let shared = exchange.finish(&field(answer, 3)).expect("finishes");
    let part = |bytes| <&ByteSlice>::from(bytes);
    let parts = cbor::encode(&(
        "pacsync v1 pairing",
        part(&EXPORTER[..]),
        part(&b"pacsync-pair/1"[..]),
        code.slot(),
        1u8,
        part(&hello[..]),
        part(&answer[..]),
    ));
    let transcript: [u8; 32] = Sha256::digest(parts).into();
    let kdf = Hkdf::<Sha256>::new(Some(&transcript), &shared);
    let sides = [(&frames[2], "joiner", 1), (&frames[3], "host", 2)];
    for (frame, side, number) in sides {
        let label = format!("pacsync v1 pairing {side} confirmation");
        let mut key = [0; 32];
        kdf.expand(label.as_bytes(), &mut key).expect("expands");
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("a key");
        mac.update(&transcript);
        mac.verify_slice(&field(frame, 0)).expect("the MAC holds");
        let id: [u8; 32] = array(&v, &format!("{side}_id"));
        let proof = [&transcript[..], &[number]].concat();
        assert_signed(
            &id,
            "pacsync v1 pairing possession",
            &proof,
            &field(frame, 1),
        );
    }
}

/// The byte string under a key of a frame's map.
fn field(frame: &[u8], wanted: u8) -> Vec<u8> {
    let mut d = Decoder::new(frame);
    assert_eq!(d.array().expect("a message"), Some(2));
    d.u8().expect("its number");
    let count = d.map().expect("a map").expect("of known length");
    for _ in 0..count {
        if d.u8().expect("a key") == wanted {
            return d.bytes().expect("bytes").to_vec();
        }
        d.skip().expect("a value");
    }
    panic!("no key {wanted}")
}
