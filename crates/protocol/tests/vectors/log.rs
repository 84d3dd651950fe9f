//! Rows, segments, acks.

use minicbor::Decoder;
use pacsync_protocol::ack::{Ack, VerifiedAck};
use pacsync_protocol::row::{At, Content, Keys, Kind, Life, Name, Row};
use pacsync_protocol::segment::{Draft, Entry, SignedSegment, VerifiedSegment};
use pacsync_protocol::{
    ContentId, Dep, DeviceId, EpochId, Head, Incarnation, LogId, NodeId, RowId, ShortHash, SpaceId,
};
use serde_json::{Value, json};

use super::{array, assert_signed, bytes, epoch_key, h, hex, items, open, rng, signer, stored};

const NODE: NodeId = NodeId::from_bytes([0x01; 16]);
const SPACE: SpaceId = SpaceId::from_bytes([0x66; 16]);

fn at(name: &[u8], stamp: u64) -> At {
    At {
        parent: NodeId::ROOT,
        name: Name::new(name).expect("a name"),
        stamp,
    }
}

fn content(id: u8, inline: Option<&[u8]>) -> Content {
    Content {
        id: ContentId::from_bytes([id; 32]),
        size: inline.map_or(70_000, |bytes| bytes.len() as u64),
        mtime_ns: 1_700_000_000_123_456_789,
        inline: inline.map(<[u8]>::to_vec),
    }
}

fn rows() -> Vec<(&'static str, Row)> {
    let file = Keys {
        kind: Some(Kind::File),
        at: Some(at(b"a.txt", 1)),
        content: Some(content(0xc1, Some(b"hi"))),
        mode: Some(0o644),
        life: Some(Life::Live),
        ..Keys::default()
    };
    let birth = Row::new(NODE, vec![], file);
    let id = birth.id();
    let past = |keys| Row::new(NODE, vec![id], keys);
    let of = |n: u8| NodeId::from_bytes([n; 16]);
    let link = Keys {
        kind: Some(Kind::Symlink),
        at: Some(at(b"link", 3)),
        content: Some(content(0xc2, Some(b"../a.txt"))),
        ..Keys::default()
    };
    let dir = Keys {
        kind: Some(Kind::Dir),
        at: Some(at(b"not UTF-8: \xff", 2)),
        adopted: true,
        ..Keys::default()
    };
    let mut later = Keys {
        mode: Some(0o600),
        ..Keys::default()
    };
    later.unknown.insert(9, vec![0x82, 0x01, 0x02]);
    let only = |set: fn(&mut Keys)| {
        let mut keys = Keys::default();
        set(&mut keys);
        keys
    };
    vec![
        ("birth of a file", birth),
        ("birth of a directory", Row::new(of(2), vec![], dir)),
        ("birth of a symlink", Row::new(of(3), vec![], link)),
        (
            "move",
            past(Keys {
                at: Some(at(b"b.txt", 4)),
                ..Keys::default()
            }),
        ),
        (
            "edit",
            past(Keys {
                content: Some(content(0xc3, None)),
                ..Keys::default()
            }),
        ),
        ("mode", past(only(|keys| keys.mode = Some(0o755)))),
        ("delete", past(only(|keys| keys.life = Some(Life::Dead)))),
        (
            "unification",
            past(only(|keys| keys.into = Some(NodeId::from_bytes([4; 16])))),
        ),
        (
            "merge",
            Row::new(
                NODE,
                vec![RowId::from_bytes([2; 32]), RowId::from_bytes([1; 32])],
                Keys {
                    content: Some(content(0xc4, None)),
                    merge: Some(1),
                    ..Keys::default()
                },
            ),
        ),
        ("a key of a later version", past(later)),
    ]
}

