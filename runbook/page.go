package runbook

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"bj/fleet"
)

// page writes one recipe.
type page struct {
	strings.Builder
	*ink
	b      *Book
	r      *fleet.Recipe
	s      *fleet.Service
	proof  proof
	digest string // of the recipe as it is
	level  int    // of the title's heading
	// near returns where a link to a recipe leads, or "" where there is nothing
	// to lead to; nil: to the recipe's page.
	near func(label string) string
}

// Page returns the page of a recipe.
func (b *Book) Page(r *fleet.Recipe) (Page, error) {
	p, err := b.newPage(r, 1)
	if err != nil {
		return Page{}, err
	}
	title := p.title()
	p.f("# %s\n\n", escape(title))
	p.body()
	return Page{Name(r.Label), title, seal(Name(r.Label), p.String())}, nil
}

func (b *Book) newPage(r *fleet.Recipe, level int) (*page, error) {
	k, err := b.newInk(r)
	if err != nil {
		return nil, err
	}
	p := &page{ink: k, b: b, r: r, s: b.Fleet.Service(r.Service), level: level, digest: b.Digest(b.Fleet, r)}
	p.proof = proofOf(b.records(r.Label), p.digest)
	return p, nil
}

func (p *page) title() string {
	return p.line(p.r.Service) + ": " + strings.ReplaceAll(p.line(p.r.Name), "_", " ")
}

// body writes the nine sections.
func (p *page) body() {
	p.verdict()
	p.when()
	p.before()
	p.hardware()
	p.tools()
	p.steps()
	p.validations()
	p.broken()
	p.provenance()
}

// f writes formatted Markdown.
func (p *page) f(format string, args ...any) { fmt.Fprintf(&p.Builder, format, args...) }

// section writes the heading of one of the nine.
func (p *page) section(n int, title string) {
	p.f("%s %d. %s\n\n", strings.Repeat("#", p.level+1), n, title)
}

// names lists machines.
func (p *page) names(machines []string) string {
	var out []string
	for _, m := range machines {
		out = append(out, code(p.line(p.machines.name(m))))
	}
	return join(out)
}

func (p *page) owner() string {
	if p.s == nil || p.s.Owner == "" {
		return "nobody"
	}
	return p.line(p.s.Owner)
}

// The title of the first section, as pages have it.
const (
	verdictWord  = "Verdict"
	verdictTitle = "1. " + verdictWord
)

