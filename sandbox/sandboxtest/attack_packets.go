package sandboxtest

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// packetAttacks send what is legal, strange or broken.
func packetAttacks() []attack {
	return []attack{
		{name: "source routes", code: (*attacker).sourceRoutes},
		{name: "fragments", code: (*attacker).fragments},
		{name: "extension headers", code: (*attacker).extensions},
		{name: "open ports for other protocols", code: (*attacker).otherProtocols},
		{name: "data before the handshake", code: (*attacker).fastOpen},
		{name: "errors about what is open", code: (*attacker).icmpErrors},
		{name: "a flood for the relay", code: (*attacker).flood},
		{name: "a connection without a handshake", code: (*attacker).repair},
		{name: "sockets past the stack", code: (*attacker).bypass},
	}
}

// sourceRoutes put an allowed or open destination into the header, and a dark
// one into an option.
func (a *attacker) sourceRoutes() {
	payload := []byte(a.marker)
	via := func(kind byte, hops ...netip.Addr) []byte {
		b := []byte{kind, byte(3 + 4*len(hops)), 4}
		for _, h := range hops {
			x := h.As4()
			b = append(b, x[:]...)
		}
		return append(b, 0)
	}
	allowed, dark := netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("192.0.2.1")
	var packets [][]byte
	for _, kind := range []byte{0x83, 0x89, 0x07, 0x44, 0x94, 0x88, 0x86, 0x82, 0x01} {
		for _, first := range []netip.Addr{allowed, a.hub4, a.peer4, a.own4} {
			for _, last := range []netip.Addr{a.peer4, dark, netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("127.0.0.1")} {
				options := via(kind, last)
				packets = append(packets, udp4(a.own4, first, openUDP, darkPort, payload, options), udp4(a.own4, first, 5300, 53, payload, options),
					ip4(a.own4, first, unix.IPPROTO_TCP, 0, options, tcpSegment(1234, openPort, 0x02, payload)))
			}
		}
	}
	a.try("packets with options", func() error { return a.sendIP(packets...) })
	var frames [][]byte
	for _, p := range packets {
		frames = append(frames, frame(a.hubMAC, a.link.HardwareAddr, unix.ETH_P_IP, p))
	}
	a.try("frames with options", func() error { return a.sendFrames(a.link, frames...) })
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(allowed, 53), netip.AddrPortFrom(a.peer4, openUDP)} {
		a.try("a socket with a source route", func() error {
			return a.datagram(to, payload, func(fd int) error {
				return unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, string(via(0x83, to.Addr(), dark)))
			})
		})
	}
}

// fragments show the rules an open port, and the receiver another.
func (a *attacker) fragments() {
	payload := []byte(a.marker + "-padding-so-that-there-is-a-second-fragment")
	open := append(udpHeader(openUDP, openUDP, payload), payload...)
	dark := append(udpHeader(openUDP, darkPort, payload), payload...)
	const more = 0x2000
	id := uint16(1)
	var packets [][]byte
	add := func(dst netip.Addr, fragment uint16, body []byte) {
		p := ip4(a.own4, dst, unix.IPPROTO_UDP, fragment, nil, body)
		binary.BigEndian.PutUint16(p[4:], id)
		p[10], p[11] = 0, 0
		sum := checksum(p[:20])
		p[10], p[11] = byte(sum>>8), byte(sum)
		packets = append(packets, p)
	}
	for _, dst := range []netip.Addr{a.peer4, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.10"), a.hub4} {
		for _, whole := range [][]byte{dark, open} {
			rest := (len(whole) - 8) / 8 * 8
			id++ // in order
			add(dst, more, whole[:8])
			add(dst, more|1, whole[8:8+rest])
			add(dst, uint16(1+rest/8), whole[8+rest:])
			id++ // the last first
			add(dst, 1, whole[8:])
			add(dst, more, whole[:8])
			id++ // never the first
			add(dst, 1, whole[8:])
			id++ // the first only
			add(dst, more, whole[:16])
		}
		id++ // an open port, then the same place with a dark one
		add(dst, more, open[:16])
		add(dst, more, dark[:16])
		add(dst, 2, open[16:])
		id++
		add(dst, more, open[:24])
		add(dst, more|1, dark[8:24])
		add(dst, 0|3, open[24:])
		id++ // TCP, so small that the flags are in the second
		tcp := tcpSegment(1234, darkPort, 0x02, payload)
		p := ip4(a.own4, dst, unix.IPPROTO_TCP, more, nil, tcp[:8])
		packets = append(packets, p, ip4(a.own4, dst, unix.IPPROTO_TCP, 1, nil, tcp[8:]))
		// Beyond the end.
		id++
		add(dst, 0x1fff, payload)
	}
	a.try("fragments through a socket", func() error { return a.sendIP(packets...) })
	var frames [][]byte
	for _, p := range packets {
		frames = append(frames, frame(a.hubMAC, a.link.HardwareAddr, unix.ETH_P_IP, p))
	}
	a.try("fragments as frames", func() error { return a.sendFrames(a.link, frames...) })
}

