//! The specification's examples, everything cut short, and lies.

use std::net::SocketAddr;

use super::*;

const LIMIT: usize = 4096;

fn header(bytes: &[u8]) -> Header {
    match parse(bytes, LIMIT) {
        Ok(Parsed::Header(header)) => header,
        other => panic!("{other:?}: {}", bytes.escape_ascii()),
    }
}

fn error(bytes: &[u8]) -> ProxyError {
    parse(bytes, LIMIT).map(|parsed| panic!("{parsed:?}: {}", bytes.escape_ascii())).unwrap_err()
}

fn from(source: &str, destination: &str) -> ProxiedClient {
    ProxiedClient::Tcp { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [v2::SIGNATURE, &[0x20 | command, family], &length, block].concat()
}

const TCP4: [u8; 12] = [127, 0, 0, 1, 127, 0, 0, 2, 0, 42, 5, 57];

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

/// A header with a right checksum between two other fields.
fn with_checksum(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let fields = [tlv(0x01, b"h2"), tlv(0x03, &[0; 4]), tlv(0x04, &[7; 9])].concat();
    let mut bytes = v2(command, family, &[addresses, &fields].concat());
    let at = 16 + addresses.len() + 5 + 3;
    let sum = crate::admission::crc32c::checksum([&bytes, b"", b""]);
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// Every kind of header that is right.
fn good() -> Vec<(Vec<u8>, ProxiedClient)> {
    let text = |line: &str| format!("{line}\r\n").into_bytes();
    let mut unix = [0; 216];
    unix[..6].copy_from_slice(b"/run/x");
    let tcp6 = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1], &[0; 15], &[1], &[0xff, 0xff, 0, 25]].concat();
    let mapped = [&[0; 10][..], &[0xff, 0xff, 192, 0, 2, 1], &[0; 15], &[1], &[0, 1, 0, 2]].concat();
    let plain4 = from("127.0.0.1:42", "127.0.0.2:1337");
    vec![
        (
            text("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443"),
            from("192.168.0.1:56324", "192.168.0.11:443"),
        ),
        (
            text("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535"),
            from("255.255.255.255:65535", "255.255.255.255:65535"),
        ),
        (text("PROXY TCP4 0.0.0.0 0.0.0.0 0 0"), from("0.0.0.0:0", "0.0.0.0:0")),
        (text("PROXY TCP6 :: ::1 0 1"), from("[::]:0", "[::1]:1")),
        (text("PROXY TCP6 2001:DB8::a 2001:db8::B 9 10"), from("[2001:db8::a]:9", "[2001:db8::b]:10")),
        (
            text(&format!("PROXY TCP6 {0} {0} 65535 65535", "ffff:".repeat(8).trim_end_matches(':'))),
            from(
                "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
                "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
            ),
        ),
        (text("PROXY TCP6 ::ffff:192.0.2.1 ::1 9 10"), from("192.0.2.1:9", "[::1]:10")),
        (text("PROXY UNKNOWN"), ProxiedClient::Unknown),
        (text("PROXY UNKNOWN what ever\0it \u{e9} is"), ProxiedClient::Unknown),
        (text(&format!("PROXY UNKNOWN {}", "x".repeat(91))), ProxiedClient::Unknown),
        (v2(1, 0x11, &TCP4), plain4),
        (v2(1, 0x11, &[&TCP4[..], &tlv(2, b"12345")].concat()), plain4),
        (v2(1, 0x11, &[&TCP4[..], &tlv(0xe0, &[3; 3000])].concat()), plain4),
        (v2(1, 0x21, &tcp6), from("[2001:db8::1]:65535", "[::1]:25")),
        (v2(1, 0x21, &mapped), from("192.0.2.1:1", "[::1]:2")),
        (v2(1, 0x31, &unix), ProxiedClient::Unix),
        (v2(1, 0x00, &[]), ProxiedClient::Unknown),
        (v2(1, 0x00, &[1, 2]), ProxiedClient::Unknown),
        (v2(1, 0x10, &[]), ProxiedClient::Unknown),
        (v2(1, 0x01, &[]), ProxiedClient::Unknown),
        (v2(1, 0x12, &TCP4), ProxiedClient::Unknown),
        (v2(0, 0x00, &[]), ProxiedClient::Local),
        (v2(0, 0xff, &[3]), ProxiedClient::Local),
        (v2(0, 0x11, &TCP4), ProxiedClient::Local),
        (with_checksum(1, 0x11, &TCP4), plain4),
        (with_checksum(1, 0x21, &tcp6), from("[2001:db8::1]:65535", "[::1]:25")),
        (with_checksum(0, 0x00, &[]), ProxiedClient::Local),
        (with_checksum(1, 0x31, &unix), ProxiedClient::Unix),
    ]
}

