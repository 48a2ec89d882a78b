//! `allow` and `deny`: the longest prefix decides, or the user before his groups, and deny on a tie.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::answers::ListDraft;
use super::callers::WrittenAt;
use super::{Caller, Callers, Listed, LocalUser};

/// The rules of a service, ready to be asked.
///
/// `denied` comes before `allowed` in the list, and of equal callers the first counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rules {
    list: Callers,
    denied: usize,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// `allow`
    Allow,
    /// `deny`
    Deny,
}

/// One entry of `allow` or `deny`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule<'a> {
    /// In which of the two.
    pub(crate) action: Action,
    /// It.
    pub(crate) caller: Caller,
    /// Where it was written.
    pub(crate) place: WrittenAt<'a>,
}

/// What meets a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision<'a> {
    /// Whether it gets in.
    pub(crate) allowed: bool,
    /// The rule that says so; `None` if none is about the client.
    pub(crate) rule: Option<Rule<'a>>,
}

impl Rules {
    /// The rules of these lists. Order and repetitions make no difference.
    pub(crate) fn new<'a>(
        allow: impl IntoIterator<Item = Listed<'a>>,
        deny: impl IntoIterator<Item = Listed<'a>>,
    ) -> Self {
        let (deny, allow) = (sorted(deny), sorted(allow));
        let denied = deny.len();
        Rules { list: Callers::new(deny.into_iter().chain(allow)), denied }
    }

    /// What meets the address. It costs one binary search, and allocates nothing.
    pub(crate) fn decide(&self, address: IpAddr) -> Decision<'_> {
        self.decide_by(self.list.find(address))
    }

    /// What meets a user of this machine at a Unix socket.
    pub(crate) fn decide_user(&self, user: &LocalUser<'_>) -> Decision<'_> {
        self.decide_by(self.list.find_user(user))
    }

    fn decide_by<'a>(&self, found: Option<(usize, Listed<'a>)>) -> Decision<'a> {
        let rule = found.map(|(index, Listed { caller, place })| {
            let action = if index < self.denied { Action::Deny } else { Action::Allow };
            Rule { action, caller, place }
        });
        let allowed = match rule {
            Some(rule) => rule.action == Action::Allow,
            None => !self.denies_the_rest(),
        };
        Decision { allowed, rule }
    }

    /// Whether somebody gets in, to be asked often.
    pub(super) fn answers(&self) -> ListDraft {
        self.list.answers_by(|place| match place {
            Some(place) => place >= self.denied,
            None => !self.denies_the_rest(),
        })
    }

    /// Whether somebody about whom there is no rule is refused: if there is anything in `allow`, as in xinetd.conf(5).
    pub(crate) fn denies_the_rest(&self) -> bool {
        self.list.len() > self.denied
    }

    /// Whether everybody gets in.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// By caller, each once, with the place that was first.
fn sorted<'a>(list: impl IntoIterator<Item = Listed<'a>>) -> Vec<Listed<'a>> {
    let mut list: Vec<_> = list.into_iter().collect();
    list.sort_by_key(|listed| listed.caller);
    list.dedup_by_key(|listed| listed.caller);
    list
}

impl Action {
    /// The key that says it.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use std::os::fd::AsFd;

    use super::*;
    use crate::admission::{CallerSets, Prefix};
    use crate::sys::socket::PeerCredentials;

    fn listed(texts: &[&str], name: &'static str) -> Vec<Listed<'static>> {
        let prefixes = texts.iter().map(|text| text.parse().unwrap()).zip(1..);
        prefixes
            .map(|(prefix, line)| Listed {
                caller: Caller::Prefix(prefix),
                place: WrittenAt { name, line: Some(line) },
            })
            .collect()
    }

    fn rules(allow: &[&str], deny: &[&str]) -> Rules {
        Rules::new(listed(allow, "allow.toml"), listed(deny, "deny.toml"))
    }

    fn ask(rules: &Rules, address: &str) -> String {
        let Decision { allowed, rule } = rules.decide(address.parse().unwrap());
        let verdict = if allowed { "in" } else { "out" };
        match rule {
            Some(rule) => format!("{verdict}: {} {} {}", rule.action.key(), rule.caller, rule.place),
            None => verdict.to_owned(),
        }
    }

    #[test]
    fn without_rules_everybody_gets_in() {
        let rules = rules(&[], &[]);
        assert!(rules.is_empty());
        for address in ["192.0.2.1", "::1", "255.255.255.255", "::ffff:1.2.3.4"] {
            assert_eq!(ask(&rules, address), "in");
        }
    }

    #[test]
    fn the_longest_prefix_decides() {
        let rules = rules(&["10.1.0.0/16", "2001:db8::/32"], &["10.0.0.0/8", "10.1.2.0/24", "10.1.2.3"]);
        for (address, answer) in [
            ("10.0.0.0", "out: deny 10.0.0.0/8 deny.toml:1"),
            ("10.1.0.0", "in: allow 10.1.0.0/16 allow.toml:1"),
            ("10.1.1.255", "in: allow 10.1.0.0/16 allow.toml:1"),
            ("10.1.2.2", "out: deny 10.1.2.0/24 deny.toml:2"),
            ("10.1.2.3", "out: deny 10.1.2.3/32 deny.toml:3"),
            ("10.1.2.4", "out: deny 10.1.2.0/24 deny.toml:2"),
            ("10.1.3.0", "in: allow 10.1.0.0/16 allow.toml:1"),
            ("10.2.0.0", "out: deny 10.0.0.0/8 deny.toml:1"),
            ("11.0.0.0", "out"),
            ("::ffff:10.1.9.9", "in: allow 10.1.0.0/16 allow.toml:1"),
            ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "in: allow 2001:db8::/32 allow.toml:2"),
            ("2001:db9::", "out"),
        ] {
            assert_eq!(ask(&rules, address), answer, "{address}");
        }
    }

