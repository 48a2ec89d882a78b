//! CIDR prefixes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// How much of an IPv4-mapped IPv6 address is not the IPv4 address, RFC 4291 section 2.5.5.2.
const MAPPED: u8 = 96;

/// A prefix of addresses, without host bits; IPv4-mapped ones are IPv4 here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Prefix {
    network: IpAddr,
    length: u8,
}

/// Why a text is no prefix, as the end of a sentence that begins with the text, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PrefixError {
    /// The address is none.
    #[error("is no prefix of addresses")]
    NoAddress,
    /// What follows the slash is no length of this family.
    #[error("has no length from 0 to {0} after its \"/\"")]
    NoLength(u8),
    /// Bits beyond the length are set.
    #[error("has bits beyond its length; the prefix is {0}")]
    HostBits(Prefix),
    /// `%eth0`
    #[error("has a zone, and a prefix is for all interfaces")]
    Zone,
}

impl PrefixError {
    /// What to write instead.
    pub(crate) fn help(&self, text: &str) -> String {
        match self {
            Self::HostBits(right) => {
                let address = text.split('/').next().unwrap_or_default();
                format!("write \"{right}\", or \"{address}\" for this one address")
            }
            Self::Zone => format!("write \"{}\"", text.split('%').next().unwrap_or_default()),
            Self::NoAddress | Self::NoLength(_) => {
                "write an IP address or a prefix, as in \"192.0.2.0/24\" or \"2001:db8::/32\" (names are not \
                 looked up)"
                    .to_owned()
            }
        }
    }
}

impl Prefix {
    /// The prefix of this length that has the address in it. A length beyond the family's is the whole address.
    pub(crate) fn around(address: IpAddr, length: u8) -> Self {
        let address = address.to_canonical();
        let length = length.min(width(address));
        Prefix { network: masked(address, length), length }
    }

    /// The prefix, or what is wrong with it.
    fn new(address: IpAddr, length: u8) -> Result<Self, PrefixError> {
        let canonical = address.to_canonical();
        let (address, length) = match (address, canonical) {
            // Shorter than the mapping it is a prefix of IPv6 addresses, whatever they look like.
            (IpAddr::V6(_), IpAddr::V4(_)) if length < MAPPED => return Self::exact(address, length),
            (IpAddr::V6(_), IpAddr::V4(_)) => (canonical, length - MAPPED),
            _ => (address, length),
        };
        Self::exact(address, length)
    }

    fn exact(address: IpAddr, length: u8) -> Result<Self, PrefixError> {
        let prefix = Prefix { network: masked(address, length), length };
        if prefix.network == address { Ok(prefix) } else { Err(PrefixError::HostBits(prefix)) }
    }

    /// Whether the address has this prefix.
    #[cfg(test)]
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.is_ipv4() && Self::around(address, self.length) == *self
    }

    /// Whether the two have an address in common: then one has all of the other.
    pub(crate) fn overlaps(&self, other: &Prefix) -> bool {
        let length = self.length.min(other.length);
        self.is_ipv4() == other.is_ipv4()
            && Self::around(self.network, length) == Self::around(other.network, length)
    }

    /// Its first address.
    pub(crate) fn network(&self) -> IpAddr {
        self.network
    }

    /// Whether it is a single address.
    pub(crate) fn is_one_address(&self) -> bool {
        self.length == width(self.network)
    }

    /// How many bits of an address it is.
    pub(crate) fn length(&self) -> u8 {
        self.length
    }

    /// Whether it is of IPv4 addresses.
    pub(crate) fn is_ipv4(&self) -> bool {
        self.network.is_ipv4()
    }

    /// Its first and last address, as numbers.
    pub(super) fn range(&self) -> (u128, u128) {
        match self.network {
            IpAddr::V4(v4) => {
                let first = v4.to_bits();
                (first.into(), (first | !mask4(self.length)).into())
            }
            IpAddr::V6(v6) => (v6.to_bits(), v6.to_bits() | !mask6(self.length)),
        }
    }
}

/// The longest prefix of the family.
fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address without what is beyond the length.
fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & mask4(length)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & mask6(length)).into(),
    }
}

fn mask4(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0)
}