#[test]
fn headers_are_read_and_what_follows_is_not() {
    for (bytes, client) in good() {
        let length = bytes.len();
        assert_eq!(header(&bytes), Header { client, length }, "{}", bytes.escape_ascii());
        for next in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\r\n", &[0xff; 5000]] {
            assert_eq!(header(&[&bytes, next].concat()), Header { client, length });
        }
    }
}

#[test]
fn nothing_that_is_cut_short_is_a_header_or_an_error() {
    for (bytes, _) in good() {
        for length in 0..bytes.len() {
            match parse(&bytes[..length], LIMIT) {
                Ok(Parsed::NeedMore(more)) if more > 0 && length + more <= bytes.len() => {}
                other => panic!("{other:?} after {length} of {}", bytes.escape_ascii()),
            }
        }
    }
}

#[test]
fn who_reads_what_is_needed_reads_the_header_exactly_and_soon() {
    for (bytes, _) in good() {
        let (mut length, mut reads) = (0, 0);
        while let Ok(Parsed::NeedMore(more)) = parse(&bytes[..length], LIMIT) {
            (length, reads) = (length + more, reads + 1);
        }
        assert_eq!(length, bytes.len());
        let most = if bytes[0] == b'P' { 50 } else { 3 };
        assert!(reads <= most, "{reads} for {}", bytes.escape_ascii());
    }
}

#[test]
fn other_protocols_are_told_by_their_first_bytes() {
    for bytes in [
        &b"G"[..],
        b"GET / HTTP/1.1",
        b"proxy TCP4",
        b"PROXX",
        b"PROXY\t",
        b"\r\n\r\n\r",
        b"\n",
        b" PROXY",
        b"\0",
        b"\x16\x03\x01",
    ] {
        assert_eq!(error(bytes), ProxyError::NotProxy, "{}", bytes.escape_ascii());
    }
}

#[test]
fn version_1_is_taken_word_for_word() {
    use ProxyError::{Address, LineEnd, Port, Words};
    for (line, why) in [
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2", None),
        ("PROXY  TCP4 1.2.3.4 1.2.3.4 1 2", Some(Words)),
        ("PROXY TCP4  1.2.3.4 1.2.3.4 1 2", Some(Words)),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1  2", Some(Words)),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 ", Some(Words)),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3", Some(Words)),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1", Some(Words)),
        ("PROXY TCP4", Some(Words)),
        ("PROXY ", Some(Words)),
        ("PROXY UDP4 1.2.3.4 1.2.3.4 1 2", Some(Words)),
        ("PROXY tcp4 1.2.3.4 1.2.3.4 1 2", Some(Words)),
        ("PROXY UNKNOWNS", Some(Words)),
        ("PROXY TCP4 01.2.3.4 1.2.3.4 1 2", Some(Address)),
        ("PROXY TCP4 1.2.3.256 1.2.3.4 1 2", Some(Address)),
        ("PROXY TCP4 1.2.3 1.2.3.4 1 2", Some(Address)),
        ("PROXY TCP4 ::1 ::1 1 2", Some(Address)),
        ("PROXY TCP6 1.2.3.4 1.2.3.4 1 2", Some(Address)),
        ("PROXY TCP6 ::1 :: 1 2", None),
        ("PROXY TCP6 1::2::3 ::1 1 2", Some(Address)),
        ("PROXY TCP6 00001:: ::1 1 2", Some(Address)),
        ("PROXY TCP6 fe80::1%1 ::1 1 2", Some(Address)),
        ("PROXY TCP6 [::1] ::1 1 2", Some(Address)),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 01 2", Some(Port)),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 00 2", Some(Port)),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 +1 2", Some(Port)),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 -1 2", Some(Port)),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 65536 2", Some(Port)),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 99999999999999999999", Some(Port)),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r", Some(LineEnd)),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", Some(LineEnd)),
        ("PROXY UNKNOWN a\rb", Some(LineEnd)),
        ("PROXY UNKNOWN a\nb", Some(LineEnd)),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 \u{662}", Some(Port)),
    ] {
        let result = parse(format!("{line}\r\n").as_bytes(), LIMIT);
        assert_eq!(result.err(), why, "{line}");
    }
    assert_eq!(error(b"PROXY TCP4 1.2.3.4 1.2.3.4 1 \xff\r\n"), Words);
    assert_eq!(error(b"PROXY TCP5"), Words);
    assert_eq!(error(b"PROXY\r\n"), ProxyError::NotProxy);
}

