//! Users and groups, without NSS.
//!
//! A statically linked glibc cannot load NSS modules safely, so files are read here, and what they do not have is asked
//! of the program getent(1), which is linked dynamically.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Where users and groups come from.
#[derive(Debug, Clone)]
pub(crate) struct Accounts {
    /// passwd(5).
    pub(crate) passwd: PathBuf,
    /// group(5).
    pub(crate) group: PathBuf,
    /// getent(1), if it is to be asked.
    pub(crate) getent: Option<PathBuf>,
}

/// One line of passwd(5), as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// The login name.
    pub(crate) name: String,
    /// Its id.
    pub(crate) uid: u32,
    /// The primary group.
    pub(crate) gid: u32,
}

/// One line of group(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    /// Its name.
    pub(crate) name: String,
    /// Its id.
    pub(crate) gid: u32,
    /// Names of users whose primary group it need not be.
    pub(crate) members: Vec<String>,
}

impl Default for Accounts {
    fn default() -> Self {
        Accounts {
            passwd: "/etc/passwd".into(),
            group: "/etc/group".into(),
            getent: Some("/usr/bin/getent".into()),
        }
    }
}

impl Accounts {
    /// The user with this name or number.
    pub(crate) fn user(&self, name: &str) -> Option<User> {
        let is_it = |user: &User| user.name == name || id(name) == Some(user.uid);
        self.users().into_iter().find(is_it).or_else(|| User::parse(&self.ask("passwd", name)?))
    }

    /// The group with this name or number.
    pub(crate) fn group(&self, name: &str) -> Option<Group> {
        let is_it = |group: &Group| group.name == name || id(name) == Some(group.gid);
        self.groups().into_iter().find(is_it).or_else(|| Group::parse(&self.ask("group", name)?))
    }

    /// The groups that have the user among their members.
    pub(crate) fn memberships(&self, user: &str) -> Vec<u32> {
        if let Some(answer) = self.ask("initgroups", user) {
            return answer.split_whitespace().skip(1).filter_map(id).collect();
        }
        let is_member = |group: &Group| group.members.iter().any(|member| member == user);
        self.groups().into_iter().filter(is_member).map(|group| group.gid).collect()
    }

    /// All users that passwd(5) names.
    pub(crate) fn users(&self) -> Vec<User> {
        lines(&self.passwd).lines().filter_map(User::parse).collect()
    }

    /// All groups that group(5) names.
    pub(crate) fn groups(&self) -> Vec<Group> {
        lines(&self.group).lines().filter_map(Group::parse).collect()
    }

    /// getent's first line; it exits with 2 when there is no such entry.
    fn ask(&self, database: &str, name: &str) -> Option<String> {
        if name.starts_with('-') || name.contains(['\0', ':']) {
            return None;
        }
        let answer = Command::new(self.getent.as_ref()?)
            .args([database, name])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()
            .filter(|answer| answer.status.success())?;
        String::from_utf8_lossy(&answer.stdout).lines().next().map(str::to_owned)
    }
}

/// A user's or group's number. The largest is none: setresuid(2) takes it as "leave it as it is", which would be root.
pub(crate) fn id(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|&id| id != u32::MAX)
}

/// An unreadable file has no entries: the message about the missing user then says where it was looked for.
fn lines(path: &PathBuf) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

impl User {
    fn parse(line: &str) -> Option<User> {
        let mut fields = line.split(':');
        let name = name(fields.next()?)?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        Some(User { name, uid, gid })
    }
}

impl Group {
    fn parse(line: &str) -> Option<Group> {
        let mut fields = line.split(':');
        let name = name(fields.next()?)?;
        let gid = id(fields.nth(1)?)?;
        let members = fields.next().unwrap_or_default().split(',').filter(|member| !member.is_empty());
        Some(Group { name, gid, members: members.map(str::to_owned).collect() })
    }
}

/// "+" and "-" start the lines of NSS's compat mode, "#" those of a comment.
fn name(field: &str) -> Option<String> {
    (!field.is_empty() && !field.starts_with(['+', '-', '#'])).then(|| field.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A machine with users alice (1000, groups alice, www, video) and bob (1001, group users).
    pub(crate) fn fake(directory: &std::path::Path) -> Accounts {
        let passwd = directory.join("passwd");
        let group = directory.join("group");
        fs::write(
            &passwd,
            "root:x:0:0:root:/root:/bin/sh\n+compat\n# none\nbroken:x\nalice:x:1000:1000::/:/bin/sh\n\
             bob:x:1001:100::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
        )
        .unwrap();
        fs::write(
            &group,
            "root:x:0:\nusers:x:100:\nalice:x:1000:\nwww:x:33:alice,bob\nvideo:x:44:alice\nnogroup:x:65534:\n",
        )
        .unwrap();
        Accounts { passwd, group, getent: None }
    }

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        let directory = tempfile::tempdir().unwrap();
        let accounts = fake(directory.path());
        let alice = User { name: "alice".into(), uid: 1000, gid: 1000 };
        assert_eq!(accounts.user("alice"), Some(alice.clone()));
        assert_eq!(accounts.user("1000"), Some(alice));
        for nobody in ["carol", "broken", "+compat", "+1000", "4294967295", ""] {
            assert_eq!(accounts.user(nobody), None, "{nobody}");
        }
        assert_eq!(accounts.group("www").map(|group| group.gid), Some(33));
        assert_eq!(accounts.group("33").map(|group| group.name), Some("www".into()));
        assert_eq!(accounts.memberships("alice"), [33, 44]);
        assert_eq!(accounts.memberships("carol"), [0_u32; 0]);
    }

    #[test]
    fn what_the_files_do_not_have_is_asked_of_getent() {
        let directory = tempfile::tempdir().unwrap();
        let getent = directory.path().join("getent");
        // A shell writes it: were it open for writing here, a fork of another test would make it ETXTBSY.
        let script = r#"#!/bin/sh
case "$1 $2" in
'passwd carol') echo carol:x:2000:2001::/:/bin/sh;;
'group 2001') echo ldap:x:2001:;;
'initgroups carol') echo 'carol   2001 2002';;
*) exit 2;;
esac"#;
        let write = "printf '%s\n' \"$1\" > \"$2\" && chmod 755 \"$2\"";
        let written =
            Command::new("/bin/sh").args(["-c", write, "sh", script]).arg(&getent).status().unwrap();
        assert!(written.success());
        let accounts = Accounts { getent: Some(getent), ..fake(directory.path()) };
        assert_eq!(accounts.user("carol"), Some(User { name: "carol".into(), uid: 2000, gid: 2001 }));
        assert_eq!(accounts.group("2001").map(|group| group.name), Some("ldap".into()));
        assert_eq!(accounts.memberships("carol"), [2001, 2002]);
        assert_eq!(accounts.user("dave"), None);
        assert_eq!(accounts.memberships("alice"), [33, 44], "getent knows nothing of alice, the file does");
    }
}
