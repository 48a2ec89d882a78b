//! The interfaces that a supervisor has, as it describes them itself.

use crate::handler::Title;

/// What every varlink service has.
pub(crate) const SERVICE: &str = "org.varlink.service";

/// Ours.
pub(crate) const CONTROL: &str = "org.preforkd.Control";

/// [`CONTROL`] in full: methods, types, errors, and what they mean.
pub(crate) const CONTROL_TEXT: &str = include_str!("org.preforkd.Control.varlink");

const SERVICE_TEXT: &str = include_str!("org.varlink.service.varlink");

/// The text of an interface.
pub(crate) fn description(interface: &str) -> Option<&'static str> {
    match interface {
        SERVICE => Some(SERVICE_TEXT),
        CONTROL => Some(CONTROL_TEXT),
        _ => None,
    }
}

/// What a service says of itself: the reply to `org.varlink.service.GetInfo`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct ServiceInfo {
    vendor: String,
    product: String,
    version: String,
    url: String,
    interfaces: Vec<String>,
}

impl ServiceInfo {
    /// A program's, whoever wrote its handlers.
    pub(crate) fn of(title: Title) -> Self {
        ServiceInfo {
            vendor: "preforkd".to_owned(),
            product: title.name.to_owned(),
            version: title.version().to_owned(),
            url: "https://docs.rs/preforkd".to_owned(),
            interfaces: [SERVICE, CONTROL].map(str::to_owned).to_vec(),
        }
    }
}
