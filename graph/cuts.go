package graph

import (
	"cmp"
	"slices"
	"time"
)

// Cuts answers: what is the least that has to change so that everything comes
// back?
type Cuts struct {
	Schema string `json:"schema"`
	// Cuts are conditions to live without: with all of them gone, every
	// service comes back that has a recipe which counts.
	Cuts []Cut `json:"cuts"`
	// Cost is the sum of their efforts; Bound is a proven lower bound of what
	// any such set costs; Exact reports that they are equal.
	Cost     int      `json:"cost"`
	Bound    int      `json:"bound"`
	Exact    bool     `json:"exact"`
	Hopeless []string `json:"hopeless"` // services that no cut brings back: no recipe of theirs counts
	Assumed  Assumed  `json:"assumed"`
}

// Cut is an edge to cut.
type Cut struct {
	Edge
	// Frees is how many services stay stuck if all other cuts are made and
	// this one is not.
	Frees int `json:"frees"`
}

// CutBudget is the time that Cuts takes at most, if it is not told.
const CutBudget = 2 * time.Second

// Cuts returns the cheapest set of edges whose removal lets everything come
// back, as far as it is found within the budget (CutBudget if 0).
//
// Each component of the graph is a problem of its own, since what it needs of
// others is back by then. A set of edges is good if and only if it hits every
// witness (see problem.witnesses), so it is a hitting set over rows found one by
// one, as a cutting-plane solver does; see hitting.go.
func (g *Graph) Cuts(budget time.Duration) *Cuts {
	if budget <= 0 {
		budget = CutBudget
	}
	out := &Cuts{Schema: schemaOf("cuts"), Cuts: []Cut{}, Exact: true, Hopeless: []string{}, Assumed: g.Assumed()}
	f := g.comeBack(everything, nil)
	problems := g.problems(findComponents(g.adj, nil), f, nil)
	deadline := time.Now().Add(budget)
	var cut []int32
	for i, p := range problems {
		// The time that is left is shared by size.
		size := 0
		for _, q := range problems[i:] {
			size += len(q.units)
		}
		left := time.Until(deadline)
		s := p.solve(time.Now().Add(left * time.Duration(len(p.units)) / time.Duration(max(size, 1))))
		out.Cost += s.cost
		out.Bound += s.bound
		out.Exact = out.Exact && s.cost == s.bound
		for _, u := range s.units {
			cut = append(cut, p.units[u].edge)
		}
	}
	slices.Sort(cut)
	cut = slices.Compact(cut)
	for i, n := range g.marginal(cut) {
		out.Cuts = append(out.Cuts, Cut{g.Edge(int(cut[i])), n})
	}
	slices.SortStableFunc(out.Cuts, func(a, b Cut) int { return cmp.Compare(b.Frees, a.Frees) })
	var hopeless []int32
	for p := range int32(g.core.pathways) {
		if g.hopeless(p) {
			hopeless = append(hopeless, g.owner[p])
		}
	}
	out.Hopeless = g.names(hopeless)
	return out
}

// hopeless reports whether a pathway stays down whatever is cut.
func (g *Graph) hopeless(p int32) bool {
	if g.assumed[p] {
		return g.down
	}
	return !slices.ContainsFunc(g.restoredBy.of(p), func(r int32) bool { return g.usable[r] })
}

// breaks returns the cheapest edges whose removal lets component i come back,
// once all else has; none if it comes back then anyway.
func (g *Graph) breaks(cs *components, f *rise, i int32, deadline time.Time) []Edge {
	var out []Edge
	for _, p := range g.problems(cs, f, func(j int32) bool { return i == j }) {
		for _, u := range p.solve(deadline).units {
			out = append(out, g.Edge(int(p.units[u].edge)))
		}
	}
	return out
}

