//! Spares, connection processes made ahead of their connection: both sides of them.
//!
//! | end | worker | supervisor | spare | what comes of it if its holder dies |
//! |---|---|---|---|---|
//! | a listener | accepts when no spare waits | holds it, too | waits, accepts | it stays open |
//! | leash | holds the end to write: a byte sends one away, its end all | | reads one byte | the worker: all look once more, and go |
//! | [events] | reads which have been taken, and by whom | holds the end to read, and reads it when the worker is dead | writes once a connection, before anything of a stranger runs | the worker: the supervisor hears the rest; the spare before it has written: it has died waiting, and the connection with it |
//! | [copies] | both ends; reads | | sends its connection once, if it becomes a program; hands over those of clients that it has told why they are refused | the program goes on without deadlines of bytes; who is refused is closed at once |
//! | reports | both ends; reads | | writes why it could not begin, and whom it has refused | what was not read is lost |
//! | reports of its own | reads | | in the place of the other, if it serves several: writes how connections ended, too, and keeps it while a handler runs | what was not read is lost |
//! | wake | watches the eventfd | | adds 1 when it is taken, if it was told to | the worker looks when it wakes for another reason |
//! | sources | counts who gives a slot back | counts anew after a reload | mapped until it is taken | what it had written is cleared with its slot |
//!
//! A spare accepts by itself. To have the worker accept, and hand it the descriptor, costs 28 us of a connection and 13 to
//! 23 % of the rate, more than a fork.

pub(crate) mod copies;
pub(crate) mod events;
mod pauses;
mod pool;
mod process;

pub(crate) use pauses::Pauses;
pub(crate) use pool::{Pool, Setup};
