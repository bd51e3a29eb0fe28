package hub

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"bj/sandbox"
	"bj/sandbox/agent"
	"bj/sandbox/gate"
	"bj/sandbox/seal"
)

const (
	logGroup  = 1 // NFLOG, in the hub and in each machine
	holdQueue = 1 // NFQUEUE, in the hub
	relayPort = 1 // of the relay's transparent sockets, on addresses that no machine can reach
)

// multicastReport is the type of ICMPv6 messages about membership in multicast
// groups (RFC 3810), with which a kernel greets every address it gets.
const multicastReport = 143

// sealer is what enforces and observes the policy of one environment.
type sealer struct {
	generation uint8
	hub        *seal.Table
	inside     []*seal.Table
	flows      *seal.Flows
	relay      *gate.Relay
	policy     sandbox.Policy
	watching   watching
}

// applySeal puts p in force. The first time it brings the links up, but only
// when every rule is in place; later it replaces rules, and what the earlier
// ones admitted is cut in the same instant.
func (g *Gateway) applySeal(ctx context.Context, p sandbox.Policy) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.hub == nil {
		return errors.New("nothing is set up")
	}
	if g.seal != nil {
		return g.reseal(p)
	}
	s := &sealer{generation: 1, policy: p, inside: make([]*seal.Table, len(g.machines)), flows: &seal.Flows{}}
	if err := g.markSenders(p); err != nil {
		return err
	}
	config := g.relayConfig(p)
	config.Unanswered = func(q gate.Question) { s.flows.AddName(q.Machine, q.Unit, q.Name, q.From, q.To, q.At) }
	config.Refused = func(r gate.Request) {
		s.flows.AddRequest(r.Machine, r.Unit, r.Scheme, r.Host, r.Method, r.Path, r.From, r.To, r.At)
	}
	var err error
	if s.relay, err = gate.Open(config, p); err != nil {
		return fmt.Errorf("opening the relay: %w", err)
	}
	hub, inside, err := g.compile(p, s)
	if err != nil {
		return err
	}
	var group errgroup.Group
	group.Go(func() error {
		if s.hub, err = seal.Apply(0, hub); err != nil {
			return fmt.Errorf("the hub: %w", err)
		}
		return nil
	})
	group.Go(func() error { return g.watch("", 0, s) })
	for i, m := range g.machines {
		if m.NetNS == nil {
			continue // its kernel is its own, and its agent applies them
		}
		fd := int(m.NetNS.Fd())
		group.Go(func() error {
			t, err := seal.Apply(fd, inside[i])
			if err != nil {
				return explain(p, fmt.Errorf("%s: %w", m.Name, err))
			}
			s.inside[i] = t
			return nil
		})
		group.Go(func() error { return g.watch(m.Name, fd, s) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := g.hub.up(); err != nil {
		return err
	}
	g.seal = s
	return nil
}

func (g *Gateway) reseal(p sandbox.Policy) error {
	s := g.seal
	darker := p.Darkens(s.policy)
	if !darker {
		s.generation++
		if s.generation == 0 {
			s.generation = 1
		}
	}
	hub, inside, err := g.compile(p, s)
	if err != nil {
		return err
	}
	if err := s.hub.Replace(hub); err != nil {
		return fmt.Errorf("the hub: %w", err)
	}
	enforce := s.relay.Seal
	if darker {
		enforce = s.relay.Darken
	}
	if err := enforce(p); err != nil {
		return fmt.Errorf("the relay: %w", err)
	}
	s.policy = p
	for i, t := range s.inside {
		if t == nil {
			continue
		}
		if err := t.Replace(inside[i]); err != nil {
			if g.machines[i].gone() {
				continue // its rules went with it
			}
			return fmt.Errorf("%s: %w", g.machines[i].Name, err)
		}
	}
	return nil
}

// markSenders makes packets of machines say which unit they are from, where the
// policy asks for that. Those with a kernel of their own write it down themselves.
func (g *Gateway) markSenders(p sandbox.Policy) error {
	if len(p.Units) == 0 {
		return nil
	}
	for _, m := range g.machines {
		if m.NetNS == nil {
			continue
		}
		link, err := g.hub.nl.LinkByName(hubInterface(m.Index))
		if err != nil {
			return fmt.Errorf("finding the link of %s: %w", m.Name, err)
		}
		var folders []string
		for _, u := range told(p) {
			folders = append(folders, filepath.Join(m.Cgroup, agent.UnitFolder(u)))
		}
		if err := seal.MarkSenders(g.hub.nl, link.Attrs().Index, folders); err != nil {
			return &sandbox.Error{Code: sandbox.CodeLimits, Err: fmt.Errorf("telling the units of %s apart: %w", m.Name, err),
				Hint: "only= needs a kernel with eBPF for links (CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF), and that bj may use it (CAP_BPF)"}
		}
	}
	return nil
}

// told returns the units that a policy tells apart.
func told(p sandbox.Policy) []string { return p.Units[:min(len(p.Units), sandbox.MaxUnits)] }

// unitOf names the unit of a number; "" if it is none.
func unitOf(p sandbox.Policy, number int) string {
	if units := told(p); number > 0 && number <= len(units) {
		return units[number-1]
	}
	return ""
}

// cgroups are those of a policy's units, below a machine's folder, which is at a
// path of the cgroup namespace.
func cgroups(p sandbox.Policy, dir, at string) ([]seal.Cgroup, error) {
	var out []seal.Cgroup
	for _, u := range told(p) {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, agent.UnitFolder(u)), &st); err != nil {
			return nil, fmt.Errorf("finding the cgroup of the unit %s: %w", u, err)
		}
		out = append(out, seal.Cgroup{Path: strings.TrimPrefix(path.Join(at, agent.UnitFolder(u)), "/"), ID: st.Ino})
	}
	return out, nil
}

