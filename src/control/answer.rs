//! What a client is told, as replies of varlink.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::error::ControlError;
use super::interface::ServiceInfo;
use super::request::{Manner, Request};
use super::{BanStatus, ConnectionStatus, Status};

/// So many connections are in one reply, if there may be several.
const CONNECTIONS: usize = 500;

/// What it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It was done; a sentence that says what.
    Done(String),
    /// It was not done.
    Failed(ControlError),
    /// The answer to [`Request::Info`].
    Info(ServiceInfo),
    /// The answer to [`Request::Description`].
    Description(String),
    /// The answer to [`Request::Status`].
    Status(Box<Status>),
    /// The answer to [`Request::Connections`].
    Connections(Vec<ConnectionStatus>),
    /// The answer to [`Request::Bans`].
    Bans(Vec<BanStatus>),
}

impl Answer {
    /// It was not done and nothing has changed; why, in as many lines as it takes.
    pub(crate) fn refused(reason: impl Into<String>) -> Self {
        Answer::Failed(ControlError::Refused { reason: reason.into() })
    }

    /// It cannot be done now, or never by this preforkd; nothing has changed.
    pub(crate) fn not_now(reason: impl Into<String>) -> Self {
        Answer::Failed(ControlError::NotNow { reason: reason.into() })
    }

    /// The replies to a call that wants them in this manner, each with its NUL.
    pub(super) fn replies(&self, manner: Manner) -> Vec<u8> {
        let mut replies = Vec::new();
        if manner.oneway {
            return replies;
        }
        match self {
            Answer::Done(text) => push(&mut replies, &TextReply { text: text.into() }, false),
            Answer::Failed(failure) => push_message(&mut replies, failure),
            Answer::Info(info) => push(&mut replies, info, false),
            Answer::Description(description) => {
                push(&mut replies, &DescriptionReply { description: description.into() }, false);
            }
            Answer::Status(status) => push(&mut replies, status, false),
            Answer::Bans(bans) => push(&mut replies, &BansReply { bans }, false),
            Answer::Connections(connections) => {
                let most = if manner.more { CONNECTIONS } else { usize::MAX };
                let mut rest = connections.as_slice();
                loop {
                    let (connections, others) = rest.split_at(most.min(rest.len()));
                    rest = others;
                    push(&mut replies, &ConnectionsReply { connections }, !rest.is_empty());
                    if rest.is_empty() {
                        break;
                    }
                }
            }
        }
        replies
    }

    /// Takes one more reply to this request, without its NUL. True if another follows.
    pub(super) fn hear(
        heard: &mut Option<Answer>,
        request: &Request,
        message: &[u8],
    ) -> serde_json::Result<bool> {
        let (answer, more) = match request {
            Request::Info => reply(message, Answer::Info)?,
            Request::Description { .. } => {
                reply(message, |reply: DescriptionReply| Answer::Description(reply.description))?
            }
            Request::Status => reply(message, Answer::Status)?,
            Request::Bans { .. } => reply(message, |reply: BansReply<Vec<_>>| Answer::Bans(reply.bans))?,
            Request::Connections { .. } => {
                reply(message, |reply: ConnectionsReply<Vec<_>>| Answer::Connections(reply.connections))?
            }
            _ => reply(message, |reply: TextReply| Answer::Done(reply.text))?,
        };
        match (heard.as_mut(), answer) {
            (Some(Answer::Connections(before)), Answer::Connections(more)) => before.extend(more),
            (_, answer) => *heard = Some(answer),
        }
        Ok(more)
    }
}

#[derive(Serialize, Deserialize)]
struct TextReply {
    text: String,
}

#[derive(Serialize, Deserialize)]
struct DescriptionReply {
    description: String,
}

#[derive(Serialize, Deserialize)]
struct BansReply<B> {
    bans: B,
}

#[derive(Serialize, Deserialize)]
struct ConnectionsReply<C> {
    connections: C,
}

