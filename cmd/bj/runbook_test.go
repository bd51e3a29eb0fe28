package main

import (
	"fmt"
	"html"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"bj/run/event"
)

// readPages returns the files of a site by name.
func readPages(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatalf("%v\nmake them: make runbooks", err)
	}
	out := map[string]string{}
	for _, x := range entries {
		data, err := os.ReadFile(filepath.Join(dir, x.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[x.Name()] = string(data)
	}
	return out
}

var (
	htmlLink     = regexp.MustCompile(`(?:href|src)="([^"]*)"`)
	htmlAnchor   = regexp.MustCompile(`id="([^"]*)"`)
	markdownLink = regexp.MustCompile(`\[(?:\\.|[^\]\\])*\]\(([^)\s]*)\)`)
)

// checkLinks holds that every link of a site leads to a file and an anchor that
// are there, and that every page can be reached from the index.
func checkLinks(t *testing.T, pages map[string]string) {
	t.Helper()
	reached := map[string]bool{"index.html": true, "index.md": true}
	links := 0
	for name, text := range pages {
		find := htmlLink
		if filepath.Ext(name) == ".md" {
			find = markdownLink
		}
		for _, m := range find.FindAllStringSubmatch(text, -1) {
			links++
			to, err := url.Parse(html.UnescapeString(m[1]))
			if err != nil || to.Scheme != "" || to.Host != "" {
				t.Errorf("%s links to %s, outside of the site (%v)", name, m[1], err)
				continue
			}
			file := to.Path
			if file == "" {
				file = name
			}
			_, ok := pages[file]
			if !ok {
				t.Errorf("%s links to %s, which is not there", name, m[1])
				continue
			}
			reached[file] = true
			if to.Fragment == "" {
				continue
			}
			// A code host makes the same anchors of the Markdown.
			page, there := pages[strings.TrimSuffix(file, filepath.Ext(file))+".html"], false
			for _, a := range htmlAnchor.FindAllStringSubmatch(page, -1) {
				there = there || html.UnescapeString(a[1]) == to.Fragment
			}
			if !there {
				t.Errorf("%s links to %s, and %s has no such anchor", name, m[1], file)
			}
		}
	}
	for name := range pages {
		if !reached[name] {
			t.Errorf("nothing leads to %s", name)
		}
	}
	if links < 2*len(pages) {
		t.Errorf("%d pages have only %d links", len(pages), links)
	}
}

// TestRunbooks compares docs/runbooks with what the demonstration fleet gives,
// without recorded runs: those differ from machine to machine.
func TestRunbooks(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	e := newEnv()
	e.dir = root
	if err := execute(t.Context(), e, []string{"runbook", "//...", "-o", dir, "--results", t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	want, got := readPages(t, dir), readPages(t, filepath.Join(root, "docs", "runbooks"))
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("docs/runbooks/%s is not what the recipes give: make runbooks", name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("docs/runbooks/%s belongs to no recipe: make runbooks", name)
		}
	}
	if len(want) < 10 {
		t.Errorf("the fleet has only %d pages", len(want))
	}
	checkLinks(t, want)
}

// TestSameBytes writes the pages of the demonstration fleet, with recorded runs,
// in other time zones and languages, on one and on many processors, and with
// results whose files have other names. All have the same bytes.
func TestSameBytes(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	e := newEnv()
	e.dir = root
	l, err := loadFleet(t.Context(), e, []string{"//recipes/..."}, false)
	if err != nil {
		t.Fatal(err)
	}
	const runs = 3
	write := func(dir string, i, run int) {
		r := l.recipes[i]
		start := time.Date(2026, 12, 31, 23, 30, i, run, time.FixedZone("", 3600*(run-1)))
		x := event.Record{Schema: event.RecordSchema, Recipe: r.Label, Digest: l.digest(r), Version: version, Start: start, End: start.Add(time.Duration(run+1) * time.Minute),
			Verdict: event.Verdict{Verdict: event.Recovered, Free: []string{"clock", "İıi"}}}
		for _, a := range r.Strategy {
			if a.Step != nil {
				for _, m := range a.Step.On {
					x.Steps = append(x.Steps, event.StepRecord{Title: a.Step.Title, Machine: m, Seconds: float64(run), Output: fmt.Sprint(run, " of ", m)})
				}
			}
		}
		if i%3 == 0 && run == 0 { // the newest, by its zone
			x.Verdict = event.Verdict{Verdict: event.NotRecovered, Reason: "it died"}
		}
		if err := x.Write(dir); err != nil {
			t.Fatal(err)
		}
	}
	results := []string{t.TempDir(), t.TempDir()}
	for i := range l.recipes {
		for run := range runs {
			write(results[0], i, run)
			write(results[1], len(l.recipes)-1-i, runs-1-run)
		}
	}
	names, err := filepath.Glob(filepath.Join(results[1], "*", "*.json"))
	if err != nil || len(names) != runs*len(l.recipes) {
		t.Fatalf("%d results: %v", len(names), err)
	}
	for i, name := range names { // the newest is now the first
		if err := os.Rename(name, filepath.Join(filepath.Dir(name), fmt.Sprintf("%03d.json", len(names)-i))); err != nil {
			t.Fatal(err)
		}
	}
	var want map[string]string
	for i, vars := range [][]string{
		{"TZ=UTC", "LANG=C", "LC_ALL=C", "GOMAXPROCS=1"},
		{"TZ=Pacific/Kiritimati", "LANG=tr_TR.UTF-8", "LC_ALL=tr_TR.UTF-8", "GOMAXPROCS=8"},
	} {
		dir := t.TempDir()
		c := exec.CommandContext(t.Context(), "bj", "runbook", "//...", "-o", dir, "--results", results[i])
		c.Dir, c.Env = root, append(os.Environ(), vars...)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		got := readPages(t, dir)
		if want == nil {
			want = got
			if page := got["recipes+names=cold_start.md"]; !strings.Contains(page, "**Proven** on 2027-01-01 00:31 UTC") && !strings.Contains(page, "**Not proven since 2026-12-31 23:32 UTC**") {
				t.Errorf("the records are not in the pages:\n%.300s", page)
			}
		}
		for name := range got {
			if got[name] != want[name] {
				t.Errorf("%s has other bytes with %v", name, vars)
			}
		}
		if len(got) != len(want) {
			t.Errorf("there are %d files with %v, not %d", len(got), vars, len(want))
		}
	}
}

// siteFleet is a workspace of a service with two ways back, one that needs it,
// and some that need nothing.
func siteFleet(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	text := `
def declare(service_name, name, conditions = []):
    m = hardware("m")
    recipe(
        name = name,
        service = service_name,
        hardware = [m],
        conditions = conditions,
        strategy = [step("Serve ` + "`" + `it` + "`" + `", run = "exec serve", daemon = True)],
        validation = [validate("it serves", run = "ask")],
    )

service(name = "store", owner = "store-oncall")
service(name = "shop", owner = "shop-oncall")
declare("store", "from_stick")
declare("store", "from_tape")
declare("shop", "cold", [allow("store", why = "goods")])
[service(name = "lone-%d" % i, owner = "nobody") for i in range(4)]
[declare("lone-%d" % i, "lone-%d" % i) for i in range(4)]
`
	if err := os.WriteFile(filepath.Join(dir, "bj.star"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "f"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "f", "f.star"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestSiteGrows writes one part of a fleet after the other into one folder. No
// link of any of the sites leads nowhere, and nothing is lost.
func TestSiteGrows(t *testing.T) {
	e := newEnv()
	e.dir = siteFleet(t)
	dir, results := t.TempDir(), t.TempDir()
	want := 0
	for _, part := range []struct {
		pattern string
		pages   int
	}{{"//f:lone-0", 1}, {"//f:cold", 3}, {"//f:lone-1", 1}} {
		if err := execute(t.Context(), e, []string{"runbook", part.pattern, "-o", dir, "--results", results}); err != nil {
			t.Fatal(err)
		}
		pages := readPages(t, dir)
		checkLinks(t, pages)
		if want += part.pages; len(pages) != 2*want+5 {
			t.Errorf("after %s there are %d files, and not those of %d recipes", part.pattern, len(pages), want)
		}
	}
}

// TestSiteOfMany has several runs write their pages into one folder at once,
// each of its own recipes, as bj test --runbooks does. Whoever reads meanwhile
// sees whole files, and in the end nothing is missing or stale.
func TestSiteOfMany(t *testing.T) {
	root, dir, results := siteFleet(t), t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ".new-123"), []byte("of a bj that was killed"), 0o644); err != nil {
		t.Fatal(err)
	}
	runs := [][]string{{"//f:lone-0", "//f:lone-1", "//f:cold"}, {"//f:from_tape", "//f:lone-2"}, {"//f:lone-3", "//f:cold", "//f:from_stick"}}
	over, seen := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { seen <- n }()
		for {
			names, _ := filepath.Glob(filepath.Join(dir, "*.html"))
			for _, name := range names {
				data, err := os.ReadFile(name)
				if n++; err != nil || !strings.HasSuffix(string(data), "</html>\n") {
					t.Errorf("%s was not whole: %d bytes (%v)", name, len(data), err)
				}
			}
			select {
			case <-over:
				return
			default:
			}
		}
	}()
	var all sync.WaitGroup
	for i, labels := range runs {
		e := newEnv()
		e.dir = root
		l, err := loadFleet(t.Context(), e, []string{"//..."}, true)
		if err != nil {
			t.Fatal(err)
		}
		pages := &runbooks{dir: dir, l: l, records: func(label string) []event.Record {
			records, err := event.Records(results, label)
			if err != nil {
				t.Error(err)
			}
			return records
		}}
		all.Go(func() {
			for _, label := range labels {
				start := time.Date(2026, 5, 6, 7, i, 0, 0, time.FixedZone("", 9*3600))
				x := event.Record{Schema: event.RecordSchema, Recipe: label, Digest: l.digest(l.fleet.Recipe(label)), Version: version, Start: start, End: start.Add(time.Minute),
					Verdict: event.Verdict{Verdict: event.Recovered, Root: fmt.Sprint("root ", i)}}
				if err := x.Write(results); err != nil {
					t.Error(err)
				}
				pages.done(x)
			}
			if err := pages.close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	close(over)
	if n := <-seen; n == 0 {
		t.Error("nobody looked at the pages")
	}
	got := readPages(t, dir)
	checkLinks(t, got)
	if len(got) != 2*7+5 {
		t.Errorf("there are %d files, and not those of 7 recipes", len(got))
	}
	// The same, from what was recorded alone.
	again := t.TempDir()
	e := newEnv()
	e.dir = root
	if err := execute(t.Context(), e, []string{"runbook", "//...", "-o", again, "--results", results}); err != nil {
		t.Fatal(err)
	}
	for name, text := range readPages(t, again) {
		if got[name] != text {
			t.Errorf("%s is not what the recorded runs give", name)
		}
	}
}
