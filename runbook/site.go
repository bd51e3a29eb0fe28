package runbook

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/parser"

	"bj/fleet"
	"bj/graph"
)

// The pages of a site that belong to no recipe.
const (
	IndexName      = "index"
	BlackStartName = "black-start"
	PictureName    = "graph.svg"
)

// BlackStart returns one page with all that brings the fleet back from nothing,
// in the order of recovery: of each service the recipe that the plan takes.
// Other recipes have a link to their page where there is one.
func (b *Book) BlackStart(there func(*fleet.Recipe) bool) (Page, error) {
	p := &page{ink: &ink{machines: &renaming{}}, b: b, level: 1}
	title := "Black start"
	p.f("# %s\n\nEverything is down. This brings it back, in this order; what stands in one wave can be done at the same time.\n\n", title)
	slots := slices.Clone(b.order.Schedule)
	slices.SortStableFunc(slots, func(x, y graph.Slot) int {
		return cmp.Or(cmp.Compare(b.waves[x.Service], b.waves[y.Service]), strings.Compare(x.Service, y.Service))
	})
	if b.order.Seconds != nil && b.order.Unmeasured == 0 && *b.order.Seconds > 0 {
		p.f("With enough hands it takes %s.\n\n", took(seconds(*b.order.Seconds)))
	} else if n := b.order.Unmeasured; n > 0 {
		p.f("How long it takes is not known: %s of it %s never measured.\n\n", plural(n, "recipe"), map[bool]string{true: "was", false: "were"}[n == 1])
	}
	p.f("| done | wave | service | page | verdict | owner |\n| --- | --- | --- | --- | --- | --- |\n")
	var pages []*page
	places := map[string]string{} // label → where it is on this page
	ids := parser.NewContext().IDs()
	for _, x := range slots {
		r := b.Fleet.Recipe(x.Recipe)
		if r == nil || places[x.Recipe] != "" {
			continue
		}
		q, err := b.newPage(r, 2)
		if err != nil {
			return Page{}, err
		}
		q.near = func(label string) string {
			if r := b.Fleet.Recipe(label); places[label] == "" && r != nil && there(r) {
				return link(Name(label))
			}
			return places[label]
		}
		places[x.Recipe] = "#" + string(ids.Generate([]byte(q.heading()), ast.KindHeading))
		pages = append(pages, q)
	}
	for _, q := range pages {
		p.f("| ☐ | %d | %s | %s | %s | %s |\n", b.waves[q.r.Service], cell(code(q.line(q.r.Service))), cell(q.link(q.r.Label)), cell(q.state()), cell(inline(q.owner())))
	}
	p.f("\n")
	if len(b.order.Stuck) > 0 {
		p.f("These do not come back by recipes alone:\n\n")
		for _, s := range b.order.Stuck {
			p.f("- %s, because of %s\n", code(p.line(s.Service)), p.list(s.Because))
		}
		p.f("\n")
	}
	if n := b.order.Assumed.Services(); n > 0 {
		p.f("%s without a recipe, or not declared here, %s assumed to come back by other means.\n\n", plural(n, "service"), map[bool]string{true: "is", false: "are"}[n == 1])
	}
	for _, q := range pages {
		p.f("## %s\n\n", q.heading())
		q.body()
		p.WriteString(q.String())
	}
	return Page{BlackStartName, title, seal(BlackStartName, p.String())}, nil
}

// heading is the page's heading on the page of the black start.
func (p *page) heading() string {
	return fmt.Sprintf("Wave %d: %s", p.b.waves[p.r.Service], inline(p.title()))
}

// state is the stamp in a table.
func (p *page) state() string {
	word, rest := p.proof.stamp(p.r, p.ink)
	if p.proof.failed {
		return "**" + word + "**: " + rest
	}
	if p.proof.changed {
		word += ", and changed since"
	}
	return strings.TrimSpace(word)
}

// Entry is what the search of the index finds.
type Entry struct {
	Title string `json:"title"`
	Page  string `json:"page"`
	Text  string `json:"text"` // lower case
}

// Index returns the page that lists recipes, by wave and by owner, and what its
// search looks at.
func (b *Book) Index(recipes []*fleet.Recipe) (Page, []Entry, error) {
	p := &page{ink: &ink{machines: &renaming{}}, b: b, level: 1}
	title := "Runbooks"
	if name := b.Fleet.Workspace.Name; name != "" {
		title += " of " + p.line(name)
	}
	p.f("# %s\n\n[Black start](%s): everything, from nothing, on one page. [The recovery graph](%s), as a picture.\n\n", escape(title), link(BlackStartName), PictureName)
	var pages []*page
	var entries []Entry
	for _, r := range recipes {
		q, err := b.newPage(r, 1)
		if err != nil {
			return Page{}, nil, err
		}
		pages = append(pages, q)
		entries = append(entries, Entry{q.title(), Name(r.Label), q.words()})
	}
	table := func(pages []*page) {
		p.f("| service | recipe | verdict | wave | owner |\n| --- | --- | --- | --- | --- |\n")
		for _, q := range pages {
			wave := "–"
			if w := b.waves[q.r.Service]; w > 0 {
				wave = fmt.Sprint(w)
			}
			p.f("| %s | %s | %s | %s | %s |\n", cell(code(q.line(q.r.Service))), cell(q.link(q.r.Label)), cell(q.state()), wave, cell(inline(q.owner())))
		}
		p.f("\n")
	}
	p.f("## By wave\n\nWhat is in wave 1 needs nothing else; each wave needs only those before it. A dash: it does not come back by recipes alone.\n\n")
	order := func(q *page) int {
		if w := b.waves[q.r.Service]; w > 0 {
			return w
		}
		return 1 << 30
	}
	byWave := slices.Clone(pages)
	slices.SortStableFunc(byWave, func(x, y *page) int {
		return cmp.Or(cmp.Compare(order(x), order(y)), strings.Compare(x.r.Service, y.r.Service), strings.Compare(x.r.Label, y.r.Label))
	})
	table(byWave)
	p.f("## By owner\n\n")
	slices.SortStableFunc(byWave, func(x, y *page) int { return strings.Compare(x.owner(), y.owner()) })
	for owned := range slices.Values(chunk(byWave)) {
		p.f("### %s\n\n", inline(owned[0].owner()))
		table(owned)
	}
	return Page{IndexName, title, []byte(p.String())}, entries, nil
}

// chunk splits pages at changes of their owner.
func chunk(pages []*page) [][]*page {
	var out [][]*page
	for i, q := range pages {
		if i == 0 || q.owner() != pages[i-1].owner() {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], q)
	}
	return out
}

// words are those that a search for the page may use.
func (p *page) words() string {
	words := []string{p.r.Label, p.r.Service, p.owner(), p.r.Doc, p.r.FileDoc}
	if p.s != nil {
		words = append(words, p.s.Doc)
	}
	for _, m := range p.r.Machines() {
		words = append(words, m.Name, p.machines.name(m.Name), p.machines.addr(m.V4))
	}
	for _, a := range p.r.Strategy {
		if a.Step != nil {
			words = append(words, a.Step.Title)
		}
	}
	for _, t := range p.r.Tools {
		words = append(words, t.Name)
	}
	for _, c := range p.r.Conditions {
		words = append(words, c.Name())
	}
	return strings.ToLower(p.line(strings.Join(words, " ")))
}
