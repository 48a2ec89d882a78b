//! What a client asks for, as a call of varlink.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::{ControlError, Right};
use super::interface::{CONTROL, SERVICE};
use crate::admission::SourceName;
use crate::client::ConnectionId;

/// The longest call.
pub(super) const LONGEST_CALL: usize = 64 * 1024;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "method", content = "parameters")]
pub(crate) enum Request {
    /// Which program this is, and which interfaces it has.
    #[serde(rename = "org.varlink.service.GetInfo")]
    Info,
    /// An interface in full.
    #[serde(rename = "org.varlink.service.GetInterfaceDescription")]
    Description {
        /// Its name.
        interface: String,
    },
    /// What is going on.
    #[serde(rename = "org.preforkd.Control.GetStatus")]
    Status,
    /// The connections that live.
    #[serde(rename = "org.preforkd.Control.ListConnections")]
    Connections {
        /// Of one service only.
        service: Option<String>,
        /// Of clients that have something in common with this only.
        source: Option<SourceName>,
    },
    /// Who is kept out by hand.
    #[serde(rename = "org.preforkd.Control.ListBans")]
    Bans {
        /// At one service; also who is kept out of all.
        service: Option<String>,
    },
    /// Read the configuration again and put it in force; answered when that is decided.
    #[serde(rename = "org.preforkd.Control.Reload")]
    Reload,
    /// Go on as the program that is on disk; answered when its workers serve.
    #[serde(rename = "org.preforkd.Control.Upgrade")]
    Upgrade,
    /// End connections.
    #[serde(rename = "org.preforkd.Control.Kill")]
    Kill {
        /// Which.
        ids: Vec<ConnectionId>,
    },
    /// Accept nobody, until it is resumed; clients wait.
    #[serde(rename = "org.preforkd.Control.Pause")]
    Pause {
        /// One service, or all.
        service: Option<String>,
    },
    /// Pause, and answer when the last connection has ended.
    #[serde(rename = "org.preforkd.Control.Drain")]
    Drain {
        /// One service, or all.
        service: Option<String>,
    },
    /// Serve on, but have balancers told to send no more, until it is resumed.
    #[serde(rename = "org.preforkd.Control.Lameduck")]
    Lameduck {
        /// Which service.
        service: String,
    },
    /// Accept again, and have balancers told so.
    #[serde(rename = "org.preforkd.Control.Resume")]
    Resume {
        /// One service, or all.
        service: Option<String>,
    },
    /// Keep clients out.
    #[serde(rename = "org.preforkd.Control.Ban")]
    Ban {
        /// Whom.
        source: SourceName,
        /// From one service only.
        service: Option<String>,
        /// For how long; `None` until it is lifted.
        for_ms: Option<u64>,
        /// Their connections are to end, too.
        kill: bool,
    },
    /// Lift the penalties and the bans of sources.
    #[serde(rename = "org.preforkd.Control.Unban")]
    Unban {
        /// Of all that have a client in common with this; the bans of those only that have no others.
        source: SourceName,
        /// At one service only.
        service: Option<String>,
    },
}

impl Request {
    /// What is needed to ask it; nothing if `None`.
    pub(crate) fn needs(&self) -> Option<Right> {
        match self {
            Request::Info | Request::Description { .. } => None,
            Request::Status | Request::Connections { .. } | Request::Bans { .. } => Some(Right::Look),
            Request::Reload
            | Request::Upgrade
            | Request::Kill { .. }
            | Request::Pause { .. }
            | Request::Drain { .. }
            | Request::Lameduck { .. }
            | Request::Resume { .. }
            | Request::Ban { .. }
            | Request::Unban { .. } => Some(Right::Act),
        }
    }

