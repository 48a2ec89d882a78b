//! A connection process: gets its identity and its cage, runs one handler, exits.
