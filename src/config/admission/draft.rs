//! The keys of admission as they were written, and what they mean together.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use toml::Spanned;

use crate::admission::prefix::Prefix;
use crate::admission::prefixes::WrittenAt;
use crate::admission::{
    Deadlines, Listed, Offence, Overload, Penalties, Policy, Prefixes, Rate, Rules, SourceLimits,
};
use crate::config::source::Origin;
use crate::config::value::{Fault, Faults};

/// What the keys of a section said about admission.
#[derive(Debug, Default)]
pub(in crate::config) struct PolicyDraft {
    pub(in crate::config) allow: Vec<Spanned<Prefix>>,
    pub(in crate::config) deny: Vec<Spanned<Prefix>>,
    pub(in crate::config) proxies: Vec<Spanned<Prefix>>,
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
    pub(in crate::config) penalty_exempt: Vec<Spanned<Prefix>>,
}

/// A word of `overload`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) enum OverloadWord {
    Queue,
    Refuse,
    Reset,
}

impl PolicyDraft {
    /// The checked values; `None` if one has a fault that has been reported.
    pub(in crate::config) fn check(self, origin: Origin<'_>) -> Result<Option<Policy>, Fault> {
        let [allow, deny, proxies, exempt] = [&self.allow, &self.deny, &self.proxies, &self.penalty_exempt]
            .map(|list| AsWritten::new(list, origin));
        let penalties = self.penalties(Prefixes::new(exempt.listed()))?;
        let overload = overload(self.overload, self.refuse_message)?;
        let policy = || {
            Some(Policy {
                rules: Rules::new(allow.listed(), deny.listed()),
                proxies: Prefixes::new(proxies.listed()),
                source: SourceLimits {
                    prefix_v4: self.source_prefix_v4?,
                    prefix_v6: self.source_prefix_v6?,
                    max_connections: self.max_connections_per_source,
                    rate: self.rate_per_source,
                },
                penalties: penalties?,
                overload: overload?,
                deadlines: self.deadlines,
            })
        };
        Ok(policy())
    }

    fn penalties(&self, exempt: Prefixes) -> Result<Option<Penalties>, Fault> {
        let (Some(threshold), Some(limit)) = (&self.penalty_threshold, &self.penalty_limit) else {
            return Ok(None);
        };
        let (threshold_time, longest) = (*threshold.get_ref(), *limit.get_ref());
        if longest < threshold_time {
            let is_written = limit.span().end > 0;
            let (at, help) = match is_written {
                true => (limit, "write a longer time than penalty_threshold has"),
                false => (threshold, "write a shorter time than penalty_limit has"),
            };
            let message = "penalties can never come to penalty_threshold, so that nobody would be refused";
            return Err(Fault::new(at.span(), message).help(help));
        }
        let amounts = self.penalties.clone();
        Ok(Some(Penalties { amounts, threshold: threshold_time, longest, exempt }))
    }

    /// What is no error, and probably not meant.
    pub(in crate::config) fn doubts(&self, origin: Origin<'_>) -> Faults {
        let mut doubts = self.lone_addresses();
        doubts.extend(self.contradictions(origin));
        doubts
    }

    /// Whether something bounds what one source can take, or how long.
    pub(in crate::config) fn has_bounds(&self) -> bool {
        let Deadlines { first_byte, idle, lifetime } = self.deadlines;
        self.max_connections_per_source.is_some()
            || self.rate_per_source.is_some()
            || [first_byte, idle, lifetime].iter().any(Option::is_some)
    }

    /// Whether only who is near gets in: from this machine, and from networks that nobody has on the Internet.
    pub(in crate::config) fn lets_only_neighbours_in(&self) -> bool {
        let is_near = |prefix: &Spanned<Prefix>| {
            NEAR.iter()
                .filter_map(|near| near.parse::<Prefix>().ok())
                .any(|near| near.length() <= prefix.get_ref().length() && near.overlaps(prefix.get_ref()))
        };
        !self.allow.is_empty() && self.allow.iter().all(is_near)
    }

    /// Single addresses that xinetd and others take for a network, or for everybody.
    fn lone_addresses(&self) -> Faults {
        const EVERYBODY: &str = "for everybody, write \"0.0.0.0/0\" and \"::/0\"";
        let lists = [
            (&self.allow, "for everybody, remove allow, or write \"0.0.0.0/0\" and \"::/0\"", true),
            // Lists of bad addresses have each of them.
            (&self.deny, EVERYBODY, false),
            (&self.proxies, "write the addresses of the proxies, or their networks", true),
            (&self.penalty_exempt, EVERYBODY, true),
        ];
        let doubt = |(list, everybody, networks): (&Vec<Spanned<Prefix>>, &str, bool)| {
            let doubted = list.iter().filter_map(|prefix| {
                let network = prefix.get_ref().network();
                if !prefix.get_ref().is_one_address() {
                    None
                } else if network.is_unspecified() {
                    let message = format!("{network} stands for itself here, an address that no client has");
                    Some(Fault::new(prefix.span(), message).help(everybody))
                } else {
                    let length = trailing(network).filter(|_| networks)?;
                    let message = format!("{network} is one address here, and looks like that of a network");
                    Some(
                        Fault::new(prefix.span(), message)
                            .help(format!("for the network, write \"{network}/{length}\"")),
                    )
                }
            });
            doubted.collect::<Vec<_>>()
        };
        lists.into_iter().flat_map(doubt).collect()
    }

