//! Which files are read, in which form each is, and what belongs to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::client_rules::PeerFile;
use super::hosts_access::HostsAccess;
use super::inetd::{self, Surroundings};
use super::model::{Imported, Takeover};
use super::names::ServiceNames;
use super::systemd::{self, UnitPair};
use super::ucspi::{self, Beside, Script};
use super::unit_file::UnitFile;
use super::xinetd::{Blocks, Include};
use crate::config;

/// Larger files are a mistake.
const MOST_BYTES: u64 = 4 << 20;
/// More files are a mistake, too, or somebody else's idea of fun.
const MOST_FILES: usize = 4096;

/// A form in which services are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SourceFormat {
    Inetd,
    Xinetd,
    Systemd,
    Tcpserver,
}

/// The names of the formats.
pub(crate) const FORMATS: [(&str, SourceFormat); 7] = [
    ("inetd", SourceFormat::Inetd),
    ("xinetd", SourceFormat::Xinetd),
    ("systemd", SourceFormat::Systemd),
    ("tcpserver", SourceFormat::Tcpserver),
    ("tcpsvd", SourceFormat::Tcpserver),
    ("s6", SourceFormat::Tcpserver),
    ("socat", SourceFormat::Tcpserver),
];

/// What is to be imported.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImportRequest<'a> {
    pub(crate) paths: &'a [PathBuf],
    /// The root of the machine that the files are of.
    pub(crate) root: &'a Path,
    /// Without one, each file shows its own.
    pub(crate) format: Option<SourceFormat>,
}

/// Why a path cannot be imported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error("cannot read {}: {why}", path.display())]
    Unreadable { path: PathBuf, why: io::Error },
    #[error("{}: neither inetd.conf, a file of xinetd, a .socket unit nor a run script with tcpserver, tcpsvd, s6-tcpserver, socat or ncat; --format says which it is", .0.display())]
    Unknown(PathBuf),
    #[error("{}: a service without a socket, and its ExecStart= starts none of tcpserver, tcpsvd, s6-tcpserver, socat and ncat: name the .socket unit that starts it", .0.display())]
    NoSocket(PathBuf),
    #[error("{}: nothing in it that could be imported", .0.display())]
    Empty(PathBuf),
    #[error("more than {MOST_FILES} files")]
    TooMany,
}

/// Reads all of it.
pub(super) fn read(request: &ImportRequest<'_>) -> Result<Imported, ImportError> {
    let mut reader =
        FileReader { request, seen: BTreeSet::new(), empty: Vec::new(), names: ServiceNames::default() };
    if let Ok(text) = text_of(&reader.rooted(Path::new("/etc/services"))) {
        reader.names = ServiceNames::parse(&text);
    }
    let mut imported = Imported::default();
    for path in request.paths {
        let found = reader.path(path);
        imported.extend(reader.or_empty(found)?);
    }
    if imported.services.is_empty() && imported.notes.is_empty() {
        return reader.empty.into_iter().next().map_or(Ok(imported), |path| Err(ImportError::Empty(path)));
    }
    for path in reader.empty {
        let place = path.display().to_string();
        imported.add_note(&place, Takeover::Dropped, "all of it", "there is no service in it", false);
    }
    Ok(imported)
}

struct FileReader<'a> {
    request: &'a ImportRequest<'a>,
    /// Files that have been read.
    seen: BTreeSet<PathBuf>,
    /// Those that have no service; others may.
    empty: Vec<PathBuf>,
    names: ServiceNames,
}

/// The text of a regular file; what is not UTF-8 becomes U+FFFD.
fn text_of(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    config::open_file(path)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    if bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it has NUL bytes, and is no text"));
    }
    let text = String::from_utf8_lossy(&bytes);
    // Editors of other systems begin a file with a mark of byte order.
    Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned())
}

/// The entries of a directory by name, hidden ones left out.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)?.take(MOST_FILES) {
        let path = entry?.path();
        if !file_name(&path).starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|found| found == ending)
}

/// Where systemd looks for units, the first before the others.
const UNIT_DIRECTORIES: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// What lies beside a script.
struct FilesBeside<'a> {
    reader: &'a FileReader<'a>,
    directory: &'a Path,
}

impl FilesBeside<'_> {
    fn place(&self, wanted: &str) -> PathBuf {
        let wanted = Path::new(wanted);
        if wanted.is_absolute() { self.reader.rooted(wanted) } else { self.directory.join(wanted) }
    }
}

