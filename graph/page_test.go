package graph

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// TestPage is what a person does, in a real browser. All tests of it share a
// browser, and each has a page of its own, which must request nothing and throw
// nothing.
func TestPage(t *testing.T) {
	browser := startBrowser(t)
	small := newGraph(t, smallFleet(), Options{})
	for _, c := range []struct {
		name string
		do   func(t *testing.T, browser context.Context, g *Graph)
	}{
		{"renders", pageRenders}, {"places", pagePlaces}, {"focus", pageFocus}, {"why", pageWhy}, {"outage", pageOutage},
		{"search", pageSearch}, {"owner", pageOwner}, {"cycle", pageCycles}, {"keyboard", pageKeyboard}, {"address", pageAddress},
		{"noscript", pageNoScript}, {"hostile", pageHostile}, {"policy", pagePolicy}, {"accessible", pageAccessible}, {"print", pagePrint},
		{"answers", pageAnswers}, {"large", pageLarge},
	} {
		t.Run(c.name, func(t *testing.T) { c.do(t, browser, small) })
	}
}

const (
	status   = `document.getElementById("status").textContent`
	selected = `bj.state.select < 0 ? "" : bj.model.name[bj.state.select]`
	said     = `document.getElementById("live").textContent`
)

// expect compares the value of an expression.
func expect[T comparable](p *tab, expression string, want T) {
	p.Helper()
	if got := value[T](p, expression); got != want {
		p.Errorf("%s is %v, and should be %v", expression, got, want)
	}
}

// contains looks for words in the value of an expression.
func contains(p *tab, expression string, words ...string) {
	p.Helper()
	got := value[string](p, expression)
	for _, w := range words {
		if !strings.Contains(got, w) {
			p.Errorf("%s is %q, without %q", expression, got, w)
		}
	}
}

func pageRenders(t *testing.T, browser context.Context, g *Graph) {
	p := openPage(t, browser, g, "")
	p.until(`bj.picture.frames > 0 && !bj.picture.busy`)
	contains(p, status, "Showing 10 of 10 services and 12 of 14 needs; 2 of the services are inside 1 closed box.")
	contains(p, `document.querySelector("header").textContent`, "Test fleet", "2 blocking cycles", "assumed to come back by other means")
	// The canvas has many colours, and not only that of the paper.
	const colours = `(() => { const c = document.getElementById("canvas"), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data, s = new Set(); for (let i = 0; i < d.length; i += 4) s.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]); return s.size })()`
	if n := value[int](p, colours); n < 20 {
		t.Errorf("the picture has %d colours: nothing is drawn", n)
	}
	// Nor is it empty in the frame in which it gets another size. An observer
	// that came after the picture's own sees what that frame will show; its first
	// call is about the size at its start.
	if n := value[int](p, `new Promise((done) => {
		const c = document.getElementById("canvas");
		let calls = 0;
		new ResizeObserver(() => { if (calls++) done(`+colours+`); else c.style.width = "300px"; }).observe(c);
	})`); n < 20 {
		t.Errorf("the picture has %d colours in the frame in which its size changes: nothing is drawn", n)
	}
	expect(p, `getComputedStyle(document.getElementById("tables")).display`, "none")
}

// pagePlaces compares the page's places with those of the SVG.
func pagePlaces(t *testing.T, browser context.Context, g *Graph) {
	p := openPage(t, browser, g, "")
	picture := g.Picture(g.Cycles())
	at := picture.outer.points()
	for i := range picture.boxes {
		got := value[[]float64](p, fmt.Sprintf(`Array.from(bj.picture.box(%d))`, i))
		c, r := picture.outer.col[i], picture.outer.row[i]
		want := []float64{at.x[c], at.y[r], picture.outer.colWidth[c], cellHeight}
		if !slices.Equal(got, want) {
			t.Errorf("box %d lies at %v in the page, and at %v in the SVG", i, got, want)
		}
	}
}

