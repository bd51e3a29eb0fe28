// Package sealtest makes hubs with machines out of bare network namespaces,
// for tests of the seal and of the gate, and runs tests once more as an
// ordinary user.
package sealtest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	vnetlink "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"bj/sandbox/seal"
)

// Addresses of the hub.
var (
	Gateway4 = netip.MustParseAddr("198.18.255.254")
	Gateway6 = netip.MustParseAddr("fd62:6a::ffff")
)

const relayTable = 100

// userEnv is set in the process that runs tests as an ordinary user.
const userEnv = "BJ_SEALTEST_USER"

// AsUser reports whether this process is root of a user namespace only.
func AsUser() bool { return os.Getenv(userEnv) != "" }

// RunAsUser runs the tests that match pattern once more, in a process that is
// root of a user namespace of its own and nobody outside of it.
func RunAsUser(t *testing.T, pattern string) {
	if AsUser() {
		t.Skip("runs as an ordinary user already")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run="+pattern, "-test.v")
	cmd.Env = append(os.Environ(), userEnv+"=1", "TMPDIR=/tmp")
	id := os.Getuid()
	if id == 0 {
		id = 65534
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: id, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: id, Size: 1}},
		Credential:  &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		if cmd.Process == nil {
			t.Skipf("user namespaces are not to be had: %v", err)
		}
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "--- PASS") {
		t.Fatalf("nothing ran:\n%s", out)
	}
}

// Need skips the test where this process may not make network namespaces.
func Need(t testing.TB) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends
		done <- unix.Unshare(unix.CLONE_NEWNET)
	}()
	if err := <-done; err != nil {
		t.Skipf("making a network namespace: %v", err)
	}
}

// NS is a network namespace.
type NS struct {
	t    testing.TB
	file *os.File
	NL   *vnetlink.Handle
}

// NewNS makes a network namespace that ends with the test.
func NewNS(t testing.TB) *NS {
	t.Helper()
	type made struct {
		file *os.File
		err  error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{err: err}
			return
		}
		f, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		done <- made{f, err}
	}()
	m := <-done
	if m.err != nil {
		t.Fatalf("making a network namespace: %v", m.err)
	}
	return Open(t, m.file)
}

// Open makes an NS of a descriptor, which it takes over.
func Open(t testing.TB, file *os.File) *NS {
	t.Helper()
	t.Cleanup(func() { file.Close() })
	nl, err := vnetlink.NewHandleAt(netns.NsHandle(file.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatalf("opening netlink: %v", err)
	}
	t.Cleanup(nl.Close)
	return &NS{t: t, file: file, NL: nl}
}

// FD returns the namespace's descriptor.
func (n *NS) FD() int { return int(n.file.Fd()) }

// Do runs f on a thread inside of n.
func (n *NS) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("entering a network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Must is Do, for what cannot fail.
func (n *NS) Must(f func() error) {
	n.t.Helper()
	if err := n.Do(f); err != nil {
		n.t.Fatal(err)
	}
}

// Listen listens in n until the test ends.
func (n *NS) Listen(network, address string) net.Listener {
	n.t.Helper()
	var l net.Listener
	n.Must(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	n.t.Cleanup(func() { l.Close() })
	return l
}

// ListenPacket is Listen for packets.
func (n *NS) ListenPacket(network, address string) net.PacketConn {
	n.t.Helper()
	var l net.PacketConn
	n.Must(func() (err error) {
		l, err = net.ListenPacket(network, address)
		return err
	})
	n.t.Cleanup(func() { l.Close() })
	return l
}

// Dial dials from n, with a deadline.
func (n *NS) Dial(network, address string, timeout time.Duration) (net.Conn, error) {
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: timeout}).Dial(network, address)
		return err
	})
	if err != nil {
		return nil, err
	}
	n.t.Cleanup(func() { c.Close() })
	return c, nil
}

