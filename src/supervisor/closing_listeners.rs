//! Listeners on their way out.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use super::listener::Listener;
use crate::sys::socket;
use crate::sys::tcp_table::{self, TcpSocket, TcpState};

/// For how long handshakes that have begun are waited for: as long as a client far away needs, or one that puts the end of
/// its handshake off for 200 ms (tcp(7), `TCP_QUICKACK`). Who takes longer, or never meant to end it, is let go.
const HANDSHAKE: Duration = Duration::from_secs(1);

/// Listeners that are being closed: their workers take what is queued first.
#[derive(Debug, Default)]
pub(super) struct ClosingListeners {
    listeners: Vec<Rc<Listener>>,
    handshakes: Duration,
}

impl ClosingListeners {
    /// No handshake begins any more with these. Those that have begun are given their time: a client that has been answered
    /// takes itself for connected.
    pub(super) fn new(listeners: Vec<Rc<Listener>>) -> Self {
        let local = |listener: &Rc<Listener>| socket::local_address(listener.descriptor()).ok().flatten();
        let closing: HashSet<(IpAddr, u16)> =
            listeners.iter().filter_map(local).map(|local| (local.ip(), local.port())).collect();
        let is_to_one = |called: SocketAddr| {
            tcp_table::who_may_get(called.ip()).iter().any(|ip| closing.contains(&(*ip, called.port())))
        };
        let is_under_way =
            |socket: &TcpSocket| socket.state == TcpState::Handshake && is_to_one(socket.local);
        let are_none = closing.is_empty() || matches!(tcp_table::find(is_under_way), Ok(None));
        ClosingListeners { listeners, handshakes: if are_none { Duration::ZERO } else { HANDSHAKE } }
    }

    pub(super) fn has(&self, listener: &Rc<Listener>) -> bool {
        self.listeners.iter().any(|other| Rc::ptr_eq(listener, other))
    }

    /// How long clients may come that have been answered already.
    pub(super) fn handshakes(&self) -> Duration {
        self.handshakes
    }
}
