//! A checkpoint's header and a part.

use minicbor::Decoder;
use pacsync_protocol::checkpoint::{self, Item, Place, VerifiedHeader};
use pacsync_protocol::{
    EpochId, Head, Incarnation, LogId, SegmentHash, ShortHash, SpaceId, VersionVector,
};
use serde_json::{Value, json};

use super::{array, assert_signed, bytes, epoch_key, h, hex, open, rng, signer, stored};

const SPACE: SpaceId = SpaceId::from_bytes([0x66; 16]);

fn log() -> LogId {
    LogId::new(signer().id(), Incarnation::from_bytes([0x20; 16]))
}

fn header() -> VerifiedHeader {
    let head = Head {
        seq: 2,
        hash: ShortHash::from_bytes([0x0e; 16]),
    };
    let header = checkpoint::Header {
        version: checkpoint::VERSION,
        space: SPACE,
        device: signer().id(),
        vector: [(log(), head)].into_iter().collect(),
        stable: VersionVector::new(),
        roster: VersionVector::new(),
        rows: [7; 32].into(),
        documents: checkpoint::documents_root([(&[9; 16], &[[1; 32], [2; 32]][..])]).into(),
        epoch: EpochId::from_bytes([0x0b; 16]),
        clock: 3,
        time_ms: 1_700_000_000_000,
        salt: [5; 16].into(),
    };
    header.sign(&signer()).expect("signs")
}

fn items() -> [Item; 4] {
    let at = checkpoint::At { log: 0, seq: 2 };
    [
        Item::Log(log(), None),
        Item::Segment(checkpoint::SegmentItem {
            log: 0,
            first: 1,
            last: 2,
            hash: SegmentHash::from_bytes([0x0e; 32]),
            clock: 3,
            time_ms: 4,
            past: vec![checkpoint::At { log: 1, seq: 6 }],
        }),
        Item::Row(checkpoint::RowItem {
            row: vec![1, 2, 3].into(),
            carriers: vec![at],
        }),
        Item::Change(checkpoint::ChangeItem {
            document: [9; 16].into(),
            change: vec![4, 5].into(),
        }),
    ]
}

fn made() -> Value {
    let header = header();
    let part = header
        .seal_part(&epoch_key(), 1, Place::Last, &items(), &mut rng(9))
        .expect("seals");
    json!({
        "about": "A checkpoint's header and its last part, number 1; docs/wire.md, Checkpoints. Row and change are no valid ones.",
        "device": hex(signer().id().as_bytes()),
        "epoch_key": hex(epoch_key().expose()),
        "header": hex(header.bytes()),
        "items": hex(minicbor::to_vec(&items()[..]).expect("encodes")),
        "part": hex(part),
    })
}

#[test]
fn a_checkpoint_is_that_of_the_page() {
    let v = stored("checkpoint.json", &made());
    let raw = bytes(&v, "header");
    let mut d = Decoder::new(&raw);
    assert_eq!(d.array().expect("an array"), Some(2));
    let inner = d.bytes().expect("the header");
    let signature = d.bytes().expect("the signature");
    let domain = "pacsync v1 checkpoint";
    assert_signed(&array(&v, "device"), domain, inner, signature);
    let header = VerifiedHeader::from_bytes(&raw).expect("verifies");
    let documents = [&[9; 16][..], &[0, 0, 0, 2], &[1; 32], &[2; 32]].concat();
    let root = h("pacsync v1 checkpoint documents", &documents);
    assert_eq!(*header.header().documents, root);

    let part = bytes(&v, "part");
    let (nonce, body) = part.split_first_chunk::<24>().expect("a nonce");
    let key = h("pacsync v1 checkpoint key", &bytes(&v, "epoch_key"));
    let aad = [&h(domain, inner)[..], &1u64.to_be_bytes(), &[1]].concat();
    let packed = open(&key, nonce, &aad, body);
    let plain = zstd::bulk::decompress(&packed, 1 << 20).expect("zstd");
    assert_eq!(plain, bytes(&v, "items"));
    let mut d = Decoder::new(&plain);
    assert_eq!(d.array().expect("items"), Some(4));
    for number in 0..4 {
        assert_eq!(d.array().expect("an item"), Some(2));
        assert_eq!(d.u32().expect("its number"), number);
        assert_eq!(d.array().expect("its one field"), Some(1));
        d.skip().expect("the field");
    }
    let opened = header.open_part(&epoch_key(), 1, Place::Last, &part);
    assert_eq!(opened, Ok(items().to_vec()));
}
