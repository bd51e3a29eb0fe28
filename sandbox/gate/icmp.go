package gate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Types of ICMP messages.
const (
	echoReply4   = 0
	echoRequest4 = 8
	echoRequest6 = 128
	echoReply6   = 129
)

const echoHeader = 8 // type, code, checksum, identifier, sequence number

// ping gives an echo request to its flow.
func (r *Relay) ping(p packet) {
	r.datagram(r.unitOf(p), flowID{network: "icmp", pair: p.pair, echo: binary.BigEndian.Uint16(p.echo[4:])}, p.echo)
}

// rawSockets send echo replies with any source address. They receive nothing.
type rawSockets struct{ v4, v6 int }

func openRaw(netNS int, mark uint32) (rawSockets, error) {
	s := rawSockets{-1, -1}
	err := inside(netNS, func() error {
		var err error
		if s.v4, err = rawSocket(unix.AF_INET, unix.IPPROTO_ICMP, unix.SOL_IP, unix.IP_TRANSPARENT, mark); err != nil {
			return err
		}
		// ICMP_FILTER: a bit for each type that is not wanted.
		if err := unix.SetsockoptInt(s.v4, unix.SOL_RAW, 1, -1); err != nil {
			return err
		}
		s.v6, err = rawSocket(unix.AF_INET6, unix.IPPROTO_ICMPV6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, mark)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			return nil // a kernel without IPv6
		}
		if err != nil {
			return err
		}
		var none unix.ICMPv6Filter
		for i := range none.Data {
			none.Data[i] = 0xffffffff
		}
		return unix.SetsockoptICMPv6Filter(s.v6, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &none)
	})
	if err != nil {
		s.close()
		return rawSockets{-1, -1}, fmt.Errorf("opening raw sockets: %w", err)
	}
	return s, nil
}

func rawSocket(family, protocol, level, option int, mark uint32) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return -1, err
	}
	if err := errors.Join(unix.SetsockoptInt(fd, level, option, 1), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark))); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// close may be called on a zero value only if it was never opened.
func (s rawSockets) close() {
	for _, fd := range []int{s.v4, s.v6} {
		if fd > 0 {
			unix.Close(fd)
		}
	}
}

// send sends an ICMP message between addresses of one family.
func (s rawSockets) send(from, to netip.Addr, message []byte) error {
	if to.Is4() {
		info := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()})
		_, err := unix.SendmsgN(s.v4, message, info, &unix.SockaddrInet4{Addr: to.As4()}, 0)
		return err
	}
	info := unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.As16()})
	_, err := unix.SendmsgN(s.v6, message, info, &unix.SockaddrInet6{Addr: to.As16()}, 0)
	return err
}

// echoEnd is the end of an ICMP flow that faces the machine: what is written
// to it is an echo reply. Nothing can be read from it, since requests come
// through the queue.
type echoEnd struct {
	*flow
	raw  rawSockets
	once sync.Once
	done chan struct{}
}

func (c *echoEnd) Write(b []byte) (int, error) {
	reply, ok := answer(b, c.echo, c.pair.to.Addr().Is6())
	if !ok {
		return len(b), nil // something else than a reply: not the machine's
	}
	if err := c.raw.send(c.pair.to.Addr(), c.pair.from.Addr(), reply); err != nil {
		return 0, err
	}
	return len(b), nil
}

// answer makes what came from outside into the reply for the machine: with the
// identifier that it had used. Some sockets give the IPv4 header too.
func answer(b []byte, identifier uint16, v6 bool) ([]byte, bool) {
	if !v6 && len(b) >= 20 && b[0]>>4 == 4 {
		n := int(b[0]&0x0f) * 4
		if n < 20 || n > len(b) {
			return nil, false
		}
		b = b[n:]
	}
	kind := byte(echoReply4)
	if v6 {
		kind = echoReply6
	}
	if len(b) < echoHeader || b[0] != kind || b[1] != 0 {
		return nil, false
	}
	out := append([]byte(nil), b...)
	binary.BigEndian.PutUint16(out[4:], identifier)
	binary.BigEndian.PutUint16(out[2:], 0)
	if !v6 { // for ICMPv6 the kernel does it
		binary.BigEndian.PutUint16(out[2:], checksum(out))
	}
	return out, true
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func (c *echoEnd) Read([]byte) (int, error) {
	<-c.done
	return 0, os.ErrDeadlineExceeded
}

func (c *echoEnd) Close() error { c.once.Do(func() { close(c.done) }); return nil }

func (c *echoEnd) SetDeadline(time.Time) error      { return c.Close() }
func (c *echoEnd) SetReadDeadline(time.Time) error  { return c.Close() }
func (c *echoEnd) SetWriteDeadline(time.Time) error { return nil }
func (c *echoEnd) LocalAddr() net.Addr              { return &net.IPAddr{IP: c.pair.to.Addr().AsSlice()} }
func (c *echoEnd) RemoteAddr() net.Addr             { return &net.IPAddr{IP: c.pair.from.Addr().AsSlice()} }
