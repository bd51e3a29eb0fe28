package graph

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// sifter searches for good solutions of a problem in which every pathway has
// one way back of its own: an order of recovery, in which the cut are the
// needs of what comes later. Moving one pathway changes its own needs and users
// alone, so that large problems are improved fast.
type sifter struct {
	x     *problem
	arcs  [][]arc // pathway → what it needs and what needs it
	key   []float64
	fixed []bool // units that are cut in any order
}

// arc joins a pathway to another.
type arc struct {
	other  int32
	unit   int32
	weight float64
	needs  bool // it needs the other; else the other needs it
}

// newSifter returns nil if some pathway has alternatives, shares its recipe with
// others, or needs several at once by one edge.
func newSifter(x *problem) *sifter {
	s := &sifter{x: x, arcs: make([][]arc, len(x.restoredBy)), key: make([]float64, len(x.restoredBy)), fixed: make([]bool, len(x.units))}
	for p, ways := range x.restoredBy {
		if len(ways) != 1 || len(x.ways[ways[0]].restores) != 1 {
			return nil
		}
		for _, u := range x.ways[ways[0]].units {
			v := &x.units[u]
			if v.dead || slices.Contains(v.needs, int32(p)) {
				s.fixed[u] = true
				continue
			}
			if len(v.needs) != 1 {
				return nil
			}
			q, w := v.needs[0], float64(v.weight)
			s.arcs[p] = append(s.arcs[p], arc{q, u, w, true})
			s.arcs[q] = append(s.arcs[q], arc{int32(p), u, w, false})
		}
	}
	return s
}

// start orders by the difference of what hangs on a pathway and what it hangs
// on, taking first what needs nothing that is left (Eades, Lin and Smyth, "A
// fast and effective heuristic for the feedback arc set problem", 1993).
func (s *sifter) start() {
	n := len(s.key)
	score := make([]float64, n)
	needs := make([]float64, n)
	for p := range n {
		for _, a := range s.arcs[p] {
			if a.needs {
				score[p] -= a.weight
				needs[p] += a.weight
			} else {
				score[p] += a.weight
			}
		}
	}
	done := make([]bool, n)
	left := make([]int32, n)
	for i := range left {
		left[i] = int32(i)
	}
	var free []int32
	for p := range n {
		if needs[p] == 0 {
			free = append(free, int32(p))
		}
	}
	take := 0.0
	for len(left) > 0 {
		var p int32
		if len(free) > 0 {
			p = free[len(free)-1]
			free = free[:len(free)-1]
		} else {
			left = slices.DeleteFunc(left, func(q int32) bool { return done[q] })
			if len(left) == 0 {
				return
			}
			p = slices.MaxFunc(left, func(a, b int32) int { return cmp.Or(cmp.Compare(score[a], score[b]), cmp.Compare(b, a)) })
		}
		if done[p] {
			continue
		}
		done[p] = true
		s.key[p] = take
		take++
		for _, a := range s.arcs[p] {
			if done[a.other] {
				continue
			}
			if a.needs { // it waits for nothing any more: what it needs is worth less
				score[a.other] -= a.weight
			} else {
				score[a.other] += a.weight
				if needs[a.other] -= a.weight; needs[a.other] < 0.5 {
					free = append(free, a.other)
				}
			}
		}
	}
}

