package graph

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Cycles answers: which services need each other, and does an alternative
// recipe avoid it?
type Cycles struct {
	Schema  string  `json:"schema"`
	Cycles  []Cycle `json:"cycles"`
	Number  int     `json:"services"` // services of the graph
	Assumed Assumed `json:"assumed"`
}

// Cycle is a strongly connected component with a cycle; a service that needs
// itself is one.
type Cycle struct {
	Services []string `json:"services"` // sorted
	Owners   []string `json:"owners"`   // sorted
	// Blocking: no choice of recipes brings all its services back from nothing.
	Blocking bool `json:"blocking"`
	Waived   bool `json:"waived"`
	// Frees is how many services come back if its services stop needing each
	// other, and nothing else changes.
	Frees int `json:"frees"`
	// WayOut are the alternative recipes that avoid it, sorted.
	WayOut []string `json:"way_out"`
	// Path is a shortest cycle; its last edge ends where the first begins.
	Path []Edge `json:"path"`
	// Break is the cheapest set of edges that makes it block nobody, as far as
	// it was found in the time given; empty for one that is avoidable, or only
	// behind another.
	Break []Edge `json:"-"`
	// Behind are services outside of it that it waits for, sorted: those that
	// do not come back either.
	Behind []string `json:"-"`
	// Reason is the waiver's.
	Reason string `json:"-"`
}

// breakBudget bounds the search for what would break cycles.
const breakBudget = 500 * time.Millisecond

