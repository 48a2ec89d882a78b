//! The keys of admission as they were written.

use std::fmt;
use std::time::Duration;

use toml::Spanned;

use super::penalties;
use crate::admission::prefix::{Prefix, PrefixError};
use crate::admission::{Deadlines, LONGEST_MESSAGE, Offence, Rate, RateUnit};
use crate::config::value::{
    Applied, Fault, Faults, TomlValue, choice, collect, duration, one_or_more, set, table, text, whole,
};

/// What the keys of a section said about admission.
#[derive(Debug, Default)]
pub(in crate::config) struct PolicyDraft {
    pub(in crate::config) allow: Vec<Spanned<CallerDraft>>,
    pub(in crate::config) deny: Vec<Spanned<CallerDraft>>,
    pub(in crate::config) proxies: Vec<Spanned<CallerDraft>>,
    pub(in crate::config) max_connections_per_source: Option<u32>,
    pub(in crate::config) rate_per_source: Option<Rate>,
    pub(in crate::config) source_prefix_v4: Option<u8>,
    pub(in crate::config) source_prefix_v6: Option<u8>,
    pub(in crate::config) overload: Option<OverloadWord>,
    pub(in crate::config) refuse_message: Option<Spanned<String>>,
    pub(in crate::config) deadlines: Deadlines,
    pub(in crate::config) penalties: Vec<(Offence, Duration)>,
    pub(in crate::config) penalty_threshold: Option<Spanned<Duration>>,
    pub(in crate::config) penalty_limit: Option<Spanned<Duration>>,
    pub(in crate::config) penalty_exempt: Vec<Spanned<CallerDraft>>,
}

/// An entry of a list, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) enum CallerDraft {
    Prefix(Prefix),
    /// By name or number.
    User(String),
    Group(String),
    Unix,
}

impl CallerDraft {
    pub(in crate::config) fn prefix(&self) -> Option<Prefix> {
        match self {
            CallerDraft::Prefix(prefix) => Some(*prefix),
            CallerDraft::User(_) | CallerDraft::Group(_) | CallerDraft::Unix => None,
        }
    }

    /// Whether it is about clients of Unix sockets.
    pub(in crate::config) fn is_local(&self) -> bool {
        self.prefix().is_none()
    }
}

impl fmt::Display for CallerDraft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallerDraft::Prefix(prefix) => prefix.fmt(f),
            CallerDraft::User(name) => write!(f, "user:{name}"),
            CallerDraft::Group(name) => write!(f, "group:{name}"),
            CallerDraft::Unix => f.write_str("unix:"),
        }
    }
}

/// A word of `overload`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) enum OverloadWord {
    Queue,
    Refuse,
    Reset,
}

/// `allow`
pub(super) fn allow(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    draft.allow = clients(value)?;
    if draft.allow.is_empty() {
        let fault = Fault::new(value.span(), "the list is empty, which could mean everybody or nobody");
        return Err(fault
            .help("remove the key to let everybody in, or write deny = [\"0.0.0.0/0\", \"::/0\"] for nobody")
            .into());
    }
    Ok(())
}

/// `deny`
pub(super) fn deny(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    draft.deny = clients(value)?;
    Ok(())
}

/// `proxy_protocol_from`
pub(super) fn proxy_protocol_from(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    draft.proxies = proxies(value)?;
    Ok(())
}

/// Prefixes, users and groups.
fn clients(value: &TomlValue<'_>) -> Result<Vec<Spanned<CallerDraft>>, Faults> {
    collect(one_or_more(value), |entry| {
        let text = text(entry)?;
        let name = |name: &str, what: &str| match name {
            "" => Err(Fault::new(entry.span(), format!("the {what} is missing after \"{what}:\""))
                .help(format!("write its name or number, as in \"{what}:root\""))),
            name => Ok(name.to_owned()),
        };
        let caller = match text.split_once(':') {
            Some(("user", user)) => CallerDraft::User(name(user, "user")?),
            Some(("group", group)) => CallerDraft::Group(name(group, "group")?),
            Some(("unix", _)) => {
                let message = format!("\"{text}\" says nothing about who connects");
                let help = "for a client of a Unix socket write \"user:NAME\" or \"group:NAME\"";
                return Err(Fault::new(entry.span(), message).help(help));
            }
            _ => CallerDraft::Prefix(text.parse().map_err(|why: PrefixError| {
                let help = match why {
                    PrefixError::NoAddress => {
                        format!(
                            "{}, or for clients of Unix sockets \"user:NAME\" or \"group:NAME\"",
                            why.help(&text)
                        )
                    }
                    _ => why.help(&text),
                };
                Fault::new(entry.span(), format!("\"{text}\" {why}")).help(help)
            })?),
        };
        Ok(Spanned::new(entry.span(), caller))
    })
}

