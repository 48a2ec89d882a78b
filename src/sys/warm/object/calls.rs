//! Which system calls a program may make before it has its connection.
//!
//! This is a list of what is allowed: what is private to the process, and touches neither the placeholders nor anybody else. All
//! else stops it, and so does what is not known here. So a kernel that knows more than this list costs time, and never sense.
//!
//! The placeholders are followed: wherever the program has copied them, the connection will be.

use core::ffi::c_int;

use crate::kernel::{EBADF, EEXIST, EFAULT, ENOENT, ENOTDIR, RLIMIT_NOFILE, call, exit, is_readable, number};
use crate::{MOST_DESCRIPTORS as MOST, NO_ADDRESS, Orientation, SocketAddress};

/// What becomes of a call.
pub(crate) enum Ruling {
    /// It is made.
    Pass,
    /// It is not made, or has been: its result.
    Answer(i64),
    /// The program waits here for its connection.
    Stop,
}

use Ruling::{Answer, Pass, Stop};

const AT_FDCWD: u64 = -100i64 as u64;
const FD_CLOEXEC: i64 = 1;
const O_CLOEXEC: u64 = 0o2000000;
const F_SETFD: u64 = 2;

/// Where a placeholder was, and with which flags the connection is to be there.
pub(crate) struct FreedPlace {
    place: u64,
    flags: u64,
}

/// The descriptors of the program that are not what they will be.
pub(crate) struct ProgramFiles {
    /// This object's own, which are none for the program, the lower one first.
    own: [c_int; 2],
    /// Where the connection is to be, a bit each.
    placeholders: [u64; MOST / 64],
    /// Whether the connection may be of another family than these.
    families_differ: bool,
    /// The address of its own that every connection has.
    address: SocketAddress,
}

impl ProgramFiles {
    pub(crate) const NONE: ProgramFiles =
        ProgramFiles { own: [-1; 2], placeholders: [0; MOST / 64], families_differ: false, address: NO_ADDRESS };

    pub(crate) fn new(told: &Orientation) -> Self {
        let own = [told.link.min(told.object), told.link.max(told.object)];
        let families_differ = told.flags & Orientation::FAMILIES_DIFFER != 0;
        ProgramFiles { own, placeholders: told.places, families_differ, address: told.address }
    }

    /// Closes a placeholder: the program may have all descriptors that it is allowed, and the connection comes as one more.
    pub(crate) fn make_room(&self) -> FreedPlace {
        let Some(place) = self.places().next() else { return FreedPlace { place: u64::MAX, flags: 0 } };
        let room = FreedPlace { place, flags: flags_of(place) };
        call(number::CLOSE, [place, 0, 0, 0, 0, 0]);
        room
    }

    /// Puts the connection wherever a placeholder is, or was where there is room now, and closes what is this object's.
    pub(crate) fn put(&self, connection: c_int, room: FreedPlace) {
        let connection = connection as u64;
        for place in self.places() {
            let flags = if place == room.place { room.flags } else { flags_of(place) };
            if (connection as i64) < 0 {
                // It cannot serve who is not there.
                exit(71);
            } else if place != connection {
                call(number::DUP3, [connection, place, flags, 0, 0, 0]);
            } else if flags == 0 {
                // It has come with the other.
                call(number::FCNTL, [connection, F_SETFD, 0, 0, 0, 0]);
            }
        }
        if !self.is_placeholder(connection) {
            call(number::CLOSE, [connection, 0, 0, 0, 0, 0]);
        }
        for descriptor in self.own {
            call(number::CLOSE, [descriptor as u64, 0, 0, 0, 0, 0]);
        }
    }

    /// Where the connection is to be when the program has become another.
    pub(crate) fn after_exec(&self) -> [u64; MOST / 64] {
        let mut files = ProgramFiles { ..*self };
        self.places().filter(|place| flags_of(*place) == O_CLOEXEC).for_each(|place| files.mark(place, false));
        files.placeholders
    }

