package seal

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// Priorities of the hub's chains: after fragments are put together (-400) and
// before connections are tracked (-200); after that; and after what was held
// has been decided upon.
const (
	priorityArrive = -300
	priorityDecide = -150
	priorityAnswer = -140
	priorityFrames = -500
	priorityFilter = 0
)

// portNames is where the hub is asked for names.
const portNames = 53

// CompileHub returns the rules of the hub under p. It fails on a policy or hub
// that says nothing sensible.
//
//	frames    at each interface: nothing but IP; other frames are counted by kind
//	arrive    the source is the machine's own, and the header plain
//	decide    known connections pass; new ones are judged
//	inside    from machine to machine
//	outside   to the relay: TCP and echo requests are held, UDP is delivered, and
//	          so are questions about names, to the hub's own address
//	answer    what was held, after the relay's verdict
//	pass, deliver, leave   forwarded, to the hub itself, from the hub itself
func CompileHub(p sandbox.Policy, h Hub) (*Ruleset, error) {
	var names []string
	for _, m := range h.Machines {
		names = append(names, m.Name)
	}
	c := hubCompiler{Hub: h, policy: p.Narrowed(names), t: &table{family: nftables.TableFamilyINet, name: TableHub}, on: map[string]string{}, by: map[string]string{}}
	if err := c.check(); err != nil {
		return nil, err
	}
	if err := c.sets(); err != nil {
		return nil, err
	}
	for _, a := range c.policy.Allows {
		if _, err := numbers(c.policy, a.Units); err != nil {
			return nil, err
		}
	}
	c.arrive()
	if err := c.decide(); err != nil {
		return nil, err
	}
	c.leave()
	return &Ruleset{tables: []*table{c.frames(), c.t}, generation: h.Generation, held: c.held}, nil
}

type hubCompiler struct {
	Hub
	policy sandbox.Policy
	t      *table
	held   bool
	used   []int             // conditions that the rules count
	on     map[string]string // machines of an allow → the set of their interfaces
	by     map[string]string // units of an allow → the set of their marks
}

func (c *hubCompiler) check() error {
	if c.Generation == 0 {
		return fmt.Errorf("compiling the hub's rules: generation 0")
	}
	for _, m := range c.Machines {
		if m.Interface == "" || len(m.Interface) > 15 || strings.ContainsAny(m.Interface, "\"*\x00 ") {
			return fmt.Errorf("compiling the hub's rules: %q is no interface", m.Interface)
		}
		if !m.V4.Is4() || !m.V6.Is6() || m.V6.Is4In6() {
			return fmt.Errorf("compiling the hub's rules: machine %s has the addresses %v and %v", m.Name, m.V4, m.V6)
		}
	}
	return nil
}

// numbers returns the numbers of units.
func numbers(p sandbox.Policy, units []string) ([]int, error) {
	var ns []int
	for _, u := range units {
		n := p.Number(u)
		if n == 0 {
			return nil, fmt.Errorf("compiling an allow: the policy has no number for the unit %s", u)
		}
		ns = append(ns, n)
	}
	return ns, nil
}

func (c *hubCompiler) relay() bool { return c.RelayTCP != 0 && c.RelayUDP != 0 }

func (m Machine) addr(k stack) netip.Addr {
	if k.v6 {
		return m.V6
	}
	return m.V4
}

// own reports whether a is an address of the environment.
func (c *hubCompiler) own(a netip.Addr) bool {
	return a == c.Gateway4 || a == c.Gateway6 ||
		slices.ContainsFunc(c.Machines, func(m Machine) bool { return a == m.V4 || a == m.V6 })
}

func (c *hubCompiler) gateway(k stack) netip.Addr {
	if k.v6 {
		return c.Gateway6
	}
	return c.Gateway4
}