fn rows_made() -> Value {
    let rows: Vec<Value> = rows()
        .into_iter()
        .map(|(name, row)| {
            json!({ "name": name, "row": hex(row.to_bytes()), "id": hex(row.id().as_bytes()) })
        })
        .collect();
    let refused: Vec<Value> = refused()
        .into_iter()
        .map(|(why, row)| {
            let error = Row::from_bytes(&row).expect_err("is refused");
            json!({ "why": why, "row": hex(row), "error": error.to_string() })
        })
        .collect();
    json!({ "about": "Rows and their ids; docs/wire.md, Rows.", "rows": rows, "refused": refused })
}

/// Rows that break one rule each.
fn refused() -> Vec<(&'static str, Vec<u8>)> {
    let keys = |keys: &[u8]| {
        let head = [
            &[0x83, 0x50][..],
            &[0x01; 16],
            &[0x81, 0x58, 0x20],
            &[0x02; 32],
        ]
        .concat();
        [&head, keys].concat()
    };
    let place = [&[0xa1, 0x01, 0x83, 0x50][..], &[0x00; 16]].concat();
    let place = |rest: &[u8]| keys(&[&place, rest].concat());
    vec![
        (
            "no past makes it a birth, which has a kind and a place",
            [&[0x83, 0x50][..], &[0x01; 16], &[0x80, 0xa0]].concat(),
        ),
        (
            "the mode has more than nine bits",
            keys(&[0xa1, 0x03, 0x19, 0x03, 0xff]),
        ),
        (
            "the map's length is not in its shortest form",
            keys(&[0xb8, 0x01, 0x03, 0x01]),
        ),
        (
            "adopted is written although it is false",
            keys(&[0xa1, 0x06, 0xf4]),
        ),
        (
            "keys are not ascending",
            keys(&[0xa2, 0x04, 0xf4, 0x03, 0x01]),
        ),
        ("the name is empty", place(&[0x40, 0x01])),
        ("the name is reserved", place(b"\x49.pacsync~\x01")),
        ("the stamp is 0", place(b"\x41a\x00")),
        ("bytes are left over", keys(&[0xa0, 0x00])),
    ]
}

#[test]
fn rows_are_those_of_the_page() {
    let v = stored("rows.json", &rows_made());
    for found in items(&v, "rows") {
        let raw = bytes(found, "row");
        assert_eq!(
            h("pacsync v1 row", &raw),
            array(found, "id"),
            "{}",
            found["name"]
        );
        let row = Row::from_bytes(&raw).expect("a row");
        let mut d = Decoder::new(&raw);
        assert_eq!(d.array().expect("an array"), Some(3));
        assert_eq!(d.bytes().expect("the node"), row.node.as_bytes());
        assert_eq!(d.array().expect("the past"), Some(row.past.len() as u64));
    }
    for found in items(&v, "refused") {
        let raw = bytes(found, "row");
        let error = Row::from_bytes(&raw).expect_err("is refused");
        assert_eq!(found["error"], error.to_string(), "{}", found["why"]);
    }
}

fn log() -> LogId {
    LogId::new(signer().id(), Incarnation::from_bytes([0x02; 16]))
}

fn dep(n: u8) -> Dep {
    let device = DeviceId::from_bytes([n; 32]);
    Dep {
        log: LogId::new(device, Incarnation::from_bytes([n; 16])),
        head: Head {
            seq: u64::from(n),
            hash: ShortHash::from_bytes([n; 16]),
        },
    }
}

fn draft(entries: Vec<Entry>) -> Draft {
    Draft {
        space: SPACE,
        log: log(),
        prev: None,
        deps: vec![],
        roster_deps: vec![dep(0x41)],
        clock: 3,
        epoch: EpochId::from_bytes([0x77; 16]),
        time_ms: 1_700_000_000_000,
        entries,
    }
}

fn segments() -> [VerifiedSegment; 2] {
    let rows = rows().into_iter().take(3);
    let births = rows.map(|(_, row)| Entry::Row(row.to_bytes())).collect();
    let mut rng = rng(5);
    let first = draft(births).seal(&epoch_key(), &signer(), &mut rng);
    let first = first.expect("seals");
    let change = Entry::Change {
        document: [0x0d; 16],
        bytes: b"an Automerge change".to_vec(),
    };
    let mut next = draft(vec![change, Entry::DeletesConfirmed]);
    next.prev = Some((3, first.hash()));
    next.deps = vec![dep(0x42), dep(0x43)];
    let second = next.seal(&epoch_key(), &signer(), &mut rng);
    [first, second.expect("seals")]
}

