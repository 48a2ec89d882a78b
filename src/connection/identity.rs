//! Who a connection process is, where it stands, and what it may use.

use std::io;
use std::path::PathBuf;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::failure::Stage;
use crate::config::{self, Credentials, Identity, Limit};
use crate::sys::process;

/// What is set in every connection process before anything of a stranger runs.
#[derive(Debug)]
pub(crate) struct Cage {
    user: Option<Credentials>,
    chroot: Option<PathBuf>,
    directory: PathBuf,
    umask: u32,
    nice: Option<i32>,
    limits: Vec<(Resource, u64)>,
    /// The soft RLIMIT_NOFILE this worker was started with. A worker raises its own; a program that uses select(2)
    /// breaks with descriptors above 1023, so it gets the old one back.
    descriptors: Option<(u64, u64)>,
}

impl Cage {
    /// Prepares it, in a worker that has not raised its limits yet.
    pub(super) fn new(
        identity: &Identity,
        limits: &[Limit],
        restore_descriptor_limit: bool,
    ) -> io::Result<Self> {
        let own = limits.iter().any(|limit| limit.resource == config::Resource::Nofile);
        let descriptors = match restore_descriptor_limit && !own {
            true => Some(getrlimit(Resource::RLIMIT_NOFILE)?),
            false => None,
        };
        Ok(Cage {
            user: identity.user.clone(),
            chroot: identity.chroot.clone(),
            directory: identity.working_directory.clone().unwrap_or_else(|| PathBuf::from("/")),
            umask: identity.umask.unwrap_or(0o022),
            nice: identity.nice,
            limits: limits.iter().map(|limit| (resource(limit.resource), limit.value)).collect(),
            descriptors,
        })
    }

    /// Enters it, in a connection process. There is no way back.
    pub(super) fn enter(&self) -> Result<(), (Stage, io::Error)> {
        let at = |stage| move |error: io::Error| (stage, error);
        process::new_group().map_err(at(Stage::Group))?;
        process::set_umask(self.umask);
        if let Some(nice) = self.nice {
            process::set_nice(nice).map_err(at(Stage::Nice))?;
        }
        if let Some((soft, hard)) = self.descriptors {
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).map_err(|errno| (Stage::Limits, errno.into()))?;
        }
        for &(resource, value) in &self.limits {
            process::set_limit(resource, value).map_err(at(Stage::Limits))?;
        }
        if let Some(root) = &self.chroot {
            process::change_root(root).map_err(at(Stage::Root))?;
        }
        if let Some(user) = &self.user {
            process::become_user(user.uid, user.gid, &user.groups).map_err(at(Stage::User))?;
        } else {
            process::drop_capabilities();
        }
        // After the change of user: a directory that only root may enter is none to start a user's program in.
        std::env::set_current_dir(&self.directory).map_err(at(Stage::Directory))
    }
}

fn resource(name: config::Resource) -> Resource {
    match name {
        config::Resource::As => Resource::RLIMIT_AS,
        config::Resource::Core => Resource::RLIMIT_CORE,
        config::Resource::Cpu => Resource::RLIMIT_CPU,
        config::Resource::Data => Resource::RLIMIT_DATA,
        config::Resource::Fsize => Resource::RLIMIT_FSIZE,
        config::Resource::Memlock => Resource::RLIMIT_MEMLOCK,
        config::Resource::Msgqueue => Resource::RLIMIT_MSGQUEUE,
        config::Resource::Nice => Resource::RLIMIT_NICE,
        config::Resource::Nofile => Resource::RLIMIT_NOFILE,
        config::Resource::Nproc => Resource::RLIMIT_NPROC,
        config::Resource::Rtprio => Resource::RLIMIT_RTPRIO,
        config::Resource::Rttime => Resource::RLIMIT_RTTIME,
        config::Resource::Sigpending => Resource::RLIMIT_SIGPENDING,
        config::Resource::Stack => Resource::RLIMIT_STACK,
    }
}
