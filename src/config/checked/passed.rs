//! Sockets that systemd passes, and what is asked of them.

use serde::{Deserialize, Serialize};

/// What a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SocketKind {
    Tcp,
    /// Of datagrams, of whatever family.
    Datagram,
    Unix,
}

/// What a key asks of the sockets of its service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::config) struct Demand {
    pub(in crate::config) key: String,
    pub(in crate::config) need: Need,
    /// Why it could not do what it says.
    pub(in crate::config) why: String,
    /// What to do about it.
    pub(in crate::config) help: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::config) enum Need {
    /// One of this kind; else it could do nothing.
    One(SocketKind),
    /// One of the internet, of connections or datagrams.
    Internet,
    /// None of this kind: there it could not do what it says.
    None(SocketKind),
}

/// What is asked of the sockets that systemd passes, which nobody knows before they come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedDemands(pub(in crate::config) Vec<Demand>);

impl PassedDemands {
    /// What is wrong with a service that has sockets of these kinds.
    pub(crate) fn object(&self, kinds: &[SocketKind]) -> Option<String> {
        let unmet = self.0.iter().find(|demand| match demand.need {
            Need::One(kind) => !kinds.contains(&kind),
            Need::Internet => {
                ![SocketKind::Tcp, SocketKind::Datagram].iter().any(|kind| kinds.contains(kind))
            }
            Need::None(kind) => kinds.contains(&kind),
        });
        unmet.map(|Demand { key, why, help, .. }| format!("{key}: {why}; {help}"))
    }
}
