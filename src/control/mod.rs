//! The control socket: requests, answers, and the client.