    fn places(&self) -> impl Iterator<Item = u64> {
        (0..MOST as u64).filter(|place| self.is_placeholder(*place))
    }

    fn is_placeholder(&self, descriptor: u64) -> bool {
        let number = descriptor as u32 as usize;
        self.placeholders.get(number / 64).is_some_and(|word| word & 1 << (number % 64) != 0)
    }

    fn mark(&mut self, descriptor: u64, is_placeholder: bool) {
        let number = descriptor as u32 as usize;
        if let Some(word) = self.placeholders.get_mut(number / 64) {
            *word = *word & !(1 << (number % 64)) | u64::from(is_placeholder) << (number % 64);
        }
    }

    fn is_own(&self, descriptor: u64) -> bool {
        self.own.contains(&(descriptor as c_int))
    }

    /// What others see, or will: the connection, and stderr, which is somebody's.
    fn is_shared(&self, descriptor: u64) -> bool {
        self.is_placeholder(descriptor) || descriptor as c_int == 2
    }

    /// Of a call that only concerns what the program has opened itself.
    fn on_its_own(&self, descriptor: u64) -> Ruling {
        match () {
            () if self.is_own(descriptor) => Answer(EBADF),
            () if self.is_shared(descriptor) => Stop,
            () => Pass,
        }
    }

    /// Of a call that tells of a placeholder what it would of the connection.
    fn on_any(&self, descriptor: u64) -> Ruling {
        if self.is_own(descriptor) { Answer(EBADF) } else { Pass }
    }

    /// Of a call that tells of a placeholder of which family it is.
    fn on_any_of_its_family(&self, descriptor: u64) -> Ruling {
        if self.families_differ { self.on_its_own(descriptor) } else { self.on_any(descriptor) }
    }

