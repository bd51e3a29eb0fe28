package graph

import (
	"cmp"
	"container/heap"
	"slices"
	"strings"
)

// Order answers: in which order does everything come back from nothing?
type Order struct {
	Schema string     `json:"schema"`
	Waves  [][]string `json:"waves"` // each sorted
	Stuck  []Stuck    `json:"stuck"` // by service
	// Layers are those of the condensation: every service is in one.
	Layers [][]string `json:"layers"`
	// Seconds is the time until all is back, with enough hands; nil if
	// anything is stuck.
	Seconds *float64 `json:"seconds"`
	// CriticalPath are the services that it takes, in the order in which they
	// come back; of what does come back, if anything is stuck.
	CriticalPath []string `json:"critical_path"`
	// Schedule has the start and end of each service that comes back.
	Schedule []Slot `json:"schedule"`
	// Unmeasured are recipes in use that have neither results nor an estimate,
	// and count as no time.
	Unmeasured int       `json:"unmeasured"`
	Parallel   *Parallel `json:"parallel,omitempty"`
	Assumed    Assumed   `json:"assumed"`
}

// Stuck is a service that does not come back, and the smallest reason: the
// services of a cycle that it is in or behind, or one that has no way out.
type Stuck struct {
	Service string   `json:"service"`
	Because []string `json:"because"`
}

// Slot is when a service is being recovered, in seconds from the start.
type Slot struct {
	Service string  `json:"service"`
	Recipe  string  `json:"recipe"`
	Start   float64 `json:"start"`
	End     float64 `json:"end"`
}

// Parallel is a plan for a number of hands.
type Parallel struct {
	Hands   int     `json:"hands"`
	Seconds float64 `json:"seconds"` // until all that can come back is back
	Bound   float64 `json:"bound"`   // it cannot be done in less
	Plan    []Slot  `json:"plan"`    // by start
}

// Order returns the order of recovery from nothing; hands, if positive, adds a
// plan for so many at once.
func (g *Graph) Order(hands int) *Order {
	f := g.comeBack(everything, nil)
	o := &Order{Schema: schemaOf("order"), Waves: g.waves(f, nil), Stuck: []Stuck{}, Layers: [][]string{}, CriticalPath: []string{}, Assumed: g.Assumed()}
	for _, s := range g.explain(f, nil) {
		o.Stuck = append(o.Stuck, Stuck{s.Service, s.Because})
	}
	for _, layer := range g.layers() {
		o.Layers = append(o.Layers, g.names(layer))
	}
	t := g.fastest(f)
	last := float64(0)
	for p := range t.end {
		if f.up(int32(p)) {
			last = max(last, t.end[p])
		}
	}
	if len(o.Stuck) == 0 {
		o.Seconds = &last
	}
	o.CriticalPath = g.critical(f, t)
	o.Schedule, o.Unmeasured = g.slots(f, t)
	if hands > 0 {
		o.Parallel = g.plan(f, t, hands)
	}
	return o
}

// waves folds rounds into services: one is in the wave of its last pathway.
// Services that are assumed, and those for which within does not hold, are in
// none; within may be nil.
func (g *Graph) waves(f *rise, within func(service int32) bool) [][]string {
	waves := make([][]string, f.rounds+1)
	for s := range int32(len(g.services)) {
		if within != nil && !within(s) {
			continue
		}
		w := int32(0)
		for p := g.first[s]; p < g.first[s+1]; p++ {
			if !f.up(p) {
				w = never
				break
			}
			w = max(w, f.wave[p])
		}
		if w > 0 {
			waves[w] = append(waves[w], g.services[s].Name)
		}
	}
	return slices.DeleteFunc(waves, func(w []string) bool { return len(w) == 0 })
}

// times are the earliest times at which pathways can be back.
type times struct {
	end    []float64 // pathway
	chosen []int32   // pathway: the recipe by which it is back first, or -1
	start  []float64 // recipe
}

func (g *Graph) seconds(r int32) float64 {
	if s := g.recipes[r].Seconds; s != nil && *s > 0 {
		return *s
	}
	return 0
}

// fastest computes the earliest times, from what f has up at the start: Knuth's
// generalisation of Dijkstra's algorithm to alternatives ("A generalization of
// Dijkstra's algorithm", 1977).
func (g *Graph) fastest(f *rise) *times {
	t := &times{end: make([]float64, g.core.pathways), chosen: make([]int32, g.core.pathways), start: make([]float64, g.ways)}
	up := make([]bool, g.core.pathways)
	missing := make([]int32, g.ways)
	var q agenda
	for p := range t.chosen {
		t.chosen[p] = -1
		up[p] = f.wave[p] == 0
	}
	for r := range int32(g.ways) {
		for _, p := range g.needs.of(r) {
			if !up[p] {
				missing[r]++
			}
		}
		if missing[r] == 0 && g.usable[r] {
			q = append(q, due{g.seconds(r), r})
		}
	}
	heap.Init(&q)
	for len(q) > 0 {
		d := heap.Pop(&q).(due)
		for _, p := range g.restores.of(d.recipe) {
			if up[p] || f.wave[p] == never {
				continue
			}
			up[p], t.end[p], t.chosen[p] = true, d.at, d.recipe
			for _, r := range g.users.of(p) {
				t.start[r] = max(t.start[r], d.at)
				if missing[r]--; missing[r] == 0 && g.usable[r] {
					heap.Push(&q, due{t.start[r] + g.seconds(r), r})
				}
			}
		}
	}
	return t
}

