package graph

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// solution is a set of units whose removal solves a problem.
type solution struct {
	units []int32 // sorted
	cost  int
	bound int // no set costs less
}

// exactUnits is the size from which most of the time goes into good solutions,
// since no proof is to be expected.
const exactUnits = 1500

// solve looks for the cheapest solution until the deadline. It is an implicit
// hitting set solver (Moreno-Centeno and Karp, "The Implicit Hitting Set
// Approach to Solve Combinatorial Optimization Problems", 2013): the rows found
// so far are hit as cheaply as possible; a set that solves the problem then is
// optimal, and any other leaves a witness, which is a new row. While rows are
// few they are hit by a heuristic, and each set is completed and made minimal,
// which is also the search for good solutions.
func (x *problem) solve(deadline time.Time) solution {
	h := newHitter(x)
	begin := time.Now()
	part := func(of float64) time.Time { return begin.Add(time.Duration(of * float64(deadline.Sub(begin)))) }
	var best []bool
	if s := newSifter(x); s != nil {
		best = s.search(20, part(0.2))
		if len(x.units) > exactUnits {
			best = s.search(math.MaxInt, part(0.6))
		}
		h.add(s.loops(best, part(0.8)))
	} else {
		best = x.minimal(x.greedy(), part(0.3))
	}
	cost := x.cost(best)
	keep := func(cut []bool) {
		if c := x.cost(cut); c < cost {
			best, cost = cut, c
		}
	}
	bound := 0
	if len(h.rows) == 0 {
		h.add(x.witnesses(make([]bool, len(x.units)), part(0.8)))
	}
	late := func() bool { return !time.Now().Before(deadline) }
	for !late() {
		// Cheap sets first, until one of them solves it.
		lower := h.ascend(60, cost)
		bound = max(bound, lower)
		if bound >= cost {
			break
		}
		cut := h.heuristic()
		rows := x.witnesses(cut, deadline)
		if len(rows) == 0 && !x.solved(cut) {
			break // no time
		}
		if len(rows) > 0 {
			h.add(rows)
			for _, row := range rows {
				cut[x.cheapest(row)] = true
			}
			if x.solved(cut) {
				keep(x.minimal(cut, deadline))
			}
			continue
		}
		keep(x.minimal(slices.Clone(cut), deadline))
		if bound >= cost {
			break
		}
		// The rows are hit; is there a cheaper way to hit them?
		exact, proven, ok := h.exact(cost, deadline)
		bound = max(bound, min(proven, cost))
		if !ok {
			break
		}
		if exact == nil { // nothing cheaper than what is known
			bound = cost
			break
		}
		rows = x.witnesses(exact, deadline)
		if len(rows) == 0 && !x.solved(exact) {
			break // no time
		}
		if len(rows) == 0 {
			best, cost = exact, x.cost(exact)
			bound = cost
			break
		}
		h.add(rows)
	}
	if bound < cost {
		x.improve(best, deadline, keep)
	}
	s := solution{cost: cost, bound: min(bound, cost)}
	for u, in := range best {
		if in {
			s.units = append(s.units, int32(u))
		}
	}
	return s
}

func (x *problem) cost(cut []bool) int {
	c := 0
	for u, in := range cut {
		if in {
			c += x.units[u].weight
		}
	}
	return c
}

func (x *problem) cheapest(row []int32) int32 {
	return slices.MinFunc(row, func(a, b int32) int { return cmp.Compare(x.units[a].weight, x.units[b].weight) })
}

// greedy opens the cheapest way back, again and again.
func (x *problem) greedy() []bool {
	cut := make([]bool, len(x.units))
	for {
		up := x.rise(cut)
		best, cheapest := -1, math.MaxInt
		for w := range x.ways {
			if !slices.ContainsFunc(x.ways[w].restores, func(p int32) bool { return !up[p] }) {
				continue
			}
			sum := 0
			for _, u := range x.ways[w].units {
				if !cut[u] && (x.units[u].dead || slices.ContainsFunc(x.units[u].needs, func(q int32) bool { return !up[q] })) {
					sum += x.units[u].weight
				}
			}
			if sum < cheapest {
				best, cheapest = w, sum
			}
		}
		if best < 0 {
			return cut
		}
		for _, u := range x.ways[best].units {
			if x.units[u].dead || slices.ContainsFunc(x.units[u].needs, func(q int32) bool { return !up[q] }) {
				cut[u] = true
			}
		}
	}
}

// minimal takes back what need not be cut, the heaviest first, as far as there
// is time. It changes cut.
func (x *problem) minimal(cut []bool, deadline time.Time) []bool {
	var in []int32
	for u := range cut {
		if cut[u] {
			in = append(in, int32(u))
		}
	}
	slices.SortStableFunc(in, func(a, b int32) int { return cmp.Compare(x.units[b].weight, x.units[a].weight) })
	for _, u := range in {
		if !time.Now().Before(deadline) {
			break
		}
		if cut[u] = false; !x.solved(cut) {
			cut[u] = true
		}
	}
	return cut
}