    #[test]
    fn deny_wins_on_a_tie_and_a_deny_list_lets_the_rest_in() {
        let tie = rules(&["10.0.0.0/8"], &["10.0.0.0/8"]);
        assert_eq!(ask(&tie, "10.0.0.1"), "out: deny 10.0.0.0/8 deny.toml:1");
        let deny = rules(&[], &["::/0", "255.255.255.255"]);
        assert_eq!(ask(&deny, "10.0.0.1"), "in");
        assert_eq!(ask(&deny, "255.255.255.254"), "in");
        assert_eq!(ask(&deny, "255.255.255.255"), "out: deny 255.255.255.255/32 deny.toml:2");
        assert_eq!(ask(&deny, "::"), "out: deny ::/0 deny.toml:1");
        assert_eq!(ask(&deny, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), "out: deny ::/0 deny.toml:1");
    }

    #[test]
    fn order_places_and_repetitions_make_no_difference() {
        let one = rules(&["10.0.0.0/8", "::1"], &["192.0.2.0/24"]);
        let other =
            rules(&["::1", "10.0.0.0/8", "::1", "::ffff:10.0.0.0/104"], &["192.0.2.0/24", "192.0.2.0/24"]);
        assert_eq!(one, other);
        assert_eq!(ask(&other, "::1"), "in: allow ::1/128 allow.toml:1");
        assert_ne!(one, rules(&["10.0.0.0/8", "::1"], &["192.0.2.0/25"]));
        assert_ne!(rules(&["::1"], &[]), rules(&[], &["::1"]));
    }

    #[test]
    fn a_plan_keeps_the_rules_and_their_places() {
        let rules = rules(&["10.0.0.0/8"], &["10.1.0.0/16", "2001:db8::/32"]);
        let again: Rules = serde_json::from_slice(&serde_json::to_vec(&rules).unwrap()).unwrap();
        assert_eq!(again, rules);
        for address in ["10.0.0.1", "10.1.0.1", "2001:db8::1", "::1"] {
            assert_eq!(ask(&again, address), ask(&rules, address));
        }
    }

