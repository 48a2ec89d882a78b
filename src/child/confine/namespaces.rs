//! Namespaces: of mounts and of the network, which a worker leaves once, and of processes, in which its children begin.
//!
//! Who is root needs CAP_SYS_ADMIN for it. Anybody else makes a namespace of users first, in which there is only himself; root
//! cannot, since there would be nobody in there whom his children could become.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use crate::config::{PRIVATE_DIRECTORIES, Sandbox};
use crate::sys::fork::fork;
use crate::sys::namespaces::{self, Namespace};
use crate::sys::process::{self, Capabilities};
use crate::sys::wait;

/// Which of them a worker and its children have for themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OwnNamespaces {
    /// With directories for temporary files that take so many bytes each.
    tmp: Option<u64>,
    /// Of the network.
    pub(super) network: bool,
    /// Of processes, one for each child.
    pub(crate) processes: bool,
}

impl OwnNamespaces {
    /// Those that a sandbox asks for.
    fn wanted(sandbox: &Sandbox) -> Self {
        OwnNamespaces {
            tmp: sandbox.private_tmp,
            network: sandbox.network_namespace,
            processes: sandbox.pid_namespace,
        }
    }

    fn are_any(self) -> bool {
        self != OwnNamespaces::default()
    }

    /// In a worker, before it opens anything that its children shall have: leaves those that it shares, and has what its sandbox
    /// asks for. What cannot be had is left out; whether that may be, [`super::cage::Cage::new`] says.
    pub(crate) fn enter(sandbox: Option<&Sandbox>, chroot: Option<&Path>) -> io::Result<Self> {
        let own = sandbox.map(|sandbox| MachineNamespaces::of_this_machine(sandbox).what_there_is(sandbox));
        let own = own.unwrap_or_default();
        if own.are_any() {
            own.make(chroot.unwrap_or(Path::new("/")))?;
        }
        Ok(own)
    }

    /// Whether other users have no number here.
    pub(crate) fn hide_users(self) -> bool {
        self.are_any() && !process::is_user(0)
    }

    fn make(self, root: &Path) -> io::Result<()> {
        self.try_to_make(root).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot make the namespaces of its sandbox: {error}"))
        })
    }

    fn try_to_make(self, root: &Path) -> io::Result<()> {
        let is_root = process::is_user(0);
        if !is_root {
            namespaces::become_sole_user()?;
        }
        if self.network {
            namespaces::leave(Namespace::Network)?;
        }
        if let Some(bytes) = self.tmp {
            make_private_directories(root, bytes)?;
        }
        if !is_root {
            // In there it has all.
            process::set_capabilities(Capabilities::NONE.and(Capabilities::SYS_ADMIN, self.processes))?;
        }
        Ok(())
    }
}

fn make_private_directories(root: &Path, bytes: u64) -> io::Result<()> {
    namespaces::leave(Namespace::Mounts)?;
    namespaces::keep_mounts()?;
    let mut any = false;
    for directory in PRIVATE_DIRECTORIES {
        any |= namespaces::cover(root, Path::new(directory), bytes)?;
    }
    let nothing = || {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("{} has no directory for temporary files", root.display()),
        )
    };
    if any { Ok(()) } else { Err(nothing()) }
}

/// Why this process cannot have a namespace, if it cannot: an errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoNamespace(i32);

impl fmt::Display for NoNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            libc::EPERM | libc::EACCES if process::is_user(0) => {
                "it takes CAP_SYS_ADMIN, which preforkd does not have here; sandbox-namespaces.conf in preforkd.systemd(7) names it"
            }
            libc::EPERM | libc::EACCES => {
                "preforkd may not make namespaces here; sandbox-namespaces.conf in preforkd.systemd(7) allows it in its unit, and \
                 the sysctls user.max_user_namespaces and kernel.unprivileged_userns_clone on the machine"
            }
            libc::ENOSPC => "there may be no more namespaces, see user.max_*_namespaces in namespaces(7)",
            libc::EINVAL | libc::ENOSYS => "this kernel has no such namespaces",
            other => return write!(f, "it cannot be made here: {}", crate::sys::error_text(other)),
        })
    }
}

/// What this process can have of what a sandbox asks for; what it does not, is not tried.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MachineNamespaces {
    pub(super) mounts: Option<NoNamespace>,
    pub(super) network: Option<NoNamespace>,
    pub(super) processes: Option<NoNamespace>,
}

impl MachineNamespaces {
    /// Has children try it: once, since the kernel takes its time to clear up after them.
    pub(super) fn of_this_machine(sandbox: &Sandbox) -> Self {
        static TRIED: [OnceLock<Option<NoNamespace>>; 3] = [const { OnceLock::new() }; 3];
        let OwnNamespaces { tmp, network, processes } = OwnNamespaces::wanted(sandbox);
        let [first, second, third] = &TRIED;
        let tried =
            |is_wanted: bool, found: &OnceLock<Option<NoNamespace>>, what: OwnNamespaces| match is_wanted {
                true => *found.get_or_init(|| try_in_child(what)),
                false => None,
            };
        let none = OwnNamespaces::default();
        MachineNamespaces {
            mounts: tried(tmp.is_some(), first, OwnNamespaces { tmp: Some(1 << 20), ..none }),
            network: tried(network, second, OwnNamespaces { network, ..none }),
            processes: tried(processes, third, OwnNamespaces { processes, ..none }),
        }
    }

    fn what_there_is(self, sandbox: &Sandbox) -> OwnNamespaces {
        let wanted = OwnNamespaces::wanted(sandbox);
        OwnNamespaces {
            tmp: wanted.tmp.filter(|_| self.mounts.is_none()),
            network: wanted.network && self.network.is_none(),
            processes: wanted.processes && self.processes.is_none(),
        }
    }
}

fn try_in_child(what: OwnNamespaces) -> Option<NoNamespace> {
    let tried = fork(move |_| {
        let made = what.try_to_make(Path::new("/")).and_then(|()| match what.processes {
            true => namespaces::leave(Namespace::Processes),
            false => Ok(()),
        });
        let errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
        made.err().map_or(0, |error| u8::try_from(errno(error)).unwrap_or(u8::MAX))
    });
    match tried.and_then(wait::wait_for) {
        Ok(Some(wait::Ended { ending: wait::Ending::Exited(0), .. })) => None,
        Ok(Some(wait::Ended { ending: wait::Ending::Exited(errno), .. })) => Some(NoNamespace(errno.into())),
        Ok(_) => Some(NoNamespace(libc::ECHILD)),
        Err(error) => Some(NoNamespace(error.raw_os_error().unwrap_or(libc::EIO))),
    }
}
