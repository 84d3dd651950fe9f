//! The network layer against real endpoints on the loopback interface.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pacsync_daemon::net::{
    CloseCode, CloseReason, ConnId, ConnectFailure, Discovery, Endpoint, FrameReader, Lane,
    NetConfig, NetError, NetEvent, NetHandle, PairingSlot, PeerStanding, SendError,
    connect_pairing, exporter, write_frame,
};
use pacsync_protocol::crypto::{Key, SigningKey};
use pacsync_protocol::{DeviceId, beacon};
use tokio::sync::mpsc;

mod raw;

/// Ends a test that hangs; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(20);
const MIB: usize = 1 << 20;

fn discovery_key() -> Key {
    Key::from_bytes([42; 32])
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

type Roster = Arc<Mutex<BTreeMap<DeviceId, PeerStanding>>>;

/// A device with what its consumer has been told.
struct Device {
    endpoint: Endpoint,
    net: NetHandle,
    id: DeviceId,
    roster: Roster,
    events: mpsc::Receiver<NetEvent>,
}

impl Device {
    /// A device that knows those of `known`.
    fn new(seed: u8, known: &[u8]) -> Self {
        let roster: Roster = Arc::new(Mutex::new(
            known
                .iter()
                .map(|seed| (key(*seed).id(), PeerStanding::Known))
                .collect(),
        ));
        let (sender, events) = mpsc::channel(16);
        let asked = roster.clone();
        let endpoint = Endpoint::bind(NetConfig {
            listen: Some(any_port()),
            key: key(seed),
            discovery_key: discovery_key(),
            standing: Arc::new(move |id| {
                let roster = asked.lock().expect("no test panics with the lock");
                roster.get(id).copied().unwrap_or(PeerStanding::Unknown)
            }),
            discovery: Discovery::Off,
            events: sender,
        })
        .expect("binds");
        let net = endpoint.handle();
        Self {
            endpoint,
            net,
            id: key(seed).id(),
            roster,
            events,
        }
    }

    fn address(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    fn set(&self, device: DeviceId, standing: PeerStanding) {
        self.roster
            .lock()
            .expect("no test panics with the lock")
            .insert(device, standing);
    }

    async fn next(&mut self) -> NetEvent {
        tokio::time::timeout(PATIENCE, self.events.recv())
            .await
            .expect("something happens")
            .expect("the endpoint lives")
    }

    async fn connected(&mut self) -> (ConnId, DeviceId, PeerStanding) {
        match self.next().await {
            NetEvent::Connected {
                conn,
                device,
                standing,
                ..
            } => (conn, device, standing),
            other => panic!("expected a connection, got {other:?}"),
        }
    }

    async fn frame(&mut self) -> (ConnId, Lane, Vec<u8>) {
        loop {
            match self.next().await {
                NetEvent::Frame {
                    conn, lane, bytes, ..
                } => return (conn, lane, bytes),
                NetEvent::Drained { .. } => {}
                other => panic!("expected a frame, got {other:?}"),
            }
        }
    }

    async fn closed(&mut self) -> (ConnId, CloseReason) {
        loop {
            if let NetEvent::Closed { conn, reason, .. } = self.next().await {
                return (conn, reason);
            }
        }
    }

    async fn connect_fails(
        &mut self,
        address: SocketAddr,
        expect: Option<DeviceId>,
    ) -> ConnectFailure {
        self.net.connect(address, expect);
        match self.next().await {
            NetEvent::ConnectFailed {
                address: tried,
                why,
            } if tried == address => why,
            other => panic!("expected a failure, got {other:?}"),
        }
    }
}

/// Two devices of one pac, connected.
async fn pair_of_devices() -> (Device, ConnId, Device, ConnId) {
    let (mut a, mut b) = (Device::new(1, &[2]), Device::new(2, &[1]));
    a.net.connect(b.address(), Some(b.id));
    let (on_a, peer, standing) = a.connected().await;
    assert_eq!((peer, standing), (b.id, PeerStanding::Known));
    let (on_b, peer, standing) = b.connected().await;
    assert_eq!((peer, standing), (a.id, PeerStanding::Known));
    (a, on_a, b, on_b)
}

#[tokio::test]
async fn frames_go_both_ways_on_both_lanes() {
    let (mut a, on_a, mut b, on_b) = pair_of_devices().await;
    for lane in Lane::ALL {
        let longest = vec![3; lane.frame_max()];
        for payload in [vec![], vec![1; 10], vec![2; 300_000], longest] {
            a.net.send(on_a, lane, payload.clone()).expect("is queued");
            assert_eq!(b.frame().await, (on_b, lane, payload.clone()));
            b.net.send(on_b, lane, payload.clone()).expect("is queued");
            assert_eq!(a.frame().await, (on_a, lane, payload));
        }
    }
    let limit = Lane::State.frame_max();
    let length = limit + 1;
    let too_long = a.net.send(on_a, Lane::State, vec![0; length]);
    assert_eq!(too_long, Err(SendError::TooLong { length, limit }));
}

#[tokio::test]
async fn both_may_connect_at_once_and_one_connection_be_closed() {
    let (mut a, first, mut b, _) = pair_of_devices().await;
    b.net.connect(a.address(), Some(a.id));
    let (second, ..) = a.connected().await;
    let (second_on_b, ..) = b.connected().await;
    a.net.close(first, CloseCode::Superseded, "the other one");
    assert_eq!(
        a.closed().await,
        (first, CloseReason::WeClosed(CloseCode::Superseded))
    );
    let text = "the other one".to_owned();
    let reason = CloseReason::PeerClosed {
        code: CloseCode::Superseded,
        text,
    };
    assert_eq!(b.closed().await.1, reason);
    assert_eq!(
        a.net.send(first, Lane::State, vec![]),
        Err(SendError::Closed)
    );
    a.net
        .send(second, Lane::State, b"still here".to_vec())
        .expect("is queued");
    assert_eq!(
        b.frame().await,
        (second_on_b, Lane::State, b"still here".to_vec())
    );
}

#[tokio::test]
async fn state_overtakes_content() {
    const FRAMES: usize = 64;
    const PINGS: usize = 20;
    let (mut a, on_a, mut b, on_b) = pair_of_devices().await;
    let echo = tokio::spawn(async move {
        let mut content = 0;
        while content < FRAMES {
            match b.frame().await {
                (_, Lane::Content, bytes) => content += bytes.len() / MIB,
                (_, Lane::State, bytes) => {
                    b.net.send(on_b, Lane::State, bytes).expect("is queued");
                }
            }
        }
        b.net
            .send(on_b, Lane::Content, b"all".to_vec())
            .expect("is queued");
        b
    });
    let mut sent = 0;
    let mut pongs = 0;
    a.net.send(on_a, Lane::State, vec![0]).expect("is queued");
    loop {
        while sent < FRAMES {
            let waiting = a
                .net
                .send(on_a, Lane::Content, vec![7; MIB])
                .expect("is queued");
            sent += 1;
            if waiting > 8 * MIB as u64 {
                break;
            }
        }
        match a.next().await {
            NetEvent::Frame {
                lane: Lane::State, ..
            } => {
                pongs += 1;
                a.net.send(on_a, Lane::State, vec![0]).expect("is queued");
            }
            NetEvent::Frame {
                lane: Lane::Content,
                ..
            } => break,
            NetEvent::Drained {
                lane: Lane::Content,
                ..
            } => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(pongs >= PINGS, "{pongs} round trips beside {FRAMES} MiB");
    echo.await.expect("ends well");
}

#[tokio::test]
async fn content_that_nobody_takes_holds_up_neither_state_nor_memory() {
    let (mut a, on_a, mut b, on_b) = pair_of_devices().await;
    let refused = loop {
        match a.net.send(on_a, Lane::Content, vec![7; MIB]) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, SendError::Full { waiting } if waiting <= 64 * MIB as u64));
    let mut kept = Vec::new();
    for round in 0..100u8 {
        a.net
            .send(on_a, Lane::State, vec![round])
            .expect("is queued");
        loop {
            match b.next().await {
                NetEvent::Frame {
                    lane: Lane::Content,
                    bytes,
                    credit,
                    ..
                } => {
                    kept.push((bytes.len(), credit));
                }
                NetEvent::Frame {
                    lane: Lane::State,
                    bytes,
                    ..
                } => {
                    assert_eq!(bytes, [round]);
                    break;
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        b.net
            .send(on_b, Lane::State, vec![round])
            .expect("is queued");
        loop {
            match a.next().await {
                NetEvent::Frame { bytes, .. } => break assert_eq!(bytes, [round]),
                NetEvent::Drained { .. } => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }
    let held: usize = kept.iter().map(|(length, _)| length).sum();
    assert!(
        held <= 8 * MIB,
        "{held} bytes were handed over without being taken"
    );
    kept.clear();
    a.net.close(on_a, CloseCode::Done, "");
    b.closed().await;
}

#[tokio::test]
async fn a_client_takes_only_the_device_that_it_means() {
    let (mut a, b, c) = (
        Device::new(1, &[2]),
        Device::new(2, &[1]),
        Device::new(3, &[1]),
    );
    let unknown = a.connect_fails(c.address(), None).await;
    assert_eq!(unknown, ConnectFailure::NotOfThisPac(c.id));
    let other = a.connect_fails(b.address(), Some(c.id)).await;
    assert_eq!(other, ConnectFailure::WrongDevice { found: b.id });
    assert_eq!(
        a.connect_fails(a.address(), None).await,
        ConnectFailure::Ourselves
    );
    a.set(b.id, PeerStanding::Refused);
    let refused = a.connect_fails(b.address(), None).await;
    assert_eq!(refused, ConnectFailure::NotOfThisPac(b.id));
    for mut device in [a, b, c] {
        device.endpoint.shutdown().await;
        assert!(device.events.recv().await.is_none(), "nobody was connected");
    }
}

#[tokio::test]
async fn an_unknown_client_with_a_tag_is_let_in_as_such_and_a_refused_one_is_not() {
    let (mut a, mut b) = (Device::new(1, &[]), Device::new(2, &[1]));
    b.net.connect(a.address(), None);
    let (_, device, standing) = a.connected().await;
    assert_eq!((device, standing), (b.id, PeerStanding::Unknown));
    b.connected().await;
    a.set(b.id, PeerStanding::Refused);
    let why = b.connect_fails(a.address(), None).await;
    assert!(matches!(why, ConnectFailure::Refused(_)), "{why:?}");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let a = Device::new(1, &[]);
    let error = Endpoint::bind(NetConfig {
        listen: Some(a.address()),
        key: key(2),
        discovery_key: discovery_key(),
        standing: Arc::new(|_| PeerStanding::Unknown),
        discovery: Discovery::Off,
        events: mpsc::channel(1).0,
    })
    .expect_err("the port is taken");
    assert!(matches!(error, NetError::AddressInUse { address } if address == a.address()));
    assert!(error.to_string().contains(&a.address().to_string()));
}

#[tokio::test]
async fn shutdown_tells_the_peers_and_frees_the_port() {
    let (a, on_a, mut b, _) = pair_of_devices().await;
    let address = a.address();
    a.net
        .send(on_a, Lane::Content, vec![0; 5 * MIB])
        .expect("is queued");
    tokio::time::timeout(PATIENCE, a.endpoint.shutdown())
        .await
        .expect("goes down");
    let (_, reason) = b.closed().await;
    assert!(
        matches!(
            reason,
            CloseReason::PeerClosed {
                code: CloseCode::Done,
                ..
            }
        ),
        "{reason:?}"
    );
    // The driver that holds the socket ends with its own next turn, though a handle is left.
    let rebound = async {
        while std::net::UdpSocket::bind(address).is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, rebound)
        .await
        .expect("the port is free");
    assert_eq!(
        a.net.send(on_a, Lane::State, vec![]),
        Err(SendError::Closed)
    );
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_consumer_that_has_stopped() {
    let (mut a, on_a, b, _) = pair_of_devices().await;
    // More frames than the channel of the silent consumer holds.
    for _ in 0..100 {
        a.net.send(on_a, Lane::State, vec![0]).expect("is queued");
    }
    tokio::time::timeout(PATIENCE, b.endpoint.shutdown())
        .await
        .expect("goes down");
    a.closed().await;
}

#[tokio::test]
async fn pairing_connects_under_the_live_slot_only() {
    let a = Device::new(1, &[]);
    let refused = async |slot| {
        let error = connect_pairing(a.address(), slot)
            .await
            .expect_err("is refused");
        assert!(
            matches!(
                error,
                NetError::Pairing {
                    why: ConnectFailure::Refused(_),
                    ..
                }
            ),
            "{error:?}"
        );
    };
    refused(1234).await;

    let (accepted, mut joiners) = mpsc::channel(1);
    a.net
        .set_pairing(Some(PairingSlot {
            slot: 1234,
            accepted,
        }))
        .expect("pairing is on");
    refused(1235).await;
    let joiner = connect_pairing(a.address(), 1234)
        .await
        .expect("finds the host");
    let host = joiners.recv().await.expect("the joiner is handed over");
    assert_eq!(
        exporter(joiner.connection(), "label"),
        exporter(&host, "label")
    );
    assert_ne!(
        exporter(joiner.connection(), "label"),
        exporter(&host, "other")
    );

    let (mut send, receive) = joiner.connection().open_bi().await.expect("may open one");
    write_frame(&mut send, b"hello".to_vec(), 10)
        .await
        .expect("is written");
    let (mut reply, request) = host.accept_bi().await.expect("is opened");
    assert_eq!(
        FrameReader::new(request).read(10).await.expect("arrives"),
        b"hello"
    );
    write_frame(&mut reply, b"welcome".to_vec(), 10)
        .await
        .expect("is written");
    assert_eq!(
        FrameReader::new(receive).read(10).await.expect("arrives"),
        b"welcome"
    );

    a.net.set_pairing(None).expect("pairing is off");
    refused(1234).await;
    joiner.close(CloseCode::Done, "").await;
    assert!(matches!(
        host.closed().await,
        quinn::ConnectionError::ApplicationClosed(_)
    ));
}

#[tokio::test]
async fn a_stranger_sees_no_certificate() {
    let (accepted, _joiners) = mpsc::channel(1);
    let mut a = Device::new(1, &[2]);
    let sync_name = beacon::server_name(&discovery_key(), [1; 16]);
    let pair_name = beacon::server_name(&beacon::slot_key(1234), [1; 16]);
    let wrong_name = beacon::server_name(&Key::from_bytes([43; 32]), [1; 16]);
    let wrong_slot = beacon::server_name(&beacon::slot_key(1235), [1; 16]);
    let (sync, pair) = ("pacsync/1", "pacsync-pair/1");

    assert!(
        !raw::probe(a.address(), &pair_name, &[pair]).await,
        "no code lives"
    );
    a.net
        .set_pairing(Some(PairingSlot {
            slot: 1234,
            accepted,
        }))
        .expect("pairing is on");
    for (name, protocols) in [
        ("localhost", &[sync][..]),
        ("localhost", &[pair]),
        ("127.0.0.1", &[sync]),
        (&wrong_name, &[sync]),
        (&wrong_slot, &[pair]),
        (&sync_name, &[pair]),
        (&pair_name, &[sync]),
        (&sync_name, &[sync, pair]),
        (&pair_name, &[pair, sync]),
        (&sync_name, &["h3"]),
        (&sync_name, &[]),
    ] {
        let shown = raw::probe(a.address(), name, protocols).await;
        assert!(
            !shown,
            "a certificate was shown for {name} with {protocols:?}"
        );
    }
    // The probe would have noticed.
    assert!(raw::probe(a.address(), &sync_name, &[sync]).await);
    assert!(raw::probe(a.address(), &pair_name, &[pair]).await);

    let mut b = Device::new(2, &[1]);
    b.net.connect(a.address(), None);
    b.connected().await;
    loop {
        // The probes that knew the key have come and gone.
        if let NetEvent::Connected { device, .. } = a.next().await
            && device == b.id
        {
            break;
        }
    }
}

#[tokio::test]
async fn a_frame_over_the_limit_ends_the_connection() {
    let mut a = Device::new(1, &[2]);
    let name = beacon::server_name(&discovery_key(), [1; 16]);
    let presented = Arc::new(AtomicBool::new(false));
    let client = raw::connect(a.address(), &name, &["pacsync/1"], &key(2), &presented)
        .await
        .expect("a device of the pac connects");
    let (conn, ..) = a.connected().await;
    let (mut send, mut receive) = client
        .connection
        .accept_bi()
        .await
        .expect("a lane is opened");
    let mut opened = [0];
    receive.read_exact(&mut opened).await.expect("is named");
    let lane = Lane::ALL[usize::from(opened[0])];
    let length = u32::try_from(lane.frame_max() + 1).expect("a length");
    send.write_all(&length.to_be_bytes())
        .await
        .expect("is written");
    let (closed, reason) = a.closed().await;
    assert_eq!(closed, conn);
    assert!(matches!(reason, CloseReason::BadPeer(_)), "{reason:?}");
    match client.connection.closed().await {
        quinn::ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code, quinn::VarInt::from_u32(2));
        }
        other => panic!("expected to be closed, got {other:?}"),
    }
}

#[tokio::test]
async fn a_lane_that_ends_and_a_stream_too_many_are_no_way_out() {
    let mut a = Device::new(1, &[2]);
    let name = beacon::server_name(&discovery_key(), [1; 16]);
    let presented = Arc::new(AtomicBool::new(false));
    let client = raw::connect(a.address(), &name, &["pacsync/1"], &key(2), &presented)
        .await
        .expect("a device of the pac connects");
    a.connected().await;
    let (mut send, _receive) = client
        .connection
        .accept_bi()
        .await
        .expect("a lane is opened");
    tokio::select! {
        biased;
        opened = client.connection.open_bi() => panic!("may open a stream: {opened:?}"),
        opened = client.connection.open_uni() => panic!("may open a stream: {opened:?}"),
        () = std::future::ready(()) => {}
    }
    send.finish().expect("is open");
    let (_, reason) = a.closed().await;
    assert!(matches!(reason, CloseReason::BadPeer(_)), "{reason:?}");
}

#[tokio::test]
async fn garbage_datagrams_change_nothing() {
    let (mut a, mut b) = (Device::new(1, &[2]), Device::new(2, &[1]));
    let socket = std::net::UdpSocket::bind(any_port()).expect("binds");
    let mut noise = 0x9e37_79b9_u32;
    for length in 0..1500usize {
        let datagram: Vec<u8> = (0..length)
            .map(|_| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                noise.to_be_bytes()[0]
            })
            .collect();
        socket.send_to(&datagram, a.address()).expect("is sent");
        // The same as an initial packet of version 1.
        let header = [0xc0, 0, 0, 0, 1, 8];
        let initial: Vec<u8> = header.into_iter().chain(datagram).collect();
        socket.send_to(&initial, a.address()).expect("is sent");
    }
    b.net.connect(a.address(), Some(a.id));
    let (on_b, ..) = b.connected().await;
    let (on_a, device, _) = a.connected().await;
    assert_eq!(device, b.id);
    b.net
        .send(on_b, Lane::State, b"hello".to_vec())
        .expect("is queued");
    assert_eq!(a.frame().await, (on_a, Lane::State, b"hello".to_vec()));
}

#[tokio::test]
async fn an_endpoint_on_all_addresses_serves_both_families() {
    let mut b = Device::new(2, &[1]);
    let (sender, mut events) = mpsc::channel(16);
    let a = Endpoint::bind(NetConfig {
        listen: None,
        key: key(1),
        discovery_key: discovery_key(),
        standing: Arc::new(|_| PeerStanding::Known),
        discovery: Discovery::Off,
        events: sender,
    })
    .expect("binds");
    let port = a.local_addr().port();
    assert!(!a.addresses().is_empty());
    assert!(a.addresses().iter().all(|address| address.port() == port));
    b.net
        .connect(SocketAddr::new([127, 0, 0, 1].into(), port), None);
    b.connected().await;
    let Some(NetEvent::Connected { address, .. }) = events.recv().await else {
        panic!("expected a connection");
    };
    assert!(address.is_ipv4(), "{address} is shown as what it is");
    a.handle().connect(b.address(), Some(b.id));
    b.connected().await;
}

/// Prints what one Content lane carries over loopback between two threads:
/// `cargo test --release -p pacsync-daemon --test net -- --ignored --nocapture throughput`.
#[test]
#[ignore = "a measurement, not a check"]
fn throughput_of_the_content_lane() {
    const FRAMES: usize = 2048;
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
    };
    let (tell, told) = std::sync::mpsc::channel();
    let receiver = std::thread::spawn(move || {
        runtime().block_on(async {
            let mut b = Device::new(2, &[1]);
            tell.send(b.address()).expect("is awaited");
            let (conn, ..) = b.connected().await;
            let mut received = 0;
            while received < FRAMES * MIB {
                received += b.frame().await.2.len();
            }
            b.net.send(conn, Lane::State, vec![]).expect("is queued");
            b.closed().await;
        });
    });
    let seconds = runtime().block_on(async {
        let mut a = Device::new(1, &[2]);
        a.net.connect(told.recv().expect("is told"), None);
        let (conn, ..) = a.connected().await;
        let start = std::time::Instant::now();
        let mut sent = 0;
        loop {
            while sent < FRAMES {
                sent += 1;
                if a.net
                    .send(conn, Lane::Content, vec![7; MIB])
                    .expect("is queued")
                    > 8 << 20
                {
                    break;
                }
            }
            if let NetEvent::Frame { .. } = a.next().await {
                break;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        a.endpoint.shutdown().await;
        seconds
    });
    receiver.join().expect("ends well");
    let line = format!(
        "{FRAMES} MiB in {seconds:.2} s: {:.0} MiB/s\n",
        FRAMES as f64 / seconds
    );
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).expect("stderr is open");
}
