//! Phrase, founding record, device keys, grants, epoch records, tags.

use minicbor::Decoder;
use minicbor::bytes::ByteArray;
use pacsync_protocol::crypto::{Key, PublicKey};
use pacsync_protocol::grant::{Grant, GrantClear, GrantPrivate, Rights, Role, Scope};
use pacsync_protocol::identity::{DeviceKeys, FoundingRecord, Phrase, RootKeys, VerifiedFounding};
use pacsync_protocol::roster::{
    EpochRecord, EpochSecret, ParentKey, Placement, Roster, RosterEntry, RosterKeys, roster_space,
};
use pacsync_protocol::{EpochId, SpaceId, beacon, cbor};
use serde_json::{Value, json};

use super::{array, assert_signed, bytes, h, hex, items, k, open, rng, stored};

fn root() -> (Phrase, RootKeys) {
    let phrase = Phrase::parse(&format!("{}art", "abandon ".repeat(23))).expect("a phrase");
    let keys = phrase.root_keys();
    (phrase, keys)
}

fn founding() -> VerifiedFounding {
    FoundingRecord::found(&root().1, 1_700_000_000_000, &mut rng(1))
}

fn device() -> DeviceKeys {
    DeviceKeys::generate(&mut rng(2))
}

fn made() -> Value {
    let (phrase, root) = root();
    let founding = founding();
    let device = device();
    json!({
        "about": "From the phrase to a pac's name, and one device's keys; docs/wire.md, Identity.",
        "phrase": phrase.reveal().as_str(),
        "root_signing_seed": hex(root.sign.expose_seed()),
        "root_signing_public": hex(root.sign.id().as_bytes()),
        "root_sealing_secret": hex(root.unseal.expose_seed()),
        "root_sealing_public": hex(root.unseal.public().as_bytes()),
        "founding": hex(founding.as_bytes()),
        "pac_id": hex(founding.id().as_bytes()),
        "pac_id_text": founding.id().to_string(),
        "roster_space": hex(roster_space(&founding.id()).as_bytes()),
        "device_key_file": hex(device.to_bytes()),
        "device_id": hex(device.id().as_bytes()),
        "device_sealing_public": hex(device.public().sealing.as_bytes()),
        "device_public": hex(cbor::encode(&device.public())),
    })
}

#[test]
fn a_phrase_leads_to_the_pac() {
    let v = stored("identity.json", &made());
    let phrase = bip39::Mnemonic::parse(v["phrase"].as_str().expect("text")).expect("a phrase");
    let seed = phrase.to_seed_normalized("");
    let sign = h("pacsync v1 root signing key", &seed);
    let seal = h("pacsync v1 root sealing key", &seed);
    assert_eq!(sign, array(&v, "root_signing_seed"));
    assert_eq!(seal, array(&v, "root_sealing_secret"));
    let root_public = *ed25519_dalek::SigningKey::from_bytes(&sign)
        .verifying_key()
        .as_bytes();
    assert_eq!(root_public, array(&v, "root_signing_public"));
    let sealing = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(seal));
    assert_eq!(sealing.to_bytes(), array(&v, "root_sealing_public"));

    let signed = bytes(&v, "founding");
    let mut d = Decoder::new(&signed);
    assert_eq!(d.array().expect("an array"), Some(2));
    let record = d.bytes().expect("the record");
    let signature = d.bytes().expect("the signature");
    assert_signed(
        &root_public,
        "pacsync v1 founding record",
        record,
        signature,
    );
    let pac = h("pacsync v1 founding record", record);
    assert_eq!(pac, array(&v, "pac_id"));
    let space = h("pacsync v1 roster space id", &pac);
    assert_eq!(space[..16], array::<16>(&v, "roster_space"));
    let read = VerifiedFounding::verify(&signed).expect("verifies");
    assert_eq!(read.id().to_string(), v["pac_id_text"]);

    let file = bytes(&v, "device_key_file");
    assert_eq!((file.len(), file[0]), (73, 1));
    assert_eq!(
        file[65..],
        h("pacsync v1 device key file check", &file[..65])[..8]
    );
    let keys = DeviceKeys::from_bytes(&file).expect("reads");
    assert_eq!(*keys.id().as_bytes(), array(&v, "device_id"));
}