fn segments_made() -> Value {
    let segments = segments().map(|segment| {
        let header = segment.header();
        json!({
            "segment": hex(segment.bytes()),
            "hash": hex(segment.hash().as_bytes()),
            "first": header.first,
            "count": header.count,
            "last": header.last(),
        })
    });
    json!({
        "about": "Two segments of one log; docs/wire.md, Segments.",
        "epoch_key": hex(epoch_key().expose()),
        "writer_seed": hex([0x11; 32]),
        "writer": hex(signer().id().as_bytes()),
        "body_key": hex(epoch_key().derive("pacsync v1 epoch body key").expose()),
        "segments": segments,
    })
}

#[test]
fn segments_are_those_of_the_page() {
    let v = stored("segments.json", &segments_made());
    let body_key = h("pacsync v1 epoch body key", &bytes(&v, "epoch_key"));
    assert_eq!(body_key, array(&v, "body_key"));
    let writer = array(&v, "writer");
    for found in items(&v, "segments") {
        let raw = bytes(found, "segment");
        let mut d = Decoder::new(&raw);
        assert_eq!(d.array().expect("an array"), Some(4));
        let header = d.bytes().expect("the header");
        let nonce: [u8; 24] = d.bytes().expect("the nonce").try_into().expect("24 bytes");
        let body = d.bytes().expect("the body");
        let signature = d.bytes().expect("the signature");
        let length = u32::try_from(header.len()).expect("short").to_be_bytes();
        let hash = h(
            "pacsync v1 segment",
            &[&length, header, &nonce, body].concat(),
        );
        assert_eq!(hash, array(found, "hash"));
        assert_signed(&writer, "pacsync v1 segment signature", &hash, signature);
        let plain = zstd::stream::decode_all(&open(&body_key, &nonce, header, body)[..]);
        let plain = plain.expect("inflates");
        let mut d = Decoder::new(&plain);
        assert_eq!(d.array().expect("entries"), found["count"].as_u64());
        let parsed = SignedSegment::parse(&raw).expect("parses");
        let parsed = parsed.verify().expect("verifies");
        assert_eq!(parsed.head().seq, found["last"]);
        let entries = parsed.open(&epoch_key()).expect("opens");
        assert_eq!(entries.len() as u64, found["count"]);
    }
    let [first, second] = segments();
    assert_eq!(second.header().prev, Some(first.hash()));
}

fn ack_made() -> Value {
    let heads = [(log(), 5), (dep(0x42).log, 7)].map(|(log, seq)| {
        let hash = ShortHash::from_bytes([0x0e; 16]);
        (log, Head { seq, hash })
    });
    let ack = Ack {
        device: signer().id(),
        space: SPACE,
        vector: heads.into_iter().collect(),
        clock: 4,
        time_ms: 1_700_000_000_000,
        roster: heads.into_iter().take(1).collect(),
    };
    let ack = ack.sign(&signer()).expect("signs");
    json!({
        "about": "One device's ack of two logs; docs/wire.md, Acks.",
        "device": hex(signer().id().as_bytes()),
        "ack": hex(ack.bytes()),
    })
}

#[test]
fn an_ack_is_that_of_the_page() {
    let v = stored("ack.json", &ack_made());
    let raw = bytes(&v, "ack");
    let mut d = Decoder::new(&raw);
    assert_eq!(d.array().expect("an array"), Some(2));
    let inner = d.bytes().expect("the ack");
    let signature = d.bytes().expect("the signature");
    assert_signed(&array(&v, "device"), "pacsync v1 ack", inner, signature);
    let read = VerifiedAck::from_bytes(&raw).expect("verifies");
    assert_eq!(read.ack().vector.len(), 2);
}
