//! Two hosts get to know each other by a short code that a person carries from one to the other.
//!
//! TLS stands already, but between whom? The code decides. SPAKE2 makes a key of it which both sides share only if
//! both know the code and see the same two public keys, and each proves to the other that it has that key, bound to
//! this one TLS session. Who stands in between shows other keys and has other sessions; from all that is said it
//! learns no more than whether one single guess of the code was right. Guesses are counted: see [`Invitation`].
//!
//! ```text
//! connecting side                        inviting side
//!    SPAKE2, A            ──────────▶
//!                         ◀──────────    SPAKE2, B            one try is gone
//!    proof                ──────────▶
//!                         ◀──────────    proof, or nothing    the code was right, or it was not
//!    its name             ──────────▶    keeps the other's key
//!                         ◀──────────    its name, or nothing
//!    keeps the other's key
//! ```

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use spake2::{Ed25519Group, Identity, Password, Spake2};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio::time::timeout;

use crate::error::LinkError;
use crate::trust::{Fingerprint, is_peer_name};

/// How often a code may be tried.
pub const PAIRING_TRIES: u32 = 3;
/// How long a code is good.
pub const PAIRING_TIME: Duration = Duration::from_secs(300);
/// How long the exchange may take, once TLS stands. People have typed before.
const EXCHANGE: Duration = Duration::from_secs(10);
const CODE_DIGITS: usize = 8;
/// Codes are drawn from numbers below this.
const CODES: u32 = 10u32.pow(CODE_DIGITS as u32);

/// Eight digits, good for one pairing.
#[derive(Clone, PartialEq, Eq)]
pub struct PairingCode(String);

impl PairingCode {
    /// A new one.
    pub fn random() -> io::Result<Self> {
        let random = SystemRandom::new();
        loop {
            let mut bytes = [0; 4];
            random.fill(&mut bytes).map_err(|_| io::Error::other("the system gave no random numbers for a code"))?;
            let number = u32::from_le_bytes(bytes);
            // The last incomplete round of numbers would favour small ones.
            if number < u32::MAX / CODES * CODES {
                return Ok(PairingCode(format!("{:08}", number % CODES)));
            }
        }
    }
}

impl fmt::Display for PairingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = self.0.split_at(CODE_DIGITS / 2);
        write!(f, "{first}-{last}")
    }
}

/// A log is no place for it.
impl fmt::Debug for PairingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairingCode(…)")
    }
}

/// What should be a code is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a code has {CODE_DIGITS} digits, as in 0123-4567")]
pub struct NoCode;

impl FromStr for PairingCode {
    type Err = NoCode;

    fn from_str(text: &str) -> Result<Self, NoCode> {
        let digits: String = text.chars().filter(|c| !c.is_whitespace() && *c != '-').collect();
        let is_code = digits.len() == CODE_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_code.then_some(PairingCode(digits)).ok_or(NoCode)
    }
}

/// Who is at the other end: it knew the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paired {
    /// What it calls itself.
    pub name: String,
    /// Its key.
    pub fingerprint: Fingerprint,
}

/// What keeps the other side's key, or says why it does not.
pub type Keep = Arc<dyn Fn(&Paired) -> Result<(), String> + Send + Sync>;

/// An offer to pair with who knows a code.
#[derive(Clone)]
pub struct Invitation {
    /// The code; say it to nobody but who shall come.
    pub code: PairingCode,
    /// What this side calls itself.
    pub name: String,
    /// So many wrong codes end it: [`PAIRING_TRIES`].
    pub tries: u32,
    /// So long it stands: [`PAIRING_TIME`].
    pub lasts: Duration,
    /// Keeps the key of who came; may block. What goes wrong there is said on both sides.
    pub keep: Keep,
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitation").field("name", &self.name).field("tries", &self.tries).finish_non_exhaustive()
    }
}

/// Why two sides did not pair.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PairError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("{0} does not pair now: start it with --pair, or run `edgent pair --listen` there")]
    NotNow(String),
    #[error("the codes differ: it was mistyped or is over, or somebody stands in between")]
    WrongCode,
    #[error("the code was right, but the other side did not keep this one's key; its log says why")]
    NotKeptThere,
    #[error("the code was right, but the other side's key is not kept here: {0}")]
    NotKept(String),
    #[error("{0} wrong codes; it is over")]
    Tries(u32),
    #[error("nobody came in time")]
    Expired,
    #[error("the exchange took over {} s", EXCHANGE.as_secs())]
    Timeout,
    #[error("the other side broke the exchange: {0}")]
    Protocol(String),
    #[error("plain bytes are spoken here; pairing needs TLS")]
    Plain,
}