/// Prefixes, or whoever may connect to a Unix socket.
fn proxies(value: &TomlValue<'_>) -> Result<Vec<Spanned<CallerDraft>>, Faults> {
    const UNIX: &str = "write \"unix:\" for whoever may connect to a Unix socket of this service; socket_mode and the directory \
         say who may";
    collect(one_or_more(value), |entry| {
        let text = text(entry)?;
        let wrong = |why: &dyn std::fmt::Display| Fault::new(entry.span(), format!("\"{text}\" {why}"));
        let caller = match text.split_once(':') {
            Some(("unix", "")) => CallerDraft::Unix,
            Some(("unix", _)) => {
                return Err(wrong(&"names one socket, and the key is about all of them").help(UNIX));
            }
            Some(("user" | "group", _)) => return Err(wrong(&"is no proxy").help(UNIX)),
            _ => CallerDraft::Prefix(
                text.parse().map_err(|why: PrefixError| wrong(&why).help(why.help(&text)))?,
            ),
        };
        Ok(Spanned::new(entry.span(), caller))
    })
}

/// `max_connections_per_source`
pub(super) fn max_connections_per_source(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.max_connections_per_source, whole::<1, 1_000_000, _>(value))
}

/// `source_prefix_v4`
pub(super) fn source_prefix_v4(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.source_prefix_v4, whole::<1, 32, _>(value))
}

/// `source_prefix_v6`
pub(super) fn source_prefix_v6(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.source_prefix_v6, whole::<1, 128, _>(value))
}

/// `rate_per_source`
pub(super) fn rate_per_source(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    const RIGHT: &str = "write a number, its unit s, m or h, and a burst if need be, as in \"10/s\" or \"600/m burst 50\"; \
         numbers are from 1 to 1000000";
    let rate = text(value).map_err(|fault| fault.help(RIGHT)).and_then(|text| {
        parse_rate(&text)
            .ok_or_else(|| Fault::new(value.span(), format!("\"{text}\" is no rate")).help(RIGHT))
    });
    set(&mut draft.rate_per_source, rate)
}

/// `"10/s burst 20"`; without its burst, that of one second, but at least one connection.
fn parse_rate(text: &str) -> Option<Rate> {
    let (rate, burst) = match text.split_once(" burst ") {
        Some((rate, burst)) => (rate, Some(number(burst)?)),
        None => (text, None),
    };
    let (count, unit) = rate.split_once('/')?;
    let count = number(count)?;
    let per = match unit {
        "s" => RateUnit::Second,
        "m" => RateUnit::Minute,
        "h" => RateUnit::Hour,
        _ => return None,
    };
    let seconds = u32::try_from(per.duration().as_secs()).ok()?;
    Some(Rate { count, per, burst: burst.unwrap_or_else(|| count.div_ceil(seconds)) })
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && (1..=1_000_000).contains(number))
}

/// `penalties`
pub(super) fn penalties(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    draft.penalties = collect(table(value)?, |(key, value)| penalties::entry(key, value))?;
    Ok(())
}

/// `penalty_threshold`
pub(super) fn penalty_threshold(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.penalty_threshold, spanned_amount(value))
}

/// `penalty_limit`
pub(super) fn penalty_limit(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.penalty_limit, spanned_amount(value))
}

fn spanned_amount(value: &TomlValue<'_>) -> Result<Spanned<Duration>, Fault> {
    penalties::amount(value).map(|amount| Spanned::new(value.span(), amount))
}

/// `penalty_exempt`
pub(super) fn penalty_exempt(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    draft.penalty_exempt = clients(value)?;
    Ok(())
}

/// `overload`
pub(super) fn overload(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    let words =
        [("queue", OverloadWord::Queue), ("refuse", OverloadWord::Refuse), ("reset", OverloadWord::Reset)];
    set(&mut draft.overload, choice(value, &words))
}

/// `refuse_message`
pub(super) fn refuse_message(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    let message = text(value).and_then(|text| {
        if text.len() <= LONGEST_MESSAGE {
            return Ok(Spanned::new(value.span(), text));
        }
        let fault = Fault::new(value.span(), format!("the message has {} bytes", text.len()));
        Err(fault.help(format!(
            "write at most {LONGEST_MESSAGE} bytes: they are sent without waiting for the client"
        )))
    });
    set(&mut draft.refuse_message, message)
}

/// `first_byte_timeout`
pub(super) fn first_byte_timeout(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.deadlines.first_byte, deadline(value))
}

/// `idle_timeout`
pub(super) fn idle_timeout(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.deadlines.idle, deadline(value))
}

/// `max_lifetime`
pub(super) fn max_lifetime(draft: &mut PolicyDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.deadlines.lifetime, deadline(value))
}

/// Zero could mean at once or never.
fn deadline(value: &TomlValue<'_>) -> Result<Duration, Fault> {
    match duration(value)? {
        Duration::ZERO => Err(Fault::new(value.span(), "a deadline of 0 would end every connection")
            .help("write a longer time, or remove the key for none")),
        time => Ok(time),
    }
}
