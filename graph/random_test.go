package graph

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"bj/fleet"
	"bj/lang/diag"
)

// randomFleet has alternatives, several pathways, services without recipes, and
// recipes that count for nothing.
func randomFleet(r *rand.Rand, services int) *fleet.Fleet {
	f := &fleet.Fleet{}
	for i := range services {
		s := &fleet.Service{Name: fmt.Sprintf("s%02d", i), Owner: "o", Kind: fleet.KindService}
		for k := range 1 + r.IntN(5)/3 {
			s.Pathways = append(s.Pathways, fleet.Pathway{Name: fmt.Sprintf("p%d", k)})
		}
		f.Services = append(f.Services, s)
	}
	for i, s := range f.Services {
		for k := range []int{0, 1, 1, 1, 2, 3}[r.IntN(6)] {
			x := &fleet.Recipe{Label: fmt.Sprintf("//r:s%02d-%d", i, k), Service: s.Name, Pos: diag.Pos{File: "f", Line: 1}}
			for _, p := range s.Pathways {
				if r.IntN(3) > 0 {
					x.Restores = append(x.Restores, p.Name)
				}
			}
			if x.Restores == nil {
				x.Restores = []string{s.Pathways[0].Name}
			}
			for range r.IntN(4) {
				to := f.Services[r.IntN(services)]
				c := fleet.Condition{Service: to.Name, Effort: 1 + r.IntN(3)}
				for _, p := range to.Pathways {
					if r.IntN(2) > 0 {
						c.Pathways = append(c.Pathways, p.Name)
					}
				}
				if c.Pathways != nil {
					x.Conditions = append(x.Conditions, c)
				}
			}
			if r.IntN(12) == 0 {
				x.Conditions = append(x.Conditions, fleet.Condition{Service: "*"})
			}
			f.Recipes = append(f.Recipes, x)
		}
	}
	return f
}

// comesBack is the least fixpoint by its definition, without some edges: which
// pathways come back.
func comesBack(f *fleet.Fleet, cut func(label, to string) bool, down bool, without string) map[[2]string]bool {
	up := map[[2]string]bool{}
	counts := func(r *fleet.Recipe) bool {
		return !slices.ContainsFunc(r.Conditions, func(c fleet.Condition) bool { return c.Service == "*" })
	}
	for _, s := range f.Services {
		for _, p := range s.Pathways {
			restored := slices.ContainsFunc(f.Recipes, func(r *fleet.Recipe) bool {
				return r.Service == s.Name && counts(r) && slices.Contains(r.Restores, p.Name)
			})
			if !restored && !down && s.Name != without {
				up[[2]string{s.Name, p.Name}] = true
			}
		}
	}
	for again := true; again; {
		again = false
		for _, r := range f.Recipes {
			ready := counts(r) && r.Service != without
			for _, c := range r.Conditions {
				for _, p := range c.Pathways {
					ready = ready && (up[[2]string{c.Service, p}] || cut != nil && cut(r.Label, c.Service))
				}
			}
			for _, p := range r.Restores {
				if k := [2]string{r.Service, p}; ready && !up[k] {
					up[k], again = true, true
				}
			}
		}
	}
	return up
}

// stuckOf folds what comes back into the services that do not.
func stuckOf(f *fleet.Fleet, up map[[2]string]bool) []string {
	stuck := []string{}
	for _, s := range f.Services {
		if slices.ContainsFunc(s.Pathways, func(p fleet.Pathway) bool { return !up[[2]string{s.Name, p.Name}] }) {
			stuck = append(stuck, s.Name)
		}
	}
	return stuck
}

