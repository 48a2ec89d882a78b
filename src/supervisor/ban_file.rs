//! The file in which bans outlast preforkd.
//!
//! Connection processes may have the same user, so what it says is input: it is read once, at the start, within bounds, and what is
//! no list of bans bans nobody.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::admission::SourceName;
use crate::admission::bans::MAX_BANS;
use crate::config::check_name;
use crate::sys::time::UnixTime;

const NAME: &str = "bans.json";

/// A file that is no list of bans goes here, for who wants to know what it was.
const BROKEN: &str = "bans.json.broken";

/// Where it is written before it is complete.
const NEW: &str = ".bans.json.new";

/// The longest file that is read. The longest that is written has less.
const LONGEST: u64 = 4 << 20;

const VERSION: u32 = 1;

/// A ban as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeptBan {
    pub(super) source: SourceName,
    /// `None` for all.
    pub(super) service: Option<String>,
    pub(super) since: UnixTime,
    /// `None` until it is lifted.
    pub(super) until: Option<UnixTime>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    bans: Vec<KeptBan>,
}

/// Where bans are kept, if anywhere.
#[derive(Debug)]
pub(super) struct BanFile {
    /// The directory that is made for this service of systemd's, and stays.
    directory: Option<PathBuf>,
}

impl Default for BanFile {
    fn default() -> Self {
        let given = std::env::var_os("STATE_DIRECTORY");
        // Several are separated by colons, systemd.exec(5).
        let first = given.as_ref().and_then(|all| std::env::split_paths(all).next());
        BanFile { directory: first.filter(|path| path.is_absolute()) }
    }
}

impl BanFile {
    /// Whether bans are kept at all.
    pub(super) fn is_there(&self) -> bool {
        self.directory.is_some()
    }

    /// The bans that are kept. One that cannot be understood is put aside.
    ///
    /// # Errors
    ///
    /// Why not, as a sentence for the log.
    pub(super) fn read(&self) -> Result<Vec<KeptBan>, String> {
        let Some(directory) = &self.directory else { return Ok(Vec::new()) };
        let path = directory.join(NAME);
        let error = match read(&path) {
            Ok(bans) => return Ok(bans),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => error,
        };
        let mut text = format!("nobody is banned: cannot read {}: {error}", path.display());
        if error.kind() == io::ErrorKind::InvalidData {
            let aside = directory.join(BROKEN);
            match fs::rename(&path, &aside) {
                Ok(()) => text.push_str(&format!("; it is {} now", aside.display())),
                Err(error) => text.push_str(&format!("; it cannot be put aside: {error}")),
            }
        }
        Err(text)
    }

    /// Keeps these bans and no others, all or nothing.
    ///
    /// # Errors
    ///
    /// Why not.
    pub(super) fn write(&self, bans: Vec<KeptBan>) -> Result<(), String> {
        let Some(directory) = &self.directory else { return Ok(()) };
        write(directory, bans)
            .map_err(|error| format!("cannot write {}: {error}", directory.join(NAME).display()))
    }
}

fn read(path: &Path) -> io::Result<Vec<KeptBan>> {
    let wrong = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let about = file.metadata()?;
    if !about.is_file() || about.len() > LONGEST {
        return Err(wrong(format!("it is no file, or longer than {LONGEST} bytes")));
    }
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text)?;
    let Content { version, bans } =
        serde_json::from_slice(&text).map_err(|error| wrong(format!("it is no list of bans: {error}")))?;
    if version != VERSION {
        return Err(wrong(format!("it is of version {version}, and this preforkd reads {VERSION}")));
    }
    if bans.len() > MAX_BANS {
        return Err(wrong(format!("it has more than {MAX_BANS} bans")));
    }
    if let Some(why) = bans.iter().find_map(|ban| check_name(ban.service.as_ref()?).err()) {
        return Err(wrong(format!("it names a service that there cannot be: {why}")));
    }
    Ok(bans)
}