func pageFocus(t *testing.T, browser context.Context, g *Graph) {
	p := openPage(t, browser, g, "")
	p.click("ledger")
	expect(p, selected, "ledger")
	contains(p, `document.getElementById("now").textContent`, "ledger", "Owner: money", "//r/ledger:from_paper", "r/ledger/r.star:13", "it asks directory", "Needed by 1 service")
	near := `bj.model.name.filter((n, i) => bj.picture.shown[i]).join(" ")`
	p.run(chromedp.Click("#only", chromedp.ByID))
	expect(p, near, "clock directory ledger packages shop")
	contains(p, status, "Showing 5 of 10 services (around ledger, depth 1)")
	p.run(chromedp.SetValue("#depth", "2", chromedp.ByID), chromedp.Evaluate(`document.getElementById("depth").dispatchEvent(new Event("change"))`, nil))
	expect(p, near, "clock directory ledger names packages secrets shop")
	p.run(chromedp.SetValue("#depth", "all", chromedp.ByID), chromedp.Evaluate(`document.getElementById("depth").dispatchEvent(new Event("change"))`, nil))
	expect(p, near, "clock directory ledger names packages secrets shop")
	p.run(chromedp.Click("#only", chromedp.ByID))
	contains(p, status, "Showing 10 of 10 services")
	p.click("ledger") // again: nothing is selected
	expect(p, selected, "")
}

func pageWhy(t *testing.T, browser context.Context, g *Graph) {
	p := openPage(t, browser, g, "")
	p.run(chromedp.Click(`input[name=mode][value=why]`, chromedp.ByQuery))
	p.click("shop")
	p.click("names")
	contains(p, `document.getElementById("whyb").textContent`, "shop needs names over 3 edges", "r/shop/r.star:", "r/ledger/r.star:14", "r/directory/r.star:11")
	expect(p, `bj.picture.look.lines()[0].pairs.length`, 3)
	p.click("names") // a new question
	p.click("shop")
	contains(p, `document.getElementById("whyb").textContent`, "names does not need shop")
}

func pageOutage(t *testing.T, browser context.Context, g *Graph) {
	p := openPage(t, browser, g, "")
	p.run(chromedp.Click(`input[name=mode][value=down]`, chromedp.ByQuery))
	p.click("packages")
	contains(p, `document.getElementById("outb").textContent`, "1 service down", "1 come back in 1 wave", "0 stuck")
	p.run(chromedp.Click("#spread", chromedp.ByID))
	contains(p, `document.getElementById("outb").textContent`, "1 service down, 6 lost with it")
	p.run(chromedp.Click("#downall", chromedp.ByID))
	contains(p, `document.getElementById("outb").textContent`, "10 services down", "3 stuck")
	contains(p, `document.getElementById("outlist").textContent`, "Stuck in a cycle: 3", "directory", "secrets", "sidecar")
	// The hand on the slider: after wave 0 all that was lost is down.
	p.run(chromedp.Evaluate(`(() => { const s = document.getElementById("step"); s.value = 1; s.dispatchEvent(new Event("input")) })()`, nil))
	expect(p, `bj.state.step`, 1)
	contains(p, `bj.picture.look.service(bj.model.find("clock")).note`, "back in wave 1")
	contains(p, `bj.picture.look.service(bj.model.find("names")).note`, "down until wave 2")
	contains(p, `bj.picture.look.service(bj.model.find("directory")).note`, "stuck in a cycle")
	p.run(chromedp.Click("#downclear", chromedp.ByID))
	contains(p, `document.getElementById("outb").textContent`, "Nothing is down")
}

func pageSearch(t *testing.T, browser context.Context, g *Graph) {
	p := openPage(t, browser, g, "")
	p.run(chromedp.SendKeys("#q", "people", chromedp.ByID))
	contains(p, `document.getElementById("found").textContent`, "2 of 10 services")
	contains(p, `document.getElementById("hits").textContent`, "directory", "mail")
	p.run(chromedp.Evaluate(`document.getElementById("q").value = ""`, nil), chromedp.SendKeys("#q", "secr"+kb.Enter, chromedp.ByID))
	expect(p, selected, "secrets")
	expect(p, `bj.picture.open.size`, 1) // it is inside a cycle, which is open now
	p.run(chromedp.SendKeys("#q", "zzz", chromedp.ByID))
	contains(p, `document.getElementById("found").textContent`, "0 of 10 services match")
}