func (c *hubCompiler) sets() error {
	c.t.counters = []string{CounterDropped, CounterSilent}
	c.t.sets = append(c.t.sets, transports(), c.interfaces("interfaces", nil))
	for _, k := range stacks() {
		source := &set{name: "source" + k.suffix, types: []nftables.SetDatatype{nftables.TypeIFName, k.address}}
		machines := &set{name: "machines" + k.suffix, types: []nftables.SetDatatype{k.address}}
		for _, m := range c.Machines {
			a := m.addr(k)
			source.elements = append(source.elements, element{
				text: fmt.Sprintf("%q . %s", m.Interface, a), key: append(ifname(m.Interface), a.AsSlice()...)})
			machines.elements = append(machines.elements, element{text: a.String(), key: a.AsSlice()})
		}
		c.t.sets = append(c.t.sets, source, machines)
	}
	internal, err := internalSet(c.policy)
	if err != nil {
		return err
	}
	c.t.sets = append(c.t.sets, internal)
	return nil
}

// interfaces is the set of interfaces of the named machines, or of all.
func (c *hubCompiler) interfaces(name string, machines []string) *set {
	s := &set{name: name, types: []nftables.SetDatatype{nftables.TypeIFName}}
	for _, m := range c.Machines {
		if machines == nil || slices.Contains(machines, m.Name) {
			s.elements = append(s.elements, element{text: fmt.Sprintf("%q", m.Interface), key: ifname(m.Interface)})
		}
	}
	return s
}

// frames is the table that sees every frame before anything else does. It
// cannot log, so it counts by interface and kind.
func (c *hubCompiler) frames() *table {
	t := &table{family: nftables.TableFamilyNetdev, name: TableFrames}
	t.sets = append(t.sets, &set{name: "kinds", types: []nftables.SetDatatype{nftables.TypeIFName, nftables.TypeEtherType}, size: 4096})
	for _, m := range c.Machines {
		ch := t.chain("frames_" + m.Interface)
		ch.base = &base{hookName: "ingress", hook: nftables.ChainHookIngress, priority: priorityFrames, device: m.Interface, policy: nftables.ChainPolicyDrop}
		t.add(ch.name, part{"meta protocol ip", meta(expr.MetaKeyPROTOCOL, []byte{0x08, 0x00})}, accept())
		t.add(ch.name, part{"meta protocol ip6", meta(expr.MetaKeyPROTOCOL, []byte{0x86, 0xdd})}, accept())
		t.add(ch.name, part{"update @kinds { iifname . meta protocol counter }", []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 8},
			&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 12},
			&expr.Dynset{SrcRegKey: 8, SetName: "kinds", Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{&expr.Counter{}}},
		}})
	}
	return t
}

func (c *hubCompiler) hook(name, hookName string, hook *nftables.ChainHook, priority int32, policy nftables.ChainPolicy) {
	c.t.chain(name).base = &base{hookName: hookName, hook: hook, priority: priority, policy: policy}
}

func (c *hubCompiler) current() part {
	return ctMark(generationMask, uint32(c.Generation)<<generationShift)
}

// admit marks the connection as let through.
func (c *hubCompiler) admit(bits uint32) part {
	return setCtMark(uint32(c.Generation)<<generationShift | bits)
}

func (c *hubCompiler) arrive() {
	c.hook("arrive", "prerouting", nftables.ChainHookPrerouting, priorityArrive, nftables.ChainPolicyDrop)
	c.read()
	for _, k := range stacks() {
		c.t.add("arrive", in("source"+k.suffix, iifKey(), k.saddrKey()), k.plain(), accept())
	}
	c.t.add("arrive", dark(c.Group, reasonForged)...)
}

// read takes the numbers of units from packets of machines whose own rules write
// them there. Whose those of the others are is known already: see MarkSenders.
func (c *hubCompiler) read() {
	var tagged []string
	for _, m := range c.Machines {
		if m.Tagged {
			tagged = append(tagged, m.Name)
		}
	}
	if len(tagged) == 0 || len(c.policy.Units) == 0 {
		return
	}
	c.t.sets = append(c.t.sets, c.interfaces("tagged", tagged))
	for _, k := range stacks() {
		for n := range min(len(c.policy.Units), sandbox.MaxUnits) {
			c.t.add("arrive", in("tagged", iifKey()), k.dscp(n+1), setMark(MarkUnit(n+1)))
		}
	}
}

