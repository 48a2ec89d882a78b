//! Network interfaces: their names and their numbers, if_nametoindex(3).
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fmt;

/// The name of an interface, with room for the longest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InterfaceName([u8; libc::IFNAMSIZ]);

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = CStr::from_bytes_until_nul(&self.0).ok().and_then(|name| name.to_str().ok());
        f.write_str(name.unwrap_or("?"))
    }
}

/// The number that the interface of this name has now.
pub(crate) fn index_of(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

/// The name of the interface that has this number now.
pub(crate) fn name_of(index: u32) -> Option<InterfaceName> {
    let mut name = [0; libc::IFNAMSIZ];
    // SAFETY: the buffer is a live local of IFNAMSIZ bytes, as if_indextoname(3) wants it.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
    (!found.is_null()).then_some(InterfaceName(name))
}
