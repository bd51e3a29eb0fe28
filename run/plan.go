package run

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"

	"bj/fleet"
	"bj/graph"
	"bj/lang/diag"
	"bj/sandbox"
)

// Supply says where allowed capabilities come from.
type Supply string

const (
	Production Supply = "production" // their declared endpoints; the default
	Recipes    Supply = "recipes"    // their own recipes, transitively
)

// PlanOptions is how recipes are to be run; the zero value is the default.
type PlanOptions struct {
	Root   string            // the workspace's folder; sources of files and secrets are relative to it
	Supply Supply            // Production if empty
	Tools  map[string]string // name of a tool → path of the program that takes its place
}

// Plan is all that running a recipe needs: it leaves execution no choices. It
// must not be changed.
type Plan struct {
	Recipe   *fleet.Recipe
	Supply   Supply
	Refusal  *Refusal // why it cannot be run; nil if it can
	Machines []sandbox.MachineSpec
	Users    []string // accounts that steps run as, beside root; sorted
	Policy   sandbox.Policy
	Tools    []sandbox.Tool
	Secrets  map[string]string
	Named    []Named   // what of Policy is known when the seal closes
	Contacts []Contact // what production is asked for, under Production
	// Suppliers are the recipes that are brought up before, wave by wave, and
	// their suppliers with them; Routes says which of them has an address that
	// this recipe may reach. Both are of Recipes alone.
	Suppliers []*Plan
	Wave      int                   // of a supplier: those of one wave come up at the same time
	Routes    map[netip.Addr]string // address → label of a supplier
	Except    []string              // titles of manual steps
	Free      []string              // files that the recipe brings, for people

	fleet *fleet.Fleet
	// recovery is the fleet's graph, made when it is first asked for; nil if
	// the fleet has none.
	recovery func() *graph.Graph
	exprs    map[string]*regexp.Regexp // every expect of the recipe
}

// Label returns the label of the recipe.
func (p *Plan) Label() string { return p.Recipe.Label }

// Refusal says why a recipe cannot be run here: its verdict is error.
type Refusal struct {
	Code    string // of the verdict; may be empty
	Message string
	Hint    string
	Pos     diag.Pos
}

func (r *Refusal) Error() string {
	if r.Pos.IsValid() {
		return r.Pos.String() + ": " + r.Message
	}
	return r.Message
}

// Contact is one endpoint in production that a recipe may reach.
type Contact struct {
	Condition int // index into the recipe's conditions
	Endpoint  fleet.Endpoint
	// Probe is tried before the run; it is not valid where nothing can be
	// tried: UDP, ICMP, several addresses or ports. A Unix socket always is.
	Probe netip.AddrPort
}

// NewPlans plans recipes of f, one Plan for each, in the same order. A recipe
// that cannot be run gets a Plan with a Refusal. One that differs from f's recipe
// of that label takes its place, in its own plan alone.
func NewPlans(f *fleet.Fleet, recipes []*fleet.Recipe, o PlanOptions) []*Plan {
	if o.Supply == "" {
		o.Supply = Production
	}
	common := newPlanner(f, o)
	plans := make([]*Plan, len(recipes))
	for i, r := range recipes {
		in := common
		if f.Recipe(r.Label) != r {
			in = newPlanner(f.With(r), o)
		}
		plans[i] = in.plan(r)
	}
	return plans
}

// planner plans recipes of one fleet.
type planner struct {
	fleet    *fleet.Fleet
	options  PlanOptions
	recovery func() *graph.Graph
	waves    func() *waves
}

func newPlanner(f *fleet.Fleet, o PlanOptions) *planner {
	return &planner{f, o, sync.OnceValue(func() *graph.Graph {
		g, err := graph.New(f, graph.Options{})
		if err != nil { // names that nobody declares: the loader has said so
			return nil
		}
		return g
	}), sync.OnceValue(func() *waves { return newWaves(f) })}
}