func (c *hubCompiler) decide() error {
	c.hook("decide", "prerouting", nftables.ChainHookPrerouting, priorityDecide, nftables.ChainPolicyDrop)
	c.t.add("decide", c.current(), toChain("known"))
	c.t.add("decide", notState("new", expr.CtStateBitNEW), toChain("stray"))
	c.t.add("decide", midway(), toChain("stray"))
	judge := "decide"
	if len(c.policy.Units) > 0 {
		// What begins something, or would if it were not tracked yet, is judged by
		// its sender each time: a port is given to another when it is closed.
		judge = "judge"
		c.t.add("decide", toChain(judge))
		c.t.add("known", forward(), l4(unix.IPPROTO_UDP), toChain(judge))
		c.t.add("known", forward(), ctMark(relayedBit, 0), opening(), toChain(judge))
		for _, k := range stacks() {
			c.t.add("known", forward(), k.echoType(k.request), toChain(judge))
		}
	}
	for _, k := range stacks() {
		if a := c.gateway(k); a.IsValid() {
			if c.relay() {
				// Questions about names: the gate answers those that it may.
				c.t.add(judge, k.to(a), udpPort(portNames), c.admit(relayedBit), toChain("relayed"))
			}
			c.t.add(judge, k.to(a), toChain("closed"))
		}
		c.t.add(judge, in("machines"+k.suffix, k.daddrKey()), toChain("inside"))
	}
	inside, outside, err := c.sort()
	if err != nil {
		return err
	}
	c.inside(inside)
	c.outside(judge, outside)
	c.t.add(judge, toChain("closed"))
	c.t.add("closed", dark(c.Group, reasonClosed)...)
	c.t.add("stray", dark(c.Group, reasonStray)...)

	c.hook("pass", "forward", nftables.ChainHookForward, priorityFilter, nftables.ChainPolicyDrop)
	c.t.add("pass", c.current(), oifIn("interfaces"), accept())
	c.t.add("pass", toChain("closed"))
	c.hook("deliver", "input", nftables.ChainHookInput, priorityFilter, nftables.ChainPolicyDrop)
	c.t.add("deliver", c.current(), accept())
	c.t.add("deliver", toChain("closed"))
	return nil
}

// group is allows that are for the same machines and, where they are counted
// here, of the same condition.
type group struct {
	condition int
	machines  []string // nil for all
	units     []string // nil for all
	spans     []span
}

// sort parts the allows into those between machines and those to the relay.
// The relay counts conditions by itself; those between machines are counted
// here, and so are kept apart.
func (c *hubCompiler) sort() (inside, outside []*group, err error) {
	find := func(list *[]*group, condition int, machines, units []string) *group {
		for _, g := range *list {
			if g.condition == condition && slices.Equal(g.machines, machines) && slices.Equal(g.units, units) {
				return g
			}
		}
		g := &group{condition: condition, machines: machines, units: units}
		*list = append(*list, g)
		return g
	}
	for _, a := range c.policy.Allows {
		s, err := spanOf(a)
		if err != nil {
			return nil, nil, err
		}
		if a.Condition < 0 || a.Condition >= conditionMask {
			return nil, nil, fmt.Errorf("compiling the hub's rules: condition %d", a.Condition)
		}
		var machines []string
		if len(a.Machines) > 0 {
			machines = slices.Compact(slices.Sorted(slices.Values(a.Machines)))
		}
		for _, m := range c.Machines {
			for _, k := range stacks() {
				if n, ok := s.narrow(m.addr(k)); ok {
					g := find(&inside, a.Condition, machines, a.Units)
					g.spans = append(g.spans, n)
				}
			}
		}
		if !c.relay() {
			continue
		}
		if s.prefix.IsSingleIP() && c.own(s.prefix.Addr()) {
			continue
		}
		for _, p := range abroad(s.prefix) {
			n := s
			n.prefix = p
			g := find(&outside, 0, machines, a.Units)
			g.spans = append(g.spans, n)
		}
	}
	return inside, outside, nil
}

