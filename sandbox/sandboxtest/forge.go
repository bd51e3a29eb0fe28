package sandboxtest

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// udpHeader is one without a checksum, which IPv4 allows.
func udpHeader(sport, dport int, payload []byte) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b, uint16(sport))
	binary.BigEndian.PutUint16(b[2:], uint16(dport))
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return b
}

// udp4 is a whole IPv4 packet.
func udp4(src, dst netip.Addr, sport, dport int, payload, options []byte) []byte {
	return ip4(src, dst, unix.IPPROTO_UDP, 0, options, append(udpHeader(sport, dport, payload), payload...))
}

// ip4 is an IPv4 packet; fragment is the field with flags and offset.
func ip4(src, dst netip.Addr, protocol int, fragment uint16, options, body []byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	b := make([]byte, 20, 20+len(options)+len(body))
	b[0] = 0x40 | byte(5+len(options)/4)
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(options)+len(body)))
	binary.BigEndian.PutUint16(b[4:], 0x4242)
	binary.BigEndian.PutUint16(b[6:], fragment)
	b[8], b[9] = 64, byte(protocol)
	s, d := src.As4(), dst.As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	b = append(b, options...)
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	return append(b, body...)
}

// ip6 is an IPv6 packet, whose body begins with whatever next says.
func ip6(src, dst netip.Addr, next int, body []byte) []byte {
	b := make([]byte, 40, 40+len(body))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	b[6], b[7] = byte(next), 64
	s, d := src.As16(), dst.As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
	return append(b, body...)
}

// udp6 is the body of an IPv6 packet, with its checksum.
func udp6(src, dst netip.Addr, sport, dport int, payload []byte) []byte {
	b := append(udpHeader(sport, dport, payload), payload...)
	s, d := src.As16(), dst.As16()
	pseudo := append(append([]byte{}, s[:]...), d[:]...)
	pseudo = append(pseudo, 0, 0, byte(len(b)>>8), byte(len(b)), 0, 0, 0, unix.IPPROTO_UDP)
	sum := checksum(append(pseudo, b...))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], sum)
	return b
}

func frame(dst, src net.HardwareAddr, kind uint16, body []byte) []byte {
	b := append(append([]byte{}, dst...), src...)
	return append(binary.BigEndian.AppendUint16(b, kind), body...)
}

// sendIP sends whole packets through a raw socket, which routes them.
func (a *attacker) sendIP(packets ...[]byte) error {
	var last error
	for _, p := range packets {
		f, to := unix.AF_INET, unix.Sockaddr(nil)
		if p[0]>>4 == 6 {
			f = unix.AF_INET6
			to = &unix.SockaddrInet6{Addr: [16]byte(p[24:40])}
		} else {
			to = &unix.SockaddrInet4{Addr: [4]byte(p[16:20])}
		}
		fd, err := unix.Socket(f, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		if f == unix.AF_INET6 {
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_HDRINCL, 1)
		}
		if err := unix.Sendto(fd, p, unix.MSG_DONTWAIT, to); err != nil {
			last = err
		}
		unix.Close(fd)
	}
	return last
}

// sendFrames puts frames on a link, past routing and most hooks.
func (a *attacker) sendFrames(link *net.Interface, frames ...[]byte) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(htons(unix.ETH_P_ALL)))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var last error
	for _, bypass := range []int{0, 1} {
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, bypass)
		for _, f := range frames {
			to := &unix.SockaddrLinklayer{Ifindex: link.Index, Protocol: htons(binary.BigEndian.Uint16(f[12:])), Halen: 6}
			copy(to.Addr[:], f[:6])
			if err := unix.Sendto(fd, f, unix.MSG_DONTWAIT, to); err != nil {
				last = err
			}
		}
	}
	return last
}

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// forgedSources are what an attacker may want to be.
func (a *attacker) forgedSources(v6 bool) []netip.Addr {
	if v6 {
		return []netip.Addr{a.own6, a.peer6, a.hub6, netip.MustParseAddr("2001:db8:1::10"), netip.IPv6Loopback(), netip.MustParseAddr("fe80::1"), netip.IPv6Unspecified(), netip.MustParseAddr("::ffff:198.18.0.10")}
	}
	return []netip.Addr{a.own4, a.peer4, a.hub4, netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("127.0.0.1"), netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("203.0.113.1")}
}

