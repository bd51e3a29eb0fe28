package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A Probe is something that is tried from inside a machine, as a command of
// root would, without waiting for an answer.
type Probe struct {
	Kind ProbeKind
	// To is where it goes: address and port, port 0 where there is none. A
	// multicast or broadcast address is allowed for UDP.
	To netip.AddrPort
	// Protocol is the IP protocol of a ProbeIP, or the ethertype of a
	// ProbeEther.
	Protocol uint16
	// Interface names the link of a ProbeEther or ProbeARP, and of a UDP
	// datagram to a group of IPv6.
	Interface string
	// Name is that of an abstract Unix socket, without the leading zero byte.
	Name string
	// CID and Port are those of a vsock.
	CID, Port uint32
}

// A ProbeKind says what is tried.
type ProbeKind string

const (
	ProbeTCP   ProbeKind = "tcp"   // a connection
	ProbeUDP   ProbeKind = "udp"   // a datagram
	ProbeICMP  ProbeKind = "icmp"  // an echo request, through a raw socket
	ProbePing  ProbeKind = "ping"  // an echo request, through a datagram socket
	ProbeIP    ProbeKind = "ip"    // a packet of another IP protocol
	ProbeEther ProbeKind = "ether" // a broadcast frame through AF_PACKET
	ProbeARP   ProbeKind = "arp"   // a broadcast question who has To
	ProbeUnix  ProbeKind = "unix"  // a connection to an abstract Unix socket
	ProbeVsock ProbeKind = "vsock" // a connection to CID and Port
	ProbeXDP   ProbeKind = "xdp"   // a socket that bypasses the network stack
)

// An Outcome is what became of a Probe. Sent says nothing about a drop: the
// caller looks for it in what the seal has seen.
type Outcome struct {
	State ProbeState
	Errno string // for Refused and Answered: "ENETUNREACH"
}

// A ProbeState says how far a probe got.
type ProbeState string

const (
	// Sent: the kernel took it, and nothing came back so far.
	Sent ProbeState = "sent"
	// Refused: the machine's own kernel did not let it out.
	Refused ProbeState = "refused"
	// Answered: something came back, if only a refusal by the other side.
	Answered ProbeState = "answered"
	// Connected: a connection stands.
	Connected ProbeState = "connected"
)

// payload is what probes carry, for people who see it on a wire.
const payload = "bj canary"

// An attempt is a probe whose socket is kept, to see what comes back.
type attempt struct {
	Probe
	fd  int // -1 once there is none
	out Outcome
}

// probe tries all of ps. Those of an earlier call are let go of.
func (g *guest) probe(ps []Probe) []Outcome {
	g.dropProbes()
	for _, p := range ps {
		a := &attempt{Probe: p, fd: -1, out: Outcome{State: Sent}}
		if err := a.try(); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			a.out = Outcome{State: Refused, Errno: errnoName(err)}
			if p.Kind == ProbeTCP && (errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNRESET)) {
				a.out.State = Answered // at once, as loopback does
			}
			a.close()
		}
		g.probes = append(g.probes, a)
	}
	return g.outcomes()
}

// probed looks what came back since, and closes everything.
func (g *guest) probed() []Outcome {
	for _, a := range g.probes {
		if a.out.State == Sent && a.fd >= 0 {
			a.look()
		}
	}
	out := g.outcomes()
	g.dropProbes()
	return out
}

func (g *guest) outcomes() []Outcome {
	out := make([]Outcome, len(g.probes))
	for i, a := range g.probes {
		out[i] = a.out
	}
	return out
}

func (g *guest) dropProbes() {
	for _, a := range g.probes {
		a.close()
	}
	g.probes = nil
}

func (a *attempt) close() {
	if a.fd >= 0 {
		unix.Close(a.fd)
		a.fd = -1
	}
}

func (a *attempt) open(family, typ, protocol int) (err error) {
	a.fd, err = unix.Socket(family, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		a.fd = -1
	}
	return err
}

// try does what the probe says. A connection that was made at once is Connected.
func (a *attempt) try() error {
	v6 := a.To.Addr().Is6()
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	switch a.Kind {
	case ProbeTCP:
		if err := a.open(family, unix.SOCK_STREAM, 0); err != nil {
			return err
		}
		return a.connect(a.sockaddr(a.To.Port()))
	case ProbeUDP:
		if err := a.open(family, unix.SOCK_DGRAM, 0); err != nil {
			return err
		}
		unix.SetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
		// A connected socket hears of refusals, but may not be had for groups.
		if a.To.Addr().IsMulticast() || unix.Connect(a.fd, a.sockaddr(a.To.Port())) != nil {
			return unix.Sendto(a.fd, []byte(payload), 0, a.sockaddr(a.To.Port()))
		}
		_, err := unix.Write(a.fd, []byte(payload))
		return err
	case ProbeICMP, ProbePing:
		typ, protocol := unix.SOCK_RAW, unix.IPPROTO_ICMP
		if a.Kind == ProbePing {
			typ = unix.SOCK_DGRAM
		}
		if v6 {
			protocol = unix.IPPROTO_ICMPV6
		}
		if err := a.open(family, typ, protocol); err != nil {
			return err
		}
		return unix.Sendto(a.fd, echo(v6), 0, a.sockaddr(0))
	case ProbeIP:
		if err := a.open(family, unix.SOCK_RAW, int(a.Protocol)); err != nil {
			return err
		}
		return unix.Sendto(a.fd, []byte(payload), 0, a.sockaddr(0))
	case ProbeEther:
		return a.sendFrame(a.Protocol, []byte(payload))
	case ProbeARP:
		return a.sendARP()
	case ProbeUnix:
		if err := a.open(unix.AF_UNIX, unix.SOCK_STREAM, 0); err != nil {
			return err
		}
		return a.connect(&unix.SockaddrUnix{Name: "@" + a.Name})
	case ProbeVsock:
		if err := a.open(unix.AF_VSOCK, unix.SOCK_STREAM, 0); err != nil {
			return err
		}
		return a.connect(&unix.SockaddrVM{CID: a.CID, Port: a.Port})
	case ProbeXDP:
		if err := a.open(unix.AF_XDP, unix.SOCK_RAW, 0); err != nil {
			return err
		}
		a.out.State = Connected // that there is one is what must not be
		return nil
	}
	return unix.EINVAL
}