func pageOwner(t *testing.T, browser context.Context, g *Graph) {
	p := openPage(t, browser, g, "")
	p.run(chromedp.Evaluate(`(() => { const o = document.getElementById("owner"); o.value = [...o.options].find((x) => x.textContent === "money").value; o.dispatchEvent(new Event("change")) })()`, nil))
	contains(p, status, "Showing 2 of 10 services (of money) and 1 of 14 needs")
	p.run(chromedp.Click(`input[name=view][value=table]`, chromedp.ByQuery))
	expect(p, `[...document.querySelectorAll("#table tbody tr")].filter((r) => r.offsetParent).length`, 2)
	contains(p, status, "Showing 2 of 10 services (of money).")
	p.run(chromedp.SendKeys("#q", "clock"+kb.Enter, chromedp.ByID)) // which the filter hid
	expect(p, `document.activeElement.textContent`, "clock")
	contains(p, status, "Showing 10 of 10 services.")
}

func pageCycles(t *testing.T, browser context.Context, g *Graph) {
	p := openPage(t, browser, g, "")
	contains(p, `document.getElementById("cycleb").textContent`, "Blocking: 2 services", "directory needs secrets", "r/directory/r.star:12", "r/secrets/r.star:", "Blocking: 1 service")
	p.click("directory") // its box is closed: this opens it
	expect(p, `bj.picture.open.size`, 1)
	contains(p, status, "and 14 of 14 needs.")
	expect(p, selected, "")
	// Its shortest cycle is drawn over the other lines.
	expect(p, `bj.picture.marks.map((m) => m.color + " " + m.segs.length / 6).join()`, "bad 2")
	p.click("directory")
	expect(p, selected, "directory")
}

// pageKeyboard uses nothing but keys.
func pageKeyboard(t *testing.T, browser context.Context, g *Graph) {
	p := openPage(t, browser, g, "")
	// Tab reaches every control that can be seen, and each shows that it is.
	reached := map[string]bool{}
	for range 40 {
		p.press(kb.Tab)
		at := value[[]string](p, `(() => { const e = document.activeElement, s = getComputedStyle(e); return [e.id || e.name || e.textContent.slice(0, 20), s.outlineStyle] })()`)
		if at[1] == "none" && at[0] != "" && !strings.HasPrefix(at[0], "\n") {
			t.Errorf("%s has the focus, and does not show it", at[0])
		}
		if reached[at[0]] && at[0] == "q" {
			break
		}
		reached[at[0]] = true
	}
	for _, id := range []string{"q", "owner", "mode", "view", "canvas", "in", "out", "fit"} {
		if !reached[id] {
			t.Errorf("Tab does not reach %s, only %v", id, reached)
		}
	}
	p.run(chromedp.Focus("#canvas", chromedp.ByID))
	p.press("/")
	expect(p, `document.activeElement.id`, "q")
	p.press(strings.Split("names", "")...)
	p.press(kb.Enter)
	expect(p, selected, "names")
	expect(p, `document.activeElement.id`, "canvas")
	contains(p, said, "names, claimed, owned by net, needs 1, needed by 2")
	p.press(kb.ArrowLeft)
	expect(p, selected, "packages")
	p.press(kb.ArrowRight) // to one that needs packages
	expect(p, `bj.model.out[bj.state.select].map((i) => bj.model.name[i]).includes("packages")`, true)
	p.press(kb.Escape)
	expect(p, selected, "")
	p.press(kb.ArrowDown) // begins at the first
	expect(p, `bj.model.name[bj.state.select] !== ""`, true)
	before := value[float64](p, `bj.picture.scale`)
	p.press("+")
	if after := value[float64](p, `bj.picture.scale`); after <= before {
		t.Errorf("plus went from scale %v to %v", before, after)
	}
	// A cycle opens and closes.
	p.press("/")
	p.press(strings.Split("directory", "")...)
	p.press(kb.Enter)
	expect(p, `bj.picture.open.size`, 1)
	p.press("o")
	expect(p, `bj.picture.open.size`, 0)
	// Down it goes, by its button.
	p.press("/")
	p.press(strings.Split("clock", "")...)
	p.press(kb.Enter)
	for range 12 {
		if value[string](p, `document.activeElement.textContent`) == "Take down" {
			break
		}
		p.press(kb.Tab)
	}
	p.press(kb.Enter)
	expect(p, `[...bj.state.down].map((s) => bj.model.name[s]).join()`, "clock")
}