// best moves p where it costs least among its neighbours, and returns what that
// gains.
func (s *sifter) best(p int32) float64 {
	arcs := s.arcs[p]
	if len(arcs) == 0 {
		return 0
	}
	slices.SortFunc(arcs, func(a, b arc) int { return cmp.Compare(s.key[a.other], s.key[b.other]) })
	cost := 0.0 // at the very front: all of its needs come later
	now := 0.0
	for _, a := range arcs {
		if a.needs {
			cost += a.weight
		}
		if a.needs == (s.key[a.other] > s.key[p]) {
			now += a.weight
		}
	}
	least, at := cost, -1
	for i, a := range arcs {
		if a.needs {
			cost -= a.weight
		} else {
			cost += a.weight
		}
		if cost < least && (i+1 == len(arcs) || s.key[arcs[i+1].other] > s.key[a.other]) {
			least, at = cost, i
		}
	}
	if least >= now {
		return 0
	}
	switch {
	case at < 0:
		s.key[p] = s.key[arcs[0].other] - 1
	case at == len(arcs)-1:
		s.key[p] = s.key[arcs[at].other] + 1
	default:
		s.key[p] = (s.key[arcs[at].other] + s.key[arcs[at+1].other]) / 2
	}
	return now - least
}

// renumber makes the keys whole numbers again.
func (s *sifter) renumber() {
	order := make([]int32, len(s.key))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortStableFunc(order, func(a, b int32) int { return cmp.Compare(s.key[a], s.key[b]) })
	for i, p := range order {
		s.key[p] = float64(i)
	}
}

// settle moves pathways until none gains.
func (s *sifter) settle(deadline time.Time) {
	for pass := 0; ; pass++ {
		gain := 0.0
		for p := range int32(len(s.key)) {
			gain += s.best(p)
		}
		s.renumber()
		if gain <= 0 || !time.Now().Before(deadline) {
			return
		}
	}
}

// cut returns the units that the order cuts.
func (s *sifter) cut() []bool {
	cut := slices.Clone(s.fixed)
	for p, arcs := range s.arcs {
		for _, a := range arcs {
			if a.needs && s.key[a.other] > s.key[p] {
				cut[a.unit] = true
			}
		}
	}
	return cut
}

// search settles a first order, then disturbs it, each time a little somewhere
// else, and keeps what is no worse, for some rounds or until the deadline.
func (s *sifter) search(rounds int, deadline time.Time) []bool {
	s.start()
	s.renumber()
	s.settle(deadline)
	best := s.cut()
	cost := s.x.cost(best)
	random := rand.New(rand.NewPCG(1, uint64(len(s.key)))) // the same each time
	n := len(s.key)
	for range rounds {
		if !time.Now().Before(deadline) {
			break
		}
		before := slices.Clone(s.key)
		for range 1 + random.IntN(1+min(n/10, 8)) {
			p := random.IntN(n)
			s.key[p] = math.Floor(random.Float64()*float64(n)) + 0.5
		}
		s.settle(deadline)
		next := s.cut()
		if c := s.x.cost(next); c <= cost {
			best, cost = next, c
		} else {
			s.key = before
		}
	}
	return best
}

// loops returns for each unit that is cut a shortest cycle that it closes: rows
// that any solution hits.
func (s *sifter) loops(cut []bool, deadline time.Time) [][]int32 {
	n := len(s.key)
	parent := make([]int32, n) // the unit by which it was reached
	from := make([]int32, n)
	stamp := make([]int32, n)
	var rows [][]int32
	round := int32(0)
	for u, in := range cut {
		if s.fixed[u] {
			rows = append(rows, []int32{int32(u)})
			continue
		}
		if !in || !time.Now().Before(deadline) {
			continue
		}
		v := &s.x.units[u]
		end := s.x.ways[v.way].restores[0]
		round++
		queue := []int32{v.needs[0]}
		stamp[v.needs[0]] = round
	search:
		for i := 0; i < len(queue); i++ {
			p := queue[i]
			for _, a := range s.arcs[p] {
				if !a.needs || stamp[a.other] == round {
					continue
				}
				stamp[a.other], parent[a.other], from[a.other] = round, a.unit, p
				if a.other == end {
					row := []int32{int32(u)}
					for q := end; q != v.needs[0]; q = from[q] {
						row = append(row, parent[q])
					}
					slices.Sort(row)
					rows = append(rows, row)
					break search
				}
				queue = append(queue, a.other)
			}
		}
	}
	return rows
}