    /// What becomes of this call.
    pub(crate) fn judge(&mut self, number: i64, arguments: [u64; 6]) -> Ruling {
        let [first, second, third, fourth, fifth, sixth] = arguments;
        match number {
            // Memory: brk, mprotect, munmap, mremap, mincore, madvise, mlock, munlock, mlockall, munlockall, mlock2, pkey_*.
            10 | 11 | 12 | 25 | 27 | 28 | 149 | 150 | 151 | 152 | 325 | 329 | 330 | 331 => Pass,
            // mmap. What is mapped shared was opened to be read, or is the program's own.
            9 if fourth & 0x20 != 0 => Pass,
            9 => self.on_its_own(fifth),
            // Who and where it is: getpid, getuid, getgid, geteuid, getegid, getppid, getpgrp, getgroups, getresuid, getresgid,
            // getpgid, getsid, capget, gettid, uname, getcwd.
            39 | 102 | 104 | 107 | 108 | 110 | 111 | 115 | 118 | 120 | 121 | 124 | 125 | 186 | 63 | 79 => Pass,
            // chdir, fchdir, umask; setgroups, by which nobody else knows a process: sshd begins with it.
            80 | 81 | 95 | 116 => Pass,
            // Clocks and limits: gettimeofday, getrlimit, getrusage, sysinfo, times, getpriority, time, sched_getaffinity,
            // clock_gettime, clock_getres, getcpu, getitimer, sched_getparam, sched_getscheduler, sched_yield.
            96 | 97 | 98 | 99 | 100 | 140 | 201 | 204 | 228 | 229 | 309 | 36 | 143 | 145 | 24 => Pass,
            // setrlimit, prlimit64 of itself. With fewer descriptors the connection might have no room.
            160 if first != RLIMIT_NOFILE => Pass,
            302 if first == 0 && (second != RLIMIT_NOFILE || third == 0) => Pass,
            // getrandom, arch_prctl, set_tid_address, set_robust_list, get_robust_list, rseq, rt_sigpending, membarrier, wait4
            // (there is no child).
            318 | 158 | 218 | 273 | 274 | 334 | 127 | 324 | 61 => Pass,
            // futex, but those that processes share.
            202 if second & 128 != 0 => Pass,
            number::PRCTL => prctl(first, second),
            // ProgramFiles by name: stat, lstat, access, readlink, getxattr, lgetxattr, listxattr, llistxattr, statfs, newfstatat,
            // readlinkat, faccessat, statx, faccessat2.
            4 | 6 | 21 | 89 | 191 | 192 | 194 | 195 | 137 | number::NEWFSTATAT | 267 | 269 | 332 | 439 => Pass,
            2 => open(AT_FDCWD, first, second),
            number::OPENAT => open(first, second, third),
            // fstat, flistxattr, fstatfs, lseek, fadvise64: of a socket they tell the same without its client.
            5 | 196 | 138 | 8 | 221 => self.on_any(first),
            // Of a socket it may be `system.sockprotoname`.
            number::FGETXATTR => self.on_any_of_its_family(first),
            // read, pread64, readv, preadv, getdents, getdents64, readahead.
            0 | 17 | 19 | 295 | 78 | 217 | 187 => self.on_its_own(first),
            number::CLOSE => self.close(first),
            number::CLOSE_RANGE => self.close_range(first, second, third),
            // dup, dup2, dup3.
            32 => self.copy(number, arguments),
            number::DUP2 | number::DUP3 => self.copy_to(number, arguments),
            number::FCNTL => self.fcntl(arguments),
            16 => self.ioctl(first, second),
            // What nobody else has: pipe, pipe2, socketpair, eventfd, eventfd2, epoll_create, epoll_create1, signalfd4,
            // timerfd_create, memfd_create, socket, inotify_init1; timer_create, _gettime, _getoverrun and _delete, of which none is
            // set: a time begins with the client.
            22 | 293 | 53 | 284 | 290 | 213 | 291 | 289 | 283 | 319 | 41 | 294 | 222 | 224 | 225 | 226 => Pass,
            // epoll_ctl.
            233 => self.on_its_own(third),
            // epoll_wait, epoll_pwait that do not wait, and leave signals as they are. No placeholder is in a set.
            232 if fourth as u32 == 0 => self.on_any(first),
            281 if fourth as u32 == 0 && fifth == 0 => self.on_any(first),
            // alarm that ends one, and of which none is set.
            37 if first as u32 == 0 => Pass,
            number::POLL if third as u32 == 0 => self.poll(number, arguments),
            number::PPOLL if is_no_time(third) && fourth == 0 => self.poll(number, arguments),
            // mkdir, mkdirat.
            83 => make_directory(AT_FDCWD, first),
            258 => make_directory(first, second),
            number::GETSOCKNAME => self.getsockname(arguments),
            // setsockopt.
            54 => self.on_its_own(first),
            number::GETSOCKOPT => self.getsockopt(first, second, third),
            42 => self.connect(first, second, third),
            // bind, but for news and under no name of its own; recvfrom, recvmsg, sendto.
            49 if self.is_for_questions(first) && is_nobody(second, third) => Pass,
            45 | 47 if self.is_for_questions(first) => Pass,
            44 if self.is_for_questions(first) && is_question(second, third) && (fifth == 0 || is_nobody(fifth, sixth)) => Pass,
            _ => Stop,
        }
    }

    fn close(&mut self, descriptor: u64) -> Ruling {
        if self.is_own(descriptor) {
            return Answer(EBADF);
        }
        let result = call(number::CLOSE, [descriptor, 0, 0, 0, 0, 0]);
        self.mark(descriptor, false);
        Answer(result)
    }