// pageAddress opens what another page has in its address.
func pageAddress(t *testing.T, browser context.Context, g *Graph) {
	p := openPage(t, browser, g, "")
	p.run(chromedp.Click(`input[name=mode][value=down]`, chromedp.ByQuery))
	p.click("packages")
	p.click("clock")
	p.run(chromedp.Click("#spread", chromedp.ByID), chromedp.Click(`input[name=mode][value=look]`, chromedp.ByQuery))
	p.click("directory") // opens
	p.click("ledger")
	p.run(chromedp.Evaluate(`(() => { const d = document.getElementById("depth"); d.value = "3"; d.dispatchEvent(new Event("change")) })()`, nil), chromedp.Click("#only", chromedp.ByID), chromedp.Click("#in", chromedp.ByID))
	p.until(`location.hash === "#" + bj.encode()`)
	hash := value[string](p, `location.hash`)
	view := `JSON.stringify([bj.encode(), ` + status + `, bj.outage.waves, bj.outage.stuck, bj.picture.camera().map(Math.round), bj.picture.drawn])`
	want := value[string](p, view)
	other := openPage(t, browser, g, hash)
	expect(other, view, want)
	for _, word := range []string{"select=ledger", "down=packages", "down=clock", "spread=1", "depth=3", "only=1", "open=directory", "at="} {
		if !strings.Contains(hash, word) {
			t.Errorf("the address %s lacks %s", hash, word)
		}
	}
	// A change of the address alone is followed, and nonsense in it harms nobody.
	other.run(chromedp.Evaluate(`location.hash = "#why=shop&why=names"`, nil))
	other.until(`bj.path !== null && bj.state.select < 0`)
	other.run(chromedp.Evaluate(`location.hash = "#select=nobody&depth=-7&down=%3Cb%3E&open=clock&at=x,y&wave=zz&owner=none&view=x"`, nil))
	other.until(`bj.path === null`)
	contains(other, said, "Not in this graph: nobody")
	contains(other, status, "Showing 10 of 10 services")
}

// pageNoScript has all of it in a table.
func pageNoScript(t *testing.T, browser context.Context, g *Graph) {
	file := filepath.Join(t.TempDir(), "graph.html")
	if err := os.WriteFile(file, []byte(g.page(t)), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, close := chromedp.NewContext(browser)
	defer close()
	ctx, cancel := context.WithTimeout(ctx, pageDeadline)
	defer cancel()
	if err := chromedp.Run(ctx, emulation.SetScriptExecutionDisabled(true), chromedp.Navigate("file://"+file)); err != nil {
		t.Fatal(err)
	}
	wanted := []string{"r/secrets/r.star:", "Blocking, 2 services", "stuck", "The table has 10 services of 10."}
	for i := range g.services {
		wanted = append(wanted, g.services[i].Name)
	}
	var text string
	missing := func() (all []string) {
		for _, want := range wanted {
			if !strings.Contains(text, want) {
				all = append(all, want)
			}
		}
		return all
	}
	// A page may be read while the browser still lays it out.
	for deadline := time.Now().Add(pageDeadline / 2); ; time.Sleep(50 * time.Millisecond) {
		if err := chromedp.Run(ctx, chromedp.Text("body", &text, chromedp.ByQuery)); err != nil {
			t.Fatal(err)
		}
		if len(missing()) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("without script, %q cannot be seen", missing())
			break
		}
	}
	for _, not := range []string{"Zoom", "A click", "Outage"} {
		if strings.Contains(text, not) {
			t.Errorf("without script, %q can be seen, and does nothing", not)
		}
	}
}