// due is a recipe and the time at which it is done.
type due struct {
	at     float64
	recipe int32
}

type agenda []due

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	return a[i].at < a[j].at || a[i].at == a[j].at && a[i].recipe < a[j].recipe
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(due)) }
func (a *agenda) Pop() any {
	last := len(*a) - 1
	x := (*a)[last]
	*a = (*a)[:last]
	return x
}

// critical returns the services without whose delay nothing is late.
func (g *Graph) critical(f *rise, t *times) []string {
	at := int32(-1)
	for p := range int32(g.core.pathways) {
		if f.up(p) && t.chosen[p] >= 0 && (at < 0 || t.end[p] > t.end[at]) {
			at = p
		}
	}
	path := []string{}
	for at >= 0 {
		if name := g.services[g.owner[at]].Name; len(path) == 0 || path[len(path)-1] != name {
			path = append(path, name)
		}
		next := int32(-1)
		for _, q := range g.needs.of(t.chosen[at]) {
			if t.chosen[q] >= 0 && (next < 0 || t.end[q] > t.end[next]) {
				next = q
			}
		}
		at = next
	}
	slices.Reverse(path)
	return path
}

// slots returns when each service that comes back does, and how many recipes
// in use have no known duration.
func (g *Graph) slots(f *rise, t *times) ([]Slot, int) {
	out := []Slot{}
	unmeasured := map[int32]bool{}
	for s := range int32(len(g.services)) {
		var x *Slot
		for p := g.first[s]; p < g.first[s+1] && g.back(f, s); p++ {
			r := t.chosen[p]
			if r < 0 {
				continue
			}
			if g.recipes[r].Seconds == nil {
				unmeasured[r] = true
			}
			if x == nil {
				out = append(out, Slot{Service: g.services[s].Name, Recipe: g.recipes[r].Label, Start: t.start[r], End: t.end[p]})
				x = &out[len(out)-1]
			}
			x.Start = min(x.Start, t.start[r])
			if t.end[p] > x.End {
				x.End, x.Recipe = t.end[p], g.recipes[r].Label
			}
		}
	}
	return out, len(unmeasured)
}

// plan schedules the recipes of t on a number of hands: whenever a hand is
// free, the ready recipe goes first that the longest chain waits for (Hu's rule;
// at most 2 - 1/hands times the best, Graham 1969).
func (g *Graph) plan(f *rise, t *times, hands int) *Parallel {
	pl := &Parallel{Hands: hands, Plan: []Slot{}}
	var tasks []int32
	for p := range int32(g.core.pathways) {
		if t.chosen[p] >= 0 {
			tasks = append(tasks, t.chosen[p])
		}
	}
	slices.SortFunc(tasks, func(a, b int32) int { return cmp.Or(cmp.Compare(t.start[a], t.start[b]), cmp.Compare(a, b)) })
	tasks = slices.Compact(tasks)
	// In this order needs come before what needs them, but for recipes without
	// a duration, which start together; so go by what is ready.
	missing, tail := map[int32]int{}, map[int32]float64{}
	users := map[int32][]int32{}
	for _, r := range tasks {
		seen := map[int32]bool{}
		for _, q := range g.needs.of(r) {
			if w := t.chosen[q]; w >= 0 && w != r && !seen[w] {
				seen[w] = true
				missing[r]++
				users[w] = append(users[w], r)
			}
		}
	}
	var sorted []int32
	left := map[int32]int{}
	for _, r := range tasks {
		if left[r] = missing[r]; left[r] == 0 {
			sorted = append(sorted, r)
		}
	}
	for i := 0; i < len(sorted); i++ {
		for _, u := range users[sorted[i]] {
			if left[u]--; left[u] == 0 {
				sorted = append(sorted, u)
			}
		}
	}
	work := float64(0)
	for _, r := range slices.Backward(sorted) {
		for _, u := range users[r] {
			tail[r] = max(tail[r], tail[u])
		}
		tail[r] += g.seconds(r)
		work += g.seconds(r)
		pl.Bound = max(pl.Bound, tail[r])
	}
	pl.Bound = max(pl.Bound, work/float64(hands))

	var ready, running agenda // ready is ordered by tail, the longest first
	for _, r := range tasks {
		if missing[r] == 0 {
			ready = append(ready, due{-tail[r], r})
		}
	}
	heap.Init(&ready)
	now := float64(0)
	for len(ready) > 0 || len(running) > 0 {
		for len(ready) > 0 && len(running) < hands {
			r := heap.Pop(&ready).(due).recipe
			pl.Plan = append(pl.Plan, Slot{Service: g.recipes[r].Service, Recipe: g.recipes[r].Label, Start: now, End: now + g.seconds(r)})
			heap.Push(&running, due{now + g.seconds(r), r})
		}
		d := heap.Pop(&running).(due)
		now = d.at
		for _, u := range users[d.recipe] {
			if missing[u]--; missing[u] == 0 {
				heap.Push(&ready, due{-tail[u], u})
			}
		}
	}
	pl.Seconds = now
	slices.SortStableFunc(pl.Plan, func(a, b Slot) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), strings.Compare(a.Recipe, b.Recipe))
	})
	return pl
}
