//! Who may ask what. It is decided for each call, by who the kernel says has connected and by the configuration in force.

use std::os::fd::{AsFd, BorrowedFd};

use super::error::{ControlError, Right};
use super::request::Request;
use crate::config::ControlAccess;
use crate::sys::{process, socket};

/// Who is at the other end, as it was when it connected.
#[derive(Debug)]
pub(super) struct ControlPeer {
    /// `None` if the kernel does not say.
    pub(super) uid: Option<u32>,
    gid: u32,
    /// It is root, or the user of this process.
    pub(super) is_master: bool,
    /// This process serves connections by it, or it was started by such a process.
    pub(super) is_served_here: bool,
}

/// A process can have so many groups and one more, credentials(7).
const MOST_GROUPS: usize = 65_536;

impl ControlPeer {
    pub(super) fn of(stream: impl AsFd) -> Self {
        let socket = stream.as_fd();
        let Ok(peer) = socket::peer_credentials(socket) else {
            return ControlPeer { uid: None, gid: u32::MAX, is_master: false, is_served_here: true };
        };
        let is_served_here = if peer.uid == 0 && !process::is_user(0) {
            // One of this process's would have its user.
            false
        } else if peer.pid == 0 {
            // Outside this process's namespace, which is above it.
            false
        } else {
            // One that is gone already may have been any. Were it root's, it would have had other ways.
            process::is_descendant(peer.pid).unwrap_or(peer.uid != 0 || !process::is_user(0))
        };
        let is_master = peer.uid == 0 || process::is_user(peer.uid);
        ControlPeer { uid: Some(peer.uid), gid: peer.gid, is_master, is_served_here }
    }

    /// Whether it may ask this by its `socket`.
    pub(super) fn may(
        &self,
        request: &Request,
        access: &ControlAccess,
        socket: impl AsFd,
    ) -> Result<(), ControlError> {
        let Some(needs) = request.needs() else { return Ok(()) };
        let Some(uid) = self.uid else { return Err(ControlError::PermissionDenied) };
        let is_owner = access.user.as_ref().is_some_and(|user| user.id == uid);
        if !self.is_master && !is_owner && !self.has_group(needs, access, socket.as_fd()) {
            return Err(ControlError::not_permitted(needs, uid, access));
        }
        if self.is_served_here && *request != Request::Status {
            let reason = "a connection process may ask for the status, and for nothing else".to_owned();
            return Err(ControlError::NotPermitted { needs, group: None, reason });
        }
        Ok(())
    }

    /// Whether it has a group that gives this right. Its groups are asked for only where that matters.
    fn has_group(&self, needs: Right, access: &ControlAccess, socket: BorrowedFd<'_>) -> bool {
        let look = access.look.as_ref().filter(|_| needs == Right::Look);
        let wanted: Vec<u32> = look.into_iter().chain(&access.act).map(|group| group.id).collect();
        let is_wanted = |group: &u32| wanted.contains(group);
        is_wanted(&self.gid) || !wanted.is_empty() && groups_of(socket).iter().any(is_wanted)
    }
}

fn groups_of(socket: BorrowedFd<'_>) -> Vec<u32> {
    let mut few = [0; 64];
    match socket::peer_groups(socket, &mut few) {
        Ok(groups) => groups.to_vec(),
        Err(_) => {
            let mut many = vec![0; MOST_GROUPS];
            socket::peer_groups(socket, &mut many).map(<[u32]>::to_vec).unwrap_or_default()
        }
    }
}

impl ControlError {
    /// Who asks is told what he would have to be.
    fn not_permitted(needs: Right, uid: u32, access: &ControlAccess) -> Self {
        let groups = match needs {
            Right::Look => [&access.look, &access.act],
            Right::Act => [&access.act, &None],
        };
        let mut names: Vec<&str> = groups.into_iter().flatten().map(|group| group.name.as_str()).collect();
        names.dedup();
        let user = access.user.as_ref().map(|user| format!(", user {}", user.name)).unwrap_or_default();
        let group = names.first().map(|name| (*name).to_owned());
        let of_groups = match names.as_slice() {
            [] => "; control_access names no group that may".to_owned(),
            names => format!(", and whoever is in group {}", names.join(" or ")),
        };
        let what = match needs {
            Right::Look => "see what preforkd does",
            Right::Act => "tell preforkd what to do",
        };
        let reason =
            format!("uid {uid} may not {what}; root may, the user that preforkd runs as{user}{of_groups}");
        ControlError::NotPermitted { needs, group, reason }
    }
}
