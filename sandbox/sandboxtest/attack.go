package sandboxtest

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An attack is a way out that is tried in a machine: a script that prepares
// it, of which every line may fail, then code. Afterwards the volley goes off,
// which tries to reach everything that is dark by every plain means.
type attack struct {
	name   string
	script string
	code   func(*attacker)
}

// attacks are all that is tried against the network.
func attacks() []attack {
	return append(append(ruleAttacks(), linkAttacks()...), packetAttacks()...)
}

// attacker is the program that attacks, inside a machine.
type attacker struct {
	marker       string // in the payload of everything it sends
	own4, own6   netip.Addr
	peer4, peer6 netip.Addr
	hub4, hub6   netip.Addr // next hops, which the machine's routes name
	host         []string   // addresses of the host with ports where a witness listens
	link         *net.Interface
	hubMAC       net.HardwareAddr
	peerMAC      net.HardwareAddr // of the machine beside this one, by the one of this
	root         bool
}

// guestAttack: NAME MARKER HOST:PORT...
func guestAttack(args []string) error {
	a := &attacker{marker: args[1], host: args[2:], root: os.Geteuid() == 0}
	a.own4, a.own6 = machineAddrs(0)
	a.peer4, a.peer6 = machineAddrs(1)
	var err error
	if a.link, err = net.InterfaceByName("eth0"); err != nil {
		return err
	}
	a.peerMAC = slices.Clone(a.link.HardwareAddr)
	a.peerMAC[len(a.peerMAC)-1] = 1
	a.hub4, a.hub6 = netip.MustParseAddr("198.18.255.254"), netip.MustParseAddr("fd62:6a::ffff")
	a.hubMAC = net.HardwareAddr{2, 0x62, 0x6a, 1, 0, 0}
	if out, err := exec.Command("ip", "neigh", "show", "dev", "eth0").Output(); err == nil {
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) > 2 && f[1] == "lladdr" {
				if mac, err := net.ParseMAC(f[2]); err == nil {
					a.hubMAC = mac
				}
				if addr, err := netip.ParseAddr(f[0]); err == nil && addr.Is4() {
					a.hub4 = addr
				} else if err == nil {
					a.hub6 = addr
				}
			}
		}
	}
	// What must not be reached inside the machine itself.
	for _, network := range []string{"tcp", "udp"} {
		if err := serve(network, fmt.Sprintf("[::]:%d", darkPort), false); err != nil {
			return err
		}
	}
	for _, x := range attacks() {
		if x.name != args[0] {
			continue
		}
		if x.script != "" {
			a.run(x.script)
		}
		if x.code != nil {
			a.try(x.name, func() error { x.code(a); return nil })
		}
		a.volley()
		fmt.Println("attack done")
		return nil
	}
	return fmt.Errorf("no attack is called %q", args[0])
}

// try runs f and says what came of it.
func (a *attacker) try(what string, f func() error) {
	defer func() {
		if r := recover(); r != nil {
			fmt.Printf("- %s: %v\n", what, r)
		}
	}()
	if err := f(); err != nil {
		fmt.Printf("- %s: %v\n", what, err)
		return
	}
	fmt.Printf("+ %s\n", what)
}

// run runs each line of a script, whatever comes of the one before.
func (a *attacker) run(script string) {
	for line := range strings.SplitSeq(script, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		a.try(line, func() error {
			cmd := exec.Command("timeout", "5", "sh", "-c", line)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			cmd.WaitDelay = time.Second
			if err := cmd.Run(); err != nil {
				text := strings.TrimSpace(out.String())
				if i := strings.IndexByte(text, '\n'); i > 0 {
					text = text[:i]
				}
				return fmt.Errorf("%v %s", err, text)
			}
			return nil
		})
	}
}