impl From<io::Error> for PairError {
    fn from(error: io::Error) -> Self {
        PairError::Protocol(error.to_string())
    }
}

/// The session that the exchange is bound to: both public keys, and what only its two ends can derive from TLS.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub(crate) connecting: Fingerprint,
    pub(crate) inviting: Fingerprint,
    pub(crate) session: [u8; 32],
}

#[derive(Clone, Copy)]
enum Side {
    Connecting,
    Inviting,
}

impl Bound {
    /// SPAKE2 for this session; gives what to send.
    fn start(&self, side: Side, code: &PairingCode) -> (Spake2<Ed25519Group>, Vec<u8>) {
        let password = Password::new(&code.0);
        let (a, b) = (Identity::new(self.connecting.as_bytes()), Identity::new(self.inviting.as_bytes()));
        match side {
            Side::Connecting => Spake2::start_a(&password, &a, &b),
            Side::Inviting => Spake2::start_b(&password, &a, &b),
        }
    }

    /// What proves the key that SPAKE2 gave.
    fn proofs(&self, spake: Spake2<Ed25519Group>, theirs: &[u8]) -> Result<Proofs, PairError> {
        let shared = spake.finish(theirs).map_err(|error| PairError::Protocol(error.to_string()))?;
        let extract = hmac::Key::new(hmac::HMAC_SHA256, b"edgent pairing 1");
        let bound = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&extract, &shared).as_ref());
        let context = [&self.connecting.as_bytes()[..], self.inviting.as_bytes(), &self.session].concat();
        Ok(Proofs(hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&bound, &context).as_ref())))
    }
}

struct Proofs(hmac::Key);

impl Proofs {
    fn label(side: Side) -> &'static [u8] {
        match side {
            Side::Connecting => b"connecting",
            Side::Inviting => b"inviting",
        }
    }

    fn of(&self, side: Side) -> Vec<u8> {
        hmac::sign(&self.0, Self::label(side)).as_ref().to_vec()
    }

    fn hold(&self, side: Side, proof: &[u8]) -> bool {
        hmac::verify(&self.0, Self::label(side), proof).is_ok()
    }
}

/// The exchange, as the side that connected and has been told the code.
pub(crate) async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    bound: &Bound,
    code: &PairingCode,
    name: &str,
) -> Result<Paired, PairError> {
    let exchange = async {
        let (spake, ours) = bound.start(Side::Connecting, code);
        write(&mut stream, &ours).await?;
        let theirs = read(&mut stream).await?;
        if theirs.is_empty() {
            return Err(PairError::WrongCode);
        }
        let proofs = bound.proofs(spake, &theirs)?;
        write(&mut stream, &proofs.of(Side::Connecting)).await?;
        if !proofs.hold(Side::Inviting, &read(&mut stream).await?) {
            return Err(PairError::WrongCode);
        }
        write(&mut stream, name.as_bytes()).await?;
        let name = read(&mut stream).await?;
        if name.is_empty() {
            return Err(PairError::NotKeptThere);
        }
        Ok(Paired { name: peer_name(name)?, fingerprint: bound.inviting })
    };
    timeout(EXCHANGE, exchange).await.map_err(|_| PairError::Timeout)?
}

