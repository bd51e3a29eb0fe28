package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// realSystem is a graph of graph/testdata/systems; see README.md there.
type realSystem struct {
	Nodes []struct {
		Name     string  `json:"name"`
		Owner    string  `json:"owner"`
		Duration float64 `json:"duration_s"`
	} `json:"nodes"`
	Edges []struct {
		From string `json:"from"`
		To   string `json:"to"`
		Kind string `json:"kind"`
		Cost int    `json:"cost"`
	} `json:"edges"`
	DeclaredKinds []string `json:"declared_kinds"`
	ObservedKinds []string `json:"observed_kinds"`
}

// write writes the system out as .star files, a package for each service.
func (s *realSystem) write(t *testing.T, dir string, kinds []string) {
	t.Helper()
	put := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("bj.star", `workspace(name = "real")`+"\n")
	for i, n := range s.Nodes {
		var conditions strings.Builder
		for _, e := range s.Edges {
			if e.From == n.Name && (kinds == nil || slices.Contains(kinds, e.Kind)) {
				fmt.Fprintf(&conditions, "        allow(%q, why = %q, effort = %d),\n", e.To, e.Kind, e.Cost)
			}
		}
		put(fmt.Sprintf("p%04d/p.star", i), fmt.Sprintf(`service(name = %q, owner = %q)

recipe(
    name = "r",
    service = %q,
    hardware = [hardware("m")],
    estimate = "%ds",
    conditions = [
%s    ],
    strategy = [step("Start", run = "true")],
    validation = [validate("It serves", run = "false")],
)
`, n.Name, n.Owner+"-oncall", n.Name, int(n.Duration), &conditions))
	}
}

// bjGraph runs bj graph in dir and decodes its answer.
func bjGraph(t *testing.T, dir string, to any, args ...string) int {
	t.Helper()
	var out, errs bytes.Buffer
	e := newEnv()
	e.dir = dir
	e.getenv = func(name string) string {
		return map[string]string{"BJ_CACHE": filepath.Join(dir, ".cache"), "XDG_STATE_HOME": filepath.Join(dir, ".state")}[name]
	}
	e.stdout, e.stderr = &pipe{w: &out}, &errs
	code := exitCode(execute(t.Context(), e, append([]string{"graph", "--format", "json"}, args...)))
	if err := json.Unmarshal(out.Bytes(), to); err != nil {
		t.Fatalf("bj graph %v: exit %d: %v\n%s%s", args, code, err, &out, &errs)
	}
	return code
}

// readCycle is a cycle as JSON has it.
type readCycle struct {
	Services []string
	Blocking bool
	Path     []struct {
		From, To, File string
		Line           int
	}
}