    /// Few distinct values in each part, so that prefixes nest, touch and repeat.
    fn address(random: &mut fastrand::Rng) -> IpAddr {
        let mut part = || [0, 0, 1, 2, 127, 128, 254, 255][random.usize(..8)];
        let bytes: [u8; 16] = std::array::from_fn(|_| part());
        match bytes[0] {
            0 | 255 => Ipv6Addr::from(bytes).into(),
            1 => Ipv4Addr::from_bits(u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]))
                .to_ipv6_mapped()
                .into(),
            _ => Ipv4Addr::new(bytes[1], bytes[2], bytes[3], bytes[4]).into(),
        }
    }

    fn prefix(random: &mut fastrand::Rng) -> Prefix {
        let address = address(random).to_canonical();
        Prefix::around(address, random.u8(..if address.is_ipv4() { 33 } else { 129 }))
    }

    /// The interface's sentence, word for word, without a table.
    fn naive(allow: &[Prefix], deny: &[Prefix], address: IpAddr) -> (bool, Option<Prefix>) {
        let longest = |list: &[Prefix]| {
            let matching = list.iter().copied().filter(|prefix| prefix.contains(address));
            matching.min_by_key(|prefix| prefix.range().1 - prefix.range().0)
        };
        let size = |prefix: Prefix| prefix.range().1 - prefix.range().0;
        match (longest(allow), longest(deny)) {
            (Some(allow), Some(deny)) if size(allow) < size(deny) => (true, Some(allow)),
            (_, Some(deny)) => (false, Some(deny)),
            (Some(allow), None) => (true, Some(allow)),
            (None, None) => (allow.is_empty(), None),
        }
    }

    /// The ends of a prefix and their neighbours: where a range table is wrong if it is.
    fn edges(prefix: Prefix) -> [IpAddr; 4] {
        let (first, last) = prefix.range();
        [first, last, first.wrapping_sub(1), last.wrapping_add(1)].map(|number| {
            if prefix.is_ipv4() {
                Ipv4Addr::from_bits((number & u128::from(u32::MAX)) as u32).into()
            } else {
                Ipv6Addr::from_bits(number).into()
            }
        })
    }

    #[test]
    fn the_table_agrees_with_a_naive_matcher() {
        let mut random = fastrand::Rng::with_seed(crate::seeded::seed());
        for round in 0..300 {
            let lists = [(); 2].map(|()| {
                let number = random.usize(..40);
                (0..number).map(|_| prefix(&mut random)).collect::<Vec<_>>()
            });
            let [allow, deny] = &lists;
            let place = WrittenAt { name: "x", line: None };
            let listed = |list: &[Prefix]| {
                list.iter()
                    .map(|&prefix| Listed { caller: Caller::Prefix(prefix), place })
                    .collect::<Vec<_>>()
            };
            let rules = Rules::new(listed(allow), listed(deny));
            let none = Callers::default();
            let file = CallerSets::freeze(&rules, &none, &none).unwrap();
            let sets = CallerSets::open(file.as_fd()).unwrap();
            let random_ones: Vec<IpAddr> = (0..50).map(|_| address(&mut random)).collect();
            for address in lists.iter().flatten().flat_map(|&prefix| edges(prefix)).chain(random_ones) {
                let decision = rules.decide(address);
                let says = (sets.allow(address), sets.has_proxy(address), sets.exempt(address));
                let wanted = (decision.allowed, false, false);
                assert_eq!(says, wanted, "round {round}: the set and {address}");
                let found = (decision.allowed, decision.rule.and_then(|rule| rule.caller.prefix()));
                let wanted = naive(allow, deny, address.to_canonical());
                assert_eq!(found, wanted, "round {round}: {address} in {lists:?}");
            }
        }
    }

    /// The interface's words about users: he counts more than his groups, deny wins a tie, an allow denies the rest.
    fn naive_user(allow: &[Caller], deny: &[Caller], user: &LocalUser<'_>) -> bool {
        let is_him = |caller: &Caller| *caller == Caller::User(user.uid);
        let is_his = |caller: &Caller| matches!(caller, Caller::Group(gid) if user.groups.contains(gid));
        if deny.iter().any(is_him) {
            false
        } else if allow.iter().any(is_him) {
            true
        } else if deny.iter().any(is_his) {
            false
        } else {
            allow.iter().any(is_his) || allow.is_empty()
        }
    }

    #[test]
    fn rules_about_users_and_groups_agree_with_a_naive_matcher() {
        let mut random = fastrand::Rng::with_seed(crate::seeded::seed());
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        // Without a supplementary group that the lists know, but for the effective one.
        let place = WrittenAt { name: "x", line: None };
        for round in 0..300 {
            let lists: [Vec<Caller>; 2] = [(); 2].map(|()| {
                let number = random.usize(..6);
                let entry = |_| match random.bool() {
                    true => Caller::User(random.u32(1000..1006)),
                    false => Caller::Group(random.u32(2_000_000..2_000_004)),
                };
                (0..number).map(entry).collect()
            });
            let [allow, deny] = &lists;
            let listed =
                |list: &[Caller]| list.iter().map(|&caller| Listed { caller, place }).collect::<Vec<_>>();
            let rules = Rules::new(listed(allow), listed(deny));
            let none = Callers::default();
            let file = CallerSets::freeze(&rules, &none, &none).unwrap();
            let sets = CallerSets::open(file.as_fd()).unwrap();
            for uid in 999..1007 {
                for gid in 1_999_999..2_000_005 {
                    let user = LocalUser { uid, groups: &[gid] };
                    let wanted = naive_user(allow, deny, &user);
                    assert_eq!(
                        rules.decide_user(&user).allowed,
                        wanted,
                        "round {round}: {user:?} in {lists:?}"
                    );
                    let peer = PeerCredentials { pid: 1, uid, gid };
                    let set = sets.allow_user(Some(peer), one.as_fd());
                    assert_eq!(set, wanted, "round {round}: the set and {user:?} in {lists:?}");
                }
            }
            let unknown = sets.allow_user(None, one.as_fd());
            assert_eq!(unknown, allow.is_empty() && deny.is_empty(), "round {round}: nobody knows who");
        }
    }

    #[test]
    fn the_table_grows_with_the_rules_and_not_with_the_addresses() {
        let mut random = fastrand::Rng::with_seed(7);
        let prefixes: Vec<Prefix> = (0..crate::seeded::turns(20_000))
            .map(|_| Prefix::around(Ipv4Addr::from_bits(random.u32(..)).into(), random.u8(24..=32)))
            .collect();
        let place = WrittenAt { name: "x", line: None };
        let rules =
            Rules::new([], prefixes.iter().map(|&prefix| Listed { caller: Caller::Prefix(prefix), place }));
        assert!(prefixes.iter().all(|&prefix| !rules.decide(edges(prefix)[0]).allowed));
    }
}
