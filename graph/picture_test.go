package graph

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bj/fleet"
	"bj/lang/diag"
)

// smallFleet has all that a picture shows: a cycle, a service that needs itself,
// one that allows everything, one without a recipe, two pathways, alternatives.
func smallFleet() *fleet.Fleet {
	f := &fleet.Fleet{}
	service := func(name, owner string, pathways ...string) {
		s := &fleet.Service{Name: name, Owner: owner, Kind: fleet.KindService, Package: "r/" + name, Pos: diag.Pos{File: "r/" + name + "/r.star", Line: 3}}
		for _, p := range append(pathways, "default")[:max(1, len(pathways))] {
			s.Pathways = append(s.Pathways, fleet.Pathway{Name: p})
		}
		f.Services = append(f.Services, s)
	}
	line := 0
	recipe := func(service, name string, needs ...string) {
		s := f.Services[slices.IndexFunc(f.Services, func(s *fleet.Service) bool { return s.Name == service })]
		r := &fleet.Recipe{Label: "//r/" + service + ":" + name, Package: s.Package, Name: name, Service: service, Pos: diag.Pos{File: s.Pos.File, Line: 10}}
		for _, p := range s.Pathways {
			r.Restores = append(r.Restores, p.Name)
		}
		for _, n := range needs {
			to, pathway, found := strings.Cut(n, ".")
			if !found {
				pathway = "default"
			}
			line++
			r.Conditions = append(r.Conditions, fleet.Condition{Service: to, Pathways: []string{pathway}, Why: "it asks " + to, Effort: 1, Pos: diag.Pos{File: s.Pos.File, Line: 10 + line}})
		}
		f.Recipes = append(f.Recipes, r)
	}
	service("clock", "metal")
	service("directory", "people")
	service("ledger", "money")
	service("legacy", "")
	service("mail", "people")
	service("names", "net")
	service("packages", "base", "read", "write")
	service("secrets", "safety")
	service("shop", "money")
	service("sidecar", "net")
	recipe("clock", "cold")
	recipe("directory", "cold", "names", "secrets")
	recipe("ledger", "cold", "packages.read", "directory", "clock")
	recipe("ledger", "from_paper", "clock")
	recipe("legacy", "onboarding", "*")
	recipe("names", "cold", "packages.read")
	recipe("packages", "cold")
	recipe("secrets", "cold", "directory", "clock")
	recipe("shop", "cold", "ledger", "mail", "legacy", "packages.write")
	recipe("sidecar", "cold", "sidecar", "names")
	return f
}

func (g *Graph) svg(t testing.TB) string {
	t.Helper()
	var b bytes.Buffer
	if err := g.Picture(g.Cycles()).WriteSVG(&b, "Test fleet"); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (g *Graph) page(t testing.TB) string {
	t.Helper()
	var b bytes.Buffer
	if err := g.Picture(g.Cycles()).WriteHTML(&b, "Test fleet"); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestSVGGolden compares the picture of a small fleet, byte for byte.
func TestSVGGolden(t *testing.T) {
	got := newGraph(t, smallFleet(), Options{}).svg(t)
	golden := filepath.Join("testdata", "picture.svg")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs from what is drawn (UPDATE_GOLDEN=1 rewrites it):\n%s", golden, got)
	}
	wellFormed(t, got)
}

// wellFormed reads a text as XML.
func wellFormed(t *testing.T, text string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		switch _, err := d.Token(); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			t.Fatalf("the picture is no XML: %v", err)
		}
	}
}

// TestPictureTwice writes a fleet twice, the second time from a shuffled one.
func TestPictureTwice(t *testing.T) {
	f := randomFleet(rand.New(rand.NewPCG(3, 3)), 60)
	a := newGraph(t, f, Options{})
	shuffled := *f
	shuffled.Services, shuffled.Recipes = slices.Clone(f.Services), slices.Clone(f.Recipes)
	rng := rand.New(rand.NewPCG(4, 4))
	rng.Shuffle(len(shuffled.Services), func(i, j int) {
		shuffled.Services[i], shuffled.Services[j] = shuffled.Services[j], shuffled.Services[i]
	})
	rng.Shuffle(len(shuffled.Recipes), func(i, j int) {
		shuffled.Recipes[i], shuffled.Recipes[j] = shuffled.Recipes[j], shuffled.Recipes[i]
	})
	b := newGraph(t, &shuffled, Options{})
	if a.svg(t) != b.svg(t) {
		t.Error("the picture depends on the order in which services were declared")
	}
	if a.page(t) != b.page(t) {
		t.Error("the page depends on the order in which services were declared")
	}
}

