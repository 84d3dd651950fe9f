//! Devices that find each other by multicast, in network namespaces joined by a cable.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::rig::{Machine, Need, SPACE, Stage, assert_same, case_dir, eventually, has, pair_up};

const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const PORT: u16 = 5353;

/// Two namespaces and a pair of interfaces between them.
struct Cable {
    names: [String; 2],
}

impl Cable {
    const ADDRESSES: [&'static str; 2] = ["10.213.7.1", "10.213.7.2"];

    fn lay() -> Self {
        let names = [1, 2].map(|at| format!("pacsync-{}-{at}", std::process::id()));
        let cable = Self { names };
        let [first, second] = &cable.names;
        for name in &cable.names {
            ip(&["netns", "add", name]);
        }
        let veth = [
            "veth0", "netns", first, "type", "veth", "peer", "name", "veth0",
        ];
        ip(&[&["link", "add"][..], &veth, &["netns", second]].concat());
        for (name, address) in cable.names.iter().zip(Self::ADDRESSES) {
            let address = format!("{address}/24");
            ip(&["-n", name, "addr", "add", &address, "dev", "veth0"]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
            ip(&["-n", name, "link", "set", "veth0", "up"]);
        }
        cable
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn ip(args: &[&str]) {
    let status = Command::new("ip")
        .args(args)
        .stdin(Stdio::null())
        .status()
        .expect("runs");
    assert!(status.success(), "ip {args:?}");
}

/// Listens to multicast in a namespace: every datagram from an address.
fn listen(namespace: &str, own: &str, from: &'static str) -> std::sync::mpsc::Receiver<Vec<u8>> {
    let file = std::fs::File::open(format!("/run/netns/{namespace}")).expect("a namespace");
    let own: Ipv4Addr = own.parse().expect("an address");
    let (sender, receiver) = std::sync::mpsc::channel();
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        use std::os::fd::AsFd;
        rustix::thread::move_into_link_name_space(
            file.as_fd(),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )
        .expect("moves");
        let socket: UdpSocket = {
            use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
            let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).expect("a socket");
            sockopt::set_socket_reuseaddr(&socket, true).expect("shares");
            sockopt::set_socket_reuseport(&socket, true).expect("shares");
            bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT)).expect("binds");
            socket.into()
        };
        socket.join_multicast_v4(&GROUP, &own).expect("joins");
        socket
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("sets a bound");
        ready.send(()).expect("somebody waits");
        let mut buffer = vec![0; 9_000];
        while let Ok((len, sender_address)) = socket.recv_from(&mut buffer) {
            if sender_address.ip().to_string() != from {
                continue;
            }
            let datagram = buffer.get(..len).expect("received").to_vec();
            if sender.send(datagram).is_err() {
                return;
            }
        }
    });
    is_ready.recv().expect("it listens");
    receiver
}

/// The first announcement that is heard: its bytes.
fn announcement(heard: &std::sync::mpsc::Receiver<Vec<u8>>) -> Vec<u8> {
    eventually("an announcement is heard", || {
        let datagram = heard.recv_timeout(Duration::from_secs(1)).ok()?;
        // A response with a TXT property "t=…".
        let answers = datagram.get(2).is_some_and(|flags| flags & 0x80 != 0);
        (answers && position(&datagram, b"t=").is_some()).then_some(datagram)
    })
}

fn position(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// What looks like a name or a token in an announcement, but for the words that all devices say.
fn tokens(bytes: &[u8]) -> std::collections::BTreeSet<String> {
    let words = bytes.split(|byte| !byte.is_ascii_alphanumeric() && !b"_-=+/".contains(byte));
    let words = words
        .filter(|word| word.len() >= 8)
        .map(|word| String::from_utf8_lossy(word));
    words
        .map(|word| word.into_owned())
        .filter(|word| word != "_pacsync")
        .collect()
}

#[test]
fn devices_find_each_other_and_tell_strangers_nothing() {
    if !has(Need::NetworkNamespaces) {
        return;
    }
    let cable = Cable::lay();
    let [first, second] = &cable.names;
    let [left, right] = Cable::ADDRESSES;
    let dir = case_dir();
    let a = Machine::new(dir.path(), "anna", Stage::Net(first.clone())).on_lan(left);
    let b = Machine::new(dir.path(), "bert", Stage::Net(second.clone())).on_lan(right);
    let heard = listen(second, right, left);
    a.up();
    let before = announcement(&heard);
    let root = a.root.to_string_lossy().into_owned();
    a.ok(&["space", "create", SPACE, "--at", &root]);
    std::fs::write(a.root.join("file"), b"found").expect("writes");
    // No address: the code alone leads there.
    pair_up(&a, &b, None);
    let root = b.root.to_string_lossy().into_owned();
    eventually("the space is known", || {
        b.run(["space", "attach", SPACE, "--at", &root])
            .status
            .success()
            .then_some(())
    });
    a.wait();
    b.wait();
    assert_same(&a.root, &b.root);
    // Both come back on other ports: only what is announced leads to them.
    a.kill();
    b.kill();
    while heard.try_recv().is_ok() {}
    a.up();
    b.up();
    let after = announcement(&heard);
    std::fs::write(b.root.join("again"), b"again").expect("writes");
    b.wait();
    a.wait();
    assert_same(&a.root, &b.root);
    let (before_tokens, after_tokens) = (tokens(&before), tokens(&after));
    assert!(
        after_tokens.iter().any(|token| token.contains("t=")),
        "{after_tokens:?}"
    );
    let shared: Vec<_> = before_tokens.intersection(&after_tokens).collect();
    assert!(shared.is_empty(), "two starts have in common: {shared:?}");
    for stable in [
        a.status()["device"]["id"].clone(),
        a.status()["pac"].clone(),
    ] {
        let id = stable.as_str().expect("an id").as_bytes();
        let start = id.get(..8).expect("long");
        assert!(position(&after, start).is_none() && position(&before, start).is_none());
    }
    let name = [a.name.as_bytes(), b.name.as_bytes()];
    assert!(name.iter().all(|name| position(&after, name).is_none()));
}
