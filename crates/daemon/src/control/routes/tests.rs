//! The HTTP mapping over a real socket, with a core that gives fixed answers,
//! and the description held to the routes.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::FlockOperation;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::control::api::{
    Check, CheckResult, ConflictedPath, ContentPlace, DeviceInfo, DeviceRef, Differs, Entry,
    EntryKind, Fork, HeldDeletes, HeldDirection, HoldBack, Kept, NeedsUser, Notice, PairEvent,
    PeerStatus, Problem, Restored, SpaceState, SpaceStatus, StayReason, Stayed, TextPath, TextRoot,
    Tracked, Transfer, UndoReport, UndoneKind, UndonePath, UndoneWhat, Unrestored, Version,
    VersionContent, VersionInfo, VersionKind,
};
use crate::control::{ControlSocket, CoreHandle, CoreReceiver, serve};
use pacsync_protocol::grant::Role;

fn text(path: &str) -> TextPath {
    TextPath::from_path(Path::new(path))
}

fn device() -> DeviceRef {
    DeviceRef {
        id: "d1".into(),
        name: "laptop".into(),
    }
}

fn problem() -> Problem {
    Problem {
        path: text("/a"),
        what: "is unreadable".into(),
        in_the_way: true,
    }
}

fn space() -> SpaceStatus {
    SpaceStatus {
        id: "s1".into(),
        name: "home".into(),
        root: Some(TextRoot::from_path(Path::new("/home/me"))),
        attached: true,
        state: SpaceState::Idle,
        files: 1,
        bytes: 2,
        pending: 0,
        transfers: vec![Transfer {
            path: text("b"),
            bytes_done: 1,
            bytes_total: 2,
        }],
        conflicts: 0,
        held_deletes: 0,
    }
}

fn conflict() -> ConflictedPath {
    ConflictedPath {
        space: "home".into(),
        root: Some(TextRoot::from_path(Path::new("/home/me"))),
        path: TextPath::from_bytes(b"a\xff"),
        differs: Differs::Contents,
        beneath_hidden: false,
        versions: vec![VersionInfo {
            id: "abcdefgh".into(),
            row: "abcdefghijkl".into(),
            shown: true,
            kind: EntryKind::File,
            device: device(),
            mine: true,
            time_ms: 1,
            size: Some(2),
            mtime_ms: Some(-1),
            content: ContentPlace::Elsewhere,
            on: vec![device()],
        }],
    }
}

fn version() -> VersionContent {
    VersionContent {
        id: "abcdefgh".into(),
        bytes: vec![0, 255],
    }
}

fn status() -> Status {
    Status {
        version: "1".into(),
        pid: 1,
        uptime_ms: 1,
        device: device(),
        pac: "p1".into(),
        in_sync: true,
        listen: vec![],
        peers: vec![PeerStatus {
            id: "d2".into(),
            name: "server".into(),
            connected: false,
            address: None,
            in_sync: false,
            received: false,
            last_seen_ms: Some(1),
        }],
        spaces: vec![space()],
        conflicts: 0,
        held_deletes: 0,
        problems: vec![problem()],
        needs_user: vec![NeedsUser {
            what: "x".into(),
            command: "y".into(),
        }],
        notices: vec![Notice {
            what: "x".into(),
            paths: vec![text("a")],
        }],
        hold_back: vec![HoldBack {
            device: DeviceRef {
                id: "d".into(),
                name: "stick".into(),
            },
            space: "home".into(),
            since_ms: Some(1),
        }],
        forks: vec![Fork {
            device: DeviceRef {
                id: "d".into(),
                name: "stick".into(),
            },
            since_ms: 1,
        }],
    }
}

