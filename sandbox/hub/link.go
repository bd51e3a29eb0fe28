package hub

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"bj/sandbox/seal"
)

// Addresses of the hub: the next hop of every machine, and the source of what
// is dialled into an environment that supplies others.
var (
	Addr4 = netip.MustParseAddr("198.18.255.254")
	Addr6 = netip.MustParseAddr("fd62:6a::ffff")
)

const (
	witnessIn  = "w0" // whatever the filter lets through to a foreign address leaves here
	WitnessOut = "w1"
	relayTable = 100
	// blackholeMetric is that of the routes which stay when a machine's link is
	// gone: packets for a crashed machine vanish, and reach no witness.
	blackholeMetric = 4096
)

// hubInterface is the hub's end of a machine's link.
func hubInterface(index int) string { return fmt.Sprintf("m%d", index) }

// HardwareAddr is the locally administered address of a machine of a lease. It is
// another one in each lease, as programs make identifiers of it.
func HardwareAddr(lease string, index int) net.HardwareAddr {
	sum := sha256.Sum256([]byte(lease))
	return net.HardwareAddr{0x06, sum[0], sum[1], sum[2], byte(index >> 8), byte(index)}
}

// hubHardwareAddr is that of the hub's end of a machine's link.
func hubHardwareAddr(index int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x62, 0x6a, 0x01, byte(index >> 8), byte(index)}
}

// hubSysctls make the hub a router that says nothing by itself. A failure is
// an error where the seal or a route depends on it.
var hubSysctls = []struct {
	name, value string
	must        bool
}{
	{"ipv4/ip_forward", "1", true},
	{"ipv6/conf/all/forwarding", "1", true},
	{"ipv4/conf/all/rp_filter", "0", true},
	{"ipv4/conf/default/rp_filter", "0", true},
	{"ipv4/conf/all/accept_source_route", "0", true},
	{"ipv4/conf/default/accept_source_route", "0", true},
	{"ipv4/conf/all/send_redirects", "0", true},
	{"ipv4/conf/default/send_redirects", "0", true},
	{"ipv6/conf/all/accept_ra", "0", true},
	{"ipv6/conf/default/accept_ra", "0", true},
	{"ipv6/conf/default/accept_dad", "0", true},
	{"ipv6/conf/default/addr_gen_mode", "1", false},
	{"netfilter/nf_conntrack_tcp_loose", "0", false},
}

// SetSysctl sets a value below /proc/sys/net, in the network namespace of the
// calling process.
func SetSysctl(name, value string) error {
	// The folder of a network namespace is its process's own: all threads of
	// the gateway are in the hub.
	return os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0)
}

// Net is the network namespace that all machines of an environment hang on.
type Net struct {
	nl *netlink.Handle

	mu    sync.Mutex // machines are attached at the same time
	links []*machineLink
}

// machineLink is one machine's place at the hub.
type machineLink struct {
	index  int
	mac    net.HardwareAddr
	v4, v6 netip.Addr
	ns     *netlink.Handle // in the machine's namespace
	uplink int             // number of eth0 there
}

// NewNet prepares the namespace of the calling process, with every link down.
func NewNet() (*Net, error) {
	n, err := newNet()
	return n, needs(err)
}

func newNet() (*Net, error) {
	for _, s := range hubSysctls {
		if err := SetSysctl(s.name, s.value); err != nil && s.must && !missingIPv6(s.name, err) {
			return nil, fmt.Errorf("setting net/%s of the hub: %w", s.name, err)
		}
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening netlink in the hub: %w", err)
	}
	h := &Net{nl: nl}
	if err := h.addVeth(witnessIn, WitnessOut, nil); err != nil {
		return nil, fmt.Errorf("making the witness link: %w", err)
	}
	return h, nil
}

func missingIPv6(name string, err error) bool {
	return len(name) > 4 && name[:4] == "ipv6" && errors.Is(err, os.ErrNotExist)
}

// addVeth makes a pair of links: name in the hub, and peer in the namespace of
// the machine, or in the hub where that is nil.
func (h *Net) addVeth(name, peer string, m *Machine) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.MTU = seal.LinkMTU
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerMTU: seal.LinkMTU}
	if m != nil {
		v.PeerNamespace = netlink.NsFd(int(m.NetNS.Fd()))
		v.HardwareAddr = hubHardwareAddr(m.Index)
		v.PeerHardwareAddr = m.MAC
	}
	return h.nl.LinkAdd(v)
}

