package graph

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bj/fleet"
	"bj/lang/diag"
	"bj/run/event"
)

// plant makes a fleet of lines: "a/read,write" declares a service with
// pathways, "r1: a/read < b c/read *" a recipe that restores some of them and
// needs others; without pathways all are meant.
func plant(text string) *fleet.Fleet {
	f := &fleet.Fleet{}
	pathways := func(word string) (string, []string) {
		name, list, _ := strings.Cut(word, "/")
		if list != "" {
			return name, strings.Split(list, ",")
		}
		if s := f.Service(name); s != nil {
			for _, p := range s.Pathways {
				list += "," + p.Name
			}
			return name, strings.Split(list[1:], ",")
		}
		return name, []string{"default"}
	}
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		pos := diag.Pos{File: "p/p.star", Line: i + 1}
		label, rest, isRecipe := strings.Cut(line, ":")
		if !isRecipe {
			name, list := pathways(strings.TrimSpace(line))
			s := &fleet.Service{Name: name, Owner: name + "-oncall", Kind: fleet.KindService, Pos: pos}
			for _, p := range list {
				s.Pathways = append(s.Pathways, fleet.Pathway{Name: p})
			}
			f.Services = append(f.Services, s)
			slices.SortFunc(f.Services, func(a, b *fleet.Service) int { return strings.Compare(a.Name, b.Name) })
			continue
		}
		target, needs, _ := strings.Cut(rest, "<")
		r := &fleet.Recipe{Label: "//p:" + strings.TrimSpace(label), Pos: pos}
		r.Service, r.Restores = pathways(strings.TrimSpace(target))
		for _, n := range strings.Fields(needs) {
			c := fleet.Condition{Effort: 1, Pos: pos, Text: n}
			if c.Service = n; n != "*" {
				c.Service, c.Pathways = pathways(n)
			}
			r.Conditions = append(r.Conditions, c)
		}
		f.Recipes = append(f.Recipes, r)
	}
	return f
}

// ran makes results: the last run of each recipe that is named did not recover,
// and all others have recovered.
func ran(f *fleet.Fleet, failed ...string) func(string) []event.Record {
	return func(label string) []event.Record {
		r := f.Recipe(label)
		at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		good := event.Record{Recipe: label, Digest: event.Digest(f, r, nil), Start: at, End: at.Add(7 * time.Second), Verdict: event.Verdict{Verdict: event.Recovered}}
		for _, name := range failed {
			if "//p:"+name == label {
				return []event.Record{good, {Recipe: label, Digest: good.Digest, Verdict: event.Verdict{Verdict: event.NotRecovered}}}
			}
		}
		return []event.Record{good}
	}
}

