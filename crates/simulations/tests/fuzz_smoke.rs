//! Every decoder against mutated vectors: no panic, and no more memory than a process of its own
//! is given. The same bodies run without end under cargo-fuzz, see `fuzz/`; where that is not at
//! hand, `PACSYNC_FUZZ_TIMES=100` makes this run a hundred times as long, on other inputs.

#[path = "../../../fuzz/src/lib.rs"]
pub mod targets;

use std::process::Command;

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use serde_json::Value;

/// Address space of the process that decodes, in KiB: binary, stacks and 200 MiB to work with.
const MEMORY_KIB: u64 = 640 * 1024;
const CHILD: &str = "PACSYNC_FUZZ_SMOKE";

struct Target {
    name: &'static str,
    run: fn(&[u8]),
    /// Inputs tried besides the seeds.
    rounds: u32,
    /// Files of `docs/vectors` whose hex fields are the seeds.
    vectors: &'static [&'static str],
    texts: &'static [&'static str],
}

const fn bytes(
    name: &'static str,
    run: fn(&[u8]),
    rounds: u32,
    vectors: &'static [&'static str],
) -> Target {
    Target {
        name,
        run,
        rounds,
        vectors,
        texts: &[],
    }
}

const fn text(name: &'static str, run: fn(&[u8]), texts: &'static [&'static str]) -> Target {
    Target {
        name,
        run,
        rounds: 20_000,
        vectors: &[],
        texts,
    }
}

const TARGETS: &[Target] = &[
    bytes("segment", targets::segment, 20_000, &["segments"]),
    bytes(
        "segment body",
        targets::segment_body,
        10_000,
        &["bodies", "rows"],
    ),
    bytes("inflate", targets::inflate, 20_000, &["bodies", "segments"]),
    bytes("row", targets::row, 40_000, &["rows"]),
    bytes("wire state", targets::wire_state, 40_000, &["wire"]),
    bytes("wire content", targets::wire_content, 40_000, &["wire"]),
    bytes("session", targets::session, 10_000, &["talk"]),
    bytes("manifest", targets::manifest, 40_000, &["content"]),
    bytes("roster entry", targets::roster_entry, 10_000, &["roster"]),
    bytes(
        "founding record",
        targets::founding_record,
        10_000,
        &["identity"],
    ),
    bytes("device keys", targets::device_keys, 20_000, &["identity"]),
    bytes("ack", targets::ack, 10_000, &["ack"]),
    bytes("checkpoint", targets::checkpoint, 10_000, &["checkpoint"]),
    bytes("document", targets::document, 4_000, &["changes"]),
    bytes("pairing host", targets::pairing_host, 1_000, &["pairing"]),
    bytes(
        "pairing joiner",
        targets::pairing_joiner,
        1_000,
        &["pairing"],
    ),
    bytes("pack", targets::pack, 4_000, &["packs"]),
    text(
        "typed",
        targets::typed,
        &[
            "4821-apple-river",
            "Jürgens Läptop 💻",
            "abandon abandon art",
        ],
    ),
    text(
        "beacons",
        targets::beacons,
        &[
            "vov2xk5lvov2xk5lvov2xk5lvp3mp5isaoil4aubuldmnhj54gqq.home.arpa",
            "vov2xk5lvov2xk5lvov2xk5lvpriedpt6kpvu3evhxrrhqcbhm7a",
        ],
    ),
    text(
        "control",
        targets::control,
        &[
            r#"{"paths":["/home/me/a",{"path":"/b?","path_bytes":"L2L/"}]}"#,
            r#"{"path":"/home/me","after":null,"limit":10}"#,
            r#"{"name":"photos","at":"/home/me/photos"}"#,
            r#"{"timeout_ms":1500,"device":"phone"}"#,
            r#"{"space":"home","action":"apply"}"#,
            r#"{"pair":1,"answer":"accept_unasked"}"#,
            r#"{"role":"admin"}"#,
            r#"{"address":"host:4711"}"#,
        ],
    ),
    text(
        "tracking",
        targets::tracking,
        &["a/b c/%25", "%ff%00/x", "", "a//b", "ü/é"],
    ),
];

/// What libFuzzer begins with, one directory for each target: the same that is mutated here. Where
/// `PACSYNC_CORPORA` names a directory, they are put there.
#[test]
fn every_fuzz_target_has_a_corpus() {
    let scratch = tempfile::tempdir().expect("a directory");
    let asked = std::env::var_os("PACSYNC_CORPORA");
    let into = asked.map_or_else(|| scratch.path().to_owned(), std::path::PathBuf::from);
    let mut written = std::collections::BTreeSet::new();
    for target in TARGETS {
        let name = target.name.replace(' ', "_");
        let dir = into.join(&name);
        std::fs::create_dir_all(&dir).expect("makes");
        let seeds = seeds(target);
        assert!(!seeds.is_empty(), "{name}");
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(dir.join(format!("vector-{number}")), seed).expect("writes");
        }
        written.insert(name);
    }
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/fuzz_targets");
    let sources = std::fs::read_dir(sources).expect("is there");
    let names = sources.map(|entry| {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().expect("a name");
        stem.to_str().expect("plain").to_owned()
    });
    assert_eq!(names.collect::<std::collections::BTreeSet<_>>(), written);
}

