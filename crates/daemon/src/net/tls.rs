//! Who is answered, and who is believed: certificates, the choice of certificate
//! by the tag in the server name, and verifiers pinned to Ed25519 keys.
//!
//! TLS 1.3 only, both sides authenticated, no resumption, no early data. Names,
//! dates and issuers in certificates mean nothing: a certificate is the envelope
//! of a key, and the handshake's signature proves that key.

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use pacsync_protocol::crypto::{Key, SigningKey};
use pacsync_protocol::{DeviceId, beacon};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ED25519};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName as CaName, PeerIncompatible,
    SignatureScheme,
};
use zeroize::Zeroizing;

use super::event::{ConnectFailure, PeerStanding, StandingOf};

/// Between devices of one pac.
pub(super) const ALPN_SYNC: &[u8] = b"pacsync/1";
/// Between a device with a live pairing code and one that joins.
pub(super) const ALPN_PAIR: &[u8] = b"pacsync-pair/1";

/// An honest certificate is under 300 bytes.
const CERTIFICATE_LIMIT: usize = 2048;
/// DER of a PKCS#8 Ed25519 private key, up to the seed.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// DER of an Ed25519 public key, up to the key.
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Why no certificate or configuration could be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refused the key or the settings.
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
    /// The TLS library lacks what QUIC starts with.
    #[error("cannot set up TLS for QUIC: {0}")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// Makes a self-signed certificate that says nothing but the key.
pub(super) fn certify(key: &SigningKey) -> Result<Arc<CertifiedKey>, TlsError> {
    let seed = key.expose_seed();
    let der = Zeroizing::new([PKCS8_PREFIX.as_slice(), seed.as_slice()].concat());
    certify_pkcs8(&PrivatePkcs8KeyDer::from(der.as_slice()))
}

/// Makes a certificate with a key of its own, for one pairing.
pub(super) fn certify_throwaway() -> Result<Arc<CertifiedKey>, TlsError> {
    let pair = KeyPair::generate_for(&PKCS_ED25519)?;
    certify_pkcs8(&PrivatePkcs8KeyDer::from(pair.serialized_der()))
}

fn certify_pkcs8(der: &PrivatePkcs8KeyDer<'_>) -> Result<Arc<CertifiedKey>, TlsError> {
    let pair = KeyPair::from_pkcs8_der_and_sign_algo(der, &PKCS_ED25519)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let certificate = params.self_signed(&pair)?;
    let signer = ring::sign::any_eddsa_type(der)?;
    Ok(Arc::new(CertifiedKey::new(
        vec![certificate.der().clone()],
        signer,
    )))
}

/// A pairing code's public side, while it lives.
#[derive(Debug)]
pub(super) struct PairingTag {
    pub(super) key: Key,
    pub(super) certificate: Arc<CertifiedKey>,
}

/// The live pairing tag; shared with whoever turns pairing on and off.
pub(super) type PairingTagCell = Arc<RwLock<Option<PairingTag>>>;

/// Chooses the certificate by tag and protocol; both must be of one kind.
#[derive(Debug)]
struct TagResolver {
    discovery_key: Key,
    device: Arc<CertifiedKey>,
    pairing: PairingTagCell,
}

impl ResolvesServerCert for TagResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?;
        let mut protocols = hello.alpn()?;
        // With two on offer, the one negotiated might not be the one that the tag is for.
        let (Some(protocol), None) = (protocols.next(), protocols.next()) else {
            return None;
        };
        if protocol == ALPN_SYNC {
            beacon::verify_server_name(&self.discovery_key, name).then(|| self.device.clone())
        } else if protocol == ALPN_PAIR {
            let pairing = self.pairing.read().unwrap_or_else(PoisonError::into_inner);
            let tag = pairing.as_ref()?;
            beacon::verify_server_name(&tag.key, name).then(|| tag.certificate.clone())
        } else {
            None
        }
    }
}