    /// Of all but its own.
    fn close_range(&mut self, first: u64, last: u64, flags: u64) -> Ruling {
        const CLOSE_RANGE_CLOEXEC: u64 = 4;
        let (first, last) = (first as u32, last as u32);
        if flags & !CLOSE_RANGE_CLOEXEC != 0 || first > last {
            return Stop;
        }
        let close = |first: u32, last: u32| {
            call(number::CLOSE_RANGE, [u64::from(first), u64::from(last), flags, 0, 0, 0])
        };
        let (mut result, mut from) = (0, u64::from(first));
        // Between its own, and beyond.
        for end in self.own.map(|own| u64::from(own as u32)).into_iter().chain([u64::from(last) + 1]) {
            let end = end.min(u64::from(last) + 1);
            if from < end {
                result = result.min(close(from as u32, end as u32 - 1));
            }
            from = from.max(end + 1);
        }
        if flags == 0 && result == 0 {
            for descriptor in first..=last.min(MOST as u32 - 1) {
                self.mark(u64::from(descriptor), false);
            }
        }
        Answer(result)
    }

    /// dup(2) and fcntl(2): the kernel chooses where the copy is.
    fn copy(&mut self, number: i64, arguments: [u64; 6]) -> Ruling {
        if self.is_own(arguments[0]) {
            return Answer(EBADF);
        }
        let result = call(number, arguments);
        if result < 0 || !self.is_placeholder(arguments[0]) {
            return Answer(result);
        }
        if result as usize >= MOST {
            // It cannot be followed: the program makes it when it has its connection.
            call(number::CLOSE, [result as u64, 0, 0, 0, 0, 0]);
            return Stop;
        }
        self.mark(result as u64, true);
        Answer(result)
    }

    fn copy_to(&mut self, number: i64, arguments: [u64; 6]) -> Ruling {
        let [from, to, ..] = arguments;
        if self.is_own(from) {
            return Answer(EBADF);
        }
        let is_placeholder = self.is_placeholder(from);
        if self.is_own(to) || is_placeholder && to as u32 as usize >= MOST {
            return Stop;
        }
        let result = call(number, arguments);
        if result >= 0 {
            self.mark(to, is_placeholder);
        }
        Answer(result)
    }

    fn fcntl(&mut self, arguments: [u64; 6]) -> Ruling {
        let [descriptor, command, ..] = arguments;
        match command as c_int {
            // F_DUPFD, F_DUPFD_CLOEXEC.
            0 | 1030 => self.copy(number::FCNTL, arguments),
            // F_GETFD, F_SETFD, F_GETFL, F_GETPIPE_SZ, F_GET_SEALS.
            1 | 2 | 3 | 1032 | 1034 => self.on_any(descriptor),
            // F_SETFL. gawk has its stderr append, which changes nothing for who reads a pipe, and takes nothing from a file.
            4 if descriptor as c_int == 2 && !self.is_placeholder(2) && only_appends(arguments) => Pass,
            4 => self.on_its_own(descriptor),
            _ => Stop,
        }
    }

    fn ioctl(&self, descriptor: u64, request: u64) -> Ruling {
        match request as u32 {
            // TCGETS, TCGETS2, TIOCGPGRP, TIOCGWINSZ: none is a terminal. FIONCLEX, FIOCLEX.
            0x5401 | 0x802c_542a | 0x540f | 0x5413 | 0x5450 | 0x5451 => self.on_any(descriptor),
            // FIONREAD, FIONBIO.
            0x541b | 0x5421 => self.on_its_own(descriptor),
            _ => Stop,
        }
    }