/// Runs itself again with a bound on memory: an allocation beyond it ends the process.
#[test]
fn no_decoder_panics_or_grows_on_mutated_vectors() {
    if std::env::var_os(CHILD).is_some() {
        for target in TARGETS {
            attack(target);
        }
        return;
    }
    let this = std::env::current_exe().expect("this program has a path");
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "ulimit -v {MEMORY_KIB} && exec \"$0\" --nocapture --test-threads=1"
        ))
        .arg(this)
        .env(CHILD, "1")
        .output()
        .expect("sh runs");
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&said)
    );
}

fn attack(target: &Target) {
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "{} has no seeds", target.name);
    let times = std::env::var("PACSYNC_FUZZ_TIMES")
        .ok()
        .and_then(|times| times.parse().ok());
    let times: u64 = times.unwrap_or(1);
    let mut rng = ChaCha20Rng::seed_from_u64(times);
    for seed in &seeds {
        (target.run)(seed);
    }
    for round in 0..u64::from(target.rounds) * times {
        let mut input = pick(&seeds, &mut rng).to_vec();
        let other = pick(&seeds, &mut rng);
        for _ in 0..=rng.next_u32() % 4 {
            mutate(&mut input, other, &mut rng);
        }
        let run = std::panic::AssertUnwindSafe(|| (target.run)(&input));
        if std::panic::catch_unwind(run).is_err() {
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!("{} fails in round {round} on {hex}", target.name);
        }
    }
}

fn pick<'s>(seeds: &'s [Vec<u8>], rng: &mut ChaCha20Rng) -> &'s [u8] {
    &seeds[rng.next_u32() as usize % seeds.len()]
}

fn at(len: usize, rng: &mut ChaCha20Rng) -> usize {
    rng.next_u32() as usize % len.max(1)
}

/// Bytes that mean much in CBOR: long lengths, the ends of integers, nesting, breaks.
const TELLING: [&[u8]; 10] = [
    &[0x00],
    &[0xff],
    &[0x80],
    &[0x9f],
    &[0xbf],
    &[0x5f],
    &[0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x1b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x81, 0x81, 0x81, 0x81, 0x81, 0x81, 0x81, 0x81],
];

fn mutate(input: &mut Vec<u8>, other: &[u8], rng: &mut ChaCha20Rng) {
    let here = at(input.len(), rng);
    match rng.next_u32() % 8 {
        0 if here < input.len() => input[here] ^= 1 << (rng.next_u32() % 8),
        1 if here < input.len() => input[here] = rng.next_u32().to_le_bytes()[0],
        2 => input.truncate(here),
        3 => {
            let telling = TELLING[at(TELLING.len(), rng)];
            input.splice(here..here, telling.iter().copied());
        }
        4 => {
            let telling = TELLING[at(TELLING.len(), rng)];
            let end = (here + telling.len()).min(input.len());
            input.splice(here..end, telling.iter().copied());
        }
        5 => {
            let end = (here + at(16, rng)).min(input.len());
            input.drain(here..end);
        }
        6 => {
            let from = at(other.len(), rng);
            let end = (from + at(64, rng)).min(other.len());
            input.splice(here..here, other[from..end].iter().copied());
        }
        _ => {
            let from = at(other.len(), rng);
            input.truncate(here);
            input.extend_from_slice(&other[from..]);
        }
    }
    input.truncate(64 * 1024);
}

fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = target
        .texts
        .iter()
        .map(|text| text.as_bytes().to_vec())
        .collect();
    for name in target.vectors {
        match *name {
            "bodies" => seeds.extend(bodies()),
            "changes" => seeds.extend(changes()),
            "packs" => seeds.push(packs()),
            "talk" => seeds.push(talk()),
            name => collect(&vectors(name), &mut seeds),
        }
    }
    seeds
}

fn vectors(name: &str) -> Value {
    let path = format!(
        "{}/../../docs/vectors/{name}.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(path).expect("the vectors can be read");
    serde_json::from_str(&text).expect("the vectors are JSON")
}

/// Every text that is hex, as bytes.
fn collect(value: &Value, into: &mut Vec<Vec<u8>>) {
    match value {
        Value::String(text) => into.extend(unhex(text)),
        Value::Array(values) => values.iter().for_each(|value| collect(value, into)),
        Value::Object(fields) => fields.values().for_each(|value| collect(value, into)),
        _ => {}
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect::<Option<Vec<u8>>>()
        .filter(|bytes| bytes.len() > 1)
}

/// Segment bodies before compression: an array of entries of every kind.
fn bodies() -> Vec<Vec<u8>> {
    let mut rows = vec![];
    collect(&vectors("rows"), &mut rows);
    let change = changes().remove(0);
    let mut body = vec![0x83];
    for (head, bytes) in [
        (&[0x82, 0x00][..], &rows[1]),
        (&[0x83, 0x01, 0x50], &change),
    ] {
        body.extend_from_slice(head);
        if head[1] == 1 {
            body.extend_from_slice(&[0x0d; 16]);
        }
        let len = u16::try_from(bytes.len())
            .expect("a short entry")
            .to_be_bytes();
        body.extend_from_slice(&[0x59, len[0], len[1]]);
        body.extend_from_slice(bytes);
    }
    body.extend_from_slice(&[0x81, 0x03]);
    vec![
        body,
        vec![0x80],
        vec![0x83, 0x81, 0x03, 0x81, 0x03, 0x82, 0x18, 0x40, 0x80],
    ]
}

/// Two changes of a settings document, the second upon the first, and what they were saved as.
fn changes() -> Vec<Vec<u8>> {
    use pacsync_store::documents::{Setting, write};
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let values = [("name".to_owned(), Setting::Text("home".into()))].into();
    let (first, saved) = write(None, &values, &mut rng)
        .expect("writes")
        .expect("differs");
    let values = [("track/a".to_owned(), Setting::Flag(true))].into();
    let made = write(Some(&saved), &values, &mut rng)
        .expect("writes")
        .expect("differs");
    vec![first, made.0, saved, made.1]
}

/// A pack with a few records, as it lies on disk.
fn packs() -> Vec<u8> {
    use pacsync_protocol::SpaceId;
    use pacsync_protocol::content::{IdKeys, ObjectId};
    use pacsync_protocol::crypto::Key;
    use pacsync_store::content::packs::{MemoryFiles, PackStore};
    let files = MemoryFiles::default();
    let keys = IdKeys::derive(&Key::from_bytes([0x99; 32]));
    let (mut packs, _) = PackStore::open(Box::new(files.clone()), None).expect("opens");
    for content in [&b"hello"[..], &[7; 3_000], b""] {
        let id = ObjectId::Content(keys.content_id(content));
        packs
            .put(&SpaceId::from_bytes([0x66; 16]), &id, content)
            .expect("memory suffices");
    }
    packs.sync().expect("memory suffices");
    files.contents(1).expect("the first pack")
}

/// All frames of the wire's vectors as one talk, as the session's target cuts it.
fn talk() -> Vec<u8> {
    let wire = vectors("wire");
    let mut talk = vec![];
    for message in wire["messages"].as_array().expect("a list") {
        let frame = message["frame"].as_str().and_then(unhex).expect("hex");
        let content = message["type"].as_u64().is_some_and(|number| number >= 32);
        let len = u16::try_from(frame.len()).expect("a short frame");
        let len = if content { len | 0x8000 } else { len };
        talk.extend_from_slice(&len.to_be_bytes());
        talk.extend_from_slice(&frame);
    }
    talk
}
