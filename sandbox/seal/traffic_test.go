package seal_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bj/fleet"
	"bj/sandbox"
	"bj/sandbox/seal"
	"bj/sandbox/seal/sealtest"
)

const brief = 300 * time.Millisecond // how long silence is listened to

// drops collects what a namespace drops.
type drops struct {
	mu   sync.Mutex
	list []seal.Drop
}

func watch(t *testing.T, n *sealtest.NS, group uint16) *drops {
	t.Helper()
	d := &drops{}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- seal.Watch(ctx, n.FD(), group, ready, func(x seal.Drop) {
			d.mu.Lock()
			d.list = append(d.list, x)
			d.mu.Unlock()
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	return d
}

// want waits for a drop.
func (d *drops) want(t *testing.T, what string, match func(seal.Drop) bool) {
	t.Helper()
	eventually(t, func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if !slices.ContainsFunc(d.list, match) {
			return fmt.Errorf("%s was not seen among %v", what, d.list)
		}
		return nil
	})
}

func eventually(t testing.TB, f func() error) {
	t.Helper()
	deadline := time.Now().Add(soon)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func join(a netip.Addr, port int) string { return net.JoinHostPort(a.String(), strconv.Itoa(port)) }

func timedOut(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// echo answers on the ports of tcp and udp at address.
func echo(n *sealtest.NS, address string, ports ...int) {
	for _, p := range ports {
		at := net.JoinHostPort(address, strconv.Itoa(p))
		l := n.Listen("tcp", at)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { io.Copy(c, c); c.Close() }()
			}
		}()
		c := n.ListenPacket("udp", at)
		go func() {
			b := make([]byte, 65536)
			for {
				k, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				c.WriteTo(b[:k], from)
			}
		}()
	}
}

// reach says what becomes of an exchange of so many bytes with an echo
// service: nil, or why it came to nothing.
func reach(n *sealtest.NS, network, address string, size int, timeout time.Duration) error {
	c, err := n.Dial(network, address, timeout)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(timeout))
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i)
	}
	if _, err := c.Write(data); err != nil {
		return err
	}
	got := make([]byte, size)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != string(data) {
		return errors.New("what came back is not what was sent")
	}
	return nil
}

func ports(protocol string, first, last uint16) fleet.Ports {
	return fleet.Ports{Protocol: protocol, First: first, Last: last}
}

// between is a policy for traffic between machines.
func between() sandbox.Policy {
	return sandbox.Policy{
		Internal: []fleet.Ports{ports("tcp", 1000, 1001), ports("udp", 1000, 1000)},
		Allows: []sandbox.Allow{
			{Condition: 2, Protocol: "tcp", Prefix: prefix("10.77.0.2/32"), First: 2000, Last: 2000, Machines: []string{"m0"}},
			{Condition: 2, Protocol: "udp", Prefix: prefix("fd77::/64"), First: 2000, Last: 2000},
		},
	}
}

// A watch begins also while packets are dropped already, one after the other.
func TestWatchWhileDropping(t *testing.T) {
	n := sealtest.New(t, 2)
	apply(t, n.Hub, compile(t, between(), n.Config))
	done := make(chan struct{})
	var sending sync.WaitGroup
	defer sending.Wait()
	defer close(done)
	for range 2 {
		c, err := n.Machines[0].Dial("udp", join(n.Config.Machines[1].V4, 1001), brief)
		if err != nil {
			t.Fatal(err)
		}
		sending.Go(func() {
			defer c.Close()
			for {
				select {
				case <-done:
					return
				case <-time.After(100 * time.Microsecond):
					c.Write([]byte("x"))
				}
			}
		})
	}
	for i := range 40 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			watch(t, n.Hub, n.Config.Group).want(t, "a datagram", func(d seal.Drop) bool { return d.Protocol == "udp" })
		})
	}
}