    /// poll(2) that asks for nothing but whether these are open, as a program of Rust does first of all.
    fn poll(&self, number: i64, arguments: [u64; 6]) -> Ruling {
        const MOST_ASKED: u64 = 64;
        const POLLNVAL: u16 = 0x20;
        let [place, count, ..] = arguments;
        if !(1..=MOST_ASKED).contains(&count) || !is_readable(place, 8 * count) {
            return Stop;
        }
        let entries = (place as *mut u64).cast::<PollEntry>();
        let at = |entry: u64| entries.wrapping_add(entry as usize);
        // SAFETY: so many bytes can be read there.
        if (0..count).any(|entry| unsafe { at(entry).read_unaligned() }.asked != 0) {
            return Stop;
        }
        let mut result = call(number, arguments);
        if result < 0 {
            return Answer(result);
        }
        for entry in 0..count {
            // SAFETY: the kernel has just read and written it.
            let mut asked = unsafe { at(entry).read_unaligned() };
            let descriptor = asked.descriptor as u64;
            let found = match () {
                () if asked.descriptor < 0 => continue,
                () if self.is_own(descriptor) => POLLNVAL,
                // It is connected to nobody, which the connection will not be.
                () if self.is_placeholder(descriptor) => 0,
                () => continue,
            };
            let before = core::mem::replace(&mut asked.found, found);
            result += i64::from(found != 0) - i64::from(before != 0);
            // SAFETY: as above.
            unsafe { at(entry).write_unaligned(asked) };
        }
        Answer(result)
    }

    /// getsockname(2). Where the listener has one address, so has each of its connections.
    fn getsockname(&self, arguments: [u64; 6]) -> Ruling {
        let [descriptor, place, length_at, ..] = arguments;
        let known = match self.address[0] as u16 {
            INET => 16,
            INET6 => 28,
            _ => return self.on_its_own(descriptor),
        };
        // Each of its four bytes is in one of two words, which no page divides.
        let words = [length_at & !7, length_at.wrapping_add(3) & !7];
        if !self.is_placeholder(descriptor) || !words.iter().all(|word| is_readable(*word, 8)) {
            return self.on_its_own(descriptor);
        }
        // SAFETY: it can be read there.
        let room = unsafe { (length_at as *const c_int).read_unaligned() };
        // The placeholder has an address of the same length.
        let result = call(number::GETSOCKNAME, arguments);
        if result == 0 {
            let length = known.min(usize::try_from(room).unwrap_or_default());
            // SAFETY: the kernel has just written so many bytes there.
            unsafe { core::ptr::copy_nonoverlapping(self.address.as_ptr().cast(), place as *mut u8, length) };
        }
        Answer(result)
    }

    fn getsockopt(&self, descriptor: u64, level: u64, option: u64) -> Ruling {
        // At SOL_SOCKET: SO_TYPE, SO_ACCEPTCONN, which the placeholder has of any connection; SO_PROTOCOL, SO_DOMAIN.
        match (level, option) {
            (1, 3 | 30) => self.on_any(descriptor),
            (1, 38 | 39) => self.on_any_of_its_family(descriptor),
            _ => self.on_its_own(descriptor),
        }
    }

    /// Whether this is a socket of the program's own by which it asks the kernel for addresses and routes, as getaddrinfo(3) does: of
    /// rtnetlink(7).
    fn is_for_questions(&self, descriptor: u64) -> bool {
        const NETLINK: u32 = 16;
        const ROUTE: u32 = 0;
        !self.is_own(descriptor)
            && !self.is_shared(descriptor)
            && socket_option(descriptor, SO_DOMAIN) == Some(NETLINK)
            && socket_option(descriptor, SO_PROTOCOL) == Some(ROUTE)
    }

    /// connect(2): of datagrams, which tells nobody, and of what libc asks for names and writes its log to.
    fn connect(&self, descriptor: u64, address: u64, length: u64) -> Ruling {
        const UNIX: u16 = 1;
        // AF_UNSPEC takes it back.
        const INTERNET: [u16; 3] = [0, INET, INET6];
        const KNOWN: [&[u8]; 3] = [b"/var/run/nscd/socket", b"/run/nscd/socket", b"/dev/log"];
        // The longest is that of a Unix socket.
        let is_usual = (8..=110).contains(&length) && is_readable(address, length);
        if !is_usual || self.is_own(descriptor) || self.is_shared(descriptor) {
            return Stop;
        }
        // SAFETY: so many bytes can be read there.
        let address = unsafe { core::slice::from_raw_parts(address as *const u8, length as usize) };
        let (Some(family), Some(name)) = (address.first_chunk(), address.get(2..)) else { return Stop };
        match u16::from_ne_bytes(*family) {
            UNIX => {
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                if KNOWN.contains(&name) { Pass } else { Stop }
            }
            family if INTERNET.contains(&family) && is_datagram(descriptor) => Pass,
            _ => Stop,
        }
    }
}

