//! What is loaded into a program that is started ahead of its connection, and what the two say to each other.
//!
//! What is in `object/` is a shared object of its own: build.rs has it compiled, and this program carries it. A worker
//! keeps it in a sealed memory file, which is named in `LD_PRELOAD`; so it need be nowhere in a chroot, and nobody can change it.
//!
//! | who | writes | when |
//! |---|---|---|
//! | the object | [`Warming::Warm`] | the program has come as far as it goes without a connection |
//! | who becomes the program | [`Warming::Unreachable`] | the object would not be loaded |
//! | the worker | the variables of the connection, with its descriptor | somebody has been let in |
//! | either | end of file | it is not there any more: the program ends, or the worker makes another |

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::exec::Image;
use super::{fd, memory, message, process, socket};

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/warm.so"));

/// Whether there is an object for this kind of machine.
pub(crate) const IS_BUILT: bool = cfg!(target_arch = "x86_64");

/// As many variables as a connection can have, and more; and as many places for them. Together they are as long as all of those can
/// be: three have a path of a Unix socket.
const ROOMS: usize = 16;
const ROOM_LENGTH: usize = 64;

/// What a warm program has as long as it has no connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scaffold {
    object: BorrowedFd<'static>,
    placeholder: BorrowedFd<'static>,
    /// The connection is to be its stderr, too.
    is_stderr: bool,
    /// Its start goes on until it asks for its connection.
    goes_on: bool,
    /// The placeholder is not of the family of each of its listeners.
    families_differ: bool,
    /// What getsockname(2) will say of every connection, as words of this machine; zeros if they differ.
    address: [u64; 4],
}

/// What a program says while it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Warming {
    /// It waits for its connection, and has used so much processor time until now. Where its start went on, it waits at this
    /// system call, or at one of 32 bits if this is negative, after so many.
    Warm { cpu: Duration, at: i32, calls: u64 },
    /// The kernel does not let it, or a filter: the errno.
    Failed(i32),
    /// The loader could not open the object: the errno.
    Unreachable(i32),
}

/// As `Tidings` in `object/main.rs` has it: what, a number, how many calls, microseconds.
const LENGTH: usize = 24;
const WARM: u32 = 1;
const FAILED: u32 = 2;
/// Said by this program, before it has become the other.
const UNREACHABLE: u32 = 3;

impl Scaffold {
    /// For connections of these listeners.
    ///
    /// # Errors
    ///
    /// A descriptor cannot be had; there is no listener.
    pub(crate) fn new(listeners: &[BorrowedFd<'_>], is_stderr: bool, goes_on: bool) -> io::Result<Self> {
        let first = listeners.first().ok_or(io::ErrorKind::NotFound)?;
        let placeholder = socket::unconnected_like(*first)?;
        // Not only from the first: systemd may pass a listener of MPTCP.
        let is_other = |listener: &BorrowedFd<'_>| !socket::is_of_kind(*listener, placeholder.as_fd());
        let families_differ = listeners.iter().any(is_other);
        let only = Some(*first).filter(|_| listeners.len() == 1);
        let address = only.and_then(socket::address_of_all).unwrap_or_default();
        let object = memory::sealed(c"preforkd-warm", OBJECT)?;
        Ok(Scaffold {
            object: fd::for_ever(object),
            placeholder: fd::for_ever(placeholder),
            is_stderr,
            goes_on,
            families_differ,
            address,
        })
    }

    /// What stands where the connection will.
    pub(crate) fn placeholder(&self) -> BorrowedFd<'static> {
        self.placeholder
    }

