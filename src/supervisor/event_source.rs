//! What tells one event of the poller from another.

/// Where an event of the poller comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventSource {
    /// The link to the worker with this serial number.
    Worker(u32),
    /// A process that a change waits for: one that reads the configuration, or a program that is being tried.
    Change,
    /// Spares of dead workers.
    LateEvents,
    /// The kernel, about the addresses of this machine.
    Addresses,
    /// A control socket or a client of it.
    Control(u64),
}

/// The kind is in the upper bits.
const KIND: u32 = 56;

impl From<EventSource> for u64 {
    fn from(source: EventSource) -> u64 {
        let (kind, value) = match source {
            EventSource::Worker(serial) => (0, u64::from(serial)),
            EventSource::Change => (1, 0),
            EventSource::LateEvents => (2, 0),
            EventSource::Addresses => (4, 0),
            EventSource::Control(value) => (3, value),
        };
        kind << KIND | value
    }
}

impl From<u64> for EventSource {
    fn from(token: u64) -> EventSource {
        let value = token & ((1 << KIND) - 1);
        match token >> KIND {
            0 => EventSource::Worker(value as u32),
            1 => EventSource::Change,
            2 => EventSource::LateEvents,
            4 => EventSource::Addresses,
            _ => EventSource::Control(value),
        }
    }
}