/// struct pollfd, poll(2).
#[repr(C)]
#[derive(Clone, Copy)]
struct PollEntry {
    descriptor: c_int,
    asked: u16,
    found: u16,
}

/// Families of addresses, socket(2).
const INET: u16 = 2;
const INET6: u16 = 10;

/// Whether this timespec(3) is none.
fn is_no_time(at: u64) -> bool {
    // SAFETY: so many bytes can be read there.
    is_readable(at, 16) && unsafe { (at as *const [u64; 2]).read_unaligned() } == [0, 0]
}

/// mkdir(2) of what there is, as of a cache, changes nothing.
fn make_directory(directory: u64, path: u64) -> Ruling {
    match status_of(directory, path, AT_SYMLINK_NOFOLLOW) {
        Ok(_) => Answer(EEXIST),
        Err(EFAULT) => Answer(EFAULT),
        Err(_) => Stop,
    }
}

/// As dup3(2) takes them.
fn flags_of(descriptor: u64) -> u64 {
    const F_GETFD: u64 = 1;
    let flags = call(number::FCNTL, [descriptor, F_GETFD, 0, 0, 0, 0]);
    if flags & FD_CLOEXEC != 0 { O_CLOEXEC } else { 0 }
}

/// Whether F_SETFL changes O_APPEND alone, of O_APPEND, O_NONBLOCK, O_ASYNC, O_DIRECT and O_NOATIME, which it can.
fn only_appends([descriptor, _, wanted, ..]: [u64; 6]) -> bool {
    const F_GETFL: u64 = 3;
    let flags = call(number::FCNTL, [descriptor, F_GETFL, 0, 0, 0, 0]);
    flags >= 0 && (flags as u64 ^ wanted) & (0o4000 | 0o20000 | 0o40000 | 0o1000000) == 0
}

/// Options at SOL_SOCKET, socket(7).
const SO_TYPE: u64 = 3;
const SO_PROTOCOL: u64 = 38;
const SO_DOMAIN: u64 = 39;

fn socket_option(descriptor: u64, option: u64) -> Option<u32> {
    const SOL_SOCKET: u64 = 1;
    let (mut value, mut length) = (0u32, 4u32);
    let (at, length_at) = (&raw mut value as u64, &raw mut length as u64);
    (call(number::GETSOCKOPT, [descriptor, SOL_SOCKET, option, at, length_at, 0]) == 0).then_some(value)
}

fn is_datagram(descriptor: u64) -> bool {
    const SOCK_DGRAM: u32 = 2;
    socket_option(descriptor, SO_TYPE) == Some(SOCK_DGRAM)
}

/// Whether this is one message of rtnetlink(7), and changes nothing: of each four of its kinds the third asks.
fn is_question(at: u64, length: u64) -> bool {
    const FIRST: u16 = 16;
    if !(16..=4096).contains(&length) || !is_readable(at, length) {
        return false;
    }
    // SAFETY: so many bytes can be read there. Of its length and kind, netlink(7), the kernel reads the same: nobody else runs in here.
    let (whole, kind) = unsafe {
        ((at as *const u32).read_unaligned(), (at as *const u16).wrapping_add(2).read_unaligned())
    };
    u64::from(whole) == length && kind >= FIRST && kind & 3 == 2
}

/// Whether this is an address of netlink(7) that names no process and no group: of a receiver, the kernel.
fn is_nobody(at: u64, length: u64) -> bool {
    if length != 12 || !is_readable(at, length) {
        return false;
    }
    // SAFETY: so many bytes can be read there.
    let [_, process, groups] = unsafe { (at as *const [u32; 3]).read_unaligned() };
    process == 0 && groups == 0
}

