//! The worker's end of the link to its supervisor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::ipc::orders::{self, Heard, Order, WorkerReport};

/// The link, and what need not be said over it again.
#[derive(Debug)]
pub(super) struct Link {
    /// `None` when the supervisor is gone.
    socket: Option<OwnedFd>,
    reported_retired: bool,
    reported_renewal: bool,
}

impl Link {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Link { socket: Some(socket), reported_retired: false, reported_renewal: false }
    }

    /// To be watched.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn hear(&self) -> Heard<Order> {
        self.descriptor().map_or(Heard::Silence, orders::hear)
    }

    /// Nobody is at the other end any more.
    pub(super) fn close(&mut self) {
        self.socket = None;
    }

    pub(super) fn report(&self, report: &WorkerReport) {
        // A supervisor that is gone is noticed by the end of the link.
        let _ = self.try_report(report);
    }

    /// The same, for what must be said.
    pub(super) fn try_report(&self, report: &WorkerReport) -> io::Result<()> {
        self.descriptor().map_or(Ok(()), |link| orders::tell(link, report))
    }

    /// Reports what the supervisor has to know once.
    pub(super) fn report_once(&mut self, report: &WorkerReport) {
        let reported = match report {
            WorkerReport::Retired => &mut self.reported_retired,
            WorkerReport::NeedsRenewal => &mut self.reported_renewal,
            _ => return self.report(report),
        };
        if !std::mem::replace(reported, true) {
            self.report(report);
        }
    }

    /// [`WorkerReport::Retired`] is to be said again.
    pub(super) fn has_more_to_retire(&mut self) {
        self.reported_retired = false;
    }
}