// Attach links a machine to the hub, with all ends down. A virtual machine's
// link must be there already, under the name that TapName gives.
func (h *Net) Attach(m *Machine) error {
	link := &machineLink{index: m.Index, mac: m.MAC, v4: m.V4, v6: m.V6}
	if m.NetNS == nil {
		if err := h.attachTap(m); err != nil {
			return fmt.Errorf("linking %s to the hub: %w", m.Name, err)
		}
	} else {
		if err := h.addVeth(hubInterface(m.Index), "eth0", m); err != nil {
			return fmt.Errorf("linking %s to the hub: %w", m.Name, err)
		}
		handle, err := netlink.NewHandleAt(netns.NsHandle(m.NetNS.Fd()), unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("opening netlink in %s: %w", m.Name, err)
		}
		eth, err := handle.LinkByName("eth0")
		if err != nil {
			return fmt.Errorf("finding eth0 of %s: %w", m.Name, err)
		}
		link.ns, link.uplink = handle, eth.Attrs().Index
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.links = append(h.links, link)
	return nil
}

// attachTap prepares the tap of a virtual machine, which was moved here.
func (h *Net) attachTap(m *Machine) error {
	tap, err := h.nl.LinkByName(m.Tap)
	if err != nil {
		return fmt.Errorf("finding its tap: %w", err)
	}
	for _, step := range []func() error{
		func() error { return h.nl.LinkSetDown(tap) },
		func() error { return h.nl.LinkSetName(tap, hubInterface(m.Index)) },
		func() error { return h.nl.LinkSetHardwareAddr(tap, hubHardwareAddr(m.Index)) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("preparing its tap: %w", err)
		}
	}
	return nil
}

// uplink returns the number of a machine's own end of its link, in the machine.
func (h *Net) uplink(index int) int {
	for _, l := range h.links {
		if l.index == index {
			return l.uplink
		}
	}
	return 0
}

// up brings all links, addresses and routes up. The rules must be in force by
// then: this is the moment from which packets could flow.
func (h *Net) up() error {
	lo, err := h.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo of the hub: %w", err)
	}
	if err := h.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bringing up lo of the hub: %w", err)
	}
	for _, a := range []netip.Addr{Addr4, Addr6} {
		if err := h.nl.AddrAdd(lo, address(a)); err != nil {
			return fmt.Errorf("adding %s to the hub: %w", a, err)
		}
	}
	for _, name := range []string{witnessIn, WitnessOut} {
		link, err := h.nl.LinkByName(name)
		if err != nil {
			return fmt.Errorf("finding %s: %w", name, err)
		}
		if err := h.nl.LinkSetARPOff(link); err != nil {
			return fmt.Errorf("silencing %s: %w", name, err)
		}
		if err := h.nl.LinkSetUp(link); err != nil {
			return fmt.Errorf("bringing up %s: %w", name, err)
		}
		if name == witnessIn {
			for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: everything(family), Scope: netlink.SCOPE_LINK, Family: family}
				if err := h.nl.RouteAdd(r); err != nil {
					return fmt.Errorf("routing to the witness: %w", err)
				}
			}
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rule := netlink.NewRule()
		rule.Mark = seal.MarkDeliver
		rule.Table = relayTable
		rule.Family = family
		if err := h.nl.RuleAdd(rule); err != nil {
			return fmt.Errorf("adding the relay's routing rule: %w", err)
		}
		r := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: everything(family), Table: relayTable, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Family: family}
		if err := h.nl.RouteAdd(r); err != nil {
			return fmt.Errorf("adding the relay's route: %w", err)
		}
	}
	for _, m := range h.links {
		if err := h.raise(m); err != nil {
			return err
		}
	}
	// A witness that loses what it is sent sees nothing.
	if _, err := ready(h.nl, witnessIn); err != nil {
		return err
	}
	for _, m := range h.links {
		if err := h.settle(m); err != nil {
			return err
		}
	}
	for _, m := range h.links {
		if m.ns == nil {
			continue
		}
		for _, a := range []netip.Addr{m.v4, m.v6} {
			if err := local(m.ns, a); err != nil {
				return err
			}
		}
	}
	return nil
}

// raise brings a machine's links up.
func (h *Net) raise(m *machineLink) error {
	name := hubInterface(m.index)
	link, err := h.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding %s: %w", name, err)
	}
	if err := h.nl.LinkSetARPOff(link); err != nil {
		return fmt.Errorf("silencing %s: %w", name, err)
	}
	if m.ns != nil {
		if err := raiseInside(m.ns); err != nil {
			return err
		}
	}
	if err := h.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing up %s: %w", name, err)
	}
	return nil
}

// raiseInside brings up what a machine itself has.
func raiseInside(nl *netlink.Handle) error {
	for _, name := range []string{"lo", "eth0"} {
		link, err := nl.LinkByName(name)
		if err != nil {
			return fmt.Errorf("finding %s: %w", name, err)
		}
		if err := nl.LinkSetUp(link); err != nil {
			return fmt.Errorf("bringing up %s: %w", name, err)
		}
	}
	return nil
}

// Join does inside a virtual machine what the hub does for one with a namespace
// here: links up, then addresses, neighbours and routes. The rules must be in
// force by then.
func Join(nl *netlink.Handle, index int, v4, v6 netip.Addr) error {
	if err := raiseInside(nl); err != nil {
		return err
	}
	if err := settleInside(nl, index, v4, v6); err != nil {
		return err
	}
	for _, a := range []netip.Addr{v4, v6} {
		if err := local(nl, a); err != nil {
			return err
		}
	}
	return nil
}