func (in *planner) plan(r *fleet.Recipe) *Plan {
	p := newPlan(in.fleet, r, in.options)
	p.recovery = in.recovery
	if in.options.Supply == Recipes && p.Refusal == nil {
		p.Refusal = in.waves().supply(p, in.options)
	}
	return p
}

// newPlan plans r without its suppliers.
func newPlan(f *fleet.Fleet, r *fleet.Recipe, o PlanOptions) *Plan {
	p := &Plan{
		Recipe: r, Supply: o.Supply, Secrets: map[string]string{},
		Routes: map[netip.Addr]string{}, fleet: f, exprs: map[string]*regexp.Regexp{},
	}
	for _, part := range []func(o PlanOptions) *Refusal{p.planPolicy, p.planMachines, p.planSecrets, p.planActions} {
		if p.Refusal = part(o); p.Refusal != nil {
			return p
		}
	}
	return p
}

// planPolicy resolves conditions to what is opened.
func (p *Plan) planPolicy(o PlanOptions) *Refusal {
	r := p.Recipe
	if s := p.fleet.Service(r.Service); s != nil {
		p.Policy.Internal = s.Listens
		p.Policy.Declared = declared(r, s)
	}
	own := ownAddresses(r)
	if refusal := p.numberUnits(); refusal != nil {
		return refusal
	}
	for i := range r.Conditions {
		c := &r.Conditions[i]
		switch {
		case c.Service == "*":
			if p.Supply != Production {
				return &Refusal{Code: codeSupply, Pos: c.Pos, Message: fmt.Sprintf("no recipe supplies everything: %s", c.Text), Hint: "name what it needs; bj pare finds out what that is"}
			}
			if refusal := p.openAll(i, c); refusal != nil {
				return refusal
			}
			continue
		}
		var seen []sandbox.Allow
		for _, e := range endpoints(p.fleet, c) {
			if e.Scheme == "lib" {
				if len(c.Only) > 0 {
					return &Refusal{Code: codeLimits, Pos: c.Pos, Message: fmt.Sprintf("a library is there for all units of a machine or for none: %s, of %s", e.URL, c.Text), Hint: "leave only= out, or give the units machines of their own"}
				}
				if p.Supply == Recipes && c.Service != r.Service {
					return &Refusal{Code: codeSupply, Pos: c.Pos, Message: fmt.Sprintf("a library of another service cannot cross machines: %s, of %s", e.URL, c.Text), Hint: "bring it as a tool or a file of the recipe"}
				}
				continue // it is there, unlike those that are not allowed: see absent
			}
			if e.Scheme == "dns" {
				if refusal := p.openNames(i, c, e); refusal != nil {
					return refusal
				}
				if p.Supply == Production {
					p.Contacts = append(p.Contacts, Contact{Condition: i, Endpoint: e})
				}
				continue
			}
			if e.Scheme == "unix" {
				if refusal := p.openSocket(i, c, e); refusal != nil {
					return refusal
				}
				continue
			}
			a, refusal := open(c, e)
			if refusal != nil {
				return refusal
			}
			a.Condition, a.Machines, a.Units = i, c.On, c.Only
			if a.HTTP != nil && a.HTTP.Inspect {
				if refusal := p.verify(a.HTTP, c, e, o); refusal != nil {
					return refusal
				}
			}
			if e.Host != "" {
				p.Named = append(p.Named, Named{Allow: a, Endpoint: e})
				if p.Supply == Production {
					p.Contacts = append(p.Contacts, Contact{Condition: i, Endpoint: e})
				}
				continue
			}
			if slices.ContainsFunc(seen, func(b sandbox.Allow) bool { return sameAllow(a, b) }) {
				continue
			}
			seen = append(seen, a)
			if p.Supply == Production && !staysInside(a.Prefix, own) {
				p.Contacts = append(p.Contacts, Contact{Condition: i, Endpoint: e, Probe: probe(a)})
			}
		}
		p.Policy.Allows = append(p.Policy.Allows, seen...)
	}
	return nil
}

