//! Finding devices on the LAN by mDNS.
//!
//! An announcement's instance, host name and nonce are random and new at each start,
//! so it names neither device nor pac; only who has the key sees that it is one of
//! theirs. What is found is a hint where to connect and nothing more.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use data_encoding::HEXLOWER;
use mdns_sd::{
    IfKind, IfPredicate, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent,
    ServiceInfo,
};
use pacsync_protocol::beacon;
use pacsync_protocol::crypto::{Key, random};
use rand_core::OsRng;

use super::endpoint::NetError;
use super::event::NetEvent;
use super::socket;

const SERVICE: &str = "_pacsync._udp.local.";
/// The TXT property that holds the beacon.
const PROPERTY: &str = "t";
/// Announcements kept in mind; the LAN is full of strangers.
const SEEN_MAX: usize = 256;
/// Addresses taken from one announcement.
const ADDRESSES_MAX: usize = 8;
/// After the first pairing host is found, others may follow within this time.
const MORE_HOSTS: Duration = Duration::from_millis(300);
/// How long the mDNS thread may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

type OwnNames = Arc<Mutex<Vec<String>>>;

/// Announces this device, and a live pairing code beside it.
pub(super) struct Announcer {
    mdns: ServiceDaemon,
    local: SocketAddr,
    own: OwnNames,
    pairing: Option<String>,
}

/// Reports the pac's other devices.
pub(super) struct Watcher {
    events: Receiver<ServiceEvent>,
    key: Key,
    own: OwnNames,
    /// What has been reported.
    seen: BTreeMap<String, Vec<SocketAddr>>,
}

/// Starts to announce and to watch.
pub(super) fn start(key: Key, local: SocketAddr) -> Result<(Announcer, Watcher), NetError> {
    let mdns = daemon()?;
    let own = OwnNames::default();
    let announcer = Announcer {
        mdns,
        local,
        own: own.clone(),
        pairing: None,
    };
    announcer.announce(&key)?;
    let events = announcer.mdns.browse(SERVICE).map_err(failed)?;
    Ok((
        announcer,
        Watcher {
            events,
            key,
            own,
            seen: BTreeMap::new(),
        },
    ))
}

impl Announcer {
    /// Announces a pairing slot in place of the one before, if any.
    pub(super) fn set_pairing(&mut self, slot: Option<u16>) {
        if let Some(name) = self.pairing.take() {
            // Should it fail, the announcement runs out and is answered no more.
            let _ = self.mdns.unregister(&name);
            self.own
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|own| *own != name);
        }
        if let Some(slot) = slot {
            match self.announce(&beacon::slot_key(slot)) {
                Ok(name) => self.pairing = Some(name),
                Err(error) => tracing::warn!(%error, "the pairing code is not announced"),
            }
        }
    }

    /// Takes everything back and ends the mDNS thread.
    pub(super) async fn stop(self) {
        let names = self
            .own
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let goodbye = async {
            for name in &names {
                if let Ok(done) = self.mdns.unregister(name) {
                    let _ = done.recv_async().await;
                }
            }
        };
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
        stop(&self.mdns).await;
    }

    fn announce(&self, key: &Key) -> Result<String, NetError> {
        let name = HEXLOWER.encode(&random::<8>(&mut OsRng));
        let host = format!("{}.local.", HEXLOWER.encode(&random::<8>(&mut OsRng)));
        let text = beacon::announcement(key, random(&mut OsRng));
        let properties = [(PROPERTY, text.as_str())];
        let port = self.local.port();
        let ip = self.local.ip();
        let mut info = if ip.is_unspecified() {
            ServiceInfo::new(SERVICE, &name, &host, "", port, &properties[..])
                .map(ServiceInfo::enable_addr_auto)
        } else {
            ServiceInfo::new(SERVICE, &name, &host, ip, port, &properties[..])
        }
        .map_err(failed)?;
        if self.local.is_ipv4() && ip.is_unspecified() {
            info.set_interfaces(vec![IfKind::IPv4]);
        }
        // The name is 64 random bits: nobody to ask.
        info.set_requires_probe(false);
        let full = info.get_fullname().to_owned();
        // Before registering: one's own announcement comes back at once.
        self.own
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(full.clone());
        self.mdns.register(info).map_err(failed)?;
        Ok(full)
    }
}