// forged sends packets with sources that are not the machine's, to dark ports
// and to open ones, through routing and as frames.
func (a *attacker) forged() {
	payload := []byte(a.marker)
	host4, outside := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("192.0.2.1")
	var packets [][]byte
	for _, dst := range []netip.Addr{a.peer4, a.hub4, host4, outside, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.10")} {
		for i, src := range a.forgedSources(false) {
			packets = append(packets, udp4(src, dst, openUDP, darkPort, payload, nil), udp4(src, dst, 53, 53, payload, nil))
			if i > 0 && dst == a.peer4 && !src.IsUnspecified() { // the kernel fills that in
				packets = append(packets, udp4(src, dst, darkPort, openUDP, payload, nil))
			}
			packets = append(packets, ip4(src, dst, unix.IPPROTO_TCP, 0, nil, tcpSegment(openPort, darkPort, 0x02, payload)),
				ip4(src, dst, unix.IPPROTO_TCP, 0, nil, tcpSegment(openPort, darkPort, 0x10, payload)),
				ip4(src, dst, unix.IPPROTO_TCP, 0, nil, tcpSegment(darkPort, openPort+1, 0x12, payload)))
		}
	}
	outside6 := netip.MustParseAddr("2001:db8::1")
	for _, dst := range []netip.Addr{a.peer6, a.hub6, outside6, netip.MustParseAddr("2001:db8:fe::1"), netip.IPv6Loopback()} {
		for i, src := range a.forgedSources(true) {
			packets = append(packets, ip6(src, dst, unix.IPPROTO_UDP, udp6(src, dst, openUDP, darkPort, payload)))
			if i > 0 && dst == a.peer6 && !src.IsUnspecified() {
				packets = append(packets, ip6(src, dst, unix.IPPROTO_UDP, udp6(src, dst, darkPort, openUDP, payload)))
			}
		}
	}
	a.sendIP(packets...)
	for _, mac := range []net.HardwareAddr{a.hubMAC, broadcast, a.peerMAC} {
		var frames [][]byte
		for _, p := range packets {
			kind := uint16(unix.ETH_P_IP)
			if p[0]>>4 == 6 {
				kind = unix.ETH_P_IPV6
			}
			frames = append(frames, frame(mac, a.link.HardwareAddr, kind, p))
		}
		a.sendFrames(a.link, frames...)
	}
}

func tcpSegment(sport, dport int, flags byte, payload []byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, uint16(sport))
	binary.BigEndian.PutUint16(b[2:], uint16(dport))
	b[12], b[13] = 0x50, flags
	b[14] = 0x10
	return append(b, payload...) // the checksum is wrong: what counts is whether it arrives
}

// frames sends what is not IP, and IP in what is not Ethernet's plain form.
func (a *attacker) frames() {
	payload := []byte(a.marker)
	inner := udp4(a.own4, a.peer4, openUDP, darkPort, payload, nil)
	arp := func(op uint16, who netip.Addr) []byte {
		s, d := a.peer4.As4(), who.As4()
		b := []byte{0, 1, 8, 0, 6, 4, byte(op >> 8), byte(op)}
		b = append(append(b, a.link.HardwareAddr...), s[:]...)
		return append(append(append(b, 0, 0, 0, 0, 0, 0), d[:]...), payload...)
	}
	tag := func(id, kind uint16, body []byte) []byte {
		return append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, id), kind), body...)
	}
	own := a.link.HardwareAddr
	for _, dst := range []net.HardwareAddr{broadcast, a.hubMAC, {2, 0x62, 0x6a, 0, 0, 1}, {1, 0, 0x5e, 0, 0, 1}, {0x33, 0x33, 0, 0, 0, 1}, {1, 0x80, 0xc2, 0, 0, 0}, {1, 0x80, 0xc2, 0, 0, 0x0e}, {1, 0, 0x0c, 0xcc, 0xcc, 0xcc}} {
		for _, src := range []net.HardwareAddr{own, {2, 0x62, 0x6a, 0, 0, 1}, a.hubMAC} {
			a.sendFrames(a.link,
				frame(dst, src, unix.ETH_P_ARP, arp(1, a.peer4)), frame(dst, src, unix.ETH_P_ARP, arp(2, a.hub4)),
				frame(dst, src, 0x88b5, payload), frame(dst, src, 0x88cc, payload),
				frame(dst, src, 0x8100, tag(0, unix.ETH_P_IP, inner)), frame(dst, src, 0x8100, tag(5, unix.ETH_P_IP, inner)),
				frame(dst, src, 0x88a8, tag(5, 0x8100, tag(6, unix.ETH_P_IP, inner))),
				frame(dst, src, 0x8847, append([]byte{0, 1, 1, 64}, inner...)),
				frame(dst, src, 0x8864, append([]byte{0x11, 0, 0, 1, 0, byte(len(inner) + 2), 0, 0x21}, inner...)),
				frame(dst, src, 0x8035, arp(3, a.peer4)), frame(dst, src, 0x888e, payload), frame(dst, src, 0x893a, payload), frame(dst, src, 0x22f0, payload),
				frame(dst, src, 0x0004, append([]byte{0x42, 0x42, 3, 0, 0, 0, 0, 0}, payload...)), // 802.3, spanning tree
				frame(dst, src, uint16(8+len(inner)), append([]byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, inner...)),
				frame(dst, src, unix.ETH_P_IP, payload), frame(dst, src, unix.ETH_P_IPV6, payload), frame(dst, src, unix.ETH_P_IPV6, inner), frame(dst, src, unix.ETH_P_IP, inner[:19]),
				frame(dst, src, unix.ETH_P_LOOPBACK, payload), frame(dst, src, 0x0806, payload),
			)
		}
	}
	if lo, err := net.InterfaceByName("lo"); err == nil {
		zero := net.HardwareAddr{0, 0, 0, 0, 0, 0}
		one, me := netip.MustParseAddr("127.0.0.1"), a.own4
		a.sendFrames(lo, frame(zero, zero, unix.ETH_P_IP, udp4(one, one, openUDP, darkPort, payload, nil)),
			frame(zero, zero, unix.ETH_P_IP, udp4(me, me, openUDP, darkPort, payload, nil)),
			frame(zero, zero, unix.ETH_P_IPV6, ip6(netip.IPv6Loopback(), netip.IPv6Loopback(), unix.IPPROTO_UDP, udp6(netip.IPv6Loopback(), netip.IPv6Loopback(), openUDP, darkPort, payload))))
	}
}
