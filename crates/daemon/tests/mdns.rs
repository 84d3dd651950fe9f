//! Discovery over real multicast: two network namespaces, joined by a pair of
//! virtual interfaces, with a device in each. Loopback has no multicast.
//!
//! Needs root and iproute2. Elsewhere it says that it was left out.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pacsync_daemon::net::{
    Discovery, Endpoint, NetConfig, NetEvent, PairingSlot, PeerStanding, connect_pairing,
    find_pairing_host,
};
use pacsync_protocol::crypto::{Key, SigningKey};
use tokio::sync::mpsc;

/// Names the role of a process that the test starts in a namespace.
const ROLE: &str = "PACSYNC_TEST_MDNS_ROLE";
const SLOT: u16 = 1234;
/// Ends a test that hangs; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long to look for what is not there.
const SHORT: Duration = Duration::from_millis(1500);

/// Two namespaces on one wire; gone with the value.
struct Wire {
    names: [String; 2],
}

fn ip(arguments: &str) -> bool {
    Command::new("ip")
        .args(arguments.split_whitespace())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

impl Wire {
    /// `None` where namespaces cannot be made.
    fn lay() -> Option<Self> {
        let id = std::process::id();
        let wire = Self {
            names: [format!("pacsync-{id}-a"), format!("pacsync-{id}-b")],
        };
        let [a, b] = &wire.names;
        if !(ip(&format!("netns add {a}")) && ip(&format!("netns add {b}"))) {
            return None;
        }
        let laid = ip(&format!(
            "-n {a} link add wire type veth peer name wire netns {b}"
        ));
        for (name, address) in [(a, "10.77.0.1/24"), (b, "10.77.0.2/24")] {
            assert!(ip(&format!("-n {name} link set lo up")));
            assert!(laid && ip(&format!("-n {name} addr add {address} dev wire")));
            assert!(ip(&format!("-n {name} link set wire up")));
        }
        Some(wire)
    }

    fn spawn(&self, end: usize, role: &str) -> Device {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.names[end]])
            .arg(std::env::current_exe().expect("the test's own path"))
            .args([
                "device_in_a_namespace",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("iproute2 starts it");
        let stdin = child.stdin.take();
        Device { child, stdin }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&format!("netns del {name}"));
        }
    }
}

/// A process in a namespace.
struct Device {
    child: Child,
    /// Its end tells the process to end.
    stdin: Option<ChildStdin>,
}

impl Device {
    fn wait_until_done(&mut self) {
        let output = self.child.stdout.as_mut().expect("is piped");
        let done = BufReader::new(output)
            .lines()
            .map_while(Result::ok)
            .any(|line| line.contains("found what was sought"));
        assert!(done, "a device gave up; its reason is above");
    }

    fn end(mut self) {
        self.stdin.take();
        assert!(self.child.wait().expect("is a child").success());
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Ended already where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn devices_and_pairing_hosts_find_each_other_on_the_lan() {
    let Some(wire) = Wire::lay() else {
        let reason = b"left out: network namespaces need root and iproute2\n";
        std::io::stderr().write_all(reason).expect("stderr is open");
        return;
    };
    let stranger = wire.spawn(1, "stranger");
    let mut host = wire.spawn(0, "host");
    let mut guest = wire.spawn(1, "guest");
    host.wait_until_done();
    guest.wait_until_done();
    guest.end();
    host.end();
    stranger.end();
}

/// Not a test of its own: what the processes in the namespaces run.
#[test]
#[ignore = "started by the other test"]
fn device_in_a_namespace() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let played = tokio::time::timeout(PATIENCE, play(&role)).await;
        assert!(
            played.is_ok(),
            "the {role} did not find what it sought in time"
        );
    });
}

async fn play(role: &str) {
    let (seed, pac) = match role {
        "host" => (1, 42),
        "guest" => (2, 42),
        _ => (3, 43),
    };
    let (sender, mut events) = mpsc::channel(16);
    let endpoint = Endpoint::bind(NetConfig {
        listen: None,
        key: SigningKey::from_seed(&[seed; 32]),
        discovery_key: Key::from_bytes([pac; 32]),
        standing: Arc::new(|_| PeerStanding::Known),
        discovery: Discovery::On,
        events: sender,
    })
    .expect("binds");
    let net = endpoint.handle();
    let (accepted, mut joiners) = mpsc::channel(1);
    match role {
        "host" => {
            net.set_pairing(Some(PairingSlot {
                slot: SLOT,
                accepted,
            }))
            .expect("pairing is on");
            let peer = found(&mut events).await;
            net.connect(peer, None);
            connected(&mut events).await;
            joiners.recv().await.expect("a joiner comes");
        }
        "guest" => {
            connected(&mut events).await;
            assert_eq!(find_pairing_host(SLOT + 1, SHORT).await.expect("looks"), []);
            let hosts = find_pairing_host(SLOT, PATIENCE / 2).await.expect("looks");
            let host = *hosts.first().expect("the host is found");
            connect_pairing(host, SLOT).await.expect("connects");
        }
        _ => {}
    }
    let mut output = std::io::stdout();
    output
        .write_all(b"\nfound what was sought\n")
        .expect("is read");
    output.flush().expect("is read");
    let until_told = tokio::task::spawn_blocking(|| {
        std::io::stdin().lines().for_each(drop);
    });
    until_told.await.expect("stdin ends");
    endpoint.shutdown().await;
    if role == "stranger" {
        assert!(
            events.recv().await.is_none(),
            "another pac's devices are not reported"
        );
    }
}

/// The address at which the pac's other device is found.
async fn found(events: &mut mpsc::Receiver<NetEvent>) -> SocketAddr {
    match events.recv().await.expect("lives") {
        NetEvent::PeerFound { addresses, .. } => *addresses.first().expect("is never empty"),
        other => panic!("unexpected {other:?}"),
    }
}

async fn connected(events: &mut mpsc::Receiver<NetEvent>) {
    loop {
        match events.recv().await.expect("lives") {
            NetEvent::Connected { .. } => return,
            // The other's addresses may become known one by one.
            NetEvent::PeerFound { .. } => {}
            other => panic!("unexpected {other:?}"),
        }
    }
}
