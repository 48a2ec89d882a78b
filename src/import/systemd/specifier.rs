//! Specifiers, systemd.unit(5): `%i` and the like.

use super::{UnitPair, UnitReading};

/// In which unit of a pair something is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Socket,
    Service,
}

impl UnitPair {
    /// What is written in the service, with its specifiers; `None` if one is not known here.
    pub(crate) fn specified(&self, value: &str) -> Option<String> {
        self.specify(value, Of::Service).ok()
    }

    /// The name of a unit, without and with its ending.
    fn unit(&self, of: Of) -> (&str, String) {
        match (of, self.service_name.strip_suffix(".service")) {
            (Of::Service, Some(name)) => (name, self.service_name.clone()),
            (Of::Service, None) => (&self.name, format!("{}.service", self.name)),
            (Of::Socket, _) => (&self.name, format!("{}.socket", self.name)),
        }
    }

    /// With the specifiers that are known here, or the one that is not.
    pub(super) fn specify(&self, value: &str, of: Of) -> Result<String, char> {
        let (name, full) = self.unit(of);
        let (prefix, instance) =
            name.split_once('@').map_or((name, ""), |(prefix, instance)| (prefix, instance));
        // Of a template, only who starts it knows its instance.
        let is_template = name.contains('@') && instance.is_empty();
        let last = prefix.rsplit('-').next().unwrap_or_default();
        let mut result = String::new();
        let mut characters = value.chars();
        while let Some(character) = characters.next() {
            if character != '%' {
                result.push(character);
                continue;
            }
            match characters.next() {
                Some(letter @ ('i' | 'I' | 'n' | 'N' | 'f')) if is_template => return Err(letter),
                Some(letter) if of_machine(letter).is_some() => return Err(letter),
                Some('%') => result.push('%'),
                Some('t') => result.push_str("/run"),
                Some('S') => result.push_str("/var/lib"),
                Some('C') => result.push_str("/var/cache"),
                Some('L') => result.push_str("/var/log"),
                Some('E') => result.push_str("/etc"),
                Some('T') => result.push_str("/tmp"),
                Some('V') => result.push_str("/var/tmp"),
                Some('D') => result.push_str("/usr/share"),
                Some('p') => result.push_str(prefix),
                Some('P') => result.push_str(&unescaped(prefix)),
                Some('j') => result.push_str(last),
                Some('J') => result.push_str(&unescaped(last)),
                Some('i') => result.push_str(instance),
                Some('I') => result.push_str(&unescaped(instance)),
                Some('n') => result.push_str(&full),
                Some('N') => result.push_str(name),
                Some('f') => {
                    let path = unescaped(if instance.is_empty() { prefix } else { instance });
                    result.push_str(&format!("/{}", path.trim_start_matches('/')));
                }
                // Of who runs the service manager: of that of the system, root.
                Some('u' | 'g') => result.push_str("root"),
                Some('U' | 'G') => result.push('0'),
                Some('h') => result.push_str("/root"),
                // What is none stays as it is written: specifier_printf() of systemd.
                other => {
                    result.push('%');
                    result.extend(other);
                }
            }
        }
        Ok(result)
    }
}

impl UnitReading<'_> {
    /// What is to be done about a specifier that is not known here.
    pub(super) fn instead(&self, letter: char, of: Of) -> String {
        if let Some(what) = of_machine(letter) {
            return format!("%{letter} is {what}; write it as it is there");
        }
        let is_template = "is the name of an instance: import the link by which that is enabled, as";
        match of {
            Of::Service if self.pair.is_alone() => {
                format!("%{letter} {is_template} multi-user.target.wants/NAME@INSTANCE.service")
            }
            Of::Service if self.accepts => format!(
                "%{letter} names the connection: programs find it in REMOTE_ADDR and PREFORKD_CONNECTION"
            ),
            _ => format!("%{letter} {is_template} sockets.target.wants/NAME@INSTANCE.socket"),
        }
    }
}

/// What is not known without the machine, or the units as they run there.
fn of_machine(letter: char) -> Option<&'static str> {
    Some(match letter {
        'H' | 'l' | 'q' => "the host name of the machine",
        'a' => "the architecture of the machine",
        'b' => "the id of the machine's boot",
        'm' => "the id of the machine",
        'v' => "the release of the machine's kernel",
        'A' | 'B' | 'M' | 'o' | 'w' | 'W' => "what os-release(5) of the machine says",
        's' => "the shell of root",
        'd' => "the directory of its credentials",
        'y' | 'Y' => "where the unit is",
        _ => return None,
    })
}

/// A name of a unit that was made from a path or another text: systemd-escape(1).
fn unescaped(name: &str) -> String {
    let mut result = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = match (first, after) {
            (b'\\', [b'x', high, low, ..]) => std::str::from_utf8(&[*high, *low])
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 16).ok()),
            _ => None,
        };
        rest = match code {
            Some(_) => after.get(3..).unwrap_or_default(),
            None => after,
        };
        result.push(code.unwrap_or(if *first == b'-' { b'/' } else { *first }));
    }
    String::from_utf8_lossy(&result).into_owned()
}
