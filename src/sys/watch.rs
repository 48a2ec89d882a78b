//! Files that somebody may change: inotify(7).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// Files that are watched.
#[derive(Debug)]
pub(crate) struct WatchedFiles {
    inotify: Inotify,
    /// In a directory that is watched for their sake: the names of some that are in it; `None` for all.
    names: BTreeMap<WatchDescriptor, Option<Vec<OsString>>>,
}

impl WatchedFiles {
    /// Watches these: files with whatever takes their place, and what is in directories.
    ///
    /// # Errors
    ///
    /// One cannot be watched, or there are no more watches for this user.
    pub(crate) fn new<P: AsRef<Path>>(paths: &[P]) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mut watch = WatchedFiles { inotify, names: BTreeMap::new() };
        for path in paths {
            let path = path.as_ref();
            watch.add(path).map_err(|error| {
                let why = io::Error::from(error);
                io::Error::new(why.kind(), format!("cannot watch {}: {why}", path.display()))
            })?;
        }
        Ok(watch)
    }

    fn add(&mut self, path: &Path) -> Result<(), Errno> {
        let written = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB;
        let moved = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE;
        // Also what a link leads to, or another name of it is written through.
        let itself = self.inotify.add_watch(path, written | moved)?;
        self.names.insert(itself, None);
        if let (Some(directory), Some(name)) = (path.parent(), path.file_name()) {
            // An editor puts a new file in its place.
            let directory = self.inotify.add_watch(directory, written | moved)?;
            if let Some(names) = self.names.entry(directory).or_insert_with(|| Some(Vec::new())) {
                names.push(name.to_owned());
            }
        }
        Ok(())
    }

    /// Has something to read when something has changed, whether or not it is one of these.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Whether one of them has changed since the last look.
    pub(crate) fn has_changed(&self) -> bool {
        let mut has_changed = false;
        while let Ok(events) = self.inotify.read_events() {
            has_changed |= events.iter().any(|event| {
                // Of what was lost it may have been one.
                event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)
                    || match (self.names.get(&event.wd), &event.name) {
                        (Some(Some(names)), Some(name)) => names.contains(name),
                        (Some(None), _) => true,
                        (Some(Some(_)), None) | (None, _) => false,
                    }
            });
        }
        has_changed
    }
}
