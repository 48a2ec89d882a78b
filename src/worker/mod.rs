//! A worker: accepts, admits, forks, reaps, and writes one record per connection.