func (a *attempt) connect(to unix.Sockaddr) error {
	err := unix.Connect(a.fd, to)
	if err == nil {
		a.out.State = Connected
	}
	return err
}

// look finds out what came back, without waiting.
func (a *attempt) look() {
	if errno, err := unix.GetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && errno != 0 {
		// Also what the own kernel says late, such as "no route to host" after
		// a neighbour was not found: the caller knows which it was.
		a.out = Outcome{State: Answered, Errno: errnoName(unix.Errno(errno))}
		return
	}
	switch a.Kind {
	case ProbeTCP, ProbeUnix, ProbeVsock:
		if _, err := unix.Getpeername(a.fd); err == nil {
			a.out.State = Connected
		}
	case ProbeUDP, ProbeICMP, ProbePing, ProbeIP:
		var buf [2048]byte
		for {
			n, from, err := unix.Recvfrom(a.fd, buf[:], unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			if a.isAnswer(buf[:n], from) {
				a.out.State = Answered
				return
			}
		}
	}
}

// isAnswer keeps apart what raw sockets see of others, and of the probe itself
// where it went to the machine's own address.
func (a *attempt) isAnswer(b []byte, from unix.Sockaddr) bool {
	if a.Kind == ProbeUDP || a.Kind == ProbePing {
		return true
	}
	var addr netip.Addr
	switch from := from.(type) {
	case *unix.SockaddrInet4:
		addr = netip.AddrFrom4(from.Addr)
		if len(b) > 0 && len(b) >= int(b[0]&15)*4 {
			b = b[int(b[0]&15)*4:]
		}
	case *unix.SockaddrInet6:
		addr = netip.AddrFrom16(from.Addr)
	}
	if addr != a.To.Addr().WithZone("") || len(b) == 0 {
		return false
	}
	// Type 0 and 129 are echo replies.
	return a.Kind == ProbeIP || b[0] == 0 && addr.Is4() || b[0] == 129 && addr.Is6()
}

func (a *attempt) sockaddr(port uint16) unix.Sockaddr {
	addr := a.To.Addr()
	if addr.Is4() || addr.Is4In6() {
		return &unix.SockaddrInet4{Port: int(port), Addr: addr.As4()}
	}
	sa := &unix.SockaddrInet6{Port: int(port), Addr: addr.As16()}
	if ifi, err := net.InterfaceByName(a.Interface); err == nil {
		sa.ZoneId = uint32(ifi.Index)
	}
	return sa
}

// echo is an ICMP echo request. The kernel fills in the checksum for ICMPv6
// and for datagram sockets.
func echo(v6 bool) []byte {
	b := append([]byte{8, 0, 0, 0, 0xb1, 0xce, 0, 1}, payload...)
	if v6 {
		b[0] = 128
		return b
	}
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// checksum is the internet checksum of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		if i%2 == 0 {
			sum += uint32(c) << 8
		} else {
			sum += uint32(c)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// sendFrame broadcasts a frame on the probe's interface.
func (a *attempt) sendFrame(ethertype uint16, data []byte) error {
	ifi, err := net.InterfaceByName(a.Interface)
	if err != nil {
		return unix.ENODEV
	}
	// Protocol 0: it sends, but hears nothing.
	if err := a.open(unix.AF_PACKET, unix.SOCK_RAW, 0); err != nil {
		return err
	}
	frame := append([]byte{}, broadcast[:]...)
	frame = append(frame, hardware(ifi)...)
	frame = binary.BigEndian.AppendUint16(frame, ethertype)
	frame = append(frame, data...)
	to := &unix.SockaddrLinklayer{Ifindex: ifi.Index, Halen: 6, Protocol: ethertype<<8 | ethertype>>8}
	copy(to.Addr[:], broadcast[:])
	return unix.Sendto(a.fd, frame, 0, to)
}

// sendARP broadcasts a question for To, in the name of the interface.
func (a *attempt) sendARP() error {
	ifi, err := net.InterfaceByName(a.Interface)
	if err != nil {
		return unix.ENODEV
	}
	if !a.To.Addr().Is4() {
		return unix.EINVAL
	}
	sender := [4]byte{}
	addrs, _ := ifi.Addrs()
	for _, ad := range addrs {
		if n, ok := ad.(*net.IPNet); ok && n.IP.To4() != nil {
			sender = [4]byte(n.IP.To4())
			break
		}
	}
	target := a.To.Addr().As4()
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, request
	b = append(b, hardware(ifi)...)
	b = append(b, sender[:]...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	b = append(b, target[:]...)
	return a.sendFrame(unix.ETH_P_ARP, b)
}

// hardware is the interface's address; the loopback has none, which is zero.
func hardware(ifi *net.Interface) []byte {
	b := make([]byte, 6)
	copy(b, ifi.HardwareAddr)
	return b
}

func errnoName(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		if n := unix.ErrnoName(errno); n != "" {
			return n
		}
		return fmt.Sprintf("errno %d", int(errno))
	}
	return err.Error()
}