// TestRandom compares recoverability, cycles, impact and cuts with their
// definitions on random fleets.
func TestRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	blocking, avoidable, cutSizes := 0, 0, 0
	for round := range 1500 {
		f := randomFleet(r, 2+r.IntN(6))
		down := round%5 == 0
		g := newGraph(t, f, Options{AssumeDown: down})
		up := comesBack(f, nil, down, "")
		stuck := stuckOf(f, up)
		out := g.Outage(OutageOptions{All: true})
		var got []string
		for _, x := range out.Stuck {
			got = append(got, x.Service)
			for _, b := range x.Because {
				if !slices.Contains(stuck, b) {
					t.Fatalf("%s is stuck because of %s, which is not", x.Service, b)
				}
			}
			if len(x.Because) == 0 {
				t.Fatalf("%s is stuck for no reason", x.Service)
			}
		}
		if !slices.Equal(got, stuck) && len(stuck) > 0 {
			t.Fatalf("round %d: stuck %v, want %v", round, got, stuck)
		}
		for _, c := range g.Cycles().Cycles {
			checkClosedNames(t, c.Path)
			if c.Blocking {
				blocking++
				if !slices.ContainsFunc(c.Services, func(s string) bool { return slices.Contains(stuck, s) }) || len(c.WayOut) > 0 {
					t.Fatalf("round %d: %v blocks, and its services come back", round, c.Services)
				}
				continue
			}
			avoidable++
			if len(c.WayOut) == 0 {
				t.Fatalf("round %d: no way out of %v is named", round, c.Services)
			}
		}
		for i, s := range g.Services() {
			without := stuckOf(f, comesBack(f, nil, down, s.Name))
			x := g.Impact(i)
			for _, b := range x.Blocked {
				if !slices.Contains(without, b) || !slices.Contains(x.Touched, b) {
					t.Fatalf("round %d: %s is not blocked by %s", round, b, s.Name)
				}
			}
			for _, b := range without {
				if !slices.Contains(x.Blocked, b) && !slices.Contains(stuck, b) && b != s.Name {
					t.Fatalf("round %d: %s is blocked by %s", round, b, s.Name)
				}
			}
		}
		cuts := g.Cuts(time.Minute)
		if !cuts.Exact || cuts.Cost != cuts.Bound {
			t.Fatalf("round %d: not exact", round)
		}
		cut := map[[2]string]bool{}
		for _, c := range cuts.Cuts {
			cut[[2]string{c.Recipe, c.To}] = true
			if c.Frees < 1 && len(cuts.Hopeless) == 0 {
				t.Fatalf("round %d: the cut %s → %s frees nothing", round, c.From, c.To)
			}
		}
		// With every edge cut, what comes back is all that can.
		all := len(comesBack(f, func(string, string) bool { return true }, down, ""))
		if n := len(comesBack(f, func(label, to string) bool { return cut[[2]string{label, to}] }, down, "")); n != all {
			t.Fatalf("round %d: with the cuts %d pathways come back, and %d could", round, n, all)
		}
		if want, ok := cheapestCut(f, g, down, all, cuts.Cost); ok && want != cuts.Cost {
			t.Fatalf("round %d: cuts cost %d, and %d would do", round, cuts.Cost, want)
		}
		cutSizes += len(cuts.Cuts)
	}
	if blocking < 100 || avoidable < 100 || cutSizes < 300 {
		t.Errorf("%d blocking, %d avoidable cycles, %d cuts: that tests little", blocking, avoidable, cutSizes)
	}
}

func checkClosedNames(t *testing.T, path []Edge) {
	t.Helper()
	if len(path) == 0 {
		t.Fatal("a cycle has no path")
	}
	for i, e := range path {
		if next := path[(i+1)%len(path)]; e.To != next.From {
			t.Fatalf("the path breaks at %s → %s", e.From, e.To)
		}
	}
}

// cheapestCut tries all sets of edges that cost less than upper.
func cheapestCut(f *fleet.Fleet, g *Graph, down bool, all, upper int) (int, bool) {
	edges := g.Edges()
	if len(edges) > 12 {
		return 0, false
	}
	best := upper
	for set := range 1 << len(edges) {
		cost := 0
		for i, e := range edges {
			if set>>i&1 == 1 {
				cost += e.Effort
			}
		}
		if cost >= best {
			continue
		}
		cut := func(label, to string) bool {
			for i, e := range edges {
				if set>>i&1 == 1 && e.Recipe == label && e.To == to {
					return true
				}
			}
			return false
		}
		if len(comesBack(f, cut, down, "")) == all {
			best = cost
		}
	}
	return best, true
}
