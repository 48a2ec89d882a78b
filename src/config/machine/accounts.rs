//! Users and groups, without NSS.
//!
//! A statically linked glibc cannot load NSS modules safely, so files are read here, and what they do not have is asked
//! of the program getent(1), which is linked dynamically. Whom that asks may never answer, so there is a limit to waiting.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::config::diagnostic::nearest;
use crate::config::open::open_file;
use crate::config::value::id;
use crate::sys::answer::{self, Answered};
use crate::sys::time::Monotonic;

/// How long getent(1) may take for one answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long all answers of a configuration may take together.
const ALL_PATIENCE: Duration = Duration::from_secs(15);

/// Where users and groups come from.
#[derive(Debug)]
pub(crate) struct Accounts {
    /// passwd(5).
    pub(crate) passwd: PathBuf,
    /// group(5).
    pub(crate) group: PathBuf,
    /// getent(1), if it is to be asked.
    pub(crate) getent: Option<Getent>,
}

/// getent(1), and what is left of the time that it may take.
#[derive(Debug)]
pub(crate) struct Getent {
    program: PathBuf,
    left: Cell<Duration>,
}

/// Why it is not known whether there is such a user or group.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unanswered(String);

/// One line of passwd(5), as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// The login name.
    pub(crate) name: String,
    /// Its id.
    pub(crate) uid: u32,
    /// The primary group.
    pub(crate) gid: u32,
    /// The home directory and the login shell, as they are written.
    pub(crate) home: String,
    pub(crate) shell: String,
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
            getent: Some(Getent { program: "/usr/bin/getent".into(), left: Cell::new(ALL_PATIENCE) }),
        }
    }
}

impl Accounts {
    /// The user with this name or number.
    pub(crate) fn user(&self, name: &str) -> Result<Option<User>, Unanswered> {
        let is_it = |user: &User| user.name == name || id(name) == Some(user.uid);
        match self.users().into_iter().find(is_it) {
            Some(user) => Ok(Some(user)),
            None => Ok(self.ask("passwd", name, "user")?.and_then(|line| User::parse(&line))),
        }
    }

    /// The group with this name or number.
    pub(crate) fn group(&self, name: &str) -> Result<Option<Group>, Unanswered> {
        let is_it = |group: &Group| group.name == name || id(name) == Some(group.gid);
        match self.groups().into_iter().find(is_it) {
            Some(group) => Ok(Some(group)),
            None => Ok(self.ask("group", name, "group")?.and_then(|line| Group::parse(&line))),
        }
    }

    /// The groups that have the user among their members.
    pub(crate) fn memberships(&self, user: &str) -> Result<Vec<u32>, Unanswered> {
        if let Some(answer) = self.ask("initgroups", user, "the groups of user")? {
            return Ok(answer.split_whitespace().skip(1).filter_map(id).collect());
        }
        let is_member = |group: &Group| group.members.iter().any(|member| member == user);
        Ok(self.groups().into_iter().filter(is_member).map(|group| group.gid).collect())
    }

    /// All users that passwd(5) names.
    pub(crate) fn users(&self) -> Vec<User> {
        lines(&self.passwd).lines().filter_map(User::parse).collect()
    }

    /// All groups that group(5) names.
    pub(crate) fn groups(&self) -> Vec<Group> {
        lines(&self.group).lines().filter_map(Group::parse).collect()
    }

    /// getent's first line, or `None` if there is no such entry.
    fn ask(&self, database: &str, name: &str, what: &str) -> Result<Option<String>, Unanswered> {
        match &self.getent {
            Some(getent) if !name.starts_with('-') && !name.contains(['\0', ':']) => {
                getent.ask(database, name).map_err(|why| Unanswered(format!("{why} for {what} \"{name}\"")))
            }
            _ => Ok(None),
        }
    }
}