/// The exchange, as the side that invites; whether an invitation stands is asked of the door.
pub(crate) async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    bound: &Bound,
    door: &Door,
) -> Result<Paired, PairError> {
    let exchange = async {
        let theirs = read(&mut stream).await?;
        // From here on the peer learns something, so from here on it counts.
        let Some(attempt) = door.try_once() else {
            write(&mut stream, &[]).await?;
            return Err(PairError::WrongCode);
        };
        let (spake, ours) = bound.start(Side::Inviting, &attempt.code);
        write(&mut stream, &ours).await?;
        let proofs = bound.proofs(spake, &theirs)?;
        if !proofs.hold(Side::Connecting, &read(&mut stream).await?) {
            write(&mut stream, &[]).await?;
            return Err(PairError::WrongCode);
        }
        write(&mut stream, &proofs.of(Side::Inviting)).await?;
        let paired = Paired { name: peer_name(read(&mut stream).await?)?, fingerprint: bound.connecting };
        let kept = door.keep(attempt.keep, paired.clone()).await;
        let answer = if kept.is_ok() { attempt.name.as_bytes() } else { &[] };
        // Kept is kept, even if the peer does not hear of it.
        let _ = write(&mut stream, answer).await;
        kept.map(|()| paired)
    };
    let outcome = timeout(EXCHANGE, exchange).await.unwrap_or(Err(PairError::Timeout));
    let _ = stream.shutdown().await;
    door.look();
    outcome
}

fn peer_name(bytes: Vec<u8>) -> Result<String, PairError> {
    let name = String::from_utf8(bytes).ok().filter(|name| is_peer_name(name));
    name.ok_or_else(|| PairError::Protocol("its name is none".to_owned()))
}

/// A piece of the exchange: its length in one byte, and so many bytes.
async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    let length = u8::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&[length], bytes].concat()).await?;
    stream.flush().await
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Where a server's invitation stands, if it has one. Clones are the same door.
#[derive(Clone, Debug, Default)]
pub(crate) struct Door(Arc<Mutex<Option<Open>>>);

#[derive(Debug)]
struct Open {
    invitation: Invitation,
    tries_left: u32,
    until: Instant,
    outcome: oneshot::Sender<Result<Paired, PairError>>,
}

