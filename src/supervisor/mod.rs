//! The supervisor: owns listeners, workers and the ledger; talks to systemd.
