//! What is done with hostile bytes, one function for each decoder.
//!
//! cargo-fuzz calls these from `fuzz_targets`; `crates/simulations/tests/fuzz_smoke.rs` includes
//! this file and calls the same functions with mutated vectors in every test run. A function
//! fails by a panic. Besides not failing, what is accepted must be canonical where the format
//! says so. Never here: where the bytes come from.

use std::cell::OnceCell;
use std::panic;

use minicbor::Encoder;
use pacsync_daemon::control::api;
use pacsync_daemon::disk::RelPath;
use pacsync_daemon::worktree::Tracking;
use pacsync_protocol::ack::VerifiedAck;
use pacsync_protocol::checkpoint;
use pacsync_protocol::content::{Manifest, ObjectId};
use pacsync_protocol::crypto::{self, Key, SigningKey, domain};
use pacsync_protocol::grant::{Grant, Role};
use pacsync_protocol::identity::{DeviceKeys, DeviceName, Phrase, VerifiedFounding};
use pacsync_protocol::pairing::{
    Consent, Exporter, FRAME_LEN_MAX, Host, Joiner, Offer, Output, PairingCode,
};
use pacsync_protocol::roster::{Roster, RosterEntry};
use pacsync_protocol::row::Row;
use pacsync_protocol::segment::{
    ALGORITHM, Entry, Header, PLAIN_MAX, SignedSegment, VERSION, decompress,
};
use pacsync_protocol::session::{self, Config, Input, PeerStanding, Session};
use pacsync_protocol::wire::{Lane, Message};
use pacsync_protocol::{EpochId, Incarnation, LogId, PacId, SpaceId, beacon, cbor};
use pacsync_store::content::packs::{MemoryFiles, PackEnd, PackFiles, PackStore};
use pacsync_store::documents;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

const EPOCH_KEY: [u8; 32] = [0x22; 32];
const EXPORTER: Exporter = [0xee; 32];

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(1)
}

fn signer() -> SigningKey {
    SigningKey::from_seed(&[0x11; 32])
}

/// A segment as it comes from a peer: clear part, signature, and the body as far as it opens.
pub fn segment(data: &[u8]) {
    if let Ok(segment) = SignedSegment::parse(data) {
        let _ = segment.clone().verify();
        let _ = segment.assume_verified().open(&Key::from_bytes(EPOCH_KEY));
    }
}

/// A body by a member, who can sign and encrypt whatever it likes.
pub fn segment_body(data: &[u8]) {
    let packed = zstd::bulk::compress(data, 1).expect("memory suffices");
    sealed_body(&packed);
    sealed_body(data);
}

fn sealed_body(packed: &[u8]) {
    let key = Key::from_bytes(EPOCH_KEY);
    let Ok(body_len) = u32::try_from(packed.len() + 16) else {
        return;
    };
    let header = Header {
        version: VERSION,
        algorithm: ALGORITHM,
        space: SpaceId::from_bytes([0x66; 16]),
        log: LogId::new(signer().id(), Incarnation::from_bytes([2; 16])),
        first: 1,
        count: 3,
        prev: None,
        deps: vec![],
        roster_deps: vec![],
        clock: 3,
        epoch: EpochId::from_bytes([0x77; 16]),
        time_ms: 0,
        sealed: vec![],
        body_len,
    };
    let header = cbor::encode(&header);
    let body = crypto::seal(&key.derive(domain::BODY_KEY), &[0; 24], &header, packed);
    let signature = signer().sign(domain::SEGMENT_SIGN, b"not looked at");
    let mut e = Encoder::new(vec![]);
    e.array(4)
        .and_then(|e| e.bytes(&header))
        .and_then(|e| e.bytes(&[0; 24]))
        .and_then(|e| e.bytes(&body))
        .and_then(|e| e.encode(signature))
        .expect("memory suffices");
    let Ok(segment) = SignedSegment::parse(&e.into_writer()) else {
        return;
    };
    for entry in segment.assume_verified().open(&key).unwrap_or_default() {
        match entry {
            Entry::Row(bytes) => row(&bytes),
            Entry::Change { bytes, .. } => document(&bytes),
            Entry::Roster(_) | Entry::DeletesConfirmed | Entry::Unknown(_) => {}
        }
    }
}

