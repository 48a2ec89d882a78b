//! What systemd gives and is told. Only the supervisor may talk to it (`NotifyAccess=main`).

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::rc::Rc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::config::Address;
use crate::sys::socket::{self, UnixName};
use crate::sys::time::Monotonic;
use crate::sys::{fd, message};

/// How often a systemd that does not read is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// How long it is tried when this process ends.
const LAST_TRY: Duration = Duration::from_secs(1);

/// Sends states to `$NOTIFY_SOCKET`; does nothing without it.
///
/// It never waits: what systemd does not take now is kept in its order until it does. Of what is soon out of date nothing
/// is kept, and of status lines the last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Systemd(Rc<RefCell<Outbox>>);

#[derive(Debug, Default)]
struct Outbox {
    notices: VecDeque<Notice>,
    next_try: Option<Monotonic>,
}

/// What systemd has not taken yet.
#[derive(Debug)]
pub(super) struct Notice {
    /// As sd_notify(3) has it.
    pub(super) text: String,
    /// What goes with it to the store.
    pub(super) listener: Option<OwnedFd>,
}

/// What becomes of a notice that systemd does not take at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Lost,
}

impl Systemd {
    /// Whether somebody listens.
    pub(crate) fn is_there(&self) -> bool {
        std::env::var_os("NOTIFY_SOCKET").is_some()
    }

    /// The service serves.
    pub(crate) fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready], Fate::Kept);
        self.status(status);
    }

    /// A reload begins; [`Systemd::ready`] must follow, whatever comes of it.
    pub(crate) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            // In one message: without the time systemd 253 and later wait for ever, sd_notify(3).
            Ok(now) => self.tell(&[NotifyState::Reloading, now], Fate::Kept),
            Err(_) => self.tell(&[NotifyState::Reloading], Fate::Kept),
        }
    }

    /// The service ends.
    pub(crate) fn stopping(&self) {
        self.tell(&[NotifyState::Stopping], Fate::Kept);
    }

    /// One line for `systemctl status`.
    pub(crate) fn status(&self, line: &str) {
        let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect();
        self.0.borrow_mut().notices.retain(|notice| !notice.text.starts_with("STATUS="));
        self.tell(&[NotifyState::Status(&line)], Fate::Kept);
    }

    /// Stopping takes this much longer.
    pub(crate) fn extend(&self, time: Duration) {
        let usec = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        self.tell(&[NotifyState::ExtendTimeoutUsec(usec)], Fate::Lost);
    }

    /// How often systemd wants to hear that all is well, if it does.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        sd_notify::watchdog_enabled()
    }

    /// All is well.
    pub(crate) fn alive(&self) {
        self.tell(&[NotifyState::Watchdog], Fate::Lost);
    }

    /// Gives systemd a listener to keep while there is no supervisor. One that it has already stays there once.
    pub(crate) fn store(&self, address: &Address, listener: BorrowedFd<'_>) {
        let name = stored_name(address);
        self.send(&[NotifyState::FdStore, NotifyState::FdName(&name)], Some(listener), Fate::Kept);
    }

    /// Has systemd close a listener that it keeps.
    pub(crate) fn forget(&self, address: &Address) {
        self.forget_name(&stored_name(address));
    }

    fn forget_name(&self, name: &str) {
        self.tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)], Fate::Kept);
    }

    fn tell(&self, states: &[NotifyState<'_>], fate: Fate) {
        self.send(states, None, fate);
    }

    fn send(&self, states: &[NotifyState<'_>], listener: Option<BorrowedFd<'_>>, fate: Fate) {
        let text: String = states.iter().map(|state| format!("{state}\n")).collect();
        self.deliver();
        let mut outbox = self.0.borrow_mut();
        if outbox.notices.is_empty() && is_done_with(&text, listener) || fate == Fate::Lost {
            return;
        }
        // Without a descriptor for a copy it is as if systemd had no room for it.
        if let Ok(listener) = listener.map(|listener| listener.try_clone_to_owned()).transpose() {
            outbox.notices.push_back(Notice { text, listener });
            outbox.next_try = Some(Monotonic::now() + RETRY);
        }
    }

    /// Sends what was kept, as far as systemd takes it.
    pub(super) fn deliver(&self) {
        self.0.borrow_mut().deliver();
    }

    /// When to try [`Systemd::deliver`] next.
    pub(super) fn next_try(&self) -> Option<Monotonic> {
        self.0.borrow().next_try
    }
}

impl Outbox {
    fn deliver(&mut self) {
        while let Some(notice) = self.notices.front() {
            if !is_done_with(&notice.text, notice.listener.as_ref().map(AsFd::as_fd)) {
                self.next_try = Some(Monotonic::now() + RETRY);
                return;
            }
            self.notices.pop_front();
        }
        self.next_try = None;
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let until = Monotonic::now() + LAST_TRY;
        self.deliver();
        while self.next_try.is_some() && Monotonic::now() < until {
            std::thread::sleep(RETRY / 10);
            self.deliver();
        }
    }
}

/// Whether systemd has taken it or never will. There is nobody who could be told of the latter.
fn is_done_with(text: &str, listener: Option<BorrowedFd<'_>>) -> bool {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return true };
    let later = [libc::EAGAIN, libc::ENOBUFS, libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::ETOOMANYREFS];
    let sent = message::send_to(&socket, text.as_bytes(), listener);
    !sent.is_err_and(|error| error.raw_os_error().is_some_and(|errno| later.contains(&errno)))
}

/// Marks the names of descriptors that a supervisor before this one stored.
const STORED: &str = "preforkd=";

/// Marks those among them that have the path of a Unix socket, or its abstract name with the `@`, in hexadecimal, where
/// escapes would be too long.
const HEX: &str = "unix-hex=";

/// What systemd calls descriptors that have no name, or one that it does not take.
const NAMELESS: &str = "stored";

/// The longest name that systemd takes, `FDNAME_MAX` in its src/basic/fd-util.h. A path in hexadecimal always fits.
const LONGEST_NAME: usize = 255;

/// Whether systemd takes this byte in a name: printable ASCII without the colon, `fdname_is_valid` in its
/// src/basic/fd-util.c.
fn is_valid_in_name(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte) && byte != b':'
}

