//! Exit codes: those of sysexits(3head), because systemd prints their names.

/// All is well.
pub(crate) const OK: u8 = 0;
/// The command line is wrong (`EX_USAGE`).
pub(crate) const USAGE: u8 = 64;
/// What a client has sent is wrong (`EX_DATAERR`).
pub(crate) const DATA: u8 = 65;
/// No preforkd answers on the control socket (`EX_UNAVAILABLE`).
pub(crate) const UNAVAILABLE: u8 = 69;
/// A bug of the program's own (`EX_SOFTWARE`).
pub(crate) const SOFTWARE: u8 = 70;
/// The operating system refused something that no configuration explains (`EX_OSERR`).
pub(crate) const OS: u8 = 71;
/// The user may not do this (`EX_NOPERM`).
pub(crate) const NOT_PERMITTED: u8 = 77;
/// The configuration is wrong (`EX_CONFIG`).
pub(crate) const CONFIG: u8 = 78;
/// A handler has panicked: what std exits with.
pub(crate) const PANICKED: u8 = 101;