// endpoints returns what c names.
func endpoints(f *fleet.Fleet, c *fleet.Condition) []fleet.Endpoint {
	if c.Endpoint != nil {
		return []fleet.Endpoint{*c.Endpoint}
	}
	s := f.Service(c.Service)
	if s == nil {
		return nil
	}
	var es []fleet.Endpoint
	for _, name := range c.Pathways {
		if w := s.Pathway(name); w != nil {
			es = append(es, w.Endpoints...)
		}
	}
	return es
}

// open turns an endpoint into what the seal lets through, without its condition.
func open(c *fleet.Condition, e fleet.Endpoint) (sandbox.Allow, *Refusal) {
	what := fmt.Sprintf("%s, of %s", e.URL, c.Text)
	if c.Endpoint != nil {
		what = c.Text
	}
	switch e.Scheme {
	case "tcp", "udp", "icmp":
	case "http", "https":
	default:
		return sandbox.Allow{}, notYet(c.Pos, "open endpoints of this kind", what)
	}
	a := sandbox.Allow{Protocol: e.Scheme, Prefix: e.Prefix.Masked(), First: e.Ports.First, Last: e.Ports.Last}
	if e.Scheme == "http" || e.Scheme == "https" {
		a.Protocol = "tcp"
		a.HTTP = judged(e)
	}
	return a, nil
}

// notYet refuses what a later version of bj brings.
func notYet(at diag.Pos, what, text string) *Refusal {
	return &Refusal{Pos: at, Message: fmt.Sprintf("this version cannot %s yet: %s", what, text)}
}

func sameAllow(a, b sandbox.Allow) bool {
	return a.Protocol == b.Protocol && a.Prefix == b.Prefix && a.First == b.First && a.Last == b.Last && reflect.DeepEqual(a.HTTP, b.HTTP)
}

// probe returns the one address and port that a opens, if it can be tried.
func probe(a sandbox.Allow) netip.AddrPort {
	if a.Protocol != "tcp" || !a.Prefix.IsSingleIP() || a.First != a.Last {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Prefix.Addr(), a.First)
}

// ownAddresses returns the addresses of the recipe's machines.
func ownAddresses(r *fleet.Recipe) map[netip.Addr]bool {
	own := map[netip.Addr]bool{}
	for _, m := range r.Machines() {
		for _, a := range []netip.Addr{m.Address, m.V4, m.V6} {
			if a.IsValid() {
				own[a] = true
			}
		}
	}
	return own
}

// staysInside reports whether p is loopback, or one machine of the recipe.
func staysInside(p netip.Prefix, own map[netip.Addr]bool) bool {
	return p.Addr().IsLoopback() || (p.IsSingleIP() && own[p.Addr()])
}

// planMachines makes the machines with their files, and chooses the tools.
func (p *Plan) planMachines(o PlanOptions) *Refusal {
	r := p.Recipe
	for _, h := range r.Hardware {
		image := h.Image
		if image == nil {
			image = p.fleet.Workspace.Image
		}
		for _, m := range h.Machines {
			p.Machines = append(p.Machines, sandbox.MachineSpec{
				Name: m.Name, CPUs: h.CPUs, Memory: h.Memory, Disk: h.Disk, Image: image, V4: m.V4, V6: m.V6,
			})
		}
	}
	for _, pattern := range p.absent() {
		for i := range p.Machines {
			p.Machines[i].Files = append(p.Machines[i].Files, sandbox.File{Path: pattern, Absent: true})
		}
	}
	for _, f := range r.Files {
		file := sandbox.File{Path: f.Path, Mode: f.Mode}
		if f.Source == "" {
			file.Content = []byte(f.Content)
		} else {
			file.Source = absolute(o.Root, f.Source)
			info, err := os.Stat(file.Source)
			if err != nil {
				return &Refusal{Pos: f.Pos, Message: fmt.Sprintf("the file %s cannot be read: %v", f.Source, err)}
			}
			file.Tree = info.IsDir()
		}
		for i := range p.Machines {
			if len(f.On) == 0 || slices.Contains(f.On, p.Machines[i].Name) {
				p.Machines[i].Files = append(p.Machines[i].Files, file)
			}
		}
		p.Free = append(p.Free, "file "+f.Path)
	}
	for _, t := range r.Tools {
		if path, ok := o.Tools[t.Name]; ok {
			t = fleet.Tool{Name: t.Name, Path: path, Kept: t.Kept, Doc: t.Doc, Pos: t.Pos}
		}
		p.Tools = append(p.Tools, t)
	}
	return nil
}

