//! The rules of tcpd and of everybody that is linked with libwrap: hosts.allow and hosts.deny, hosts_access(5).

/// Their rules, as far as somebody has to look at them.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostsAccess {
    /// Which of the two files there are.
    pub(crate) files: Vec<String>,
    /// The place of each rule, its daemons, and the whole rule.
    rules: Vec<(String, Vec<String>, String)>,
}

impl HostsAccess {
    /// Adds the rules of one of the two files.
    pub(crate) fn add(&mut self, file: &str, text: &str) {
        self.files.push(file.to_owned());
        let mut rule = String::new();
        for (index, line) in text.lines().enumerate() {
            rule.push_str(line.trim_end_matches('\\'));
            if line.ends_with('\\') && rule.len() < 65_536 {
                continue;
            }
            let whole = std::mem::take(&mut rule);
            let whole = whole.trim();
            if let Some((daemons, _)) = whole.split_once(':').filter(|_| !whole.starts_with('#')) {
                let separators = |c: char| c.is_whitespace() || c == ',';
                let daemons = daemons.split(separators).filter(|daemon| !daemon.is_empty());
                let daemons = daemons.map(str::to_owned).collect();
                self.rules.push((format!("{file}:{}", index + 1), daemons, whole.to_owned()));
            }
        }
    }

    /// The rules that are about this program.
    pub(crate) fn about(&self, daemon: &str) -> Vec<String> {
        let is_about = |daemons: &[String]| {
            daemons.iter().any(|name| {
                // A daemon may be followed by the address that was called.
                let name = name.split('@').next().unwrap_or_default();
                name == daemon || name == "ALL" || name == "EXCEPT"
            })
        };
        let about = self.rules.iter().filter(|(_, daemons, _)| is_about(daemons));
        about.map(|(place, _, rule)| format!("{place} \"{rule}\"")).collect()
    }
}