// verdict is section 1.
func (p *page) verdict() {
	p.section(1, verdictWord)
	word, rest := p.proof.stamp(p.r, p.ink)
	if rest != "" {
		rest = ", " + strings.TrimPrefix(rest, ", ")
		if !p.proof.failed {
			rest = " " + strings.TrimPrefix(rest, ", ")
		}
	}
	p.f("**%s**%s.", word, rest)
	if p.proof.changed {
		p.f(" **The recipe has changed since its proof**: what is written here was not run as it stands.")
	}
	p.f("\n\n")
	good := p.proof.good
	if p.proof.failed {
		last := p.proof.last
		p.f("The last run ended on %s. What it said:\n\n%s\n", day(last.End), fence("text", p.output(last.Reason)))
		if good != nil {
			p.f("What follows is the text as it is now; times and output are those of the last run that recovered.\n\n")
		}
		if last.Digest != p.digest {
			p.f("The recipe has changed since that run failed.\n\n")
		}
	}
	if e := p.proof.errored; e != nil {
		p.f("The newest run, of %s, ended in an error, which says nothing of the recipe: %s\n\n", day(e.End), inline(p.line(firstLine(e.Reason))))
	}
	if good == nil {
		p.f("Nobody has seen this work. `bj test %s` tries it.\n\n", strings.ReplaceAll(p.line(p.r.Label), "`", ""))
		return
	}
	p.f("- It took %s.\n", took(good.End.Sub(good.Start)))
	if good.Revision != "" {
		p.f("- At commit %s%s.\n", code(strings.TrimSuffix(p.line(good.Revision), "+")), map[bool]string{true: ", with changes that were not committed", false: ""}[strings.HasSuffix(good.Revision, "+")])
	}
	if good.Root != "" {
		p.f("- On: %s.\n", inline(strings.TrimSuffix(p.line(good.Root), ".")))
	}
	p.f("- Prove it again before %s.\n\n", good.End.Add(validFor).UTC().Format("2006-01-02"))
	if len(good.Free) > 0 {
		p.f("What came for free, and is not brought back by these steps:\n\n")
		for _, free := range good.Free {
			p.f("- %s\n", inline(p.line(free)))
		}
		p.f("\n")
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// when is section 2.
func (p *page) when() {
	p.section(2, "When to use it")
	if p.r.Doc != "" {
		p.WriteString(p.prose(p.r.Doc))
	}
	if p.s != nil && p.s.Doc != "" {
		p.WriteString(p.prose(p.s.Doc))
	}
	if p.r.FileDoc != "" {
		p.WriteString(p.prose(p.r.FileDoc))
	}
	if p.s != nil && p.s.FileDoc != "" && p.s.FileDoc != p.r.FileDoc {
		p.WriteString(p.prose(p.s.FileDoc))
	}
	p.f("Owner: **%s**.", inline(p.owner()))
	if !slices.Equal(p.r.Restores, []string{"default"}) {
		p.f(" It brings back %s of %s.", p.list(p.r.Restores), code(p.line(p.r.Service)))
	}
	p.f("\n\n")
}

// list is words as code.
func (p *page) list(words []string) string {
	var out []string
	for _, w := range words {
		out = append(out, code(p.line(w)))
	}
	return join(out)
}

// plural is a number of things.
func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

// broken is section 8.
func (p *page) broken() {
	p.section(8, "What was broken on purpose, and what stayed down")
	proven := p.proof.good != nil
	any := false
	for _, a := range p.r.Strategy {
		f := a.Fault
		if f == nil {
			continue
		}
		any = true
		what := "lost its power"
		switch {
		case f.Kill != "":
			what = "had " + code(p.line(f.Kill)) + " killed"
		case f.Dark != "":
			what = "lost " + code(p.line(f.Dark))
		}
		p.f("- %s: %s %s\n", inline(p.line(f.Title)), p.names(f.On), what)
	}
	switch {
	case !any:
		p.f("Nothing is broken on purpose.\n\n")
	case proven:
		p.f("\nThe service survived this in its proof.\n\n")
	default:
		p.f("\nNo run has survived this yet.\n\n")
	}
	if !proven {
		return
	}
	if len(p.proof.good.Blocked) == 0 {
		p.f("Nothing else was attempted.\n\n")
		return
	}
	p.f("Everything that section 3 does not name stayed down. This was attempted, was blocked, and did not matter:\n\n")
	for _, x := range p.proof.good.Blocked {
		to := x.Destination.Address
		if x.Destination.Port > 0 {
			to = fmt.Sprintf("%s port %d", to, x.Destination.Port)
		}
		if x.Destination.Name != nil {
			to += " (" + *x.Destination.Name + ")"
		}
		p.f("- %s", code(p.line(x.Protocol+" "+to)))
		if x.Service != nil {
			p.f(", which belongs to %s", code(p.line(*x.Service)))
		}
		p.f(", %s", plural(int(x.Count), "time"))
		if x.Process != nil && x.Process.Exe != "" {
			p.f(", by %s", code(p.line(x.Process.Exe)))
		}
		p.f("\n")
	}
	p.f("\n")
}

// provenance is section 9.
func (p *page) provenance() {
	p.section(9, "Provenance")
	p.f("- Recipe: %s, at %s\n", code(p.line(p.r.Label)), code(fmt.Sprintf("%s:%d", p.line(p.r.Pos.File), p.r.Pos.Line)))
	p.f("- Digest of all that goes in: %s\n", code(p.digest))
	if g := p.proof.good; g != nil {
		p.f("- Proven by `bj` %s, with digest %s\n", code(p.line(g.Version)), code(p.line(g.Digest)))
		if g.Sandbox != "" {
			p.f("- In the sandbox %s\n", code(p.line(g.Sandbox)))
		}
	}
	due := "now"
	if g := p.proof.good; g != nil && !p.proof.failed && !p.proof.changed {
		due = g.End.Add(validFor).UTC().Format(time.DateOnly)
	}
	p.f("- To be proven again: %s\n- Written by `bj` %s\n\n", due, code(p.b.Version))
}
