//! What the system still has of what it was given to send.
//!
//! A system takes a whole activation at once, and on a slow link the peer's takes seconds to acknowledge it. Nothing else shows
//! meanwhile that the peer is there: it answers only once it has all.

use tokio::net::TcpStream;

#[cfg(target_os = "linux")]
pub(crate) struct Backlog(std::os::fd::OwnedFd);

#[cfg(target_os = "linux")]
impl Backlog {
    pub(crate) fn of(stream: &TcpStream) -> Option<Self> {
        use std::os::fd::AsFd;
        stream.as_fd().try_clone_to_owned().ok().map(Self)
    }

    /// Bytes that the peer's system has not acknowledged yet, sent or not.
    #[allow(unsafe_code)]
    pub(crate) fn bytes(&self) -> Option<u64> {
        use rustix::ioctl::{Getter, ioctl};
        // `SIOCOUTQ`, tcp(7), which has the number of `TIOCOUTQ`. No safe wrapper of it was found.
        const UNACKNOWLEDGED: rustix::ioctl::Opcode = libc::TIOCOUTQ as _;
        // SAFETY: of a socket, this request writes one int and does nothing else.
        let bytes = unsafe { ioctl(&self.0, Getter::<UNACKNOWLEDGED, libc::c_int>::new()) };
        bytes.ok().and_then(|bytes| u64::try_from(bytes).ok())
    }
}

/// Elsewhere, nobody is asked.
#[cfg(not(target_os = "linux"))]
pub(crate) struct Backlog;

#[cfg(not(target_os = "linux"))]
impl Backlog {
    pub(crate) fn of(_: &TcpStream) -> Option<Self> {
        None
    }

    pub(crate) fn bytes(&self) -> Option<u64> {
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn what_is_not_taken_is_counted_until_it_is() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut theirs, _) = listener.accept().await.unwrap();
        let backlog = Backlog::of(&ours).unwrap();
        assert_eq!(backlog.bytes(), Some(0));
        // The peer's system takes some of it for the peer, and then no more.
        ours.writable().await.unwrap();
        let mut sent = 0;
        while let Ok(count) = ours.try_write(&[7; 1 << 16]) {
            sent += count as u64;
        }
        let waiting = backlog.bytes().unwrap();
        assert!(waiting > 0 && waiting <= sent, "{waiting} of {sent}");
        ours.shutdown().await.unwrap();
        let mut taken = Vec::new();
        theirs.read_to_end(&mut taken).await.unwrap();
        assert_eq!(taken.len() as u64, sent);
        // The last of it may not be acknowledged at once.
        while backlog.bytes().unwrap() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