func pageHostile(t *testing.T, browser context.Context, _ *Graph) {
	g := hostileGraph(t)
	p := openPage(t, browser, g, "#down-all=1")
	for i := range g.services {
		p.run(chromedp.Evaluate(fmt.Sprintf(`location.hash = "#select=" + encodeURIComponent(bj.model.name[%d]) + "&depth=all&view=%s"`, i, []string{"picture", "table"}[i%2]), nil))
		p.until(fmt.Sprintf(`bj.state.select === %d`, i))
	}
	p.run(chromedp.SendKeys("#q", "script", chromedp.ByID))
	p.until(`!bj.picture.pending`)
	expect(p, `globalThis.pwned === undefined`, true)
	expect(p, `document.querySelectorAll("img, iframe, object, embed, main svg:not([aria-hidden])").length`, 0)
	expect(p, `document.scripts.length`, 3)
	contains(p, `document.getElementById("hits").textContent`, `<script>globalThis.pwned=1</script>`)
}

// pagePolicy puts a script into the page, as if escaping had failed.
func pagePolicy(t *testing.T, browser context.Context, g *Graph) {
	p := openPage(t, browser, g, "")
	refused := value[[]string](p, `new Promise((done) => {
		const got = [];
		document.addEventListener("securitypolicyviolation", (e) => { got.push(e.effectiveDirective); if (got.length === 4) done(got.sort()); });
		const s = document.createElement("script"); s.textContent = "globalThis.pwned = 1"; document.body.append(s);
		const i = document.createElement("div"); i.innerHTML = "<b style='color:red' onclick='globalThis.pwned = 1'>x</b>"; document.body.append(i); i.firstChild.click();
		const m = document.createElement("img"); m.src = "data:image/gif;base64,R0lGODlhAQABAAAAACw="; document.body.append(m);
	})`)
	want := []string{"img-src", "script-src-attr", "script-src-elem", "style-src-attr"}
	if !slices.Equal(refused, want) {
		t.Errorf("the policy refused %v, and should refuse %v", refused, want)
	}
	expect(p, `globalThis.pwned === undefined`, true)
}

// axeVersion is what make test keeps in a folder of the cache.
const axeVersion = "4.14.1"

// pageAccessible runs axe-core on what can be seen, in light and dark.
func pageAccessible(t *testing.T, browser context.Context, g *Graph) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("no folder for axe-core: %v", err)
	}
	file := filepath.Join(cache, "bj-test", "axe-core-"+axeVersion, "node_modules", "axe-core", "axe.min.js")
	axe, err := os.ReadFile(file)
	if err != nil {
		t.Skipf("no axe-core %s: make setup installs it: %v", axeVersion, err)
	}
	for _, scheme := range []string{"light", "dark"} {
		for _, hash := range []string{"", "#select=ledger&depth=2", "#why=shop&why=names", "#down-all=1&select=directory&open=directory", "#view=table"} {
			p := openPage(t, browser, g, hash)
			p.run(chromedp.ActionFunc(func(ctx context.Context) error {
				return emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}).Do(ctx)
			}), chromedp.Evaluate(`document.querySelectorAll("details").forEach((d) => { d.open = true })`, nil), chromedp.Evaluate(string(axe), nil))
			found := value[[]string](p, `axe.run(document, {resultTypes: ["violations"]}).then((r) => r.violations.map((v) => v.id + ": " + v.help + ": " + v.nodes.slice(0, 3).map((n) => n.html.slice(0, 160) + " " + n.failureSummary).join(" | ")))`)
			if len(found) > 0 {
				t.Errorf("%s%s:\n%s", scheme, hash, strings.Join(found, "\n"))
			}
			if n := value[int](p, `axe.run(document, {resultTypes: ["passes"]}).then((r) => r.passes.length)`); n < 15 {
				t.Errorf("%s%s: axe looked at only %d rules", scheme, hash, n)
			}
		}
	}
}

