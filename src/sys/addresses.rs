//! What the kernel tells about the addresses of this machine: rtnetlink(7).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// The groups of rtnetlink that tell of links and of addresses.
const GROUPS: u32 = (libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR) as u32;

/// How many messages are thrown away at once; what is left is news, too.
const MESSAGES: usize = 64;

/// A socket that becomes readable when an address or an interface comes or goes. It does not block.
///
/// # Errors
///
/// `EAFNOSUPPORT` where systemd's `RestrictAddressFamilies=` forbids it.
pub(crate) fn listen() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let news = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(news.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    Ok(news)
}

/// Whether there is news; takes it. What exactly it says does not matter: whoever waits for an address tries to bind it.
pub(crate) fn take_news(news: BorrowedFd<'_>) -> bool {
    let mut buffer = [0; 4096];
    // ENOBUFS, netlink(7): so much that some was lost.
    let has_news = |_: &usize| match recv(news.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
        Ok(_) | Err(nix::errno::Errno::ENOBUFS) => true,
        Err(_) => false,
    };
    (0..MESSAGES).take_while(has_news).count() > 0
}