// Run runs a program in n and returns what it printed, without its errors.
func (n *NS) Run(name string, args ...string) (string, error) {
	var out []byte
	err := n.Do(func() (err error) {
		cmd := exec.Command(name, args...)
		var errs strings.Builder
		cmd.Stderr = &errs
		if out, err = cmd.Output(); err != nil {
			err = fmt.Errorf("%w: %s", err, errs.String())
		}
		return err
	})
	return string(out), err
}

// Sysctl sets a value below /proc/sys/net.
func (n *NS) Sysctl(name, value string) {
	n.t.Helper()
	n.Must(func() error { return os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0) })
}

// Net is a hub with machines.
type Net struct {
	Hub      *NS
	Machines []*NS
	Config   seal.Hub
}

// New makes a hub with so many machines, all links up, without rules. Machine
// i is "m<i>" with the addresses 10.77.0.<i+1> and fd77::<i+1>.
func New(t testing.TB, machines int) *Net {
	t.Helper()
	Need(t)
	n := &Net{Hub: NewNS(t), Config: seal.Hub{
		Generation: 1, Gateway4: Gateway4, Gateway6: Gateway6,
		RelayTCP: 1081, RelayUDP: 1082, Queue: 7, Group: 7,
	}}
	for _, s := range []struct{ name, value string }{
		{"ipv4/ip_forward", "1"}, {"ipv6/conf/all/forwarding", "1"},
		{"ipv4/conf/all/rp_filter", "0"}, {"ipv4/conf/default/rp_filter", "0"},
		{"ipv4/conf/all/send_redirects", "0"}, {"ipv4/conf/default/send_redirects", "0"},
		{"ipv6/conf/default/accept_dad", "0"}, {"ipv6/conf/default/addr_gen_mode", "1"},
	} {
		n.Hub.Sysctl(s.name, s.value)
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	hub := n.Hub.NL
	lo := n.Hub.up("lo")
	check(hub.AddrAdd(lo, addr(Gateway4)))
	check(hub.AddrAdd(lo, addr(Gateway6)))
	attrs := vnetlink.NewLinkAttrs()
	attrs.Name = "w0"
	check(hub.LinkAdd(&vnetlink.Veth{LinkAttrs: attrs, PeerName: "w1"}))
	for _, name := range []string{"w0", "w1"} {
		link, err := hub.LinkByName(name)
		check(err)
		check(hub.LinkSetARPOff(link))
		n.Hub.up(name)
		if name == "w0" {
			for _, f := range []int{vnetlink.FAMILY_V4, vnetlink.FAMILY_V6} {
				check(hub.RouteAdd(&vnetlink.Route{LinkIndex: link.Attrs().Index, Dst: everything(f), Scope: unix.RT_SCOPE_LINK, Family: f}))
			}
		}
	}
	for _, f := range []int{vnetlink.FAMILY_V4, vnetlink.FAMILY_V6} {
		r := vnetlink.NewRule()
		r.Mark, r.Table, r.Family = seal.MarkDeliver, relayTable, f
		check(hub.RuleAdd(r))
		check(hub.RouteAdd(&vnetlink.Route{LinkIndex: lo.Attrs().Index, Dst: everything(f), Table: relayTable, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Family: f}))
	}
	for i := range machines {
		n.attach(t, i)
	}
	return n
}

func (n *Net) attach(t testing.TB, i int) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	m := seal.Machine{
		Name: fmt.Sprintf("m%d", i), Interface: fmt.Sprintf("m%d", i),
		V4: netip.AddrFrom4([4]byte{10, 77, 0, byte(i + 1)}),
		V6: netip.MustParseAddr(fmt.Sprintf("fd77::%x", i+1)),
	}
	ns := NewNS(t)
	ns.Sysctl("ipv6/conf/default/accept_dad", "0")
	ns.Sysctl("ipv6/conf/default/addr_gen_mode", "1")
	hubMAC, mac := net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}, net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}
	attrs := vnetlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = m.Interface, hubMAC, seal.LinkMTU
	check(n.Hub.NL.LinkAdd(&vnetlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: mac, PeerNamespace: vnetlink.NsFd(ns.FD()), PeerMTU: seal.LinkMTU}))
	link, err := n.Hub.NL.LinkByName(m.Interface)
	check(err)
	check(n.Hub.NL.LinkSetARPOff(link))
	ns.up("lo")
	eth := ns.up("eth0")
	n.Hub.up(m.Interface)
	for _, way := range []struct{ self, next netip.Addr }{{m.V4, Gateway4}, {m.V6, Gateway6}} {
		check(ns.NL.AddrAdd(eth, addr(way.self)))
		check(ns.NL.NeighAdd(neigh(eth, way.next, hubMAC)))
		check(ns.NL.RouteAdd(&vnetlink.Route{LinkIndex: eth.Attrs().Index, Dst: single(way.next), Scope: unix.RT_SCOPE_LINK}))
		check(ns.NL.RouteAdd(&vnetlink.Route{LinkIndex: eth.Attrs().Index, Dst: everything(familyOf(way.self)), Gw: way.next.AsSlice(), Src: way.self.AsSlice()}))
		check(n.Hub.NL.NeighAdd(neigh(link, way.self, mac)))
		check(n.Hub.NL.RouteAdd(&vnetlink.Route{LinkIndex: link.Attrs().Index, Dst: single(way.self), Scope: unix.RT_SCOPE_LINK, Src: way.next.AsSlice()}))
	}
	n.Hub.active(m.Interface)
	ns.active("eth0")
	ns.local(m.V4)
	ns.local(m.V6)
	n.Machines = append(n.Machines, ns)
	n.Config.Machines = append(n.Config.Machines, m)
}