// pagePrint has the table on paper, too.
func pagePrint(t *testing.T, browser context.Context, g *Graph) {
	p := openPage(t, browser, g, "")
	p.run(emulation.SetEmulatedMedia().WithMedia("print"))
	expect(p, `getComputedStyle(document.getElementById("tables")).display`, "block")
	expect(p, `getComputedStyle(document.querySelector(".bar")).display`, "none")
}

// pageAnswers compares the page's questions with Go's, on random fleets with
// alternatives and several pathways: outages, what is stuck in cycles, and why.
func pageAnswers(t *testing.T, browser context.Context, g *Graph) {
	p := openPage(t, browser, g, "")
	type answer struct {
		Lost, Stuck, InCycle []int
		Waves                [][]int
		Why                  [][]string // file:line of each edge; nil for none
	}
	stuck := 0
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 7))
		f := randomFleet(rng, 3+rng.IntN(25))
		line := 0
		for _, r := range f.Recipes {
			for i := range r.Conditions {
				line++
				r.Conditions[i].Pos.File, r.Conditions[i].Pos.Line = "f", line
			}
		}
		g := newGraph(t, f, Options{AssumeDown: seed%3 == 0})
		o := OutageOptions{Spread: seed%2 == 0, All: seed%5 == 0}
		for s := range g.services {
			if o.All || rng.IntN(3) == 0 {
				o.Down = append(o.Down, s)
			}
		}
		pairs := [][2]int{}
		for range 12 {
			pairs = append(pairs, [2]int{rng.IntN(len(g.services)), rng.IntN(len(g.services))})
		}
		got := value[answer](p, fmt.Sprintf(`(() => {
			const m = new bj.model.constructor(%s), o = m.outage(%s, %v), all = [...Array(m.n).keys()];
			return {Lost: all.filter((s) => o.lost[s]), Stuck: o.stuck, InCycle: o.stuck.filter((s) => o.inCycle[s]), Waves: o.waves,
				Why: %s.map(([a, b]) => { const w = m.why(a, b); return w && w.map((e) => m.edgePlace(e)) })};
		})()`, quoted(g.Picture(g.Cycles()).pageData("x")), quoted(append([]int{}, o.Down...)), o.Spread, quoted(pairs)))
		want := g.Outage(o)
		check := func(what string, numbers []int, names []string) {
			if got := g.namesOf(numbers); !slices.Equal(got, names) {
				t.Errorf("fleet %d: the page has %v as %s, and Go %v", seed, got, what, names)
			}
		}
		check("lost", got.Lost, want.Lost)
		stuckNames, inCycle := []string{}, []string{}
		for _, s := range want.Stuck {
			stuck++
			stuckNames = append(stuckNames, s.Service)
			if s.InCycle {
				inCycle = append(inCycle, s.Service)
			}
		}
		check("stuck", got.Stuck, stuckNames)
		check("stuck in a cycle", got.InCycle, inCycle)
		if len(got.Waves) != len(want.Waves) {
			t.Fatalf("fleet %d: the page has %d waves, and Go %d", seed, len(got.Waves), len(want.Waves))
		}
		for i := range want.Waves {
			check(fmt.Sprintf("wave %d", i+1), got.Waves[i], want.Waves[i])
		}
		for i, pair := range pairs {
			var path []string
			for _, e := range g.Why(pair[0], pair[1]).Path {
				path = append(path, at(e.File, e.Line))
			}
			if !slices.Equal(got.Why[i], path) {
				t.Errorf("fleet %d: why %v is %v in the page, and %v in Go", seed, pair, got.Why[i], path)
			}
		}
	}
	if stuck == 0 {
		t.Error("no outage left anything stuck: the test sees nothing")
	}
}

