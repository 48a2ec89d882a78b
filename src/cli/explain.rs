//! `preforkd check --explain WHO`: what would meet an address or a user, and which line says so.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

use crate::admission::rules::Decision;
use crate::admission::{LocalUser, Overload, Prefix, SourceName};
use crate::child::confine::cage::on_this_kernel;
use crate::config::{Address, KnownUser, ServiceConfig, known_user};

/// About whom is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Who comes over TCP.
    Address(IpAddr),
    /// Who comes through a Unix socket, as he was written.
    User(String, KnownUser),
    /// What connection processes may not do, whoever comes.
    Sandbox,
}

impl Display for Subject {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Address(address) => address.fmt(f),
            Subject::User(text, _) => f.write_str(text),
            Subject::Sandbox => f.write_str("sandbox"),
        }
    }
}

/// An address, a user, or the word for the sandbox, from the command line.
pub(crate) fn parse(text: &str) -> Result<Subject, String> {
    if text == "sandbox" {
        return Ok(Subject::Sandbox);
    }
    if let Some(name) = text.strip_prefix("user:") {
        return known_user(name).map(|user| Subject::User(text.to_owned(), user));
    }
    let address: Result<IpAddr, _> = text.parse();
    address.map(|address| Subject::Address(address.to_canonical())).map_err(|_| {
        match text.parse::<Prefix>() {
            Ok(_) => "one address is wanted, not a prefix".to_owned(),
            Err(_) => {
                "that is no IP address, as 192.0.2.7 or 2001:db8::7 are, no user:NAME, and not the word sandbox".to_owned()
            }
        }
    })
}

/// What would meet the subject at a service.
pub(crate) struct Explained<'a> {
    pub(crate) service: &'a ServiceConfig,
    pub(crate) subject: &'a Subject,
}

impl Display for Explained<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Explained { service, subject } = self;
        let (name, admission) = (&service.name, &service.admission);
        if service.wait && !matches!(subject, Subject::Sandbox) {
            return write!(
                f,
                "{name}: {subject} is the program's matter: with wait = true it has the listening socket itself, and no rule or limit \
                 of preforkd is between"
            );
        }
        let is_unix = |address: &Address| matches!(address, Address::Unix(_) | Address::Abstract(_));
        let is_tcp = |address: &Address| matches!(address, Address::Tcp(_));
        let nowhere = match subject {
            Subject::Address(_) if service.listen.iter().all(is_unix) && !self.has_unix_proxies() => {
                Some("listens on Unix sockets only, where nobody has an address")
            }
            Subject::User(..) if service.listen.iter().all(is_tcp) => {
                Some("listens over TCP only, where nobody is known as a user")
            }
            Subject::Sandbox => {
                return match on_this_kernel(service, false) {
                    Some(sandbox) => write!(f, "{name}: {sandbox}"),
                    None => write!(f, "{name}: none; a connection process may do whatever its user may"),
                };
            }
            _ => None,
        };
        if let Some(nowhere) = nowhere {
            return write!(f, "{name}: {nowhere}");
        }
        let (proxy, decision) = match subject {
            Subject::Address(address) => (admission.proxies.find(*address), admission.rules.decide(*address)),
            Subject::User(_, user) => {
                let user = local(user);
                (admission.proxies.find_user(&user), admission.rules.decide_user(&user))
            }
            Subject::Sandbox => return Ok(()),
        };
        if let Some((_, proxy)) = proxy {
            return write!(
                f,
                "{name}: {subject} is a proxy by proxy_protocol_from = \"{}\" ({}): it must send a PROXY header, and \
                 whom that names meets rules and limits; its own checks meet max_connections alone",
                proxy.caller, proxy.place
            );
        }
        write!(f, "{name}: {subject} is {}", self.verdict(decision))?;
        if decision.allowed { self.limits(f) } else { Ok(()) }
    }
}

fn local(user: &KnownUser) -> LocalUser<'_> {
    LocalUser { uid: user.uid, groups: &user.groups }
}

