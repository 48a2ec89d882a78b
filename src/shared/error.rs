use std::fmt;
use std::io;

/// Why something with shared state could not be done. Nothing has changed.
///
/// It becomes an [`io::Error`] by `?`, so a handler needs no error type of its own.
///
/// ```
/// use preforkd::shared::{Counter, Lock, Shared, SharedError};
///
/// struct State { hits: Counter, seats: Lock<u32> }
/// let state = Shared::new(8, |layout| State {
///     hits: layout.counter("hits"),
///     seats: layout.lock("seats", 7),
/// })?;
/// let held = state.seats.lock()?;
/// assert!(matches!(state.seats.try_lock(), Err(SharedError::Order { name: "seats" })));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum SharedError {
    /// Somebody has the lock, and this was not to wait.
    WouldBlock,
    /// It has not come to pass in the time that was given.
    TimedOut,
    /// This thread holds something that was declared after `name`, or `name` itself, or waits for a queue while it holds
    /// anything. Processes that take locks in the order of their declaration cannot wait for each other in a circle, so any
    /// other order is refused, always, and not only when the circle has closed.
    Order {
        /// As it was declared.
        name: &'static str,
    },
    /// This thread holds sixteen locks, which is the most.
    TooMany,
    /// There is no room in a table or queue.
    Full {
        /// As it was declared.
        name: &'static str,
    },
    /// The memory says what none of this module's functions would write there: another process of this service has overwritten
    /// it. Once that is so, a new service process is needed to have new memory.
    Damaged {
        /// As it was declared.
        name: &'static str,
    },
    /// The memory was made with other declarations: by another version of the program.
    OtherLayout {
        /// The first declaration of the memory that differs, and what is declared now; empty if there is none.
        was: String,
        /// What this program declares there.
        is: String,
    },
    /// What was declared cannot be; says why.
    Declaration(String),
    /// It was used in the function that declares it, when there is no memory yet.
    NotYet,
    /// A system call failed.
    System(io::Error),
}

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SharedError::WouldBlock => f.write_str("another process has the lock"),
            SharedError::TimedOut => {
                f.write_str("another process had it for longer than this one would wait")
            }
            SharedError::Order { name } => write!(
                f,
                "`{name}` is locked or waited for while something is held that was declared at the same place or after it; \
                 take locks in the order in which they are declared, and wait for queues with nothing held"
            ),
            SharedError::TooMany => f.write_str("a thread can hold 16 locks at a time; give one back first"),
            SharedError::Full { name } => write!(f, "`{name}` is full; declare it with a greater capacity"),
            SharedError::Damaged { name } => write!(
                f,
                "the shared memory of `{name}` was overwritten by another process of this service; restart the service to have \
                 it new"
            ),
            SharedError::OtherLayout { was, is } => {
                let said =
                    |line: &str| if line.is_empty() { "nothing".to_owned() } else { format!("`{line}`") };
                write!(
                    f,
                    "the shared memory was made by a program that declares {} where this one declares {}",
                    said(was),
                    said(is)
                )
            }
            SharedError::Declaration(why) => f.write_str(why),
            SharedError::NotYet => {
                f.write_str("shared state is used in the function that declares it, before it exists")
            }
            SharedError::System(error) => write!(f, "shared state: {error}"),
        }
    }
}

impl std::error::Error for SharedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        if let SharedError::System(error) = self { Some(error) } else { None }
    }
}

impl From<io::Error> for SharedError {
    fn from(error: io::Error) -> Self {
        SharedError::System(error)
    }
}

impl From<SharedError> for io::Error {
    fn from(error: SharedError) -> Self {
        let kind = match error {
            SharedError::WouldBlock => io::ErrorKind::WouldBlock,
            SharedError::TimedOut => io::ErrorKind::TimedOut,
            SharedError::Order { .. } => io::ErrorKind::Deadlock,
            SharedError::Full { .. } => io::ErrorKind::StorageFull,
            SharedError::Damaged { .. } | SharedError::OtherLayout { .. } => io::ErrorKind::InvalidData,
            SharedError::System(error) => return error,
            SharedError::TooMany | SharedError::Declaration(_) | SharedError::NotYet => {
                io::ErrorKind::InvalidInput
            }
        };
        io::Error::new(kind, error)
    }
}
