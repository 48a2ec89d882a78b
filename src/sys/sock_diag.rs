//! All TCP connections of this machine at once, as the kernel knows them: sock_diag(7).

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use super::tcp_info::TcpInfo;

/// struct nlmsghdr, struct inet_diag_req_v2 and struct inet_diag_msg of linux/netlink.h and linux/inet_diag.h.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const MESSAGE: usize = 72;
const INODE_AT: usize = 68;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_INFO: u16 = 2;

/// Established, and those of which one half has ended: `TCP_ESTABLISHED`, `TCP_FIN_WAIT1`, `TCP_FIN_WAIT2`, `TCP_CLOSE_WAIT`.
const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8;

/// As large as one answer gets: netlink_dump() of the kernel gives up to 32 KiB at once.
const BUFFER: usize = 64 * 1024;

/// What is known of each, by the inode of its socket.
///
/// # Errors
///
/// `EAFNOSUPPORT` where netlink is forbidden, `ENOENT` where the kernel has no such thing.
pub(crate) fn tcp_by_inode() -> io::Result<HashMap<u64, TcpInfo>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let link = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)?;
    let mut found = HashMap::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        sendto(link.as_raw_fd(), &request(family as u8), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = recv(link.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if !take(buffer.get(..length).unwrap_or_default(), &mut found)? {
                break;
            }
        }
    }
    Ok(found)
}

fn request(family: u8) -> Vec<u8> {
    let length = (HEADER + REQUEST) as u32;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut request = Vec::with_capacity(HEADER + REQUEST);
    request.extend(length.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, libc::IPPROTO_TCP as u8, 1 << (INET_DIAG_INFO - 1), 0]);
    request.extend(STATES.to_ne_bytes());
    request.resize(HEADER + REQUEST, 0);
    request
}

/// Takes what is in one answer; false if it was the last.
fn take(mut answer: &[u8], found: &mut HashMap<u64, TcpInfo>) -> io::Result<bool> {
    while let (Some(length), Some(kind)) = (number(answer, 0), short(answer, 4)) {
        let length = length as usize;
        let Some(message) = answer.get(HEADER..length) else { break };
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(false),
            libc::NLMSG_ERROR => {
                let code = number(message, 0).unwrap_or(0) as i32;
                return if code == 0 { Ok(false) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            _ => {}
        }
        if let (Some(inode), Some(info)) = (number(message, INODE_AT), info(message)) {
            found.insert(u64::from(inode), info);
        }
        answer = answer.get(aligned(length)..).unwrap_or_default();
    }
    Ok(true)
}

/// Its attributes follow it, each with a length and a type.
fn info(message: &[u8]) -> Option<TcpInfo> {
    let mut attributes = message.get(MESSAGE..)?;
    while let (Some(length), Some(kind)) = (short(attributes, 0), short(attributes, 2)) {
        let value = attributes.get(4..usize::from(length))?;
        if kind == INET_DIAG_INFO {
            return Some(TcpInfo::from_bytes(value));
        }
        attributes = attributes.get(aligned(usize::from(length))..)?;
    }
    None
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_connection_is_found_by_its_inode_with_what_has_moved() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            client.write_all(b"hello").unwrap();
            let inode = std::fs::metadata(format!("/proc/self/fd/{}", server.as_raw_fd())).unwrap().ino();
            assert_eq!(tcp_by_inode().unwrap()[&inode].received, 5);
        }
    }

    #[test]
    fn an_answer_that_is_cut_off_anywhere_is_no_panic() {
        let mut answer = vec![0; 200];
        for (at, value) in [(0, 200_u32), (4, 20), (88, 100), (90, 2)] {
            answer[at..at + 2].copy_from_slice(&(value as u16).to_ne_bytes());
        }
        for length in 0..answer.len() {
            let _ = take(&answer[..length], &mut HashMap::new());
        }
        for length in 0..200_u8 {
            answer[0] = length;
            answer[88] = length;
            if length >= HEADER as u8 {
                let _ = take(&answer, &mut HashMap::new());
            }
        }
    }
}