/// What `answer` makes of the parameters of a reply, or its error, which has others; and whether it continues.
fn reply<T: DeserializeOwned>(
    message: &[u8],
    answer: impl FnOnce(T) -> Answer,
) -> serde_json::Result<(Answer, bool)> {
    #[derive(Deserialize)]
    struct Reply<T> {
        error: Option<IgnoredAny>,
        parameters: T,
        continues: Option<bool>,
    }
    match serde_json::from_slice(message) {
        Ok(Reply { error: None, parameters, continues }) => {
            Ok((answer(parameters), continues.unwrap_or_default()))
        }
        Ok(_) => Ok((Answer::Failed(serde_json::from_slice(message)?), false)),
        Err(error) => {
            let failure = serde_json::from_slice(message).map_err(|_| error)?;
            Ok((Answer::Failed(failure), false))
        }
    }
}

fn push(replies: &mut Vec<u8>, parameters: &impl Serialize, continues: bool) {
    #[derive(Serialize)]
    struct Reply<'a, T> {
        parameters: &'a T,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        continues: bool,
    }
    push_message(replies, &Reply { parameters, continues });
}

fn push_message(replies: &mut Vec<u8>, message: &impl Serialize) {
    // Writing to a Vec cannot fail, and nothing of ours has a map whose keys are no texts.
    let _ = serde_json::to_writer(&mut *replies, message);
    replies.push(0);
}

/// For the fuzz targets: what is heard means the same when it is said again.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check_answer(bytes: &[u8]) {
    for request in [
        Request::Info,
        Request::Description { interface: String::new() },
        Request::Status,
        Request::Bans { service: None },
        Request::Connections { service: None, source: None },
        Request::Reload,
    ] {
        let hear = |bytes: &[u8]| {
            let mut heard = None;
            for message in bytes.split_inclusive(|byte| *byte == 0) {
                let message = message.strip_suffix(&[0])?;
                if !Answer::hear(&mut heard, &request, message).ok()? {
                    return heard;
                }
            }
            None
        };
        if let Some(answer) = hear(bytes) {
            for more in [false, true] {
                let again = answer.replies(Manner { oneway: false, more });
                assert_eq!(hear(&again).as_ref(), Some(&answer));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::Right;
    use super::*;

    fn replies(answer: &Answer, more: bool) -> Vec<String> {
        let replies = answer.replies(Manner { oneway: false, more });
        check_answer(&replies);
        let replies = replies.strip_suffix(&[0]).unwrap().split(|byte| *byte == 0);
        replies.map(|reply| String::from_utf8(reply.to_vec()).unwrap()).collect()
    }

    #[test]
    fn many_connections_come_in_several_replies_if_there_may_be() {
        let one = ConnectionStatus {
            id: "1cecf0-1-42".parse().unwrap(),
            service: "web".to_owned(),
            source: "192.0.2.7".parse().unwrap(),
            client: "192.0.2.7:1".to_owned(),
            is_direct: true,
            pid: None,
            age_ms: 1,
            is_ending: false,
        };
        for (count, wanted) in [(0, 1), (1, 1), (500, 1), (501, 2), (1200, 3)] {
            let answer = Answer::Connections(vec![one.clone(); count]);
            assert_eq!(replies(&answer, false).len(), 1);
            let replies = replies(&answer, true);
            assert_eq!(replies.len(), wanted);
            let (last, first) = replies.split_last().unwrap();
            assert!(!last.contains("continues"), "{last}");
            assert!(first.iter().all(|reply| reply.ends_with("\"continues\":true}")));
        }
        assert!(Answer::Done(String::new()).replies(Manner { oneway: true, more: true }).is_empty());
    }

    #[test]
    fn failures_are_errors_of_the_interface() {
        let needs = Right::Act;
        for (failure, said) in [
            (
                ControlError::NotPermitted { needs, group: Some("ops".to_owned()), reason: "no".to_owned() },
                r#"{"error":"org.preforkd.Control.NotPermitted","parameters":{"needs":"act","group":"ops","reason":"no"}}"#,
            ),
            (ControlError::PermissionDenied, r#"{"error":"org.varlink.service.PermissionDenied"}"#),
        ] {
            assert_eq!(replies(&Answer::Failed(failure), true), [said]);
        }
    }
}
