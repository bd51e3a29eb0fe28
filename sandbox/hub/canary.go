package hub

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"bj/sandbox"
	"bj/sandbox/agent"
)

// canaryDeadline bounds the wait for a probe to be seen where it was stopped.
const canaryDeadline = 3 * time.Second

// witnesses are the host's own ends that no probe may reach: a port on the
// host's loopback, and an abstract socket, which belongs to a network
// namespace and is no file.
type witnesses struct {
	tcp  net.Listener
	unix net.Listener
	name string
	hits chan string
}

func newWitnesses() (*witnesses, error) {
	w := &witnesses{name: fmt.Sprintf("bj-witness-%x", rand.Uint64()), hits: make(chan string, 16)}
	var err error
	if w.tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("listening as a witness: %w", err)
	}
	if w.unix, err = net.Listen("unix", "@"+w.name); err != nil {
		w.tcp.Close()
		return nil, fmt.Errorf("listening as a witness: %w", err)
	}
	for _, l := range []net.Listener{w.tcp, w.unix} {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
				select {
				case w.hits <- l.Addr().Network() + " " + l.Addr().String():
				default:
				}
			}
		}()
	}
	return w, nil
}

func (w *witnesses) close() { w.tcp.Close(); w.unix.Close() }

// port returns the port of the host's loopback that listens.
func (w *witnesses) port() uint16 { return w.tcp.Addr().(*net.TCPAddr).AddrPort().Port() }

// probe is one thing to try, and how it is told that it was stopped.
type probe struct {
	agent.Probe
	text string
	// refused: the machine's own kernel must refuse it. Otherwise it must be
	// seen among the dropped packets, unless it could not even be sent.
	refused bool
}

// canaryProbes returns what is tried from inside the machine m. Where a policy
// allows a destination, another one is tried, and none where everything of the
// kind is allowed.
func canaryProbes(p sandbox.Policy, m sandbox.MachineSpec, peers []sandbox.MachineSpec, w *witnesses) []probe {
	var ps []probe
	add := func(kind agent.ProbeKind, network string, addr netip.Addr, ports ...uint16) {
		for range 8 {
			port := uint16(20000 + rand.IntN(40000))
			if len(ports) > 0 {
				port = ports[0]
			}
			to := netip.AddrPortFrom(addr, port)
			if opens(p, m, peers, network, to) {
				if len(ports) > 0 {
					return
				}
				continue
			}
			if network == "icmp" {
				to = netip.AddrPortFrom(addr, 0)
			}
			ps = append(ps, probe{Probe: agent.Probe{Kind: kind, To: to}, text: fmt.Sprintf("%s %s", kind, printed(to))})
			return
		}
	}
	// Addresses for measurements and for documentation, which are nobody's. What is
	// dropped on the way to them is left out of what is reported, so the ranges are
	// so wide that a recipe's own attempts do not go there: not one in thousands.
	out4 := netip.AddrFrom4([4]byte{198, 19, byte(rand.IntN(256)), byte(1 + rand.IntN(254))})
	out6 := netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 0xff, byte(rand.IntN(256)), byte(rand.IntN(256)), 15: byte(1 + rand.IntN(254))})
	lo4, lo6 := netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()
	for _, a := range []netip.Addr{out4, out6, lo4, lo6, m.V4, m.V6} {
		add(agent.ProbeTCP, "tcp", a)
		add(agent.ProbeUDP, "udp", a)
	}
	for _, a := range []netip.Addr{out4, out6} {
		add(agent.ProbeICMP, "icmp", a)
	}
	add(agent.ProbeTCP, "tcp", lo4, w.port())
	add(agent.ProbeTCP, "tcp", netip.AddrFrom4([4]byte{169, 254, 169, 254}))
	add(agent.ProbeUDP, "udp", netip.AddrFrom4([4]byte{224, 0, 0, 251}))
	for _, peer := range peers {
		if peer.Name != m.Name {
			add(agent.ProbeTCP, "tcp", peer.V4)
			add(agent.ProbeTCP, "tcp", peer.V6)
			add(agent.ProbeUDP, "udp", peer.V4)
			add(agent.ProbeUDP, "udp", peer.V6)
			break // one neighbour tells as much as all
		}
	}
	ps = append(ps,
		probe{Probe: agent.Probe{Kind: agent.ProbeIP, To: netip.AddrPortFrom(out4, 0), Protocol: 132}, text: fmt.Sprintf("ip/132 %s", out4)},
		probe{Probe: agent.Probe{Kind: agent.ProbeUnix, Name: w.name}, text: "unix @" + w.name, refused: true},
		probe{Probe: agent.Probe{Kind: agent.ProbeVsock, CID: 2, Port: 1}, text: "vsock 2:1", refused: true},
		probe{Probe: agent.Probe{Kind: agent.ProbeXDP}, text: "a socket that bypasses the network stack", refused: true},
	)
	return ps
}

func printed(to netip.AddrPort) string {
	if to.Port() == 0 {
		return to.Addr().String()
	}
	return to.String()
}

// opens reports whether a policy lets the machine m reach to. A canary is no unit.
func opens(p sandbox.Policy, m sandbox.MachineSpec, peers []sandbox.MachineSpec, network string, to netip.AddrPort) bool {
	for _, a := range p.Allows {
		if !sandbox.Among(a.Machines, m.Name) || len(a.Units) > 0 {
			continue
		}
		if a.Protocol == network && a.Prefix.Contains(to.Addr()) && (network == "icmp" || a.First <= to.Port() && to.Port() <= a.Last) {
			return true
		}
	}
	inside := to.Addr().IsLoopback() || slices.ContainsFunc(peers, func(q sandbox.MachineSpec) bool { return to.Addr() == q.V4 || to.Addr() == q.V6 })
	for _, r := range p.Internal {
		if inside && r.Protocol == network && r.First <= to.Port() && to.Port() <= r.Last {
			return true
		}
	}
	return false
}