func TestAlternatives(t *testing.T) {
	const cycle = "a\nb\nc\nr1: a < b\nr2: b < a\n"
	for _, c := range []struct {
		name, fleet string
		failed      []string
		down        bool
		want        string // "" for no cycle
	}{
		{name: "a cycle", fleet: cycle, want: "blocking a b"},
		{name: "one more recipe", fleet: cycle + "r3: b < c", want: "avoidable a b by //p:r3"},
		{name: "one more recipe, that needs nothing", fleet: cycle + "r3: b", want: "avoidable a b by //p:r3"},
		{name: "it needs what is unproven, and that is lost", fleet: cycle + "r3: b < c", down: true, want: "blocking a b"},
		{name: "both alternatives in the cycle", fleet: cycle + "rc: c < b\nr3: b < c", want: "blocking a b c"},
		{name: "the way out restores reading, and writing is needed", fleet: "a\nb/read,write\nr1: a < b/write\nr2: b < a\nr3: b/read", want: "blocking a b"},
		{name: "the way out restores reading, and reading is needed", fleet: "a\nb/read,write\nr1: a < b/read\nr2: b < a\nr3: b/read", want: "avoidable a b by //p:r3"},
		{name: "reading first, writing later, is no cycle", fleet: "a\nb/read,write\nr1: a < b/read\nr2: b/write < a\nr3: b/read", want: ""},
		{name: "the way out failed its last run", fleet: cycle + "r3: b", failed: []string{"r3"}, want: "blocking a b"},
		{name: "the way in failed its last run", fleet: cycle + "r3: b", failed: []string{"r2"}, want: "avoidable a b by //p:r3"},
		{name: `the way out says allow("*")`, fleet: cycle + "r3: b < *", want: "blocking a b"},
		{name: "it needs itself", fleet: "a\nr1: a < a", want: "blocking a"},
		{name: "it needs itself to write", fleet: "a/read,write\nr1: a/read\nr2: a/write < a/read", want: ""},
		{name: `its only recipe says allow("*")`, fleet: "a\nb\nr1: a < b *\nr2: b < a", want: ""},
		{name: "a way out that needs a second", fleet: "a\nb\nc\nr1: a < b\nr2: b < a\nr3: b < c\nr4: c < a\nr5: c", want: "avoidable a b c by //p:r3 //p:r5"},
		{name: "two ways out", fleet: cycle + "r3: b\nr4: a", want: "avoidable a b by //p:r3 //p:r4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := plant(c.fleet)
			o := Options{AssumeDown: c.down}
			if c.failed != nil {
				o.Results = ran(f, c.failed...)
			}
			g := newGraph(t, f, o)
			got := ""
			for _, x := range g.Cycles().Cycles {
				checkClosed(t, x.Path)
				got += "avoidable"
				if x.Blocking {
					got = "blocking"
				}
				got += " " + strings.Join(x.Services, " ")
				if len(x.WayOut) > 0 {
					got += " by " + strings.Join(x.WayOut, " ")
				}
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestFrees(t *testing.T) {
	// b and c hang on the small cycle of x and y; the long one frees only itself.
	f := plant("x\ny\nb\nc\np\nq\nr\nr1: x < y\nr2: y < x\nr3: b < x\nr4: c < b\nr5: p < q\nr6: q < r\nr7: r < p")
	g := newGraph(t, f, Options{})
	cycles := g.Cycles().Cycles
	if len(cycles) != 2 || cycles[0].Frees != 4 || cycles[1].Frees != 3 || !slices.Equal(cycles[0].Services, []string{"x", "y"}) {
		t.Errorf("%+v", cycles)
	}
	for _, s := range g.Outage(OutageOptions{All: true}).Stuck {
		want := []string{"x", "y"}
		if strings.Contains("pqr", s.Service) {
			want = []string{"p", "q", "r"}
		}
		if !slices.Equal(s.Because, want) || s.InCycle != strings.Contains("xypqr", s.Service) {
			t.Errorf("%+v", s)
		}
	}
	cuts := g.Cuts(0)
	if len(cuts.Cuts) != 2 || cuts.Cuts[0].Frees != 4 && cuts.Cuts[0].Frees != 3 {
		t.Errorf("%+v", cuts)
	}
}

func TestEvidence(t *testing.T) {
	f := plant("a\nb\nr1: a < b\nr2: b")
	good := ran(f)
	g := newGraph(t, f, Options{Results: func(label string) []event.Record {
		records := good(label)
		switch label {
		case "//p:r1":
			records[0].Used = []event.Used{{Allow: "b", File: "p/p.star", Line: 3, Count: 2}}
		case "//p:r2":
			records[0].Digest = "older"
		}
		return records
	}})
	if s := g.Services(); s[0].State != Proven || s[1].State != Claimed {
		t.Errorf("%+v", s)
	}
	e := g.Edge(0)
	if e.Evidence == nil || !e.Evidence.Used || e.Evidence.Stale || e.Line != 3 {
		t.Errorf("%+v", e.Evidence)
	}
	if s := g.Stats(); !slices.Equal(s.Stale, []string{"//p:r2"}) || s.Services.Proven != 1 {
		t.Errorf("%+v", s)
	}
	if o := g.Order(1); o.Seconds == nil || *o.Seconds != 14 || o.Parallel.Seconds != 14 {
		t.Errorf("%+v", o)
	}
}

func TestEdgesJoin(t *testing.T) {
	f := plant("a\nb/read,write\nr1: a < b/read b/write")
	f.Recipes[0].Conditions[1].Effort, f.Recipes[0].Conditions[1].Why, f.Recipes[0].Conditions[1].Pos.Line = 5, "heavy", 9
	f.Recipes[0].Tools = []fleet.Tool{{Name: "t", Kept: &fleet.Kept{Allow: &fleet.Condition{Service: "b", Pathways: []string{"read"}, Effort: 1}}}}
	g := newGraph(t, f, Options{})
	if g.Len() != 1 {
		t.Fatalf("%d edges", g.Len())
	}
	if e := g.Edge(0); e.Effort != 5 || e.Why != "heavy" || e.Line != 9 || e.Kept || !slices.Equal(e.Pathways, []string{"read", "write"}) {
		t.Errorf("%+v", e)
	}
	f.Recipes[0].Conditions = nil
	if e := newGraph(t, f, Options{}).Edge(0); !e.Kept || e.To != "b" {
		t.Errorf("%+v", e)
	}
}

func TestOwners(t *testing.T) {
	service := func(name string, urls ...string) *fleet.Service {
		s := &fleet.Service{Name: name}
		for i, u := range urls {
			e, err := fleet.ParseEndpoint(u)
			if err != nil {
				t.Fatal(err)
			}
			s.Pathways = append(s.Pathways, fleet.Pathway{Name: string(rune('p' + i)), Endpoints: []fleet.Endpoint{e}})
		}
		return s
	}
	o := NewOwners([]*fleet.Service{
		service("net", "tcp://10.0.0.0/8:1-65535"), service("db", "tcp://10.1.0.0/16:5432"), service("db2", "tcp://10.1.0.0/16:5432"),
		service("web", "https://api.example.org", "https://api.example.org/v1", "https://api.example.org/v1/deep"),
		service("names", "dns://*.pkgs.internal", "dns://a.pkgs.internal"), service("sock", "unix:///run/x.sock"),
		service("lib", "lib:///usr/lib/libfoo.so*"), service("six", "tcp://[2001:db8::/32]:443"),
	})
	for url, want := range map[string]string{
		"tcp://10.1.2.3:5432": "db/p db2/p", "tcp://10.1.2.3:80": "net/p", "tcp://10.1.0.0/16:5432": "db/p db2/p", "tcp://11.0.0.1:80": "",
		"tcp://10.0.0.0/7:80": "", "https://api.example.org/v1/x": "web/q", "https://api.example.org/v10": "web/p", "https://api.example.org/v1/deep/er": "web/r",
		"http://api.example.org/v1": "", "tcp://api.example.org:443": "web/p web/q web/r", "dns://a.pkgs.internal": "names/q", "dns://b.pkgs.internal": "names/p",
		"dns://x.b.pkgs.internal": "names/p", "dns://pkgs.internal": "", "unix:///run/x.sock": "sock/p", "unix:///run/y.sock": "", "lib:///usr/lib/libfoo.so.1": "lib/p",
		"tcp://[2001:db8::1]:443": "six/p", "tcp://[2001:db9::1]:443": "",
	} {
		e, err := fleet.ParseEndpoint(url)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range o.Of(&e) {
			got = append(got, p.Service+"/"+p.Name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %q", url, got, want)
		}
	}
}

func TestUnownedAndInside(t *testing.T) {
	f := plant("a\nr1: a")
	for _, url := range []string{"tcp://10.9.9.9:1", "tcp://127.0.0.1:80"} {
		e, err := fleet.ParseEndpoint(url)
		if err != nil {
			t.Fatal(err)
		}
		f.Recipes[0].Conditions = append(f.Recipes[0].Conditions, fleet.Condition{Endpoint: &e, Effort: 1, Pos: diag.Pos{File: "p/p.star", Line: 7}})
	}
	g := newGraph(t, f, Options{})
	if a := g.Assumed(); a.Unowned != 1 || a.Services() != 1 || g.Len() != 1 {
		t.Errorf("%+v, %d edges", a, g.Len())
	}
	if s := newGraph(t, f, Options{AssumeDown: true}).Order(0).Stuck; len(s) != 2 || !slices.Equal(s[0].Because, []string{"tcp://10.9.9.9:1"}) {
		t.Errorf("%+v", s)
	}
}

func TestWaivers(t *testing.T) {
	g := newGraph(t, plant("a\nb\nc\nr1: a < b\nr2: b < a\nr3: c < c"), Options{})
	waivers, err := ReadWaivers("w.json", []byte(`{"waivers": [
		{"services": ["b", "a"], "owner": "o", "reason": "being mended", "expires": "2026-01-31"},
		{"services": ["a", "c"], "owner": "o", "reason": "gone", "expires": "2026-01-31"}]}`))
	if err != nil || len(waivers) != 2 || waivers[1].Pos.Line != 3 {
		t.Fatal(waivers, err)
	}
	for day, want := range map[string]int{"2026-01-31": 1, "2026-02-01": 2} {
		now, err := time.Parse(time.DateOnly, day)
		if err != nil {
			t.Fatal(err)
		}
		c := g.Cycles()
		found := c.Waive(waivers, now.Add(23*time.Hour))
		if c.Blocking() != want || !found.HasErrors() || !strings.Contains(found.Error(), "no cycle of a and c") {
			t.Errorf("%s: %d block; %v", day, c.Blocking(), found)
		}
	}
	for _, bad := range []string{"", "{", `[{"services": [], "owner": "o", "reason": "r", "expires": "2026-01-31"}]`, `[{"services": ["a"], "owner": "o", "reason": "r", "expires": "31.1.2026"}]`, `[{"services": ["a"], "reason": "r", "expires": "2026-01-31"}]`, `[{"servces": ["a"]}]`} {
		if w, err := ReadWaivers("w.json", []byte(bad)); err == nil {
			t.Errorf("%q was read as %v", bad, w)
		}
	}
}

func TestSavedAndDiff(t *testing.T) {
	before := newGraph(t, plant("a\nb\nc/x,y\nr1: a < b\nr2: b\nr3: c/x < a\nr4: b < *"), Options{})
	var out strings.Builder
	if err := WriteJSON(&out, before.Saved()); err != nil {
		t.Fatal(err)
	}
	saved, err := ReadSaved([]byte(out.String()))
	if err != nil {
		t.Fatal(err)
	}
	again, err := saved.Graph()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := asJSON(again.Saved()), asJSON(before.Saved()); got != want {
		t.Errorf("read back:\n%s\nwant:\n%s", got, want)
	}
	// Known to another repository, whose services are its own.
	other := plant("a\nz\nr9: z < a\nr1: a")
	other.Services = append(other.Services[:1:1], &fleet.Service{Name: "c", Known: "saved.json"}, other.Services[1])
	g := newGraph(t, other, Options{Known: []*Saved{saved}})
	if len(g.Services()) != 4 || len(g.Recipes()) != 5 || g.Len() != 2 {
		t.Errorf("%d services, %d recipes, %d edges", len(g.Services()), len(g.Recipes()), g.Len())
	}
	// A new line closes a cycle.
	after := newGraph(t, plant("a\nb\nc/x,y\nr1: a < b\nr2: b < c/x\nr3: c/x < a"), Options{})
	d, err := after.Diff(saved, after.Cycles())
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Edges) != 1 || len(d.Cycles) != 1 || d.Blocking() != 1 || d.Cycles[0].ClosedBy == nil || d.Cycles[0].ClosedBy.Line != 5 || len(d.Cycles[0].Path) != 3 {
		t.Errorf("%s", asJSON(d))
	}
	checkClosed(t, d.Cycles[0].Path)
	if d, err = after.Diff(after.Saved(), after.Cycles()); err != nil || len(d.Edges)+len(d.Cycles)+len(d.Gone) != 0 {
		t.Errorf("%s, %v", asJSON(d), err)
	}
	for _, bad := range []string{"", "{}", `{"schema": "bj.graph.graph/2"}`, `{"schema": "bj.graph.cycles/1"}`,
		`{"schema": "bj.graph.graph/1", "services": [{"name": "a"}], "edges": [{"from": "a", "to": "b", "recipe": "r"}]}`,
		`{"schema": "bj.graph.graph/1", "services": [{"name": "a"}], "recipes": [{"label": "r", "service": "b"}]}`} {
		if s, err := ReadSaved([]byte(bad)); err == nil {
			t.Errorf("%q was read as %+v", bad, s)
		}
	}
}

func TestCloses(t *testing.T) {
	g := newGraph(t, plant("a\nb/read,write\nc\nd\nr1: a < b/read\nr2: b/write < c\nr3: b/read\nr4: c < a\nr5: d"), Options{})
	for _, c := range []struct{ recipe, service, pathway, want string }{
		{"//p:r1", "c", "default", "a c"}, {"//p:r3", "a", "default", "b a"}, {"//p:r3", "c", "default", "b c a"}, {"//p:r1", "a", "default", "a"},
		{"//p:r1", "b", "write", "a b c"}, {"//p:r5", "a", "default", ""}, {"//p:r2", "b", "read", ""}, {"//p:none", "a", "default", ""}, {"//p:r1", "zz", "default", ""}, {"//p:r1", "b", "none", ""},
	} {
		if got := strings.Join(g.Closes(c.recipe, c.service, c.pathway), " "); got != c.want {
			t.Errorf("%s needing %s/%s closes %q, want %q", c.recipe, c.service, c.pathway, got, c.want)
		}
	}
	if got := g.RecipeWaves(); !slices.Equal(got, []int{2, 4, 1, 3, 1}) {
		t.Errorf("waves %v", got)
	}
}