// extensions hide what follows behind headers of IPv6.
func (a *attacker) extensions() {
	payload := []byte(a.marker + "-0123456789abcdef0123456789abcdef")
	var frames, packets [][]byte
	for _, dst := range []netip.Addr{a.peer6, a.hub6, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:1::10")} {
		last := netip.MustParseAddr("2001:db8::2").As16()
		routing := func(next, kind byte) []byte {
			return append([]byte{next, 2, kind, 1, 0, 0, 0, 0}, last[:]...)
		}
		udp := udp6(a.own6, dst, openUDP, darkPort, payload)
		good := udp6(a.own6, dst, openUDP, openUDP, payload)
		for _, kind := range []byte{0, 2, 3, 4, 253} {
			packets = append(packets, ip6(a.own6, dst, 43, append(routing(17, kind), udp...)))
		}
		options := []byte{17, 0, 1, 4, 0, 0, 0, 0}
		packets = append(packets,
			ip6(a.own6, dst, 0, append(options, udp...)), ip6(a.own6, dst, 60, append(options, udp...)),
			ip6(a.own6, dst, 0, append([]byte{60, 0, 1, 4, 0, 0, 0, 0}, append(options, udp...)...)),
			ip6(a.own6, dst, 135, append([]byte{17, 0, 1, 0, 0, 0, 0, 0}, udp...)), ip6(a.own6, dst, 139, append(options, udp...)), ip6(a.own6, dst, 140, append(options, udp...)),
			ip6(a.own6, dst, 51, append([]byte{17, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1}, udp...)),
			ip6(a.own6, dst, 59, udp), ip6(a.own6, dst, 41, ip6(a.own6, a.peer6, 17, udp6(a.own6, a.peer6, openUDP, darkPort, payload))), ip6(a.own6, dst, 4, udp4(a.own4, a.peer4, openUDP, darkPort, payload, nil)),
		)
		fragment := func(id byte, offset uint16, more byte, body []byte) []byte {
			h := []byte{17, 0, byte(offset >> 5), byte(offset<<3) | more, 0, 0, 0, id}
			return ip6(a.own6, dst, 44, append(h, body...))
		}
		packets = append(packets,
			fragment(1, 0, 0, udp), // whole, and called a fragment
			fragment(2, 0, 1, udp[:8]), fragment(2, 1, 0, udp[8:]),
			fragment(3, 1, 0, udp[8:]), fragment(3, 0, 1, udp[:8]),
			fragment(4, 0, 1, good[:16]), fragment(4, 0, 1, udp[:16]), fragment(4, 2, 0, good[16:]),
			fragment(5, 1, 0, udp[8:]),
			ip6(a.own6, dst, 0, append([]byte{44, 0, 1, 4, 0, 0, 0, 0}, append([]byte{17, 0, 0, 1, 0, 0, 0, 6}, udp[:8]...)...)), // the port behind two headers
		)
	}
	a.try("packets with extension headers", func() error { return a.sendIP(packets...) })
	for _, p := range packets {
		frames = append(frames, frame(a.hubMAC, a.link.HardwareAddr, unix.ETH_P_IPV6, p))
	}
	a.try("frames with extension headers", func() error { return a.sendFrames(a.link, frames...) })
}

// otherProtocols use the number of an open or allowed port for a protocol that
// was not named.
func (a *attacker) otherProtocols() {
	payload := []byte(a.marker)
	body := append(append(udpHeader(openPort, openPort, payload), make([]byte, 12)...), payload...)
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(a.peer4, openPort), parseAddrPort("192.0.2.10:443")} {
		a.try(fmt.Sprintf("udp %s", to), func() error { return a.datagram(to, payload, nil) })
		for _, protocol := range []int{33, 132, 136, 255, 4, 47} {
			binary.BigEndian.PutUint16(body[2:], to.Port())
			a.sendIP(ip4(a.own4, to.Addr(), protocol, 0, nil, body))
		}
		for _, p := range []struct{ typ, protocol int }{{unix.SOCK_STREAM, 132}, {unix.SOCK_SEQPACKET, 132}, {unix.SOCK_DCCP, 33}, {unix.SOCK_DGRAM, 136}, {unix.SOCK_DGRAM, 17}} {
			fd, err := unix.Socket(unix.AF_INET, p.typ|unix.SOCK_NONBLOCK, p.protocol)
			if err != nil {
				continue
			}
			unix.Connect(fd, sockaddr(to))
			unix.Write(fd, payload)
			unix.Close(fd)
		}
	}
	a.datagram(netip.AddrPortFrom(a.peer4, openPort), payload, nil)
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(a.peer4, openUDP), parseAddrPort("192.0.2.10:53")} {
		a.connects([]string{to.String()})
	}
}

