//! CRC32c, the checksum of RFC 4960 appendix B.

/// Its polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

static TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut rest = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            rest = if rest & 1 == 1 { rest >> 1 ^ POLYNOMIAL } else { rest >> 1 };
            bit += 1;
        }
        table[byte] = rest;
        byte += 1;
    }
    table
}

/// The checksum of the pieces, one after the other.
pub(super) fn checksum(pieces: [&[u8]; 3]) -> u32 {
    let step = |rest: u32, byte: &u8| rest >> 8 ^ TABLE[usize::from(rest as u8 ^ byte)];
    !pieces.into_iter().flatten().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use crate::admission::crc32c::checksum;

    /// The test vectors of RFC 3720 appendix B.4, and the usual check value.
    #[test]
    fn known_checksums() {
        let ascending: Vec<u8> = (0..32).collect();
        for (data, sum) in [
            (&b""[..], 0),
            (b"123456789", 0xe306_9283),
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
        ] {
            assert_eq!(checksum([data, b"", b""]), sum);
            let (head, tail) = data.split_at(data.len() / 3);
            assert_eq!(checksum([head, b"", tail]), sum);
        }
    }
}
