#!/usr/bin/perl
# forge HOST PORT sends datagrams in every way that root has, and says "answer" if
# one of them was answered; forge mark leaves out those of plain sockets. Exit
# codes: 0 silence, 5 an answer.
use strict;
use warnings;
use Socket qw(:all);
use IO::Select;

my ($host, $port) = @ARGV;
my $to = inet_aton($host);
my $there = pack_sockaddr_in($port, $to);
socket(my $probe, AF_INET, SOCK_DGRAM, 0) or die "socket: $!";
connect($probe, $there) or die "connect: $!";
my (undef, $own) = unpack_sockaddr_in(getsockname($probe));

socket(my $plain, AF_INET, SOCK_DGRAM, 0) or die "socket: $!";
bind($plain, pack_sockaddr_in(40000, INADDR_ANY)) or die "bind: $!";
for my $number (1 .. 4, 62, 63) {
    # The numbers that packets carry inside and in the hub, as whoever reads the
    # rules would write them.
    setsockopt($plain, 0, 1, pack("i", $number << 2)) or die "IP_TOS: $!";
    setsockopt($plain, SOL_SOCKET, 36, pack("i", 0x100 + $number)) or die "SO_MARK: $!";
    send($plain, "hello\n", 0, $there);

    socket(my $raw, AF_INET, SOCK_RAW, 255) or die "raw socket: $!";
    setsockopt($raw, SOL_SOCKET, 36, pack("i", 0x100 + $number)) or die "SO_MARK: $!";
    my $udp = pack("nnnn", 40000, $port, 14, 0) . "hello\n";
    my $ip = pack("CCnnnCCna4a4", 0x45, $number << 2, 20 + length($udp), $number, 0, 64, 17, 0, $own, $to);
    send($raw, $ip . $udp, 0, pack_sockaddr_in(0, $to));
}
# A frame would pass by whatever looks at packets inside.
print "a packet socket\n" if socket(my $frames, 17, SOCK_RAW, 0x0008);
if (IO::Select->new($plain)->can_read(2)) {
    print "answer\n";
    exit 5;
}
print "silence\n";