/// Answers every command that is no stream with a full sample; `connect` is refused.
fn answer_with_sample(command: Command) {
    let sent = match command {
        Command::Status { reply } => reply.send(Ok(status())).is_ok(),
        Command::Add { paths, reply } => reply
            .send(Ok(AddReport {
                added: paths.iter().map(|path| TextPath::from_path(path)).collect(),
                files: 1,
                bytes: 2,
                problems: vec![problem()],
            }))
            .is_ok(),
        Command::Forget { paths, reply } => reply
            .send(Ok(ForgetReport {
                forgotten: paths.iter().map(|path| TextPath::from_path(path)).collect(),
            }))
            .is_ok(),
        Command::Ls { limit, reply, .. } => reply
            .send(Ok(Listing {
                space: "home".into(),
                root: TextRoot::from_path(Path::new("/home/me")),
                tracked: vec![Tracked {
                    path: text("a"),
                    tracked: true,
                }],
                entries: vec![Entry {
                    path: text("a"),
                    kind: EntryKind::File,
                    size: u64::try_from(limit).ok(),
                    mtime_ms: Some(-1),
                    mode: Some(0o644),
                    on_disk: true,
                    conflict: false,
                }],
                more: false,
            }))
            .is_ok(),
        Command::Log { path, reply, .. } => reply
            .send(Ok(LogReport {
                space: "home".into(),
                path: TextPath::from_path(&path),
                deleted: true,
                versions: vec![Version {
                    version: "v".into(),
                    id: "v1".into(),
                    what: VersionKind::Restored,
                    kind: EntryKind::File,
                    time_ms: Some(1),
                    device: Some(device()),
                    size: Some(2),
                    name: Some(text("a")),
                    shown: false,
                    kept: Some(Kept::Elsewhere),
                    devices: vec![device()],
                }],
                more: true,
            }))
            .is_ok(),
        Command::Undo { reply } => reply
            .send(Ok(UndoReport {
                space: "home".into(),
                what: UndoneWhat::Batch,
                device: device(),
                time_ms: 1,
                undone: vec![UndonePath {
                    path: text("a"),
                    what: UndoneKind::BroughtBack,
                    on_disk: true,
                }],
                stayed: vec![Stayed {
                    path: text("b"),
                    why: StayReason::Changed,
                }],
                missing: vec![Unrestored {
                    path: text("c"),
                    version: "w".into(),
                    devices: vec![device()],
                }],
            }))
            .is_ok(),
        Command::Restore { order, reply, .. } => reply
            .send(Ok(RestoreReport {
                space: "home".into(),
                restored: vec![Restored {
                    path: text("a"),
                    kind: EntryKind::File,
                    version: Some("v".into()),
                    size: Some(2),
                    on_disk: true,
                }],
                missing: vec![Unrestored {
                    path: text("b"),
                    version: "w".into(),
                    devices: vec![device()],
                }],
                to: order.to.as_deref().map(TextPath::from_path),
            }))
            .is_ok(),
        Command::SpaceCreate { reply, .. }
        | Command::SpaceAttach { reply, .. }
        | Command::SpaceDetach { reply, .. } => {
            reply.send(Ok(SpaceReport { space: space() })).is_ok()
        }
        Command::SpaceKeep { request, reply } => reply
            .send(Ok(KeepReport {
                space: request.name,
                text: "forever".into(),
                rest: "30d".into(),
                percent: 10,
                bytes: 5,
            }))
            .is_ok(),
        Command::SpaceLs { reply } => reply
            .send(Ok(SpaceList {
                spaces: vec![space()],
            }))
            .is_ok(),
        Command::Devices { reply } => reply
            .send(Ok(DeviceList {
                devices: vec![DeviceInfo {
                    id: "d1".into(),
                    name: "laptop".into(),
                    role: Role::Admin,
                    this: true,
                    connected: true,
                    address: "127.0.0.1:1".parse().ok(),
                    in_sync: true,
                    last_seen_ms: Some(1),
                    enrolled_by: Some("d0".into()),
                }],
            }))
            .is_ok(),
        Command::Connect { address, reply } => reply
            .send(Err(CommandError::not_authorised(format!(
                "{address} refuses this device"
            ))
            .with_hint("pair again")
            .with_items(["x"])))
            .is_ok(),
        Command::Scan { reply, .. } => reply
            .send(Ok(ScanReport {
                looked_at: 1,
                changes: 0,
                problems: vec![problem()],
            }))
            .is_ok(),
        Command::Wait { reply, .. } => reply
            .send(Ok(WaitReport {
                in_sync: true,
                devices: vec![device()],
            }))
            .is_ok(),
        Command::Deletes { action, reply, .. } => reply
            .send(Ok(DeletesReport {
                action,
                held: vec![HeldDeletes {
                    space: "home".into(),
                    direction: HeldDirection::ToDisk,
                    why: "x".into(),
                    count: 1,
                    paths: vec![text("a")],
                }],
            }))
            .is_ok(),
        Command::Conflicts { reply, .. } => reply
            .send(Ok(ConflictList {
                conflicts: vec![conflict()],
                total: 1,
            }))
            .is_ok(),
        Command::ConflictContents { reply, .. } => reply
            .send(Ok(VersionContents {
                conflict: conflict(),
                contents: vec![version()],
                base: Some(version()),
            }))
            .is_ok(),
        Command::Resolve { reply, .. } => reply
            .send(Ok(ResolveReport {
                space: "home".into(),
                path: text("a"),
                kept: Some("abcdefgh".into()),
                beside: vec![text("b")],
                on_disk: true,
            }))
            .is_ok(),
        Command::PairConfirm { reply, .. } | Command::PairCancel { reply, .. } => {
            reply.send(Ok(())).is_ok()
        }
        Command::Doctor { reply } => reply
            .send(Ok(DoctorReport {
                checks: vec![Check {
                    name: "port".into(),
                    result: CheckResult::Warn,
                    detail: "x".into(),
                    hint: Some("y".into()),
                }],
            }))
            .is_ok(),
        Command::Shutdown { reply } => reply.send(Ok(Stopping { pid: 1 })).is_ok(),
        Command::PairStart { .. } | Command::Subscribe { .. } => false,
    };
    assert!(sent, "somebody waits for the answer");
}