    fn contradictions(&self, origin: Origin<'_>) -> Faults {
        if self.allow.is_empty() {
            return Faults::new();
        }
        let allowed: BTreeSet<Prefix> = self.allow.iter().map(|prefix| *prefix.get_ref()).collect();
        let lengths: BTreeSet<u8> = allowed.iter().map(Prefix::length).collect();
        let inside = |deny: &Prefix| {
            let mut shorter = lengths.range(..=deny.length());
            shorter.any(|length| allowed.contains(&Prefix::around(deny.network(), *length)))
        };
        let (both, rest): (Vec<_>, Vec<_>) =
            self.deny.iter().partition(|deny| allowed.contains(deny.get_ref()));
        let outside: Vec<_> = rest.into_iter().filter(|deny| !inside(deny.get_ref())).collect();
        let both = first_of(&both).map(|(first, more)| {
            let twin = self.allow.iter().find(|allow| allow.get_ref() == first.get_ref());
            let fault =
                Fault::new(first.span(), format!("{}{more} is in allow, too; deny wins", first.get_ref()))
                    .help("remove it from one of the two");
            match twin {
                Some(twin) => fault.note(format!("allow has it at {}", origin.place(&twin.span()))),
                None => fault,
            }
        });
        let outside = first_of(&outside).map(|(first, more)| {
            let message = format!(
                "{}{more} would be refused without this: a service with allow refuses everybody else",
                first.get_ref()
            );
            Fault::new(first.span(), message)
                .help("to let the rest in, add \"0.0.0.0/0\" and \"::/0\" to allow; or remove this from deny")
        });
        both.into_iter().chain(outside).collect()
    }
}

/// Networks of this machine, and of those around it.
const NEAR: [&str; 9] = [
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "100.64.0.0/10",
    "::1",
    "fc00::/7",
    "fe80::/10",
];

/// The length of the network that an address is if what is 0 at its end is no part of it, from two bytes on: single hosts
/// end with one.
fn trailing(address: IpAddr) -> Option<u8> {
    match address {
        IpAddr::V4(v4) => match v4.octets() {
            [_, 0, 0, 0] => Some(8),
            [_, _, 0, 0] => Some(16),
            _ => None,
        },
        IpAddr::V6(v6) => v6.octets().ends_with(&[0; 8]).then_some(64),
    }
}

/// The first, and how many there are besides.
fn first_of<'a>(list: &[&'a Spanned<Prefix>]) -> Option<(&'a Spanned<Prefix>, String)> {
    let (first, rest) = list.split_first()?;
    let more = if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
    Some((first, more))
}

fn overload(word: Option<OverloadWord>, message: Option<Spanned<String>>) -> Result<Option<Overload>, Fault> {
    Ok(Some(match (word, message) {
        (None, _) => return Ok(None),
        (Some(OverloadWord::Refuse), message) => {
            Overload::Refuse { message: message.map(Spanned::into_inner).unwrap_or_default() }
        }
        (_, Some(message)) => {
            let fault = Fault::new(message.span(), "refuse_message is sent with overload = \"refuse\" only");
            return Err(fault.help("add overload = \"refuse\", or remove refuse_message"));
        }
        (Some(OverloadWord::Queue), None) => Overload::Queue,
        (Some(OverloadWord::Reset), None) => Overload::Reset,
    }))
}

/// A list of prefixes with the lines where they are.
struct AsWritten<'a> {
    name: Cow<'a, str>,
    prefixes: Vec<(Prefix, Option<u32>)>,
}

impl<'a> AsWritten<'a> {
    fn new(list: &[Spanned<Prefix>], origin: Origin<'a>) -> Self {
        let start = list.first().map_or(0, |first| first.span().start);
        let lines = origin.lines(list.iter().map(|prefix| prefix.span().start));
        let prefixes = list.iter().map(|prefix| *prefix.get_ref()).zip(lines).collect();
        AsWritten { name: origin.name(start), prefixes }
    }

    fn listed(&self) -> impl Iterator<Item = Listed<'_>> {
        self.prefixes
            .iter()
            .map(|&(prefix, line)| Listed { prefix, place: WrittenAt { name: &self.name, line } })
    }
}
