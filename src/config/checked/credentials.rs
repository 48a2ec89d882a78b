//! Credentials: secrets that systemd gave to preforkd, for the programs of one service.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The variable in which systemd says where they are, and in which programs find it.
pub(crate) const VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// What no message and no log shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(pub(in crate::config) Vec<u8>);

impl Secret {
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} bytes)", self.0.len())
    }
}

/// Credentials by name.
pub(crate) type Credentials = BTreeMap<String, Secret>;

/// Whether a credential can have this name: systemd's rule, which makes it the name of a file.
pub(in crate::config) fn is_name(name: &str) -> bool {
    let is_right = |c: char| c.is_ascii() && !c.is_ascii_control() && !matches!(c, '/' | ':');
    !name.is_empty() && name.len() <= 255 && name.chars().all(is_right) && !matches!(name, "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_that_of_a_file_and_a_secret_is_never_shown() {
        for name in ["db", "tls.key", "a b", "-", "..."] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a:b", "é", "a\nb", &"x".repeat(256)] {
            assert!(!is_name(name), "{name}");
        }
        let secret = format!("{:?}", Secret(b"secret".to_vec()));
        assert_eq!(secret, "(6 bytes)");
    }
}
