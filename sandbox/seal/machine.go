package seal

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// loopback4 and loopback6 are every machine's own.
var (
	loopback4 = netip.MustParsePrefix("127.0.0.0/8")
	loopback6 = netip.MustParsePrefix("::1/128")
)

// CompileMachine returns the rules inside a machine, which decide about
// loopback alone: what leaves the machine is the hub's to judge.
//
// Root in the machine may add rules of its own, also ones that rewrite
// packets. So these come last of all in input, where nothing can be rewritten
// any more; a chain keeps its place when its rules are replaced. They are not in
// output, since a program is told what is dropped there, and an outage is
// silent. Root may also write whatever it likes into connection tracking, so
// that TCP is judged without it: a packet that opens a connection must go to an
// open port, every other must go to one or come from one. UDP cannot be judged
// like that: an answer passes if it comes from an open port and belongs to a
// tracked exchange. What is tracked serves to cut, beside that, what was open
// under earlier rules.
//
// Where the policy has units, output writes into each packet the number of the
// unit whose socket it is from, as its DSCP: it is read where the packet comes in
// on loopback, and in the hub if the machine is Tagged. A number says nothing of
// packets within a connection, which a kernel may send without a socket, and is
// asked for by those that may begin one.
func CompileMachine(p sandbox.Policy, m Inside) (*Ruleset, error) {
	if m.Uplink == "" {
		m.Uplink = "eth0"
	}
	if m.Generation == 0 {
		m.Generation = 1
	}
	leaving := oif(m.Uplink)
	if m.UplinkIndex != 0 {
		leaving = oifIndex(m.UplinkIndex)
	}
	if n := min(len(p.Units), sandbox.MaxUnits); len(m.Cgroups) < n {
		return nil, fmt.Errorf("compiling the rules of %s: it has %d cgroups for %d units", m.Name, len(m.Cgroups), n)
	}
	m.Cgroups = m.Cgroups[:min(len(m.Cgroups), sandbox.MaxUnits)]
	c := machineCompiler{Inside: m, policy: p.Narrowed([]string{m.Name}), t: &table{family: nftables.TableFamilyINet, name: TableMachine, owned: true}}
	if err := c.sets(); err != nil {
		return nil, err
	}
	c.base("output", nftables.ChainHookOutput)
	if len(c.policy.Units) > 0 {
		c.tag(leaving)
	}
	c.t.add("output", oif("lo"), accept())
	c.t.add("output", leaving, accept())
	c.t.add("output", dark(m.Group, reasonInterface)...)
	c.base("forward", nftables.ChainHookForward)
	c.t.add("forward", dark(m.Group, reasonInterface)...)
	c.base("input", nftables.ChainHookInput)
	c.input()
	c.loopback()
	return &Ruleset{tables: []*table{c.t}, generation: m.Generation}, nil
}

// tagOther is the DSCP of what comes from a socket of no unit.
const tagOther = 0x3f

// tag writes into packets whose they are.
func (c *machineCompiler) tag(leaving part) {
	c.t.add("output", oif("lo"), call("tag"))
	if c.Tagged {
		c.t.add("output", leaving, call("tag"))
	}
	for _, k := range stacks() {
		c.t.add("tag", k.setDSCP(0))
	}
	// Without a socket, the kernel would be asked about the one at the other end.
	c.t.add("tag", hasSocket(), toChain("sender"))
	for i, cgroup := range c.Cgroups {
		for _, k := range stacks() {
			c.t.add("sender", sentIn(cgroup), k.setDSCP(i+1), back())
		}
	}
	for _, k := range stacks() {
		c.t.add("sender", k.setDSCP(tagOther))
	}
}

type machineCompiler struct {
	Inside
	policy     sandbox.Policy
	t          *table
	conditions []*group // by condition; the first is what is internal
	names      map[string][]string
}

