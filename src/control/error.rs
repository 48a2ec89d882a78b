//! Why something was not done.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::client::ConnectionId;

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", content = "parameters")]
pub(crate) enum ControlError {
    /// There is no such interface.
    #[serde(rename = "org.varlink.service.InterfaceNotFound")]
    #[error("the running one has no interface {interface}; is it of another version?")]
    InterfaceNotFound {
        /// Its name.
        interface: String,
    },
    /// There is no such method.
    #[serde(rename = "org.varlink.service.MethodNotFound")]
    #[error("the running one has no method {method}; is it of another version?")]
    MethodNotFound {
        /// Its name.
        method: String,
    },
    /// A parameter is missing, unknown or wrong.
    #[serde(rename = "org.varlink.service.InvalidParameter")]
    #[error("the running one does not take this {parameter}; is it of another version?")]
    InvalidParameter {
        /// Its name.
        parameter: String,
    },
    /// It is not known who asks.
    #[serde(rename = "org.varlink.service.PermissionDenied")]
    #[error("the kernel does not say who asks")]
    PermissionDenied,
    /// Why, in as many lines as it takes.
    #[serde(rename = "org.preforkd.Control.Refused")]
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// It cannot be done now, or never by this preforkd, whatever else is true.
    #[serde(rename = "org.preforkd.Control.NotNow")]
    #[error("{reason}")]
    NotNow {
        /// Why.
        reason: String,
    },
    /// There is no such service.
    #[serde(rename = "org.preforkd.Control.NoSuchService")]
    #[error("there is no service \"{service}\"; the services are {}", services.join(", "))]
    NoSuchService {
        /// Its name.
        service: String,
        /// Those that there are.
        services: Vec<String>,
    },
    /// Not all of these connections are there.
    #[serde(rename = "org.preforkd.Control.NoSuchConnection")]
    #[error("{reason}")]
    NoSuchConnection {
        /// Those that are not.
        ids: Vec<ConnectionId>,
        /// What has become of the others, too.
        reason: String,
    },
    /// Who asks may not.
    #[serde(rename = "org.preforkd.Control.NotPermitted")]
    #[error("{reason}")]
    NotPermitted {
        /// What he would have to be able to do.
        needs: Right,
        /// Who is in it may.
        group: Option<String>,
        /// The same in words.
        reason: String,
    },
}

/// What somebody may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Right {
    /// See what goes on.
    Look,
    /// Have something done.
    Act,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Right::Look => "look",
            Right::Act => "act",
        })
    }
}
