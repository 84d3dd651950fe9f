//! The UDP socket and how QUIC uses it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{EndpointConfig, MtuDiscoveryConfig, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

use super::endpoint::NetError;

/// Largest UDP payload. On loopback and jumbo frames large packets triple the
/// throughput; above 6550 bytes a segmented send passes the size of a datagram,
/// fails, and path discovery falls back to the minimum.
const UDP_PAYLOAD_MAX: u16 = 6500;
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const SEND_WINDOW: u64 = 16 << 20;
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Three keep-alives may go missing.
const IDLE_TIMEOUT_MS: u32 = 50_000;

/// Finds out whether an address can be listened on, and lets go of it at once.
///
/// # Errors
/// [`NetError::AddressInUse`], [`NetError::Bind`].
pub fn try_bind(listen: SocketAddr) -> Result<(), NetError> {
    bind(Some(listen)).map(drop)
}

/// Binds the socket: the given address, or else any port on all addresses, IPv6
/// and IPv4 where the system has both.
pub(super) fn bind(listen: Option<SocketAddr>) -> Result<UdpSocket, NetError> {
    let bind_one = |address: SocketAddr| {
        open(address).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => NetError::AddressInUse { address },
            _ => NetError::Bind { address, source },
        })
    };
    match listen {
        Some(address) => match bind_one(address) {
            // "All addresses" means what the system has.
            Err(NetError::Bind { .. }) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
                bind_one(SocketAddr::new(
                    Ipv4Addr::UNSPECIFIED.into(),
                    address.port(),
                ))
            }
            other => other,
        },
        None => bind_one(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0))
            .or_else(|_| bind_one(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0))),
    }
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

pub(super) fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(UDP_PAYLOAD_MAX)
        .expect("the size is within QUIC's bounds");
    config
}

/// `streams` is how many bidirectional streams the other side may open.
pub(super) fn transport_config(streams: u8) -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(UDP_PAYLOAD_MAX);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u8.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        .mtu_discovery_config(Some(mtu));
    Arc::new(config)
}

/// Addresses under which others may reach a socket bound to `local`: its own, or
/// where it is bound to all, those of the interfaces that are up. Loopback only
/// if there is nothing else; link-local never, as its scope means nothing elsewhere.
pub(super) fn reachable(local: SocketAddr) -> Vec<SocketAddr> {
    if !local.ip().is_unspecified() {
        return vec![local];
    }
    let (mut found, mut loopback) = (Vec::new(), Vec::new());
    for interface in if_addrs::get_if_addrs().unwrap_or_default() {
        let ip = interface.ip();
        let usable = interface.is_oper_up() && (ip.is_ipv4() || local.is_ipv6());
        if !usable || is_link_local(ip) {
            continue;
        }
        let list = if ip.is_loopback() {
            &mut loopback
        } else {
            &mut found
        };
        list.push(SocketAddr::new(ip, local.port()));
    }
    let mut addresses = if found.is_empty() { loopback } else { found };
    addresses.sort();
    addresses.dedup();
    addresses
}

pub(super) fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// The form in which an address is shown: IPv4 as such, though a dual socket sees it mapped.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}
