package run

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"bj/fleet"
	"bj/sandbox"
)

// judged returns how requests to an endpoint are judged; nil where it says no
// more than an address and a port.
func judged(e fleet.Endpoint) *sandbox.HTTP {
	finer := e.Path != "" && e.Path != "/" || len(e.Methods) > 0
	if e.Host == "" && !finer {
		return nil
	}
	h := &sandbox.HTTP{TLS: e.Scheme == "https", Host: e.Host, Path: strings.TrimSuffix(e.Path, "/"), Methods: e.Methods}
	if e.Host == "" {
		h.Host = e.Prefix.Addr().String()
	}
	h.Inspect = h.TLS && finer
	return h
}

// numberUnits numbers the units of the recipe, if some condition is for some of
// them alone: those first, and then the others, so that flows say whose they are.
func (p *Plan) numberUnits() *Refusal {
	r := p.Recipe
	var named []string
	add := func(unit string) {
		if !slices.Contains(named, unit) {
			named = append(named, unit)
		}
	}
	for i := range r.Conditions {
		c := &r.Conditions[i]
		for _, u := range c.Only {
			add(u)
		}
		if len(named) > sandbox.MaxUnits {
			return &Refusal{Code: codeLimits, Pos: c.Pos, Message: fmt.Sprintf("conditions are for %d units, and a seal tells %d apart: %s", len(named), sandbox.MaxUnits, c.Text), Hint: "let steps share a unit"}
		}
	}
	if len(named) == 0 {
		return nil
	}
	for _, a := range r.Strategy {
		if a.Step != nil {
			add(a.Step.Unit)
		}
	}
	for _, v := range p.validations() {
		add(unitOf(v.Title))
	}
	p.Policy.Units = named
	return nil
}

// openAll opens everything in production, which this host is no part of.
func (p *Plan) openAll(i int, c *fleet.Condition) *Refusal {
	host, err := hostAddresses()
	if err != nil {
		return &Refusal{Code: codeCondition, Pos: c.Pos, Message: fmt.Sprintf("which addresses are this host's own is not known: %v", err)}
	}
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		for _, prefix := range except(netip.MustParsePrefix(all), host) {
			for _, protocol := range []string{"tcp", "udp", "icmp"} {
				a := sandbox.Allow{Condition: i, Machines: c.On, Units: c.Only, Protocol: protocol, Prefix: prefix, First: 1, Last: 65535}
				if protocol == "icmp" {
					a.First, a.Last = 0, 0
				}
				p.Policy.Allows = append(p.Policy.Allows, a)
			}
		}
	}
	e := fleet.Endpoint{URL: "everything", Scheme: "dns", Host: "*"}
	p.Contacts = append(p.Contacts, Contact{Condition: i, Endpoint: e})
	if servers, err := hostServers(resolvConf); err == nil {
		p.Policy.Names = append(p.Policy.Names, sandbox.Names{Condition: i, Machines: c.On, Units: c.Only, Pattern: "*", Servers: servers})
	}
	return nil
}

// hostAddresses returns the addresses of this host's interfaces.
var hostAddresses = func() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				out = append(out, addr.Unmap())
			}
		}
	}
	return out, nil
}

// except returns p less some addresses, as prefixes.
func except(p netip.Prefix, holes []netip.Addr) []netip.Prefix {
	holes = slices.DeleteFunc(slices.Clone(holes), func(a netip.Addr) bool { return !p.Contains(a) })
	if len(holes) == 0 {
		return []netip.Prefix{p}
	}
	if p.IsSingleIP() {
		return nil
	}
	low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	a, _ := netip.AddrFromSlice(b)
	return append(except(low, holes), except(netip.PrefixFrom(a, p.Bits()+1), holes)...)
}

// absent returns the libraries, as patterns, that the fleet declares and the
// recipe does not allow: every other service's.
func (p *Plan) absent() []string {
	allowed := map[string]bool{}
	for i := range p.Recipe.Conditions {
		c := &p.Recipe.Conditions[i]
		if c.Service == "*" {
			return nil
		}
		for _, e := range endpoints(p.fleet, c) {
			allowed[e.URL] = true
			// A literal allows what it lies within.
			if e.Scheme == "lib" && c.Endpoint != nil {
				for _, k := range owners(p.fleet, e) {
					for _, own := range p.fleet.Service(k.service).Pathway(k.name).Endpoints {
						allowed[own.URL] = true
					}
				}
			}
		}
	}
	var out []string
	for _, s := range p.fleet.Services {
		if s.Name == p.Recipe.Service {
			continue
		}
		for _, w := range s.Pathways {
			for _, e := range w.Endpoints {
				if e.Scheme == "lib" && !allowed[e.URL] && !slices.Contains(out, e.Path) {
					out = append(out, e.Path)
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// stillAbsent leaves out of files those that would take away what a tool of the
// recipe itself brings.
func stillAbsent(files, tools []sandbox.File) []sandbox.File {
	return slices.DeleteFunc(slices.Clone(files), func(f sandbox.File) bool {
		return f.Absent && slices.ContainsFunc(tools, func(t sandbox.File) bool {
			if !t.Tree {
				ok, err := filepath.Match(f.Path, t.Path)
				return ok && err == nil
			}
			found, err := filepath.Glob(filepath.Join(t.Source, f.Path))
			return err == nil && len(found) > 0
		})
	})
}

// openSocket opens the socket of a daemon of the host. The recipe's own daemons
// make theirs themselves.
func (p *Plan) openSocket(i int, c *fleet.Condition, e fleet.Endpoint) *Refusal {
	if slices.ContainsFunc(owners(p.fleet, e), func(by pathway) bool { return by.service == p.Recipe.Service }) {
		return nil
	}
	if p.Supply == Recipes {
		return &Refusal{Code: codeSupply, Pos: c.Pos, Message: fmt.Sprintf("a Unix socket of another service cannot cross machines: %s, of %s", e.URL, c.Text), Hint: "run it with --supply production, or reach the service by its address"}
	}
	p.Policy.Sockets = append(p.Policy.Sockets, sandbox.Socket{Condition: i, Machines: c.On, Units: c.Only, Path: e.Path})
	p.Contacts = append(p.Contacts, Contact{Condition: i, Endpoint: e})
	return nil
}