    /// Whether the loader will be able to open the object.
    fn may_be_loaded(&self, link: BorrowedFd<'_>) -> io::Result<()> {
        let own = [self.object, link].map(|own| u64::try_from(own.as_raw_fd()).unwrap_or_default());
        match fd::open_again(self.object) {
            // What this process has open, and the program will not, may be in the way.
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                let (limit, _) = process::descriptor_limits()?;
                if (3..limit).all(|number| own.contains(&number)) {
                    return Err(error);
                }
                fd::is_found_again(self.object)
            }
            opened => opened.map(drop),
        }
    }

    /// In the process that becomes the program: does so, with the object in it, which will listen at `link`. It comes back
    /// only if that fails.
    pub(crate) fn exec(&self, image: &mut Image, link: BorrowedFd<'_>) -> io::Error {
        image.clear();
        let object = self.object.as_raw_fd();
        // What the loader cannot load it does without, ld.so(8), and the program would run with nobody.
        if let Err(error) = self.may_be_loaded(link) {
            let errno = error.raw_os_error().unwrap_or_default();
            let tidings = [UNREACHABLE, errno as u32, 0, 0, 0, 0].map(u32::to_ne_bytes);
            // If it cannot be said there is nobody who waits for it.
            let _ = message::send(link, tidings.as_flattened());
            return error;
        }
        image.set("LD_PRELOAD", format_args!("/proc/self/fd/{object}"));
        // As `Orientation` in `object/main.rs` has it: no calls yet, a bit for each place of the connection, and its address.
        let places = if self.is_stderr { 0b111 } else { 0b11 };
        let flags = u8::from(self.goes_on) | u8::from(self.families_differ) << 3;
        let [first, second, third, fourth] = self.address;
        image.set(
            "PREFORKD_WARM",
            format_args!(
                "{},{object},{flags},0,{places},0,0,0,{first},{second},{third},{fourth}",
                link.as_raw_fd()
            ),
        );
        // The kernel puts the strings one behind the other, and the object what is said of the connection where these were.
        let room = ROOM_LENGTH - "PREFORKD_ROOM=\0".len();
        for _ in 0..if self.goes_on { 0 } else { ROOMS } {
            image.set("PREFORKD_ROOM", format_args!("{:room$}", ""));
        }
        image.finish();
        image.exec_with(&[self.object, link])
    }
}

/// A link to a program that is about to be started: the worker's end, which does not wait, and the program's.
pub(crate) fn link() -> io::Result<(OwnedFd, OwnedFd)> {
    let (own, theirs) = message::pair()?;
    fd::set_nonblocking(theirs.as_fd(), false)?;
    Ok((own, theirs))
}

/// What the program has said. It stands in the program, which may have said anything.
///
/// # Errors
///
/// `WouldBlock` if it has said nothing yet; `UnexpectedEof` if it never will; `InvalidData`.
pub(crate) fn hear(link: BorrowedFd<'_>) -> io::Result<Warming> {
    let mut message = [0; LENGTH];
    let length = message::receive(link, &mut message)?;
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // It is for this machine, whose bytes are in this order.
    let long = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let [kind, detail, calls, more_calls, micros, more_micros] = words(&message);
    let (at, calls, micros) = (detail as i32, long(calls, more_calls), long(micros, more_micros));
    match kind {
        WARM if length == LENGTH => Ok(Warming::Warm { cpu: Duration::from_micros(micros), at, calls }),
        FAILED if length == LENGTH => Ok(Warming::Failed(at)),
        UNREACHABLE if length == LENGTH => Ok(Warming::Unreachable(at)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn words(message: &[u8; LENGTH]) -> [u32; LENGTH / 4] {
    let mut words = [0; LENGTH / 4];
    for (word, bytes) in words.iter_mut().zip(message.chunks_exact(4)) {
        *word = bytes.try_into().map_or(0, u32::from_ne_bytes);
    }
    words
}

/// Gives the program its connection, with what its environment is to say of it.
///
/// # Errors
///
/// That the program is no more.
pub(crate) fn give(link: BorrowedFd<'_>, variables: &[u8], connection: BorrowedFd<'_>) -> io::Result<()> {
    // Where nothing is said of it, there is still a message.
    message::send_copy(link, if variables.is_empty() { &[0] } else { variables }, connection)
}
