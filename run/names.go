package run

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"bj/fleet"
	"bj/sandbox"
)

// portNames is where names are asked for.
const portNames = 53

// lookupLimit is how long a name may take to be resolved.
const lookupLimit = 10 * time.Second

// resolvConf says whom the host asks for names.
const resolvConf = "/etc/resolv.conf"

// Named is a condition's endpoint that is written with a name: which addresses
// it opens is known when the seal closes.
type Named struct {
	Allow    sandbox.Allow // without an address
	Endpoint fleet.Endpoint
}

// openNames plans a condition's dns endpoint.
func (p *Plan) openNames(i int, c *fleet.Condition, e fleet.Endpoint) *Refusal {
	n := sandbox.Names{Condition: i, Machines: c.On, Units: c.Only, Pattern: e.Host, Servers: p.servers(c, e)}
	if len(n.Servers) == 0 && p.Supply == Production {
		var err error
		if n.Servers, err = hostServers(resolvConf); err != nil {
			return &Refusal{Code: codeCondition, Pos: c.Pos, Message: fmt.Sprintf("nobody can be asked for names of %s: no service says where it answers (an endpoint at port 53), and this host has no resolver: %v", e.URL, err),
				Hint: "give the service that answers an endpoint like \"udp://10.0.0.53:53\""}
		}
	}
	p.Policy.Names = append(p.Policy.Names, n)
	return nil
}

// servers returns the endpoints at port 53 of the service that c allows, those of
// its allowed pathways first; of a literal, those of its owner.
func (p *Plan) servers(c *fleet.Condition, e fleet.Endpoint) []sandbox.Server {
	service, allowed := c.Service, c.Pathways
	if c.Endpoint != nil {
		found := owners(p.fleet, e)
		if len(found) == 0 {
			return nil
		}
		service, allowed = found[0].service, []string{found[0].name}
	}
	s := p.fleet.Service(service)
	if s == nil {
		return nil
	}
	var out []sandbox.Server
	for _, first := range []bool{true, false} {
		for _, w := range s.Pathways {
			if slices.Contains(allowed, w.Name) != first {
				continue
			}
			for _, e := range w.Endpoints {
				if !e.Prefix.IsSingleIP() || e.Scheme != "udp" && e.Scheme != "tcp" || e.Ports.First > portNames || e.Ports.Last < portNames {
					continue
				}
				server := sandbox.Server{Network: e.Scheme, Addr: netip.AddrPortFrom(e.Prefix.Addr(), portNames)}
				if !slices.Contains(out, server) {
					out = append(out, server)
				}
			}
		}
	}
	// Datagrams first: a stream is for what does not fit into one.
	slices.SortStableFunc(out, func(a, b sandbox.Server) int { return -strings.Compare(a.Network, b.Network) })
	return out
}

// hostServers returns whom this host asks for names.
func hostServers(path string) ([]sandbox.Server, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []sandbox.Server
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		// Addresses with a zone are of a link that only the host has.
		if a, err := netip.ParseAddr(words[1]); err == nil && a.Zone() == "" && len(out) < 3 {
			out = append(out, sandbox.Server{Network: "udp", Addr: netip.AddrPortFrom(a.Unmap(), portNames)})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s names none", path)
	}
	for _, s := range slices.Clone(out) {
		out = append(out, sandbox.Server{Network: "tcp", Addr: s.Addr})
	}
	return out, nil
}