fn roster_keys() -> RosterKeys {
    RosterKeys {
        roster: Key::from_bytes([0x33; 32]),
        private: Some(Key::from_bytes([0x44; 32])),
    }
}

fn grant() -> Grant {
    let root = root().1;
    let clear = GrantClear {
        version: 1,
        pac: founding().id(),
        subject: device().public(),
        scope: Scope::All,
        role: Role::Admin,
        depth: 15,
        private_hash: ByteArray::from([0; 32]),
        issuer: PublicKey(root.sign.id()),
        serial: ByteArray::from([0x55; 16]),
        rights: Rights::of(Role::Admin),
    };
    let private = GrantPrivate {
        purpose: "founder".into(),
    };
    let key = Key::from_bytes([0x44; 32]);
    Grant::issue(clear, &private, &key, &root.sign, &mut rng(3))
}

const SPACE: SpaceId = SpaceId::from_bytes([0x66; 16]);

fn parent() -> EpochId {
    EpochSecret {
        key: Key::from_bytes([0x8a; 32]),
        id_key: Key::from_bytes([0x99; 32]),
        parents: vec![],
    }
    .id()
}

fn epoch() -> EpochRecord {
    let secret = EpochSecret {
        key: Key::from_bytes([0x88; 32]),
        id_key: Key::from_bytes([0x99; 32]),
        parents: vec![ParentKey {
            epoch: parent(),
            key: Key::from_bytes([0x8a; 32]),
        }],
    };
    let recipients = [device().public().sealing, root().1.unseal.public()];
    secret.seal(SPACE, vec![parent()], recipients, &mut rng(4))
}

fn roster_made() -> Value {
    let placement = Placement {
        space: SPACE,
        attached: true,
        turn: 1,
    };
    json!({
        "about": "Entries of a roster log, by the device of identity.json; docs/wire.md, Roster.",
        "roster_key": hex(roster_keys().roster.expose()),
        "discovery_key": hex(roster_keys().discovery().expose()),
        "private_key": hex([0x44; 32]),
        "grant": hex(cbor::encode(&RosterEntry::Grant(grant()))),
        "grant_purpose": "founder",
        "epoch": hex(cbor::encode(&RosterEntry::Epoch(epoch()))),
        "epoch_space": hex(SPACE.as_bytes()),
        "epoch_id": hex(epoch().epoch.as_bytes()),
        "epoch_key": hex([0x88; 32]),
        "epoch_id_key": hex([0x99; 32]),
        "placement": hex(cbor::encode(&RosterEntry::Placement(placement))),
    })
}