// Between machines, what is internal or allowed passes, for the machine that
// may, in the direction that may; all else is silent, and seen.
func TestBetweenMachines(t *testing.T) {
	n := sealtest.New(t, 3)
	table := apply(t, n.Hub, compile(t, between(), n.Config))
	seen := watch(t, n.Hub, n.Config.Group)
	before := n.Leaked(t)
	m := n.Config.Machines
	for i := range m {
		for _, a := range []netip.Addr{m[i].V4, m[i].V6} {
			echo(n.Machines[i], a.String(), 1000, 1001, 2000, 3000)
		}
	}
	for _, c := range []struct {
		from    int
		network string
		to      netip.Addr
		port    int
		open    bool
	}{
		{0, "tcp", m[1].V4, 1000, true}, {0, "tcp", m[1].V6, 1001, true}, {1, "tcp", m[2].V4, 1000, true},
		{0, "udp", m[1].V4, 1000, true}, {0, "udp", m[1].V6, 1000, true},
		{0, "tcp", m[1].V4, 2000, true}, {0, "udp", m[1].V6, 2000, true}, {2, "udp", m[1].V6, 2000, true},
		{0, "udp", m[1].V4, 1001, false}, {0, "tcp", m[1].V4, 3000, false}, {0, "tcp", m[1].V6, 3000, false},
		{2, "tcp", m[1].V4, 2000, false}, {1, "tcp", m[0].V4, 2000, false}, {0, "tcp", m[1].V6, 2000, false},
		{0, "udp", m[1].V4, 2000, false}, {0, "tcp", m[2].V4, 2000, false},
		{0, "tcp", netip.MustParseAddr("10.77.0.200"), 1000, false}, {0, "tcp", netip.MustParseAddr("8.8.8.8"), 1000, false},
		{0, "tcp", sealtest.Gateway4, 1000, false}, {0, "udp", sealtest.Gateway6, 1000, false},
		{0, "tcp", sealtest.Gateway4, int(n.Config.RelayTCP), false},
	} {
		what := fmt.Sprintf("m%d %s %s", c.from, c.network, join(c.to, c.port))
		timeout := brief
		if c.open {
			timeout = soon
		}
		err := reach(n.Machines[c.from], c.network, join(c.to, c.port), 3000, timeout)
		switch {
		case c.open && err != nil:
			t.Errorf("%s: %v", what, err)
		case !c.open && !timedOut(err):
			t.Errorf("%s is not silent: %v", what, err)
		case !c.open:
			seen.want(t, what, func(d seal.Drop) bool {
				return d.In == m[c.from].Interface && d.Protocol == c.network && d.Destination == netip.AddrPortFrom(c.to, uint16(c.port)) && d.Reason == "closed" && d.Source.Port() != 0
			})
		}
	}
	counters, err := table.Counters()
	if err != nil {
		t.Fatal(err)
	}
	used := counters.Used()
	if len(used) != 1 || used[0].Condition != 2 || used[0].Count != 3 || used[0].Bytes < 3*6000 {
		t.Errorf("used %v", used)
	}
	if counters.Named[seal.CounterDropped].Packets < 12 {
		t.Errorf("dropped %v", counters.Named)
	}
	if k := n.Leaked(t) - before; k != 0 {
		t.Errorf("%d packets reached the witness", k)
	}
}

// Rules that replace others cut what was open, also where it stays allowed,
// and what is allowed can be opened again, from the same port.
func TestReplaceCuts(t *testing.T) {
	n := sealtest.New(t, 2)
	table := apply(t, n.Hub, compile(t, between(), n.Config))
	to := n.Config.Machines[1].V4
	echo(n.Machines[1], to.String(), 1000)
	var conns []net.Conn
	for _, network := range []string{"tcp", "udp"} {
		c, err := n.Machines[0].Dial(network, join(to, 1000), soon)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		say(t, c, nil)
	}
	n.Config.Generation++
	if err := table.Replace(compile(t, sandbox.Policy{Internal: []fleet.Ports{ports("tcp", 1000, 1000)}}, n.Config)); err != nil {
		t.Fatal(err)
	}
	for _, c := range conns {
		say(t, c, timedOut)
	}
	var c net.Conn
	err := n.Machines[0].Do(func() (err error) {
		d := net.Dialer{Timeout: soon, Control: func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		}}
		c, err = d.Dial("tcp", join(to, 1000))
		return err
	})
	if err != nil {
		t.Fatalf("what is still allowed: %v", err)
	}
	say(t, c, nil)
	c.Close()
	if err := reach(n.Machines[0], "udp", join(to, 1000), 10, brief); !timedOut(err) {
		t.Errorf("what is not allowed any more: %v", err)
	}
}

func say(t *testing.T, c net.Conn, failing func(error) bool) {
	t.Helper()
	timeout := soon
	if failing != nil {
		timeout = brief
	}
	c.SetDeadline(time.Now().Add(timeout))
	fmt.Fprint(c, "hello")
	_, err := io.ReadFull(c, make([]byte, 5))
	if failing == nil && err != nil || failing != nil && !failing(err) {
		t.Errorf("%s %s: %v", c.RemoteAddr().Network(), c.RemoteAddr(), err)
	}
}

// raw sends an IP packet, or a frame, as it is.
func raw(t *testing.T, n *sealtest.NS, protocol uint16, mac net.HardwareAddr, b []byte) {
	t.Helper()
	n.Must(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		sa := &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: ifi.Index, Halen: 6}
		copy(sa.Addr[:], mac)
		return unix.Sendto(fd, b, 0, sa)
	})
}