// policy returns the plan's policy with its names resolved.
func (x *execution) policy(p *Plan) (sandbox.Policy, *failure) {
	out := p.Policy
	out.Allows = slices.Clone(out.Allows)
	for _, n := range p.Named {
		addrs, err := x.lookup(p, n)
		if f := stopped(x.group); f != nil {
			return out, f
		}
		c := p.Recipe.Conditions[n.Allow.Condition]
		if err != nil {
			f := &failure{code: codeCondition, message: fmt.Sprintf("the condition %s (%s) is not met: the name of %s cannot be resolved: %v", c.Text, c.Pos, n.Endpoint.URL, err),
				hint: "what is allowed must be healthy; write an address where the name is not certain to resolve"}
			if p.Supply == Recipes {
				f.code, f.hint = codeSupply, "with --supply recipes a name is asked of a supplier that answers for it: allow that service too, or write the address"
			}
			return out, f
		}
		if p.Supply == Production {
			if addrs, err = x.answering(n, addrs); err != nil {
				return out, &failure{code: codeCondition, hint: conditionHint,
					message: fmt.Sprintf("the condition %s (%s) is not met: %s does not answer: %v", c.Text, c.Pos, n.Endpoint.URL, err)}
			}
		}
		for _, a := range addrs {
			if a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() {
				continue // a name must not open what no address may
			}
			if p.Supply == Recipes && p.Routes[a] == "" {
				return out, &failure{code: codeSupply, message: fmt.Sprintf("the name of %s, of %s (%s), leads to %s, which is on no machine of a supplier", n.Endpoint.URL, c.Text, c.Pos, a)}
			}
			allow := n.Allow
			allow.Prefix = netip.PrefixFrom(a, a.BitLen())
			out.Allows = append(out.Allows, allow)
		}
	}
	return out, nil
}

// answering returns the addresses of n, and an error if none of them answers.
// What cannot be tried is taken as it is.
func (x *execution) answering(n Named, addrs []netip.Addr) ([]netip.Addr, error) {
	last := errors.New("it has no address that may be reached")
	for _, a := range addrs {
		allow := n.Allow
		allow.Prefix = netip.PrefixFrom(a, a.BitLen())
		to := probe(allow)
		if !to.IsValid() {
			return addrs, nil
		}
		if last = x.connect(to); last == nil {
			return addrs, nil
		}
	}
	return nil, last
}

// lookup resolves a name: by the host in production, otherwise by asking the
// suppliers that answer for it. If none does, it is where the recipe that
// supplies the endpoint has its machines.
func (x *execution) lookup(p *Plan, n Named) ([]netip.Addr, error) {
	ctx, cancel := within(x.group, lookupLimit)
	defer cancel()
	name := n.Endpoint.Host
	if p.Supply == Production {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		for i, a := range addrs {
			addrs[i] = a.Unmap()
		}
		slices.SortFunc(addrs, netip.Addr.Compare)
		return slices.Compact(addrs), err
	}
	servers := p.nameServers(name)
	if len(servers) == 0 {
		if at := x.supplied(p, n); len(at) > 0 {
			return at, nil
		}
		return nil, errors.New("no supplier answers for it")
	}
	if x.Lookup == nil {
		return nil, errors.New("nobody can ask")
	}
	return x.Lookup(ctx, x.dialFor(p), servers, name)
}

// supplied returns the addresses of the machines that supply an endpoint.
func (x *execution) supplied(p *Plan, n Named) []netip.Addr {
	c := p.Recipe.Conditions[n.Allow.Condition]
	services := []string{c.Service}
	if c.Endpoint != nil {
		services = nil
		for _, k := range owners(p.fleet, n.Endpoint) {
			services = append(services, k.service)
		}
	}
	var out []netip.Addr
	for a, label := range p.Routes {
		if s := x.supplier(label); s != nil && slices.Contains(services, s.plan.Recipe.Service) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// nameServers returns those suppliers' servers that answer for a name: what p
// itself allows first.
func (p *Plan) nameServers(name string) []sandbox.Server {
	var out []sandbox.Server
	e := fleet.Endpoint{Scheme: "dns", Host: name}
	for _, k := range owners(p.fleet, e) {
		c := &fleet.Condition{Service: k.service, Pathways: []string{k.name}}
		for _, s := range p.servers(c, e) {
			if p.Routes[s.Addr.Addr()] != "" && !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	return out
}

// lookup is how names are asked of suppliers; see Options.Lookup.
type lookup = func(ctx context.Context, dial func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error), servers []sandbox.Server, name string) ([]netip.Addr, error)