// explain says what a kernel lacks that cannot match cgroups.
func explain(p sandbox.Policy, err error) error {
	if len(p.Units) > 0 && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP)) {
		return &sandbox.Error{Code: sandbox.CodeLimits, Err: err, Hint: "only= needs a kernel whose packet filter matches cgroups (CONFIG_NFT_SOCKET, CONFIG_SOCK_CGROUP_DATA)"}
	}
	return err
}

// relayConfig is the relay as the rules have it.
func (g *Gateway) relayConfig(p sandbox.Policy) gate.Config {
	c := gate.Config{
		TCP: relayPort, UDP: relayPort, Queue: holdQueue,
		MarkDialled: seal.MarkDialled, MarkRefused: seal.MarkRefused, MarkReply: seal.MarkReply,
		Own: []netip.Addr{Addr4, Addr6}, Dial: g.dialOut, Units: told(p), MarkUnit: seal.MarkUnit,
	}
	for _, m := range g.machines {
		c.Machines = append(c.Machines, gate.Machine{Name: m.Name, V4: m.V4, V6: m.V6})
	}
	return c
}

func (g *Gateway) sealMachines() []seal.Machine {
	ms := make([]seal.Machine, len(g.machines))
	for i, m := range g.machines {
		ms[i] = seal.Machine{Name: m.Name, Interface: hubInterface(m.Index), V4: m.V4, V6: m.V6, Tagged: m.NetNS == nil}
	}
	return ms
}

// compile makes the rules of the hub and of each machine.
func (g *Gateway) compile(p sandbox.Policy, s *sealer) (*seal.Ruleset, []*seal.Ruleset, error) {
	machines := g.sealMachines()
	hub, err := seal.CompileHub(p, seal.Hub{
		Generation: s.generation, Machines: machines, Gateway4: Addr4, Gateway6: Addr6,
		RelayTCP: relayPort, RelayUDP: relayPort, Queue: holdQueue, Group: logGroup,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("compiling the rules of the hub: %w", err)
	}
	inside := make([]*seal.Ruleset, len(machines))
	for i, m := range machines {
		if g.machines[i].NetNS == nil {
			continue
		}
		units, err := cgroups(p, g.machines[i].Cgroup, g.machines[i].CgroupAt)
		if err != nil {
			return nil, nil, err
		}
		if inside[i], err = seal.CompileMachine(p, seal.Inside{Machine: m, UplinkIndex: g.hub.uplink(g.machines[i].Index), Generation: s.generation, Group: logGroup, Cgroups: units}); err != nil {
			return nil, nil, fmt.Errorf("compiling the rules of %s: %w", m.Name, err)
		}
	}
	return hub, inside, nil
}

// watch counts what is dropped in a namespace: the hub, or that of a machine.
// It returns once nothing is missed any more.
func (g *Gateway) watch(machine string, fd int, s *sealer) error {
	units := sandbox.Policy{Units: s.policy.Units} // of all policies
	byInterface := map[string]string{}
	for _, m := range g.machines {
		byInterface[hubInterface(m.Index)] = m.Name
	}
	return s.watching.watch(fd, func(d seal.Drop) {
		name, iface, unit := machine, d.In, d.Tag
		if name == "" {
			name, iface, unit = byInterface[d.In], "eth0", d.Unit
		} else if iface == "" {
			iface = d.Out
		}
		if name != "" && !g.canaries.saw(CanaryKey{name, d.Protocol, d.Destination}) {
			s.flows.Add(name, iface, unitOf(units, unit), d)
		}
	})
}

func (g *Gateway) flows() (Flows, error) {
	g.mu.Lock()
	s := g.seal
	g.mu.Unlock()
	if s == nil {
		return Flows{}, nil
	}
	if err := s.watching.failed(); err != nil {
		return Flows{}, err
	}
	counters, err := s.hub.Counters()
	if err != nil {
		return Flows{}, fmt.Errorf("reading counters: %w", err)
	}
	lists := [][]sandbox.Use{counters.Used(), s.relay.Used()}
	for i, t := range s.inside {
		if t == nil {
			continue
		}
		c, err := t.Counters()
		if err != nil {
			if g.machines[i].gone() {
				continue // its counters went with it
			}
			return Flows{}, fmt.Errorf("reading counters of %s: %w", g.machines[i].Name, err)
		}
		lists = append(lists, c.Used())
	}
	used := map[int]sandbox.Use{}
	for _, list := range lists {
		for _, u := range list {
			sum := used[u.Condition]
			used[u.Condition] = sandbox.Use{Condition: u.Condition, Count: sum.Count + u.Count, Bytes: sum.Bytes + u.Bytes}
		}
	}
	now := time.Now()
	for frame, c := range counters.Frames {
		for _, m := range g.machines {
			if hubInterface(m.Index) == frame.Interface {
				s.flows.AddFrame(m.Name, "eth0", frame, c.Packets, now)
			}
		}
	}
	a := Flows{Blocked: s.flows.List(), Seen: g.canaries.list()}
	for i, f := range a.Blocked {
		if f.Name == "" {
			a.Blocked[i].Name = s.relay.Asked(f.Machine, f.Destination.Addr())
		}
	}
	for _, u := range used {
		a.Used = append(a.Used, u)
	}
	return a, nil
}

// rules returns all rules in force, one namespace after the other.
func (g *Gateway) rules() (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.seal == nil {
		return "", nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# the hub\n\n%s", g.seal.hub.Rules())
	for i, t := range g.seal.inside {
		if t == nil {
			continue
		}
		fmt.Fprintf(&b, "\n# %s\n\n%s", g.machines[i].Name, t.Rules())
	}
	return b.String(), nil
}