// Cycles returns every component with a cycle: blocking ones first, then the
// one whose breaking frees most services.
func (g *Graph) Cycles() *Cycles {
	out := &Cycles{Schema: schemaOf("cycles"), Cycles: []Cycle{}, Number: len(g.services), Assumed: g.Assumed()}
	cs := findComponents(g.adj, nil)
	f := g.comeBack(everything, nil)
	finder := newCycleFinder(g.adj)
	deadline := time.Now().Add(breakBudget)
	for i := range int32(cs.count()) {
		if !cs.cyclic(g.adj, i) {
			continue
		}
		members := cs.members(i)
		var stuck []int32
		for _, p := range members {
			if !f.up(p) {
				stuck = append(stuck, p)
			}
		}
		c := Cycle{Services: g.names(g.fold(members)), Blocking: len(stuck) > 0, WayOut: []string{}}
		c.Owners = g.ownersOf(c.Services)
		path := finder.shortest(members)
		if c.Blocking {
			if p := finder.shortest(stuck); p != nil {
				path = p
			}
			c.Frees = g.frees(f, cs, i)
			c.Behind = g.behind(f, cs, i)
			c.Break = g.breaks(cs, f, i, deadline)
		} else {
			c.WayOut = g.wayOut(f, cs, i)
		}
		c.Path = g.walk(path, true)
		out.Cycles = append(out.Cycles, c)
	}
	slices.SortStableFunc(out.Cycles, func(a, b Cycle) int {
		return cmp.Or(-compareBool(a.Blocking, b.Blocking), cmp.Compare(b.Frees, a.Frees), slices.Compare(a.Services, b.Services))
	})
	return out
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// Blocking returns how many cycles block and are not waived.
func (c *Cycles) Blocking() int {
	n := 0
	for i := range c.Cycles {
		if c.Cycles[i].Blocking && !c.Cycles[i].Waived {
			n++
		}
	}
	return n
}

// ownersOf returns the sorted owners of services.
func (g *Graph) ownersOf(names []string) []string {
	out := []string{}
	for _, n := range names {
		if i, ok := g.Find(n); ok && g.services[i].Owner != "" {
			out = append(out, g.services[i].Owner)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// walk turns a path of pathways into edges, closed to a cycle or not. Recipes
// that are ways out are preferred, then the heavier edge does not matter: the
// least label is taken.
func (g *Graph) walk(path []int32, closed bool) []Edge {
	out := []Edge{}
	for i, p := range path {
		j := i + 1
		if j == len(path) {
			if !closed {
				break
			}
			j = 0
		}
		if e, ok := g.edgeBetween(p, path[j]); ok {
			out = append(out, g.Edge(int(e)))
		}
	}
	return out
}

// edgeBetween returns an edge by which p needs q.
func (g *Graph) edgeBetween(p, q int32) (int32, bool) {
	found, ok := int32(0), false
	for _, r := range g.restoredBy.of(p) {
		for k := g.needs.start[r]; k < g.needs.start[r+1]; k++ {
			if g.needs.to[k] == q && (!ok || g.usable[r]) {
				if found, ok = g.needEdge[k], true; g.usable[r] {
					return found, true
				}
			}
		}
	}
	return found, ok
}

// frees counts the services that come back, beside those of f, once component i
// stops needing itself. f is as it was afterwards.
func (g *Graph) frees(f *rise, cs *components, i int32) int {
	var ready []int32
	for _, p := range cs.members(i) {
		for _, r := range g.restoredBy.of(p) {
			if !g.usable[r] || f.missing[r] == 0 {
				continue
			}
			own := int32(0)
			for _, q := range g.needs.of(r) {
				if cs.of[q] == i && !f.up(q) {
					own++
				}
			}
			if own == f.missing[r] {
				ready = append(ready, r)
			}
		}
	}
	slices.Sort(ready)
	rounds := f.rounds
	log := g.rise(f, slices.Compact(ready), nil, nil)
	freed := 0
	for _, s := range g.fold(log) {
		if g.back(f, s) {
			freed++
		}
	}
	for _, p := range log {
		f.wave[p], f.chosen[p] = never, -1
		for _, r := range g.users.of(p) {
			f.missing[r]++
		}
	}
	f.rounds = rounds
	return freed
}

// back reports whether all pathways of a service are up.
func (g *Graph) back(f *rise, s int32) bool {
	for p := g.first[s]; p < g.first[s+1]; p++ {
		if !f.up(p) {
			return false
		}
	}
	return true
}

// behind returns what component i needs outside of itself that does not come
// back.
func (g *Graph) behind(f *rise, cs *components, i int32) []string {
	var out []int32
	for _, p := range cs.members(i) {
		for _, q := range g.adj.of(p) {
			if cs.of[q] != i && !f.up(q) {
				out = append(out, g.owner[q])
			}
		}
	}
	return g.names(out)
}

// maxWayOut bounds the work of wayOut: beyond it, more ways out are named than
// are needed.
const maxWayOut = 4_000_000

// wayOut names alternatives that bring component i back: of those that count,
// the ones without which it stays down if only they are left. Those that come
// up late are left out first.
func (g *Graph) wayOut(f *rise, cs *components, i int32) []string {
	members := cs.members(i)
	local := map[int32]int32{} // recipe → index in ways
	var ways []wayOut
	for _, p := range members {
		alternatives := g.restoredBy.of(p)
		for _, r := range alternatives {
			if !g.usable[r] {
				continue
			}
			k, seen := local[r]
			if !seen {
				w := wayOut{recipe: r, allowed: true}
				for _, q := range g.needs.of(r) {
					switch {
					case cs.of[q] == i:
						w.needs = append(w.needs, q)
					case !f.up(q):
						w.allowed = false
					}
					w.wave = max(w.wave, f.wave[q])
				}
				if f.missing[r] > 0 {
					w.allowed = false
				}
				k = int32(len(ways))
				local[r] = k
				ways = append(ways, w)
			}
			ways[k].choice = ways[k].choice || len(alternatives) > 1
		}
	}
	comesBack := func() bool {
		up := map[int32]bool{}
		for again := true; again; {
			again = false
			for k := range ways {
				w := &ways[k]
				if !w.allowed || slices.ContainsFunc(w.needs, func(q int32) bool { return !up[q] }) {
					continue
				}
				for _, p := range g.restores.of(w.recipe) {
					if cs.of[p] == i && !up[p] {
						up[p], again = true, true
					}
				}
			}
		}
		return len(up) == len(members)
	}
	var order []int
	for k, w := range ways {
		if w.choice && w.allowed {
			order = append(order, k)
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(ways[b].wave, ways[a].wave), cmp.Compare(len(ways[b].needs), len(ways[a].needs)), cmp.Compare(ways[b].recipe, ways[a].recipe))
	})
	small := len(order)*len(ways)*len(members) <= maxWayOut
	out := []string{}
	for _, k := range order {
		w := &ways[k]
		if small {
			w.allowed = false
			if comesBack() {
				continue
			}
			w.allowed = true
		} else if len(w.needs) > 0 {
			continue
		}
		out = append(out, g.recipes[w.recipe].Label)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// wayOut is a recipe of a component, as wayOut sees it.
type wayOut struct {
	recipe  int32
	needs   []int32 // in the component
	wave    int32
	choice  bool // there is another recipe for what it restores
	allowed bool
}

// cycleFinder finds shortest cycles in sets of nodes of one graph.
type cycleFinder struct {
	g      csr
	stamp  []int32 // of a node: the search that met it
	parent []int32
	set    []int32 // of a node: the set that it is in, 0 for none
	in     []int32 // degrees within the set
	out    []int32
	now    int32
	sets   int32
	queue  []int32
}

func newCycleFinder(g csr) *cycleFinder {
	n := len(g.start) - 1
	return &cycleFinder{g: g, stamp: make([]int32, n), parent: make([]int32, n), set: make([]int32, n), in: make([]int32, n), out: make([]int32, n)}
}

// shortest returns a shortest cycle among nodes, the same each time, or nil. It
// searches from one node after the other in breadth, no deeper than the best so
// far, and takes each out of the graph afterwards, with all that is on no cycle
// then (Itai and Rodeh's search, "Finding a minimum circuit in a graph", 1978,
// with trimming).
func (c *cycleFinder) shortest(nodes []int32) []int32 {
	nodes = slices.Clone(nodes)
	slices.Sort(nodes)
	c.sets++
	for _, v := range nodes {
		c.set[v], c.in[v], c.out[v] = c.sets, 0, 0
	}
	for _, v := range nodes {
		for _, w := range c.g.of(v) {
			if w == v {
				return []int32{v}
			}
			if c.set[w] == c.sets {
				c.out[v]++
				c.in[w]++
			}
		}
	}
	var best []int32
	trimmed := slices.Clone(nodes)
	c.trim(trimmed)
	for _, v := range nodes {
		if c.set[v] != c.sets {
			continue
		}
		if path := c.through(v, len(best)); path != nil {
			best = path
			if len(best) == 2 {
				break
			}
		}
		c.in[v], c.out[v] = 0, 0
		c.trim([]int32{v})
	}
	return best
}

// trim takes nodes out of the set that nothing leads to, or from, and then
// those that this leaves so.
func (c *cycleFinder) trim(queue []int32) {
	for len(queue) > 0 {
		v := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		if c.set[v] != c.sets || c.in[v] > 0 && c.out[v] > 0 {
			continue
		}
		c.set[v] = 0
		for _, w := range c.g.of(v) {
			if c.set[w] == c.sets {
				if c.in[w]--; c.in[w] <= 0 {
					queue = append(queue, w)
				}
			}
		}
	}
}

// through returns a shortest cycle through v that is shorter than bound, or
// nil; 0 is no bound.
func (c *cycleFinder) through(v int32, bound int) []int32 {
	c.now++
	c.stamp[v] = c.now
	c.queue = append(c.queue[:0], v)
	depth, end := 1, 1
	for i := 0; i < len(c.queue); i++ {
		if i == end {
			depth, end = depth+1, len(c.queue)
		}
		if bound > 0 && depth >= bound {
			return nil
		}
		u := c.queue[i]
		for _, w := range c.g.of(u) {
			if w == v {
				path := []int32{}
				for ; u != v; u = c.parent[u] {
					path = append(path, u)
				}
				path = append(path, v)
				slices.Reverse(path)
				return path
			}
			if c.set[w] == c.sets && c.stamp[w] != c.now {
				c.stamp[w], c.parent[w] = c.now, u
				c.queue = append(c.queue, w)
			}
		}
	}
	return nil
}

// joined is the key of a cycle's members.
func joined(services []string) string { return strings.Join(services, "\x00") }
