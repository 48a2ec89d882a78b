//! Exit codes: those of sysexits(3head), because systemd prints their names.

/// All is well.
pub(crate) const OK: u8 = 0;
/// The command line is wrong (`EX_USAGE`).
pub(crate) const USAGE: u8 = 64;
/// No preforkd answers on the control socket (`EX_UNAVAILABLE`).
pub(crate) const UNAVAILABLE: u8 = 69;
/// A bug of preforkd's own (`EX_SOFTWARE`).
pub(crate) const SOFTWARE: u8 = 70;
/// The operating system refused something that no configuration explains (`EX_OSERR`).
pub(crate) const OS: u8 = 71;
/// The user may not do this (`EX_NOPERM`).
pub(crate) const NOT_PERMITTED: u8 = 77;
/// The configuration is wrong (`EX_CONFIG`).
pub(crate) const CONFIG: u8 = 78;
