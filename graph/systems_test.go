package graph

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bj/fleet"
	"bj/lang/diag"
)

// system is a real system of testdata/systems; see README.md there.
type system struct {
	Nodes []struct {
		Name     string  `json:"name"`
		Owner    string  `json:"owner"`
		Duration float64 `json:"duration_s"`
	} `json:"nodes"`
	Edges []struct {
		From, To, Kind string
		Cost           int
	} `json:"edges"`
	DeclaredKinds []string `json:"declared_kinds"`
	ObservedKinds []string `json:"observed_kinds"`
}

// expected is what two independent tools say about a system.
type expected struct {
	Variants map[string]struct {
		Kinds      []string `json:"kinds"`
		Nodes      int      `json:"nodes"`
		Edges      int      `json:"edges_unique"`
		SelfLoops  []string `json:"self_loops"`
		CyclicSCCs []struct {
			Members  []string `json:"members"`
			Girth    int      `json:"girth"`
			FAS      int      `json:"fas_exact"`
			Weighted int      `json:"weighted_fas_exact"`
		} `json:"cyclic_sccs"`
		FAS          int            `json:"fas_exact_total"`
		Weighted     int            `json:"weighted_fas_exact_total"`
		ReverseReach map[string]int `json:"reverse_reach"`
		Critical     struct {
			Seconds float64  `json:"seconds"`
			Path    []string `json:"one_path_last_to_first"`
		} `json:"critical_path_scc_sum"`
		Outages []struct {
			Down      string     `json:"down"`
			DownCount int        `json:"down_count"`
			Stuck     int        `json:"stuck"`
			InCycle   int        `json:"stuck_in_a_cycle"`
			Order     [][]string `json:"order"`
			Nodes     []string   `json:"stuck_nodes"`
		} `json:"outages"`
		Wave   map[string]int     `json:"wave"`
		Finish map[string]float64 `json:"finish_s_scc_sum"`
	} `json:"variants"`
	Diff *struct {
		Both     int         `json:"both"`
		Declared [][2]string `json:"declared_only"`
		Observed [][2]string `json:"observed_only"`
	} `json:"diff_declared_vs_observed"`
}

func readJSON(t testing.TB, path string, to any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, to); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// fleetOf is the fleet of a system: a recipe for each service, with a condition
// for each edge of the kinds, or of all.
func fleetOf(s *system, kinds []string, weighted bool) *fleet.Fleet {
	f := &fleet.Fleet{}
	line := 0
	for _, n := range s.Nodes {
		line++
		d := time.Duration(n.Duration * float64(time.Second))
		f.Services = append(f.Services, &fleet.Service{
			Name: n.Name, Owner: n.Owner, Kind: fleet.KindService, Package: "p",
			Pathways: []fleet.Pathway{{Name: "default"}}, Pos: diag.Pos{File: "p/p.star", Line: line},
		})
		r := &fleet.Recipe{Label: "//p:" + strings.NewReplacer("/", "_", ":", "_").Replace(n.Name), Package: "p", Service: n.Name, Restores: []string{"default"}, Estimate: &d, Pos: diag.Pos{File: "p/p.star", Line: line}}
		for _, e := range s.Edges {
			if e.From != n.Name || kinds != nil && !slices.Contains(kinds, e.Kind) {
				continue
			}
			line++
			c := fleet.Condition{Service: e.To, Pathways: []string{"default"}, Effort: 1, Why: e.Kind, Pos: diag.Pos{File: "p/p.star", Line: line}}
			if weighted {
				c.Effort = e.Cost
			}
			r.Conditions = append(r.Conditions, c)
		}
		f.Recipes = append(f.Recipes, r)
	}
	slices.SortFunc(f.Services, func(a, b *fleet.Service) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(f.Recipes, func(a, b *fleet.Recipe) int { return strings.Compare(a.Label, b.Label) })
	return f
}

func newGraph(t testing.TB, f *fleet.Fleet, o Options) *Graph {
	t.Helper()
	g, err := New(f, o)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func asJSON(v any) string {
	data, _ := json.Marshal(v)
	return string(data)
}

// TestSystems meets what testdata/systems expects, to the letter.
func TestSystems(t *testing.T) {
	files, err := filepath.Glob("testdata/systems/*.expected.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		var want expected
		var s system
		readJSON(t, file, &want)
		readJSON(t, strings.TrimSuffix(file, ".expected.json")+".json", &s)
		for variant := range want.Variants {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".expected.json")+"/"+variant, func(t *testing.T) { checkSystem(t, &s, &want, variant) })
		}
	}
}