impl Beside for FilesBeside<'_> {
    fn text(&self, file: &str) -> Option<String> {
        text_of(&self.place(file)).ok()
    }

    fn peers(&self, directory: &str) -> Option<Vec<PeerFile>> {
        let read = |path: PathBuf| {
            let mode = fs::metadata(&path).ok()?.mode();
            // Who may not come needs no instructions, and only root may read his file.
            let text = if mode & 0o400 == 0 { String::new() } else { text_of(&path).ok()? };
            Some(PeerFile { name: file_name(&path).to_owned(), mode, text })
        };
        let directory = self.place(directory);
        // Of more, only some would be read, and the others lost.
        let is_too_large = fs::read_dir(&directory).ok()?.nth(MOST_FILES).is_some();
        let paths = entries(&directory).ok().filter(|_| !is_too_large)?;
        paths.into_iter().map(read).collect()
    }
}

impl FileReader<'_> {
    /// A path that a file names.
    fn rooted(&self, path: &Path) -> PathBuf {
        let below = path.components().filter(|part| matches!(part, Component::Normal(_)));
        match path.is_absolute() {
            true if self.request.root != Path::new("/") => self.request.root.join(below.collect::<PathBuf>()),
            _ => path.to_owned(),
        }
    }

    /// The text of a file that has not been read before.
    fn text(&mut self, path: &Path) -> Result<Option<String>, ImportError> {
        let unreadable = |why| ImportError::Unreadable { path: path.to_owned(), why };
        let real = fs::canonicalize(path).map_err(unreadable)?;
        if self.seen.len() >= MOST_FILES {
            return Err(ImportError::TooMany);
        }
        if !self.seen.insert(real) {
            return Ok(None);
        }
        text_of(path).map(Some).map_err(unreadable)
    }

    fn path(&mut self, path: &Path) -> Result<Imported, ImportError> {
        // A link by which an instance is enabled may lead to nowhere here: see [`FileReader::lone_service`].
        let kind = fs::metadata(path)
            .or_else(|why| if has_instance(path) { fs::symlink_metadata(path) } else { Err(why) })
            .map_err(|why| ImportError::Unreadable { path: path.to_owned(), why })?;
        if kind.is_dir() { self.directory(path) } else { self.file(path) }
    }

    /// Nothing, if there was no service.
    fn or_empty(&mut self, found: Result<Imported, ImportError>) -> Result<Imported, ImportError> {
        match found {
            Err(ImportError::Empty(path)) => {
                self.empty.push(path);
                Ok(Imported::default())
            }
            found => found,
        }
    }

    fn directory(&mut self, path: &Path) -> Result<Imported, ImportError> {
        let found = entries(path).map_err(|why| ImportError::Unreadable { path: path.to_owned(), why })?;
        let sockets: Vec<&PathBuf> =
            found.iter().filter(|path| has_ending(path, "socket") && path.is_file()).collect();
        let mut imported = Imported::default();
        let format = self.request.format;
        let servers: Vec<PathBuf> = found
            .iter()
            .filter(|path| has_ending(path, "service") && self.is_server(path))
            .flat_map(|path| instances(path, &found).unwrap_or_else(|| vec![path.clone()]))
            .collect();
        if format == Some(SourceFormat::Systemd)
            || (format.is_none() && !(sockets.is_empty() && servers.is_empty()))
        {
            for socket in sockets {
                self.socket(socket, &mut imported)?;
            }
            for server in &servers {
                self.server(server, &mut imported)?;
            }
            return Ok(imported);
        }
        let own = path.join("run");
        let mut runs: Vec<PathBuf> =
            found.iter().map(|path| path.join("run")).filter(|run| run.is_file()).collect();
        if own.is_file() {
            runs.insert(0, own);
        }
        if format == Some(SourceFormat::Tcpserver) || (format.is_none() && !runs.is_empty()) {
            for run in runs {
                let Some(text) = self.text(&run)? else { continue };
                let found = self.script(&run, &text);
                imported.services.extend(found.services);
            }
            return match imported.services.is_empty() {
                true => Err(ImportError::Empty(path.to_owned())),
                false => Ok(imported),
            };
        }
        if format == Some(SourceFormat::Inetd) {
            for file in found.iter().filter(|file| file.is_file()) {
                let found = self.file(file);
                imported.extend(self.or_empty(found)?);
            }
            return Ok(imported);
        }
        let mut blocks = Blocks::default();
        self.include_directory(path, &mut blocks, 0)?;
        let imported = blocks.services(&self.names, &self.hosts(path, true));
        match imported.services.is_empty() && imported.notes.is_empty() {
            true => Err(ImportError::Empty(path.to_owned())),
            false => Ok(imported),
        }
    }

    fn file(&mut self, path: &Path) -> Result<Imported, ImportError> {
        let mut imported = Imported::default();
        if has_ending(path, "socket") {
            self.socket(path, &mut imported)?;
            return Ok(imported);
        }
        if has_ending(path, "service") {
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let socket = path.with_file_name(format!("{}.socket", stem.trim_end_matches('@')));
            match socket.is_file() {
                true => self.socket(&socket, &mut imported)?,
                false if self.is_server(path) => self.server(path, &mut imported)?,
                false => return Err(ImportError::NoSocket(path.to_owned())),
            }
            return Ok(imported);
        }
        let Some(text) = self.text(path)? else { return Ok(imported) };
        let format = self.request.format.or_else(|| guess(path, &text));
        let name = path.display().to_string();
        let imported = match format {
            Some(SourceFormat::Tcpserver) => self.script(path, &text),
            Some(SourceFormat::Xinetd) => {
                let mut blocks = Blocks::default();
                let includes = blocks.read(&name, &text);
                self.include(includes, &name, &mut blocks, 0)?;
                blocks.services(&self.names, &self.hosts(path, true))
            }
            Some(SourceFormat::Inetd) => {
                let around = Surroundings { names: &self.names, hosts: &self.hosts(path, false) };
                inetd::parse(&name, &text, &around)
            }
            Some(SourceFormat::Systemd) | None => return Err(ImportError::Unknown(path.to_owned())),
        };
        match imported.services.is_empty() && imported.notes.is_empty() {
            true => Err(ImportError::Empty(path.to_owned())),
            false => Ok(imported),
        }
    }

    fn script(&self, path: &Path, text: &str) -> Imported {
        let file = path.display().to_string();
        let whole = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let directory = whole.parent().filter(|_| file_name(path) == "run").map(file_name);
        let script = Script { file: &file, text, name: directory.map(str::to_owned) };
        let beside = FilesBeside { reader: self, directory: path.parent().unwrap_or(Path::new("")) };
        ucspi::parse(&script, &self.names, &beside)
    }

    fn include(
        &mut self,
        includes: Vec<Include>,
        by: &str,
        blocks: &mut Blocks,
        depth: usize,
    ) -> Result<(), ImportError> {
        for include in includes {
            let (written, is_directory) = match &include {
                Include::File(path) => (path, false),
                Include::Directory(path) => (path, true),
            };
            if depth > 8 {
                blocks.refuse(by, written, "files that include each other without an end");
                continue;
            }
            let path = self.rooted(Path::new(written));
            if is_directory && path.is_dir() {
                self.include_directory(&path, blocks, depth)?;
                continue;
            }
            match self.text(&path) {
                Ok(Some(text)) if !is_directory => {
                    let name = path.display().to_string();
                    let more = blocks.read(&name, &text);
                    self.include(more, &name, blocks, depth + 1)?;
                }
                Ok(None) => (),
                Err(ImportError::TooMany) => return Err(ImportError::TooMany),
                Ok(Some(_)) | Err(_) => {
                    let why = format!(
                        "{} cannot be read; --root says where the files of another machine are",
                        path.display()
                    );
                    blocks.refuse(by, &format!("include of {written}"), &why);
                }
            }
        }
        Ok(())
    }

    /// Of a directory, xinetd leaves out what has a dot in its name or ends in a tilde.
    fn include_directory(
        &mut self,
        directory: &Path,
        blocks: &mut Blocks,
        depth: usize,
    ) -> Result<(), ImportError> {
        let found =
            entries(directory).map_err(|why| ImportError::Unreadable { path: directory.to_owned(), why })?;
        for path in found {
            let name = file_name(&path);
            if name.contains('.') || name.ends_with('~') || !path.is_file() {
                continue;
            }
            let name = path.display().to_string();
            match self.text(&path) {
                Ok(Some(text)) => {
                    let more = blocks.read(&name, &text);
                    self.include(more, &name, blocks, depth + 1)?;
                }
                Ok(None) => (),
                Err(ImportError::TooMany) => return Err(ImportError::TooMany),
                Err(error) => blocks.refuse(&name, &name, &error.to_string()),
            }
        }
        Ok(())
    }

    /// The rules of libwrap that lie beside a file.
    fn hosts(&self, path: &Path, looks_above: bool) -> HostsAccess {
        let mut directories: Vec<PathBuf> =
            path.ancestors().skip(1).take(1 + usize::from(looks_above)).map(Path::to_owned).collect();
        if self.request.root != Path::new("/") {
            directories.push(self.rooted(Path::new("/etc")));
        }
        let mut hosts = HostsAccess::default();
        for directory in directories {
            for name in ["hosts.allow", "hosts.deny"] {
                let file = directory.join(name);
                if let Ok(text) = text_of(&file) {
                    hosts.add(&file.display().to_string(), &text);
                }
            }
            if !hosts.files.is_empty() {
                break;
            }
        }
        hosts
    }

    /// Where units and drop-ins are that belong to the unit in this file, the first before the others.
    fn unit_directories(&self, path: &Path) -> Vec<PathBuf> {
        let mut directory = path.parent().unwrap_or(Path::new("")).to_owned();
        // What is enabled is a link in one of these.
        if has_ending(&directory, "wants") || has_ending(&directory, "requires") {
            directory.pop();
        }
        let real = fs::canonicalize(&directory).unwrap_or_else(|_| directory.clone());
        let system =
            UNIT_DIRECTORIES.iter().map(|directory| self.rooted(Path::new(directory))).collect::<Vec<_>>();
        match system.iter().any(|known| fs::canonicalize(known).is_ok_and(|known| known == real)) {
            true => system,
            false => vec![directory],
        }
    }

    /// The service in this file, without a socket, and its drop-ins.
    fn lone_service(&self, path: &Path) -> io::Result<UnitPair> {
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let mut unit = UnitFile::default();
        let directories = self.unit_directories(path);
        let template = name.split_once('@').map(|(template, _)| format!("{template}@.service"));
        // By its name: of another machine's files, a link leads elsewhere.
        let is_link = fs::symlink_metadata(path).is_ok_and(|kind| kind.is_symlink());
        let file = template.as_deref().filter(|_| is_link).and_then(|template| {
            directories.iter().map(|directory| directory.join(template)).find(|file| file.is_file())
        });
        unit.add(&text_of(file.as_deref().unwrap_or(path))?);
        for of in template.iter().map(String::as_str).chain((!name.ends_with('@')).then(|| file_name(path))) {
            drop_ins(&directories, of, &mut unit);
        }
        let mut pair =
            UnitPair { name: name.to_owned(), place: path.display().to_string(), ..UnitPair::default() };
        self.environment(&unit, &mut pair);
        pair.service = Some(unit);
        Ok(pair)
    }

    /// Whether a `.service` needs no socket, as it starts a server that can be read.
    fn is_server(&self, path: &Path) -> bool {
        (path.is_file() || has_instance(path))
            && !path.with_extension("socket").is_file()
            && self.lone_service(path).is_ok_and(|pair| systemd::starts_a_server(&pair))
    }

    fn server(&mut self, path: &Path, imported: &mut Imported) -> Result<(), ImportError> {
        // Instances share a file.
        if !has_instance(path) && self.text(path)?.is_none() {
            return Ok(());
        }
        let unreadable = |why| ImportError::Unreadable { path: path.to_owned(), why };
        let pair = self.lone_service(path).map_err(unreadable)?;
        let beside = FilesBeside { reader: self, directory: path.parent().unwrap_or(Path::new("")) };
        systemd::read_server(&pair, &self.names, &beside, imported);
        Ok(())
    }

    fn socket(&mut self, path: &Path, imported: &mut Imported) -> Result<(), ImportError> {
        let Some(text) = self.text(path)? else { return Ok(()) };
        let directories = self.unit_directories(path);
        let mut pair = UnitPair {
            name: path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned(),
            place: path.display().to_string(),
            ..UnitPair::default()
        };
        pair.socket.add(&text);
        drop_ins(&directories, file_name(path), &mut pair.socket);
        pair.service_name = systemd::service_of(&pair.name, &pair.socket);
        if Path::new(&pair.service_name).components().count() == 1 {
            let mut files = directories.iter().map(|directory| directory.join(&pair.service_name));
            if let Some(text) = files.find_map(|file| text_of(&file).ok()) {
                let mut unit = UnitFile::default();
                unit.add(&text);
                drop_ins(&directories, &pair.service_name, &mut unit);
                self.environment(&unit, &mut pair);
                pair.service = Some(unit);
            }
        }
        systemd::read(&pair, &self.names, imported);
        Ok(())
    }

    fn environment(&self, unit: &UnitFile, pair: &mut UnitPair) {
        for file in unit.all("Service", "EnvironmentFile").take(64) {
            let Some(file) = pair.specified(file.trim_start_matches('-')) else { continue };
            let path = self.rooted(Path::new(&file));
            let Ok(text) = text_of(&path) else { continue };
            for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
                if let Some((name, value)) = line.split_once('=') {
                    let value = value.trim();
                    let bare =
                        value.strip_prefix(['"', '\'']).and_then(|value| value.strip_suffix(['"', '\'']));
                    pair.environment.insert(name.trim().to_owned(), bare.unwrap_or(value).to_owned());
                }
            }
        }
    }
}