// volley sends everything everywhere. Nothing of it may arrive.
func (a *attacker) volley() {
	payload := []byte(a.marker + "\n")
	var targets []string
	for _, addr := range []netip.Addr{
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.1.2.3"), netip.IPv6Loopback(), a.own4, a.own6, a.peer4, a.peer6, a.hub4, a.hub6,
		netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("169.254.169.254"),
	} {
		targets = append(targets, netip.AddrPortFrom(addr, darkPort).String())
	}
	targets = append(targets, a.host...)
	targets = append(targets, "192.0.2.10:80", "192.0.2.10:444", "198.18.0.12:7000")
	// Ports that are open, in case the attack has bent them to where it is dark.
	bent := []string{"127.0.0.1", "[::1]", a.own4.String(), "[" + a.own6.String() + "]"}

	for _, target := range targets {
		to := parseAddrPort(target)
		a.datagram(to, payload, nil)
		for mark := range 6 {
			a.datagram(to, payload, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark) })
		}
		for _, device := range []string{"lo", "eth0"} {
			a.datagram(to, payload, func(fd int) error { return unix.BindToDevice(fd, device) })
		}
		a.datagram(to, payload, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DONTROUTE, 1) })
		a.rawIP(to.Addr(), payload)
	}
	for _, host := range bent {
		a.datagram(parseAddrPort(fmt.Sprintf("%s:%d", host, openUDP)), payload, nil)
	}
	a.groups(payload)
	if a.root {
		a.forged()
		a.frames()
	}
	a.connects(append(targets, sprintEach("%s:7000", bent)...))
}

func sprintEach(format string, hosts []string) []string {
	var out []string
	for _, h := range hosts {
		out = append(out, fmt.Sprintf(format, h))
	}
	return out
}

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	if to.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// datagram sends one, from a socket with an option.
func (a *attacker) datagram(to netip.AddrPort, payload []byte, option func(fd int) error) error {
	fd, err := unix.Socket(family(to.Addr()), unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	if option != nil {
		if err := option(fd); err != nil {
			return err
		}
	}
	return unix.Sendto(fd, payload, unix.MSG_DONTWAIT, sockaddr(to))
}

// connects tries all at once, by several kinds of socket.
func (a *attacker) connects(targets []string) {
	type attempt struct {
		fd     int
		target string
	}
	var all []attempt
	open := func(target, kind string, protocol int, option func(fd int) error) {
		to := parseAddrPort(target)
		fd, err := unix.Socket(family(to.Addr()), unix.SOCK_STREAM|unix.SOCK_NONBLOCK, protocol)
		if err != nil {
			return
		}
		if option != nil && option(fd) != nil {
			unix.Close(fd)
			return
		}
		if err := unix.Connect(fd, sockaddr(to)); err != nil && err != unix.EINPROGRESS {
			unix.Close(fd)
			return
		}
		all = append(all, attempt{fd, kind + " " + target})
	}
	for _, target := range targets {
		open(target, "tcp", 0, nil)
		open(target, "mptcp", unix.IPPROTO_MPTCP, nil)
		for _, mark := range []int{1, 2, 3, 4} {
			open(target, fmt.Sprint("mark", mark), 0, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark) })
		}
		open(target, "lo", 0, func(fd int) error { return unix.BindToDevice(fd, "lo") })
		open(target, "eth0", 0, func(fd int) error { return unix.BindToDevice(fd, "eth0") })
		if parseAddrPort(target).Port() == openPort {
			continue // it would reach itself
		}
		open(target, "from the open port", 0, func(fd int) error {
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			if parseAddrPort(target).Addr().Is4() {
				return unix.Bind(fd, &unix.SockaddrInet4{Port: openPort})
			}
			return unix.Bind(fd, &unix.SockaddrInet6{Port: openPort})
		})
	}
	deadline := time.Now().Add(400 * time.Millisecond)
	for len(all) > 0 && time.Now().Before(deadline) {
		fds := make([]unix.PollFd, len(all))
		for i, c := range all {
			fds[i] = unix.PollFd{Fd: int32(c.fd), Events: unix.POLLOUT}
		}
		unix.Poll(fds, 50)
		var left []attempt
		for i, c := range all {
			if fds[i].Revents == 0 {
				left = append(left, c)
				continue
			}
			// Only a listener in the dark makes the difference, and says so itself.
			if errno, _ := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR); errno == 0 {
				fmt.Println("BREACH connected", c.target)
			}
			unix.Close(c.fd)
		}
		all = left
	}
	for _, c := range all {
		unix.Close(c.fd)
	}
}

