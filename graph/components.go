package graph

import "slices"

// Component is a set of services that need each other, directly or not, or one
// service that needs nobody who needs it.
type Component struct {
	Services []int // sorted
	Layer    int   // one more than the highest layer of what it needs; 0 for nothing
	Cyclic   bool  // it has a cycle, be it one of length one
}

// Condensation is the graph of services with the members of every component
// drawn together. Of is the component of each service. A component's services
// are those of a component of pathways, joined with others that share a service
// with it; hence services may still need each other both ways through pathways
// that are no cycle, and then an edge goes to the same layer or a higher one.
type Condensation struct {
	Components []Component
	Of         []int // service → component
}

// Condense returns the condensation, with components sorted by layer, then by
// their first service.
func (g *Graph) Condense() Condensation {
	cs := findComponents(g.adj, nil)
	layer := cs.layers(g.adj)
	// Services that share a component of pathways with a cycle are joined.
	head := make([]int, len(g.services))
	for i := range head {
		head[i] = i
	}
	find := func(i int) int {
		for head[i] != i {
			head[i] = head[head[i]]
			i = head[i]
		}
		return i
	}
	top := make([]int32, len(g.services))
	cyclic := make([]bool, len(g.services))
	for i := range int32(cs.count()) {
		members := cs.members(i)
		loop := cs.cyclic(g.adj, i)
		for _, p := range members {
			s := g.owner[p]
			top[s] = max(top[s], layer[i])
			cyclic[s] = cyclic[s] || loop
			if a, b := find(int(s)), find(int(g.owner[members[0]])); a != b {
				head[max(a, b)] = min(a, b)
			}
		}
	}
	at := make([]int, len(g.services))
	var c Condensation
	c.Of = make([]int, len(g.services))
	for s := range g.services {
		h := find(s)
		if h == s {
			at[s] = len(c.Components)
			c.Components = append(c.Components, Component{})
		}
		x := &c.Components[at[h]]
		x.Services = append(x.Services, s)
		x.Layer = max(x.Layer, int(top[s]))
		x.Cyclic = x.Cyclic || cyclic[s]
	}
	slices.SortStableFunc(c.Components, func(a, b Component) int { return a.Layer - b.Layer })
	for i, x := range c.Components {
		for _, s := range x.Services {
			c.Of[s] = i
		}
	}
	return c
}

// Needs returns the services that a service needs, sorted: the edges of a
// picture. The analysis is that of pathways; see the package comment.
func (g *Graph) Needs(s int) []int { return g.neighbours(g.adj, s) }

// NeededBy returns the services that need a service, sorted.
func (g *Graph) NeededBy(s int) []int { return g.neighbours(g.radj, s) }

func (g *Graph) neighbours(c csr, s int) []int {
	var out []int
	for p := g.first[s]; p < g.first[s+1]; p++ {
		for _, q := range c.of(p) {
			out = append(out, int(g.owner[q]))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// layers returns the layers of the condensation by service.
func (g *Graph) layers() [][]int32 {
	cs := findComponents(g.adj, nil)
	layer := cs.layers(g.adj)
	var out [][]int32
	for s := range int32(len(g.services)) {
		l := int32(0)
		for p := g.first[s]; p < g.first[s+1]; p++ {
			l = max(l, layer[cs.of[p]])
		}
		for int(l) >= len(out) {
			out = append(out, nil)
		}
		out[l] = append(out[l], s)
	}
	return out
}
