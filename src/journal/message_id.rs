//! The names of events that monitoring and the journal's catalog may rely on.

/// What happened. The ids and numbers never change and are never used for anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageId {
    /// The supervisor serves.
    Started,
    /// The supervisor ends; everything has been drained or ended.
    Stopped,
    /// A new configuration is in force.
    ReloadDone,
    /// A new configuration was rejected; the old one stays in force.
    ReloadRejected,
    /// A worker died and is replaced; its connections go on.
    WorkerDied,
    /// A worker could not start; the next attempt waits.
    WorkerThrottled,
    /// A connection ended, in whatever way was its own choice or ours.
    ConnectionEnded,
    /// A fault of its own memory or code ended a connection process.
    ConnectionCrashed,
    /// A connection was accepted, but nothing could be started to serve it.
    ConnectionNotStarted,
    /// Nothing is accepted any more; live connections may go on until the drain timeout.
    DrainBegun,
    /// The drain is over.
    DrainEnded,
    /// The log could not take some records, which are lost.
    RecordsDropped,
    /// Accepting waits, because descriptors or memory ran out.
    AcceptPaused,
    /// Connections were refused; some time's worth in one report.
    Refused,
    /// A source has a penalty, or has been forgiven.
    Penalty,
    /// A connection is ended by hand.
    ConnectionKilled,
    /// A service accepts nobody, or is to be sent nobody, for a while; or that is over.
    ServicePaused,
    /// Clients are kept out by hand, or are not any more.
    Ban,
    /// A service cannot be served, or not at one of its addresses; it is tried again.
    ServiceDown,
    /// A service that was down is served.
    ServiceBack,
}

impl MessageId {
    /// `MESSAGE_ID` in the journal, and the number that is MSGID in syslog: the one table of both.
    const fn row(self) -> (&'static str, u32) {
        match self {
            MessageId::Started => ("728745d87ea443238508fcabb99f81ed", 1),
            MessageId::Stopped => ("42f86ac271644b369b225c6edf99f5b2", 2),
            MessageId::ReloadDone => ("7562251d575248eb9cccbdc140dbdfda", 3),
            MessageId::ReloadRejected => ("9404cbbb4ef94c8dad2bf84b6aec5638", 4),
            MessageId::WorkerDied => ("345ddb7d4c0e4b56903940aae293f5ef", 5),
            MessageId::WorkerThrottled => ("9a19217649384a529ea5b7b6083896da", 6),
            MessageId::ConnectionEnded => ("322ad42f27a3432bae36e6fc7c6ec9e5", 7),
            MessageId::ConnectionCrashed => ("2151cfa203084993980ee57f7c9ad29e", 8),
            MessageId::ConnectionNotStarted => ("2a0e3dce0d8849de82df413130582f92", 9),
            MessageId::DrainBegun => ("2051f1fafb2548b191b885bdd32cfa8c", 10),
            MessageId::DrainEnded => ("875a5aee225f41f998ffa920aa3f67fb", 11),
            MessageId::RecordsDropped => ("389d7a63cae54031893075fb30c7c8b4", 12),
            MessageId::AcceptPaused => ("f4cf39e31095430ba22619960ed9446d", 13),
            MessageId::Refused => ("74ff1b9d0e134383a708eeae2d738a01", 14),
            MessageId::Penalty => ("7f109d344d3c4cba80ebe61355ce25ff", 15),
            MessageId::ServiceDown => ("c1f0a7c5be164d5b8d7d6b0f0d9e4a31", 16),
            MessageId::ServiceBack => ("5e0b3c9a44d24d0f9a0c7f6c2b8d1e72", 17),
            MessageId::ConnectionKilled => ("3a8d5d0e6f1b4f7f8d5a2c9b7e40c6d1", 18),
            MessageId::ServicePaused => ("b1c7f0e29a5d4e6c8f3b6a1d0c5e7f94", 19),
            MessageId::Ban => ("d5a1d5ca7567483099e45b672fed3089", 20),
        }
    }

    /// 128 bits in hexadecimal, as journald wants them.
    pub(super) const fn hex(self) -> &'static str {
        self.row().0
    }

    /// For syslog's MSGID; 0 means none.
    pub(super) const fn number(self) -> u32 {
        self.row().1
    }
}
