//! Which clients may come: the rules of tcpserver, tcprules(1), and the instructions for tcpsvd, ipsvd-instruct(5).

use super::place;

/// Prefixes of those who may come, and of those who may not.
pub(super) type RuleLists = (Vec<String>, Vec<String>);

/// A file of a directory of instructions: its name is a client, and its permissions say whether he may come.
#[derive(Debug, Clone)]
pub(crate) struct PeerFile {
    pub(crate) name: String,
    pub(crate) mode: u32,
    pub(crate) text: String,
}

/// The owner's permissions.
const READ: u32 = 0o400;
const EXECUTE: u32 = 0o100;

/// Whom instructions let in and keep out; or what in them has no equal.
pub(super) fn instructions(files: &[PeerFile]) -> Result<RuleLists, String> {
    let (mut allow, mut deny) = (Vec::new(), Vec::new());
    let mut default = true;
    for file in files.iter().filter(|file| !file.name.starts_with('.')) {
        let PeerFile { name, mode, text } = file;
        let is_allowed = mode & (READ | EXECUTE) != 0;
        if mode & EXECUTE != 0 {
            return Err(format!("{name} is a program for some clients"));
        }
        let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        if let Some(line) = lines.next().filter(|_| is_allowed) {
            return Err(format!("{name}: {line}"));
        }
        if name == "0" {
            default = is_allowed;
            continue;
        }
        // It is compared as text, so a number that is written otherwise is no client's.
        let is_number = |part: &str| part.parse::<u8>().is_ok_and(|number| number.to_string() == part);
        let address = if name.split('.').count() < 4 { &format!("{name}.") } else { name };
        let prefixes = rule_prefixes(address).filter(|_| name.split('.').all(is_number));
        let prefixes = prefixes.ok_or_else(|| format!("{name} is no address"))?;
        if is_allowed { &mut allow } else { &mut deny }.extend(prefixes);
    }
    Ok(decided(default, allow, deny))
}

/// Whom rules let in and keep out; or the first of them that has no equal.
pub(super) fn tcprules(text: &str) -> Result<RuleLists, String> {
    let (mut allow, mut deny) = (Vec::new(), Vec::new());
    let mut default = true;
    for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let fault = || line.to_owned();
        let (address, instruction) = line.split_once(':').ok_or_else(fault)?;
        let is_allowed = match instruction {
            "allow" => true,
            "deny" => false,
            _ => return Err(fault()),
        };
        if address.is_empty() {
            default = is_allowed;
            continue;
        }
        let prefixes = rule_prefixes(address).ok_or_else(fault)?;
        if is_allowed { &mut allow } else { &mut deny }.extend(prefixes);
    }
    Ok(decided(default, allow, deny))
}

/// The lists, if who is in none of them may come or not.
fn decided(default: bool, mut allow: Vec<String>, mut deny: Vec<String>) -> RuleLists {
    match default {
        // An allow list alone would deny the rest.
        true if !allow.is_empty() => allow.extend(["0.0.0.0/0".to_owned(), "::/0".to_owned()]),
        true => (),
        false if allow.is_empty() => deny = vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()],
        false => (),
    }
    (allow, deny)
}

/// `10.1.2.3`, `10.1.`, `10.1.2-5.`, `10.0.0.0/8`.
fn rule_prefixes(address: &str) -> Option<Vec<String>> {
    if address.contains('/') || address.contains("::") {
        return place::prefix(address).map(|prefix| vec![prefix]);
    }
    let is_start = address.ends_with('.');
    let parts: Vec<&str> = address.trim_end_matches('.').split('.').collect();
    if parts.is_empty() || parts.len() > 4 || (!is_start && parts.len() != 4) {
        return None;
    }
    let (last, before) = parts.split_last()?;
    let (low, high) = last.split_once('-').unwrap_or((last, last));
    let (low, high): (u8, u8) = (low.parse().ok()?, high.parse().ok()?);
    let before: Option<Vec<u8>> = before.iter().map(|part| part.parse().ok()).collect();
    let before = before?;
    let length = 8 * parts.len();
    let prefixes = (low..=high).map(|last| {
        let mut octets: Vec<String> = before.iter().map(u8::to_string).collect();
        octets.push(last.to_string());
        octets.resize(4, "0".to_owned());
        format!("{}/{length}", octets.join("."))
    });
    Some(prefixes.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_many_rules_counts() {
        let text = format!("{}10.9.8.7:deny\n", "1.1.1.1:deny\n".repeat(100_001));
        let (_, deny) = tcprules(&text).unwrap();
        assert!(deny.ends_with(&["10.9.8.7/32".to_owned()]));
    }

    #[test]
    fn who_matches_closest_decides() {
        let read = |files: &[(&str, u32, &str)]| {
            let file = |(name, mode, text): &(&str, u32, &str)| PeerFile {
                name: (*name).to_owned(),
                mode: *mode,
                text: (*text).to_owned(),
            };
            instructions(&files.iter().map(file).collect::<Vec<_>>())
        };
        let lists = |allow: &[&str], deny: &[&str]| {
            let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            Ok((texts(allow), texts(deny)))
        };
        assert_eq!(read(&[("127.0.0.1", 0o644, "# me\n"), ("0", 0, "")]), lists(&["127.0.0.1/32"], &[]));
        assert_eq!(
            read(&[("10", 0o644, ""), ("10.1", 0, "C3\n"), ("0", 0, "")]),
            lists(&["10.0.0.0/8"], &["10.1.0.0/16"])
        );
        assert_eq!(read(&[("192.168.7", 0o200, ""), (".x", 0o755, "")]), lists(&[], &["192.168.7.0/24"]));
        assert_eq!(read(&[("0", 0o644, "")]), lists(&[], &[]));
        assert_eq!(read(&[("0", 0, "")]), lists(&[], &["0.0.0.0/0", "::/0"]));
        for (name, mode, text) in [
            ("10", 0o744, ""),
            ("10", 0o444, "C3\n"),
            ("0", 0o444, "=x.example"),
            ("example.org", 0, ""),
            ("300", 0, ""),
            ("10.1-3", 0o444, ""),
            ("010", 0o444, ""),
            ("+10.1.1.1", 0o444, ""),
        ] {
            assert!(read(&[(name, mode, text)]).is_err(), "{name}");
        }
    }
}