impl Door {
    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Over, or nobody waits for it any more.
        open.take_if(|open| open.until <= Instant::now() || open.outcome.is_closed());
        open
    }

    /// Lets somebody in who knows the code, and waits for that. An invitation before it is void.
    pub(crate) async fn open(&self, invitation: Invitation) -> Result<Paired, PairError> {
        let (outcome, paired) = oneshot::channel();
        let (tries_left, lasts) = (invitation.tries, invitation.lasts);
        *self.lock() = Some(Open { invitation, tries_left, until: Instant::now() + lasts, outcome });
        match timeout(lasts, paired).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(PairError::Expired),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.lock().as_ref().is_some_and(|open| open.tries_left > 0)
    }

    fn try_once(&self) -> Option<Invitation> {
        let mut open = self.lock();
        let open = open.as_mut()?;
        open.tries_left = open.tries_left.checked_sub(1)?;
        Some(open.invitation.clone())
    }

    /// Keeps who proved to know the code; one alone, however many do.
    async fn keep(&self, keep: Keep, paired: Paired) -> Result<(), PairError> {
        let Some(Open { outcome, .. }) = self.lock().take() else { return Err(PairError::Expired) };
        let keeping = tokio::task::spawn_blocking({
            let paired = paired.clone();
            move || keep(&paired)
        });
        let kept = keeping.await.unwrap_or_else(|_| Err("keeping it panicked".to_owned()));
        let _ = outcome.send(kept.clone().map(|()| paired).map_err(PairError::NotKept));
        kept.map_err(PairError::NotKept)
    }

    /// After a try that led to nothing: was it the last?
    fn look(&self) {
        let mut open = self.lock();
        if let Some(Open { invitation, outcome, .. }) = open.take_if(|open| open.tries_left == 0) {
            let _ = outcome.send(Err(PairError::Tries(invitation.tries)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(of: &str) -> Fingerprint {
        Fingerprint::of(of.as_bytes())
    }

    fn bound() -> Bound {
        Bound { connecting: key("device"), inviting: key("edge"), session: [7; 32] }
    }

    fn code(digits: &str) -> PairingCode {
        digits.parse().unwrap()
    }

    fn invitation(digits: &str) -> Invitation {
        let lasts = Duration::from_secs(60);
        Invitation { code: code(digits), name: "edge".to_owned(), tries: 2, lasts, keep: Arc::new(|_| Ok(())) }
    }

    /// What the two sides make of it, if each sees the session like this and the code was typed like that.
    async fn exchange(door: &Door, typed: &str, ours: Bound, theirs: Bound) -> [Result<Paired, PairError>; 2] {
        let (here, there) = tokio::io::duplex(256);
        let code = code(typed);
        let (asked, answered) = tokio::join!(ask(here, &ours, &code, "device"), answer(there, &theirs, door));
        [asked, answered]
    }

    #[test]
    fn a_code_is_read_as_it_is_written_and_typed() {
        let code = PairingCode::random().unwrap();
        assert_eq!(code.to_string().parse(), Ok(code.clone()));
        assert_eq!(code.0.parse(), Ok(code));
        assert_eq!(" 01 23-45 67\n".parse(), Ok(PairingCode("01234567".to_owned())));
        for wrong in ["", "1234567", "123456789", "1234567x", "١٢٣٤٥٦٧٨"] {
            assert_eq!(wrong.parse::<PairingCode>(), Err(NoCode), "{wrong}");
        }
    }

    #[tokio::test]
    async fn who_knows_the_code_is_kept_and_nobody_after_that() {
        let door = Door::default();
        let open = door.open(invitation("01234567"));
        let both = async {
            let [asked, answered] = exchange(&door, "0123-4567", bound(), bound()).await;
            assert_eq!(asked.unwrap(), Paired { name: "edge".to_owned(), fingerprint: key("edge") });
            assert_eq!(answered.unwrap(), Paired { name: "device".to_owned(), fingerprint: key("device") });
            let [again, _] = exchange(&door, "0123-4567", bound(), bound()).await;
            assert!(matches!(again, Err(PairError::WrongCode)), "{again:?}");
        };
        let (outcome, ()) = tokio::join!(open, both);
        assert_eq!(outcome.unwrap().fingerprint, key("device"));
    }

    #[tokio::test]
    async fn wrong_codes_end_it() {
        let door = Door::default();
        let open = door.open(invitation("01234567"));
        let both = async {
            for _ in 0..2 {
                assert!(door.is_open());
                for side in exchange(&door, "01234568", bound(), bound()).await {
                    assert!(matches!(side, Err(PairError::WrongCode)), "{side:?}");
                }
            }
            assert!(!door.is_open());
            let [late, _] = exchange(&door, "01234567", bound(), bound()).await;
            assert!(matches!(late, Err(PairError::WrongCode)), "{late:?}");
        };
        let (outcome, ()) = tokio::join!(open, both);
        assert!(matches!(outcome, Err(PairError::Tries(2))), "{outcome:?}");
    }

    /// In between, somebody has TLS with each side and passes on all that is said; the code is right.
    #[tokio::test]
    async fn who_stands_in_between_loses() {
        let seen_by_the_device = Bound { inviting: key("between"), session: [1; 32], ..bound() };
        let seen_by_the_edge = Bound { connecting: key("between"), session: [2; 32], ..bound() };
        // Even with the keys of the two, were that possible: the sessions are not the same.
        let other_session = Bound { session: [8; 32], ..bound() };
        for (ours, theirs) in [(seen_by_the_device, seen_by_the_edge), (bound(), other_session)] {
            let door = Door::default();
            let open = door.open(invitation("01234567"));
            let both = async {
                for side in exchange(&door, "01234567", ours, theirs).await {
                    assert!(matches!(side, Err(PairError::WrongCode)), "{side:?}");
                }
            };
            tokio::select! {
                biased;
                outcome = open => panic!("{outcome:?}"),
                () = both => {}
            }
        }
    }

    #[tokio::test]
    async fn what_is_not_kept_is_said_on_both_sides() {
        let door = Door::default();
        let open = door.open(Invitation { keep: Arc::new(|_| Err("disk full".to_owned())), ..invitation("01234567") });
        let (outcome, [asked, answered]) = tokio::join!(open, exchange(&door, "01234567", bound(), bound()));
        assert!(matches!(asked, Err(PairError::NotKeptThere)), "{asked:?}");
        assert!(matches!(&answered, Err(PairError::NotKept(why)) if why == "disk full"), "{answered:?}");
        assert!(matches!(outcome, Err(PairError::NotKept(_))));
    }

    #[tokio::test]
    async fn an_invitation_ends_with_its_time() {
        let door = Door::default();
        let outcome = door.open(Invitation { lasts: Duration::ZERO, ..invitation("01234567") }).await;
        assert!(matches!(outcome, Err(PairError::Expired)));
        assert!(!door.is_open());
    }
}