/// Whether a unit is an instance of a template.
fn has_instance(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.split_once('@').is_some_and(|(_, instance)| !instance.is_empty())
}

/// Of a template beside these, the instances that are enabled; `None` if there are none.
fn instances(template: &Path, found: &[PathBuf]) -> Option<Vec<PathBuf>> {
    let prefix = template.file_stem()?.to_str().filter(|stem| stem.ends_with('@'))?;
    let wants = found.iter().filter(|path| has_ending(path, "wants") || has_ending(path, "requires"));
    let enabled: BTreeMap<String, PathBuf> = wants
        .flat_map(|directory| entries(directory).unwrap_or_default())
        .filter(|path| {
            file_name(path).starts_with(prefix) && has_ending(path, "service") && has_instance(path)
        })
        .take(MOST_FILES)
        .map(|path| (file_name(&path).to_owned(), path))
        .collect();
    (!enabled.is_empty()).then(|| enabled.into_values().collect())
}

fn drop_ins(directories: &[PathBuf], unit: &str, into: &mut UnitFile) {
    let mut files = BTreeMap::new();
    // One of a directory before hides one of the same name in a later one.
    for directory in directories.iter().rev() {
        let found = entries(&directory.join(format!("{unit}.d"))).unwrap_or_default();
        files.extend(
            found
                .into_iter()
                .filter(|path| has_ending(path, "conf"))
                .map(|path| (file_name(&path).to_owned(), path)),
        );
    }
    for path in files.into_values() {
        if let Ok(text) = text_of(&path) {
            into.add(&text);
        }
    }
}