/// What zstd makes of anything, within the bound.
pub fn inflate(data: &[u8]) {
    if let Ok(plain) = decompress(data, PLAIN_MAX) {
        assert!(plain.len() <= PLAIN_MAX);
    }
}

/// A row: what is accepted is canonical.
pub fn row(data: &[u8]) {
    if let Ok(row) = Row::from_bytes(data) {
        assert_eq!(row.to_bytes(), data);
    }
}

/// A frame of the state lane.
pub fn wire_state(data: &[u8]) {
    frame(Lane::State, data);
}

/// A frame of the content lane.
pub fn wire_content(data: &[u8]) {
    frame(Lane::Content, data);
}

fn frame(lane: Lane, data: &[u8]) {
    if let Ok(Some(message)) = Message::decode(lane, data) {
        let again = Message::decode(lane, &message.encode());
        assert_eq!(again, Ok(Some(message)));
    }
}

/// A session with a peer of the roster that sends frames: a length of two bytes before each, its
/// highest bit the lane.
pub fn session(data: &[u8]) {
    let config = Config {
        pac: PacId::from_bytes([0x22; 32]),
        standing: PeerStanding::Known,
        features: 0,
        agent: "fuzz".into(),
        addresses: vec![],
        life: pacsync_protocol::Incarnation::from_bytes([7; 16]),
    };
    let mut session = Session::new(config, 0);
    let space = SpaceId::from_bytes([0x11; 16]);
    let vector = Default::default();
    session.handle(0, Input::SpaceOpen { space, vector });
    let mut rest = data;
    let mut now_ms = 0;
    while let Some(([high, low], tail)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high & 0x7f, *low]));
        let lane = if high & 0x80 == 0 {
            Lane::State
        } else {
            Lane::Content
        };
        let (bytes, tail) = tail.split_at(length.min(tail.len()));
        rest = tail;
        now_ms += 1;
        session.handle(
            now_ms,
            Input::Frame {
                lane,
                bytes: bytes.to_vec(),
            },
        );
        serve(&mut session, now_ms);
    }
    session.handle(now_ms + session::HELLO_TIMEOUT_MS, Input::Timeout);
    serve(&mut session, now_ms);
}

/// Answers what a session asks of its owner, with nothing.
fn serve(session: &mut Session, now_ms: u64) {
    while let Some(output) = session.poll_output() {
        use session::Output;
        let input = match output {
            Output::Store { store, .. } => Input::Stored {
                store,
                entries: vec![],
                refused: vec![],
            },
            Output::Load { space, log, .. } => Input::Withhold { space, log },
            Output::Read { request, .. } => Input::Items {
                request,
                items: vec![],
            },
            Output::Send { lane, bytes } => Input::Drained {
                lane,
                bytes: bytes.len() as u64,
            },
            _ => continue,
        };
        session.handle(now_ms, input);
    }
}

/// A manifest object: what is accepted is canonical.
pub fn manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::decode(data) {
        assert_eq!(manifest.encode(), data);
    }
    let _ = cbor::decode::<ObjectId>("object id", data);
}

fn founding() -> VerifiedFounding {
    thread_local!(static MADE: OnceCell<VerifiedFounding> = const { OnceCell::new() });
    MADE.with(|made| {
        made.get_or_init(|| {
            let root = Phrase::generate(&mut rng()).root_keys();
            pacsync_protocol::identity::FoundingRecord::found(&root, 1, &mut rng())
        })
        .clone()
    })
}

/// An entry of a roster log, and the roster that counts it.
pub fn roster_entry(data: &[u8]) {
    if let Ok(entry) = cbor::decode::<RosterEntry>("roster entry", data) {
        if let RosterEntry::Grant(grant) = &entry {
            open_grant(grant);
        }
        let _ = Roster::new(founding()).apply(&signer().id(), &[entry]);
    }
    if let Ok(grant) = cbor::decode::<Grant>("grant", data) {
        open_grant(&grant);
    }
}

fn open_grant(grant: &Grant) {
    let _ = grant.verify(&founding().id());
    let _ = grant.open_private(&Key::from_bytes([0x44; 32]));
}

