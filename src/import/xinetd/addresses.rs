//! Addresses as xinetd reads them.

use std::net::{IpAddr, Ipv4Addr};

use crate::import::place;

/// The prefixes that a value of `only_from` stands for, as addr.c of xinetd reads it, or why there are none.
pub(super) fn addresses(value: &str) -> Result<Vec<String>, String> {
    if value.eq_ignore_ascii_case("localhost") {
        return Ok(vec!["127.0.0.0/8".to_owned(), "::1/128".to_owned()]);
    }
    if let Some((start, list)) = value.split_once('{') {
        return factorized(start, list).ok_or_else(|| "no address with its last part in braces".to_owned());
    }
    if value.contains(',') {
        return Err("xinetd takes no commas between addresses".to_owned());
    }
    if let Some((ip, mask)) = value.split_once('/') {
        return match place::prefix(value) {
            Some(prefix) if mask.contains('.') => Err(format!(
                "xinetd takes a length after the /, and this for {ip} alone; {prefix} may be meant"
            )),
            Some(prefix) => Ok(vec![prefix]),
            None => Err("no prefix".to_owned()),
        };
    }
    if value.contains(':') {
        return place::prefix(value).map(|prefix| vec![prefix]).ok_or_else(|| "no address".to_owned());
    }
    let is_name = value.bytes().any(|byte| !byte.is_ascii_digit() && byte != b'.');
    match parts(value).as_deref() {
        // Its zeros at the end stand for anything.
        Some(&[a, b, c, d]) => {
            let zeros = [d, c, b, a].iter().take_while(|part| **part == 0).count();
            Ok(vec![dotted([a, b, c, d], 4 - zeros)])
        }
        _ if is_name => Err("preforkd looks up no names".to_owned()),
        Some(_) => {
            // inet_aton(3) has the last part fill what is missing.
            Err(format!("xinetd fills in zeros before the last part, not after it; {value}.0 may be meant"))
        }
        None => Err("no address, or one with zeros before its digits, which make it octal".to_owned()),
    }
}

/// `128.138.{12,13}`: how long the prefixes are, the place of the braces says.
fn factorized(start: &str, list: &str) -> Option<Vec<String>> {
    let list = list.strip_suffix('}')?;
    let before = match start {
        "" => Vec::new(),
        start => parts(start.strip_suffix('.')?).filter(|parts| parts.len() < 4)?,
    };
    let all = list.split(',').take(256).map(|last| {
        let last = parts(last).filter(|last| last.len() == 1)?;
        let written = before.len() + 1;
        let mut octets = [0; 4];
        octets.iter_mut().zip(before.iter().chain(&last)).for_each(|(octet, part)| *octet = *part);
        Some(dotted(octets, written))
    });
    all.collect()
}

/// The numbers of an address of IPv4, or of its beginning.
fn parts(text: &str) -> Option<Vec<u8>> {
    let part = |part: &str| {
        let is_decimal =
            part.bytes().all(|byte| byte.is_ascii_digit()) && (part.len() == 1 || !part.starts_with('0'));
        part.parse().ok().filter(|_| is_decimal)
    };
    let parts: Option<Vec<u8>> = text.split('.').map(part).collect();
    parts.filter(|parts| parts.len() <= 4)
}

/// The prefix of so many octets of an address.
fn dotted(octets: [u8; 4], written: usize) -> String {
    let length = 8 * u32::try_from(written).unwrap_or(4);
    format!("{}/{length}", place::network(IpAddr::V4(Ipv4Addr::from(octets)), length))
}

/// Whether all of a prefix is in another, too.
pub(super) fn is_within(inner: &str, outer: &str) -> bool {
    let read = |prefix: &str| {
        let (ip, length) = prefix.split_once('/')?;
        Some((ip.parse::<IpAddr>().ok()?, length.parse::<u32>().ok()?))
    };
    let (Some((inner, own)), Some((outer, length))) = (read(inner), read(outer)) else { return false };
    inner.is_ipv4() == outer.is_ipv4() && own >= length && place::network(inner, length) == outer
}
