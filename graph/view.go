package graph

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// View is a part of a graph to be drawn by other programs: what an answer is
// about.
type View struct {
	Services []string
	Edges    []Edge
	// Marks say how services are drawn: MarkStuck, MarkLost.
	Marks map[string]Mark
	// Strong are edges that stand out, by sender and receiver.
	Strong map[[2]string]bool
}

// Mark says how a service is drawn.
type Mark string

const (
	MarkStuck Mark = "stuck" // red: it does not come back
	MarkLost  Mark = "lost"  // yellow: it is down, and comes back
)

// View returns all of the graph, with what is stuck marked.
func (g *Graph) View() *View {
	v := &View{Edges: g.Edges(), Marks: map[string]Mark{}}
	for i := range g.services {
		v.Services = append(v.Services, g.services[i].Name)
	}
	for _, x := range g.Outage(OutageOptions{All: true}).Stuck {
		v.Marks[x.Service] = MarkStuck
	}
	return v
}

// only keeps services, and the edges between them.
func (v *View) only(services []string) *View {
	in := map[string]bool{}
	for _, s := range services {
		in[s] = true
	}
	v.Services = slices.DeleteFunc(v.Services, func(s string) bool { return !in[s] })
	v.Edges = slices.DeleteFunc(v.Edges, func(e Edge) bool { return !in[e.From] || !in[e.To] })
	return v
}

// strong marks edges.
func (v *View) strong(edges []Edge) {
	if v.Strong == nil {
		v.Strong = map[[2]string]bool{}
	}
	for _, e := range edges {
		v.Strong[[2]string{e.From, e.To}] = true
	}
}

// View returns the services of cycles, and what they need of each other; the
// shortest ways around stand out.
func (c *Cycles) View(g *Graph) *View {
	v := g.View()
	var services []string
	for i := range c.Cycles {
		services = append(services, c.Cycles[i].Services...)
		v.strong(c.Cycles[i].Path)
	}
	return v.only(services)
}

// View returns the whole graph, in which the cuts stand out.
func (c *Cuts) View(g *Graph) *View {
	v := g.View()
	for i := range c.Cuts {
		v.strong([]Edge{c.Cuts[i].Edge})
	}
	return v
}

// View returns what was lost, and what it needs of each other.
func (o *Outage) View(g *Graph) *View {
	v := g.View()
	v.Marks = map[string]Mark{}
	for _, s := range o.Lost {
		v.Marks[s] = MarkLost
	}
	for _, s := range o.Stuck {
		v.Marks[s.Service] = MarkStuck
	}
	return v.only(o.Lost)
}

// View returns the service and all that it touches.
func (x *Impact) View(g *Graph) *View {
	v := g.View()
	v.Marks = map[string]Mark{}
	for _, s := range x.Blocked {
		v.Marks[s] = MarkStuck
	}
	return v.only(append([]string{x.Service}, x.Touched...))
}

// View returns the edges on some path; the shortest one stands out.
func (y *Why) View(g *Graph) *View {
	v := &View{Edges: y.Edges}
	for _, e := range y.Edges {
		v.Services = append(v.Services, e.From, e.To)
	}
	v.Services = append(v.Services, y.From, y.To)
	slices.Sort(v.Services)
	v.Services = slices.Compact(v.Services)
	v.strong(y.Path)
	return v
}

// WriteDOT writes a view for Graphviz.
func (v *View) WriteDOT(out io.Writer) error {
	w := &writer{}
	w.line("digraph recovery {")
	w.line("  rankdir=RL")
	w.line("  node [shape=box fontname=\"sans-serif\"]")
	for _, s := range v.Services {
		style := ""
		switch v.Marks[s] {
		case MarkStuck:
			style = " [style=filled fillcolor=\"#f6c9c4\"]"
		case MarkLost:
			style = " [style=filled fillcolor=\"#fbe7a8\"]"
		}
		w.line("  %s%s", dotQuote(s), style)
	}
	for _, e := range v.folded() {
		style := "tooltip=" + dotQuote(e.sentence()+" ("+e.place()+")")
		if v.Strong[[2]string{e.From, e.To}] {
			style += " color=\"#b3261e\" penwidth=2"
		}
		if e.Kept {
			style += " style=dashed"
		}
		w.line("  %s -> %s [%s]", dotQuote(e.From), dotQuote(e.To), style)
	}
	w.line("}")
	return w.to(out)
}

// folded returns the edges, one between two services.
func (v *View) folded() []Edge {
	seen := map[[2]string]bool{}
	var out []Edge
	for _, e := range v.Edges {
		if k := [2]string{e.From, e.To}; !seen[k] {
			seen[k] = true
			out = append(out, e)
		}
	}
	return out
}

// dotQuote writes a quoted string of DOT. A backslash is kept as it is there,
// and would escape what follows in labels.
func dotQuote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", " ", "\r", " ", "\x00", "").Replace(s) + `"`
}

// WriteMermaid writes a view for Mermaid.
func (v *View) WriteMermaid(out io.Writer) error {
	w := &writer{}
	w.line("flowchart RL")
	id := map[string]string{}
	for i, s := range v.Services {
		id[s] = fmt.Sprintf("s%d", i)
		class := ""
		if m := v.Marks[s]; m != "" {
			class = ":::" + string(m)
		}
		w.line("  %s[%s]%s", id[s], mermaidQuote(s), class)
	}
	var strong []string
	for i, e := range v.folded() {
		arrow := "-->"
		if v.Strong[[2]string{e.From, e.To}] {
			strong = append(strong, fmt.Sprint(i))
		}
		if e.Kept {
			arrow = "-.->"
		}
		w.line("  %s %s %s", id[e.From], arrow, id[e.To])
	}
	w.line("  classDef stuck fill:#f6c9c4,stroke:#b3261e,color:#000")
	w.line("  classDef lost fill:#fbe7a8,stroke:#7a5c00,color:#000")
	if strong != nil {
		w.line("  linkStyle %s stroke:#b3261e,stroke-width:3px", strings.Join(strong, ","))
	}
	return w.to(out)
}

// mermaidQuote writes a quoted label, in which characters with a meaning are
// entities, as Mermaid writes them.
func mermaidQuote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r < ' ':
			b.WriteByte(' ')
		case strings.ContainsRune("\"#<>&`\\;{}[]|", r):
			fmt.Fprintf(&b, "#%d;", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