// from matches the units of a group, on its machines.
func (c *hubCompiler) from(g *group) []part {
	on := c.machinesOf(g)
	if g.units == nil {
		return on
	}
	id := strings.Join(g.units, "\x00")
	name, ok := c.by[id]
	if !ok {
		name = fmt.Sprintf("by_%d", len(c.by)+1)
		c.by[id] = name
		s := &set{name: name, types: []nftables.SetDatatype{nftables.TypeMark}}
		ns, _ := numbers(c.policy, g.units) // checked before
		for _, n := range ns {
			s.elements = append(s.elements, element{text: fmt.Sprintf("0x%08x", MarkUnit(n)), key: binaryutil.NativeEndian.PutUint32(MarkUnit(n))})
		}
		c.t.sets = append(c.t.sets, s)
	}
	return append(on, in(name, metaKey("meta mark", expr.MetaKeyMARK, 4)))
}

// machinesOf matches the interfaces of a group's machines.
func (c *hubCompiler) machinesOf(g *group) []part {
	if g.machines == nil {
		return nil
	}
	id := strings.Join(g.machines, "\x00")
	name, ok := c.on[id]
	if !ok {
		name = fmt.Sprintf("on_%d", len(c.on)+1)
		c.on[id] = name
		c.t.sets = append(c.t.sets, c.interfaces(name, g.machines))
	}
	return []part{in(name, iifKey())}
}

func (c *hubCompiler) inside(groups []*group) {
	c.t.add("inside", in("internal", protoKey(), dportKey()), c.admit(0), accept())
	c.darkened()
	for i, g := range groups {
		admitted := fmt.Sprintf("condition_%d", g.condition)
		from := c.from(g)
		for _, k := range stacks() {
			ports, pings := split(k, g.spans)
			for _, name := range addSpans(c.t, k, fmt.Sprintf("inside%s_%d", k.suffix, i+1), ports) {
				c.t.add("inside", append(slices.Clone(from), in(name, protoKey(), k.daddrKey(), dportKey()), toChain(admitted))...)
			}
			for _, name := range addSpans(c.t, k, fmt.Sprintf("ping%s_%d", k.suffix, i+1), pings) {
				c.t.add("inside", append(slices.Clone(from), k.echoType(k.request), in(name, protoKey(), k.daddrKey()), toChain(admitted))...)
			}
		}
		if !slices.Contains(c.used, g.condition) {
			c.used = append(c.used, g.condition)
			used, bytes := counters(g.condition)
			c.t.counters = append(c.t.counters, used, bytes)
			bits := uint32(g.condition + 1)
			admit := []part{c.admit(bits), count(used), count(bytes), accept()}
			if len(c.policy.Units) > 0 {
				// It may be known already.
				c.t.add(admitted, state("new", expr.CtStateBitNEW), count(used))
				admit = slices.Delete(admit, 1, 2)
			}
			c.t.add(admitted, admit...)
			c.t.add("known", ctMark(conditionMask, bits), count(bytes), accept())
		}
	}
	c.t.add("inside", toChain("closed"))
	if c.relay() {
		// The relay's connections are few among many packets: last.
		if len(c.policy.Dark) > 0 {
			// What was let through before must be open still.
			c.t.add("known", ctMark(relayedBit, relayedBit), toChain("still"))
		} else {
			c.t.add("known", ctMark(relayedBit, relayedBit), toChain("relayed"))
		}
	}
	c.t.add("known", accept())
}

// darkened stops what conditions had let through between machines before they
// went dark, both ways.
func (c *hubCompiler) darkened() {
	for _, d := range c.policy.Dark {
		if d.Condition < 0 || d.Condition >= conditionMask {
			continue
		}
		through := ctMark(relayedBit|conditionMask, uint32(d.Condition+1))
		for _, m := range c.Machines {
			if !c.policy.IsDark(d.Condition, m.Name) {
				continue
			}
			c.t.add("known", in(c.one(m), iifKey()), through, toChain("closed"))
			for _, k := range stacks() {
				c.t.add("known", through, k.to(m.addr(k)), toChain("closed"))
			}
		}
	}
}

// one is the set of the interface of one machine.
func (c *hubCompiler) one(m Machine) string {
	name := "one_" + m.Interface
	if !slices.ContainsFunc(c.t.sets, func(s *set) bool { return s.name == name }) {
		c.t.sets = append(c.t.sets, c.interfaces(name, []string{m.Name}))
	}
	return name
}

