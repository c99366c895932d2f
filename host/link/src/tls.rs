//! TLS 1.3 below Cap'n Proto, between hosts that know each other by their keys.
//!
//! Both sides show a raw public key (RFC 7250) and sign the handshake with it; a key is good if its fingerprint is
//! known here. No certificate is read and no clock is asked: a board that boots in 1970 is as good as any.
//! Sessions are never resumed, so each connection is one that its peer has signed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{Acceptor, AlwaysResolvesServerRawPublicKeys};
use rustls::time_provider::TimeProvider;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerMisbehaved, ServerConfig, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, TlsStream};

use crate::identity::fingerprint;
use crate::trust::{Credentials, Fingerprint, Right};

/// What is spoken inside, as TLS negotiates it (ALPN).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speech {
    /// Cap'n Proto RPC, with those who are known.
    Host,
    /// Getting to know each other (`pair.rs`), with anybody, while this side is open to it.
    Pairing,
}

impl Speech {
    fn name(self) -> &'static [u8] {
        match self {
            Speech::Host => b"edgent/1",
            Speech::Pairing => b"edgent-pair/1",
        }
    }
}

/// Whom this side connects to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whom<'a> {
    /// What is to be spoken with it.
    pub(crate) speech: Speech,
    /// The peer of that name, and no other.
    pub(crate) name: Option<&'a str>,
}

/// Why a handshake led to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// They showed a key that is not known here, or may not serve.
    #[error(transparent)]
    Distrust(#[from] Distrust),
    /// They do not know this side's key.
    #[error("it does not know this side's key")]
    UnknownThere,
    /// They do not pair now, or do nothing else.
    #[error("what was asked for (pairing, or the link) is not to be had there now")]
    NotNow,
    /// What came is no TLS, or not the right one.
    #[error("what came is no TLS with a raw public key: {0}")]
    Broken(io::Error),
}

/// Why a key is not good here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Distrust {
    #[error("the key {0} is not known here")]
    Stranger(Fingerprint),
    #[error("the peer with the key {0} may not `serve` here")]
    Useless(Fingerprint),
    #[error("the peer with the key {0} is not the one that was asked for")]
    Another(Fingerprint),
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) => {
                match inner.downcast_ref::<Distrust>() {
                    Some(distrust) => TlsError::Distrust(*distrust),
                    None => TlsError::Broken(error),
                }
            }
            Some(Error::AlertReceived(AlertDescription::CertificateUnknown)) => TlsError::UnknownThere,
            Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => TlsError::NotNow,
            _ => TlsError::Broken(error),
        }
    }
}

/// Says hello by TLS, as the side that connected; gives the peer's key.
pub(crate) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    credentials: &Credentials,
    whom: Whom<'_>,
    stream: S,
) -> Result<(TlsStream<S>, Fingerprint), TlsError> {
    let connector = TlsConnector::from(Arc::new(client_config(credentials, whom, Arc::new(NoClock))?));
    // Keys have no names; this one is never sent.
    let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    let stream = connector.connect(name, stream).await?;
    let stream = TlsStream::from(stream);
    let key = peer_key(&stream)?;
    Ok((stream, key))
}

/// The same as the side that was connected to; gives what is to be spoken, too.
pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    credentials: &Credentials,
    is_pairing: bool,
    stream: S,
) -> Result<(TlsStream<S>, Speech, Fingerprint), TlsError> {
    let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
    let start = match (&mut acceptor).await {
        Ok(start) => start,
        Err(error) => {
            if let Some(stream) = acceptor.take_io() {
                part(stream).await;
            }
            return Err(error.into());
        }
    };
    let asks_to_pair = start.client_hello().alpn().is_some_and(|mut names| names.any(|n| n == Speech::Pairing.name()));
    // To who asks for what is not to be had, the host's own speech is offered, and TLS says that they differ.
    let speech = if asks_to_pair && is_pairing { Speech::Pairing } else { Speech::Host };
    let config = Arc::new(server_config(credentials, speech, Arc::new(NoClock))?);
    match start.into_stream(config).into_fallible().await {
        Ok(stream) => {
            let stream = TlsStream::from(stream);
            let key = peer_key(&stream)?;
            Ok((stream, speech, key))
        }
        Err((error, stream)) => {
            part(stream).await;
            Err(error.into())
        }
    }
}

/// TLS on a stream as the link speaks it, with nothing above it: what the link is to be compared with.
pub async fn bare_connect<S>(credentials: &Credentials, stream: S) -> io::Result<impl AsyncRead + AsyncWrite + Unpin>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let whom = Whom { speech: Speech::Host, name: None };
    Ok(connect(credentials, whom, stream).await.map_err(io::Error::other)?.0)
}

/// The other side of [`bare_connect`].
pub async fn bare_accept<S>(credentials: &Credentials, stream: S) -> io::Result<impl AsyncRead + AsyncWrite + Unpin>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    Ok(accept(credentials, false, stream).await.map_err(io::Error::other)?.0)
}

/// How long a peer that is refused may take to read why, and how much it may say meanwhile.
const PARTING: Duration = Duration::from_millis(500);
const PARTING_BYTES: u64 = 64 << 10;

/// Closed with bytes unread, the system would take back what was sent last: why.
async fn part(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let parting = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(PARTING_BYTES), &mut tokio::io::sink()).await
    };
    let _ = timeout(PARTING, parting).await;
}

fn peer_key<S>(stream: &TlsStream<S>) -> Result<Fingerprint, TlsError> {
    let shown = stream.get_ref().1.peer_certificates().and_then(|shown| shown.first());
    let key = shown.and_then(|key| fingerprint(key));
    key.ok_or_else(|| TlsError::Broken(io::Error::other("no key was shown")))
}

