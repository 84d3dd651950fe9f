use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::content::ManifestId;
use crate::ids::{ChunkId, ContentId, DeviceId, Incarnation, LogId, PacId, ShortHash, SpaceId};
use crate::vector::{Dep, Head};

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/vectors/wire.json");

fn space() -> SpaceId {
    SpaceId::from_bytes([0x11; 16])
}

fn dep(n: u8) -> Dep {
    let log = LogId::new(
        DeviceId::from_bytes([n; 32]),
        Incarnation::from_bytes([n; 16]),
    );
    Dep {
        log,
        head: Head {
            seq: u64::from(n),
            hash: ShortHash::from_bytes([n; 16]),
        },
    }
}

/// One message of each kind, and of each shape that a kind has.
fn messages() -> Vec<(&'static str, Message)> {
    let content = ContentId::from_bytes([0x33; 32]);
    let forked = LogId {
        branch: Some(ShortHash::from_bytes([9; 16])),
        ..dep(2).log
    };
    let pieces = |pieces| {
        Message::WantPieces(WantPieces {
            request: 8,
            space: space(),
            content,
            pieces,
        })
    };
    let answer = |items| Answer {
        request: 7,
        first: 0,
        last: true,
        items,
    };
    vec![
        (
            "hello",
            Message::Hello(Hello {
                min: 1,
                max: 1,
                features: 0,
                pac: PacId::from_bytes([0x22; 32]),
                known: true,
                agent: "pacsync 0.1.0".into(),
                addresses: vec!["192.0.2.1:4711".into()],
                life: dep(3).log.incarnation,
            }),
        ),
        ("known", Message::Known),
        (
            "vector",
            Message::Vector(VectorPart {
                space: space(),
                heads: vec![dep(1), dep(2)],
                last: true,
            }),
        ),
        (
            "have",
            Message::Have(Have {
                space: space(),
                heads: vec![dep(3)],
            }),
        ),
        (
            "segments",
            Message::Segments(Segments {
                space: space(),
                segments: vec![vec![0x77; SEGMENT_MIN].into()],
            }),
        ),
        (
            "decline",
            Message::Decline(Decline {
                space: space(),
                log: forked,
            }),
        ),
        (
            "space closed",
            Message::SpaceClosed(SpaceClosed { space: space() }),
        ),
        (
            "acks",
            Message::Acks(Acks {
                acks: vec![vec![4, 5].into()],
                answers: None,
            }),
        ),
        (
            "acks in answer",
            Message::Acks(Acks {
                acks: vec![],
                answers: Some(6),
            }),
        ),
        (
            "ack wanted",
            Message::AckWanted(AckWanted {
                space: space(),
                token: 6,
            }),
        ),
        (
            "want contents",
            Message::WantContents(WantContents {
                request: 7,
                space: space(),
                ids: vec![content],
            }),
        ),
        (
            "want manifests",
            pieces(Pieces::Manifests(vec![ManifestId::from_bytes([0x44; 32])])),
        ),
        (
            "want chunks",
            pieces(Pieces::Chunks(vec![ChunkRef {
                id: ChunkId::from_bytes([0x55; 32]),
                len: 4096,
            }])),
        ),
        ("cancel", Message::Cancel(Cancel { request: 8 })),
        (
            "close",
            Message::Close(Close::new(CloseCode::ShuttingDown, "shutting down")),
        ),
        ("pruned", Message::Pruned(Pruned { space: space() })),
        (
            "want checkpoint",
            Message::WantCheckpoint(WantCheckpoint {
                space: space(),
                part: 1,
            }),
        ),
        (
            "checkpoint part",
            Message::CheckpointPart(CheckpointPart {
                space: space(),
                part: 0,
                header: Some(vec![1, 2].into()),
                last: false,
                bytes: vec![3, 4].into(),
            }),
        ),
        (
            "started from",
            Message::StartedFrom(StartedFrom {
                header: vec![1, 2].into(),
            }),
        ),
        (
            "want branch",
            Message::WantBranch(WantBranch {
                space: space(),
                to: dep(2),
                trail: vec![dep(1).head],
            }),
        ),
        (
            "branch",
            Message::Branch(Branch {
                space: space(),
                segments: vec![vec![1; SEGMENT_MIN].into()],
            }),
        ),
        (
            "contents",
            Message::Contents(answer(vec![
                Item::Whole(b"hello".to_vec()),
                Item::Manifest(vec![0xa0]),
                Item::Missing,
            ])),
        ),
        (
            "pieces",
            Message::Pieces(answer(vec![Item::Whole(b"chunk".to_vec())])),
        ),
    ]
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

#[test]
fn every_message_survives_its_frame_and_belongs_to_one_lane() {
    for (name, message) in messages() {
        let frame = message.encode();
        let other = match message.lane() {
            Lane::State => Lane::Content,
            Lane::Content => Lane::State,
        };
        assert!(Message::decode(other, &frame).is_err(), "{name}");
        assert_eq!(
            Message::decode(message.lane(), &frame),
            Ok(Some(message)),
            "{name}"
        );
    }
}

/// With `PACSYNC_WRITE_VECTORS` set, writes the file instead.
#[test]
fn frames_are_those_of_the_documentation() {
    let rows: Vec<Value> = messages()
        .into_iter()
        .map(|(name, message)| {
            json!({ "name": name, "type": message.number(), "frame": hex(&message.encode()) })
        })
        .collect();
    let made = json!({
        "about": "One frame of each message of protocol 1; docs/wire.md has the fields.",
        "protocol": PROTOCOL,
        "messages": rows,
    });
    if std::env::var_os("PACSYNC_WRITE_VECTORS").is_some() {
        let text = serde_json::to_string_pretty(&made).expect("JSON") + "\n";
        std::fs::write(VECTORS, text).expect("docs/vectors/wire.json can be written");
    }
    let text = std::fs::read_to_string(VECTORS).expect("docs/vectors/wire.json can be read");
    let stored: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(stored, made);
}

#[test]
fn unknown_keys_are_skipped_and_unknown_types_refused_or_ignored() {
    // Cancel with a key that nobody knows.
    let frame = [0x82, 0x0b, 0xa2, 0x00, 0x08, 0x18, 0x63, 0x82, 0x01, 0x02];
    let cancel = Message::Cancel(Cancel { request: 8 });
    assert_eq!(Message::decode(Lane::State, &frame), Ok(Some(cancel)));
    assert!(Message::decode(Lane::State, &[0x82, 0x13, 0xa0]).is_err());
    assert_eq!(
        Message::decode(Lane::State, &[0x82, 0x18, 0x40, 0xa0]),
        Ok(None)
    );
    assert_eq!(
        Message::decode(Lane::Content, &[0x83, 0x18, 0x40, 0xa0, 0x01]),
        Ok(None)
    );
}

#[test]
fn claimed_lengths_cost_nothing() {
    // A vector that claims 2^32 logs, and a list of segments of 2^62 entries.
    let vector = [0x82, 0x02, 0xa1, 0x01, 0x9b, 0, 0, 0, 1, 0, 0, 0, 0];
    let segments = [0x82, 0x04, 0xa1, 0x01, 0x9b, 0x40, 0, 0, 0, 0, 0, 0, 0];
    assert!(Message::decode(Lane::State, &vector).is_err());
    assert!(Message::decode(Lane::State, &segments).is_err());
    assert!(Message::decode(Lane::State, &vec![0; Lane::State.frame_max() + 1]).is_err());
}

#[test]
fn content_is_compressed_where_that_pays() {
    let answer = |byte: fn(u32) -> u8| {
        let bytes: Vec<u8> = (0..100_000u32).map(byte).collect();
        Message::Contents(Answer {
            request: 1,
            first: 2,
            last: false,
            items: vec![Item::Whole(bytes)],
        })
    };
    let text = answer(|n| (n % 7) as u8);
    let noise = answer(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[0]);
    assert!(text.encode().len() < 10_000);
    assert!(noise.encode().len() > 100_000);
    for message in [text, noise] {
        assert_eq!(
            Message::decode(Lane::Content, &message.encode()),
            Ok(Some(message))
        );
    }
}

#[test]
fn a_compressed_answer_inflates_to_a_bound() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).expect("compresses");
    let mut e = Encoder::new(Vec::new());
    e.array(2)
        .and_then(|e| e.u16(32))
        .and_then(|e| e.map(5))
        .expect("encodes");
    for (key, value) in [(0, 1), (1, 0), (3, 1)] {
        e.u8(key).and_then(|e| e.u64(value)).expect("encodes");
    }
    e.u8(2).and_then(|e| e.bool(true)).expect("encodes");
    e.u8(4).and_then(|e| e.bytes(&bomb)).expect("encodes");
    assert!(Message::decode(Lane::Content, &e.into_writer()).is_err());
}

#[test]
fn closing_texts_are_cut_between_characters() {
    let close = Close::new(CloseCode::Other(99), &"ä".repeat(100));
    assert_eq!(close.text, "ä".repeat(32));
    assert_eq!(CloseCode::from_number(99), CloseCode::Other(99));
    for number in 0..9 {
        assert_eq!(CloseCode::from_number(number).number(), number);
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Message::decode(Lane::State, &bytes);
        let _ = Message::decode(Lane::Content, &bytes);
    }

    #[test]
    fn no_changed_frame_panics(
        which in 0..23usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let messages = messages();
        let (_, message) = &messages[which];
        let mut frame = message.encode();
        for (at, byte) in changes {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        let _ = Message::decode(message.lane(), &frame);
        let _ = Message::decode(message.lane(), &frame[..cut.index(frame.len())]);
    }
}