fn mask6(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0)
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        if let Some((bare, _)) = address.split_once('%') {
            return Err(bare.parse::<Ipv6Addr>().map_or(PrefixError::NoAddress, |_| PrefixError::Zone));
        }
        let address: IpAddr = address.parse().map_err(|_| PrefixError::NoAddress)?;
        let most = width(address);
        let length = match length {
            // u8's own parser takes "+8" and "008".
            Some(digits) if digits.starts_with('+') || (digits.starts_with('0') && digits != "0") => None,
            Some(digits) => digits.parse().ok().filter(|length| *length <= most),
            None => Some(most),
        };
        Self::new(address, length.ok_or(PrefixError::NoLength(most))?)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

/// What is saved as it is written.
pub(super) fn from_text<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err = PrefixError>,
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|error| de::Error::custom(format_args!("\"{text}\" {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, PrefixError> {
        text.parse::<Prefix>().map(|prefix| prefix.to_string())
    }

    #[test]
    fn prefixes_overlap_if_one_has_the_other() {
        for (one, other, overlap) in [
            ("192.0.2.0/24", "192.0.2.7", true),
            ("192.0.2.0/24", "192.0.3.7", false),
            ("0.0.0.0/0", "192.0.2.0/24", true),
            ("::/0", "192.0.2.0/24", false),
            ("2001:db8::/64", "2001:db8::/32", true),
        ] {
            let [one, other]: [Prefix; 2] = [one, other].map(|text| text.parse().unwrap());
            assert_eq!((one.overlaps(&other), other.overlaps(&one)), (overlap, overlap), "{one} {other}");
        }
    }

    #[test]
    fn prefixes_and_addresses_are_read() {
        for (text, prefix) in [
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::/95", "::/95"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(prefix), "{text}");
            assert_eq!(parse(prefix).as_deref(), Ok(prefix), "{prefix}");
        }
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in ["", "/", "localhost", "192.0.2/24", "192.0.02.0/24", "1.2.3.4.5", "10.0.0.0 /8", "[::1]"]
        {
            assert_eq!(parse(text), Err(PrefixError::NoAddress), "{text}");
        }
        for text in ["10.0.0.0/", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/08", "10.0.0.0/8/8", "10.0.0.0/-1"]
        {
            assert_eq!(parse(text), Err(PrefixError::NoLength(32)), "{text}");
        }
        assert_eq!(parse("::/129"), Err(PrefixError::NoLength(128)));
        assert_eq!(parse("10.0.0.0/255.0.0.0"), Err(PrefixError::NoLength(32)));
        assert_eq!(parse("fe80::1%eth0/64"), Err(PrefixError::Zone));
    }

    #[test]
    fn host_bits_are_an_error_that_names_the_prefix() {
        for (text, right) in [
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("2001:db8::1/64", "2001:db8::/64"),
            ("::ffff:10.0.0.1/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.0/64", "::/64"),
            ("128.0.0.0/0", "0.0.0.0/0"),
        ] {
            let error = text.parse::<Prefix>().unwrap_err();
            assert_eq!(error, PrefixError::HostBits(right.parse().unwrap()), "{text}");
            assert!(error.help(text).contains(right) && error.to_string().contains(right), "{error}");
        }
    }

    #[test]
    fn a_prefix_contains_its_range() {
        let prefix: Prefix = "192.0.2.0/23".parse().unwrap();
        for (address, inside) in
            [("192.0.2.0", true), ("192.0.2.255", true), ("::ffff:192.0.3.9", true), ("192.0.4.0", false)]
        {
            assert_eq!(prefix.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert!(!"::/0".parse::<Prefix>().unwrap().contains("192.0.2.1".parse().unwrap()));
        assert!(!"0.0.0.0/0".parse::<Prefix>().unwrap().contains("::1".parse().unwrap()));
    }

    #[test]
    fn the_source_prefix_of_an_address() {
        for (address, length, prefix) in [
            ("192.0.2.7", 32, "192.0.2.7/32"),
            ("192.0.2.7", 24, "192.0.2.0/24"),
            ("::ffff:192.0.2.7", 64, "192.0.2.7/32"),
            ("2001:db8:1:2:3::4", 64, "2001:db8:1:2::/64"),
            ("2001:db8::4", 0, "::/0"),
        ] {
            assert_eq!(Prefix::around(address.parse().unwrap(), length).to_string(), prefix);
        }
    }

    #[test]
    fn prefixes_survive_json() {
        let prefix: Prefix = "2001:db8::/32".parse().unwrap();
        let json = serde_json::to_string(&prefix).unwrap();
        assert_eq!(json, "\"2001:db8::/32\"");
        assert_eq!(serde_json::from_str::<Prefix>(&json).unwrap(), prefix);
        assert!(serde_json::from_str::<Prefix>("\"10.0.0.1/8\"").is_err());
    }
}