/// A served home and what stands for the core.
struct Served {
    home: tempfile::TempDir,
    _lock: File,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<Result<(), crate::control::ServeError>>,
}

impl Served {
    fn start() -> (Self, CoreReceiver) {
        let home = tempfile::tempdir().expect("a directory");
        let lock = File::create(home.path().join("lock")).expect("creates");
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("locks");
        let socket = ControlSocket::bind(home.path(), lock.as_fd()).expect("binds");
        let (core, receiver) = CoreHandle::new();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(socket, core, shutdown.clone()));
        (
            Self {
                home,
                _lock: lock,
                shutdown,
                server,
            },
            receiver,
        )
    }

    fn with_samples() -> Self {
        let (served, mut receiver) = Self::start();
        tokio::spawn(async move {
            while let Some(command) = receiver.recv().await {
                answer_with_sample(command);
            }
        });
        served
    }

    async fn open(&self, method: &str, path: &str, body: &str) -> BufReader<UnixStream> {
        let stream = crate::control::socket::connect(self.home.path()).expect("connects");
        stream.set_nonblocking(true).expect("sets");
        let mut stream = UnixStream::from_std(stream).expect("a stream");
        let length = body.len();
        let method = method.to_uppercase();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("writes");
        // A server that refuses a large body answers and closes without reading it.
        let _ = stream.write_all(body.as_bytes()).await;
        BufReader::new(stream)
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = self.open(method, path, body).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        let text = String::from_utf8(bytes).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .expect("a status");
        (status, serde_json::from_str(body).expect("JSON"))
    }
}

/// The next event's data of a stream.
async fn next_event(stream: &mut BufReader<UnixStream>) -> Value {
    loop {
        let mut line = String::new();
        assert_ne!(
            stream.read_line(&mut line).await.expect("reads"),
            0,
            "the stream has ended"
        );
        if let Some(data) = line.strip_prefix("data: ") {
            return serde_json::from_str(data).expect("JSON");
        }
    }
}

fn description() -> Value {
    serde_json::from_str(OPENAPI).expect("JSON")
}

/// Says where a value differs from its schema: an unknown field, a missing one, another type.
fn misfits(document: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let pointer = name.trim_start_matches('#');
        let Some(target) = document.pointer(pointer) else {
            return vec![format!("{at}: {name} is not there")];
        };
        return misfits(document, target, value, at);
    }
    if let Some(options) = schema["oneOf"].as_array() {
        let fits = options
            .iter()
            .any(|option| misfits(document, option, value, at).is_empty());
        return if fits {
            vec![]
        } else {
            vec![format!("{at}: fits no variant: {value}")]
        };
    }
    if let Some(constant) = schema.get("const") {
        return if constant == value {
            vec![]
        } else {
            vec![format!("{at}: not {constant}")]
        };
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        return vec![format!("{at}: {value} is not a word of it")];
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(some) => some.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if !types.contains(&kind) {
        return vec![format!("{at}: {kind} is not {types:?}")];
    }
    match value {
        Value::Array(items) => items
            .iter()
            .flat_map(|item| misfits(document, &schema["items"], item, &format!("{at}[]")))
            .collect(),
        Value::Object(fields) if schema["properties"].is_object() => {
            let mut found = Vec::new();
            for (name, field) in fields {
                match schema["properties"].get(name) {
                    Some(schema) => {
                        found.extend(misfits(document, schema, field, &format!("{at}.{name}")));
                    }
                    None => found.push(format!("{at}.{name} is not described")),
                }
            }
            for name in schema["required"].as_array().into_iter().flatten() {
                if !fields.contains_key(name.as_str().unwrap_or_default()) {
                    found.push(format!("{at} lacks {name}"));
                }
            }
            found
        }
        _ => vec![],
    }
}