#[test]
fn version_1_ends_within_107_bytes() {
    let line = |length: usize| format!("PROXY UNKNOWN {}", "x".repeat(length - 14));
    assert_eq!(header(format!("{}\r\n", line(105)).as_bytes()).length, LONGEST_V1);
    for bytes in [line(106), format!("{}\r", line(106)), format!("{}\r\n", line(106)), line(5000)] {
        assert_eq!(error(bytes.as_bytes()), ProxyError::Endless, "{} bytes", bytes.len());
    }
    assert_eq!(parse(format!("{}\r", line(105)).as_bytes(), LIMIT), Ok(Parsed::NeedMore(1)));
}

#[test]
fn version_2_lies_are_told_as_soon_as_they_are_there() {
    use ProxyError::{Command, Family, TooLong, TooShort, Version};
    let start = |bytes: &[u8]| error(&[v2::SIGNATURE, bytes].concat());
    assert_eq!(start(&[0x11]), Version(1));
    assert_eq!(start(&[0x31]), Version(3));
    assert_eq!(start(&[0x22]), Command(2));
    assert_eq!(start(&[0x21, 0x41]), Family(0x41));
    assert_eq!(start(&[0x21, 0x13]), Family(0x13));
    assert_eq!(start(&[0x21, 0x11, 0, 11]), TooShort);
    assert_eq!(start(&[0x21, 0x21, 0, 35]), TooShort);
    assert_eq!(start(&[0x21, 0x31, 0, 215]), TooShort);
    assert_eq!(start(&[0x21, 0x11, 0x0f, 0xf1]), TooLong { length: 4097, limit: LIMIT });
    assert_eq!(start(&[0x20, 0, 0xff, 0xff]), TooLong { length: LONGEST_V2, limit: LIMIT });
    let whole = [v2::SIGNATURE, &[0x20, 0, 0xff, 0xff]].concat();
    assert_eq!(parse(&whole, LONGEST_V2), Ok(Parsed::NeedMore(65535)));
    assert_eq!(parse(&whole, 0), Err(TooLong { length: LONGEST_V2, limit: 0 }));
}

