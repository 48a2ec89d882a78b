//! What systemd gives and is told. Only the supervisor may talk to it (`NotifyAccess=main`).

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::config::Address;
use crate::sys::fd;

/// Sends states to `$NOTIFY_SOCKET`; does nothing without it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Systemd;

impl Systemd {
    /// Whether somebody listens.
    pub(crate) fn is_there(self) -> bool {
        std::env::var_os("NOTIFY_SOCKET").is_some()
    }

    /// The service serves.
    pub(crate) fn ready(self, status: &str) {
        self.tell(&[NotifyState::Ready]);
        self.status(status);
    }

    /// A reload begins; [`Systemd::ready`] must follow, whatever comes of it.
    pub(crate) fn reloading(self) {
        match NotifyState::monotonic_usec_now() {
            // In one message: without the time systemd 253 and later wait for ever, sd_notify(3).
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(_) => self.tell(&[NotifyState::Reloading]),
        }
    }

    /// The service ends.
    pub(crate) fn stopping(self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// One line for `systemctl status`.
    pub(crate) fn status(self, line: &str) {
        let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect();
        self.tell(&[NotifyState::Status(&line)]);
    }

    /// Stopping takes this much longer.
    pub(crate) fn extend(self, time: Duration) {
        self.tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))]);
    }

    /// How often systemd wants to hear that all is well, if it does.
    pub(crate) fn watchdog(self) -> Option<Duration> {
        sd_notify::watchdog_enabled()
    }

    /// All is well.
    pub(crate) fn alive(self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    /// Gives systemd a listener to keep while there is no supervisor. One that it has already stays there once.
    pub(crate) fn store(self, address: &Address, listener: BorrowedFd<'_>) {
        let name = stored_name(address);
        let _ = sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(&name)], &[listener]);
    }

    /// Has systemd close a listener that it keeps.
    pub(crate) fn forget(self, address: &Address) {
        self.forget_name(&stored_name(address));
    }

    fn forget_name(self, name: &str) {
        self.tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    }

    fn tell(self, states: &[NotifyState<'_>]) {
        // Nobody who could be told that it failed.
        let _ = sd_notify::notify(states);
    }
}

/// Marks the names of descriptors that a supervisor before this one stored.
const STORED: &str = "preforkd=";

/// An address as the name of a stored descriptor, which must not contain a colon, sd_notify(3).
fn stored_name(address: &Address) -> String {
    format!("{STORED}{}", address.to_string().replace('%', "%25").replace(':', "%3A"))
}

fn stored_address(name: &str) -> Option<Address> {
    name.strip_prefix(STORED)?.replace("%3A", ":").replace("%25", "%").parse().ok()
}

/// sd_listen_fds_with_names(3). sd-notify's own marks them as closed on exec, and so as taken: see [`fd::inherited`].
fn listen_fds() -> io::Result<Vec<(RawFd, String)>> {
    let invalid = |name| io::Error::new(io::ErrorKind::InvalidInput, format!("invalid {name}"));
    let number = |name| match std::env::var(name) {
        Ok(text) => text.parse::<u32>().map(Some).map_err(|_| invalid(name)),
        Err(_) => Ok(None),
    };
    if number("LISTEN_PID")? != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS")?.unwrap_or(0);
    let end = RawFd::try_from(count).ok().and_then(|count| count.checked_add(3));
    let numbers = 3..end.ok_or_else(|| invalid("LISTEN_FDS"))?;
    match std::env::var("LISTEN_FDNAMES") {
        Err(_) => Ok(numbers.map(|number| (number, "unknown".to_owned())).collect()),
        Ok(names) if names.split(':').count() == numbers.len() => {
            Ok(numbers.zip(names.split(':').map(str::to_owned)).collect())
        }
        Ok(_) => Err(invalid("LISTEN_FDNAMES")),
    }
}

/// The sockets that systemd passed to this process.
#[derive(Debug, Default)]
pub(crate) struct ActivatedSockets {
    /// Those of socket units, by their `FileDescriptorName=`.
    pub(crate) named: HashMap<String, Vec<OwnedFd>>,
    /// Those that a supervisor before this one left.
    pub(crate) stored: HashMap<Address, OwnedFd>,
}

impl ActivatedSockets {
    /// Takes them over. To be called once.
    pub(crate) fn take(systemd: Systemd) -> io::Result<Self> {
        let mut passed = ActivatedSockets::default();
        for (number, name) in listen_fds()? {
            let socket = fd::inherited(number)?;
            match stored_address(&name) {
                Some(address) => {
                    passed.stored.insert(address, socket);
                }
                // Of another version; nobody will ever want it.
                None if name.starts_with(STORED) => systemd.forget_name(&name),
                None => passed.named.entry(name).or_default().push(socket),
            }
        }
        Ok(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_stored_listener_says_its_address() {
        for text in ["127.0.0.1:7", "[fe80::1%3]:9", "unix:/run/50%:3A", "fd:web"] {
            let address: Address = text.parse().unwrap();
            let name = stored_name(&address);
            assert!(!name.contains(':'), "{name}");
            assert_eq!(stored_address(&name), Some(address));
        }
        assert_eq!(stored_address("web"), None);
    }
}
