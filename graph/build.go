package graph

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"bj/fleet"
	"bj/lang/diag"
	"bj/run/event"
)

// Options say how a fleet is read. The zero value is the default: without
// results, and with all that is unproven coming back by other means.
type Options struct {
	// Results returns the recorded runs of a recipe, the oldest first. Nil
	// means that no results are given.
	Results func(label string) []event.Record
	// Digest is that of a recipe as it stands; without what files hold if nil.
	Digest func(*fleet.Fleet, *fleet.Recipe) string
	// AssumeDown takes what is assumed as lost.
	AssumeDown bool
	// Opened leaves out what opens no address: where tools are kept, names,
	// sockets and libraries. So it is asked what can be run, not what is needed.
	Opened bool
	// Known are graphs saved by other repositories. A service that the fleet
	// declares, or an earlier one of them, is the one that counts. They must be
	// those of the fleet's services that have Known set.
	Known []*Saved
}

// New makes the graph of a fleet. The error is a diag.List of names that nobody
// declares; the loader finds them first, with better places.
func New(f *fleet.Fleet, o Options) (*Graph, error) {
	d := newDraft()
	for _, s := range f.Services {
		if s.Known != "" {
			continue // from Options.Known, with what is known of it
		}
		names := make([]string, len(s.Pathways))
		for i := range s.Pathways {
			names[i] = s.Pathways[i].Name
		}
		d.addService(Service{
			Name: s.Name, Owner: s.Owner, Kind: string(s.Kind), Package: s.Package,
			File: s.Pos.File, Line: s.Pos.Line, State: Unproven, Pathways: names,
		})
	}
	for _, k := range o.Known {
		d.addKnown(k)
	}
	if o.Digest == nil {
		o.Digest = func(f *fleet.Fleet, r *fleet.Recipe) string { return event.Digest(f, r, nil) }
	}
	owners := NewOwners(f.Services)
	for _, r := range f.Recipes {
		d.addRecipe(f, r, owners, &o)
	}
	d.countUse(f)
	d.facts.results = o.Results != nil
	return d.finish(o.AssumeDown)
}

// draft is a graph before names become numbers.
type draft struct {
	services []Service
	index    map[string]int // by name
	known    int
	recipes  []draftRecipe
	facts    facts
	wrong    diag.List
}

type draftRecipe struct {
	Recipe
	needs []draftNeed
	proof bool // it recovered last, as it stands
}

// draftNeed is a condition: some pathways of a service.
type draftNeed struct {
	to       string
	pathways []string
	why      string
	effort   int
	pos      diag.Pos
	kept     bool
	evidence *Evidence
}

func newDraft() *draft {
	return &draft{index: map[string]int{}, facts: facts{tools: []Count{}, stdlib: []Count{}}}
}

// addService adds s unless its name is taken, and reports whether it did.
func (d *draft) addService(s Service) bool {
	if _, taken := d.index[s.Name]; taken {
		return false
	}
	s.Pathways = slices.Clone(s.Pathways)
	slices.Sort(s.Pathways)
	s.Pathways = slices.Compact(s.Pathways)
	d.index[s.Name] = len(d.services)
	d.services = append(d.services, s)
	return true
}

// addRecipe adds a recipe of the fleet with what it needs.
func (d *draft) addRecipe(f *fleet.Fleet, r *fleet.Recipe, owners *Owners, o *Options) {
	x := draftRecipe{Recipe: Recipe{Label: r.Label, Service: r.Service, Restores: r.Restores, File: r.Pos.File, Line: r.Pos.Line}}
	if r.Estimate != nil {
		s := r.Estimate.Seconds()
		x.Seconds = &s
	}
	unpared := slices.ContainsFunc(r.Conditions, func(c fleet.Condition) bool { return c.Service == "*" })
	var proof *proof
	if o.Results != nil {
		proof = x.learn(f, r, o)
	}
	if unpared {
		x.Excluded, x.proof = ExcludedUnpared, false
		d.recipes = append(d.recipes, x)
		return
	}
	for i := range r.Conditions {
		if e := r.Conditions[i].Endpoint; o.Opened && e != nil && !e.Prefix.IsValid() {
			continue
		}
		d.addNeeds(&x, r, &r.Conditions[i], false, owners, proof)
	}
	for i := range r.Tools {
		if k := r.Tools[i].Kept; k != nil && k.Allow != nil && k.Allow.Service != "*" && !o.Opened {
			d.addNeeds(&x, r, k.Allow, true, owners, proof)
		}
	}
	d.recipes = append(d.recipes, x)
}