// marginal returns for each edge of a cut how many services stay stuck if the
// others are cut and it is not. With all of them cut, what does not come back is
// hopeless; one edge less can only be felt by what needs its recipe's pathways,
// and there the fixpoint is computed anew.
func (g *Graph) marginal(cut []int32) []int {
	gone := map[int32]bool{}
	for _, e := range cut {
		gone[e] = true
	}
	var (
		out     = make([]int, len(cut))
		touched = make([]int32, g.core.pathways) // the round that reached it
		up      = make([]int32, g.core.pathways) // the round in which it came back
		missing = make([]int32, g.ways)
		counted = make([]int32, g.ways) // the round that counted missing
	)
	for i, e := range cut {
		round := int32(i) + 1
		gone[e] = false
		var reached []int32
		visit := func(p int32) {
			if touched[p] != round && !g.hopeless(p) && !g.assumed[p] {
				touched[p] = round
				reached = append(reached, p)
			}
		}
		for _, p := range g.restores.of(g.edges[e].recipe) {
			visit(p)
		}
		for k := 0; k < len(reached); k++ {
			for _, p := range g.radj.of(reached[k]) {
				visit(p)
			}
		}
		waits := func(q int32) bool { return touched[q] == round && up[q] != round || g.hopeless(q) }
		var ready []int32
		for _, p := range reached {
			for _, r := range g.restoredBy.of(p) {
				if counted[r] == round || !g.usable[r] {
					continue
				}
				counted[r], missing[r] = round, 0
				for k := g.needs.start[r]; k < g.needs.start[r+1]; k++ {
					if !gone[g.needEdge[k]] && waits(g.needs.to[k]) {
						missing[r]++
					}
				}
				if missing[r] == 0 {
					ready = append(ready, r)
				}
			}
		}
		for len(ready) > 0 {
			r := ready[len(ready)-1]
			ready = ready[:len(ready)-1]
			for _, p := range g.restores.of(r) {
				if touched[p] != round || up[p] == round {
					continue
				}
				up[p] = round
				for _, v := range g.users.of(p) {
					if counted[v] != round || len(gone) > 0 && g.cutBetween(gone, v, p) {
						continue
					}
					if missing[v]--; missing[v] == 0 {
						ready = append(ready, v)
					}
				}
			}
		}
		var stuck []int32
		for _, p := range reached {
			if up[p] != round {
				stuck = append(stuck, p)
			}
		}
		out[i] = len(g.fold(stuck))
		gone[e] = true
	}
	return out
}

// cutBetween reports whether the edge by which a recipe needs a pathway is gone.
func (g *Graph) cutBetween(gone map[int32]bool, r, q int32) bool {
	for k := g.needs.start[r]; k < g.needs.start[r+1]; k++ {
		if g.needs.to[k] == q {
			return gone[g.needEdge[k]]
		}
	}
	return false
}

// problem is a set of pathways that do not all come back, though all others
// do, and the units that could be cut: the least is looked for.
type problem struct {
	units      []unit
	ways       []way
	restoredBy [][]int32 // pathway → ways
	users      [][]int32 // pathway → units that need it
}

// unit is an edge, as its problem sees it.
type unit struct {
	edge   int32
	weight int
	way    int32
	needs  []int32 // pathways of the problem
	dead   bool    // it needs something that never comes back
}

// way is a recipe, as its problem sees it.
type way struct {
	restores []int32
	units    []int32
}

// problems returns what has to be solved, for all components or those for which
// only holds. Components that share a unit are one problem.
func (g *Graph) problems(cs *components, f *rise, only func(int32) bool) []*problem {
	// Components with something stuck, joined where they share an edge: a
	// recipe may restore pathways of several.
	head := map[int32]int32{}
	find := func(i int32) int32 {
		for head[i] != i {
			head[i] = head[head[i]]
			i = head[i]
		}
		return i
	}
	byEdge := map[int32]int32{}
	for p := range int32(g.core.pathways) {
		i := cs.of[p]
		if f.up(p) || g.hopeless(p) || only != nil && !only(i) {
			continue
		}
		if _, ok := head[i]; !ok {
			head[i] = i
		}
	}
	for p := range int32(g.core.pathways) {
		i := cs.of[p]
		if _, ok := head[i]; !ok || g.hopeless(p) {
			continue
		}
		for _, r := range g.restoredBy.of(p) {
			if !g.usable[r] {
				continue
			}
			for k := g.needs.start[r]; k < g.needs.start[r+1]; k++ {
				if q := g.needs.to[k]; cs.of[q] != i && !g.hopeless(q) {
					continue
				}
				j, ok := byEdge[g.needEdge[k]]
				if !ok {
					byEdge[g.needEdge[k]] = i
				} else if a, b := find(i), find(j); a != b {
					head[max(a, b)] = min(a, b)
				}
			}
		}
	}
	groups := map[int32][]int32{} // head → pathways
	var heads []int32
	for p := range int32(g.core.pathways) {
		if _, ok := head[cs.of[p]]; !ok || g.hopeless(p) {
			continue
		}
		h := find(cs.of[p])
		if groups[h] == nil {
			heads = append(heads, h)
		}
		groups[h] = append(groups[h], p)
	}
	var out []*problem
	for _, h := range heads {
		x := g.problem(groups[h])
		if !x.solved(nil) {
			out = append(out, x)
		}
	}
	return out
}

