//! A program that serves: what it is called, its handlers, and what holds where its configuration says nothing.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

use super::connection::ClientConnection;
use super::{Handler, options};
use crate::shared::{Declared, Shared};

/// What a program is called, in its messages and the names of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Title {
    pub(crate) name: &'static str,
    /// Its own, if it has said it.
    pub(crate) version: Option<&'static str>,
}

/// That of this library.
const LIBRARY: &str = env!("CARGO_PKG_VERSION");

impl Title {
    /// What `--version` says after the name.
    pub(crate) fn long_version(self) -> String {
        match self.version {
            Some(version) if self.name == "preforkd" => version.to_owned(),
            Some(version) => format!("{version} (preforkd {LIBRARY})"),
            None => format!("(preforkd {LIBRARY})"),
        }
    }

    /// The same in one word.
    pub(crate) fn version(self) -> &'static str {
        self.version.unwrap_or(LIBRARY)
    }

    /// Where `run` looks without `--config`; the drop-ins are `NAME.d/*.toml` beside it.
    pub(crate) fn config_path(self) -> PathBuf {
        format!("/etc/{name}/{name}.toml", name = self.name).into()
    }

    /// Where it listens for `reload` and `status`, and where these look for it.
    pub(crate) fn control_path(self) -> PathBuf {
        format!("/run/{}/control.sock", self.name).into()
    }
}

/// A program. It comes to be in every process that is started, and goes down from there.
pub(crate) struct Application {
    pub(crate) title: Title,
    pub(crate) about: &'static str,
    handlers: Vec<Known>,
    /// Those of its commands, which a configuration may not name.
    tools: Vec<Known>,
    /// Keys of `[service.NAME]`, in TOML.
    pub(crate) defaults: &'static str,
}

/// A handler of a program.
struct Known {
    name: &'static str,
    handler: Box<dyn AnyHandler>,
    /// What its processes share, or what is wrong with that.
    declared: Result<Declared, String>,
}

impl Application {
    /// Without handlers yet.
    pub(crate) fn new(name: &'static str) -> Self {
        let title = Title { name, version: None };
        Application {
            title,
            about: "A process of its own for every connection",
            handlers: Vec::new(),
            tools: Vec::new(),
            defaults: "",
        }
    }

    /// Adds a handler, or replaces the one of this name.
    pub(crate) fn add(&mut self, name: &'static str, handler: impl Handler) {
        self.handlers.retain(|known| known.name != name);
        self.handlers.push(Known::new(name, handler));
    }

    /// Adds a handler that a command serves by itself.
    pub(crate) fn add_tool(&mut self, name: &'static str, handler: impl Handler) {
        self.tools.push(Known::new(name, handler));
    }

    /// The names that a configuration may give.
    pub(crate) fn handlers(&self) -> impl Iterator<Item = &'static str> {
        self.handlers.iter().map(|known| known.name)
    }

    /// The same, for a message.
    pub(crate) fn list_of_handlers(&self) -> String {
        self.handlers().collect::<Vec<_>>().join(", ")
    }

    /// The name of its handler, if there is one alone.
    pub(crate) fn only_handler(&self) -> Option<&'static str> {
        match self.handlers.as_slice() {
            [known] => Some(known.name),
            _ => None,
        }
    }

    /// The handler with this name, also if it is one of its commands'.
    pub(crate) fn find(&self, name: &str) -> Option<&dyn AnyHandler> {
        self.all().find(|known| known.name == name).map(|known| known.handler.as_ref())
    }

    /// What its processes share.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(crate) fn declared(&self, name: &str) -> Result<&Declared, &str> {
        const NOTHING: &Declared = &Declared::NOTHING;
        let known = self.all().find(|known| known.name == name);
        known.map_or(Ok(NOTHING), |known| known.declared.as_ref().map_err(String::as_str))
    }

    /// The same, to be prepared; all others are dropped.
    pub(crate) fn into_handler(self, name: &str) -> Option<Box<dyn AnyHandler>> {
        let all = self.handlers.into_iter().chain(self.tools);
        all.into_iter().find(|known| known.name == name).map(|known| known.handler)
    }

    fn all(&self) -> impl Iterator<Item = &Known> {
        self.handlers.iter().chain(&self.tools)
    }
}

impl Known {
    fn new(name: &'static str, handler: impl Handler) -> Self {
        let handler = RefCell::new(handler);
        let declared = Declared::by(|layout| handler.borrow_mut().share(layout));
        let declared = declared.map_err(|error| error.to_string());
        Known { name, handler: Box::new(handler.into_inner()), declared }
    }
}

/// A handler whose types are forgotten.
pub(crate) trait AnyHandler: Sync {
    /// The keys that it reads from its options; `None` if any.
    fn known_options(&self) -> Option<&'static [&'static str]>;

    /// Tries to read its options; `ignored` is called with the path of each key that nobody has read.
    fn try_options(
        &self,
        table: Spanned<DeValue<'_>>,
        ignored: &mut dyn FnMut(Vec<String>),
    ) -> Result<(), toml::de::Error>;

    /// Gives it the memory of what it declares, with room for so many processes at a time. What went wrong is a sentence.
    fn share_in(&mut self, memory: BorrowedFd<'_>, processes: u32) -> Result<Shared<()>, String>;

    /// Reads its options, which have been checked, and prepares. What went wrong is a sentence.
    fn prepare(&mut self, options: &str) -> Result<(), String>;

    fn has_stderr(&self) -> bool;

    fn starts_threads(&self) -> bool;

    fn serve(&self, connection: &mut ClientConnection<'_>) -> io::Result<()>;
}

impl<H: Handler> AnyHandler for H {
    fn known_options(&self) -> Option<&'static [&'static str]> {
        options::known::<H::Options>()
    }

    fn try_options(
        &self,
        table: Spanned<DeValue<'_>>,
        ignored: &mut dyn FnMut(Vec<String>),
    ) -> Result<(), toml::de::Error> {
        options::read::<H::Options>(table, ignored).map(drop)
    }

    fn share_in(&mut self, memory: BorrowedFd<'_>, processes: u32) -> Result<Shared<()>, String> {
        let handler = RefCell::new(self);
        Shared::open_or_fill(memory, processes, |layout| handler.borrow_mut().share(layout))
            .map_err(|error| error.to_string())
    }

    fn prepare(&mut self, options: &str) -> Result<(), String> {
        let options = toml::from_str(options).map_err(|error| error.message().to_owned())?;
        match catch_unwind(AssertUnwindSafe(|| Handler::prepare(self, options))) {
            Ok(prepared) => prepared.map_err(|error| error.to_string()),
            Err(panic) => Err(format!("it panicked: {}", said(panic.as_ref()))),
        }
    }

    fn has_stderr(&self) -> bool {
        H::STDERR
    }

    fn starts_threads(&self) -> bool {
        H::THREADS
    }

    #[inline]
    fn serve(&self, connection: &mut ClientConnection<'_>) -> io::Result<()> {
        Handler::serve(self, connection)
    }
}

impl fmt::Debug for dyn AnyHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyHandler")
    }
}

/// What a panic has said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without words")
}