// addNeeds adds what a condition of r needs to x.
func (d *draft) addNeeds(x *draftRecipe, r *fleet.Recipe, c *fleet.Condition, kept bool, owners *Owners, p *proof) {
	n := draftNeed{to: c.Service, pathways: c.Pathways, why: c.Why, effort: max(c.Effort, 0), pos: c.Pos, kept: kept, evidence: p.of(c)}
	if c.Endpoint == nil {
		x.needs = append(x.needs, n)
		return
	}
	if inside(c.Endpoint, r) {
		return
	}
	found := owners.Of(c.Endpoint)
	if len(found) == 0 {
		n.to, n.pathways = c.Endpoint.URL, []string{"default"}
		d.addService(Service{Name: n.to, Kind: "endpoint", State: Unowned, File: c.Pos.File, Line: c.Pos.Line, Pathways: n.pathways})
		x.needs = append(x.needs, n)
	}
	for _, w := range found {
		n.to, n.pathways = w.Service, []string{w.Name}
		x.needs = append(x.needs, n)
	}
}

// proof is what the last run that recovered says of a recipe's conditions.
type proof struct {
	at     time.Time
	digest string
	stale  bool
	used   []event.Used
}

// learn takes from recorded results whether x is a way out, and how long it
// takes. It returns nil if x never recovered.
func (x *draftRecipe) learn(f *fleet.Fleet, r *fleet.Recipe, o *Options) *proof {
	records := slices.DeleteFunc(slices.Clone(o.Results(r.Label)), func(x event.Record) bool { return !x.Conclusive() })
	if len(records) == 0 {
		return nil
	}
	var took []float64
	var last *event.Record
	for i := range records {
		if records[i].Verdict.Verdict == event.Recovered {
			last = &records[i]
			took = append(took, last.End.Sub(last.Start).Seconds())
		}
	}
	if records[len(records)-1].Verdict.Verdict != event.Recovered {
		x.Excluded = ExcludedFailed
	}
	if last == nil {
		return nil
	}
	slices.Sort(took)
	x.Seconds = &took[len(took)/2]
	x.Stale = last.Digest != o.Digest(f, r)
	x.proof = x.Excluded == "" && !x.Stale
	return &proof{at: last.End, digest: last.Digest, stale: x.Stale, used: last.Used}
}

// of returns the evidence of one condition.
func (p *proof) of(c *fleet.Condition) *Evidence {
	if p == nil {
		return nil
	}
	used := slices.ContainsFunc(p.used, func(u event.Used) bool {
		return u.Count > 0 && u.File == c.Pos.File && u.Line == c.Pos.Line && (u.Allow == c.Text || u.Allow == "")
	})
	return &Evidence{Recovered: p.at, Digest: p.digest, Stale: p.stale, Used: used}
}

// countUse counts tools, and files of bj's library, by the recipes that use them.
func (d *draft) countUse(f *fleet.Fleet) {
	tools, stdlib := map[string]int{}, map[string]int{}
	for _, r := range f.Recipes {
		seen := map[string]bool{}
		for _, t := range r.Tools {
			if !seen["t"+t.Name] {
				seen["t"+t.Name] = true
				tools[t.Name]++
			}
		}
		for _, m := range r.Modules {
			if name, ok := strings.CutPrefix(m, "@bj//stdlib:"); ok && !seen["m"+name] {
				seen["m"+name] = true
				stdlib[name]++
			}
		}
	}
	d.facts.tools, d.facts.stdlib = counts(tools), counts(stdlib)
}

// Count is a name and how often it was met.
type Count struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
}

// counts sorts by how often, then by name.
func counts(m map[string]int) []Count {
	out := []Count{}
	for name, n := range m {
		out = append(out, Count{name, n})
	}
	slices.SortFunc(out, func(a, b Count) int { return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Name, b.Name)) })
	return out
}