impl Explained<'_> {
    fn has_unix_proxies(&self) -> bool {
        self.service.admission.proxies.find_user(&LocalUser { uid: 0, groups: &[] }).is_some()
    }

    fn verdict(&self, Decision { allowed, rule }: Decision<'_>) -> String {
        let rules = &self.service.admission.rules;
        let verdict = if allowed { "let in" } else { "refused" };
        match rule {
            Some(rule) => {
                format!("{verdict} by {} = \"{}\" ({})", rule.action.key(), rule.caller, rule.place)
            }
            None if rules.is_empty() => format!("{verdict}, as everybody is"),
            None if rules.denies_the_rest() => format!("{verdict}: there is allow, and it is not in there"),
            None => format!("{verdict}: it is not in deny"),
        }
    }

    fn limits(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let admission = &self.service.admission;
        let beyond = match &admission.overload {
            Overload::Queue => "beyond that it waits in the backlog (overload = \"queue\")",
            Overload::Refuse { message } if message.is_empty() => {
                "beyond that it is closed (overload = \"refuse\")"
            }
            Overload::Refuse { .. } => "beyond that it gets refuse_message (overload = \"refuse\")",
            Overload::Reset => "beyond that it is reset (overload = \"reset\")",
        };
        write!(f, "\n  max_connections = {}: {beyond}", self.service.max_connections)?;
        let (source, exempt) = match self.subject {
            Subject::Address(address) => (
                SourceName::Prefix(admission.source.prefix_of(*address)),
                admission.penalties.exempt.find(*address),
            ),
            Subject::User(_, user) => {
                (SourceName::User(user.uid), admission.penalties.exempt.find_user(&local(user)))
            }
            Subject::Sandbox => return Ok(()),
        };
        let beyond = match &admission.overload {
            Overload::Queue => "beyond that it is closed",
            Overload::Refuse { message } if message.is_empty() => "beyond that it is closed",
            Overload::Refuse { .. } => "beyond that it gets refuse_message",
            Overload::Reset => "beyond that it is reset",
        };
        if let Some(number) = admission.source.max_connections {
            write!(f, "\n  max_connections_per_source = {number}: all of {source} together; {beyond}")?;
        }
        if let Some(rate) = admission.source.rate {
            write!(f, "\n  rate_per_source = \"{rate}\": all of {source} together; {beyond}")?;
        }
        let penalties = &admission.penalties;
        if penalties.amounts.is_empty() {
            return Ok(());
        }
        match exempt {
            Some((_, exempt)) => {
                let (caller, place) = (exempt.caller, exempt.place);
                write!(f, "\n  penalties: never, by penalty_exempt = \"{caller}\" ({place})")
            }
            None => {
                let threshold = penalties.threshold.as_secs_f64();
                write!(
                    f,
                    "\n  penalties: all of {source} is refused when it has collected {threshold} s of them"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::service;

    fn explain(lines: &str, address: &str) -> String {
        let service = service(&format!("[service.x]\nhandler = \"echo\"\nlisten = \"fd:x\"\n{lines}\n"));
        let text = Explained { service: &service, subject: &parse(address).unwrap() }.to_string();
        // The file is in a temporary directory.
        let words = text.split_inclusive(' ').map(|word| match word.rsplit_once("/p.toml") {
            Some((_, rest)) => format!("(FILE{rest}"),
            None => word.to_owned(),
        });
        words.collect()
    }

    const WAITS: &str = "beyond that it waits in the backlog (overload = \"queue\")";

    #[test]
    fn the_line_that_decides_is_named() {
        let lines = "deny = [\"10.0.0.0/8\",\n\"::/0\"]";
        assert_eq!(explain(lines, "10.1.2.3"), "x: 10.1.2.3 is refused by deny = \"10.0.0.0/8\" (FILE:4)");
        assert_eq!(explain(lines, "2001:DB8::1"), "x: 2001:db8::1 is refused by deny = \"::/0\" (FILE:5)");
        let open = format!("x: 11.0.0.1 is let in: it is not in deny\n  max_connections = 1000: {WAITS}");
        assert_eq!(explain(lines, "::ffff:11.0.0.1"), open);
        let lines = "max_connections = 7\nallow = \"10.0.0.0/8\"";
        assert_eq!(explain(lines, "::1"), "x: ::1 is refused: there is allow, and it is not in there");
        assert_eq!(
            explain(lines, "10.0.0.1"),
            format!(
                "x: 10.0.0.1 is let in by allow = \"10.0.0.0/8\" (FILE:5)\n  max_connections = 7: {WAITS}"
            )
        );
    }

    #[test]
    fn the_limits_that_an_address_meets_are_named() {
        let lines = "max_connections_per_source = 3\nrate_per_source = \"9/m\"\nsource_prefix_v4 = 24";
        assert_eq!(
            explain(lines, "192.0.2.7"),
            format!(
                "x: 192.0.2.7 is let in, as everybody is\n  max_connections = 1000: {WAITS}\n  \
                 max_connections_per_source = 3: all of 192.0.2.0/24 together; beyond that it is closed\n  \
                 rate_per_source = \"9/m burst 1\": all of 192.0.2.0/24 together; beyond that it is closed"
            )
        );
        let told = format!("{lines}\noverload = \"refuse\"\nrefuse_message = \"busy\"");
        assert_eq!(explain(&told, "192.0.2.7").matches("beyond that it gets refuse_message").count(), 3);
        assert!(explain(lines, "2001:db8::7").contains("all of 2001:db8::/64 together"));
    }

    #[test]
    fn who_has_penalties_is_told() {
        let lines = "penalties = { crash = \"1m\" }\npenalty_exempt = \"192.0.2.0/24\"";
        let exempt = "\n  penalties: never, by penalty_exempt = \"192.0.2.0/24\" (FILE:5)";
        assert!(explain(lines, "192.0.2.7").ends_with(exempt), "{}", explain(lines, "192.0.2.7"));
        let others = "\n  penalties: all of 192.0.3.7/32 is refused when it has collected 15 s of them";
        assert!(explain(lines, "192.0.3.7").ends_with(others), "{}", explain(lines, "192.0.3.7"));
    }

    #[test]
    fn proxies_are_told_from_clients() {
        let lines = "proxy_protocol_from = \"192.0.2.0/24\"";
        let shown = explain(lines, "192.0.2.7");
        assert!(
            shown.starts_with("x: 192.0.2.7 is a proxy by proxy_protocol_from = \"192.0.2.0/24\" (FILE:4): ")
        );
        assert!(shown.ends_with("meet max_connections alone"), "{shown}");
        assert!(!explain(lines, "192.0.3.7").contains("proxy"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        assert!(parse("10.0.0.0/8").unwrap_err().contains("not a prefix"));
        assert!(parse("localhost").unwrap_err().contains("no IP address"));
    }
}
