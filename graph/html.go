package graph

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // the parts of the page
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// The page's parts. The script is split by what it knows: the graph as numbers
// and its questions, the picture on a canvas, and the page around the two.
var (
	//go:embed page/page.html
	pageHTML string
	//go:embed page/page.css
	pageCSS string
	//go:embed page/model.js
	modelJS string
	//go:embed page/picture.js
	pictureJS string
	//go:embed page/page.js
	pageJS string
)

// headJS runs before the body is read, so that a large table is not laid out
// where the picture hides it.
const headJS = `document.documentElement.classList.add("live", "picture");`

// WriteHTML writes the picture as one page that requests nothing: style, script
// and data are inside, and its Content-Security-Policy lets only them in.
// Without script it is a table that says the same. Title is plain text.
func (p *Picture) WriteHTML(w io.Writer, title string) error {
	var data bytes.Buffer
	enc := json.NewEncoder(&data) // which escapes <, > and &, so that no text ends the element
	if err := enc.Encode(p.pageData(title)); err != nil {
		return fmt.Errorf("encoding the picture: %w", err)
	}
	script := "\"use strict\";\n(() => {\n" + modelJS + pictureJS + pageJS + "})();\n"
	for _, s := range []string{script, pageCSS} {
		if strings.Contains(strings.ToLower(s), "</s") {
			return fmt.Errorf("writing the page: its own script or style would end its element")
		}
	}
	parts := strings.NewReplacer(
		"{{.HeadHash}}", contentHash(headJS), "{{.Head}}", headJS, "{{.ScriptHash}}", contentHash(script), "{{.StyleHash}}", contentHash(pageCSS),
		"{{.Style}}", pageCSS, "{{.Script}}", script, "{{.Data}}", data.String(),
		"{{.Title}}", text(title), "{{.Summary}}", text(p.summary()), "{{.Shown}}", text(p.tableShown()),
		"{{.Table}}", p.table(), "{{.Cycles}}", p.cycleList(),
	)
	if _, err := parts.WriteString(w, pageHTML); err != nil {
		return fmt.Errorf("writing the page: %w", err)
	}
	return nil
}

// contentHash is the source by which a Content-Security-Policy knows a text.
func contentHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// pageData is what the script reads: the graph as numbers, in columns, and the
// places. Services, pathways, recipes and edges have the numbers that they have
// in the Graph.
type pageData struct {
	Title     string       `json:"title"`
	Down      bool         `json:"down"` // what is assumed is lost
	Owners    []string     `json:"owners"`
	Files     []string     `json:"files"`
	Services  pageServices `json:"services"`
	Pathways  []string     `json:"pathways"`
	Assumed   []int32      `json:"assumed"` // pathways
	Recipes   pageRecipes  `json:"recipes"`
	Edges     pageEdges    `json:"edges"`
	Cycles    []pageCycle  `json:"cycles"`
	Boxes     []pageBox    `json:"boxes"`
	BoxEdges  [][2]int32   `json:"boxEdges"`
	Weights   []int        `json:"weights"`
	Outer     pageSheet    `json:"outer"`
	Sizes     pageSizes    `json:"sizes"`
	NeedCount int          `json:"needCount"` // pairs of services of which one needs the other
}

type pageServices struct {
	Name  []string `json:"name"`
	Owner []int    `json:"owner"`
	Kind  []string `json:"kind"`
	State []State  `json:"state"`
	File  []int    `json:"file"`
	Line  []int    `json:"line"`
	First []int32  `json:"first"` // its pathways begin there; one more than services
	Box   []int32  `json:"box"`
}

type pageRecipes struct {
	Label    []string  `json:"label"`
	Service  []int     `json:"service"`
	Restores [][]int32 `json:"restores"`
	Excluded []string  `json:"excluded"`
}

