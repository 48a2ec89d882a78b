//! The forms of remote text, for the fuzz targets.

pub(crate) use crate::journal::escape::LONGEST;

use super::escape::Escaper;
use super::record::{Body, Entry};
use super::{Buffer, Level, OutputLine, native};
use crate::sys::dontfork::DontForkAlloc;

/// Bytes as they stand in a record; `newline` joins the lines of an event.
pub(crate) fn escaped(bytes: &[u8], newline: Option<&str>) -> Vec<u8> {
    let mut out = Buffer::new_in(DontForkAlloc::new());
    let mut escaper = Escaper::new(&mut out, newline);
    escaper.bytes(bytes);
    escaper.finish();
    out.to_vec()
}

/// A line of a program as journald gets it.
pub(crate) fn datagram(line: &OutputLine<'_>) -> Vec<u8> {
    let mut out = Buffer::new_in(DontForkAlloc::new());
    let entry = Entry { level: Level::Info, id: None, service: Some(line.service), body: Body::Output(line) };
    native::format(&entry, "preforkd", &mut out);
    out.to_vec()
}