impl Getent {
    /// Once it has not answered it is asked no more.
    fn ask(&self, database: &str, name: &str) -> Result<Option<String>, String> {
        let limit = PATIENCE.min(self.left.get());
        if limit.is_zero() {
            return Err("getent, which is too slow or does not answer, was not asked".to_owned());
        }
        let start = Monotonic::now();
        let answered = answer::of(Command::new(&self.program).args([database, name]), limit);
        self.left.set(self.left.get().saturating_sub(Monotonic::now() - start));
        match answered {
            // It exits with 2 when there is no such entry.
            Ok(Answered::Failed) => Ok(None),
            Ok(Answered::Said(text)) => Ok(String::from_utf8_lossy(&text).lines().next().map(str::to_owned)),
            Ok(Answered::Late) => {
                self.left.set(Duration::ZERO);
                Err(format!("getent did not answer within {} s", limit.as_secs_f32()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("cannot ask getent ({error})")),
        }
    }
}

/// A user of this machine, with all the groups that a login would give him.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownUser {
    pub(crate) uid: u32,
    pub(crate) groups: Vec<u32>,
}

/// The user whom a command names, by name or number.
pub(crate) fn known_user(name: &str) -> Result<KnownUser, String> {
    let accounts = Accounts::default();
    match (accounts.user(name).map_err(|why| why.to_string())?, id(name)) {
        (Some(user), _) => {
            let mut groups = accounts.memberships(&user.name).map_err(|why| why.to_string())?;
            groups.push(user.gid);
            Ok(KnownUser { uid: user.uid, groups })
        }
        (None, Some(uid)) => Ok(KnownUser { uid, groups: Vec::new() }),
        (None, None) => {
            let users = accounts.users();
            let near = nearest(name, users.iter().map(|user| user.name.as_str()));
            let near = near.map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default();
            Err(format!("\"{name}\" is no user of this machine{near}"))
        }
    }
}

/// An unreadable file has no entries: the message about the missing user then says where it was looked for.
fn lines(path: &Path) -> String {
    let mut bytes = Vec::new();
    match open_file(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

impl User {
    fn parse(line: &str) -> Option<User> {
        let mut fields = line.split(':');
        let name = name(fields.next()?)?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        let (home, shell) = (fields.nth(1).unwrap_or_default(), fields.next().unwrap_or_default());
        Some(User { name, uid, gid, home: home.to_owned(), shell: shell.to_owned() })
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
    use std::fs;

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

    /// With a getent(1) that is this script.
    fn asking(directory: &Path, script: &str) -> Accounts {
        let program = directory.join("getent");
        // A shell writes it: were it open for writing here, a fork of another test would make it ETXTBSY.
        let write = "printf '%s\n' \"$1\" > \"$2\" && chmod 755 \"$2\"";
        let written =
            Command::new("/bin/sh").args(["-c", write, "sh", script]).arg(&program).status().unwrap();
        assert!(written.success());
        Accounts { getent: Some(Getent { program, left: Cell::new(PATIENCE) }), ..fake(directory) }
    }

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        let directory = tempfile::tempdir().unwrap();
        let accounts = fake(directory.path());
        let login = |name: &str, uid, gid| User {
            name: name.into(),
            uid,
            gid,
            home: "/".into(),
            shell: "/bin/sh".into(),
        };
        let alice = Ok(Some(login("alice", 1000, 1000)));
        assert_eq!(accounts.user("alice"), alice);
        assert_eq!(accounts.user("1000"), alice);
        for nobody in ["carol", "broken", "+compat", "+1000", "4294967295", ""] {
            assert_eq!(accounts.user(nobody), Ok(None), "{nobody}");
        }
        let group = |name: &str| accounts.group(name).unwrap().unwrap();
        assert_eq!((group("www").gid, group("33").name), (33, "www".into()));
        assert_eq!(accounts.memberships("alice"), Ok(vec![33, 44]));
        assert_eq!(accounts.memberships("carol"), Ok(Vec::new()));
    }

    #[test]
    fn what_the_files_do_not_have_is_asked_of_getent() {
        let directory = tempfile::tempdir().unwrap();
        let script = r#"#!/bin/sh
case "$1 $2" in
'passwd carol') echo carol:x:2000:2001::/:/bin/sh;;
'group 2001') echo ldap:x:2001:;;
'initgroups carol') echo 'carol   2001 2002';;
*) exit 2;;
esac"#;
        let accounts = asking(directory.path(), script);
        let (home, shell) = ("/".into(), "/bin/sh".into());
        let carol = User { name: "carol".into(), uid: 2000, gid: 2001, home, shell };
        assert_eq!(accounts.user("carol"), Ok(Some(carol)));
        assert_eq!(accounts.group("2001").unwrap().unwrap().name, "ldap");
        assert_eq!(accounts.memberships("carol"), Ok(vec![2001, 2002]));
        assert_eq!(accounts.user("dave"), Ok(None));
        assert_eq!(
            accounts.memberships("alice"),
            Ok(vec![33, 44]),
            "getent knows nothing of alice, the file does"
        );
    }

    #[test]
    fn a_getent_that_does_not_answer_is_no_answer_and_is_asked_once() {
        let directory = tempfile::tempdir().unwrap();
        let accounts = asking(directory.path(), "#!/bin/sh\necho asked >&2; exec sleep 1000");
        accounts.getent.as_ref().unwrap().left.set(Duration::from_millis(200));
        let late = accounts.user("carol").unwrap_err().to_string();
        assert_eq!(late, "getent did not answer within 0.2 s for user \"carol\"");
        let start = Monotonic::now();
        let next = accounts.memberships("alice").unwrap_err().to_string();
        assert!(next.contains("was not asked for the groups of user \"alice\""), "{next}");
        assert!(Monotonic::now() - start < Duration::from_millis(200));
        assert!(accounts.user("alice").is_ok(), "for her nobody needs to be asked");
    }
}
