package graph

import (
	"slices"
)

// Outage answers: these are down; what comes back, and what does not?
type Outage struct {
	Schema  string     `json:"schema"`
	Down    []string   `json:"down"`  // as asked
	Lost    []string   `json:"lost"`  // down, and with it what was spread to
	Waves   [][]string `json:"waves"` // of what comes back
	Stuck   []StuckIn  `json:"stuck"`
	Assumed Assumed    `json:"assumed"`
}

// StuckIn is a service that does not come back.
type StuckIn struct {
	Service string   `json:"service"`
	InCycle bool     `json:"in_cycle"` // it is in a cycle, not only behind one
	Because []string `json:"because"`  // as of Stuck
}

// OutageOptions say what is down. The zero value is nothing.
type OutageOptions struct {
	Down   []int // services
	All    bool  // everything
	Spread bool  // and all that needs them, directly or not
}

// Outage returns what comes back when some services are down, and the rest is
// healthy.
func (g *Graph) Outage(o OutageOptions) *Outage {
	lost := make([]bool, len(g.services))
	var down []int32
	for _, s := range o.Down {
		down = append(down, int32(s))
		lost[s] = true
	}
	if o.All {
		down = down[:0]
		for s := range g.services {
			down = append(down, int32(s))
			lost[s] = true
		}
	}
	if o.Spread {
		for p, hit := range reach(g.radj, g.pathways(down...), nil) {
			if hit {
				lost[g.owner[p]] = true
			}
		}
	}
	isLost := func(s int32) bool { return lost[s] }
	f := g.comeBack(func(p int32) bool { return lost[g.owner[p]] }, nil)
	out := &Outage{Schema: schemaOf("outage"), Down: g.names(down), Waves: g.waves(f, isLost), Stuck: g.explain(f, isLost), Assumed: g.Assumed()}
	var all []int32
	for s, is := range lost {
		if is {
			all = append(all, int32(s))
		}
	}
	out.Lost = g.names(all)
	return out
}

// explain gives each service that f leaves down its smallest reason. A pathway
// without any recipe that counts is its own reason; else a shortest cycle in
// each component of what is stuck is one, and every recipe of a pathway blames
// the need that is nearest to a reason. What follows from that is enough: no
// pathway on the way has a recipe whose needs are all elsewhere.
func (g *Graph) explain(f *rise, within func(service int32) bool) []StuckIn {
	n := g.core.pathways
	up := make([]bool, n)
	var stuck []int32
	for p := range int32(n) {
		if up[p] = f.up(p); !up[p] {
			stuck = append(stuck, p)
		}
	}
	if len(stuck) == 0 {
		return []StuckIn{}
	}
	var links pairs
	dead := make([]bool, n)
	for _, p := range stuck {
		dead[p] = true
		for _, r := range g.restoredBy.of(p) {
			if !g.usable[r] {
				continue
			}
			dead[p] = false
			for _, q := range g.needs.of(r) {
				if !up[q] {
					links.add(p, q)
				}
			}
		}
	}
	adj := newCSR(n, links)
	distance, next, cyclic := g.blameDistance(adj, up, dead, stuck)
	var blames pairs
	for _, p := range stuck {
		for _, r := range g.restoredBy.of(p) {
			if !g.usable[r] {
				continue
			}
			best := int32(-1)
			for _, q := range g.needs.of(r) {
				if up[q] {
					continue
				}
				if q == next[p] {
					best = q
					break
				}
				if best < 0 || distance[q] < distance[best] {
					best = q
				}
			}
			if best >= 0 {
				blames.add(p, best)
			}
		}
	}
	because := g.reasons(newCSR(n, blames), up, dead)
	out := []StuckIn{}
	for s := range int32(len(g.services)) {
		if within != nil && !within(s) || g.back(f, s) {
			continue
		}
		x := StuckIn{Service: g.services[s].Name}
		var least []int32
		for p := g.first[s]; p < g.first[s+1]; p++ {
			if up[p] {
				continue
			}
			x.InCycle = x.InCycle || cyclic[p]
			if least == nil || len(because[p]) < len(least) {
				least = because[p]
			}
		}
		x.Because = g.names(least)
		out = append(out, x)
	}
	return out
}

// blameDistance returns how far each stuck pathway is from a reason, the next
// of those on a chosen cycle (else -1), and which are in a cycle.
func (g *Graph) blameDistance(adj csr, up, dead []bool, stuck []int32) (distance, next []int32, cyclic []bool) {
	n := len(up)
	distance, next, cyclic = make([]int32, n), make([]int32, n), make([]bool, n)
	for p := range n {
		distance[p], next[p] = -1, -1
	}
	var queue []int32
	cs := findComponents(adj, up)
	finder := newCycleFinder(adj)
	for i := range int32(cs.count()) {
		if !cs.cyclic(adj, i) {
			continue
		}
		for _, p := range cs.members(i) {
			cyclic[p] = true
		}
		path := finder.shortest(cs.members(i))
		for k, p := range path {
			next[p] = path[(k+1)%len(path)]
			distance[p] = 0
			queue = append(queue, p)
		}
	}
	for _, p := range stuck {
		if dead[p] {
			distance[p] = 0
			queue = append(queue, p)
		}
	}
	slices.Sort(queue)
	radj := adj.reversed(n)
	for i := 0; i < len(queue); i++ {
		for _, p := range radj.of(queue[i]) {
			if distance[p] < 0 {
				distance[p] = distance[queue[i]] + 1
				queue = append(queue, p)
			}
		}
	}
	return distance, next, cyclic
}

// reasons returns the services of all cycles and dead pathways that each stuck
// pathway leads to by blames. Pathways that lead to the same share a slice.
func (g *Graph) reasons(blames csr, up, dead []bool) [][]int32 {
	cs := findComponents(blames, up)
	of := make([][]int32, cs.count())
	because := make([][]int32, len(up))
	for i := range int32(cs.count()) {
		members := cs.members(i)
		var own []int32
		if cs.cyclic(blames, i) || dead[members[0]] {
			own = g.fold(members)
		}
		var from int32 = -1 // the one component that all of own is from
		for _, p := range members {
			for _, q := range blames.of(p) {
				j := cs.of[q]
				if j == i || j == from {
					continue
				}
				if own == nil {
					own, from = of[j], j
					continue
				}
				own = slices.Concat(own, of[j])
				slices.Sort(own)
				own, from = slices.Compact(own), -1
			}
		}
		of[i] = own
		for _, p := range members {
			because[p] = own
		}
	}
	return because
}
