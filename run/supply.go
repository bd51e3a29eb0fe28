package run

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"bj/fleet"
	"bj/graph"
	"bj/sandbox"
)

// never is the wave of a recipe that cannot be brought up from recipes alone.
const never = math.MaxInt

// pathway is one pathway of a service: what a condition needs.
type pathway struct{ service, name string }

func (p pathway) String() string {
	if p.name == "default" {
		return p.service
	}
	return p.service + "/" + p.name
}

// waves says in which order recipes can supply each other: the rounds of the
// recovery graph, when everything is down.
type waves struct {
	fleet     *fleet.Fleet
	restoring map[pathway][]*fleet.Recipe // alternatives, by label
	wave      map[*fleet.Recipe]int       // absent: never
	needs     map[*fleet.Recipe][]need
}

// need is one pathway that a recipe needs, and the condition that says so.
type need struct {
	pathway   pathway
	condition *fleet.Condition
}

func newWaves(f *fleet.Fleet) *waves {
	w := &waves{fleet: f, restoring: map[pathway][]*fleet.Recipe{}, wave: map[*fleet.Recipe]int{}, needs: map[*fleet.Recipe][]need{}}
	for _, r := range f.Recipes {
		if !slices.ContainsFunc(r.Conditions, func(c fleet.Condition) bool { return c.Service == "*" }) {
			for _, name := range r.Restores {
				k := pathway{r.Service, name}
				w.restoring[k] = append(w.restoring[k], r)
			}
		}
		w.needs[r] = needsOf(f, r)
	}
	// The loader has found names that nobody declares, the only error there is.
	if g, err := graph.New(f, graph.Options{Opened: true, AssumeDown: true}); err == nil {
		byLabel := make(map[string]int, len(f.Recipes))
		for i, n := range g.RecipeWaves() {
			byLabel[g.Recipes()[i].Label] = n
		}
		for _, r := range f.Recipes {
			if n := byLabel[r.Label]; n > 0 {
				w.wave[r] = n
			}
		}
	}
	return w
}

// needsOf returns what r needs of others, in the order of its conditions. An
// endpoint literal needs the pathways that own it.
func needsOf(f *fleet.Fleet, r *fleet.Recipe) []need {
	own := ownAddresses(r)
	var needs []need
	for i := range r.Conditions {
		c := &r.Conditions[i]
		if c.Endpoint == nil {
			for _, name := range c.Pathways {
				needs = append(needs, need{pathway{c.Service, name}, c})
			}
			continue
		}
		e := *c.Endpoint
		if e.Prefix.IsValid() && staysInside(e.Prefix, own) {
			continue
		}
		found := owners(f, e)
		if len(found) == 0 {
			needs = append(needs, need{pathway{e.URL, ""}, c}) // nobody declares it: unproven
		}
		for _, k := range found {
			needs = append(needs, need{k, c})
		}
	}
	return needs
}

// of returns the wave of r.
func (w *waves) of(r *fleet.Recipe) int {
	if n, ok := w.wave[r]; ok {
		return n
	}
	return never
}

// choose returns the recipe that supplies k: the lowest wave, then the least
// label. It is nil if there is none.
func (w *waves) choose(k pathway) *fleet.Recipe {
	alternatives := w.restoring[k]
	if len(alternatives) == 0 {
		return nil
	}
	return slices.MinFunc(alternatives, func(a, b *fleet.Recipe) int {
		return cmp.Or(cmp.Compare(w.of(a), w.of(b)), strings.Compare(a.Label, b.Label))
	})
}

// supply gives p its suppliers, or says why that cannot be done.
func (w *waves) supply(p *Plan, o PlanOptions) *Refusal {
	if w.of(p.Recipe) == never {
		return w.explain(p.Recipe)
	}
	chosen := map[*fleet.Recipe]*Plan{}
	var collect func(p *Plan) *Refusal
	collect = func(p *Plan) *Refusal {
		for _, n := range w.needs[p.Recipe] {
			r := w.choose(n.pathway)
			s := chosen[r]
			if s == nil {
				s = newPlan(w.fleet, r, o)
				chosen[r] = s
				if s.Refusal != nil {
					return &Refusal{Code: codeSupply, Pos: n.condition.Pos, Hint: s.Refusal.Hint,
						Message: fmt.Sprintf("%s supplies %s and cannot be run: %v", r.Label, n.pathway, s.Refusal)}
				}
				if refusal := collect(s); refusal != nil {
					return refusal
				}
			}
			if refusal := w.route(p, s, n); refusal != nil {
				return refusal
			}
		}
		return nil
	}
	if refusal := collect(p); refusal != nil {
		return refusal
	}
	for _, s := range chosen {
		s.Wave = w.of(s.Recipe)
		p.Suppliers = append(p.Suppliers, s)
	}
	slices.SortFunc(p.Suppliers, func(a, b *Plan) int {
		return cmp.Or(cmp.Compare(a.Wave, b.Wave), strings.Compare(a.Label(), b.Label()))
	})
	return checkAddresses(p)
}