// TestPicturePlaces looks at random fleets: every service has one place, in the
// columns of its layer, and no two boxes touch, neither outside nor inside.
func TestPicturePlaces(t *testing.T) {
	several := 0
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 5))
		g := newGraph(t, randomFleet(rng, 1+rng.IntN(120)), Options{})
		p := g.Picture(g.Cycles())
		layers := make([]int32, len(p.boxes))
		seen := make([]bool, len(g.services))
		for i := range p.boxes {
			b := &p.boxes[i]
			layers[i] = int32(b.layer)
			for _, s := range b.services {
				if seen[s] || p.boxOf[s] != int32(i) {
					t.Fatalf("service %d is in box %d, and in box %d", s, i, p.boxOf[s])
				}
				seen[s] = true
			}
			if b.inner != nil {
				several++
				if len(b.inner.col) != len(b.services) {
					t.Fatalf("box %d has %d services and %d places", i, len(b.services), len(b.inner.col))
				}
				apart(t, b.inner)
			}
		}
		if i := slices.Index(seen, false); i >= 0 {
			t.Fatalf("service %s has no place", g.services[i].Name)
		}
		for s, layer := range g.layers() {
			for _, v := range layer {
				if b := &p.boxes[p.boxOf[v]]; len(b.services) == 1 && b.layer != s {
					t.Fatalf("%s is drawn in layer %d, and lies in %d", g.services[v].Name, b.layer, s)
				}
			}
		}
		checkGrid(t, p.outer.grid, layers, p.edges)
		apart(t, &p.outer)
		wellFormed(t, g.svg(t))
	}
	if several == 0 {
		t.Error("no fleet had a component of several services")
	}
}

// apart looks at the rectangles of a sheet.
func apart(t *testing.T, s *sheet) {
	t.Helper()
	at := s.points()
	for a := range s.col {
		for b := range a {
			ax, ay, bx, by := at.x[s.col[a]], at.y[s.row[a]], at.x[s.col[b]], at.y[s.row[b]]
			if ax < bx+s.colWidth[s.col[b]] && bx < ax+s.colWidth[s.col[a]] && ay < by+cellHeight && by < ay+cellHeight {
				t.Fatalf("boxes %d and %d overlap", a, b)
			}
		}
		for b := range s.col {
			if !s.trunk[b].empty() && s.trunk[b].first <= s.col[a] && s.col[a] <= s.trunk[b].last {
				if y := s.laneY(&at, int32(b)); y >= at.y[s.row[a]] && y <= at.y[s.row[a]]+cellHeight {
					t.Fatalf("the trunk of box %d crosses box %d", b, a)
				}
			}
		}
	}
}

// TestAcyclic layers random graphs: without a cycle nothing runs upwards, and
// of two services that need each other one edge does.
func TestAcyclic(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 6))
		n := 2 + rng.IntN(60)
		var edges [][2]int32
		for range 3 * n {
			if a, b := int32(rng.IntN(n)), int32(rng.IntN(n)); a > b {
				edges = append(edges, [2]int32{a, b})
			}
		}
		layer := acyclic(n, edges)
		for _, e := range edges {
			if layer[e[0]] <= layer[e[1]] {
				t.Fatalf("edge %v runs from layer %d to %d, and there is no cycle", e, layer[e[0]], layer[e[1]])
			}
		}
	}
	layer := acyclic(2, [][2]int32{{0, 1}, {1, 0}})
	if layer[0] == layer[1] {
		t.Errorf("two that need each other are in layers %v", layer)
	}
	// A ring of ten has one edge that runs upwards.
	var ring [][2]int32
	for i := range int32(10) {
		ring = append(ring, [2]int32{i, (i + 1) % 10})
	}
	up := 0
	layer = acyclic(10, ring)
	for _, e := range ring {
		if layer[e[0]] <= layer[e[1]] {
			up++
		}
	}
	if up != 1 {
		t.Errorf("%d edges of a ring run upwards, in layers %v", up, layer)
	}
}