func (c *hubCompiler) outside(judge string, groups []*group) {
	if !c.relay() {
		return
	}
	for i, g := range groups {
		from := c.from(g)
		for _, k := range stacks() {
			ports, pings := split(k, g.spans)
			for _, name := range addSpans(c.t, k, fmt.Sprintf("outside%s_%d", k.suffix, i+1), ports) {
				c.t.add(judge, append(slices.Clone(from), in(name, protoKey(), k.daddrKey(), dportKey()), toChain("outside"))...)
				if len(c.policy.Dark) > 0 {
					// Within a connection, the kernel may send without a socket.
					c.t.add("still", append(c.machinesOf(g), in(name, protoKey(), k.daddrKey(), dportKey()), toChain("relayed"))...)
				}
			}
			for _, name := range addSpans(c.t, k, fmt.Sprintf("away%s_%d", k.suffix, i+1), pings) {
				c.t.add(judge, append(slices.Clone(from), k.echoType(k.request), in(name, protoKey(), k.daddrKey()), toChain("outside"))...)
			}
		}
	}
	if len(c.policy.Dark) > 0 {
		for _, k := range stacks() {
			if a := c.gateway(k); a.IsValid() {
				c.t.add("still", k.to(a), udpPort(portNames), toChain("relayed"))
			}
		}
		c.t.add("still", toChain("closed"))
	}
	if len(groups) > 0 {
		c.held = true
		c.t.add("outside", l4(unix.IPPROTO_UDP), c.admit(relayedBit), toChain("relayed"))
		c.t.add("outside", l4(unix.IPPROTO_TCP), hold(c.Queue))
		for _, k := range stacks() {
			c.t.add("outside", k.echoType(k.request), hold(c.Queue))
		}
		c.t.add("outside", toChain("stray"))
	}
	c.hook("answer", "prerouting", nftables.ChainHookPrerouting, priorityAnswer, nftables.ChainPolicyAccept)
	c.t.add("answer", mark(MarkDialled), c.admit(relayedBit), toChain("relayed"))
	c.t.add("answer", mark(MarkRefused), c.admit(0), l4(unix.IPPROTO_TCP), reset())
	for _, k := range stacks() {
		c.t.add("relayed", family(k), l4(unix.IPPROTO_TCP), k.tproxy(c.RelayTCP), setMark(MarkDeliver), accept())
		for n := range min(len(c.policy.Units), sandbox.MaxUnits) {
			c.t.add("relayed", mark(MarkUnit(n+1)), family(k), l4(unix.IPPROTO_UDP), k.tproxy(c.RelayUDP+uint16(n+1)), setMark(MarkDeliver), accept())
		}
		c.t.add("relayed", family(k), l4(unix.IPPROTO_UDP), k.tproxy(c.RelayUDP), setMark(MarkDeliver), accept())
	}
	c.t.add("relayed", count(CounterSilent), drop())
}

// leave judges what the hub itself says: answers of connections, its own new
// connections into machines, and echo replies of the relay. Its kernel's own
// messages (redirects, unreachable, membership reports) would tell a machine
// more than an outage does, and are dropped.
func (c *hubCompiler) leave() {
	c.hook("leave", "output", nftables.ChainHookOutput, priorityFilter, nftables.ChainPolicyDrop)
	c.t.add("leave", c.current(), oifIn("interfaces"), accept())
	if c.relay() {
		c.t.add("leave", mark(MarkReply), oifIn("interfaces"), accept())
	}
	for _, k := range stacks() {
		a := c.gateway(k)
		if !a.IsValid() {
			continue
		}
		for _, what := range []part{opening(), l4(unix.IPPROTO_UDP), k.echoType(k.request)} {
			c.t.add("leave", state("new", expr.CtStateBitNEW), k.from(a), what, oifIn("interfaces"), c.admit(0), accept())
		}
	}
	c.t.add("leave", count(CounterSilent), drop())
}

// counters names the counters of a condition: of connections, and of bytes.
func counters(condition int) (used, bytes string) {
	return fmt.Sprintf("used_%d", condition), fmt.Sprintf("bytes_%d", condition)
}
