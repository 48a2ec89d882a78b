//! Words that messages of the log and of the control socket share.

use std::time::Duration;

/// The noun as it goes with the number.
pub(super) fn plural(count: usize, noun: &str) -> String {
    if count == 1 { noun.to_owned() } else { format!("{noun}s") }
}

pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f32())
}

/// Who has asked for something.
pub(super) fn by(user: Option<u32>) -> String {
    user.map_or_else(|| "somebody".to_owned(), |uid| format!("uid {uid}"))
}