// hostile is text that tries to be something else.
var hostile = []string{
	`</script><script>globalThis.pwned=1</script>`,
	`<img src=x onerror=globalThis.pwned=1>`,
	`"><svg onload=globalThis.pwned=1>`,
	`' onmouseover='globalThis.pwned=1`,
	`<!--<script>`, `]]><script>globalThis.pwned=1</script>`, `{{.Data}}`, `&lt;b&gt;`,
	"\x1b[31mred\x07\x00\u202egnp.exe\u2066\ufeff", "\xff\xfe", "line\nline\u2028line", `${globalThis.pwned=1}`, "javascript:globalThis.pwned=1",
}

// hostileGraph has hostile text wherever a fleet has text.
func hostileGraph(t testing.TB) *Graph {
	t.Helper()
	s := &Saved{}
	for i, h := range hostile {
		name := fmt.Sprintf("%02d%s", i, h)
		s.Services = append(s.Services, Service{Name: name, Owner: h, Kind: h, Package: h, File: h, Line: 1, State: Claimed, Pathways: []string{h}})
		s.Recipes = append(s.Recipes, Recipe{Label: "//" + name, Service: name, Restores: []string{h}, File: h, Line: 2})
	}
	for i := range hostile {
		j := max(i-1, 0)
		if i == 4 {
			j = 5 // a cycle
		}
		s.Edges = append(s.Edges, Edge{From: s.Services[i].Name, To: s.Services[j].Name, Recipe: s.Recipes[i].Label, Pathways: []string{hostile[j]}, Why: hostile[i], Effort: 1, File: hostile[i], Line: 3})
	}
	g, err := s.Graph()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestHostileText counts the elements that could do something: none comes from
// a recipe.
func TestHostileText(t *testing.T) {
	g := hostileGraph(t)
	calm := newGraph(t, smallFleet(), Options{})
	page, picture := g.page(t), g.svg(t)
	wellFormed(t, picture)
	for _, c := range []struct {
		text, what string
		count      int
	}{
		{page, "<script", strings.Count(calm.page(t), "<script")},
		{page, "</script", strings.Count(calm.page(t), "</script")},
		{page, "<img", 0}, {page, "<!--", strings.Count(calm.page(t), "<!--")},
		{picture, "<script", 0}, {picture, "<img", 0}, {picture, "<svg", 1},
	} {
		if n := strings.Count(strings.ToLower(c.text), c.what); n != c.count {
			t.Errorf("%q occurs %d times, and not %d", c.what, n, c.count)
		}
	}
	for _, text := range []string{page, picture} {
		for _, bad := range []string{"\x1b", "\x07", "\x00", "\u202e", "\u2066", "\u2028", "\xff"} {
			if strings.Contains(text, bad) {
				t.Errorf("%q got through", bad)
			}
		}
	}
}

// TestTable looks for every service, what it needs and where that is written.
func TestTable(t *testing.T) {
	g := newGraph(t, smallFleet(), Options{})
	page := g.page(t)
	for i := range g.services {
		if !strings.Contains(page, `<th scope="row">`+g.services[i].Name+"</th>") {
			t.Errorf("the table has no row of %s", g.services[i].Name)
		}
	}
	for i := range g.edges {
		if e := g.Edge(i); !strings.Contains(page, e.To+" <i>"+at(e.File, e.Line)+"</i>") {
			t.Errorf("the table does not say that %s needs %s, or where", e.From, e.To)
		}
	}
	for _, want := range []string{"Blocking, 2 services: directory needs secrets", "stuck", "in wave 1", "unpared: its recipe allows everything", "needs itself", "Services 1 to 10 of 10"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	empty := newGraph(t, &fleet.Fleet{}, Options{})
	if page := empty.page(t); !strings.Contains(page, "0 services") {
		t.Error("the page of an empty fleet does not say so")
	}
	wellFormed(t, empty.svg(t))
}
