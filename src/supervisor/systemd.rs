//! What systemd gives and is told. Only the supervisor may talk to it (`NotifyAccess=main`).

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::sys::fd;

/// Sends states to `$NOTIFY_SOCKET`; does nothing without it.
#[derive(Debug, Default)]
pub(crate) struct Systemd;

impl Systemd {
    /// The service serves.
    pub(crate) fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready]);
        self.status(status);
    }

    /// A reload begins; [`Systemd::ready`] must follow, whatever comes of it.
    pub(crate) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            // In one message: without the time systemd 253 and later wait for ever, sd_notify(3).
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(_) => self.tell(&[NotifyState::Reloading]),
        }
    }

    /// The service ends.
    pub(crate) fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// One line for `systemctl status`.
    pub(crate) fn status(&self, line: &str) {
        let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect();
        self.tell(&[NotifyState::Status(&line)]);
    }

    /// Stopping takes this much longer.
    pub(crate) fn extend(&self, time: Duration) {
        self.tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))]);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        // Nobody who could be told that it failed.
        let _ = sd_notify::notify(states);
    }
}

/// The sockets that systemd passed to this process, by name. To be called once.
pub(crate) fn passed_sockets() -> io::Result<HashMap<String, Vec<OwnedFd>>> {
    let mut sockets: HashMap<String, Vec<OwnedFd>> = HashMap::new();
    for (number, name) in sd_notify::listen_fds_with_names()? {
        sockets.entry(name).or_default().push(fd::inherited(number)?);
    }
    Ok(sockets)
}