fn prctl(option: u64, second: u64) -> Ruling {
    match option {
        // What asks: GET_PDEATHSIG, GET_DUMPABLE, GET_KEEPCAPS, GET_NAME, GET_SECCOMP, CAPBSET_READ, GET_TSC,
        // GET_SECUREBITS, GET_NO_NEW_PRIVS, GET_THP_DISABLE. SET_PDEATHSIG, SET_DUMPABLE, SET_NAME, SET_THP_DISABLE, SET_VMA.
        1 | 2 | 3 | 7 | 16 | 21 | 23 | 25 | 27 | 39 | 42 | 4 | 15 | 41 | 0x5356_4d41 => Pass,
        // CAP_AMBIENT, IS_SET.
        47 if second == 1 => Pass,
        _ => Stop,
    }
}

const AT_SYMLINK_NOFOLLOW: u64 = 0x100;

/// stat(2), or the errno.
fn status_of(directory: u64, path: u64, flags: u64) -> Result<[u64; 18], i64> {
    let mut status = [0u64; 18];
    match call(number::NEWFSTATAT, [directory, path, status.as_mut_ptr() as u64, flags, 0, 0]) {
        0.. => Ok(status),
        errno => Err(errno),
    }
}

/// Opens to read what can be opened without anybody noticing: files, directories, and devices like /dev/null.
fn open(directory: u64, path: u64, flags: u64) -> Ruling {
    const O_NOFOLLOW: u64 = 0o400000;
    const O_PATH: u64 = 0o10000000;
    const O_CREAT_AND_O_TMPFILE: u64 = 0o100 | 0o20000000;
    let status = status_of(directory, path, if flags & O_NOFOLLOW != 0 { AT_SYMLINK_NOFOLLOW } else { 0 });
    if let Err(EFAULT) = status {
        return Answer(EFAULT);
    }
    // A shell asks for its terminal, which it does not have: a service has none.
    const TERMINAL: &[u8] = b"/dev/tty\0";
    // SAFETY: the kernel has found a string there; byte by byte up to the first that is another, so not beyond its end.
    if (0..TERMINAL.len()).all(|at| unsafe { *(path as *const u8).add(at) } == TERMINAL[at]) {
        let result = call(number::OPENAT, [directory, path, flags, 0, 0, 0]);
        if result < 0 {
            return Answer(result);
        }
        call(number::CLOSE, [result as u64, 0, 0, 0, 0, 0]);
        return Stop;
    }
    // Who opens what is not there changes nothing. By now it may be there, and this does not open it to write.
    if matches!(status, Err(ENOENT | ENOTDIR)) && flags & O_CREAT_AND_O_TMPFILE == 0 {
        let flags = O_PATH | O_CLOEXEC | flags & O_NOFOLLOW;
        let result = call(number::OPENAT, [directory, path, flags, 0, 0, 0]);
        if result < 0 {
            return Answer(result);
        }
        call(number::CLOSE, [result as u64, 0, 0, 0, 0, 0]);
        return Stop;
    }
    // struct stat: the mode is in the fourth word, the device that it is in the sixth.
    let (kind, device) = status.map_or((0, 0), |status| (status[3] as u32 & 0o170000, status[5]));
    let is_device = kind == 0o020000 && device >> 8 & 0xfff == 1;
    // /dev/null, which git opens for both. Nobody sees what is written there.
    if is_device && device & 0xff == 3 {
        return Pass;
    }
    // What is not O_RDONLY, O_CREAT, O_TRUNC, O_TMPFILE.
    if flags & (0o3 | 0o1000 | O_CREAT_AND_O_TMPFILE) != 0 {
        return Stop;
    }
    match kind {
        _ if status.is_err() => Pass,
        0o100000 | 0o040000 => Pass,
        // MEM_MAJOR: null, zero, full, random, urandom.
        0o020000 if is_device => Pass,
        _ => Stop,
    }
}
