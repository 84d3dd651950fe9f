//! Noise on the control socket and on the QUIC port.

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::rig::{Machine, Pair, heavy};
use crate::samples::Chance;

/// What memory may grow by: buffers and a few hundred connections, not what was sent.
const GROWTH_KIB_MAX: u64 = 48 << 10;

fn dial(machine: &Machine) -> UnixStream {
    let stream = UnixStream::connect(machine.home.join("control.sock")).expect("connects");
    let patience = Some(Duration::from_secs(5));
    stream.set_read_timeout(patience).expect("sets a bound");
    stream.set_write_timeout(patience).expect("sets a bound");
    stream
}

fn noise(chance: &mut Chance, len: usize) -> Vec<u8> {
    std::iter::repeat_with(|| chance.next().to_le_bytes())
        .flatten()
        .take(len)
        .collect()
}

/// Sends, and reads the beginning of what comes back.
fn throw(machine: &Machine, bytes: &[u8], end: End) -> Vec<u8> {
    let mut stream = dial(machine);
    // The daemon may hang up before it has all.
    let _ = stream.write_all(bytes);
    if end == End::Shut {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut answer = vec![0; 4096];
    let len = stream.read(&mut answer).unwrap_or(0);
    answer.truncate(len);
    answer
}

/// Whether the client goes on after what it sent.
#[derive(PartialEq, Eq)]
enum End {
    Open,
    Shut,
}

#[test]
fn garbage_on_the_control_socket_changes_nothing() {
    let _heavy = heavy();
    let pair = Pair::new();
    std::fs::write(pair.a.root.join("file"), b"here").expect("writes");
    pair.converge();
    let (pid, before) = (pair.a.pid(), pair.a.memory_kib());
    let mut chance = Chance::new(5);
    for round in 0..300 {
        let len = usize::try_from(chance.below(20_000)).expect("small");
        throw(&pair.a, &noise(&mut chance, len), End::Shut);
        let path = [
            "/v1/status",
            "/v1/deletes",
            "/v1/wait",
            "/v1/add",
            "/nowhere",
        ];
        let path = chance.pick(&path).expect("some");
        let body = noise(&mut chance, 200);
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n",
            body.len()
        );
        let kind = ["", "content-type: application/json\r\n"];
        let kind = chance.pick(&kind).expect("some");
        let request = [head.as_bytes(), kind.as_bytes(), b"\r\n", &body].concat();
        let answer = throw(&pair.a, &request, End::Open);
        let text = String::from_utf8_lossy(&answer);
        assert!(
            text.starts_with("HTTP/1.1 4"),
            "round {round}, {path}: {text}"
        );
    }
    // A body that claims to be, and one that is, far too big.
    let huge = b"POST /v1/add HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let claim = [huge, &b"content-length: 99999999999\r\n\r\n{"[..]].concat();
    throw(&pair.a, &claim, End::Shut);
    let mut stream = dial(&pair.a);
    let chunked = [huge, &b"transfer-encoding: chunked\r\n\r\n"[..]].concat();
    let _ = stream.write_all(&chunked);
    let piece = [&b"100000\r\n"[..], &vec![b'['; 1 << 20], b"\r\n"].concat();
    for _ in 0..256 {
        if stream.write_all(&piece).is_err() {
            break;
        }
    }
    drop(stream);
    // Headers without end.
    let mut stream = dial(&pair.a);
    let _ = stream.write_all(b"GET /v1/status HTTP/1.1\r\n");
    for at in 0..100_000 {
        if stream
            .write_all(format!("x-{at}: {at}\r\n").as_bytes())
            .is_err()
        {
            break;
        }
    }
    drop(stream);
    // Clients that begin and never go on; others are answered meanwhile.
    let idle: Vec<UnixStream> = (0..200)
        .map(|_| {
            let mut stream = dial(&pair.a);
            stream.write_all(b"GET /v1/status HT").expect("writes");
            stream
        })
        .collect();
    pair.a.status();
    let grown = pair.a.memory_kib().saturating_sub(before);
    assert!(grown < GROWTH_KIB_MAX, "memory grew by {grown} KiB");
    drop(idle);
    assert_eq!(pair.a.pid(), pid);
    pair.converge();
}

#[test]
fn garbage_on_the_quic_port_changes_nothing() {
    let _heavy = heavy();
    let pair = Pair::new();
    std::fs::write(pair.a.root.join("file"), b"here").expect("writes");
    pair.converge();
    let target: SocketAddr = pair.a.address().parse().expect("an address");
    let (pid, before) = (pair.a.pid(), pair.a.memory_kib());
    let mut chance = Chance::new(6);
    let sockets: Vec<UdpSocket> = (0..16)
        .map(|_| UdpSocket::bind("127.0.0.1:0").expect("binds"))
        .collect();
    for _ in 0..30_000 {
        let len = usize::try_from(1 + chance.below(1_400)).expect("small");
        let mut datagram = noise(&mut chance, len);
        // A part of them looks like the beginning of a handshake.
        if chance.below(3) == 0 {
            datagram.resize(1_200, 0);
            let head = [0xC3, 0, 0, 0, 1, 8];
            for (to, from) in datagram.iter_mut().zip(head) {
                *to = from;
            }
        }
        let socket = chance.pick(&sockets).expect("some");
        // Full buffers are no failure.
        let _ = socket.send_to(&datagram, target);
    }
    std::fs::write(pair.b.root.join("after"), b"after").expect("writes");
    pair.converge();
    let grown = pair.a.memory_kib().saturating_sub(before);
    assert!(grown < GROWTH_KIB_MAX, "memory grew by {grown} KiB");
    assert_eq!(pair.a.pid(), pid);
    assert!(pair.a.problems().is_empty());
}