/// The form of a file, by its name and its text.
fn guess(path: &Path, text: &str) -> Option<SourceFormat> {
    let name = file_name(path);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let is_xinetd = text.lines().any(|line| {
        let words = words(line);
        let is_name = |word: &String| !word.starts_with(['=', '+', '-']);
        match words.first().map(String::as_str) {
            Some("service") => words.get(1).is_some_and(is_name) && words.len() <= 3,
            Some("defaults" | "defaults{") => words.len() <= 2,
            Some("include" | "includedir") => words.len() == 2,
            _ => false,
        }
    });
    if name.starts_with("inetd.conf") {
        Some(SourceFormat::Inetd)
    } else if (name == "run" || text.starts_with("#!")) && ucspi::is_script(text) {
        Some(SourceFormat::Tcpserver)
    } else if text.starts_with("#!") {
        // A line of it may look like one of another format.
        None
    } else if is_xinetd {
        Some(SourceFormat::Xinetd)
    } else if inetd::has_service(text) {
        Some(SourceFormat::Inetd)
    } else if ucspi::is_script(text) {
        Some(SourceFormat::Tcpserver)
    } else {
        None
    }
}

/// The same text wherever one looks.
#[cfg(any(test, feature = "fuzzing"))]
struct ItselfBeside<'a>(&'a str);