type pageEdges struct {
	Recipe   []int32   `json:"recipe"`
	To       []int32   `json:"to"`
	Pathways [][]int32 `json:"pathways"`
	Why      []string  `json:"why"`
	Effort   []int32   `json:"effort"`
	File     []int     `json:"file"`
	Line     []int32   `json:"line"`
}

type pageCycle struct {
	Services []int      `json:"services"`
	Blocking bool       `json:"blocking"`
	Waived   bool       `json:"waived"`
	Frees    int        `json:"frees"`
	WayOut   []string   `json:"wayOut"`
	Path     []pageStep `json:"path"`
	Break    []pageStep `json:"break"`
}

// pageStep is an edge of a path.
type pageStep struct {
	From int    `json:"from"`
	To   int    `json:"to"`
	At   string `json:"at"`
	Why  string `json:"why"`
}

type pageBox struct {
	Services []int      `json:"services"`
	Layer    int        `json:"layer"`
	Cyclic   bool       `json:"cyclic,omitempty"`
	Blocking bool       `json:"blocking,omitempty"`
	Name     string     `json:"name,omitempty"` // and below: where it has several services
	Below    string     `json:"below,omitempty"`
	Inner    *pageSheet `json:"inner,omitempty"`
	Edges    [][2]int32 `json:"edges,omitempty"`
}

type pageSheet struct {
	Cols  int       `json:"cols"`
	Rows  int       `json:"rows"`
	Bands [][2]int  `json:"bands"`
	Col   []int32   `json:"col"`
	Row   []int32   `json:"row"`
	Gap   []int32   `json:"gap"`
	Lane  []int32   `json:"lane"`
	Width []float64 `json:"width"`
	Gut   []float64 `json:"gut"`
	High  []float64 `json:"high"`
}

type pageSizes struct {
	Cell, Gap, Lane, Inset, Name, Small, Pad, Head float64
}

func newPageSheet(s *sheet) pageSheet {
	out := pageSheet{Cols: s.columns, Rows: s.rows, Col: s.col, Row: s.row, Gap: s.gap, Lane: s.lane, Width: s.colWidth, Gut: s.gutter, High: s.gapHigh, Bands: [][2]int{}}
	for _, b := range s.bands {
		out.Bands = append(out.Bands, [2]int{int(b.first), int(b.count)})
	}
	return out
}

// table of strings that repeat.
type interned struct {
	index map[string]int
	all   []string
}

func (t *interned) of(s string) int {
	i, ok := t.index[s]
	if !ok {
		if t.index == nil {
			t.index = map[string]int{}
		}
		i = len(t.all)
		t.index[s], t.all = i, append(t.all, plain(s))
	}
	return i
}

