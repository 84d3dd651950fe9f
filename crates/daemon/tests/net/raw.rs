//! A peer that is not made of the code under test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pacsync_protocol::crypto::SigningKey;

use super::{PATIENCE, any_port, key};

use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

pub(super) struct Client {
    pub(super) connection: quinn::Connection,
    _endpoint: quinn::Endpoint,
}

/// Notes that a certificate was shown, and takes any.
#[derive(Debug)]
struct Recorder(Arc<AtomicBool>);

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.store(true, Ordering::SeqCst);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ED25519,
            SignatureScheme::ECDSA_NISTP256_SHA256,
        ]
    }
}

pub(super) async fn connect(
    address: SocketAddr,
    name: &str,
    protocols: &[&str],
    key: &SigningKey,
    presented: &Arc<AtomicBool>,
) -> Result<Client, quinn::ConnectionError> {
    let prefix = [
        0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
    ];
    let der = [prefix.as_slice(), key.expose_seed().as_slice()].concat();
    let der = PrivatePkcs8KeyDer::from(der);
    let pair =
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519).expect("a key");
    let certificate = rcgen::CertificateParams::default()
        .self_signed(&pair)
        .expect("signs");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is there")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Recorder(presented.clone())))
        .with_client_auth_cert(vec![certificate.der().clone()], der.into())
        .expect("the key fits");
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    let crypto = QuicClientConfig::try_from(config).expect("QUIC's first suite is there");
    let endpoint = quinn::Endpoint::client(any_port()).expect("binds");
    let connection = endpoint
        .connect_with(quinn::ClientConfig::new(Arc::new(crypto)), address, name)
        .expect("the name is valid")
        .await?;
    Ok(Client {
        connection,
        _endpoint: endpoint,
    })
}

/// Says whether the server showed a certificate to a stranger's handshake.
pub(super) async fn probe(address: SocketAddr, name: &str, protocols: &[&str]) -> bool {
    let presented = Arc::new(AtomicBool::new(false));
    let stranger = key(99);
    let attempt = connect(address, name, protocols, &stranger, &presented);
    let result = tokio::time::timeout(PATIENCE, attempt)
        .await
        .expect("is answered");
    assert_eq!(result.is_ok(), presented.load(Ordering::SeqCst));
    presented.load(Ordering::SeqCst)
}