// improve searches in the neighbourhood of a solution until the deadline: cut
// one unit more, and take back what that makes needless.
func (x *problem) improve(from []bool, deadline time.Time, keep func([]bool)) {
	current := slices.Clone(from)
	state := uint64(1)
	for time.Now().Before(deadline) {
		next := slices.Clone(current)
		for range 1 + state>>62 {
			state = state*6364136223846793005 + 1442695040888963407 // Knuth's MMIX generator
			next[(state>>33)%uint64(len(next))] = true
		}
		if next = x.minimal(next, deadline); x.cost(next) <= x.cost(current) {
			current = next
			keep(slices.Clone(current))
		}
	}
}

// hitter hits rows: sets of units of each of which one has to be taken.
type hitter struct {
	weight []float64
	rows   [][]int32
	of     [][]int32 // unit → rows
	price  []float64 // of each row: its multiplier
}

func newHitter(x *problem) *hitter {
	h := &hitter{weight: make([]float64, len(x.units)), of: make([][]int32, len(x.units))}
	for u := range x.units {
		h.weight[u] = float64(x.units[u].weight)
	}
	return h
}

func (h *hitter) add(rows [][]int32) {
	for _, row := range rows {
		for _, u := range row {
			h.of[u] = append(h.of[u], int32(len(h.rows)))
		}
		h.rows = append(h.rows, row)
		h.price = append(h.price, 0)
	}
}

// ceiling is the least whole cost that a bound allows.
func ceiling(bound float64) int { return int(math.Ceil(bound - 1e-6)) }

// ascend improves the prices by subgradient steps, and returns a lower bound of
// what hitting all rows costs (Held and Karp, 1971; Beasley, "An algorithm for
// set covering problem", 1987).
func (h *hitter) ascend(steps int, upper int) int {
	n := node{free: h.all(), rows: h.allRows()}
	return ceiling(h.lagrange(&n, steps, float64(upper)))
}

func (h *hitter) all() []int8 { return make([]int8, len(h.weight)) }

func (h *hitter) allRows() []int32 {
	rows := make([]int32, len(h.rows))
	for i := range rows {
		rows[i] = int32(i)
	}
	return rows
}

// node is a part of the search: some units are taken (1) or refused (-1), and
// the rows are those that are not hit by what is taken.
type node struct {
	free []int8
	rows []int32
	base float64 // what is taken costs
}

// lagrange returns the best lower bound that it finds for a node: prices of
// rows, and units at their weight less the prices of the rows that they hit.
func (h *hitter) lagrange(n *node, steps int, upper float64) float64 {
	best, scale := math.Inf(-1), 1.0
	var bestPrice []float64
	reduced := make([]float64, len(h.weight))
	stale := 0
	for step := 0; ; step++ {
		bound := n.base
		for _, i := range n.rows {
			for _, u := range h.rows[i] {
				reduced[u] = h.weight[u]
			}
		}
		for _, i := range n.rows {
			bound += h.price[i]
			for _, u := range h.rows[i] {
				reduced[u] -= h.price[i]
			}
		}
		// Each unit with a negative reduced weight is taken once.
		slack := make([]float64, len(n.rows))
		norm := 0.0
		for k, i := range n.rows {
			slack[k] = 1
			for _, u := range h.rows[i] {
				if n.free[u] == 0 && reduced[u] < 0 {
					slack[k]--
				}
			}
		}
		for _, i := range n.rows {
			for _, u := range h.rows[i] {
				if n.free[u] == 0 && reduced[u] < 0 {
					bound += reduced[u]
					reduced[u] = 0 // counted
				}
			}
		}
		if bound > best+1e-9 {
			best, bestPrice, stale = bound, h.pricesOf(n.rows), 0
		} else if stale++; stale >= 8 {
			scale, stale = scale/2, 0
		}
		if step >= steps || ceiling(best) >= int(upper) || scale < 1e-3 {
			break
		}
		for k, i := range n.rows {
			if slack[k] < 0 && h.price[i] == 0 {
				slack[k] = 0
			}
			norm += slack[k] * slack[k]
		}
		if norm == 0 {
			break
		}
		length := scale * (1.05*upper - bound) / norm
		for k, i := range n.rows {
			h.price[i] = max(0, h.price[i]+length*slack[k])
		}
	}
	for k, i := range n.rows {
		h.price[i] = bestPrice[k]
	}
	return best
}