func (p *Picture) pageData(title string) *pageData {
	g := p.graph
	d := &pageData{Title: plain(title), Down: g.down, BoxEdges: p.edges, Weights: p.weight, Outer: newPageSheet(&p.outer), Cycles: []pageCycle{}, Assumed: []int32{}, Pathways: []string{},
		Sizes: pageSizes{cellHeight, minGap, laneHeight, cellInset, nameWidth, smallWidth, innerPad, innerHead}}
	var owners, files interned
	for i := range g.services {
		s := &g.services[i]
		d.Services.Name = append(d.Services.Name, plain(s.Name))
		d.Services.Owner = append(d.Services.Owner, owners.of(s.Owner))
		d.Services.Kind = append(d.Services.Kind, plain(s.Kind))
		d.Services.State = append(d.Services.State, State(plain(string(s.State))))
		d.Services.File = append(d.Services.File, files.of(s.File))
		d.Services.Line = append(d.Services.Line, s.Line)
		d.NeedCount += len(g.Needs(i))
	}
	d.Services.First, d.Services.Box = g.first, p.boxOf
	for i, name := range g.pathway {
		d.Pathways = append(d.Pathways, plain(name))
		if g.assumed[i] {
			d.Assumed = append(d.Assumed, int32(i))
		}
	}
	for r := range g.recipes {
		d.Recipes.Label = append(d.Recipes.Label, plain(g.recipes[r].Label))
		d.Recipes.Service = append(d.Recipes.Service, int(g.serviceOfRecipe(int32(r))))
		d.Recipes.Restores = append(d.Recipes.Restores, append([]int32{}, g.restores.of(int32(r))...))
		d.Recipes.Excluded = append(d.Recipes.Excluded, g.recipes[r].Excluded)
	}
	d.Edges.Pathways = make([][]int32, len(g.edges))
	for k, e := range g.needEdge {
		d.Edges.Pathways[e] = append(d.Edges.Pathways[e], g.needs.to[k])
	}
	for i := range g.edges {
		e := &g.edges[i]
		d.Edges.Recipe = append(d.Edges.Recipe, e.recipe)
		d.Edges.To = append(d.Edges.To, e.to)
		d.Edges.Why = append(d.Edges.Why, plain(e.why))
		d.Edges.Effort = append(d.Edges.Effort, e.effort)
		d.Edges.File = append(d.Edges.File, files.of(g.files[e.file]))
		d.Edges.Line = append(d.Edges.Line, e.line)
	}
	for i := range p.cycles {
		d.Cycles = append(d.Cycles, p.pageCycle(&p.cycles[i]))
	}
	for i := range p.boxes {
		b := &p.boxes[i]
		out := pageBox{Services: b.services, Layer: b.layer, Cyclic: b.cyclic, Blocking: b.blocking}
		if b.inner != nil {
			s := newPageSheet(b.inner)
			name, below := p.label(i)
			out.Name, out.Below, out.Inner, out.Edges = plain(name), below, &s, b.edges
		}
		d.Boxes = append(d.Boxes, out)
	}
	d.Owners, d.Files = owners.all, files.all
	return d
}

func (p *Picture) pageCycle(c *Cycle) pageCycle {
	out := pageCycle{Blocking: c.Blocking, Waived: c.Waived, Frees: c.Frees, WayOut: []string{}, Path: p.steps(c.Path), Break: p.steps(c.Break)}
	for _, name := range c.Services {
		if i, ok := p.graph.Find(name); ok {
			out.Services = append(out.Services, i)
		}
	}
	for _, label := range c.WayOut {
		out.WayOut = append(out.WayOut, plain(label))
	}
	return out
}

func (p *Picture) steps(edges []Edge) []pageStep {
	out := []pageStep{}
	for _, e := range edges {
		from, _ := p.graph.Find(e.From)
		to, _ := p.graph.Find(e.To)
		out = append(out, pageStep{from, to, plain(at(e.File, e.Line)), plain(e.Why)})
	}
	return out
}

// at is where something is written.
func at(file string, line int) string {
	if file == "" {
		return ""
	}
	return file + ":" + strconv.Itoa(line)
}

// summary is the page's first line.
func (p *Picture) summary() string {
	blocking, other := 0, 0
	for i := range p.cycles {
		if p.cycles[i].Blocking && !p.cycles[i].Waived {
			blocking++
		} else {
			other++
		}
	}
	out := plural(len(p.graph.services), "service") + ", " + plural(len(p.graph.recipes), "recipe") + ", " + plural(len(p.graph.edges), "edge") + ". "
	switch {
	case blocking == 0:
		out += "No blocking cycle"
	default:
		out += plural(blocking, "blocking cycle")
	}
	if other > 0 {
		out += ", " + plural(other, "cycle") + " avoidable or waived"
	}
	if a := p.graph.Assumed(); a.Services() > 0 {
		how := "assumed to come back by other means"
		if a.Down {
			how = "without a recipe, taken as lost"
		}
		out += "; " + count(a.Services()) + " " + how
	}
	return out + "."
}

func (p *Picture) tableShown() string {
	return "The table has " + plural(len(p.graph.services), "service") + " of " + count(len(p.graph.services)) + "."
}

// tableRows is how many rows a table has: a browser lays out one after the other
// as they come into view.
const tableRows = 200