func toolSource(t fleet.Tool) string {
	for _, s := range []string{t.Path, t.Go, t.Deb, t.URL, t.Target} {
		if s != "" {
			return s
		}
	}
	return "no source"
}

// absolute returns path as seen from the workspace's folder.
func absolute(root, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(root, filepath.FromSlash(path))
}

// planSecrets reads the values that secrets have in tests.
func (p *Plan) planSecrets(o PlanOptions) *Refusal {
	for _, s := range p.Recipe.Secrets {
		value := s.Value
		if s.Source != "" {
			data, err := os.ReadFile(absolute(o.Root, s.Source))
			if err != nil {
				return &Refusal{Pos: s.Pos, Message: fmt.Sprintf("the test value of secret %s cannot be read: %v", s.Name, err)}
			}
			value = strings.TrimSuffix(string(data), "\n")
		}
		if strings.ContainsRune(value, 0) {
			return &Refusal{Pos: s.Pos, Message: fmt.Sprintf("the test value of secret %s has a zero byte: no environment variable can hold it", s.Name)}
		}
		p.Secrets[s.Name] = value
	}
	return nil
}

// planActions checks the strategy and the validations.
func (p *Plan) planActions(PlanOptions) *Refusal {
	expect := func(text string, at diag.Pos) *Refusal {
		re, err := regexp.Compile(text)
		if err != nil {
			return &Refusal{Pos: at, Message: fmt.Sprintf("expect is not a regular expression: %v", err)}
		}
		p.exprs[text] = re
		return nil
	}
	for _, a := range p.Recipe.Strategy {
		if a.Step != nil && a.Step.User != "" && a.Step.User != "root" && !slices.Contains(p.Users, a.Step.User) {
			p.Users = append(p.Users, a.Step.User)
			slices.Sort(p.Users)
		}
		switch {
		case a.Step != nil && len(a.Step.Run) == 0:
			p.Except = append(p.Except, a.Step.Title)
		case a.Step != nil && a.Step.Capture != "" && len(a.Step.Run) > 1:
			return &Refusal{Pos: a.Step.Pos, Message: fmt.Sprintf("step %q captures the output of %d machines", a.Step.Title, len(a.Step.Run)), Hint: "name one machine with on="}
		case a.Step != nil && a.Step.Capture != "" && a.Step.Daemon:
			return &Refusal{Pos: a.Step.Pos, Message: fmt.Sprintf("step %q captures the output of a daemon, which does not end", a.Step.Title)}
		case a.Step != nil && a.Step.Expect != "":
			if refusal := expect(a.Step.Expect, a.Step.Pos); refusal != nil {
				return refusal
			}
		}
	}
	for _, v := range p.validations() {
		if v.Expect == "" {
			continue
		}
		if refusal := expect(v.Expect, v.Pos); refusal != nil {
			return refusal
		}
	}
	return nil
}

// validations returns all validations, those between steps first.
func (p *Plan) validations() []*fleet.Validation {
	var vs []*fleet.Validation
	for _, a := range p.Recipe.Strategy {
		if a.Validation != nil {
			vs = append(vs, a.Validation)
		}
	}
	return append(vs, p.Recipe.Validation...)
}

// declared returns the addresses that a service's endpoints name and none of the
// recipe's machines has from the start.
func declared(r *fleet.Recipe, s *fleet.Service) []netip.Addr {
	var out []netip.Addr
	for _, w := range s.Pathways {
		for _, e := range w.Endpoints {
			a := e.Prefix.Addr()
			own := slices.ContainsFunc(r.Machines(), func(m fleet.Machine) bool { return a == m.V4 || a == m.V6 })
			if e.Prefix.IsSingleIP() && !own && !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}
