//! What the configuration says, and reloads change.

use std::net::{Ipv4Addr, SocketAddr};

use super::random::Random;

/// What the connections of a service are for, for its whole life.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// `handler = …` or `exec = …`.
    pub(super) job: &'static str,
    pub(super) spares: bool,
    /// Whether processes may serve several connections.
    pub(super) several: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Settings {
    kind: Kind,
    pub(super) limit: usize,
    pub(super) per_source: Option<usize>,
    prefix: u32,
    spare: usize,
    rate: bool,
    per_child: usize,
}

impl Settings {
    pub(super) fn first(kind: Kind) -> Self {
        let spare = if kind.spares { 4 } else { 0 };
        Self { kind, limit: 12, per_source: Some(3), prefix: 32, spare, rate: false, per_child: 1 }
    }

    /// Others; some stay as they are.
    pub(super) fn change(&mut self, random: &mut Random) {
        if random.once_in(2) {
            self.limit = 8 + random.below(5);
        }
        if random.once_in(2) {
            self.per_source = [None, Some(2), Some(3), Some(3), Some(4)][random.below(5)];
        }
        if random.once_in(2) {
            self.prefix = [32, 32, 31, 24, 16][random.below(5)];
        }
        if self.kind.spares && random.once_in(3) {
            self.spare = random.below(6);
        }
        if self.kind.several && random.once_in(2) {
            self.per_child = [1, 0, 3][random.below(3)];
        }
        self.rate = random.once_in(3);
    }

    pub(super) fn config(&self, service: SocketAddr) -> String {
        let Self { kind, limit, prefix, spare, .. } = self;
        let mut config = format!(
            "[service.any]\nlisten = [\"{service}\"]\n{}\nworkers = 2\nmax_connections = {limit}\n\
             spare = {spare}\n",
            kind.job
        );
        if let Some(per_source) = self.per_source {
            config.push_str(&format!("max_connections_per_source = {per_source}\n"));
        }
        if *prefix != 32 {
            config.push_str(&format!("source_prefix_v4 = {prefix}\n"));
        }
        if self.rate {
            // Never reached: the way through the token bucket is what matters here.
            config.push_str("rate_per_source = \"100000/s burst 100000\"\n");
        }
        if *spare > 0 && self.per_child != 1 {
            config.push_str(&format!("connections_per_child = {}\n", self.per_child));
        }
        config
    }

    /// Whether there may be processes that serve several, since now or before.
    pub(super) fn may_serve_several(&self) -> bool {
        self.kind.several
    }

    /// The source that an address belongs to.
    pub(super) fn source_of(&self, address: Ipv4Addr) -> u32 {
        address.to_bits() >> (32 - self.prefix)
    }
}
