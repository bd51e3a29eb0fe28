package hub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bj/sandbox"
	"bj/sandbox/agent"
	"bj/sandbox/seal"
)

// Inside is the seal of a machine with a kernel of its own, in that machine:
// the rules for what stays inside of it, and what they drop. What leaves the
// machine is the gateway's to judge, whatever happens here.
type Inside struct {
	Name   string
	Index  int
	V4, V6 netip.Addr
	Cgroup string // the folder below which units have theirs: the root of all cgroups

	canaries canaries
	watching watching

	mu         sync.Mutex
	generation uint8
	table      *seal.Table
	flows      *seal.Flows
}

// Seal puts p in force. The first time it brings the machine's links up, when
// the rules are in place.
func (s *Inside) Seal(p sandbox.Policy) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	defer nl.Close()
	eth, err := nl.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("finding eth0: %w", err)
	}
	generation := s.generation + 1
	if generation == 0 {
		generation = 1
	}
	units := told(p)
	for _, u := range units {
		if err := os.Mkdir(filepath.Join(s.Cgroup, agent.UnitFolder(u)), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("making the cgroup of the unit %s: %w", u, err)
		}
	}
	groups, err := cgroups(p, s.Cgroup, "")
	if err != nil {
		return err
	}
	rules, err := seal.CompileMachine(p, seal.Inside{
		Machine: seal.Machine{Name: s.Name, Interface: hubInterface(s.Index), V4: s.V4, V6: s.V6, Tagged: true}, Cgroups: groups,
		UplinkIndex: eth.Attrs().Index, Generation: generation, Group: logGroup,
	})
	if err != nil {
		return fmt.Errorf("compiling the rules: %w", err)
	}
	if s.table != nil {
		if err := s.table.Replace(rules); err != nil {
			return err
		}
		s.generation = generation
		return nil
	}
	s.flows = &seal.Flows{}
	if s.table, err = seal.Apply(0, rules); err != nil {
		return explain(p, err)
	}
	s.generation = generation
	if err := s.watching.watch(0, func(d seal.Drop) {
		iface := d.In
		if iface == "" {
			iface = d.Out
		}
		if !s.canaries.saw(CanaryKey{s.Name, d.Protocol, d.Destination}) {
			s.flows.Add(s.Name, iface, unitOf(p, d.Tag), d)
		}
	}); err != nil {
		return err
	}
	return Join(nl, s.Index, s.V4, s.V6)
}

// Expect announces canaries.
func (s *Inside) Expect(keys []CanaryKey) { s.canaries.expect(keys) }

// Flows returns what was dropped and used so far.
func (s *Inside) Flows() (Flows, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.table == nil {
		return Flows{}, nil
	}
	if err := s.watching.failed(); err != nil {
		return Flows{}, err
	}
	c, err := s.table.Counters()
	if err != nil {
		return Flows{}, fmt.Errorf("reading counters: %w", err)
	}
	return Flows{Blocked: s.flows.List(), Used: c.Used(), Seen: s.canaries.list()}, nil
}

// Rules returns the rules in force, as text.
func (s *Inside) Rules() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.table == nil {
		return "", errors.New("nothing is sealed")
	}
	return s.table.Rules().String(), nil
}

// Quiet gives the network of the calling process settings that add no address
// but those given, and ask nothing. It comes before links are up.
func Quiet() error {
	for _, dir := range []string{"default", "eth0"} {
		for name, value := range map[string]string{"addr_gen_mode": "1", "accept_ra": "0", "accept_dad": "0", "router_solicitations": "0"} {
			if err := SetSysctl("ipv6/conf/"+dir+"/"+name, value); err != nil {
				return fmt.Errorf("setting net/ipv6/conf/%s/%s: %w", dir, name, err)
			}
		}
	}
	// Ping sockets for everyone, as distributions have it.
	return SetSysctl("ipv4/ping_group_range", "0 65535")
}

// watching is what looks on at what is dropped.
type watching struct {
	mu  sync.Mutex
	err error
}

// failed returns why something may have been missed: one that looks on has died.
func (w *watching) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// watch calls f for what is dropped in a namespace. It returns once nothing is
// missed any more.
func (w *watching) watch(fd int, f func(seal.Drop)) error {
	ready, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		err := seal.Watch(context.Background(), fd, logGroup, ready, func(d seal.Drop) {
			if d.Protocol == "icmpv6" && d.ICMPType == multicastReport {
				return // the machine's kernel says which groups it is in, unasked
			}
			f(d)
		})
		w.mu.Lock()
		w.err = errors.Join(w.err, err)
		w.mu.Unlock()
		failed <- err
	}()
	select {
	case <-ready:
		return nil
	case err := <-failed:
		return err
	}
}