/// What only the two ends of this session can derive (RFC 9266's idea, with a label of our own).
pub(crate) fn session<S>(stream: &TlsStream<S>) -> io::Result<[u8; 32]> {
    const LABEL: &[u8] = b"EXPORTER-edgent-pairing";
    let session = match stream {
        TlsStream::Client(stream) => stream.get_ref().1.export_keying_material([0; 32], LABEL, None),
        TlsStream::Server(stream) => stream.get_ref().1.export_keying_material([0; 32], LABEL, None),
    };
    session.map_err(io::Error::other)
}

fn client_config(credentials: &Credentials, whom: Whom<'_>, clock: Arc<dyn TimeProvider>) -> io::Result<ClientConfig> {
    let config = ClientConfig::builder_with_details(provider(), clock);
    let mut config = config
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(credentials, whom)))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(credentials.identity().key())));
    config.alpn_protocols = vec![whom.speech.name().to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

fn server_config(credentials: &Credentials, speech: Speech, clock: Arc<dyn TimeProvider>) -> io::Result<ServerConfig> {
    let config = ServerConfig::builder_with_details(provider(), clock);
    let mut config = config
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_client_cert_verifier(Arc::new(Verifier::new(credentials, Whom { speech, name: None })))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(credentials.identity().key())));
    config.alpn_protocols = vec![speech.name().to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What ring offers, with the suite first that this processor is fastest at. The side that connects has its way.
fn provider() -> Arc<CryptoProvider> {
    #[cfg(target_arch = "aarch64")]
    let has_aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(target_arch = "x86_64")]
    let has_aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
    let has_aes = false;
    let mut cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384];
    let at = if has_aes { cipher_suites.len() } else { 0 };
    cipher_suites.insert(at, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256);
    Arc::new(CryptoProvider { cipher_suites, ..default_provider() })
}

/// The time is not looked at.
#[derive(Debug)]
struct NoClock;

impl TimeProvider for NoClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::ZERO))
    }
}

/// Asks nothing of a key but whether it is known here, and whether its owner signed this handshake.
#[derive(Debug)]
struct Verifier {
    credentials: Credentials,
    speech: Speech,
    name: Option<String>,
    schemes: rustls::crypto::WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(credentials: &Credentials, Whom { speech, name }: Whom<'_>) -> Self {
        let schemes = default_provider().signature_verification_algorithms;
        Verifier { credentials: credentials.clone(), speech, name: name.map(str::to_owned), schemes }
    }

    fn judge(&self, key: &[u8], needs: Option<Right>) -> Result<(), Error> {
        let key = fingerprint(key).ok_or(CertificateError::BadEncoding)?;
        if self.speech == Speech::Pairing {
            return Ok(());
        }
        let distrust = match (self.credentials.find(&key), needs) {
            (None, _) => Distrust::Stranger(key),
            (Some(peer), Some(right)) if !peer.may.contains(&right) => Distrust::Useless(key),
            (Some(peer), _) if self.name.as_ref().is_some_and(|name| peer.name != *name) => Distrust::Another(key),
            (Some(_), _) => return Ok(()),
        };
        Err(CertificateError::Other(OtherError(Arc::new(distrust))).into())
    }

    fn is_signed(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.schemes)
    }
}

const NO_TLS12: Error = Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme);

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(key, Some(Right::Serve)).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(NO_TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.is_signed(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(key, None).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(NO_TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.is_signed(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::trust::{KnownPeer, Peers};
    use tokio_rustls::TlsAcceptor;

    #[derive(Debug)]
    struct Stopped(Duration);

    impl TimeProvider for Stopped {
        fn current_time(&self) -> Option<UnixTime> {
            Some(UnixTime::since_unix_epoch(self.0))
        }
    }

    fn two_that_know_each_other() -> [Credentials; 2] {
        let new = || Identity::read(&Identity::generate().unwrap()).unwrap();
        let (one, other) = (new(), new());
        let knowing = |other: &Identity| {
            let (name, fingerprint) = ("other".to_owned(), other.fingerprint());
            let mut peers = Peers::default();
            peers.add(KnownPeer { name, fingerprint, may: Right::ALL.into(), models: None }).unwrap();
            peers
        };
        let (of_one, of_other) = (knowing(&other), knowing(&one));
        [Credentials::new(one, of_one), Credentials::new(other, of_other)]
    }

    /// Whatever the two clocks say.
    #[tokio::test]
    async fn the_time_does_not_matter() {
        let [here, there] = two_that_know_each_other();
        let year = |year: u64| Duration::from_secs((year - 1970) * 365 * 24 * 3600);
        for (ours, theirs) in [(1970, 2026), (2100, 1970), (2026, 2100)] {
            let (near, far) = tokio::io::duplex(1 << 16);
            let whom = Whom { speech: Speech::Host, name: None };
            let client = client_config(&here, whom, Arc::new(Stopped(year(ours)))).unwrap();
            let server = server_config(&there, Speech::Host, Arc::new(Stopped(year(theirs)))).unwrap();
            let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
            let (client, server) = tokio::join!(
                TlsConnector::from(Arc::new(client)).connect(name, near),
                TlsAcceptor::from(Arc::new(server)).accept(far)
            );
            let (client, server) = (TlsStream::from(client.unwrap()), TlsStream::from(server.unwrap()));
            assert_eq!(peer_key(&client).unwrap(), there.identity().fingerprint());
            assert_eq!(peer_key(&server).unwrap(), here.identity().fingerprint());
        }
    }
}