/// An address as the name of a stored descriptor.
fn stored_name(address: &Address) -> String {
    let plain = |byte: u8| is_valid_in_name(byte) && byte != b'%';
    let escaped = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    let name: String = address.to_string().bytes().map(escaped).collect();
    if STORED.len() + name.len() <= LONGEST_NAME {
        return format!("{STORED}{name}");
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match address {
        Address::Unix(path) => format!("{STORED}{HEX}{}", hex(path.as_os_str().as_bytes())),
        Address::Abstract(name) => format!("{STORED}{HEX}{}", hex(format!("@{name}").as_bytes())),
        Address::Tcp(_) | Address::Scoped(..) | Address::Any(_) | Address::Udp(_) | Address::Activated(_) => {
            format!("{STORED}{name}")
        }
    }
}

fn stored_address(name: &str) -> Option<Address> {
    let name = name.strip_prefix(STORED)?;
    let hex = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    let mut bytes = Vec::new();
    if let Some(path) = name.strip_prefix(HEX) {
        for digits in path.as_bytes().chunks(2) {
            bytes.push(hex(digits)?);
        }
        return match bytes.strip_prefix(b"@") {
            Some(name) => String::from_utf8(name.to_owned()).ok().map(Address::Abstract),
            None => Some(Address::Unix(OsString::from_vec(bytes).into())),
        };
    }
    let mut parts = name.as_bytes().split(|byte| *byte == b'%');
    bytes.extend(parts.next()?);
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.push(hex(digits)?);
        bytes.extend(rest);
    }
    String::from_utf8(bytes).ok()?.parse().ok()
}

/// The address of a socket whose name systemd did not take: that of a Unix socket with an odd path, stored by a preforkd
/// that escaped nothing but percent signs and colons. A socket unit may have given another one that name on purpose.
fn nameless_address(socket: BorrowedFd<'_>) -> Option<Address> {
    let Some(UnixName::Path(path)) = socket::local_name(socket) else { return None };
    let text = path.as_os_str().as_bytes();
    let escapes = text.iter().filter(|byte| [b'%', b':'].contains(byte)).count();
    let length = STORED.len() + "unix%3A".len() + text.len() + 2 * escapes;
    let is_odd = !text.iter().all(|byte| is_valid_in_name(*byte) || *byte == b':') || length > LONGEST_NAME;
    is_odd.then_some(Address::Unix(path))
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
    pub(crate) fn take(systemd: &Systemd) -> io::Result<Self> {
        let mut passed = ActivatedSockets::default();
        for (number, name) in listen_fds()? {
            let socket = fd::inherited(number)?;
            if let Some(address) = nameless_address(socket.as_fd()).filter(|_| name == NAMELESS) {
                // Whoever wants it stores it again.
                systemd.forget_name(NAMELESS);
                passed.stored.insert(address, socket);
                continue;
            }
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
        let long = ["unix:/", "unix:@"].map(|start| format!("{start}{}", "\u{1}".repeat(106)));
        let short = [
            "127.0.0.1:7",
            "[fe80::1%3]:9",
            "[fe80::1%eth0]:9",
            "*:7",
            "udp:127.0.0.1:69",
            "udp:[::]:69",
            "unix:/run/50%:3A",
            "fd:web",
            "unix:/run/ä b\n\u{7f}",
            "unix:@ä:",
        ];
        for text in short.into_iter().chain(long.iter().map(String::as_str)) {
            let address: Address = text.parse().unwrap();
            let name = stored_name(&address);
            assert!(name.len() <= LONGEST_NAME && name.bytes().all(is_valid_in_name), "{name}");
            assert_eq!(stored_address(&name), Some(address));
        }
        for name in ["web", "preforkd=", "preforkd=127.0.0.1%3", "preforkd=unix%3A/%ä", "preforkd=%zz"] {
            assert_eq!(stored_address(name), None, "{name}");
        }
    }
}
