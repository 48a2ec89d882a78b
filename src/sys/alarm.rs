//! A timer whose signal handler does the work: SIGALRM by setitimer(2).
//!
//! For a process whose code waits in system calls that it does not know. They are restarted (`SA_RESTART`), so the code
//! notices nothing.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::marker::PhantomData;
use std::time::Duration;

use super::check;

/// What is done when the alarm rings.
pub(crate) trait OnAlarm {
    /// Runs in a signal handler: it may do what signal-safety(7) lists, and so neither allocate nor wait. Returns when to
    /// ring again, if ever.
    fn ring(&mut self) -> Option<Duration>;
}

thread_local! {
    /// Who rings, while [`during`] lasts. In a page that a new process writes anyway; without a destructor, so that a
    /// signal handler may read it.
    static RINGER: Cell<*mut c_void> = const { Cell::new(std::ptr::null_mut()) };
}

/// Runs `work`; meanwhile `ringer` rings, first after `first` and then when it says.
///
/// # Errors
///
/// The timer cannot be set; `work` has not run.
pub(crate) fn during<T: OnAlarm, R>(
    ringer: &mut T,
    first: Duration,
    work: impl FnOnce() -> R,
) -> io::Result<R> {
    handle::<T>()?;
    let armed = Armed::new(ringer);
    set(Some(first))?;
    let result = work();
    drop(armed);
    Ok(result)
}

/// While it lives, the handler has the ringer for itself.
struct Armed<'a, T>(PhantomData<&'a mut T>);

impl<'a, T: OnAlarm> Armed<'a, T> {
    fn new(ringer: &'a mut T) -> Self {
        RINGER.set((&raw mut *ringer).cast());
        Armed(PhantomData)
    }
}

impl<T> Drop for Armed<'_, T> {
    fn drop(&mut self) {
        // First: a signal may be on its way.
        RINGER.set(std::ptr::null_mut());
        let _ = set(None);
    }
}

fn handle<T: OnAlarm>() -> io::Result<()> {
    extern "C" fn on_alarm<T: OnAlarm>(_: c_int) {
        // SAFETY: the address of this thread's errno, which is valid as long as the thread is.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: as above.
        let saved = unsafe { *errno };
        // SAFETY: null, or what `during::<T>` lends to this handler alone. It installs the handler of its own T before
        // it stores a pointer, and there is one thread.
        if let Some(ringer) = unsafe { RINGER.get().cast::<T>().as_mut() } {
            if let Some(next) = ringer.ring() {
                // The values are right, so it cannot fail.
                let _ = set(Some(next));
            }
        }
        // SAFETY: as above. Whoever was interrupted may be about to read it.
        unsafe { *errno = saved };
    }
    // SAFETY: plain data, for which zero is a value: no flag, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_alarm::<T> as extern "C" fn(c_int) as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is a live local; what the handler does is safe in a handler, see `OnAlarm::ring`.
    check(unsafe { libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()) })?;
    Ok(())
}

/// Arms the timer, or disarms it.
fn set(after: Option<Duration>) -> io::Result<()> {
    // Zero would disarm it, and the kernel takes no more seconds than this on every architecture.
    let after = after.map_or(Duration::ZERO, |after| {
        after.clamp(Duration::from_micros(1), Duration::from_secs(i32::MAX as u64))
    });
    let none = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let value = libc::timeval {
        tv_sec: after.as_secs() as libc::time_t,
        tv_usec: after.subsec_micros() as libc::suseconds_t,
    };
    let timer = libc::itimerval { it_interval: none, it_value: value };
    // SAFETY: `timer` is a live local that the kernel reads.
    check(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::sys::fd;
    use crate::sys::fork::fork;
    use crate::sys::signal;
    use crate::sys::wait::{Ending, wait_for};

    struct Countdown {
        left: u8,
        to: std::fs::File,
    }

    impl OnAlarm for Countdown {
        fn ring(&mut self) -> Option<Duration> {
            self.left -= 1;
            if self.left == 0 {
                let _ = self.to.write(b"x");
            }
            (self.left > 0).then_some(Duration::from_millis(1))
        }
    }

    /// In a process of its own: a timer is for the whole process, and tests have threads.
    #[test]
    fn it_rings_as_often_as_it_says_and_interrupts_nobody() {
        let (read, write) = fd::pipe().unwrap();
        fd::set_nonblocking(std::os::fd::AsFd::as_fd(&read), false).unwrap();
        let mut read = std::fs::File::from(read);
        let mut countdown = Countdown { left: 3, to: write.into() };
        let pid = fork(|_| {
            let _ = signal::unblock_all();
            let heard = during(&mut countdown, Duration::from_millis(1), || read.read(&mut [0]));
            u8::from(!matches!(heard, Ok(Ok(1))) || countdown.left != 0)
        });
        assert_eq!(wait_for(pid.unwrap()).unwrap().unwrap().ending, Ending::Exited(0));
    }
}