// problem makes one of some pathways.
func (g *Graph) problem(pathways []int32) *problem {
	x := &problem{}
	local := make(map[int32]int32, len(pathways))
	for i, p := range pathways {
		local[p] = int32(i)
	}
	x.restoredBy = make([][]int32, len(pathways))
	x.users = make([][]int32, len(pathways))
	ways := map[int32]int32{}
	for i, p := range pathways {
		for _, r := range g.restoredBy.of(p) {
			if !g.usable[r] {
				continue
			}
			w, ok := ways[r]
			if !ok {
				w = int32(len(x.ways))
				ways[r] = w
				x.ways = append(x.ways, way{})
				last := int32(-1)
				for k := g.needs.start[r]; k < g.needs.start[r+1]; k++ {
					q, inside := local[g.needs.to[k]]
					dead := g.hopeless(g.needs.to[k])
					if !inside && !dead {
						continue
					}
					e := g.needEdge[k]
					if e != last {
						last = e
						x.ways[w].units = append(x.ways[w].units, int32(len(x.units)))
						x.units = append(x.units, unit{edge: e, weight: int(g.edges[e].effort), way: w})
					}
					u := int32(len(x.units) - 1)
					if dead {
						x.units[u].dead = true
					} else {
						x.units[u].needs = append(x.units[u].needs, q)
						x.users[q] = append(x.users[q], u)
					}
				}
			}
			x.ways[w].restores = append(x.ways[w].restores, int32(i))
			x.restoredBy[i] = append(x.restoredBy[i], w)
		}
	}
	return x
}

// rise returns which pathways come back without the units that are cut.
func (x *problem) rise(cut []bool) []bool {
	up := make([]bool, len(x.restoredBy))
	open := make([]int32, len(x.units)) // needs of a unit that are not up
	waits := make([]int32, len(x.ways)) // units of a way that are not met
	var ready []int32
	for w := range x.ways {
		for _, u := range x.ways[w].units {
			if cut != nil && cut[u] {
				continue
			}
			open[u] = int32(len(x.units[u].needs))
			if x.units[u].dead {
				open[u]++
			}
			waits[w]++
		}
		if waits[w] == 0 {
			ready = append(ready, int32(w))
		}
	}
	for len(ready) > 0 {
		w := ready[len(ready)-1]
		ready = ready[:len(ready)-1]
		for _, p := range x.ways[w].restores {
			if up[p] {
				continue
			}
			up[p] = true
			for _, u := range x.users[p] {
				if cut != nil && cut[u] {
					continue
				}
				if open[u]--; open[u] == 0 {
					v := x.units[u].way
					if waits[v]--; waits[v] == 0 {
						ready = append(ready, v)
					}
				}
			}
		}
	}
	return up
}

// solved reports whether everything comes back without the units that are cut.
func (x *problem) solved(cut []bool) bool { return !slices.Contains(x.rise(cut), false) }