// protocols are numbers of IP protocols that a host may speak.
var protocols = []int{2, 4, 6, 17, 33, 41, 47, 50, 51, 89, 94, 103, 108, 112, 115, 132, 136, 137, 253, 255}

func (a *attacker) rawIP(to netip.Addr, payload []byte) {
	v6 := 0
	echo := append([]byte{8, 0, 0, 0, 1, 2, 0, 1}, payload...)
	if to.Is6() {
		v6 = 1
		echo[0] = 128
	} else {
		sum := checksum(echo)
		echo[2], echo[3] = byte(sum>>8), byte(sum)
	}
	send := func(typ, protocol int, b []byte) {
		fd, err := unix.Socket(family(to), typ, protocol)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		unix.Sendto(fd, b, unix.MSG_DONTWAIT, sockaddr(netip.AddrPortFrom(to, 0)))
	}
	icmp := []int{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6}[v6]
	send(unix.SOCK_RAW, icmp, echo)
	send(unix.SOCK_DGRAM, icmp, echo)
	for _, protocol := range protocols {
		send(unix.SOCK_RAW, protocol, append(udpHeader(openUDP, darkPort, payload), payload...))
	}
	if v6 == 1 { // redirect, router advertisement, neighbour advertisement, membership
		for _, typ := range []byte{134, 135, 136, 137, 131, 143, 1, 2, 3, 4} {
			send(unix.SOCK_RAW, icmp, append([]byte{typ, 0, 0, 0, 0, 0, 0, 0}, payload...))
		}
	} else { // redirect, unreachable, timestamp, mask, router advertisement
		for _, typ := range []byte{0, 3, 4, 5, 9, 10, 11, 12, 13, 15, 17, 30, 42} {
			b := append([]byte{typ, 1, 0, 0, 1, 2, 3, 4}, payload...)
			sum := checksum(b)
			b[2], b[3] = byte(sum>>8), byte(sum)
			send(unix.SOCK_RAW, icmp, b)
		}
	}
}

// groups sends to multicast and broadcast addresses, and joins groups.
func (a *attacker) groups(payload []byte) {
	for _, group := range []string{"224.0.0.1", "224.0.0.22", "224.0.0.251", "239.255.255.250", "255.255.255.255", "198.18.255.255"} {
		addr := netip.MustParseAddr(group)
		for _, port := range []uint16{67, 5353, 1900, darkPort, openUDP} {
			a.datagram(netip.AddrPortFrom(addr, port), payload, nil)
			a.datagram(netip.AddrPortFrom(addr, port), payload, func(fd int) error {
				unix.SetsockoptByte(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 1)
				unix.SetsockoptByte(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, 64)
				if addr.IsMulticast() {
					unix.SetsockoptIPMreq(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreq{Multiaddr: addr.As4(), Interface: a.own4.As4()})
				}
				return unix.BindToDevice(fd, "eth0")
			})
		}
	}
	for _, group := range []string{"ff02::1", "ff02::2", "ff02::16", "ff02::fb", "ff02::1:2", "ff05::1:3", "ff0e::101", "ff01::1"} {
		addr := netip.MustParseAddr(group)
		for _, index := range []int{a.link.Index, 1} {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
			if err != nil {
				continue
			}
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, index)
			unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: addr.As16(), Interface: uint32(index)})
			for _, port := range []int{547, 5353, darkPort, openUDP} {
				unix.Sendto(fd, payload, unix.MSG_DONTWAIT, &unix.SockaddrInet6{Port: port, ZoneId: uint32(index), Addr: addr.As16()})
			}
			unix.Close(fd)
		}
	}
}