#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl ResolvesClientCert for OneCertificate {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        schemes
            .contains(&SignatureScheme::ED25519)
            .then(|| self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Which server a client takes.
#[derive(Clone)]
pub(super) enum Accept {
    /// A known device that is not this one; the named one, if one is named.
    Device {
        own: DeviceId,
        expect: Option<DeviceId>,
        standing: StandingOf,
    },
    /// Whoever has an Ed25519 key: pairing proves more inside.
    Anyone,
}

impl Accept {
    fn check(&self, found: DeviceId) -> Result<(), ConnectFailure> {
        let Self::Device {
            own,
            expect,
            standing,
        } = self
        else {
            return Ok(());
        };
        if found == *own {
            return Err(ConnectFailure::Ourselves);
        }
        if expect.is_some_and(|expect| expect != found) {
            return Err(ConnectFailure::WrongDevice { found });
        }
        match standing(&found) {
            PeerStanding::Known => Ok(()),
            PeerStanding::Unknown | PeerStanding::Refused => {
                Err(ConnectFailure::NotOfThisPac(found))
            }
        }
    }
}

/// Why a verifier turned a server away, for the caller: TLS passes on only an alert.
pub(super) type Verdict = Arc<OnceLock<ConnectFailure>>;

struct ServerVerifier {
    accept: Accept,
    verdict: Verdict,
    provider: Arc<CryptoProvider>,
}

struct ClientVerifier {
    own: DeviceId,
    standing: StandingOf,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerVerifier")
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientVerifier")
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = single_key(certificate, chain)?;
        self.accept.check(found).map_err(|why| {
            // Only the first verdict counts, and there is but one per connection.
            let _ = self.verdict.set(why);
            rustls::Error::from(CertificateError::ApplicationVerificationFailure)
        })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_with_key(&self.provider, message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[CaName] {
        &[]
    }

    /// Pairing's throw-away keys pass as unknown ones; what an unknown key may do
    /// is decided by the protocol it negotiated.
    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let found = single_key(certificate, chain)?;
        if found == self.own || (self.standing)(&found) == PeerStanding::Refused {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_with_key(&self.provider, message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

fn single_key(
    certificate: &CertificateDer<'_>,
    chain: &[CertificateDer<'_>],
) -> Result<DeviceId, rustls::Error> {
    chain
        .is_empty()
        .then(|| key_of(certificate))
        .flatten()
        .ok_or_else(|| CertificateError::BadEncoding.into())
}

/// The Ed25519 key in a certificate; `None` if it is of another kind or malformed.
fn key_of(certificate: &CertificateDer<'_>) -> Option<DeviceId> {
    if certificate.len() > CERTIFICATE_LIMIT {
        return None;
    }
    let (rest, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let info = parsed.public_key();
    let is_ed25519 = info.algorithm.algorithm == x509_parser::oid_registry::OID_SIG_ED25519
        && info.algorithm.parameters.is_none()
        && info.subject_public_key.unused_bits == 0;
    (rest.is_empty() && is_ed25519).then_some(())?;
    DeviceId::from_slice(&info.subject_public_key.data)
}

/// Verifies against the key that [`key_of`] read, written out anew: two parsers
/// could disagree about a crafted certificate.
fn verify_with_key(
    provider: &CryptoProvider,
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let key = key_of(certificate).ok_or(CertificateError::BadEncoding)?;
    if signed.scheme != SignatureScheme::ED25519 {
        return Err(CertificateError::BadSignature.into());
    }
    let spki = [SPKI_PREFIX.as_slice(), key.as_bytes()].concat();
    verify_tls13_signature_with_raw_key(
        message,
        &SubjectPublicKeyInfoDer::from(spki),
        signed,
        &provider.signature_verification_algorithms,
    )
}

/// The key that the other side of an established connection has proved.
pub(super) fn peer_of(connection: &quinn::Connection) -> Option<DeviceId> {
    let chain = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    key_of(chain.first()?)
}

/// The protocol and, on the server, the server name that a connection was made with.
pub(super) fn protocol_of(connection: &quinn::Connection) -> Option<(Vec<u8>, Option<String>)> {
    let data = connection.handshake_data()?;
    let data = data
        .downcast::<quinn::crypto::rustls::HandshakeData>()
        .ok()?;
    Some((data.protocol?, data.server_name))
}

/// One key exchange and the three suites of TLS 1.3, AES-128 first: it is the
/// fastest where there is hardware for it.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![
        ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider.kx_groups = vec![ring::kx_group::X25519];
    Arc::new(provider)
}

/// The server's side for both protocols.
pub(super) fn server_config(
    own: DeviceId,
    device: Arc<CertifiedKey>,
    discovery_key: Key,
    standing: StandingOf,
    pairing: PairingTagCell,
) -> Result<QuicServerConfig, TlsError> {
    let provider = provider();
    let verifier = ClientVerifier {
        own,
        standing,
        provider: provider.clone(),
    };
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(TagResolver {
            discovery_key,
            device,
            pairing,
        }));
    config.alpn_protocols = vec![ALPN_SYNC.to_vec(), ALPN_PAIR.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config.try_into()?)
}

/// The client's side for one connection.
pub(super) fn client_config(
    certificate: Arc<CertifiedKey>,
    protocol: &[u8],
    accept: Accept,
    verdict: Verdict,
) -> Result<QuicClientConfig, TlsError> {
    let provider = provider();
    let verifier = ServerVerifier {
        accept,
        verdict,
        provider: provider.clone(),
    };
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(OneCertificate(certificate)));
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_carries_the_device_key_and_no_name() {
        let key = SigningKey::from_seed(&[3; 32]);
        let certified = certify(&key).expect("certifies");
        let der = certified.cert.first().expect("one certificate");
        assert_eq!(key_of(der), Some(key.id()));
        let (_, parsed) = x509_parser::parse_x509_certificate(der).expect("parses");
        assert_eq!(parsed.subject().iter_attributes().count(), 0);
        assert_eq!(parsed.issuer().iter_attributes().count(), 0);
    }

    #[test]
    fn keys_of_other_kinds_and_damaged_certificates_are_refused() {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let other = CertificateParams::default()
            .self_signed(&pair)
            .expect("a certificate");
        assert_eq!(key_of(other.der()), None);

        let certified = certify(&SigningKey::from_seed(&[3; 32])).expect("certifies");
        let der = certified.cert.first().expect("one certificate").to_vec();
        for cut in 0..der.len() {
            assert_eq!(key_of(&CertificateDer::from(der[..cut].to_vec())), None);
        }
        let longer = [der.as_slice(), &[0]].concat();
        assert_eq!(key_of(&CertificateDer::from(longer)), None);
        assert_eq!(key_of(&CertificateDer::from(vec![0x30; 1 << 20])), None);
    }
}