func (h *hitter) pricesOf(rows []int32) []float64 {
	out := make([]float64, len(rows))
	for k, i := range rows {
		out[k] = h.price[i]
	}
	return out
}

// reduced returns the weight of each unit, less the prices of the rows that it
// hits.
func (h *hitter) reduced(rows []int32) []float64 {
	out := slices.Clone(h.weight)
	for _, i := range rows {
		for _, u := range h.rows[i] {
			out[u] -= h.price[i]
		}
	}
	return out
}

// heuristic hits all rows: again and again with the unit that costs least, at
// the prices found, for each row that it hits; then without those that are not
// needed.
func (h *hitter) heuristic() []bool {
	n := node{free: h.all(), rows: h.allRows()}
	cut := make([]bool, len(h.weight))
	reduced := h.reduced(n.rows)
	hit := make([]int, len(h.rows))
	gain := make([]int, len(h.weight))
	for u := range h.of {
		gain[u] = len(h.of[u])
	}
	left := len(h.rows)
	var taken []int
	for left > 0 {
		best, cheapest := -1, math.Inf(1)
		for u := range cut {
			if cut[u] || gain[u] == 0 {
				continue
			}
			score := reduced[u]
			if score > 0 {
				score /= float64(gain[u])
			} else {
				score *= float64(gain[u])
			}
			if score < cheapest {
				best, cheapest = u, score
			}
		}
		cut[best] = true
		taken = append(taken, best)
		for _, i := range h.of[best] {
			if hit[i]++; hit[i] == 1 {
				left--
				for _, u := range h.rows[i] {
					gain[u]--
				}
			}
		}
	}
	slices.SortStableFunc(taken, func(a, b int) int { return cmp.Compare(h.weight[b], h.weight[a]) })
	for _, u := range taken {
		if !slices.ContainsFunc(h.of[u], func(i int32) bool { return hit[i] == 1 }) {
			cut[u] = false
			for _, i := range h.of[u] {
				hit[i]--
			}
		}
	}
	return cut
}

// exact returns the cheapest set that hits all rows, if it costs less than
// upper; nil if none does. Proven is a lower bound of any set's cost, and ok
// reports that the search was finished. It is branch and bound over Lagrangian
// bounds, with units fixed by their reduced weights.
func (h *hitter) exact(upper int, deadline time.Time) (best []bool, proven int, ok bool) {
	s := &search{hitter: h, upper: upper, deadline: deadline, root: -1}
	prices := slices.Clone(h.price)
	s.branch(node{free: h.all(), rows: h.allRows()}, 200)
	h.price = prices
	if s.late {
		return nil, s.root, false
	}
	return s.best, s.upper, true
}

// search is one call of exact.
type search struct {
	*hitter
	upper    int // what the best costs, or what it has to be cheaper than
	best     []bool
	root     int // the bound at the root, -1 before it is known
	deadline time.Time
	late     bool
}

// branch searches what n leaves open.
func (s *search) branch(n node, steps int) {
	if s.late = s.late || !time.Now().Before(s.deadline); s.late {
		return
	}
	if len(n.rows) == 0 {
		if cost := ceiling(n.base); cost < s.upper {
			s.upper = cost
			s.best = make([]bool, len(n.free))
			for u, x := range n.free {
				s.best[u] = x > 0
			}
		}
		return
	}
	bound := s.lagrange(&n, steps, float64(s.upper))
	if s.root < 0 {
		s.root = ceiling(bound)
	}
	if ceiling(bound) >= s.upper {
		return
	}
	// Rows with one unit left, and units that the bound leaves no choice for.
	reduced := s.reduced(n.rows)
	for _, i := range n.rows {
		for _, u := range s.rows[i] {
			if n.free[u] == 0 && reduced[u] > 0 && ceiling(bound+reduced[u]) >= s.upper {
				n.free[u] = -1
			}
		}
	}
	row, fewest := int32(-1), math.MaxInt
	for _, i := range n.rows {
		open := 0
		for _, u := range s.rows[i] {
			if n.free[u] == 0 {
				open++
			}
		}
		if open < fewest {
			row, fewest = i, open
		}
	}
	if fewest == 0 {
		return
	}
	var open []int32
	for _, u := range s.rows[row] {
		if n.free[u] == 0 {
			open = append(open, u)
		}
	}
	// One of the row has to be taken; each is tried without those before it.
	slices.SortStableFunc(open, func(a, b int32) int { return cmp.Compare(reduced[a], reduced[b]) })
	for _, u := range open {
		next := node{free: slices.Clone(n.free), base: n.base + s.weight[u]}
		next.free[u] = 1
		for _, i := range n.rows {
			if !slices.Contains(s.rows[i], u) {
				next.rows = append(next.rows, i)
			}
		}
		s.branch(next, 25)
		n.free[u] = -1
	}
}
