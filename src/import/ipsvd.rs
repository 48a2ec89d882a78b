//! A directory of instructions for tcpsvd, ipsvd-instruct(5): a file's name is a client, and its permissions say whether he may come.

use super::ucspi::{RuleLists, decided, rule_prefixes};

/// A file of such a directory.
#[derive(Debug, Clone)]
pub(crate) struct PeerFile {
    pub(crate) name: String,
    pub(crate) mode: u32,
    pub(crate) text: String,
}

/// The owner's permissions.
const READ: u32 = 0o400;
const EXECUTE: u32 = 0o100;

/// Whom the files let in and keep out; or what in them has no equal.
pub(super) fn rules(files: &[PeerFile]) -> Result<RuleLists, String> {
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
        let address = if name.split('.').count() < 4 { &format!("{name}.") } else { name };
        let prefixes = rule_prefixes(address).ok_or_else(|| format!("{name} is no address"))?;
        if is_allowed { &mut allow } else { &mut deny }.extend(prefixes);
    }
    Ok(decided(default, allow, deny))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_matches_closest_decides() {
        let read = |files: &[(&str, u32, &str)]| {
            let file = |(name, mode, text): &(&str, u32, &str)| PeerFile {
                name: (*name).to_owned(),
                mode: *mode,
                text: (*text).to_owned(),
            };
            rules(&files.iter().map(file).collect::<Vec<_>>())
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
        ] {
            assert!(read(&[(name, mode, text)]).is_err(), "{name}");
        }
    }
}