/// A founding record.
pub fn founding_record(data: &[u8]) {
    if let Ok(founding) = VerifiedFounding::verify(data) {
        assert_eq!(founding.as_bytes(), data);
    }
}

/// A device's key file.
pub fn device_keys(data: &[u8]) {
    if let Ok(keys) = DeviceKeys::from_bytes(data) {
        assert_eq!(keys.to_bytes().as_slice(), data);
    }
}

/// What people type: phrases, pairing codes, names, ids.
pub fn typed(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = Phrase::parse(text);
    let _ = PairingCode::parse(text);
    let _ = text.parse::<SpaceId>();
    let name = DeviceName::lossy(text);
    assert_eq!(DeviceName::new(name.as_str()), Ok(name));
}

/// Server names and announcements.
pub fn beacons(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let key = Key::from_bytes([0x33; 32]);
    let _ = beacon::verify_server_name(&key, text);
    let _ = beacon::verify_announcement(&key, text);
}

/// An ack.
pub fn ack(data: &[u8]) {
    if let Ok(ack) = VerifiedAck::from_bytes(data) {
        assert_eq!(ack.bytes(), data);
    }
}

/// A checkpoint's header, and the items of a part.
pub fn checkpoint(data: &[u8]) {
    if let Ok(header) = checkpoint::VerifiedHeader::from_bytes(data) {
        assert_eq!(header.bytes(), data);
    }
    if let Ok(items) = checkpoint::decode_items(data) {
        assert!(items.len() <= checkpoint::ITEMS_MAX);
    }
}

/// A change of a document by a stranger, applied to nothing and to a document, and bytes that
/// are loaded as one.
pub fn document(data: &[u8]) {
    thread_local!(static SAVED: OnceCell<Vec<u8>> = const { OnceCell::new() });
    let saved = SAVED.with(|saved| {
        saved
            .get_or_init(|| {
                let values = [("name".to_owned(), documents::Setting::Text("home".into()))];
                let made = documents::write(None, &values.into(), &mut rng());
                made.expect("writes").expect("differs").1
            })
            .clone()
    });
    // The gate catches the library's panics; their reports would drown everything else.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let outcome = panic::catch_unwind(|| {
        let _ = documents::apply(Some(&saved), data);
        let _ = documents::read(Some(data));
        let applied = documents::apply(None, data).ok();
        applied.map(|saved| documents::read(Some(&saved)))
    });
    panic::set_hook(hook);
    let read = outcome.expect("the gate lets no panic out");
    assert!(
        !matches!(read, Some(Err(_))),
        "what was applied cannot be read: {read:?}"
    );
}

fn name() -> DeviceName {
    DeviceName::lossy("fuzz")
}

fn sent(output: Option<Output>) -> Option<Vec<u8>> {
    match output? {
        Output::Send(frame) => Some(frame),
        _ => Some(vec![]),
    }
}

/// A joiner's first message, and if that is good, its others; a host that has answered an
/// honest joiner, and then gets this.
pub fn pairing_host(data: &[u8]) {
    let mut rng = rng();
    let mut offer = Offer::new(Role::Member, 0, &mut rng);
    let keys = DeviceKeys::generate(&mut rng);
    let joiner_keys = DeviceKeys::generate(&mut rng);
    if let Ok(mut host) = offer.answer(1, &EXPORTER, &keys, &name(), data, &mut rng) {
        let _ = host.handle(2, data);
    }
    let mut offer = Offer::new(Role::Member, 0, &mut rng);
    let code = offer.code().clone();
    let mut joiner = Joiner::new(1, &code, &EXPORTER, &joiner_keys, &name(), &mut rng);
    let hello = sent(joiner.poll_output()).expect("a hello");
    let answered = offer.answer(2, &EXPORTER, &keys, &name(), &hello, &mut rng);
    let mut host = answered.expect("answers an honest joiner");
    pump_host(&mut host, data);
}

fn pump_host(host: &mut Host, data: &[u8]) {
    let (first, second) = data.split_at(data.len() / 2);
    for frame in [data, first, second] {
        let _ = host.handle(3, frame);
        let _ = host.confirm(3, Consent::Standing);
        while sent(host.poll_output()).is_some() {}
    }
}

