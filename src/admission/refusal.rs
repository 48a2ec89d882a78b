//! Why a connection gets no process.

/// A reason. The numbers go through pipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Refusal {
    /// `max_connections` are there, and the service refuses instead of letting clients wait.
    Limit,
    /// `allow` and `deny`.
    Access,
    /// `max_connections_per_source`
    SourceLimit,
    /// `rate_per_source`
    Rate,
    /// `penalties`
    Penalty,
    /// The header of a proxy is none, or did not come in time.
    Header,
    /// `preforkd ban`
    Banned,
}

impl Refusal {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Refusal; 7] = [
        Refusal::Limit,
        Refusal::Access,
        Refusal::SourceLimit,
        Refusal::Rate,
        Refusal::Penalty,
        Refusal::Header,
        Refusal::Banned,
    ];

    /// The one with this number.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Refusal::ALL.get(usize::from(number)).copied()
    }

    /// Whether there was no room for who may come: what meets him is the matter of `overload`. Who is not to come at all
    /// is told nothing.
    pub(super) fn is_for_lack_of_room(self) -> bool {
        match self {
            Refusal::Limit | Refusal::SourceLimit | Refusal::Rate => true,
            Refusal::Access | Refusal::Penalty | Refusal::Header | Refusal::Banned => false,
        }
    }

    /// For a report of several: "… by" this.
    pub(crate) fn cause(self) -> &'static str {
        match self {
            Refusal::Limit => "max_connections",
            Refusal::Access => "allow and deny",
            Refusal::SourceLimit => "max_connections_per_source",
            Refusal::Rate => "rate_per_source",
            Refusal::Penalty => "penalties",
            Refusal::Header => "a wrong PROXY header",
            Refusal::Banned => "a ban",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_the_number_of_its_place() {
        for (number, refusal) in (0..).zip(Refusal::ALL) {
            assert_eq!(refusal as u8, number);
            assert_eq!(Refusal::from_number(number), Some(refusal));
        }
        assert_eq!(Refusal::from_number(7), None);
    }
}
