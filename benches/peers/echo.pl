#!/usr/bin/perl
# echo.pl Fork|PreFork PORT: Net::Server with an echo, and every limit out of the way.
use strict;
use warnings;

my ($kind, $port) = @ARGV;

package Echo;
our @ISA = ("Net::Server::$kind");
eval "require $ISA[0]; 1" or die $@;

sub process_request {
    my ($self, $client) = @_;
    while (my $got = sysread $client, my $buffer, 4096) {
        my $sent = 0;
        while ($sent < $got) {
            my $n = syswrite $client, $buffer, $got - $sent, $sent or return;
            $sent += $n;
        }
    }
}

Echo->run(
    host => '127.0.0.1', port => $port, ipv => 4, listen => 4096, log_level => 0, no_client_stdout => 1,
    max_servers => 1000, min_servers => 16, min_spare_servers => 8, max_spare_servers => 32, max_requests => 1_000_000,
);