const tableHead = `<thead><tr><th scope="col">Service</th><th scope="col">Owner</th><th scope="col">State</th><th scope="col">Layer</th><th scope="col">Comes back from nothing</th><th scope="col">Cycle</th><th scope="col">Needs</th><th scope="col">Needed by</th><th scope="col">Declared at</th></tr></thead>`

// table says in rows what the picture shows.
func (p *Picture) table() string {
	g := p.graph
	f := g.comeBack(everything, nil)
	wave := make([]int, len(g.services)) // 0 for none
	for i, names := range g.waves(f, nil) {
		for _, name := range names {
			if s, ok := g.Find(name); ok {
				wave[s] = i + 1
			}
		}
	}
	needs := make([][]int, len(g.services)) // edges of each service
	for i := range g.edges {
		from, _ := g.Ends(i)
		needs[from] = append(needs[from], i)
	}
	var b strings.Builder
	b.WriteString("<div id=\"table\">\n")
	for s := range g.services {
		if s%tableRows == 0 {
			if s > 0 {
				b.WriteString("</tbody></table></div>\n")
			}
			fmt.Fprintf(&b, "<div class=\"part\"><table><caption>Services %s to %s of %s</caption>%s<tbody>\n", count(s+1), count(min(s+tableRows, len(g.services))), count(len(g.services)), tableHead)
		}
		v, box := &g.services[s], &p.boxes[p.boxOf[s]]
		back, class := "in wave "+strconv.Itoa(wave[s]), ""
		switch {
		case !g.back(f, int32(s)):
			back, class = "stuck", ` class="x"`
		case wave[s] == 0:
			back = "assumed"
		}
		cycle := ""
		if box.cyclic || len(box.services) > 1 {
			cycle = box.sort()
		}
		fmt.Fprintf(&b, "<tr><th scope=\"row\">%s</th><td>%s</td><td>%s</td><td>%d</td><td%s>%s</td><td>%s</td><td>", text(v.Name), text(v.Owner), text(stateWords(v)), box.layer+1, class, back, cycle)
		for k, i := range needs[s] {
			e := &g.edges[i]
			if k > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "%s <i>%s</i>", text(g.services[e.to].Name), text(at(g.files[e.file], int(e.line))))
		}
		b.WriteString("</td><td>")
		for k, n := range g.NeededBy(s) {
			if k > 0 {
				b.WriteString(", ")
			}
			b.WriteString(text(g.services[n].Name))
		}
		fmt.Fprintf(&b, "</td><td><i>%s</i></td></tr>\n", text(at(v.File, v.Line)))
	}
	if len(g.services) > 0 {
		b.WriteString("</tbody></table></div>\n")
	}
	b.WriteString("</div>")
	return b.String()
}

// cycleList has every cycle with the places of a shortest way around.
func (p *Picture) cycleList() string {
	if len(p.cycles) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("<div class=\"cyclelist\" tabindex=\"0\" role=\"region\" aria-label=\"Cycles\"><h2>Cycles</h2><ol>\n")
	for i := range p.cycles {
		c := &p.cycles[i]
		kind := "Avoidable"
		switch {
		case c.Waived:
			kind = "Waived"
		case c.Blocking:
			kind = "Blocking"
		}
		fmt.Fprintf(&b, "<li>%s, %s: ", kind, plural(len(c.Services), "service"))
		for k, e := range c.Path {
			if k == 0 {
				b.WriteString(text(e.From))
			}
			fmt.Fprintf(&b, " needs %s <code>%s</code>", text(e.To), text(at(e.File, e.Line)))
			if k < len(c.Path)-1 {
				b.WriteString(", which")
			}
		}
		if len(c.WayOut) > 0 {
			b.WriteString("; the way out: " + text(strings.Join(c.WayOut, ", ")))
		}
		b.WriteString(".</li>\n")
	}
	b.WriteString("</ol></div>")
	return b.String()
}