#[test]
fn the_description_has_exactly_the_routes() {
    let document = description();
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods");
            methods
                .keys()
                .map(move |method| (path.clone(), method.clone()))
        })
        .collect();
    let served: BTreeSet<(String, String)> = routes()
        .into_iter()
        .map(|(method, path, _)| (path.to_owned(), method.to_owned()))
        .collect();
    assert_eq!(described, served);
}

#[test]
fn every_reference_of_the_description_leads_somewhere() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(name) = fields.get("$ref").and_then(Value::as_str) {
                    found.insert(name.to_owned());
                }
                fields.values().for_each(|field| references(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let document = description();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for name in &found {
        assert!(
            document.pointer(name.trim_start_matches('#')).is_some(),
            "{name}"
        );
    }
    let schemas = document["components"]["schemas"]
        .as_object()
        .expect("schemas");
    for name in schemas.keys() {
        assert!(
            found.contains(&format!("#/components/schemas/{name}")),
            "{name} is of no use"
        );
    }
}

#[tokio::test]
async fn every_answer_is_as_described() {
    let served = Served::with_samples();
    let document = description();
    let streams = ["/v1/events", "/v1/pair", "/v1/openapi.json"];
    for (method, path, _) in routes()
        .into_iter()
        .filter(|(_, path, _)| !streams.contains(path))
    {
        let body = match path {
            "/v1/add" | "/v1/forget" => r#"{"paths":["/a",{"path":"/?","path_bytes":"L/8="}]}"#,
            "/v1/spaces" if method == "post" => r#"{"name":"photos","at":"/p"}"#,
            "/v1/spaces/attach" => r#"{"name":"photos","at":"/p"}"#,
            "/v1/spaces/detach" => r#"{"name":"photos"}"#,
            "/v1/spaces/keep" => r#"{"name":"photos","rest":"7d","percent":5}"#,
            "/v1/connect" => r#"{"address":"h:1"}"#,
            "/v1/conflicts/contents" => r#"{"path":"/a"}"#,
            "/v1/resolve" => r#"{"path":"/a","keep":{"edited":{"bytes":"AP8=","seen":["x"]}}}"#,
            "/v1/log" => r#"{"path":"/a","limit":3}"#,
            "/v1/restore" => r#"{"path":"/a","version":"abcd","to":"/b"}"#,
            "/v1/pair/confirm" => r#"{"pair":1,"answer":"accept"}"#,
            "/v1/pair/cancel" => r#"{"pair":1}"#,
            _ => "",
        };
        let (status, value) = served.ask(method, path, body).await;
        let responses = &document["paths"][path][method]["responses"];
        let response = if status == 200 {
            &responses["200"]
        } else {
            &responses["default"]
        };
        let schema = &response["content"]["application/json"]["schema"];
        assert_eq!(
            misfits(&document, schema, &value, path),
            Vec::<String>::new()
        );
        assert_eq!(
            status,
            if path == "/v1/connect" { 403 } else { 200 },
            "{path}: {value}"
        );
    }
    let (status, value) = served.ask("get", "/v1/openapi.json", "").await;
    assert_eq!((status, value), (200, document));
}

#[tokio::test]
async fn bytes_of_a_path_reach_the_core_and_come_back() {
    let served = Served::with_samples();
    let body = r#"{"paths":[{"path":"/?","path_bytes":"L/8="}]}"#;
    let (_, value) = served.ask("post", "/v1/add", body).await;
    assert_eq!(value["added"][0]["path_bytes"], "L/8=");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_in_json() {
    let served = Served::with_samples();
    let long = "x".repeat(BODY_LEN_MAX + 1);
    let cases = [
        ("post", "/v1/add", "{}", 400),
        ("post", "/v1/add", r#"{"paths":["relative"]}"#, 400),
        ("post", "/v1/add", "{", 400),
        ("post", "/v1/wait", r#"{"timout_ms":1}"#, 400),
        ("post", "/v1/pair", r#"{"role":"king"}"#, 400),
        ("post", "/v1/resolve", r#"{"path":"/a"}"#, 400),
        (
            "post",
            "/v1/resolve",
            r#"{"path":"/a","keep":{"edited":{"bytes":"%","seen":[]}}}"#,
            400,
        ),
        (
            "post",
            "/v1/resolve",
            r#"{"path":"/a","keep":{"versoin":"x"}}"#,
            400,
        ),
        ("get", "/v1/nothing", "", 404),
        ("get", "/v1/add", "", 405),
        ("post", "/v1/add", &long, 413),
    ];
    for (method, path, body, expected) in cases {
        let (status, value) = served.ask(method, path, body).await;
        assert_eq!(status, expected, "{path}: {value}");
        assert_eq!(value["error"]["kind"], "usage", "{path}: {value}");
    }
}

#[tokio::test]
async fn garbage_on_the_socket_changes_nothing() {
    let served = Served::with_samples();
    let stream = crate::control::socket::connect(served.home.path()).expect("connects");
    stream.set_nonblocking(true).expect("sets");
    let mut stream = UnixStream::from_std(stream).expect("a stream");
    stream.write_all(&[0xff; 4096]).await.expect("writes");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!(served.ask("get", "/v1/status", "").await.0, 200);
}

#[tokio::test]
async fn events_flow_until_the_daemon_goes_down() {
    let (served, mut core) = Served::start();
    let (sender, _) = broadcast::channel(2);
    let sending = sender.clone();
    let core = async move {
        let Some(Command::Subscribe { reply }) = core.recv().await else {
            panic!("another command");
        };
        let receiver = sending.subscribe();
        for seq in 1..=3 {
            sending
                .send(Event {
                    seq,
                    at_ms: 0,
                    kind: EventKind::Stopping,
                })
                .expect("a receiver");
        }
        reply.send(Ok(receiver)).expect("somebody waits");
    };
    let client = served.open("get", "/v1/events", "");
    let ((), mut stream) = tokio::join!(core, client);
    let lagged = next_event(&mut stream).await;
    assert_eq!(
        (&lagged["kind"], &lagged["missed"]),
        (&json!("lagged"), &json!(1))
    );
    assert_eq!(lagged["seq"], 1);
    assert_eq!(next_event(&mut stream).await["seq"], 2);
    assert_eq!(next_event(&mut stream).await["seq"], 3);
    served.shutdown.cancel();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("ends");
    served.server.await.expect("no panic").expect("no error");
    assert!(
        !served
            .home
            .path()
            .join(crate::control::socket::SOCKET_NAME)
            .exists()
    );
}

#[tokio::test]
async fn a_pairing_ends_with_its_last_event() {
    let (served, mut core) = Served::start();
    let mut stream = served.open("post", "/v1/pair", r#"{"role":"admin"}"#).await;
    let Some(Command::PairStart {
        pair,
        role,
        events,
        reply,
    }) = core.recv().await
    else {
        panic!("another command");
    };
    assert_eq!(role, Role::Admin);
    reply.send(Ok(())).expect("somebody waits");
    let code = PairEvent::Code {
        pair,
        code: "1-a-b".into(),
        addresses: vec![],
        expires_ms: 1,
    };
    events.send(code).await.expect("somebody listens");
    assert_eq!(next_event(&mut stream).await["code"], "1-a-b");
    events
        .send(PairEvent::WrongCode)
        .await
        .expect("somebody listens");
    assert_eq!(next_event(&mut stream).await["event"], "wrong_code");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("ends");
    // The stream is over, so nothing was cancelled: the next command is another.
    let (_, command) = tokio::join!(served.open("get", "/v1/status", ""), core.recv());
    assert!(matches!(command, Some(Command::Status { .. })));
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_pairing() {
    let (served, mut core) = Served::start();
    let mut stream = served.open("post", "/v1/pair", "").await;
    let Some(Command::PairStart {
        pair,
        events,
        reply,
        ..
    }) = core.recv().await
    else {
        panic!("another command");
    };
    reply.send(Ok(())).expect("somebody waits");
    let code = PairEvent::Code {
        pair,
        code: "1-a-b".into(),
        addresses: vec![],
        expires_ms: 1,
    };
    events.send(code).await.expect("somebody listens");
    next_event(&mut stream).await;
    drop(stream);
    let Some(Command::PairCancel {
        pair: cancelled, ..
    }) = core.recv().await
    else {
        panic!("another command");
    };
    assert_eq!(cancelled, pair);
    events.closed().await;
}

#[tokio::test]
async fn a_client_that_goes_away_stops_waiting() {
    let (served, mut core) = Served::start();
    let stream = served
        .open("post", "/v1/wait", r#"{"timeout_ms":1500,"device":"x"}"#)
        .await;
    let Some(Command::Wait {
        timeout,
        device,
        mut reply,
    }) = core.recv().await
    else {
        panic!("another command");
    };
    assert_eq!(timeout, Some(Duration::from_millis(1500)));
    assert_eq!(device.as_deref(), Some("x"));
    drop(stream);
    reply.closed().await;
}
