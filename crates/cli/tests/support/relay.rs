//! A relay of UDP packets that counts what it carries.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Stands between devices: who sends to its address reaches the host behind it.
pub struct Relay {
    address: SocketAddr,
    bytes: Arc<AtomicU64>,
}

impl Relay {
    /// Relays to a host. Its threads end with the test's process.
    pub fn to(host: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let address = front.local_addr().expect("an address");
        let bytes = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&bytes);
        std::thread::spawn(move || {
            let mut backs: HashMap<SocketAddr, UdpSocket> = HashMap::new();
            let mut packet = vec![0; 65_536];
            while let Ok((length, from)) = front.recv_from(&mut packet) {
                let back = backs.entry(from).or_insert_with(|| {
                    let back = UdpSocket::bind("127.0.0.1:0").expect("a socket");
                    back.connect(host).expect("an address");
                    let (back_reader, front) = (back.try_clone(), front.try_clone());
                    let counter = Arc::clone(&counter);
                    std::thread::spawn(move || {
                        let (back, front) = (back_reader.expect("clones"), front.expect("clones"));
                        let mut packet = vec![0; 65_536];
                        loop {
                            // An error here only tells that nobody listened for a while.
                            let Ok(length) = back.recv(&mut packet) else {
                                continue;
                            };
                            counter.fetch_add(length as u64, Ordering::Relaxed);
                            let _ = front.send_to(packet.get(..length).unwrap_or_default(), from);
                        }
                    });
                    back
                });
                counter.fetch_add(length as u64, Ordering::Relaxed);
                let _ = back.send(packet.get(..length).unwrap_or_default());
            }
        });
        Self { address, bytes }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Payload bytes carried so far, both ways.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}
