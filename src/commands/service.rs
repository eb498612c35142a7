//! What a service manager is told: systemd's notification protocol, sd_notify(3). Without a manager, nothing.

use sd_notify::NotifyState;

/// Clients are served.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is being read again, until [`ready`] is said.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => log::debug!("the service manager cannot be told of a reload: {error}"),
    }
}

/// Nobody new is served.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// A manager that cannot be told is no reason not to serve.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("the service manager (NOTIFY_SOCKET) cannot be told how it stands: {error}");
    }
}