// route makes the endpoints that p needs of s lead to machines of s.
func (w *waves) route(p, s *Plan, n need) *Refusal {
	own := ownAddresses(p.Recipe)
	es := endpoints(w.fleet, n.condition)
	if n.condition.Endpoint == nil {
		es = w.fleet.Service(n.pathway.service).Pathway(n.pathway.name).Endpoints
	}
	if n.condition.Endpoint == nil || n.condition.Endpoint.Scheme == "dns" {
		if refusal := w.routeNames(p, s, n, es); refusal != nil {
			return refusal
		}
	}
	for _, e := range es {
		if e.Scheme == "dns" {
			continue
		}
		if e.Host != "" {
			// Where the name leads is known when the supplier is up.
			for _, m := range s.Recipe.Machines() {
				if !m.Declared {
					continue
				}
				if refusal := w.lead(p, s, n, m.Address); refusal != nil {
					return refusal
				}
			}
			continue
		}
		if staysInside(e.Prefix, own) && e.Prefix.Addr().IsLoopback() {
			continue
		}
		found := false
		for a := range ownAddresses(s.Recipe) {
			if !e.Prefix.Contains(a) {
				continue
			}
			found = true
			if refusal := w.lead(p, s, n, a); refusal != nil {
				return refusal
			}
		}
		if !found {
			r := supplyRefusal(n, "the endpoint %s of %s is on no machine of %s, which supplies it", e.URL, n.pathway, s.Label())
			r.Hint = fmt.Sprintf("give a machine of %s that address with addresses=", s.Label())
			return r
		}
	}
	return nil
}

// lead makes an address lead to a machine of s.
func (w *waves) lead(p, s *Plan, n need, a netip.Addr) *Refusal {
	if ownAddresses(p.Recipe)[a] {
		return supplyRefusal(n, "the address %s is used twice: by a machine of %s and by one of %s, which supplies %s", a, p.Label(), s.Label(), n.pathway)
	}
	if other := p.Routes[a]; other != "" && other != s.Label() {
		return supplyRefusal(n, "the address %s is used twice: by machines of %s and of %s", a, min(other, s.Label()), max(other, s.Label()))
	}
	p.Routes[a] = s.Label()
	return nil
}

// routeNames makes the servers that are asked for names of a dns endpoint those
// on machines of s.
func (w *waves) routeNames(p, s *Plan, n need, es []fleet.Endpoint) *Refusal {
	own := ownAddresses(s.Recipe)
	for _, e := range es {
		if e.Scheme != "dns" {
			continue
		}
		var here []sandbox.Server
		for _, server := range p.servers(n.condition, e) {
			if !own[server.Addr.Addr()] {
				continue
			}
			if refusal := w.lead(p, s, n, server.Addr.Addr()); refusal != nil {
				return refusal
			}
			here = append(here, server)
		}
		if len(here) == 0 {
			r := supplyRefusal(n, "nobody answers for %s of %s on the machines of %s, which supplies it", e.URL, n.pathway, s.Label())
			r.Hint = fmt.Sprintf("give %s an endpoint at port 53 on one of its machines, such as \"udp://10.0.0.53:53\"", n.pathway.service)
			return r
		}
		for i := range p.Policy.Names {
			if x := &p.Policy.Names[i]; x.Pattern == e.Host && &p.Recipe.Conditions[x.Condition] == n.condition {
				x.Servers = here
			}
		}
	}
	return nil
}

func supplyRefusal(n need, format string, args ...any) *Refusal {
	return &Refusal{Code: codeSupply, Pos: n.condition.Pos, Message: fmt.Sprintf(format, args...)}
}

// checkAddresses refuses an address that was declared for machines of two
// environments of one run. Addresses that were not declared may repeat: nobody
// outside reaches them.
func checkAddresses(p *Plan) *Refusal {
	holder := map[netip.Addr]*Plan{}
	for _, s := range append(slices.Clone(p.Suppliers), p) {
		for _, m := range s.Recipe.Machines() {
			if !m.Declared {
				continue
			}
			if other := holder[m.Address]; other != nil && other != s {
				return &Refusal{Code: codeSupply, Pos: s.Recipe.Pos, Message: fmt.Sprintf("the address %s is used twice: by machines of %s and of %s", m.Address, other.Label(), s.Label())}
			}
			holder[m.Address] = s
		}
	}
	return nil
}

// explain says why r can never be supplied: it needs something unproven, or
// itself.
func (w *waves) explain(r *fleet.Recipe) *Refusal {
	var path []need
	var labels []string
	for {
		if i := slices.Index(labels, r.Label); i >= 0 {
			loop := append(labels[i:], r.Label)
			return supplyRefusal(path[i], "the recipes need each other in a cycle, and no alternative breaks it: %s", strings.Join(loop, " → "))
		}
		labels = append(labels, r.Label)
		i := slices.IndexFunc(w.needs[r], func(n need) bool {
			next := w.choose(n.pathway)
			return next == nil || w.of(next) == never
		})
		n := w.needs[r][i]
		path = append(path, n)
		next := w.choose(n.pathway)
		if next == nil {
			return w.unproven(n, labels)
		}
		r = next
	}
}

// unproven refuses a need that no recipe meets.
func (w *waves) unproven(n need, labels []string) *Refusal {
	via := ""
	if len(labels) > 1 {
		via = fmt.Sprintf(" (needed by %s)", strings.Join(labels, " → "))
	}
	switch s := w.fleet.Service(n.pathway.service); {
	case s == nil:
		return supplyRefusal(n, "no service declares the endpoint %s, so no recipe can supply it%s", n.pathway.service, via)
	default:
		r := supplyRefusal(n, "%s is unproven: no recipe of this workspace restores it%s", n.pathway, via)
		r.Hint = fmt.Sprintf("write a recipe for %s, or run with --supply production", n.pathway.service)
		return r
	}
}