// finish turns names into numbers.
func (d *draft) finish(down bool) (*Graph, error) {
	slices.SortFunc(d.services, func(a, b Service) int { return strings.Compare(a.Name, b.Name) })
	slices.SortStableFunc(d.recipes, func(a, b draftRecipe) int {
		return cmp.Or(strings.Compare(a.Label, b.Label), strings.Compare(a.Service, b.Service))
	})
	for i := range d.services {
		d.index[d.services[i].Name] = i
	}
	g := &Graph{services: d.services, facts: d.facts, known: d.known, first: make([]int32, len(d.services)+1)}
	for s := range g.services {
		g.first[s] = int32(len(g.pathway))
		for _, name := range g.services[s].Pathways {
			g.pathway = append(g.pathway, name)
			g.owner = append(g.owner, int32(s))
		}
	}
	g.first[len(g.services)] = int32(len(g.pathway))

	n := len(d.recipes)
	needs, restores := csr{start: make([]int32, 1, n+1)}, csr{start: make([]int32, 1, n+1)}
	usable, assumed := make([]bool, n), make([]bool, len(g.pathway))
	for p := range assumed {
		assumed[p] = true
	}
	files := map[string]int32{}
	for i := range d.recipes {
		x := &d.recipes[i]
		usable[i] = x.Excluded == ""
		x.Restores = slices.Clone(x.Restores)
		slices.Sort(x.Restores)
		x.Restores = slices.Compact(x.Restores)
		g.recipes = append(g.recipes, x.Recipe)
		if x.Excluded != ExcludedUnpared {
			restores.to = d.resolve(g, restores.to, x.Service, x.Restores, diag.Pos{File: x.File, Line: x.Line})
			for _, p := range restores.to[restores.start[i]:] {
				assumed[p] = false
			}
		}
		restores.start = append(restores.start, int32(len(restores.to)))
		d.join(g, &needs, int32(i), x.needs, files)
		needs.start = append(needs.start, int32(len(needs.to)))
		d.judge(g, x)
	}
	if len(d.wrong) > 0 {
		return nil, d.wrong.Sort()
	}
	g.core = newCore(len(g.pathway), needs, restores, usable, assumed, down)
	return g, nil
}

// resolve appends the numbers of a service's pathways.
func (d *draft) resolve(g *Graph, to []int32, service string, pathways []string, pos diag.Pos) []int32 {
	s, ok := d.index[service]
	if !ok {
		d.wrong = append(d.wrong, diag.Diagnostic{Pos: pos, Severity: diag.Error, Rule: "unknown-service", Message: fmt.Sprintf("unknown service %q", service), Hint: "declare it, or name a known graph that does"})
		return to
	}
	for _, name := range pathways {
		i, ok := slices.BinarySearch(g.services[s].Pathways, name)
		if !ok {
			d.wrong = append(d.wrong, diag.Diagnostic{Pos: pos, Severity: diag.Error, Rule: "unknown-pathway", Message: fmt.Sprintf("service %q has no pathway %q", service, name), Hint: "it has " + strings.Join(g.services[s].Pathways, ", ")})
			continue
		}
		to = append(to, g.first[s]+int32(i))
	}
	return to
}

// join adds the edges of a recipe: one for each service that it needs, written
// where its heaviest condition is.
func (d *draft) join(g *Graph, needs *csr, recipe int32, all []draftNeed, files map[string]int32) {
	slices.SortStableFunc(all, func(a, b draftNeed) int {
		return cmp.Or(cmp.Compare(d.index[a.to], d.index[b.to]), cmp.Compare(b.effort, a.effort))
	})
	for len(all) > 0 {
		same := 1
		for same < len(all) && all[same].to == all[0].to {
			same++
		}
		var to []int32
		kept, evidence := true, all[0].evidence
		for _, n := range all[:same] {
			to = d.resolve(g, to, n.to, n.pathways, n.pos)
			kept = kept && n.kept
			if n.evidence != nil && n.evidence.Used {
				evidence = n.evidence
			}
		}
		slices.Sort(to)
		to = slices.Compact(to)
		if len(to) > 0 {
			file, ok := files[all[0].pos.File]
			if !ok {
				file = int32(len(g.files))
				files[all[0].pos.File] = file
				g.files = append(g.files, all[0].pos.File)
			}
			for range to {
				g.needEdge = append(g.needEdge, int32(len(g.edges)))
			}
			needs.to = append(needs.to, to...)
			g.edges = append(g.edges, edge{
				recipe: recipe, to: g.owner[to[0]], effort: int32(min(all[0].effort, 1<<30)), line: int32(all[0].pos.Line),
				file: file, why: all[0].why, kept: kept, evidence: evidence,
			})
		}
		all = all[same:]
	}
}

// judge raises the state of a recipe's service.
func (d *draft) judge(g *Graph, x *draftRecipe) {
	i, ok := d.index[x.Service]
	if !ok {
		return
	}
	state := Claimed
	switch {
	case x.proof:
		state = Proven
	case x.Excluded == ExcludedUnpared:
		state = Unpared
	}
	rank := []State{Unowned, Unproven, Unpared, Claimed, Proven}
	if s := &g.services[i].State; slices.Index(rank, state) > slices.Index(rank, *s) {
		*s = state
	}
}
