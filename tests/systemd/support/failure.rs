//! Why a test failed: the message of its panic, kept for the end instead of printed in between.

use std::cell::RefCell;
use std::sync::Once;

thread_local! {
    static REASON: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps the messages of this thread's panics from now on.
pub(crate) fn keep() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            REASON.with_borrow_mut(|reason| *reason = panic.to_string());
        }));
    });
}

/// Why the last one that failed did.
pub(crate) fn take() -> String {
    REASON.take()
}
