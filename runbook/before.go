package runbook

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"bj/fleet"
	"bj/graph"
)

// before is section 3.
func (p *page) before() {
	p.section(3, "What must be healthy first")
	switch wave := p.b.waves[p.r.Service]; {
	case wave == 1:
		p.f("The service comes back in wave 1: among the first, when everything is down.\n\n")
	case wave > 1:
		p.f("The service comes back in wave %d, when everything is down.\n\n", wave)
	default:
		p.f("From nothing, the service does not come back by recipes alone: `bj graph --order` says why.\n\n")
	}
	if len(p.r.Conditions) == 0 {
		p.f("Nothing.\n\n")
	}
	for i := range p.r.Conditions {
		p.condition(&p.r.Conditions[i])
	}
	if len(p.r.Conditions) > 0 {
		p.f("\n")
	}
}

// condition writes one item of section 3.
func (p *page) condition(c *fleet.Condition) {
	var endpoints []fleet.Endpoint
	switch {
	case c.Endpoint != nil:
		p.f("- **%s**", code(p.line(c.Endpoint.URL)))
		endpoints = []fleet.Endpoint{*c.Endpoint}
	case c.Service == "*":
		p.f("- **everything in production**: no way back was proven without it")
	default:
		p.f("- **%s**", escape(p.line(c.Service)))
		if s := p.b.Fleet.Service(c.Service); s != nil {
			for _, name := range c.Pathways {
				if w := s.Pathway(name); w != nil {
					endpoints = append(endpoints, w.Endpoints...)
				}
			}
		}
		if !slices.Equal(c.Pathways, []string{"default"}) {
			p.f(", for %s", p.list(c.Pathways))
		}
	}
	if len(c.On) > 0 {
		p.f(", from %s", p.names(c.On))
	}
	if len(c.Only) > 0 {
		p.f(", by %s alone", p.list(c.Only))
	}
	if c.Why != "" {
		p.f(": %s", inline(p.line(c.Why)))
	}
	p.f("\n")
	for _, e := range endpoints {
		p.f("  - %s%s\n", code(p.line(e.URL)), p.known(&e))
	}
	switch links := p.links(c); {
	case len(links) > 0:
		p.f("  - if it is down: %s\n", strings.Join(links, " or "))
	case c.Service != "*":
		p.f("  - no recipe brings it back; who owns it must\n")
	}
}

// links are those to what brings a condition back.
func (p *page) links(c *fleet.Condition) []string {
	var links []string
	for _, r := range p.b.restoring(c) {
		if r != p.r {
			links = append(links, p.link(r.Label))
		}
	}
	return links
}

// link is the link to what a recipe has on this page, or else to its page.
func (p *page) link(label string) string {
	to := link(Name(label))
	if p.near != nil {
		to = p.near(label)
	}
	if to == "" {
		return code(p.line(label))
	}
	return fmt.Sprintf("[%s](%s)", escape(p.line(label)), to)
}

// pathways are those of services that a condition names, or whose endpoint it
// names.
func (b *Book) pathways(c *fleet.Condition) []graph.Pathway {
	if c.Endpoint != nil {
		return b.owners.Of(c.Endpoint)
	}
	var out []graph.Pathway
	if s := b.Fleet.Service(c.Service); s != nil {
		for _, name := range c.Pathways {
			out = append(out, graph.Pathway{Service: s.Name, Name: name})
		}
	}
	return out
}

// restoring returns the recipes that bring a condition back.
func (b *Book) restoring(c *fleet.Condition) []*fleet.Recipe {
	var out []*fleet.Recipe
	for _, w := range b.pathways(c) {
		for _, r := range b.back[w] {
			if !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out
}

// Needed returns recipes with all whose pages theirs lead to, in the order of
// the fleet.
func (b *Book) Needed(recipes []*fleet.Recipe) []*fleet.Recipe {
	seen := map[*fleet.Recipe]bool{}
	var add func([]*fleet.Recipe)
	add = func(recipes []*fleet.Recipe) {
		for _, r := range recipes {
			if seen[r] {
				continue
			}
			seen[r] = true
			for i := range r.Conditions {
				add(b.restoring(&r.Conditions[i]))
			}
			for _, t := range r.Tools {
				if t.Kept != nil && t.Kept.Allow != nil {
					add(b.restoring(t.Kept.Allow))
				}
			}
		}
	}
	add(recipes)
	return slices.DeleteFunc(slices.Clone(b.Fleet.Recipes), func(r *fleet.Recipe) bool { return !seen[r] })
}

// known says whose an address is, or that a name has none here.
func (p *page) known(e *fleet.Endpoint) string {
	if !e.Prefix.IsValid() {
		if e.Host != "" && e.Scheme != "dns" {
			if x := p.b.Machines.row(p.r.Label, e.Host); x != nil {
				var own []string
				for _, a := range []netip.Addr{x.v4, x.v6} {
					if a.IsValid() {
						own = append(own, code(a.String()))
					}
				}
				if len(own) > 0 {
					return " (" + join(own) + ")"
				}
			}
			return ", whose address is not written down; note it here: ______"
		}
		return ""
	}
	h, ok := p.b.hosts[e.Prefix.Addr()]
	if !ok || !e.Prefix.IsSingleIP() {
		return ""
	}
	if x := p.b.Machines.row(h.label, h.name); x != nil && x.name != "" {
		h.name = x.name
	}
	return " (" + code(p.line(h.name)) + ")"
}
