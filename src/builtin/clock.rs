//! Daytime (RFC 867) and time (RFC 868).

use std::io::{self, Write};

use time::OffsetDateTime;
use time::macros::format_description;

use crate::{Connection, Handler, NoOptions};

/// From 1900, where RFC 868 begins, to 1970: 70 years, 17 of them leap years.
const SECONDS_TO_1970: i64 = 2_208_988_800;

/// Sends the date and time as a line.
pub(crate) struct Daytime;

impl Handler for Daytime {
    type Options = NoOptions;
    const STDERR: bool = false;
    const THREADS: bool = false;

    fn serve(&self, client: &mut Connection<'_>) -> io::Result<()> {
        let mut line = [0; 128];
        let length = daytime_line(OffsetDateTime::now_utc(), &mut line).unwrap_or(0);
        client.write_all(&line[..length])?;
        client.finish()
    }
}

/// Sends the seconds since 1900 as four bytes, most significant first.
pub(crate) struct Time;

impl Handler for Time {
    type Options = NoOptions;
    const STDERR: bool = false;
    const THREADS: bool = false;

    fn serve(&self, client: &mut Connection<'_>) -> io::Result<()> {
        client.write_all(&seconds_since_1900(OffsetDateTime::now_utc().unix_timestamp()).to_be_bytes())?;
        client.finish()
    }
}

/// The first of the two forms that RFC 867 suggests: "Tuesday, February 22, 1982 17:37:43-PST".
fn daytime_line(now: OffsetDateTime, line: &mut [u8]) -> io::Result<usize> {
    let form = format_description!(
        "[weekday], [month repr:long] [day padding:none], [year] [hour]:[minute]:[second]-UTC\r\n"
    );
    let room = line.len();
    let mut rest = line;
    now.format_into(&mut rest, form).map_err(io::Error::other)?;
    Ok(room - rest.len())
}

/// Modulo 2^32: the protocol's clock wraps on 7 February 2036, 06:28:16 UTC, and a client that reckons modulo 2^32
/// as well stays right.
fn seconds_since_1900(unix: i64) -> u32 {
    unix.wrapping_add(SECONDS_TO_1970).rem_euclid(1 << 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_those_of_rfc_868() {
        // The RFC's own table, then the wrap.
        assert_eq!(seconds_since_1900(0), 2_208_988_800);
        assert_eq!(seconds_since_1900(189_302_400), 2_398_291_200);
        assert_eq!(seconds_since_1900(315_532_800), 2_524_521_600);
        assert_eq!(seconds_since_1900(420_595_200), 2_629_584_000);
        assert_eq!(seconds_since_1900(-3_506_716_800) as i32, -1_297_728_000);
        assert_eq!(seconds_since_1900(2_085_978_495), u32::MAX);
        assert_eq!(seconds_since_1900(2_085_978_496), 0);
    }

    #[test]
    fn a_line_is_that_of_rfc_867() {
        let mut line = [0; 128];
        let now = OffsetDateTime::from_unix_timestamp(2_085_978_496).unwrap();
        let length = daytime_line(now, &mut line).unwrap();
        assert_eq!(&line[..length], b"Thursday, February 7, 2036 06:28:16-UTC\r\n");
        let now = OffsetDateTime::from_unix_timestamp(0).unwrap();
        let length = daytime_line(now, &mut line).unwrap();
        assert_eq!(&line[..length], b"Thursday, January 1, 1970 00:00:00-UTC\r\n");
    }
}
