//! Notifies the service manager with systemd's protocol, sd_notify(3). Without a service manager, does nothing.

use sd_notify::NotifyState;

/// The server is ready for clients.
pub(super) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The server reloads its configuration. [`ready`] ends that.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => log::debug!(error:%; "cannot notify the service manager of a reload"),
    }
}

/// The server drains.
pub(super) fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Failing to notify is not a reason to stop serving.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!(error:%; "cannot notify the service manager (NOTIFY_SOCKET)");
    }
}