#[test]
fn roster_entries_are_those_of_the_page() {
    let v = stored("roster.json", &roster_made());
    let id = made();
    let entry = bytes(&v, "grant");
    let mut d = Decoder::new(&entry);
    assert_eq!(d.array().expect("an entry"), Some(2));
    assert_eq!(d.u8().expect("its number"), 0);
    assert_eq!(d.array().expect("fields"), Some(1));
    assert_eq!(d.array().expect("a grant"), Some(3));
    let clear = d.bytes().expect("the clear part");
    let private = d.bytes().expect("the private part");
    let signature = d.bytes().expect("the signature");
    let root: [u8; 32] = array(&id, "root_signing_public");
    assert_signed(&root, "pacsync v1 grant", clear, signature);
    let read: GrantClear = cbor::decode_canonical("grant", clear).expect("reads");
    assert_eq!(
        *read.private_hash,
        h("pacsync v1 grant private part", private)
    );
    let (nonce, sealed) = private.split_first_chunk::<24>().expect("a nonce");
    let plain = open(&array(&v, "private_key"), nonce, &read.serial[..], sealed);
    assert_eq!(plain, [&[0xa1, 0x00, 0x67][..], b"founder"].concat());
    assert_eq!(
        h("pacsync v1 discovery key", &bytes(&v, "roster_key")),
        array(&v, "discovery_key")
    );

    let entry = bytes(&v, "epoch");
    let RosterEntry::Epoch(record) = cbor::decode("roster entry", &entry).expect("reads") else {
        panic!("an epoch")
    };
    let aad = [bytes(&v, "epoch_space"), bytes(&v, "epoch_id")].concat();
    for (found, secret) in record.boxes.iter().zip([
        bytes(&id, "device_key_file")[33..65].to_vec(),
        bytes(&id, "root_sealing_secret"),
    ]) {
        let secret: [u8; 32] = secret.try_into().expect("32 bytes");
        let plain = open_box(&secret, &aad, &found.sealed);
        let secret: EpochSecret = cbor::decode_canonical("secret", &plain).expect("reads");
        assert_eq!(*secret.key.expose(), array(&v, "epoch_key"));
        assert_eq!(*secret.id_key.expose(), array(&v, "epoch_id_key"));
        let keys = [bytes(&v, "epoch_key"), bytes(&v, "epoch_id_key")].concat();
        let id = h("pacsync v1 epoch id", &keys);
        assert_eq!(id[..16], bytes(&v, "epoch_id"));
    }

    let mut roster = Roster::new(founding());
    let entries: Vec<RosterEntry> = ["grant", "epoch", "placement"]
        .iter()
        .map(|field| cbor::decode_canonical("entry", &bytes(&v, field)).expect("canonical"))
        .collect();
    roster.apply(&device().id(), &entries).expect("counts");
    assert!(roster.may_write(&device().id(), &SPACE));
}

fn open_box(secret: &[u8; 32], aad: &[u8], sealed: &[u8]) -> Vec<u8> {
    let secret = x25519_dalek::StaticSecret::from(*secret);
    let public = x25519_dalek::PublicKey::from(&secret).to_bytes();
    assert_eq!(sealed[0], 2, "X25519");
    let ephemeral: [u8; 32] = sealed[1..33].try_into().expect("a key");
    let shared = secret.diffie_hellman(&ephemeral.into());
    let input = [&shared.as_bytes()[..], &ephemeral, &public].concat();
    open(
        &h("pacsync v1 sealed box", &input),
        &[0; 24],
        aad,
        &sealed[33..],
    )
}

fn beacons_made() -> Value {
    let key = roster_keys().discovery();
    let tags: Vec<Value> = [[0x00; 16], [0xab; 16]]
        .into_iter()
        .map(|nonce| {
            json!({
                "nonce": hex(nonce),
                "server_name": beacon::server_name(&key, nonce),
                "announcement": beacon::announcement(&key, nonce),
                "pairing_server_name": beacon::server_name(&beacon::slot_key(4821), nonce),
                "pairing_announcement": beacon::announcement(&beacon::slot_key(4821), nonce),
            })
        })
        .collect();
    json!({
        "about": "Tags in server names and announcements; docs/wire.md, Beacons.",
        "discovery_key": hex(key.expose()),
        "slot": 4821,
        "slot_key": hex(beacon::slot_key(4821).expose()),
        "tags": tags,
    })
}

#[test]
fn beacons_are_those_of_the_page() {
    let v = stored("beacons.json", &beacons_made());
    let slot_key = h("pacsync v1 pairing slot key", &[0x12, 0xd5]);
    assert_eq!(slot_key, array(&v, "slot_key"));
    let tag = |key: [u8; 32], domain, nonce: &[u8]| {
        let mac = k(&h(domain, &key), nonce);
        let text = data_encoding::BASE32_NOPAD.encode(&[nonce, &mac[..16]].concat());
        text.to_ascii_lowercase()
    };
    for found in items(&v, "tags") {
        let nonce = bytes(found, "nonce");
        let discovery = array(&v, "discovery_key");
        for (key, name, text) in [
            (discovery, "server_name", "announcement"),
            (slot_key, "pairing_server_name", "pairing_announcement"),
        ] {
            let sni = tag(key, "pacsync v1 server name tag", &nonce);
            assert_eq!(found[name], sni + ".home.arpa");
            assert_eq!(found[text], tag(key, "pacsync v1 mdns tag", &nonce));
        }
    }
}