#[test]
fn fields_stay_within_the_header() {
    let with = |fields: &[u8]| parse(&v2(1, 0x11, &[&TCP4, fields].concat()), LIMIT).err();
    assert_eq!(with(&[]), None);
    assert_eq!(with(&tlv(2, b"")), None);
    for fields in [
        &[2][..],
        &[2, 0],
        &[2, 0, 1],
        &[2, 0, 10, b'1', b'2', b'3', b'4', b'5'],
        &[2, 0xff, 0xff],
        // HAProxy's reg-tests/connection/proxy_protocol_tlv_validation.vtc
        &[2, 0, 4, b'1', b'2', b'3', b'4', 0],
        &[3, 0, 3, 0, 0, 0],
        &[3, 0, 5, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(with(fields), Some(ProxyError::Field), "{fields:?}");
        // What has no known layout is not looked at.
        assert!(parse(&v2(0, 0x11, fields), LIMIT).is_ok());
        assert!(parse(&v2(1, 0x00, fields), LIMIT).is_ok());
    }
}

#[test]
fn the_checksum_is_over_every_bit_of_the_header() {
    let right = with_checksum(1, 0x11, &TCP4);
    for bit in 16 * 8..right.len() * 8 {
        let mut wrong = right.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        let result = parse(&wrong, LIMIT);
        // The frames of the fields: with another one there may be no checksum any more.
        let is_frame = matches!(bit / 8, 29 | 30 | 33..=35 | 41 | 42);
        let is_refused = matches!(result, Err(ProxyError::Checksum | ProxyError::Field));
        assert!(is_refused || is_frame, "bit {bit}: {result:?}");
    }
    let mut local = with_checksum(0, 0x00, &[]);
    *local.last_mut().unwrap() ^= 1;
    assert_eq!(error(&local), ProxyError::Checksum);
    let twice = [tlv(3, &[0; 4]), tlv(3, &[0; 4])].concat();
    assert_eq!(error(&v2(1, 0x11, &[&TCP4[..], &twice].concat())), ProxyError::Field);
}

/// Every answer to random bytes, mutated headers and random cuts keeps the promises of [`parse`].
#[test]
fn random_bytes_harm_nothing() {
    let mut random = fastrand::Rng::with_seed(crate::seeded::seed());
    let mut random = |end: usize| random.usize(..end);
    let good = good();
    for round in 0..crate::seeded::turns(30_000) {
        let mut bytes = good[random(good.len())].0.clone();
        for _ in 0..random(4) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes.insert(at, u8::try_from(random(256)).unwrap()),
                2 => bytes[at] ^= 1 << random(8),
                _ => bytes[at] = u8::try_from(random(256)).unwrap(),
            }
        }
        let context = || format!("round {round}: {}", bytes.escape_ascii());
        let limit = [LIMIT, 16, 200][random(3)];
        let whole = parse(&bytes, limit);
        match whole {
            Ok(Parsed::Header(header)) => {
                assert!(
                    header.length <= bytes.len() && header.length <= limit.max(LONGEST_V1),
                    "{}",
                    context()
                );
                let exact = &bytes[..header.length];
                assert_eq!(parse(exact, limit), whole, "{}", context());
                let short = random(header.length);
                assert!(
                    matches!(parse(&bytes[..short], limit), Ok(Parsed::NeedMore(more)) if short + more <= header.length),
                    "{} bytes of {}",
                    short,
                    context()
                );
            }
            Ok(Parsed::NeedMore(more)) => {
                assert!(more > 0 && bytes.len() + more <= limit.max(LONGEST_V1), "{}", context());
            }
            // Once wrong, always wrong.
            Err(error) => {
                bytes.extend_from_slice(b"more");
                let later = parse(&bytes, limit);
                assert!(later.is_err(), "{error} then {later:?}: {}", bytes.escape_ascii());
            }
        }
    }
}

/// A real address of the type that the rest of the program has.
#[test]
fn addresses_are_plain() {
    let ProxiedClient::Tcp { source, .. } = header(b"PROXY TCP6 ::ffff:1.2.3.4 ::1 5 6\r\n").client else {
        panic!()
    };
    assert_eq!(source, "1.2.3.4:5".parse::<SocketAddr>().unwrap());
}

/// What HAProxy 2.6 sends: `check-send-proxy` and `send-proxy-v2`, both with crc32c, and `send-proxy`.
#[test]
fn headers_of_haproxy_are_read() {
    let bytes = |hex: &str| -> Vec<u8> {
        hex.split(' ').map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect()
    };
    let check = bytes("0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a 20 00 00 07 03 00 04 a9 b8 7e 8f");
    assert_eq!(header(&check), Header { client: ProxiedClient::Local, length: 23 });
    let mut unique = bytes(
        "0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a 21 11 00 3a 7f 00 00 01 7f 00 00 01 89 8a 49 71 03 00 04 76 62 4a 2c \
         05 00 24 36 33 62 34 63 35 62 61 2d 63 61 63 65 2d 34 64 39 36 2d 62 35 39 61 2d 37 31 33 35 38 64 63 35 \
         64 61 33 61 68 69",
    );
    assert_eq!(header(&unique), Header { client: from("127.0.0.1:35210", "127.0.0.1:18801"), length: 74 });
    unique[60] ^= 1;
    assert_eq!(error(&unique), ProxyError::Checksum);
    let text = b"PROXY TCP6 ::1 ::1 49172 18804\r\nhi";
    assert_eq!(header(text), Header { client: from("[::1]:49172", "[::1]:18804"), length: 32 });
}
