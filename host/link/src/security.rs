//! Which connections are TLS, and which may be plain.

use std::net::IpAddr;

use crate::trust::Credentials;

/// What a [`Link`](crate::Link) speaks: TLS to everybody, but where plain bytes are allowed.
#[derive(Clone, Debug)]
pub struct Security {
    credentials: Option<Credentials>,
    plain: Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plain {
    Nowhere,
    OnLoopback,
    Anywhere,
}

impl Security {
    /// TLS, and nothing else.
    pub fn tls(credentials: Credentials) -> Self {
        Security { credentials: Some(credentials), plain: Plain::Nowhere }
    }

    /// Plain on this machine's own addresses; TLS elsewhere, if there are credentials for it, or nothing at all.
    pub fn plain_on_loopback(credentials: Option<Credentials>) -> Self {
        Security { credentials, plain: Plain::OnLoopback }
    }

    /// Plain bytes, wherever they go: everybody on the way reads them, and anybody may be the peer.
    pub fn insecure() -> Self {
        Security { credentials: None, plain: Plain::Anywhere }
    }

    /// Whether TLS is spoken at this address.
    pub fn is_tls_at(&self, address: IpAddr) -> bool {
        matches!(self.at(address), Ok(Some(_)))
    }

    pub(crate) fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// What is to be spoken at this address: TLS with these credentials, or plain bytes.
    pub(crate) fn at(&self, address: IpAddr) -> Result<Option<&Credentials>, NoCredentials> {
        match self.plain {
            Plain::Anywhere => Ok(None),
            Plain::OnLoopback if address.to_canonical().is_loopback() => Ok(None),
            Plain::OnLoopback | Plain::Nowhere => self.credentials.as_ref().map(Some).ok_or(NoCredentials),
        }
    }
}

/// TLS is needed, and this side has no key.
#[derive(Debug)]
pub(crate) struct NoCredentials;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::trust::Peers;

    #[test]
    fn plain_bytes_do_not_leave_the_machine_unasked() {
        let identity = Identity::read(&Identity::generate().unwrap()).unwrap();
        let credentials = Credentials::new(identity, Peers::default());
        let of = |security: &Security| {
            ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "192.168.1.10", "::"].map(
                |address: &str| match security.at(address.parse().unwrap()) {
                    Ok(None) => "plain",
                    Ok(Some(_)) => "tls",
                    Err(NoCredentials) => "refused",
                },
            )
        };
        assert_eq!(of(&Security::tls(credentials.clone())), ["tls"; 6]);
        assert_eq!(of(&Security::insecure()), ["plain"; 6]);
        let with = Security::plain_on_loopback(Some(credentials));
        assert_eq!(of(&with), ["plain", "plain", "plain", "tls", "tls", "tls"]);
        let without = Security::plain_on_loopback(None);
        assert_eq!(of(&without), ["plain", "plain", "plain", "refused", "refused", "refused"]);
    }
}