impl Watcher {
    /// The next device found, or found elsewhere than before; `None` when the mDNS
    /// thread has ended. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<NetEvent> {
        loop {
            match self.events.recv_async().await.ok()? {
                ServiceEvent::ServiceResolved(service) => {
                    if let Some(found) = self.judge(&service) {
                        return Some(found);
                    }
                }
                ServiceEvent::ServiceRemoved(_, instance) => {
                    self.seen.remove(&instance);
                }
                _ => {}
            }
        }
    }

    fn judge(&mut self, service: &ResolvedService) -> Option<NetEvent> {
        let instance = service.get_fullname();
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if own.iter().any(|own| own == instance) || !bears(service, &self.key) {
            return None;
        }
        let addresses = addresses_of(service);
        if addresses.is_empty() || self.seen.get(instance) == Some(&addresses) {
            return None;
        }
        if self.seen.len() >= SEEN_MAX {
            self.seen.clear();
        }
        self.seen.insert(instance.to_owned(), addresses.clone());
        Some(NetEvent::PeerFound {
            instance: instance.to_owned(),
            addresses,
        })
    }
}

/// Looks on the LAN for the device that shows a pairing code with this slot, for at
/// most `timeout`. Returns where it listens, or nothing. Must run within a tokio runtime.
///
/// # Errors
/// [`NetError::Discovery`] when mDNS cannot be used at all.
pub async fn find_pairing_host(slot: u16, timeout: Duration) -> Result<Vec<SocketAddr>, NetError> {
    let key = beacon::slot_key(slot);
    let mdns = daemon()?;
    let events = mdns.browse(SERVICE).map_err(failed)?;
    let mut found = Vec::new();
    let mut deadline = tokio::time::Instant::now() + timeout;
    while let Ok(Ok(event)) = tokio::time::timeout_at(deadline, events.recv_async()).await {
        let ServiceEvent::ServiceResolved(service) = event else {
            continue;
        };
        if !bears(&service, &key) {
            continue;
        }
        if found.is_empty() {
            deadline = deadline.min(tokio::time::Instant::now() + MORE_HOSTS);
        }
        for address in addresses_of(&service) {
            if !found.contains(&address) {
                found.push(address);
            }
        }
    }
    stop(&mdns).await;
    Ok(found)
}

fn daemon() -> Result<ServiceDaemon, NetError> {
    let mdns = ServiceDaemon::new().map_err(failed)?;
    // Virtual bridges of containers and virtual machines stay: guests are devices too.
    let loopback = IfKind::Predicate(IfPredicate::new(|interface| interface.is_loopback()));
    mdns.disable_interface(loopback).map_err(failed)?;
    Ok(mdns)
}

async fn stop(mdns: &ServiceDaemon) {
    if let Ok(done) = mdns.shutdown() {
        let _ = tokio::time::timeout(GOODBYE, done.recv_async()).await;
    }
}

fn failed(error: mdns_sd::Error) -> NetError {
    NetError::Discovery {
        reason: error.to_string(),
    }
}

fn bears(service: &ResolvedService, key: &Key) -> bool {
    service
        .get_property_val_str(PROPERTY)
        .is_some_and(|text| beacon::verify_announcement(key, text))
}

/// IPv4 first, then global IPv6, link-local last: the order of what tends to work.
fn addresses_of(service: &ResolvedService) -> Vec<SocketAddr> {
    let port = service.get_port();
    let mut addresses: Vec<SocketAddr> = service
        .get_addresses()
        .iter()
        .filter_map(|ip| match ip {
            ScopedIp::V4(v4) => Some(SocketAddr::new(IpAddr::V4(*v4.addr()), port)),
            ScopedIp::V6(v6) => {
                let ip = *v6.addr();
                let scope = if ip.is_unicast_link_local() {
                    v6.scope_id().index
                } else {
                    0
                };
                Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)))
            }
            _ => None,
        })
        .filter(|address| !address.ip().is_unspecified() && !address.ip().is_multicast())
        .collect();
    addresses.sort_by_key(|address| (socket::is_link_local(address.ip()), *address));
    addresses.truncate(ADDRESSES_MAX);
    addresses
}
