//! What the keys of admission mean together: a [`Policy`], and what is probably not meant.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;

use toml::Spanned;

use crate::admission::callers::WrittenAt;
use crate::admission::prefix::Prefix;
use crate::admission::{
    Caller, Callers, Deadlines, Listed, Overload, Penalties, Policy, Rules, SourceLimits,
};
use crate::config::draft::{CallerDraft, OverloadWord, PolicyDraft};
use crate::config::machine::Machine;
use crate::config::machine::named::{client_group, client_user};
use crate::config::source::Origin;
use crate::config::value::{Fault, Faults};

impl PolicyDraft {
    /// The checked values; `None` if one has a fault that has been reported.
    pub(super) fn check(self, origin: Origin<'_>, machine: &Machine<'_>) -> Result<Option<Policy>, Faults> {
        let mut faults = Faults::new();
        let [allow, deny, proxies, exempt] = [&self.allow, &self.deny, &self.proxies, &self.penalty_exempt]
            .map(|list| AsWritten::new(list, origin, machine, &mut faults));
        let mut keep = |fault| faults.push(fault);
        let penalties = self.penalties(Callers::new(exempt.listed())).map_err(&mut keep).ok().flatten();
        let overload = overload(self.overload, self.refuse_message).map_err(&mut keep).ok().flatten();
        if !faults.is_empty() {
            return Err(faults);
        }
        let policy = || {
            Some(Policy {
                rules: Rules::new(allow.listed(), deny.listed()),
                proxies: Callers::new(proxies.listed()),
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

    fn penalties(&self, exempt: Callers) -> Result<Option<Penalties>, Fault> {
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
    pub(super) fn has_bounds(&self) -> bool {
        let Deadlines { first_byte, idle, lifetime } = self.deadlines;
        self.max_connections_per_source.is_some()
            || self.rate_per_source.is_some()
            || [first_byte, idle, lifetime].iter().any(Option::is_some)
    }

    /// Whether only who is near gets in: from this machine, and from networks that nobody has on the Internet.
    pub(super) fn lets_only_neighbours_in(&self) -> bool {
        let is_near = |caller: &Spanned<CallerDraft>| {
            let Some(prefix) = caller.get_ref().prefix() else { return true };
            NEAR.iter()
                .filter_map(|near| near.parse::<Prefix>().ok())
                .any(|near| near.length() <= prefix.length() && near.overlaps(&prefix))
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
        let doubt = |(list, everybody, networks): (&Vec<Spanned<CallerDraft>>, &str, bool)| {
            let doubted = list.iter().filter_map(|written| {
                let prefix = written.get_ref().prefix()?;
                let network = prefix.network();
                if !prefix.is_one_address() {
                    None
                } else if network.is_unspecified() {
                    let message = format!("{network} stands for itself here, an address that no client has");
                    Some(Fault::new(written.span(), message).help(everybody))
                } else {
                    let length = trailing(network).filter(|_| networks)?;
                    let message = format!("{network} is one address here, and looks like that of a network");
                    Some(
                        Fault::new(written.span(), message)
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
        let allowed: BTreeSet<Prefix> =
            self.allow.iter().filter_map(|allow| allow.get_ref().prefix()).collect();
        let lengths: BTreeSet<u8> = allowed.iter().map(Prefix::length).collect();
        // Of a group that is let in, a user or the members of another can be refused.
        let has_groups = self.allow.iter().any(|allow| matches!(allow.get_ref(), CallerDraft::Group(_)));
        let inside = |deny: &CallerDraft| match deny.prefix() {
            Some(deny) => {
                let mut shorter = lengths.range(..=deny.length());
                shorter.any(|length| allowed.contains(&Prefix::around(deny.network(), *length)))
            }
            None => has_groups,
        };
        let is_allowed =
            |deny: &&Spanned<CallerDraft>| self.allow.iter().any(|allow| allow.get_ref() == deny.get_ref());
        let (both, rest): (Vec<_>, Vec<_>) = self.deny.iter().partition(is_allowed);
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
            Fault::new(first.span(), message).help(match first.get_ref().is_local() {
                true => "to let the rest in, say with deny alone who is refused; or remove this from deny",
                false => {
                    "to let the rest in, add \"0.0.0.0/0\" and \"::/0\" to allow; or remove this from deny"
                }
            })
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
fn first_of<'a>(list: &[&'a Spanned<CallerDraft>]) -> Option<(&'a Spanned<CallerDraft>, String)> {
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

/// A list with the lines where its entries are.
struct AsWritten<'a> {
    name: Cow<'a, str>,
    callers: Vec<(Caller, Option<u32>)>,
}

impl<'a> AsWritten<'a> {
    /// Users and groups that there are not become faults.
    fn new(
        list: &[Spanned<CallerDraft>],
        origin: Origin<'a>,
        machine: &Machine<'_>,
        faults: &mut Faults,
    ) -> Self {
        let start = list.first().map_or(0, |first| first.span().start);
        let lines = origin.lines(list.iter().map(|entry| entry.span().start));
        let mut callers = Vec::with_capacity(list.len());
        for (entry, line) in list.iter().zip(lines) {
            match resolve(entry, machine) {
                Ok(caller) => callers.push((caller, line)),
                Err(fault) => faults.push(fault.of_machine()),
            }
        }
        AsWritten { name: origin.name(start), callers }
    }

    fn listed(&self) -> impl Iterator<Item = Listed<'_>> {
        self.callers
            .iter()
            .map(|&(caller, line)| Listed { caller, place: WrittenAt { name: &self.name, line } })
    }
}

fn resolve(entry: &Spanned<CallerDraft>, machine: &Machine<'_>) -> Result<Caller, Fault> {
    let named = |name: &String| Spanned::new(entry.span(), name.clone());
    Ok(match entry.get_ref() {
        CallerDraft::Prefix(prefix) => Caller::Prefix(*prefix),
        CallerDraft::Unix => Caller::Unix,
        CallerDraft::User(name) => Caller::User(client_user(&named(name), machine)?),
        CallerDraft::Group(name) => Caller::Group(client_group(&named(name), machine)?),
    })
}