func checkSystem(t *testing.T, s *system, all *expected, variant string) {
	want := all.Variants[variant]
	g := newGraph(t, fleetOf(s, want.Kinds, true), Options{})
	if len(g.Services()) != want.Nodes || g.Len() != want.Edges {
		t.Errorf("%d services, %d edges; want %d, %d", len(g.Services()), g.Len(), want.Nodes, want.Edges)
	}
	cycles := g.Cycles()
	if len(cycles.Cycles) != len(want.CyclicSCCs) {
		t.Errorf("%d cycles, want %d", len(cycles.Cycles), len(want.CyclicSCCs))
	}
	for _, w := range want.CyclicSCCs {
		i := slices.IndexFunc(cycles.Cycles, func(c Cycle) bool { return slices.Equal(c.Services, w.Members) })
		if i < 0 {
			t.Errorf("no cycle %v", w.Members)
			continue
		}
		c := cycles.Cycles[i]
		if len(c.Path) != w.Girth || !c.Blocking || len(c.Break) == 0 {
			t.Errorf("path of %d, want %d: %v", len(c.Path), w.Girth, c.Path)
		}
		checkClosed(t, c.Path)
		cost := 0
		for _, e := range c.Break {
			cost += e.Effort
		}
		if cost != w.Weighted {
			t.Errorf("breaking %v costs %d, want %d", w.Members, cost, w.Weighted)
		}
	}
	cuts := g.Cuts(0)
	if !cuts.Exact || cuts.Cost != want.Weighted || cuts.Bound != cuts.Cost {
		t.Errorf("cuts cost %d (bound %d, exact %t), want %d", cuts.Cost, cuts.Bound, cuts.Exact, want.Weighted)
	}
	plain := newGraph(t, fleetOf(s, want.Kinds, false), Options{}).Cuts(0)
	if !plain.Exact || plain.Cost != want.FAS || len(plain.Cuts) != want.FAS {
		t.Errorf("%d cuts (exact %t), want %d", plain.Cost, plain.Exact, want.FAS)
	}
	for name, n := range want.ReverseReach {
		i, _ := g.Find(name)
		x := g.Impact(i)
		if len(x.Touched) != n || len(x.Blocked) != n {
			t.Errorf("impact of %s: %d touched, %d blocked, want %d", name, len(x.Touched), len(x.Blocked), n)
		}
	}
	order := g.Order(0)
	for name, layer := range want.Wave {
		if layer >= len(order.Layers) || !slices.Contains(order.Layers[layer], name) {
			t.Errorf("%s is not in layer %d", name, layer)
		}
	}
	if stuck := want.Outages[0].Stuck; stuck == 0 {
		path := slices.Clone(want.Critical.Path)
		slices.Reverse(path)
		if order.Seconds == nil || *order.Seconds != want.Critical.Seconds || !slices.Equal(order.CriticalPath, path) && len(path) != len(order.CriticalPath) {
			t.Errorf("order takes %s by %v, want %v by %v", asJSON(order.Seconds), order.CriticalPath, want.Critical.Seconds, path)
		}
		for _, slot := range order.Schedule {
			if slot.End != want.Finish[slot.Service] {
				t.Errorf("%s is back at %v, want %v", slot.Service, slot.End, want.Finish[slot.Service])
			}
		}
		if len(order.Schedule) != want.Nodes {
			t.Errorf("%d services in the schedule", len(order.Schedule))
		}
	} else if order.Seconds != nil || len(order.Stuck) != stuck {
		t.Errorf("order: %s seconds, %d stuck, want %d", asJSON(order.Seconds), len(order.Stuck), stuck)
	}
	for _, o := range want.Outages {
		options := OutageOptions{All: true}
		if name, ok := strings.CutSuffix(o.Down, " and all that needs it"); ok {
			i, _ := g.Find(name)
			options = OutageOptions{Down: []int{i}, Spread: true}
		}
		got := g.Outage(options)
		if len(got.Lost) != o.DownCount || asJSON(got.Waves) != asJSON(o.Order) {
			t.Errorf("%s: %d lost, waves %s; want %d, %s", o.Down, len(got.Lost), asJSON(got.Waves), o.DownCount, asJSON(o.Order))
		}
		var stuck []string
		inCycle := 0
		for _, x := range got.Stuck {
			stuck = append(stuck, x.Service)
			if x.InCycle {
				inCycle++
			}
			if len(x.Because) == 0 {
				t.Errorf("%s is stuck for no reason", x.Service)
			}
		}
		if !slices.Equal(stuck, o.Nodes) || inCycle != o.InCycle {
			t.Errorf("%s: stuck %v (%d in a cycle), want %v (%d)", o.Down, stuck, inCycle, o.Nodes, o.InCycle)
		}
		if o.Down == "everything is down" && asJSON(order.Waves) != asJSON(o.Order) {
			t.Errorf("order's waves are %s", asJSON(order.Waves))
		}
	}
}

func checkClosed(t *testing.T, path []Edge) {
	t.Helper()
	for i, e := range path {
		if next := path[(i+1)%len(path)]; e.To != next.From || e.File == "" || e.Line == 0 {
			t.Errorf("the path breaks at %s → %s: %s", e.From, e.To, fmt.Sprint(e.Line))
		}
	}
}
