package graph

import (
	"math"
	"slices"
)

// core is the graph as numbers: what the algorithms see.
type core struct {
	pathways, ways int // how many

	needs      csr // recipe → pathways
	users      csr // pathway → recipes that need it
	restores   csr // recipe → pathways
	restoredBy csr // pathway → recipes
	adj        csr // pathway → pathways that some recipe of it needs
	radj       csr // pathway → pathways that need it

	usable  []bool // recipe: it is a way out
	assumed []bool // pathway: it comes back by other means, or is lost if down
	down    bool   // what is assumed is lost
}

// csr is a compressed adjacency: the neighbours of i are to[start[i]:start[i+1]].
type csr struct{ start, to []int32 }

func (c csr) of(i int32) []int32 { return c.to[c.start[i]:c.start[i+1]] }

// pairs are the edges of a csr before it is made, in any order.
type pairs struct{ from, to []int32 }

func (p *pairs) add(from, to int32) { p.from, p.to = append(p.from, from), append(p.to, to) }

// newCSR makes the adjacency of n nodes by counting, in two passes. Neighbours
// keep the order of the pairs.
func newCSR(n int, p pairs) csr {
	c := csr{start: make([]int32, n+1), to: make([]int32, len(p.to))}
	for _, f := range p.from {
		c.start[f+1]++
	}
	for i := range n {
		c.start[i+1] += c.start[i]
	}
	at := c.start
	for i, f := range p.from {
		c.to[at[f]] = p.to[i]
		at[f]++
	}
	copy(at[1:], at[:n]) // each moved to the start of the next
	at[0] = 0
	return c
}

// reversed returns the adjacency with every edge turned around, for n nodes.
func (c csr) reversed(n int) csr {
	r := csr{start: make([]int32, n+1), to: make([]int32, len(c.to))}
	for _, t := range c.to {
		r.start[t+1]++
	}
	for i := range n {
		r.start[i+1] += r.start[i]
	}
	at := r.start
	for i := range len(c.start) - 1 {
		for _, t := range c.of(int32(i)) {
			r.to[at[t]] = int32(i)
			at[t]++
		}
	}
	copy(at[1:], at[:n])
	at[0] = 0
	return r
}

// newCore makes the graph of needs and restores, both by recipe and without
// repeats. It owns what it is given.
func newCore(pathways int, needs, restores csr, usable, assumed []bool, down bool) core {
	c := core{
		pathways: pathways, ways: len(needs.start) - 1, needs: needs, restores: restores,
		usable: usable, assumed: assumed, down: down,
	}
	c.users = needs.reversed(pathways)
	if c.oneToOne() {
		// The usual fleet: a service is a pathway with a recipe, and adjacency
		// is what recipes need.
		c.restoredBy, c.adj, c.radj = restores, needs, c.users
		return c
	}
	c.restoredBy = restores.reversed(pathways)
	c.adj.start = make([]int32, pathways+1)
	seen := make([]int32, pathways)
	for p := range int32(pathways) {
		for _, r := range c.restoredBy.of(p) {
			for _, q := range needs.of(r) {
				if seen[q] != p+1 {
					seen[q] = p + 1
					c.adj.to = append(c.adj.to, q)
				}
			}
		}
		c.adj.start[p+1] = int32(len(c.adj.to))
	}
	c.radj = c.adj.reversed(pathways)
	return c
}

// oneToOne reports whether recipe i restores pathway i alone, for all i.
func (c *core) oneToOne() bool {
	if c.ways != c.pathways || len(c.restores.to) != c.pathways {
		return false
	}
	for i, p := range c.restores.to {
		if int(p) != i || int(c.restores.start[i]) != i {
			return false
		}
	}
	return true
}

// components are the strongly connected components of an adjacency. Their
// numbers are a topological order: what a component needs has lower ones.
type components struct {
	of    []int32 // node → component
	nodes []int32 // grouped by component
	start []int32 // component → its first in nodes
}

func (c *components) count() int              { return len(c.start) - 1 }
func (c *components) members(i int32) []int32 { return c.nodes[c.start[i]:c.start[i+1]] }

// findComponents is Tarjan's algorithm ("Depth-first search and linear graph
// algorithms", 1972) with a stack of its own. Nodes for which skip holds are in
// no component, and have number -1; skip may be nil.
func findComponents(g csr, skip []bool) *components {
	n := len(g.start) - 1
	c := &components{of: make([]int32, n), nodes: make([]int32, 0, n)}
	// low holds, by node: 0 unseen, else 1 + the least index reached; a node
	// whose component is complete has done.
	const done = math.MaxInt32
	low := make([]int32, n)
	at := make([]int32, n) // the next edge to follow; later unused
	var calls, stack []int32
	next := int32(1)
	for root := range int32(n) {
		if low[root] != 0 {
			continue
		}
		if skip != nil && skip[root] {
			low[root], c.of[root] = done, -1
			continue
		}
		low[root], at[root], c.of[root] = next, g.start[root], next
		next++
		calls, stack = append(calls, root), append(stack, root)
		for len(calls) > 0 {
			v := calls[len(calls)-1]
			i, end, lv := at[v], g.start[v+1], low[v]
			descended := false
			for ; i < end; i++ {
				w := g.to[i]
				lw := low[w]
				if lw == 0 {
					if skip != nil && skip[w] {
						low[w], c.of[w] = done, -1
						continue
					}
					at[v], low[v] = i+1, lv
					low[w], at[w] = next, g.start[w]
					c.of[w] = next // its own index, until its component is known
					next++
					calls, stack = append(calls, w), append(stack, w)
					descended = true
					break
				}
				if lw < lv {
					lv = lw
				}
			}
			if descended {
				continue
			}
			low[v] = lv
			calls = calls[:len(calls)-1]
			if lv == c.of[v] {
				number := int32(len(c.start))
				c.start = append(c.start, int32(len(c.nodes)))
				for {
					w := stack[len(stack)-1]
					stack = stack[:len(stack)-1]
					low[w], c.of[w] = done, number
					c.nodes = append(c.nodes, w)
					if w == v {
						break
					}
				}
			}
			if len(calls) > 0 {
				if u := calls[len(calls)-1]; low[v] < low[u] {
					low[u] = low[v]
				}
			}
		}
	}
	c.start = append(c.start, int32(len(c.nodes)))
	return c
}