// TestGraphOfRealSystems writes each system out as .star files, and meets what
// is expected of it through the command line. What the package graph's own test
// checks without files is sampled here.
func TestGraphOfRealSystems(t *testing.T) {
	folder := filepath.Join("..", "..", "graph", "testdata", "systems")
	files, err := filepath.Glob(filepath.Join(folder, "*.expected.json"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	read := func(path string, to any) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, to); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range files {
		var want struct {
			Variants map[string]struct {
				Kinds []string `json:"kinds"`
				Nodes int      `json:"nodes"`
				Edges int      `json:"edges_unique"`
				SCCs  []struct {
					Members []string `json:"members"`
					Girth   int      `json:"girth"`
				} `json:"cyclic_sccs"`
				Weighted int            `json:"weighted_fas_exact_total"`
				Reach    map[string]int `json:"reverse_reach"`
				Critical struct {
					Seconds float64 `json:"seconds"`
				} `json:"critical_path_scc_sum"`
				Outages []struct {
					Down  string     `json:"down"`
					Order [][]string `json:"order"`
					Stuck []string   `json:"stuck_nodes"`
				} `json:"outages"`
				Wave map[string]int `json:"wave"`
			} `json:"variants"`
		}
		var s realSystem
		read(file, &want)
		read(strings.TrimSuffix(file, ".expected.json")+".json", &s)
		for variant, w := range want.Variants {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".expected.json")+"/"+variant, func(t *testing.T) {
				dir := t.TempDir()
				s.write(t, dir, w.Kinds)
				var g struct {
					Schema                   string
					Services, Recipes, Edges []any
				}
				if code := bjGraph(t, dir, &g); code != 0 || g.Schema != "bj.graph.graph/1" || len(g.Services) != w.Nodes || len(g.Edges) != w.Edges {
					t.Errorf("exit %d, %s, %d services, %d edges, want %d and %d", code, g.Schema, len(g.Services), len(g.Edges), w.Nodes, w.Edges)
				}
				var cycles struct{ Cycles []readCycle }
				wantCode := 0
				if len(w.SCCs) > 0 {
					wantCode = exitNotRecovered
				}
				if code := bjGraph(t, dir, &cycles, "--cycles"); code != wantCode || len(cycles.Cycles) != len(w.SCCs) {
					t.Errorf("exit %d, %d cycles, want %d", code, len(cycles.Cycles), len(w.SCCs))
				}
				for _, c := range w.SCCs {
					i := slices.IndexFunc(cycles.Cycles, func(x readCycle) bool {
						return slices.Equal(x.Services, c.Members)
					})
					if i < 0 {
						t.Errorf("no cycle of %v", c.Members)
						continue
					}
					path := cycles.Cycles[i].Path
					if len(path) != c.Girth || path[0].From != path[len(path)-1].To {
						t.Errorf("path %v", path)
					}
					for _, e := range path {
						text, err := os.ReadFile(filepath.Join(dir, e.File))
						if err != nil {
							t.Fatal(err)
						}
						if line := strings.Split(string(text), "\n")[e.Line-1]; !strings.Contains(line, fmt.Sprintf("allow(%q", e.To)) {
							t.Errorf("%s:%d does not need %s: %s", e.File, e.Line, e.To, line)
						}
					}
				}
				var cuts struct {
					Cost, Bound int
					Exact       bool
				}
				if bjGraph(t, dir, &cuts, "--cuts"); cuts.Cost != w.Weighted || !cuts.Exact || cuts.Bound != cuts.Cost {
					t.Errorf("cuts %+v, want %d", cuts, w.Weighted)
				}
				for name, n := range w.Reach {
					var x struct{ Blocked, Touched []string }
					if bjGraph(t, dir, &x, "--impact", name); len(x.Touched) != n || len(x.Blocked) != n {
						t.Errorf("impact of %s: %d, %d, want %d", name, len(x.Blocked), len(x.Touched), n)
					}
					break
				}
				var order struct {
					Waves, Layers [][]string
					Stuck         []any
					Seconds       *float64
				}
				bjGraph(t, dir, &order, "--order")
				for name, layer := range w.Wave {
					if layer >= len(order.Layers) || !slices.Contains(order.Layers[layer], name) {
						t.Errorf("%s is not in layer %d", name, layer)
					}
				}
				if all := w.Outages[0]; fmt.Sprint(order.Waves) != fmt.Sprint(all.Order) || len(order.Stuck) != len(all.Stuck) ||
					(order.Seconds == nil) != (len(all.Stuck) > 0) || order.Seconds != nil && *order.Seconds != w.Critical.Seconds {
					t.Errorf("order: %+v", order)
				}
				last := w.Outages[len(w.Outages)-1]
				name, _ := strings.CutSuffix(last.Down, " and all that needs it")
				var outage struct {
					Waves [][]string
					Stuck []struct{ Service string }
				}
				bjGraph(t, dir, &outage, "--outage", name, "--spread")
				if fmt.Sprint(outage.Waves) != fmt.Sprint(last.Order) || len(outage.Stuck) != len(last.Stuck) {
					t.Errorf("outage of %s: %+v", last.Down, outage)
				}
			})
		}
	}
}

// TestReadmeCycle holds that README.md shows what bj graph says of the cycle of
// the demonstration fleet, of which nothing has run.
func TestReadmeCycle(t *testing.T) {
	root := filepath.Join("..", "..")
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	e := newEnv()
	if e.dir, err = filepath.Abs(root); err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	e.getenv = func(name string) string {
		return map[string]string{"BJ_CACHE": state, "XDG_STATE_HOME": state}[name]
	}
	e.stdout, e.stderr = &pipe{w: &out}, &errs
	if code := exitCode(execute(t.Context(), e, []string{"graph", "--cycles", "//recipes/..."})); code != exitNotRecovered {
		t.Fatalf("exit %d: %s", code, &errs)
	}
	// How many services there are is left out: it changes with every recipe.
	_, shown, ok := strings.Cut(string(readme), "```\nblocking:")
	shown, _, end := strings.Cut("\nblocking:"+shown, "```")
	if !ok || !end || !strings.Contains(out.String(), shown) {
		t.Errorf("README.md shows\n%s\nand bj graph says\n%s", shown, &out)
	}
}