/// A host's messages: the first one to a fresh joiner, and all later ones to a joiner that is
/// past the proof.
pub fn pairing_joiner(data: &[u8]) {
    let mut rng = rng();
    let mut offer = Offer::new(Role::Member, 0, &mut rng);
    let keys = DeviceKeys::generate(&mut rng);
    let joiner_keys = DeviceKeys::generate(&mut rng);
    let code = offer.code().clone();
    let start = |rng: &mut ChaCha20Rng| {
        let mut joiner = Joiner::new(1, &code, &EXPORTER, &joiner_keys, &name(), rng);
        let hello = sent(joiner.poll_output()).expect("a hello");
        (joiner, hello)
    };
    let (mut fresh, _) = start(&mut rng);
    let _ = fresh.handle(2, data);
    while sent(fresh.poll_output()).is_some() {}
    let (mut joiner, hello) = start(&mut rng);
    let answered = offer.answer(2, &EXPORTER, &keys, &name(), &hello, &mut rng);
    let mut host = answered.expect("answers an honest joiner");
    let answer = sent(host.poll_output()).expect("an answer");
    joiner.handle(2, &answer).expect("an honest answer");
    let proof = sent(joiner.poll_output()).expect("a proof");
    host.handle(2, &proof).expect("an honest proof");
    let proof = sent(host.poll_output()).expect("a proof");
    joiner.handle(2, &proof).expect("an honest proof");
    joiner.confirm(3).expect("agrees");
    assert!(joiner.frame_len_max() <= FRAME_LEN_MAX);
    // A welcome and what follows it: cut at every byte that could be the end of one.
    let _ = joiner.handle(4, data);
    while sent(joiner.poll_output()).is_some() {}
    let _ = joiner.handle(4, data);
}

/// A pack that is read from front to back, whatever it holds.
pub fn pack(data: &[u8]) {
    let mut files = MemoryFiles::default();
    files.create(1).expect("no pack of that number");
    files.write_at(1, 0, data).expect("memory suffices");
    let keys = pacsync_protocol::content::IdKeys::derive(&Key::from_bytes([0x99; 32]));
    let Ok((packs, _)) = PackStore::open(Box::new(files), None) else {
        return;
    };
    let Ok(records) = packs.records(PackEnd::default()) else {
        return;
    };
    for entry in records.flatten() {
        let _ = packs.get(&entry.at, &entry.id, &keys);
    }
}

/// Bodies of requests to the control API.
pub fn control(data: &[u8]) {
    fn read<T: serde::de::DeserializeOwned + serde::Serialize>(data: &[u8]) {
        if let Ok(request) = serde_json::from_slice::<T>(data) {
            serde_json::to_vec(&request).expect("what was read can be written");
        }
    }
    read::<api::PathsRequest>(data);
    read::<api::LsRequest>(data);
    read::<api::SpaceAtRequest>(data);
    read::<api::SpaceRequest>(data);
    read::<api::ConnectRequest>(data);
    read::<api::WaitRequest>(data);
    read::<api::DeletesRequest>(data);
    read::<api::ConflictsRequest>(data);
    read::<api::ConflictRequest>(data);
    read::<api::ResolveRequest>(data);
    read::<api::PairRequest>(data);
    read::<api::PairConfirmRequest>(data);
    read::<api::PairCancelRequest>(data);
    if let Ok(path) = serde_json::from_slice::<api::TextPath>(data) {
        let _ = path.to_path();
    }
}

/// Keys of a settings document that say what is tracked, and paths.
pub fn tracking(data: &[u8]) {
    if let Ok(path) = RelPath::from_bytes(data) {
        assert_eq!(path.as_bytes(), data);
        let settings = [(Tracking::key(&path), documents::Setting::Flag(true))].into();
        assert!(Tracking::from_settings(&settings).is_tracked(&path));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let settings = [(format!("track/{text}"), documents::Setting::Flag(true))].into();
        let tracking = Tracking::from_settings(&settings);
        for path in tracking.roots() {
            assert!(tracking.is_tracked(&path));
        }
    }
}