// largeFleet has n services in layers, with five needs each, hubs, and cycles.
func largeFleet(t testing.TB, n int) *Graph {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 8))
	s := &Saved{}
	name := func(i int) string {
		return fmt.Sprintf("%s-%05d", []string{"billing", "search", "edge", "media"}[i%4], i)
	}
	for i := range n {
		file := "r/" + name(i) + "/r.star"
		s.Services = append(s.Services, Service{Name: name(i), Owner: fmt.Sprintf("team-%d", i%50), File: file, Line: 1, State: Claimed, Pathways: []string{"default"}})
		label := "//r/" + name(i) + ":cold"
		s.Recipes = append(s.Recipes, Recipe{Label: label, Service: name(i), Restores: []string{"default"}, File: file, Line: 2})
		seen := map[int]bool{}
		for k := range 5 {
			to := rng.IntN(max(i*19/20, 1))
			switch {
			case k == 0:
				to = rng.IntN(min(max(i, 1), 20)) // hubs
			case i%1000 == 999 && k == 1:
				to = min(i+1, n-1)
			case i%1000 == 0 && i > 0 && k == 1:
				to = i - 1 // and back
			}
			if to != i && !seen[to] {
				seen[to] = true
				s.Edges = append(s.Edges, Edge{From: name(i), To: name(to), Recipe: label, Pathways: []string{"default"}, Why: "it must", Effort: 1, File: file, Line: 3 + k})
			}
		}
	}
	g, err := s.Graph()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// pageLarge opens 10,000 services, and says how long things took. What it holds
// is that all of it is there, and that every frame ends.
func pageLarge(t *testing.T, browser context.Context, _ *Graph) {
	g := largeFleet(t, 10_000)
	start := time.Now()
	p := openPage(t, browser, g, "")
	contains(p, status, "Showing 10,000 of 10,000 services")
	t.Logf("opened in %v, of which %s ms until it answers", time.Since(start).Round(time.Millisecond), value[string](p, `document.documentElement.dataset.ready`))
	p.until(`!bj.picture.busy`)
	for _, scale := range []string{"bj.picture.scale", "0.35", "1"} {
		t.Log(value[string](p, `new Promise((done) => {
			bj.picture.setCamera([bj.picture.at.width / 2, bj.picture.at.height / 2, `+scale+`]);
			const paint = [], frame = [];
			let last = performance.now();
			const step = () => {
				frame.push(performance.now() - last); last = performance.now(); paint.push(bj.picture.took);
				bj.picture.pan(7, 3);
				if (paint.length < 40) requestAnimationFrame(step);
				else { paint.sort((a, b) => a - b); frame.sort((a, b) => a - b); done("at scale " + bj.picture.scale.toFixed(3) + " while it moves: median paint " + paint[20].toFixed(1) + " ms, median frame " + frame[20].toFixed(1) + " ms, longest " + frame[39].toFixed(1) + " ms") }
			};
			requestAnimationFrame(step);
		})`))
		p.until(`!bj.picture.busy`)
	}
	p.run(chromedp.SendKeys("#q", "media-09999"+kb.Enter, chromedp.ByID))
	expect(p, selected, "media-09999")
	p.run(chromedp.Click("#downall", chromedp.ByQuery, chromedp.AtLeast(0)))
	t.Logf("everything down, and back: %.0f ms", value[float64](p, `(() => { const t = performance.now(); document.getElementById("downall").click(); return performance.now() - t })()`))
	want := g.Outage(OutageOptions{All: true})
	expect(p, `bj.outage.waves.length`, len(want.Waves))
	expect(p, `bj.outage.stuck.length`, len(want.Stuck))
	t.Logf("to the table: %.0f ms", value[float64](p, `(() => { const t = performance.now(); document.querySelector("[name=view][value=table]").click(); document.body.offsetHeight; return performance.now() - t })()`))
	expect(p, `document.querySelectorAll("#table tbody tr").length`, 10_000)
}