#[cfg(any(test, feature = "fuzzing"))]
impl Beside for ItselfBeside<'_> {
    fn text(&self, _: &str) -> Option<String> {
        Some(self.0.to_owned())
    }

    fn peers(&self, _: &str) -> Option<Vec<PeerFile>> {
        let peer = |line: &str| {
            let (name, text) = line.split_once(' ').unwrap_or((line, ""));
            PeerFile { name: name.to_owned(), mode: line.len() as u32, text: text.to_owned() }
        };
        Some(self.0.lines().map(peer).collect())
    }
}

/// What each format makes of a text.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn of_text(text: &str) -> Vec<Imported> {
    let (names, hosts) = (ServiceNames::default(), HostsAccess::default());
    let mut ruled = HostsAccess::default();
    ruled.add("hosts.allow", text);
    let inetd = inetd::parse("text", text, &Surroundings { names: &names, hosts: &ruled });
    let mut blocks = Blocks::default();
    let _ = blocks.read("text", text);
    let script = Script { file: "text", text, name: None };
    let mut pair = UnitPair { name: "text".to_owned(), place: "text".to_owned(), ..UnitPair::default() };
    pair.socket.add(text);
    pair.service = Some(pair.socket.clone());
    let mut units = Imported::default();
    systemd::read(&pair, &names, &mut units);
    systemd::read_server(&pair, &names, &ItselfBeside(text), &mut units);
    vec![inetd, blocks.services(&names, &hosts), ucspi::parse(&script, &names, &ItselfBeside(text)), units]
}