// Leaked returns how many packets have reached the witness.
func (n *Net) Leaked(t testing.TB) uint64 {
	t.Helper()
	link, err := n.Hub.NL.LinkByName("w0")
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Statistics.TxPackets
}

func (n *NS) up(name string) vnetlink.Link {
	n.t.Helper()
	link, err := n.NL.LinkByName(name)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.NL.LinkSetUp(link); err != nil {
		n.t.Fatal(err)
	}
	return link
}

// active waits until a link that is up is active: until then it loses what is
// sent.
func (n *NS) active(name string) {
	n.t.Helper()
	n.await(name, func() bool {
		link, err := n.NL.LinkByName(name)
		return err == nil && link.Attrs().OperState == vnetlink.OperUp
	})
}

// local waits until an address is the namespace's own: a new IPv6 address is not
// at once.
func (n *NS) local(a netip.Addr) {
	n.t.Helper()
	n.await(a.String(), func() bool {
		routes, err := n.NL.RouteGet(a.AsSlice())
		return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
	})
}

func (n *NS) await(what string, done func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("%s is not ready", what)
		}
	}
}

// Up brings up loopback, with more addresses.
func (n *NS) Up(addresses ...string) {
	n.t.Helper()
	lo := n.up("lo")
	for _, a := range addresses {
		own := netip.MustParseAddr(a)
		if err := n.NL.AddrAdd(lo, addr(own)); err != nil {
			n.t.Fatal(err)
		}
		n.local(own)
	}
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return vnetlink.FAMILY_V4
	}
	return vnetlink.FAMILY_V6
}

func everything(family int) *net.IPNet {
	if family == vnetlink.FAMILY_V4 {
		return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func addr(a netip.Addr) *vnetlink.Addr {
	out := &vnetlink.Addr{IPNet: single(a)}
	if a.Is6() {
		out.Flags = unix.IFA_F_NODAD
	}
	return out
}

func neigh(link vnetlink.Link, a netip.Addr, mac net.HardwareAddr) *vnetlink.Neigh {
	return &vnetlink.Neigh{LinkIndex: link.Attrs().Index, Family: familyOf(a), State: vnetlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
}
