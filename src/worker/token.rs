//! What tells one event of the poller from another.

use crate::sys::wait::Pid;

/// What an event of the poller is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// The link to the supervisor.
    Link,
    SlotFreed,
    /// A spare was taken, or has more to say.
    SpareTaken,
    /// The listener at this place of the plan.
    Listener(usize),
    /// The stderr of a connection process.
    Output(Pid),
    /// One of the processes that serve several connections has something to say.
    Several,
    /// A proxy whose header has not come yet.
    Header(u64),
    /// A client that was refused and has not hung up.
    Lingering(usize),
    /// A client whose program has ended, by the number of the connection.
    Closing(u64),
    /// A program that is started ahead of its connection.
    Warm(Pid),
    /// A file that warm programs may have read.
    WarmFiles,
    /// A program asks whom it may signal.
    Asked,
}

/// The kind is in the upper bits.
const KIND: u32 = 56;

impl From<Token> for u64 {
    fn from(token: Token) -> u64 {
        let (kind, value) = match token {
            Token::Link => (0, 0),
            Token::SlotFreed => (1, 0),
            Token::SpareTaken => (2, 0),
            Token::Listener(index) => (3, index as u64),
            Token::Output(pid) => (4, u64::from(pid.unsigned_abs())),
            Token::Header(number) => (5, number),
            Token::Lingering(place) => (6, place as u64),
            Token::Closing(number) => (7, number),
            Token::Several => (8, 0),
            Token::Warm(pid) => (9, u64::from(pid.unsigned_abs())),
            Token::WarmFiles => (10, 0),
            Token::Asked => (11, 0),
        };
        kind << KIND | value
    }
}

impl From<u64> for Token {
    fn from(token: u64) -> Token {
        let value = token & ((1 << KIND) - 1);
        match token >> KIND {
            0 => Token::Link,
            1 => Token::SlotFreed,
            2 => Token::SpareTaken,
            3 => Token::Listener(value as usize),
            4 => Token::Output(value as Pid),
            5 => Token::Header(value),
            6 => Token::Lingering(value as usize),
            8 => Token::Several,
            9 => Token::Warm(value as Pid),
            10 => Token::WarmFiles,
            11 => Token::Asked,
            _ => Token::Closing(value),
        }
    }
}