func ipv4(protocol byte, from, to netip.Addr, options, payload []byte) []byte {
	b := make([]byte, 20+len(options))
	b[0] = 0x40 | byte(len(b)/4)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(payload)))
	b[8], b[9] = 64, protocol
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	copy(b[20:], options)
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	return append(b, payload...)
}

func ipv6(next byte, from, to netip.Addr, payload []byte) []byte {
	b := make([]byte, 40)
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = next, 64
	copy(b[8:], from.AsSlice())
	copy(b[24:], to.AsSlice())
	return append(b, payload...)
}

func udp(from, to uint16, data string) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(data)))
	return append(b, data...)
}

// What root in a machine can write onto its link goes nowhere unless it is a
// plain packet of its own to what is open: forged sources, source routes,
// extension headers, other protocols, multicasts, and frames without IP.
func TestForgedPackets(t *testing.T) {
	n := sealtest.New(t, 2)
	table := apply(t, n.Hub, compile(t, between(), n.Config))
	seen := watch(t, n.Hub, n.Config.Group)
	before := n.Leaked(t)
	a, b := n.Config.Machines[0], n.Config.Machines[1]
	hubMAC := net.HardwareAddr{2, 0, 0, 0, 1, 0}
	got := make(chan string, 100)
	for _, to := range []netip.Addr{b.V4, b.V6} {
		c := n.Machines[1].ListenPacket("udp", join(to, 1000))
		go func() {
			buf := make([]byte, 100)
			for {
				k, _, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				got <- string(buf[:k])
			}
		}()
	}
	other := netip.MustParseAddr("10.77.0.9")
	route := append([]byte{131, 7, 4}, append(b.V4.AsSlice(), 0)...) // loose source route
	v6udp := udp(9, 1000, "v6")
	hop := append([]byte{17, 0, 1, 4, 0, 0, 0, 0}, v6udp...)
	for _, c := range []struct {
		what, protocol, reason string
		packet                 []byte
	}{
		{"a forged source", "udp", "forged", ipv4(17, other, b.V4, nil, udp(9, 1000, "forged"))},
		{"the neighbour's address", "udp", "forged", ipv4(17, b.V4, b.V4, nil, udp(9, 1000, "forged"))},
		{"a forged source", "udp", "forged", ipv6(17, netip.MustParseAddr("fd77::9"), b.V6, v6udp)},
		{"a source route", "udp", "forged", ipv4(17, a.V4, b.V4, route, udp(9, 1000, "routed"))},
		{"a hop-by-hop header", "udp", "forged", ipv6(0, a.V6, b.V6, hop)},
		{"a routing header", "udp", "forged", ipv6(43, a.V6, b.V6, hop)},
		{"SCTP", "ip/132", "stray", ipv4(132, a.V4, b.V4, nil, make([]byte, 12))},
		{"a tunnel", "ip/4", "closed", ipv4(4, a.V4, b.V4, nil, ipv4(17, a.V4, b.V4, nil, udp(9, 1000, "tunnel")))},
		{"a multicast", "udp", "closed", ipv4(17, a.V4, netip.MustParseAddr("224.0.0.251"), nil, udp(9, 1000, "multicast"))},
		{"a broadcast", "udp", "closed", ipv4(17, a.V4, netip.MustParseAddr("255.255.255.255"), nil, udp(68, 67, "dhcp"))},
		{"a stray segment", "tcp", "stray", ipv4(6, a.V4, other, nil, append(make([]byte, 13), 0x10, 0, 0, 0, 0, 0, 0))},
		{"an echo request", "icmp", "closed", ipv4(1, a.V4, b.V4, nil, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0})},
		{"an echo request to the gateway", "icmp", "closed", ipv4(1, a.V4, sealtest.Gateway4, nil, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0})},
		{"router solicitation", "icmpv6", "forged", ipv6(58, netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::2"), []byte{133, 0, 0, 0, 0, 0, 0, 0})},
		{"metadata", "udp", "closed", ipv4(17, a.V4, netip.MustParseAddr("169.254.169.254"), nil, udp(9, 1000, "metadata"))},
	} {
		kind := uint16(unix.ETH_P_IP)
		if c.packet[0]>>4 == 6 {
			kind = unix.ETH_P_IPV6
		}
		raw(t, n.Machines[0], kind, hubMAC, c.packet)
		want, ok := seal.ParsePacket(c.packet)
		if !ok || want.Protocol != c.protocol {
			t.Fatalf("%s is read as %v", c.what, want)
		}
		seen.want(t, c.what, func(d seal.Drop) bool {
			return d.In == "m0" && d.Protocol == c.protocol && d.Source == want.Source && d.Destination == want.Destination && d.Reason == c.reason && d.ICMPType == want.ICMPType
		})
	}
	for _, kind := range []uint16{unix.ETH_P_ARP, 0x88cc} {
		raw(t, n.Machines[0], kind, net.HardwareAddr{255, 255, 255, 255, 255, 255}, make([]byte, 46))
	}
	eventually(t, func() error {
		c, err := table.Counters()
		if err != nil {
			return err
		}
		arp, lldp := c.Frames[seal.Frame{Interface: "m0", Kind: unix.ETH_P_ARP}], c.Frames[seal.Frame{Interface: "m0", Kind: 0x88cc}]
		if arp.Packets != 1 || lldp.Packets != 1 {
			return fmt.Errorf("frames %v", c.Frames)
		}
		return nil
	})
	// A plain packet passes: that the others did not is the rules' doing.
	raw(t, n.Machines[0], unix.ETH_P_IP, hubMAC, ipv4(17, a.V4, b.V4, nil, udp(9, 1000, "plain")))
	select {
	case s := <-got:
		if s != "plain" {
			t.Errorf("%q came through", s)
		}
	case <-time.After(soon):
		t.Error("a plain packet did not come through")
	}
	if k := n.Leaked(t) - before; k != 0 {
		t.Errorf("%d packets reached the witness", k)
	}
}