func (c *machineCompiler) sets() error {
	c.t.counters = []string{CounterDropped}
	c.t.sets = append(c.t.sets, transports())
	internal := &group{condition: -1}
	own := []netip.Prefix{loopback4, loopback6}
	for _, a := range append([]netip.Addr{c.V4, c.V6}, c.policy.Declared...) {
		if a.IsValid() {
			own = append(own, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for _, ports := range c.policy.Internal {
		for _, q := range own {
			s, err := spanOf(sandbox.Allow{Protocol: ports.Protocol, Prefix: q, First: ports.First, Last: ports.Last})
			if err != nil {
				return err
			}
			internal.spans = append(internal.spans, s)
		}
	}
	for _, a := range c.policy.Allows {
		if len(a.Machines) > 0 && !slices.Contains(a.Machines, c.Name) {
			continue
		}
		s, err := spanOf(a)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(c.conditions, func(g *group) bool { return g.condition == a.Condition })
		var g *group
		if i >= 0 {
			g = c.conditions[i]
		} else {
			g = &group{condition: a.Condition, units: a.Units}
		}
		if !slices.Equal(g.units, a.Units) {
			return fmt.Errorf("compiling the rules of %s: condition %d is for different units", c.Name, a.Condition)
		}
		if _, err := numbers(c.policy, a.Units); err != nil {
			return err
		}
		for _, q := range own {
			n := s
			switch {
			case !s.prefix.Overlaps(q):
				continue
			case s.prefix.Bits() < q.Bits():
				n.prefix = q
			}
			// A wide prefix is about addresses elsewhere: loopback must be named.
			if (q == loopback4 || q == loopback6) && s.prefix.Bits() < q.Bits() {
				continue
			}
			g.spans = append(g.spans, n)
		}
		if i < 0 && len(g.spans) > 0 {
			c.conditions = append(c.conditions, g)
		}
	}
	c.names = map[string][]string{}
	for _, g := range append(c.conditions, internal) {
		name := "internal"
		if g.condition >= 0 {
			name = fmt.Sprintf("condition_%d", g.condition)
			used, bytes := counters(g.condition)
			c.t.counters = append(c.t.counters, used, bytes)
			c.t.add(name, opening(), count(used))
			c.t.add(name, l4(unix.IPPROTO_UDP), state("new", expr.CtStateBitNEW), count(used))
			for _, k := range stacks() {
				c.t.add(name, k.echoType(k.request), count(used))
			}
			c.t.add(name, count(bytes), accept())
		}
		for _, k := range stacks() {
			ports, pings := split(k, g.spans)
			c.names[name+k.suffix] = addSpans(c.t, k, name+"_"+k.suffix, ports)
			c.names[name+k.suffix+"ping"] = addSpans(c.t, k, name+"_ping"+k.suffix, pings)
		}
	}
	c.conditions = append(c.conditions, internal)
	return nil
}

// base adds a chain at the last place of a hook.
func (c *machineCompiler) base(name string, hook *nftables.ChainHook) {
	c.t.chain(name).base = &base{hookName: name, hook: hook, priority: math.MaxInt32, policy: nftables.ChainPolicyDrop}
}

// input judges by interface. What comes in from the hub has been judged there,
// with one exception: the kernel hands copies of multicasts and broadcasts back
// to the machine that sends them, as if they had come in.
func (c *machineCompiler) input() {
	arriving := iif(c.Uplink)
	if c.UplinkIndex != 0 {
		arriving = iifIndex(c.UplinkIndex)
	}
	for _, k := range stacks() {
		c.t.add("input", iif("lo"), k.plain(), toChain("loopback"))
	}
	for _, k := range stacks() {
		if a := c.addr(k); a.IsValid() {
			// The hub never sends what claims to be from the machine itself: that was
			// led there from loopback, around its rules.
			c.t.add("input", arriving, k.from(a), toChain("closed"))
			c.t.add("input", arriving, k.to(a), accept())
		}
	}
	c.t.add("input", arriving, toChain("closed"))
	c.t.add("input", dark(c.Group, reasonInterface)...)
	c.t.add("closed", dark(c.Group, reasonClosed)...)
}

// loopback judges what stays inside the machine.
func (c *machineCompiler) loopback() {
	const chain = "loopback"
	generation := uint32(c.Generation) << generationShift
	admit, current := setCtMark(generation), ctMark(generationMask, generation)
	for _, g := range c.conditions {
		name, then := "internal", accept()
		senders, _ := numbers(c.policy, g.units) // checked above
		// from is a rule for all that may begin something, or one for each unit.
		from := func(k stack, parts ...part) {
			if len(g.units) == 0 {
				c.t.add(chain, parts...)
			}
			for _, n := range senders {
				c.t.add(chain, append([]part{k.dscp(n)}, parts...)...)
			}
		}
		if g.condition >= 0 {
			name = fmt.Sprintf("condition_%d", g.condition)
			then = toChain(name)
		}
		for _, k := range stacks() {
			for _, s := range c.names[name+k.suffix] {
				request, answer := in(s, protoKey(), k.daddrKey(), dportKey()), in(s, protoKey(), k.saddrKey(), sportKey())
				from(k, opening(), request, admit, then)
				from(k, l4(unix.IPPROTO_UDP), request, admit, then)
				c.t.add(chain, notOpening(), current, request, then)
				c.t.add(chain, notOpening(), current, answer, then)
				c.t.add(chain, l4(unix.IPPROTO_UDP), state("established", expr.CtStateBitESTABLISHED), current, answer, then)
			}
			for _, s := range c.names[name+k.suffix+"ping"] {
				from(k, k.echoType(k.request), in(s, protoKey(), k.daddrKey()), then)
				c.t.add(chain, k.echoType(k.reply), in(s, protoKey(), k.saddrKey()), then)
			}
		}
	}
	for _, k := range stacks() {
		// Errors about what was let through: a refused UDP port answers so.
		c.t.add(chain, l4(k.icmp), state("related", expr.CtStateBitRELATED), accept())
	}
	c.t.add(chain, toChain("closed"))
}