// linkDeadline bounds the wait for a link to be ready.
const linkDeadline = 20 * time.Second

// await polls for what the kernel does in the background, under a lock that all
// of the host shares.
func await(what string, done func() (bool, error)) error {
	for deadline := time.Now().Add(linkDeadline); ; time.Sleep(time.Millisecond) {
		switch ok, err := done(); {
		case err != nil:
			return fmt.Errorf("waiting for %s: %w", what, err)
		case ok:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("waiting for %s: it was not ready after %s", what, linkDeadline)
		}
	}
}

// ready waits until a link that is up is active: until then it loses what is
// sent, and says nothing.
func ready(nl *netlink.Handle, name string) (link netlink.Link, err error) {
	err = await(name, func() (bool, error) {
		link, err = nl.LinkByName(name)
		return err == nil && link.Attrs().OperState == netlink.OperUp, err
	})
	return link, err
}

// local waits until an address is known as the namespace's own: a new IPv6
// address is not at once, even without duplicate address detection.
func local(nl *netlink.Handle, a netip.Addr) error {
	return await(a.String(), func() (bool, error) {
		routes, err := nl.RouteGet(a.AsSlice())
		return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL, err
	})
}

// settle gives a machine its addresses, neighbours and routes. Both ends of its
// link are ready then.
func (h *Net) settle(m *machineLink) error {
	link, err := ready(h.nl, hubInterface(m.index))
	if err != nil {
		return err
	}
	if m.ns != nil {
		if err := settleInside(m.ns, m.index, m.v4, m.v6); err != nil {
			return err
		}
	}
	for _, way := range []struct{ self, hub netip.Addr }{{m.v4, Addr4}, {m.v6, Addr6}} {
		if err := h.nl.NeighAdd(neighbour(link, way.self, m.mac)); err != nil {
			return fmt.Errorf("adding the neighbour %s: %w", way.self, err)
		}
		to := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: single(way.self), Scope: netlink.SCOPE_LINK, Src: way.hub.AsSlice()}
		if err := h.nl.RouteAdd(to); err != nil {
			return fmt.Errorf("routing to %s: %w", way.self, err)
		}
		gone := &netlink.Route{Dst: single(way.self), Type: unix.RTN_BLACKHOLE, Priority: blackholeMetric}
		if err := h.nl.RouteAdd(gone); err != nil {
			return fmt.Errorf("adding the blackhole behind %s: %w", way.self, err)
		}
	}
	return nil
}

// settleInside gives a machine its own addresses, and the hub as the next hop
// of everything.
func settleInside(nl *netlink.Handle, index int, v4, v6 netip.Addr) error {
	eth, err := ready(nl, "eth0")
	if err != nil {
		return err
	}
	for _, way := range []struct{ self, next netip.Addr }{{v4, Addr4}, {v6, Addr6}} {
		if err := nl.AddrAdd(eth, address(way.self)); err != nil {
			return fmt.Errorf("adding %s: %w", way.self, err)
		}
		if err := nl.NeighAdd(neighbour(eth, way.next, hubHardwareAddr(index))); err != nil {
			return fmt.Errorf("adding the neighbour %s: %w", way.next, err)
		}
		onlink := &netlink.Route{LinkIndex: eth.Attrs().Index, Dst: single(way.next), Scope: netlink.SCOPE_LINK}
		if err := nl.RouteAdd(onlink); err != nil {
			return fmt.Errorf("routing to %s: %w", way.next, err)
		}
		all := &netlink.Route{LinkIndex: eth.Attrs().Index, Dst: everything(family(way.self)), Gw: way.next.AsSlice(), Src: way.self.AsSlice()}
		if err := nl.RouteAdd(all); err != nil {
			return fmt.Errorf("routing everything through %s: %w", way.next, err)
		}
	}
	return nil
}

// cut takes a machine's link down, for good. That it is gone already is no
// error.
func (h *Net) cut(index int) error {
	link, err := h.nl.LinkByName(hubInterface(index))
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	return h.nl.LinkSetDown(link)
}

// leaked returns how many packets have left through the witness.
func (h *Net) leaked() (int64, error) {
	link, err := h.nl.LinkByName(witnessIn)
	if err != nil {
		return 0, fmt.Errorf("reading the witness: %w", err)
	}
	stats := link.Attrs().Statistics
	if stats == nil {
		return 0, errors.New("reading the witness: the kernel keeps no counters")
	}
	return int64(stats.TxPackets + stats.TxDropped), nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func everything(family int) *net.IPNet {
	if family == netlink.FAMILY_V4 {
		return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func address(a netip.Addr) *netlink.Addr {
	addr := &netlink.Addr{IPNet: single(a)}
	if a.Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return addr
}

func neighbour(link netlink.Link, a netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: link.Attrs().Index, Family: family(a), State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
}