// CanaryKey is by what a probe is known among dropped packets.
type CanaryKey struct {
	Machine  string
	Protocol string
	To       netip.AddrPort
}

// canaries is the gateway's list of probes to look for among dropped packets.
type canaries struct {
	mu   sync.Mutex
	seen map[CanaryKey]bool
}

func (c *canaries) expect(keys []CanaryKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = map[CanaryKey]bool{}
	for _, k := range keys {
		c.seen[k] = false
	}
}

// saw reports whether k is a canary, and remembers that it was dropped.
func (c *canaries) saw(k CanaryKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.seen[k]
	if ok {
		c.seen[k] = true
	}
	return ok
}

func (c *canaries) list() []CanaryKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	var seen []CanaryKey
	for k, ok := range c.seen {
		if ok {
			seen = append(seen, k)
		}
	}
	return seen
}

func keyOf(machine string, p probe) CanaryKey {
	protocol := string(p.Kind)
	to := p.To
	switch p.Kind {
	case agent.ProbeICMP:
		if to.Addr().Is6() {
			protocol = "icmpv6"
		}
	case agent.ProbeIP:
		protocol = fmt.Sprintf("ip/%d", p.Protocol)
	}
	return CanaryKey{machine, protocol, to}
}

// Canaries implements sandbox.Environment. A probe holds if nothing came back
// and it was either refused by the machine's own kernel or seen where the seal
// drops packets; that it was merely not answered is not enough. In the end the
// witness link must be silent.
func (e *Client) Canaries(ctx context.Context) ([]sandbox.Canary, error) {
	ctx, cancel := context.WithTimeout(ctx, canaryDeadline+10*time.Second)
	defer cancel()
	w, err := newWitnesses()
	if err != nil {
		return nil, err
	}
	defer w.close()
	e.mu.Lock()
	policy := e.policy.Narrowed(e.names())
	e.mu.Unlock()

	type tried struct {
		name     string
		agent    *agent.Client
		probes   []probe
		outcomes []agent.Outcome
	}
	var all []tried
	var raws [][]agent.Probe
	var expect expectRequest
	for i, m := range e.Spec.Machines {
		select {
		case <-e.Agents[i].Lost():
			continue // crashed: nothing speaks there any more
		default:
		}
		t := tried{name: m.Name, agent: e.Agents[i], probes: canaryProbes(policy, m, e.Spec.Machines, w)}
		raw := make([]agent.Probe, len(t.probes))
		for j, p := range t.probes {
			raw[j] = p.Probe
			expect.Canaries = append(expect.Canaries, keyOf(m.Name, p))
		}
		all = append(all, t)
		raws = append(raws, raw)
	}
	if err := e.expect(ctx, expect); err != nil {
		return nil, err
	}
	for i := range all {
		t := &all[i]
		if t.outcomes, err = t.agent.Probe(ctx, raws[i]); err != nil {
			return nil, fmt.Errorf("trying canaries on %s: %w", t.name, err)
		}
	}
	// Wait until every probe that was sent has been seen being dropped.
	var seen map[CanaryKey]bool
	deadline := time.Now().Add(canaryDeadline)
	for {
		if seen, err = e.dropped(ctx); err != nil {
			return nil, err
		}
		missing := false
		for _, t := range all {
			for j, p := range t.probes {
				missing = missing || (!p.refused && t.outcomes[j].State == agent.Sent && !seen[keyOf(t.name, p)])
			}
		}
		if !missing || time.Now().After(deadline) {
			break
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var result []sandbox.Canary
	for _, t := range all {
		// A second look: an answer may have come meanwhile.
		outcomes, err := t.agent.Probed(ctx)
		if err != nil {
			return nil, fmt.Errorf("looking at canaries on %s: %w", t.name, err)
		}
		for j, p := range t.probes {
			c := sandbox.Canary{Machine: t.name, Probe: p.text, Held: true}
			switch o := outcomes[j]; {
			case o.State == agent.Connected || o.State == agent.Answered:
				c.Held, c.Detail = false, "it was answered"
			case o.State == agent.Refused:
			case p.refused:
				c.Held, c.Detail = false, "the machine's kernel did not refuse it"
			case !seen[keyOf(t.name, p)]:
				c.Held, c.Detail = false, fmt.Sprintf("it was sent, and nobody saw it stopped within %s", canaryDeadline)
			}
			result = append(result, c)
		}
	}
	leak := sandbox.Canary{Probe: "witness: packets that left the hub", Held: true}
	var answer witnessAnswer
	if _, err := e.Peer.Call(ctx, "witness", struct{}{}, &answer); err != nil {
		return nil, err
	}
	if answer.Leaked != 0 {
		leak.Held, leak.Detail = false, fmt.Sprintf("%d packets", answer.Leaked)
	}
	select {
	case hit := <-w.hits:
		leak.Held, leak.Detail = false, "a machine reached the host at "+hit
	default:
	}
	return append(result, leak), nil
}

// dropped returns what the seal was seen to drop so far.
func (e *Client) dropped(ctx context.Context) (map[CanaryKey]bool, error) {
	a, err := e.flows(ctx)
	if err != nil {
		return nil, err
	}
	seen := map[CanaryKey]bool{}
	for _, k := range a.Seen {
		seen[k] = true
	}
	return seen, nil
}
