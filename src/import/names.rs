//! Ports by their names: services(5), and where that is silent, the names that old files use.

/// Of IANA and BSD, for a machine whose services(5) does not have them.
const KNOWN: [(&str, u16); 66] = [
    ("tcpmux", 1),
    ("echo", 7),
    ("discard", 9),
    ("systat", 11),
    ("daytime", 13),
    ("netstat", 15),
    ("qotd", 17),
    ("chargen", 19),
    ("ftp", 21),
    ("ssh", 22),
    ("telnet", 23),
    ("smtp", 25),
    ("time", 37),
    ("bootps", 67),
    ("tftp", 69),
    ("gopher", 70),
    ("finger", 79),
    ("http", 80),
    ("pop-2", 109),
    ("pop2", 109),
    ("pop-3", 110),
    ("pop3", 110),
    ("auth", 113),
    ("ident", 113),
    ("nntp", 119),
    ("ntp", 123),
    ("bftp", 152),
    ("netbios-ns", 137),
    ("netbios-ssn", 139),
    ("imap", 143),
    ("imap2", 143),
    ("imap4", 143),
    ("snmp", 161),
    ("https", 443),
    ("smtps", 465),
    ("submission", 587),
    ("exec", 512),
    ("comsat", 512),
    ("biff", 512),
    ("login", 513),
    ("shell", 514),
    ("printer", 515),
    ("talk", 517),
    ("ntalk", 518),
    ("uucp", 540),
    ("klogin", 543),
    ("kshell", 544),
    ("imaps", 993),
    ("pop3s", 995),
    ("rsync", 873),
    ("swat", 901),
    ("eklogin", 2105),
    ("cfinger", 2003),
    ("svn", 3690),
    ("fastagi", 4573),
    ("cvspserver", 2401),
    ("netperf", 12865),
    ("binkp", 24554),
    ("nrpe", 5666),
    ("ircd", 6667),
    ("check_mk", 6556),
    ("git", 9418),
    ("amanda", 10080),
    ("amandaidx", 10082),
    ("amidxtape", 10083),
    ("qmtp", 209),
];

/// The names that a machine has.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServiceNames {
    /// By name and protocol.
    ports: std::collections::HashMap<(String, String), u16>,
}

/// A port, and whether services(5) has its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NamedPort {
    pub(crate) number: u16,
    pub(crate) is_of_machine: bool,
}

impl ServiceNames {
    /// Of the text of services(5).
    pub(crate) fn parse(text: &str) -> Self {
        let mut names = ServiceNames::default();
        for line in text.lines().take(100_000) {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let (Some(name), Some(port)) = (words.next(), words.next()) else { continue };
            let Some((number, protocol)) = port.split_once('/') else { continue };
            let Ok(number) = number.parse::<u16>() else { continue };
            for name in std::iter::once(name).chain(words) {
                names.ports.entry((name.to_owned(), protocol.to_owned())).or_insert(number);
            }
        }
        names
    }

    /// The port of this name or number.
    pub(crate) fn port(&self, name: &str, protocol: &str) -> Option<NamedPort> {
        if name.bytes().all(|byte| byte.is_ascii_digit()) {
            let number = name.parse().ok().filter(|number| *number != 0)?;
            return Some(NamedPort { number, is_of_machine: true });
        }
        let own = self.ports.get(&(name.to_owned(), protocol.to_owned()));
        if let Some(number) = own {
            return Some(NamedPort { number: *number, is_of_machine: true });
        }
        let known = KNOWN.iter().find(|(known, _)| *known == name)?;
        Some(NamedPort { number: known.1, is_of_machine: false })
    }

    /// A name for this port.
    pub(crate) fn name(&self, port: u16) -> String {
        let known = KNOWN.iter().find(|(_, known)| *known == port);
        known.map_or_else(|| format!("port-{port}"), |(name, _)| (*name).to_owned())
    }
}
