//! Who has an address: what /proc tells about the process that listens on it.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr};

use crate::config::Address;
use crate::sys::tcp_table::{self, TcpSocket, TcpState};

/// The program and pid of who listens on `address`; `None` where /proc does not tell, as for other users' processes.
pub(crate) fn of(address: &Address) -> Option<String> {
    let inode = match address {
        Address::Tcp(address) => tcp_inode(*address)?,
        Address::Scoped(ip, _, port) => tcp_inode((*ip, *port).into())?,
        Address::Any(port) => tcp_inode((Ipv6Addr::UNSPECIFIED, *port).into())?,
        Address::Udp(address) => tcp_table::find_udp(|held| conflicts(held, *address))?,
        Address::Unix(path) => unix_inode(path.to_str()?)?,
        Address::Abstract(name) => unix_inode(&format!("@{name}"))?,
        Address::Activated(_) => return None,
    };
    let link = format!("socket:[{inode}]");
    let (pid, name) = processes().find(|(pid, _)| holds(*pid, &link))?;
    Some(format!("{name} (pid {pid})"))
}

/// The inode of a listening TCP socket that stands in the way of `wanted`.
fn tcp_inode(wanted: SocketAddr) -> Option<u64> {
    let is_in_the_way =
        |socket: &TcpSocket| socket.state == TcpState::Listens && conflicts(socket.local, wanted);
    tcp_table::find(is_in_the_way).ok()?.map(|socket| socket.inode)
}

fn conflicts(held: SocketAddr, wanted: SocketAddr) -> bool {
    let same_ip = held.ip() == wanted.ip() || held.ip().is_unspecified() || wanted.ip().is_unspecified();
    held.port() == wanted.port() && same_ip
}

/// The inode of the Unix socket that is bound to this path, or to the name after an `@`.
fn unix_inode(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/net/unix").ok()?;
    // Of its seven other fields none has a space.
    let inode = |line: &str| {
        let (start, end) = line.split_at_checked(line.len().checked_sub(name.len())?)?;
        let fields: Vec<_> = start.split_ascii_whitespace().collect();
        let is_it = end == name && start.ends_with(' ') && fields.len() == 7;
        is_it.then(|| fields.last()?.parse().ok())?
    };
    text.lines().find_map(inode)
}

/// Every process, with the name of its program.
fn processes() -> impl Iterator<Item = (u32, String)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some((pid, name.trim_end().to_owned()))
    })
}

fn holds(pid: u32, link: &str) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| target.as_os_str() == link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn finds_this_very_process() {
        for ip in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(ip).unwrap();
            let holder = of(&Address::Tcp(listener.local_addr().unwrap())).unwrap();
            assert!(holder.ends_with(&format!("(pid {})", std::process::id())), "{holder}");
        }
    }
}
