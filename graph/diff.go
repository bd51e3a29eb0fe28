package graph

import (
	"cmp"
	"slices"
	"strings"
)

// Diff answers: what has changed since a graph was saved?
type Diff struct {
	Schema  string     `json:"schema"`
	Edges   []Edge     `json:"edges"`  // new ones
	Gone    []Edge     `json:"gone"`   // old ones
	Cycles  []NewCycle `json:"cycles"` // new ones
	Assumed Assumed    `json:"assumed"`
}

// NewCycle is a cycle that was not there, or was avoidable.
type NewCycle struct {
	Cycle
	// ClosedBy is a new edge that lies on it: the line that closed it. Nil
	// where no edge is new: a way out of an old cycle is gone.
	ClosedBy *Edge `json:"closed_by"`
}

// Blocking returns how many new cycles block and are not waived.
func (d *Diff) Blocking() int {
	n := 0
	for i := range d.Cycles {
		if d.Cycles[i].Blocking && !d.Cycles[i].Waived {
			n++
		}
	}
	return n
}

// Diff compares g, whose cycles are given with what is waived, with one that
// was saved before. An edge is new if no old recipe of the same service needed
// the same service; a cycle is new if no old one had all of its services, or
// none that blocked, though it blocks.
func (g *Graph) Diff(saved *Saved, cycles *Cycles) (*Diff, error) {
	old, err := saved.Graph()
	if err != nil {
		return nil, err
	}
	d := &Diff{Schema: schemaOf("diff"), Edges: []Edge{}, Gone: []Edge{}, Cycles: []NewCycle{}, Assumed: g.Assumed()}
	before, after := map[[2]string]bool{}, map[[2]string]bool{}
	for _, e := range saved.Edges {
		before[[2]string{e.From, e.To}] = true
	}
	isNew := make([]bool, len(g.edges))
	for i := range g.edges {
		e := g.Edge(i)
		key := [2]string{e.From, e.To}
		if isNew[i] = !before[key]; isNew[i] && !after[key] {
			d.Edges = append(d.Edges, e)
		}
		after[key] = true
	}
	for _, e := range saved.Edges {
		if key := [2]string{e.From, e.To}; !after[key] {
			after[key] = true
			d.Gone = append(d.Gone, e)
		}
	}
	was := old.Cycles()
	for _, c := range cycles.Cycles {
		if slices.ContainsFunc(was.Cycles, func(o Cycle) bool {
			return (o.Blocking || !c.Blocking) && !slices.ContainsFunc(c.Services, func(s string) bool {
				_, ok := slices.BinarySearch(o.Services, s)
				return !ok
			})
		}) {
			continue
		}
		n := NewCycle{Cycle: c}
		if path := g.closing(c.Services, isNew); path != nil {
			n.Path = path
			n.ClosedBy = &path[0]
		}
		d.Cycles = append(d.Cycles, n)
	}
	return d, nil
}

// closing returns a shortest cycle among services that begins with a new edge,
// or nil.
func (g *Graph) closing(services []string, isNew []bool) []Edge {
	in := map[int32]bool{}
	for _, name := range services {
		if i, ok := g.Find(name); ok {
			in[int32(i)] = true
		}
	}
	var best []int32
	for s := range in {
		for p := g.first[s]; p < g.first[s+1]; p++ {
			for _, q := range g.adj.of(p) {
				e, ok := g.edgeBetween(p, q)
				if !ok || !isNew[e] || !in[g.owner[q]] {
					continue
				}
				path := []int32{p}
				if p != q {
					back := shortestPath(g.adj, []int32{q}, func(x int32) bool { return x == p })
					if back == nil {
						continue
					}
					path = append(path, back[:len(back)-1]...)
				}
				if best == nil || cmp.Or(cmp.Compare(len(path), len(best)), slices.Compare(path, best)) < 0 {
					best = path
				}
			}
		}
	}
	if best == nil {
		return nil
	}
	return g.walk(best, true)
}

// TraceDiff answers: what do services really call, and do recipes know it?
type TraceDiff struct {
	Schema string `json:"schema"`
	// OnlyTraces are calls between services that no recipe of the caller
	// allows; calls to and from services that the fleet does not declare are
	// among them, and Unknown names those.
	OnlyTraces  []Call   `json:"only_traces"`
	OnlyRecipes []Edge   `json:"only_recipes"`
	Both        []Edge   `json:"both"`
	Unknown     []string `json:"unknown"`
	Assumed     Assumed  `json:"assumed"`
}

// Call is how often one service was seen calling another.
type Call struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Count int    `json:"count"`
}

// DiffTraces compares what services need with what they were seen to call.
func (g *Graph) DiffTraces(calls []Call) *TraceDiff {
	d := &TraceDiff{Schema: schemaOf("diff"), OnlyTraces: []Call{}, OnlyRecipes: []Edge{}, Both: []Edge{}, Unknown: []string{}, Assumed: g.Assumed()}
	seen, needed := map[[2]string]bool{}, map[[2]string]bool{}
	for _, c := range calls {
		seen[[2]string{c.From, c.To}] = true
		for _, name := range []string{c.From, c.To} {
			if _, ok := g.Find(name); !ok {
				d.Unknown = append(d.Unknown, name)
			}
		}
	}
	slices.Sort(d.Unknown)
	d.Unknown = slices.Compact(d.Unknown)
	for i := range g.edges {
		e := g.Edge(i)
		key := [2]string{e.From, e.To}
		if needed[key] {
			continue
		}
		needed[key] = true
		if seen[key] {
			d.Both = append(d.Both, e)
		} else {
			d.OnlyRecipes = append(d.OnlyRecipes, e)
		}
	}
	for _, c := range calls {
		if !needed[[2]string{c.From, c.To}] {
			d.OnlyTraces = append(d.OnlyTraces, c)
		}
	}
	return d
}

// sortCalls sums calls up by caller and callee, sorted.
func sortCalls(m map[[2]string]int) []Call {
	out := make([]Call, 0, len(m))
	for k, n := range m {
		out = append(out, Call{k[0], k[1], n})
	}
	slices.SortFunc(out, func(a, b Call) int {
		return cmp.Or(strings.Compare(a.From, b.From), strings.Compare(a.To, b.To))
	})
	return out
}
