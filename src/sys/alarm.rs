//! A timer whose signal handler does the work: SIGALRM by setitimer(2).
//!
//! For a process whose code waits in system calls that it does not know. They are restarted (`SA_RESTART`), so the code
//! notices nothing.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering, compiler_fence};
use std::time::Duration;

use super::check;

/// What is done when the alarm rings.
pub(crate) trait OnAlarm {
    /// Runs in a signal handler: it may do what signal-safety(7) lists, and so neither allocate nor wait. Returns when to
    /// ring again, if ever.
    fn ring(&mut self) -> Option<Duration>;
}

/// Who rings, with its type forgotten: the handler is one for all.
struct Ringer {
    who: *mut c_void,
    ring: unsafe fn(*mut c_void) -> Option<Duration>,
}

thread_local! {
    /// Who rings, while [`during`] lasts. In a page that a new process writes anyway; without a destructor, so that a
    /// signal handler may read it.
    static RINGER: AtomicPtr<Ringer> = const { AtomicPtr::new(ptr::null_mut()) };
}

/// Runs `work`; meanwhile `ringer` rings, first after `first` and then when it says.
///
/// # Errors
///
/// The timer cannot be set, or rings for somebody else until now: there is one for a process. `work` has not run.
pub(crate) fn during<T: OnAlarm, R>(
    ringer: &mut T,
    first: Duration,
    work: impl FnOnce() -> R,
) -> io::Result<R> {
    /// # Safety
    ///
    /// `who` is a `T` that nobody else refers to.
    unsafe fn ring<T: OnAlarm>(who: *mut c_void) -> Option<Duration> {
        // SAFETY: as the caller says.
        unsafe { &mut *who.cast::<T>() }.ring()
    }
    if !RINGER.with(|place| place.load(Ordering::Relaxed)).is_null() {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    handle()?;
    let ringer = Ringer { who: (&raw mut *ringer).cast(), ring: ring::<T> };
    let armed = Armed::new(&ringer);
    set(Some(first))?;
    let result = work();
    drop(armed);
    Ok(result)
}

/// While it lives, the handler has the ringer for itself.
struct Armed<'a>(PhantomData<&'a Ringer>);

impl<'a> Armed<'a> {
    fn new(ringer: &'a Ringer) -> Self {
        point_at((&raw const *ringer).cast_mut());
        Armed(PhantomData)
    }
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        // First: a signal may be on its way.
        point_at(ptr::null_mut());
        let _ = set(None);
    }
}

/// Tells the handler, which may interrupt this thread before and after, who rings.
fn point_at(ringer: *mut Ringer) {
    compiler_fence(Ordering::SeqCst);
    RINGER.with(|place| place.store(ringer, Ordering::Relaxed));
    compiler_fence(Ordering::SeqCst);
}

fn handle() -> io::Result<()> {
    extern "C" fn on_alarm(_: c_int) {
        // SAFETY: the address of this thread's errno, which is valid as long as the thread is.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: valid, see above, and nobody else's while this thread runs this.
        let saved = unsafe { *errno };
        // SAFETY: null, or what `during` on this thread has on its stack for as long as it is pointed at.
        if let Some(ringer) = unsafe { RINGER.with(|place| place.load(Ordering::Relaxed)).as_ref() } {
            // SAFETY: `during` has borrowed who rings exclusively, for this alone, and made `ring` for its type. The
            // signal is blocked in its own handler, so there is no second call.
            if let Some(next) = unsafe { (ringer.ring)(ringer.who) } {
                // The values are right, so it cannot fail.
                let _ = set(Some(next));
            }
        }
        // SAFETY: valid, see above. Whoever was interrupted may be about to read it.
        unsafe { *errno = saved };
    }
    // SAFETY: plain data, for which zero is a value: no flag, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_alarm as extern "C" fn(c_int) as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is a live local; what the handler does is safe in a handler, see `OnAlarm::ring`.
    check(unsafe { libc::sigaction(libc::SIGALRM, &action, ptr::null_mut()) })?;
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
    check(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut()) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::fork::fork;
    use crate::sys::wait::{Ending, wait_for};
    use crate::sys::{fd, signal};

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

    /// Of another type and size than a countdown; it must never ring.
    struct Silent([u64; 64]);

    impl OnAlarm for Silent {
        fn ring(&mut self) -> Option<Duration> {
            self.0 = [0; 64];
            None
        }
    }

    /// In a process of its own: a timer is for the whole process, and tests have threads.
    fn in_child(work: impl FnOnce(Countdown, std::fs::File) -> bool + Send) {
        let (read, write) = fd::pipe().unwrap();
        fd::set_nonblocking(read.as_fd(), false).unwrap();
        let countdown = Countdown { left: 3, to: write.into() };
        let pid = fork(|_| {
            let _ = signal::unblock_all();
            u8::from(!work(countdown, read.into()))
        });
        assert_eq!(wait_for(pid.unwrap()).unwrap().unwrap().ending, Ending::Exited(0));
    }

    #[test]
    fn it_rings_as_often_as_it_says_and_interrupts_nobody() {
        in_child(|mut countdown, mut read| {
            let heard = during(&mut countdown, Duration::from_millis(1), || read.read(&mut [0]));
            matches!(heard, Ok(Ok(1))) && countdown.left == 0
        });
    }

    #[test]
    fn who_comes_second_is_refused_and_the_first_rings_on() {
        in_child(|mut countdown, mut read| {
            let mut second = Silent([7; 64]);
            let heard = during(&mut countdown, Duration::from_millis(1), || {
                let refused = during(&mut second, Duration::from_micros(1), || ());
                refused.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
                    && matches!(read.read(&mut [0]), Ok(1))
            });
            // When the first has ended, there is room for another.
            let after = during(&mut second, Duration::from_secs(100), || ());
            matches!(heard, Ok(true)) && countdown.left == 0 && after.is_ok() && second.0 == [7; 64]
        });
    }
}