    /// Its method's name, for the log.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Request::Info => "GetInfo",
            Request::Description { .. } => "GetInterfaceDescription",
            Request::Status => "GetStatus",
            Request::Connections { .. } => "ListConnections",
            Request::Bans { .. } => "ListBans",
            Request::Reload => "Reload",
            Request::Upgrade => "Upgrade",
            Request::Kill { .. } => "Kill",
            Request::Pause { .. } => "Pause",
            Request::Drain { .. } => "Drain",
            Request::Lameduck { .. } => "Lameduck",
            Request::Resume { .. } => "Resume",
            Request::Ban { .. } => "Ban",
            Request::Unban { .. } => "Unban",
        }
    }

    /// Whether it may have more replies than one.
    pub(super) fn takes_more(&self) -> bool {
        matches!(self, Request::Connections { .. })
    }

    /// What calls it, without the NUL at its end.
    pub(super) fn call(&self, more: bool) -> serde_json::Result<Vec<u8>> {
        #[derive(Serialize)]
        struct Called<'a> {
            #[serde(flatten)]
            request: &'a Request,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            more: bool,
        }
        serde_json::to_vec(&Called { request: self, more })
    }

    fn of(method: &str, parameters: Map<String, Value>) -> Result<Self, ControlError> {
        let given = &mut Parameters(parameters);
        let unknown = || ControlError::MethodNotFound { method: method.to_owned() };
        let request = match method.rsplit_once('.') {
            Some((SERVICE, name)) => match name {
                "GetInfo" => Request::Info,
                "GetInterfaceDescription" => Request::Description { interface: given.take("interface")? },
                _ => return Err(unknown()),
            },
            Some((CONTROL, name)) => match name {
                "GetStatus" => Request::Status,
                "ListConnections" => {
                    Request::Connections { service: given.take("service")?, source: given.take("source")? }
                }
                "ListBans" => Request::Bans { service: given.take("service")? },
                "Reload" => Request::Reload,
                "Upgrade" => Request::Upgrade,
                "Kill" => Request::Kill { ids: given.take("ids")? },
                "Pause" => Request::Pause { service: given.take("service")? },
                "Drain" => Request::Drain { service: given.take("service")? },
                "Lameduck" => Request::Lameduck { service: given.take("service")? },
                "Resume" => Request::Resume { service: given.take("service")? },
                "Ban" => Request::Ban {
                    source: given.take("source")?,
                    service: given.take("service")?,
                    for_ms: given.take("for_ms")?,
                    kill: given.take::<Option<bool>>("kill")?.unwrap_or_default(),
                },
                "Unban" => Request::Unban { source: given.take("source")?, service: given.take("service")? },
                _ => return Err(unknown()),
            },
            Some((interface, _)) => {
                return Err(ControlError::InterfaceNotFound { interface: interface.to_owned() });
            }
            None => return Err(unknown()),
        };
        match given.0.keys().next() {
            Some(unknown) => Err(ControlError::InvalidParameter { parameter: unknown.clone() }),
            None => Ok(request),
        }
    }
}

/// The parameters of a call that have not been looked at yet.
struct Parameters(Map<String, Value>);

impl Parameters {
    /// One that is missing is null.
    fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ControlError> {
        let value = self.0.remove(name).unwrap_or_default();
        serde_json::from_value(value)
            .map_err(|_| ControlError::InvalidParameter { parameter: name.to_owned() })
    }
}

/// How a call wants its replies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manner {
    /// None at all.
    pub(super) oneway: bool,
    /// There may be several.
    pub(super) more: bool,
}

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    /// What is asked for, or why that cannot be.
    pub(super) request: Result<Request, ControlError>,
    pub(super) manner: Manner,
}

/// What came from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Spoken {
    Call(Call),
    /// What the command line of preforkd said before it spoke varlink.
    Old,
}

/// It does not speak varlink, or too much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nonsense;

/// How every request began, and ended with a newline, before this was varlink.
const OLD: &[u8] = b"{\"command\":";

/// The first of what is in these bytes, and how many of them it takes; `None` as long as it has no end.
pub(super) fn understand(bytes: &[u8]) -> Result<Option<(Spoken, usize)>, Nonsense> {
    let seen = bytes.get(..LONGEST_CALL).unwrap_or(bytes);
    let is_old = seen.starts_with(OLD);
    match seen.iter().position(|byte| *byte == 0 || is_old && *byte == b'\n') {
        Some(end) if seen[end] == 0 => Ok(Some((Spoken::Call(call(&seen[..end])?), end + 1))),
        Some(end) => Ok(Some((Spoken::Old, end + 1))),
        None if bytes.len() >= LONGEST_CALL => Err(Nonsense),
        None => Ok(None),
    }
}

/// <https://varlink.org/Method-Call>; extensions of others, in fields that it does not name, are passed over.
fn call(message: &[u8]) -> Result<Call, Nonsense> {
    #[derive(Deserialize)]
    struct Called {
        method: String,
        parameters: Option<Map<String, Value>>,
        oneway: Option<bool>,
        more: Option<bool>,
        upgrade: Option<bool>,
    }
    let called: Called = serde_json::from_slice(message).map_err(|_| Nonsense)?;
    let (oneway, more) = (called.oneway.unwrap_or_default(), called.more.unwrap_or_default());
    let request = match called.upgrade {
        // No method of ours has a protocol of its own to go on with.
        Some(true) => Err(ControlError::InvalidParameter { parameter: "upgrade".to_owned() }),
        _ => Request::of(&called.method, called.parameters.unwrap_or_default()),
    };
    Ok(Call { request, manner: Manner { oneway, more } })
}

