#!/usr/bin/perl
# web HOST PORT METHOD PATH asks for a page; web HOST PORT tls NAME says hello to
# a server of that name. Exit codes: 0 an answer, 3 silence, 4 the end without an
# answer, 5 a page that was refused, 6 no such name.
use strict;
use warnings;
use Socket qw(:all);
use IO::Socket::INET;

my ($host, $port, $method, $path) = @ARGV;
my ($err, $a) = getaddrinfo($host, $port, {socktype => SOCK_STREAM, family => AF_INET});
if ($err || !$a) { print "no such name: $err\n"; exit 6; }
$SIG{ALRM} = sub { print "silence\n"; exit 3 };
alarm($ENV{SECONDS} || 20);
socket(my $s, $a->{family}, SOCK_STREAM, 0) or die "web: socket: $!\n";
connect($s, $a->{addr}) or do { print "refused: $!\n"; exit 4 };
my $ask = "$method $path HTTP/1.1\r\nHost: $host:$port\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
if ($method eq "tls") {
    my $name = pack("Cn/a", 0, $path);
    my $extensions = pack("nn/a", 0, pack("n/a", $name))                # server_name
        . pack("nn/a", 10, pack("n/a", pack("n", 23)))                  # P-256
        . pack("nn/a", 11, pack("C/a", "\0"))                           # its points
        . pack("nn/a", 13, pack("n/a", pack("n", 0x0403)));             # ECDSA with SHA-256
    my $hello = pack("n", 0x0303) . "r" x 32 . "\0" . pack("n/a", pack("n", 0xc02b)) . "\1\0" . pack("n/a", $extensions);
    $hello = "\1" . substr(pack("N", length $hello), 1) . $hello;
    $ask = pack("Cnn/a", 22, 0x0301, $hello);
}
syswrite($s, $ask);
my $n = sysread($s, my $text, 2000);
if (!$n) { print "closed\n"; exit 4; }
if ($method eq "tls") { printf "record of kind %d\n", ord $text; exit(ord $text == 22 ? 0 : 4); }
print $text;
exit($text =~ m{^HTTP/1.. 200 } ? 0 : 5);