fn write(directory: &Path, bans: Vec<KeptBan>) -> io::Result<()> {
    let content = serde_json::to_vec(&Content { version: VERSION, bans })?;
    let new = directory.join(NEW);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&content)?;
    file.sync_all()?;
    fs::rename(&new, directory.join(NAME))?;
    // Or a crash of the machine could take the name back.
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_directory() -> (tempfile::TempDir, BanFile) {
        let directory = tempfile::tempdir().unwrap();
        let file = BanFile { directory: Some(directory.path().to_owned()) };
        (directory, file)
    }

    fn some() -> Vec<KeptBan> {
        let now = serde_json::from_str("1764343388001").unwrap();
        let ban = |source: &str, service: Option<&str>, until| KeptBan {
            source: source.parse().unwrap(),
            service: service.map(str::to_owned),
            since: now,
            until,
        };
        vec![ban("192.0.2.0/24", None, None), ban("user:7", Some("x"), Some(now))]
    }

    #[test]
    fn what_is_written_is_read() {
        let (directory, file) = in_directory();
        assert_eq!(file.read(), Ok(Vec::new()));
        for bans in [some(), Vec::new(), some()] {
            file.write(bans.clone()).unwrap();
            assert_eq!(file.read(), Ok(bans));
        }
        // Somebody died in the middle of it.
        fs::write(directory.path().join(NEW), "half").unwrap();
        file.write(Vec::new()).unwrap();
        assert_eq!(file.read(), Ok(Vec::new()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_list_of_bans_is_put_aside_and_bans_nobody() {
        let (directory, file) = in_directory();
        file.write(some()).unwrap();
        let path = directory.path().join(NAME);
        let whole = fs::read(&path).unwrap();
        let mut wrong: Vec<Vec<u8>> = (0..whole.len()).map(|end| whole[..end].to_vec()).collect();
        let text = |bans: &str| format!("{{\"version\":1,\"bans\":[{bans}]}}").into_bytes();
        let ban = |source: &str, service: &str| {
            format!("{{\"source\":\"{source}\",\"service\":{service},\"since\":1,\"until\":null}}")
        };
        assert!(serde_json::from_slice::<Content>(&text(&ban("::/0", "\"x\""))).is_ok());
        wrong.extend([
            text(&ban("192.0.2.1/24", "null")),
            text(&ban("nobody", "null")),
            text(&ban("::/0", "\"../x\"")),
            text(&vec![ban("::/0", "null"); MAX_BANS + 1].join(",")),
            text("{}"),
            b"{\"version\":2,\"bans\":[]}".to_vec(),
            b"{\"version\":1,\"bans\":[],\"more\":1}".to_vec(),
            vec![b' '; LONGEST as usize + 1],
            b"[".repeat(100_000),
            vec![0; 100],
        ]);
        for content in wrong {
            fs::write(&path, &content).unwrap();
            let error = file.read().unwrap_err();
            assert!(error.starts_with("nobody is banned: cannot read") && error.contains("is "), "{error}");
            assert_eq!(fs::read(directory.path().join(BROKEN)).unwrap(), content);
            assert_eq!(file.read(), Ok(Vec::new()));
        }
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let (directory, file) = in_directory();
        let path = directory.path().join(NAME);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(file.read().unwrap_err().contains("it is no file"));
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(file.read().unwrap_err().contains("symbolic"));
        // It takes the place of whatever was there.
        file.write(some()).unwrap();
        assert_eq!(file.read(), Ok(some()));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(file.write(some()).is_err() && file.read().is_err());
    }

    #[test]
    fn the_longest_list_is_short_enough() {
        let (_directory, file) = in_directory();
        let longest = KeptBan {
            source: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128".parse().unwrap(),
            service: Some("x".repeat(64)),
            since: UnixTime::now(),
            until: Some(UnixTime::now()),
        };
        let bans = vec![longest; MAX_BANS];
        file.write(bans.clone()).unwrap();
        assert_eq!(file.read(), Ok(bans));
    }

    #[test]
    fn without_a_directory_nothing_is_kept() {
        let nowhere = BanFile { directory: None };
        assert_eq!(
            (nowhere.write(some()), nowhere.read(), nowhere.is_there()),
            (Ok(()), Ok(Vec::new()), false)
        );
        let gone = BanFile { directory: Some("/nonexistent/preforkd".into()) };
        assert!(
            gone.write(some()).unwrap_err().starts_with("cannot write /nonexistent/preforkd/bans.json: ")
        );
    }
}
