//! What a host tells the service manager that started it (systemd, `Type=notify`). Nobody listens: nothing is told.

use edgent_runtime::Pulse;
use sd_notify::NotifyState;
use std::future::pending;

/// It answers.
pub(crate) fn ready() {
    tell(NotifyState::Ready);
}

/// It looks again at what it may look at while it runs, until it is [`ready`].
pub(crate) fn reloading() {
    tell(NotifyState::Reloading);
}

/// It ends.
pub(crate) fn stopping() {
    tell(NotifyState::Stopping);
}

/// Says again and again that the host lives, as long as it does: a beat comes after everything that a request needs had
/// a turn, never from a timer alone. Never returns.
pub(crate) async fn watch(pulse: Pulse) {
    let Some(patience) = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero()) else {
        return pending().await;
    };
    // Twice in the time that the manager waits, as it asks for.
    let mut every = tokio::time::interval(patience / 2);
    loop {
        every.tick().await;
        if pulse.beat().await {
            tell(NotifyState::Watchdog);
        }
    }
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
