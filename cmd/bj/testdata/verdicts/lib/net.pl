#!/usr/bin/perl
# The network in one program: see trial.star. Exit codes: 0 as wanted, 3 silence,
# 4 refused or unreachable, 5 an answer where there should be none.
use strict;
use warnings;
use Socket qw(:all);
use IO::Select;
use POSIX ();
use Errno qw(EINPROGRESS);

$| = 1;
my ($mode, @rest) = @ARGV;

sub address {
    my ($host, $port, $type) = @_;
    my ($err, @found) = getaddrinfo($host, $port, {socktype => $type, flags => 0});
    die "net: $host: $err\n" if $err || !@found;
    return $found[0];
}

sub checksum {
    my ($data) = @_;
    my $sum = 0;
    $sum += $_ for unpack("n*", $data . (length($data) % 2 ? "\0" : ""));
    $sum = ($sum >> 16) + ($sum & 0xffff) while $sum >> 16;
    return ~$sum & 0xffff;
}

# ask returns what answered, or how it failed, within the seconds.
sub ask {
    my ($seconds, $proto, $host, $port) = @_;
    if ($proto eq "icmp") {
        my $a = address($host, 0, SOCK_DGRAM);
        my $six = $a->{family} == AF_INET6;
        socket(my $s, $a->{family}, SOCK_RAW, $six ? 58 : 1) or return ("broken", "socket: $!");
        my $id = $$ & 0xffff;
        my $echo = pack("CCnnn", $six ? 128 : 8, 0, 0, $id, 1) . "bj" x 8;
        substr($echo, 2, 2) = pack("n", checksum($echo)) unless $six;
        my $end = time + $seconds;
        my $sel = IO::Select->new($s);
        while (time < $end) {
            send($s, $echo, 0, $a->{addr}) or return ("refused", "$!");
            my $again = time + 1;
            while (time <= $again && $sel->can_read(0.5)) {
                recv($s, my $p, 2000, 0) // next;
                $p = substr($p, (ord($p) & 15) * 4) unless $six;
                my ($type, $code, $sum, $rid) = unpack("CCnn", $p);
                return ("answer", "echo") if $type == ($six ? 129 : 0) && $rid == $id;
            }
        }
        return ("silence", "");
    }
    my $type = $proto eq "udp" ? SOCK_DGRAM : SOCK_STREAM;
    my $a = address($host, $port, $type);
    socket(my $s, $a->{family}, $type, 0) or return ("broken", "socket: $!");
    $s->blocking(0);
    my $sel = IO::Select->new($s);
    my $end = time + $seconds;
    if (!connect($s, $a->{addr})) {
        return ("refused", "$!") unless $! == EINPROGRESS;
        return ("silence", "") unless $sel->can_write($seconds);
        my $err = unpack("i", getsockopt($s, SOL_SOCKET, SO_ERROR));
        if ($err) { $! = $err; return ($! == Errno::ETIMEDOUT() ? "silence" : "refused", "$!"); }
    }
    while (time < $end) {
        if ($proto eq "udp") { send($s, "hello\n", 0) or return ("refused", "$!"); }
        next unless $sel->can_read($proto eq "udp" ? 1 : $end - time);
        my $n = sysread($s, my $text, 2000);
        return ("refused", "$!") unless defined $n;
        return ("refused", "closed without a word") if $n == 0;
        return ("answer", $text);
    }
    return ("silence", "");
}

if ($mode eq "serve") {
    my ($proto, $host, $port) = @rest;
    my $type = $proto eq "udp" ? SOCK_DGRAM : SOCK_STREAM;
    my $a = address($host, $port, $type);
    socket(my $s, $a->{family}, $type, 0) or die "net: socket: $!\n";
    setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1);
    bind($s, $a->{addr}) or die "net: bind: $!\n";
    $type == SOCK_STREAM and (listen($s, 16) or die "net: listen: $!\n");
    my $name = (POSIX::uname())[1];
    print "serving\n";
    while (1) {
        if ($proto eq "udp") {
            my $from = recv($s, my $p, 2000, 0) // next;
            send($s, "hello from $name\n", 0, $from);
        } else {
            accept(my $c, $s) or next;
            syswrite($c, "hello from $name\n");
            close($c);
            exit 1 if $ENV{ONCE};
        }
    }
}
if ($mode eq "unix") {
    my ($path) = @rest;
    socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die "net: socket: $!\n";
    $path =~ s/^@/\0/;
    connect($s, pack_sockaddr_un($path)) or do { print "refused: $!\n"; exit 4 };
    sysread($s, my $text, 2000);
    print $text;
    exit 0;
}
my $quiet = $mode eq "dark";
my ($what, $text) = ask($quiet ? 1.5 : $mode, @rest);
print "$what: $text\n";
exit($quiet ? ($what eq "silence" ? 0 : 5) : $what eq "answer" ? 0 : $what eq "silence" ? 3 : 4);