// fastOpen sends data with the first packet.
func (a *attacker) fastOpen() {
	for _, target := range []string{"192.0.2.50:443", "192.0.2.11:443", "198.18.0.11:9000", "127.0.0.1:9000"} {
		a.try("fast open to "+target, func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1)
			return unix.Sendto(fd, []byte(a.marker), unix.MSG_FASTOPEN, sockaddr(parseAddrPort(target)))
		})
	}
	syn := tcpSegment(4000, 443, 0x02, []byte(a.marker))
	a.sendIP(ip4(a.own4, netip.MustParseAddr("192.0.2.50"), unix.IPPROTO_TCP, 0, nil, syn))
}

// icmpErrors carry data in errors about connections that are open.
func (a *attacker) icmpErrors() {
	dst := netip.AddrPortFrom(a.peer4, openUDP)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		panic(err)
	}
	defer unix.Close(fd)
	unix.Bind(fd, &unix.SockaddrInet4{Port: 4321})
	unix.Sendto(fd, []byte("hello\n"), 0, sockaddr(dst))
	for _, typ := range []byte{3, 4, 5, 11, 12} {
		for _, code := range []byte{0, 1, 3, 4} {
			// About the peer's answer, to the peer, redirecting to this machine; and
			// about what was never said.
			for _, inner := range [][]byte{udp4(a.peer4, a.own4, openUDP, 4321, []byte(a.marker), nil), udp4(a.peer4, a.own4, darkPort, darkPort, []byte(a.marker), nil)} {
				own := a.own4.As4()
				b := append([]byte{typ, code, 0, 0, own[0], own[1], own[2], own[3]}, inner...)
				sum := checksum(b)
				b[2], b[3] = byte(sum>>8), byte(sum)
				for _, to := range []netip.Addr{a.peer4, a.hub4, netip.MustParseAddr("192.0.2.10")} {
					a.sendIP(ip4(a.own4, to, unix.IPPROTO_ICMP, 0, nil, b))
				}
			}
		}
	}
}

// flood opens so many connections to an allowed address, where nobody answers,
// that whatever holds them overflows, and then tries the dark.
func (a *attacker) flood() {
	silent := netip.MustParseAddr("192.0.2.50")
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		panic(err)
	}
	defer unix.Close(fd)
	pseudo := func(b []byte) {
		s, d := a.own4.As4(), silent.As4()
		h := append(append(append([]byte{}, s[:]...), d[:]...), 0, 6, 0, byte(len(b)))
		sum := checksum(append(h, b...))
		b[16], b[17] = byte(sum>>8), byte(sum)
	}
	to := &unix.SockaddrInet4{Addr: silent.As4()}
	for port := 1024; port < 22000; port++ {
		b := tcpSegment(port, 443, 0x02, nil)
		pseudo(b)
		unix.Sendto(fd, ip4(a.own4, silent, unix.IPPROTO_TCP, 0, nil, b), 0, to)
	}
	for port := 1024; port < 12000; port++ {
		p := udp4(a.own4, silent, port, 53, []byte("flood"), nil)
		unix.Sendto(fd, p, 0, to)
	}
}

// repair makes both ends of a connection over loopback as if they had shaken
// hands.
func (a *attacker) repair() {
	const repair, queue, seq = 19, 20, 21 // TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ
	end := func(own, peer int) (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return 0, err
		}
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, repair, 1); err != nil {
			return fd, err
		}
		for q := 1; q <= 2; q++ {
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, queue, q)
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, seq, 1000)
		}
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, queue, 0)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: own, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return fd, err
		}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: peer, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return fd, err
		}
		return fd, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, repair, 0)
	}
	for _, ports := range [][2]int{{openPort, 9002}, {9003, 9002}} {
		a.try(fmt.Sprintf("a connection %d -> %d", ports[0], ports[1]), func() error {
			x, err := end(ports[0], ports[1])
			if err != nil {
				return err
			}
			defer unix.Close(x)
			y, err := end(ports[1], ports[0])
			if err != nil {
				return err
			}
			defer unix.Close(y)
			unix.Write(x, []byte(a.marker))
			unix.SetsockoptTimeval(y, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300_000})
			buf := make([]byte, 100)
			n, err := unix.Read(y, buf)
			if err == nil && n > 0 {
				fmt.Printf("heard tcp on 127.0.0.1:%d (dark) %q\n", ports[1], buf[:n])
			}
			return err
		})
	}
	time.Sleep(0)
}

// bypass opens sockets that no packet filter sees.
func (a *attacker) bypass() {
	for f := range 48 {
		for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_RAW, unix.SOCK_SEQPACKET, unix.SOCK_RDM} {
			fd, err := unix.Socket(f, typ, 0)
			if err != nil {
				continue
			}
			unix.Close(fd)
			switch f {
			case unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK, unix.AF_PACKET, unix.AF_ALG:
			default:
				fmt.Printf("BREACH a socket of family %d\n", f)
			}
			break
		}
	}
	for _, x := range otherCalls() {
		if os.Getenv(ownKernel) != "" && strings.Contains(x.name, "process 1") {
			continue // it would stand still, and with it this program's output
		}
		a.try(x.name, func() error {
			n, err := x.call()
			if err == nil {
				fmt.Printf("BREACH %s: %d\n", x.name, n)
			}
			return err
		})
	}
}