// cyclic reports whether a component has a cycle: more than one node, or one
// that needs itself.
func (c *components) cyclic(g csr, i int32) bool {
	m := c.members(i)
	return len(m) > 1 || slices.Contains(g.of(m[0]), m[0])
}

// layers returns for each component one more than the highest layer of what it
// needs; 0 where it needs nothing.
func (c *components) layers(g csr) []int32 {
	layer := make([]int32, c.count())
	for i := range int32(c.count()) {
		for _, v := range c.members(i) {
			for _, w := range g.of(v) {
				if j := c.of[w]; j != i && j >= 0 && layer[j] >= layer[i] {
					layer[i] = layer[j] + 1
				}
			}
		}
	}
	return layer
}

// reach returns which nodes can be reached from some, themselves included.
func reach(g csr, from []int32, within func(int32) bool) []bool {
	seen := make([]bool, len(g.start)-1)
	var queue []int32
	for _, v := range from {
		if !seen[v] {
			seen[v] = true
			queue = append(queue, v)
		}
	}
	for len(queue) > 0 {
		v := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, w := range g.of(v) {
			if !seen[w] && (within == nil || within(w)) {
				seen[w] = true
				queue = append(queue, w)
			}
		}
	}
	return seen
}

// never is the wave of what does not come back.
const never = int32(-1)

// rise is a least fixpoint as it came about.
type rise struct {
	wave    []int32 // pathway: 0 up from the start, else its round from 1, or never
	chosen  []int32 // pathway: the recipe that brought it back, or -1
	missing []int32 // recipe: how many of its needs are not up
	rounds  int
}

func (f *rise) up(p int32) bool { return f.wave[p] != never }

// comeBack brings back what can be, in rounds: each takes every recipe whose
// needs were up before it. Pathways for which lost holds are down at first, and
// those that are assumed are up at once unless c.down. In dead ones nothing
// comes back; dead may be nil.
func (c *core) comeBack(lost func(int32) bool, dead func(int32) bool) *rise {
	f := &rise{wave: make([]int32, c.pathways), chosen: make([]int32, c.pathways), missing: make([]int32, c.ways)}
	for p := range int32(c.pathways) {
		f.chosen[p] = -1
		if lost(p) && (!c.assumed[p] || c.down) || dead != nil && dead(p) {
			f.wave[p] = never
		}
	}
	up := 0
	for p := range f.wave {
		if f.wave[p] != never {
			up++
		}
	}
	// Whichever is less: count the needs that are down, or take off those that
	// are up.
	few := 2*up < c.pathways
	for r := range int32(c.ways) {
		f.missing[r] = c.needs.start[r+1] - c.needs.start[r]
		if !few {
			for _, q := range c.needs.of(r) {
				f.missing[r] -= 1 - int32(uint32(f.wave[q])>>31)
			}
		}
	}
	if few && up > 0 {
		for p := range int32(c.pathways) {
			if f.up(p) {
				for _, r := range c.users.of(p) {
					f.missing[r]--
				}
			}
		}
	}
	var ready []int32
	for r := range int32(c.ways) {
		if f.missing[r] == 0 && c.usable[r] {
			ready = append(ready, r)
		}
	}
	c.rise(f, ready, dead, nil)
	return f
}

// rise continues f with recipes that are ready, in further rounds, and returns
// the pathways that came back, appended to log.
func (c *core) rise(f *rise, ready []int32, dead func(int32) bool, log []int32) []int32 {
	var next []int32
	for round := int32(f.rounds) + 1; len(ready) > 0; round++ {
		begin := len(log)
		for _, r := range ready {
			for _, p := range c.restores.of(r) {
				switch {
				case f.wave[p] == never:
					if dead != nil && dead(p) {
						continue
					}
					f.wave[p], f.chosen[p] = round, r
					log = append(log, p)
				case f.wave[p] == round && r < f.chosen[p]:
					f.chosen[p] = r
				}
			}
		}
		if len(log) > begin {
			f.rounds = int(round)
		}
		next = next[:0]
		for _, p := range log[begin:] {
			for _, r := range c.users.of(p) {
				f.missing[r]--
				if f.missing[r] == 0 && c.usable[r] {
					next = append(next, r)
				}
			}
		}
		ready, next = next, ready
	}
	return log
}

func everything(int32) bool { return true }