// Fragments are judged as the packet that they make.
func TestFragments(t *testing.T) {
	n := sealtest.New(t, 2)
	apply(t, n.Hub, compile(t, between(), n.Config))
	seen := watch(t, n.Hub, n.Config.Group)
	for _, m := range n.Machines {
		link, err := m.NL.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if err := m.NL.LinkSetMTU(link, 1500); err != nil {
			t.Fatal(err)
		}
	}
	for _, to := range []netip.Addr{n.Config.Machines[1].V4, n.Config.Machines[1].V6} {
		echo(n.Machines[1], to.String(), 1000, 3000)
		if err := reach(n.Machines[0], "udp", join(to, 1000), 20000, soon); err != nil {
			t.Errorf("fragments to an open port: %v", err)
		}
		if err := reach(n.Machines[0], "udp", join(to, 3000), 20000, brief); !timedOut(err) {
			t.Errorf("fragments to a closed port: %v", err)
		}
		seen.want(t, "fragments", func(d seal.Drop) bool { return d.Destination == netip.AddrPortFrom(to, 3000) && d.Length >= 20000 })
	}
}

// What the hub itself dials into a machine passes, and its answers.
func TestGatewayDials(t *testing.T) {
	n := sealtest.New(t, 1)
	apply(t, n.Hub, compile(t, sandbox.Policy{}, n.Config))
	for _, to := range []netip.Addr{n.Config.Machines[0].V4, n.Config.Machines[0].V6} {
		echo(n.Machines[0], to.String(), 5000)
		for _, network := range []string{"tcp", "udp"} {
			if err := reach(n.Hub, network, join(to, 5000), 3000, soon); err != nil {
				t.Errorf("%s %s: %v", network, to, err)
			}
		}
	}
}

// A machine whose link is gone does not keep others from being sealed.
func TestReplaceWithoutLink(t *testing.T) {
	n := sealtest.New(t, 2)
	table := apply(t, n.Hub, compile(t, between(), n.Config))
	link, err := n.Hub.NL.LinkByName("m1")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Hub.NL.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	n.Config.Generation++
	if err := table.Replace(compile(t, sandbox.Policy{}, n.Config)); err != nil {
		t.Fatal(err)
	}
}

// Ten thousand allows, twice: for root in one batch, for an ordinary user in
// steps.
func TestManyAllows(t *testing.T) {
	n := sealtest.New(t, 1)
	table := apply(t, n.Hub, compile(t, manyAllows(), n.Config))
	n.Config.Generation++
	if err := table.Replace(compile(t, manyAllows(), n.Config)); err != nil {
		t.Fatal(err)
	}
	p := manyAllows()
	p.Internal = []fleet.Ports{ports("tcp", 1000, 1000)}
	if err := table.Replace(compile(t, p, n.Config)); err != nil {
		t.Fatal(err)
	}
}

func TestSealAsUser(t *testing.T) {
	sealtest.RunAsUser(t, "^Test(AppliedIsText|BetweenMachines|ReplaceCuts|ManyAllows|ForgedPackets|Loopback|RootInside)$")
}