// witnesses returns sets of units, without any that is cut, one of which has to
// be cut: each holds, for some pathways, a unit of every way back to one of them
// that needs another of them, or what never comes back; so none of them is ever
// the first to come back. No unit is in two of the sets. For pathways with one
// way back each, these are cycles. There are fewer, or none, where there is no
// time left.
func (x *problem) witnesses(cut []bool, deadline time.Time) [][]int32 {
	cut = slices.Clone(cut)
	var out [][]int32
	for time.Now().Before(deadline) {
		up := x.rise(cut)
		found := x.witnessesOnce(cut, up)
		if len(found) == 0 {
			return out
		}
		for _, f := range found {
			for _, u := range f {
				cut[u] = true
			}
		}
		out = append(out, found...)
	}
	return out
}

// witnessesOnce returns the witnesses of one choice of units.
func (x *problem) witnessesOnce(cut, up []bool) [][]int32 {
	n := len(up)
	var links pairs
	doomed := make([]bool, n) // a way back needs what never comes back
	for p := range n {
		if up[p] {
			continue
		}
		for _, w := range x.restoredBy[p] {
			for _, u := range x.ways[w].units {
				if cut[u] {
					continue
				}
				doomed[p] = doomed[p] || x.units[u].dead
				for _, q := range x.units[u].needs {
					if !up[q] {
						links.add(int32(p), q)
					}
				}
			}
		}
	}
	adj := newCSR(n, links)
	cs := findComponents(adj, up)
	finder := newCycleFinder(adj)
	next, distance := make([]int32, n), make([]int32, n)
	var queue []int32
	for p := range n {
		next[p], distance[p] = -1, -1
		if doomed[p] {
			distance[p] = 0
			queue = append(queue, int32(p))
		}
	}
	for i := range int32(cs.count()) {
		if !cs.cyclic(adj, i) {
			continue
		}
		path := finder.shortest(cs.members(i))
		for k, p := range path {
			next[p] = path[(k+1)%len(path)]
			if distance[p] != 0 {
				distance[p] = 0
				queue = append(queue, p)
			}
		}
	}
	radj := adj.reversed(n)
	for i := 0; i < len(queue); i++ {
		for _, p := range radj.of(queue[i]) {
			if distance[p] < 0 {
				distance[p] = distance[queue[i]] + 1
				queue = append(queue, p)
			}
		}
	}
	// Every way back blames one unit, and one pathway that it needs.
	blamed := make([]int32, len(x.ways))
	var blames pairs
	for w := range x.ways {
		var to int32
		blamed[w], to = x.blame(&x.ways[w], cut, up, next, distance)
		if to >= 0 {
			for _, p := range x.ways[w].restores {
				if !up[p] {
					blames.add(p, to)
				}
			}
		}
	}
	return x.closed(newCSR(n, blames), up, blamed)
}

// blame returns the unit that a way waits for, and a pathway that this needs:
// the next of a chosen cycle, else one that is near to such; -1 where there is
// none, or what is needed never comes back.
func (x *problem) blame(w *way, cut, up []bool, next, distance []int32) (found, to int32) {
	found, to = -1, -1
	best := int32(0)
	for _, u := range w.units {
		if cut[u] {
			continue
		}
		if x.units[u].dead {
			return u, -1
		}
		for _, q := range x.units[u].needs {
			if up[q] {
				continue
			}
			d := distance[q]
			if slices.ContainsFunc(w.restores, func(p int32) bool { return next[p] == q }) {
				d = -1
			}
			if found < 0 || d < best {
				found, to, best = u, q, d
			}
		}
	}
	return found, to
}

// closed returns the witnesses among blames: components that blame nobody
// outside of themselves.
func (x *problem) closed(blames csr, up []bool, blamed []int32) [][]int32 {
	cs := findComponents(blames, up)
	var out [][]int32
	for i := range int32(cs.count()) {
		members := cs.members(i)
		if slices.ContainsFunc(members, func(p int32) bool {
			return slices.ContainsFunc(blames.of(p), func(q int32) bool { return cs.of[q] != i })
		}) {
			continue
		}
		var f []int32
		for _, p := range members {
			for _, w := range x.restoredBy[p] {
				f = append(f, blamed[w])
			}
		}
		slices.Sort(f)
		out = append(out, slices.Compact(f))
	}
	return out
}