/// For the fuzz targets: what is called is the same in whatever pieces it comes, and means the same when it is called again.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check_calls(bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        let whole = understand(rest);
        let mut pieces = (0..=rest.len()).map(|length| understand(&rest[..length]));
        let first = pieces.find(|outcome| !matches!(outcome, Ok(None)));
        assert_eq!(first.unwrap_or(Ok(None)), whole);
        let Ok(Some((spoken, length))) = whole else { break };
        assert!((1..=rest.len()).contains(&length));
        rest = &rest[length..];
        let Spoken::Call(Call { request: Ok(request), .. }) = spoken else { continue };
        let mut again = request.call(false).unwrap_or_default();
        again.push(0);
        let wanted = Call { request: Ok(request), manner: Manner::default() };
        assert_eq!(understand(&again), Ok(Some((Spoken::Call(wanted), again.len()))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(text: &str) -> Result<Option<(Spoken, usize)>, Nonsense> {
        understand(text.as_bytes())
    }

    fn request(text: &str) -> Result<Request, ControlError> {
        match called(&format!("{text}\0")) {
            Ok(Some((Spoken::Call(call), _))) => call.request,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn calls_of_all_methods_are_understood() {
        let source: SourceName = "192.0.2.0/24".parse().unwrap();
        let (service, id) = (Some("web".to_owned()), "1cecf0-1-42".parse().unwrap());
        for request in [
            Request::Info,
            Request::Description { interface: CONTROL.to_owned() },
            Request::Status,
            Request::Connections { service: None, source: Some(source) },
            Request::Connections { service: service.clone(), source: None },
            Request::Bans { service: service.clone() },
            Request::Reload,
            Request::Upgrade,
            Request::Kill { ids: vec![id] },
            Request::Pause { service: service.clone() },
            Request::Drain { service: None },
            Request::Lameduck { service: "web".to_owned() },
            Request::Resume { service: service.clone() },
            Request::Ban { source, service: service.clone(), for_ms: Some(7), kill: true },
            Request::Unban { source, service },
        ] {
            for more in [false, true] {
                let mut bytes = request.call(more).unwrap();
                bytes.push(0);
                check_calls(&bytes);
                let text = String::from_utf8(bytes).unwrap();
                assert!(text.contains(&format!(".{}\"", request.name())), "{text}");
                assert_eq!(text.contains("\"more\":true"), more, "{text}");
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_call_is_named() {
        let invalid = |parameter: &str| ControlError::InvalidParameter { parameter: parameter.to_owned() };
        let unknown = |method: &str| ControlError::MethodNotFound { method: method.to_owned() };
        let of_ours = |rest: &str| format!("{{\"method\":\"org.preforkd.Control.{rest}}}");
        for (text, failure) in [
            (of_ours("Nothing\""), unknown("org.preforkd.Control.Nothing")),
            ("{\"method\":\"GetStatus\"}".to_owned(), unknown("GetStatus")),
            ("{\"method\":\"\"}".to_owned(), unknown("")),
            (
                "{\"method\":\"org.example.Get\"}".to_owned(),
                ControlError::InterfaceNotFound { interface: "org.example".to_owned() },
            ),
            (of_ours("GetStatus\",\"parameters\":{\"x\":1}"), invalid("x")),
            (of_ours("Lameduck\""), invalid("service")),
            (of_ours("Kill\",\"parameters\":{\"ids\":[\"x\"]}"), invalid("ids")),
            (of_ours("Ban\",\"parameters\":{\"source\":\"everybody\"}"), invalid("source")),
            (of_ours("Ban\",\"parameters\":{\"source\":\"::1\",\"for_ms\":-1}"), invalid("for_ms")),
            (of_ours("GetStatus\",\"upgrade\":true"), invalid("upgrade")),
        ] {
            assert_eq!(request(&text), Err(failure), "{text}");
        }
        // What may be missing may be null, and what others have added is theirs.
        let text = of_ours("Pause\",\"parameters\":{\"service\":null},\"org.example\":{\"x\":1}");
        assert_eq!(request(&text), Ok(Request::Pause { service: None }));
    }

    #[test]
    fn what_is_no_call_is_nonsense() {
        for text in ["\0", "{}\0", "[]\0", "{\"method\":1}\0", "{\"method\":\"x.Y\",\"more\":1}\0", "\u{1}\0"]
        {
            assert_eq!(called(text), Err(Nonsense), "{text:?}");
        }
        assert_eq!(called("{\"method\":\"x.Y\"}"), Ok(None));
        let long = vec![b' '; LONGEST_CALL];
        assert_eq!((understand(&long[1..]), understand(&long)), (Ok(None), Err(Nonsense)));
        let old = "{\"command\":\"status\"}\n";
        assert_eq!(called(old), Ok(Some((Spoken::Old, old.len()))));
    }
}
