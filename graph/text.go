package graph

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// writer collects the lines of an answer for people.
type writer struct{ bytes.Buffer }

func (w *writer) line(format string, args ...any) {
	fmt.Fprintf(w, strings.TrimRight(format, "\n")+"\n", args...)
}

func (w *writer) to(out io.Writer) error {
	if _, err := out.Write(w.Bytes()); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	return nil
}

// number writes n with its noun, and commas in between.
func number(n int, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case strings.HasSuffix(noun, "y"):
		noun = strings.TrimSuffix(noun, "y") + "ie"
	}
	return thousands(n) + " " + noun + "s"
}

func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// words says what is assumed, or "".
func (a Assumed) words() string {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{
		{a.Unproven, "unproven"}, {a.Unpared, `unpared, with allow("*")`}, {a.Unowned, "unowned"}, {a.Pathways, "pathways that no recipe restores"},
	} {
		if p.n > 0 {
			parts = append(parts, thousands(p.n)+" "+p.what)
		}
	}
	if parts == nil {
		return ""
	}
	how := "assumed to come back by other means"
	if a.Down {
		how = "taken as lost"
	}
	return fmt.Sprintf("%s %s: %s", thousands(a.Services()+a.Pathways), how, strings.Join(parts, ", "))
}

func (w *writer) assumed(a Assumed) {
	if s := a.words(); s != "" {
		w.line("%s", s)
	}
}

// place is where an edge is written, and who was asked why.
func (e *Edge) place() string {
	where := e.File
	if e.Line > 0 {
		where = fmt.Sprintf("%s:%d", e.File, e.Line)
	}
	if e.Recipe != "" {
		where += ", in " + e.Recipe
	}
	if e.Kept {
		where += ", a tool is kept there"
	}
	if v := e.Evidence; v != nil {
		where += ", recovered " + v.Recovered.UTC().Format("2006-01-02")
		if v.Stale {
			where += " before it was changed"
		}
		if !v.Used && !e.Kept {
			where += " without using it"
		}
	}
	return where
}

// sentence says what an edge says.
func (e *Edge) sentence() string {
	s := e.From + " needs " + e.To
	if len(e.Pathways) > 0 && !slices.Equal(e.Pathways, []string{"default"}) {
		s += " (" + strings.Join(e.Pathways, ", ") + ")"
	}
	if e.Why != "" {
		s += ": " + e.Why
	}
	return s
}

func (w *writer) edge(indent string, e *Edge) {
	w.line("%s%s", indent, e.sentence())
	w.line("%s    %s", indent, e.place())
}

// WriteText writes the cycles for people: each as a sentence with its places
// and owners, and what would break it.
func (c *Cycles) WriteText(out io.Writer) error {
	w := &writer{}
	blocking, avoidable, waived := 0, 0, 0
	for i := range c.Cycles {
		switch x := &c.Cycles[i]; {
		case x.Waived && x.Blocking:
			waived++
		case x.Blocking:
			blocking++
		default:
			avoidable++
		}
	}
	head := "no blocking cycle"
	if blocking > 0 {
		head = number(blocking, "blocking cycle")
	}
	if waived > 0 {
		head += fmt.Sprintf(" (%s waived)", thousands(waived))
	}
	if avoidable > 0 {
		head += fmt.Sprintf(" and %s avoidable", thousands(avoidable))
	}
	head += fmt.Sprintf(" among %s", number(c.Number-c.Assumed.Services(), "service"))
	if n := c.Assumed.Services(); n > 0 {
		head += fmt.Sprintf("; %s assumed", thousands(n))
	}
	w.line("%s", head)
	for i := range c.Cycles {
		w.line("")
		c.Cycles[i].write(w)
	}
	if s := c.Assumed.words(); s != "" {
		w.line("")
		w.line("%s", s)
	}
	return w.to(out)
}

func (c *Cycle) write(w *writer) {
	kind := "avoidable"
	switch {
	case c.Blocking && c.Waived:
		kind = "waived"
	case c.Blocking:
		kind = "blocking"
	}
	if len(c.Services) == 1 {
		w.line("%s: %s needs itself", kind, c.Services[0])
	} else {
		w.line("%s: %s need each other", kind, andList(c.Services))
	}
	if len(c.Path) > 0 && len(c.Path) < len(c.Services) {
		w.line("  the shortest way around:")
	}
	for i := range c.Path {
		w.edge("  ", &c.Path[i])
	}
	if len(c.Owners) > 0 {
		w.line("  owned by %s", andList(c.Owners))
	}
	switch {
	case !c.Blocking:
		w.line("  the way out: %s", andList(c.WayOut))
		return
	case len(c.Behind) > 0:
		w.line("  it also waits for %s, which do not come back", andList(c.Behind))
	}
	if len(c.Break) > 0 {
		w.line("  what would break it:")
		for i := range c.Break {
			e := &c.Break[i]
			w.line("    %s:%d: %s lives without %s (effort %d)", e.File, e.Line, e.From, e.To, e.Effort)
		}
		w.line("    or another recipe, for one of them, that needs none of the others")
	}
	if c.Frees > 0 {
		w.line("  breaking it frees %s", number(c.Frees, "service"))
	} else {
		w.line("  breaking it alone frees nothing")
	}
	if c.Waived {
		w.line("  waived: %s", c.Reason)
	}
}

// WriteText writes the cuts for people.
func (c *Cuts) WriteText(out io.Writer) error {
	w := &writer{}
	switch {
	case len(c.Cuts) == 0 && len(c.Hopeless) == 0:
		w.line("nothing to cut: everything comes back")
	case len(c.Cuts) == 0:
		w.line("nothing to cut")
	case c.Exact:
		w.line("everything comes back without %s (effort %s; nothing less will do):", number(len(c.Cuts), "condition"), thousands(c.Cost))
	default:
		w.line("everything comes back without %s (effort %s; the best found, and nothing below %s will do):", number(len(c.Cuts), "condition"), thousands(c.Cost), thousands(c.Bound))
	}
	for i := range c.Cuts {
		x := &c.Cuts[i]
		w.line("")
		w.edge("", &x.Edge)
		w.line("    effort %d; frees %s", x.Effort, number(x.Frees, "service"))
	}
	if len(c.Hopeless) > 0 {
		w.line("")
		w.line("no cut brings back %s: no recipe of theirs counts", andList(c.Hopeless))
	}
	w.assumed(c.Assumed)
	return w.to(out)
}

// duration writes seconds as people say them.
func duration(s float64) string {
	switch {
	case s < 60:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", s), ".0") + " s"
	case s < 3600:
		return fmt.Sprintf("%d min %02d s", int(s)/60, int(s)%60)
	}
	return fmt.Sprintf("%d h %02d min", int(s)/3600, int(s)%3600/60)
}

// WriteText writes the order for people.
func (o *Order) WriteText(out io.Writer) error {
	w := &writer{}
	at := map[string]Slot{}
	for _, s := range o.Schedule {
		at[s.Service] = s
	}
	for i, wave := range o.Waves {
		w.line("wave %d: %s", i+1, number(len(wave), "service"))
		for _, name := range wave {
			s := at[name]
			w.line("  %-32s %10s – %-10s %s", name, duration(s.Start), duration(s.End), s.Recipe)
		}
	}
	if len(o.Stuck) > 0 {
		w.line("")
		w.line("stuck: %s", number(len(o.Stuck), "service"))
		for _, s := range o.Stuck {
			w.line("  %-32s because of %s", s.Service, andList(s.Because))
		}
	}
	w.line("")
	if o.Seconds != nil {
		w.line("everything is back after %s", duration(*o.Seconds))
	} else {
		w.line("not everything comes back: bj graph --cycles says why")
	}
	if len(o.CriticalPath) > 1 {
		w.line("the critical path: %s", strings.Join(o.CriticalPath, " → "))
	}
	if p := o.Parallel; p != nil {
		w.line("with %s it takes %s (at best %s):", number(p.Hands, "hand"), duration(p.Seconds), duration(p.Bound))
		for _, s := range p.Plan {
			w.line("  %10s – %-10s %-32s %s", duration(s.Start), duration(s.End), s.Service, s.Recipe)
		}
	}
	if o.Unmeasured > 0 {
		w.line("%s without results and estimate count as no time", number(o.Unmeasured, "recipe"))
	}
	w.assumed(o.Assumed)
	return w.to(out)
}

// WriteText writes the outage for people.
func (o *Outage) WriteText(out io.Writer) error {
	w := &writer{}
	w.line("down: %s", andList(o.Down))
	if spread := len(o.Lost) - len(o.Down); spread > 0 {
		w.line("lost with it: %s", number(spread, "service"))
	}
	back := 0
	for i, wave := range o.Waves {
		back += len(wave)
		w.line("wave %d: %s", i+1, strings.Join(wave, ", "))
	}
	if len(o.Stuck) == 0 {
		w.line("everything comes back: %s in %s", number(back, "service"), number(len(o.Waves), "wave"))
	} else {
		w.line("%s come back; stuck: %s", number(back, "service"), number(len(o.Stuck), "service"))
		for _, s := range o.Stuck {
			how := "behind"
			if s.InCycle {
				how = "in a cycle:"
			}
			if slices.Equal(s.Because, []string{s.Service}) && !s.InCycle {
				w.line("  %-32s no recipe of it counts", s.Service)
				continue
			}
			w.line("  %-32s %s %s", s.Service, how, andList(s.Because))
		}
	}
	w.assumed(o.Assumed)
	return w.to(out)
}

// WriteText writes the impact for people.
func (x *Impact) WriteText(out io.Writer) error {
	w := &writer{}
	only := slices.DeleteFunc(slices.Clone(x.Touched), func(s string) bool {
		_, blocked := slices.BinarySearch(x.Blocked, s)
		return blocked
	})
	w.line("without %s, %s have no way back", x.Service, number(len(x.Blocked), "service"))
	for _, s := range x.Blocked {
		w.line("  %s", s)
	}
	if len(only) > 0 {
		w.line("%s need it on some way back, and have another", number(len(only), "service"))
		for _, s := range only {
			w.line("  %s", s)
		}
	}
	w.assumed(x.Assumed)
	return w.to(out)
}

// WriteText writes the reason for people.
func (y *Why) WriteText(out io.Writer) error {
	w := &writer{}
	if len(y.Path) == 0 {
		w.line("%s does not need %s", y.From, y.To)
		w.assumed(y.Assumed)
		return w.to(out)
	}
	w.line("%s needs %s in %s:", y.From, y.To, number(len(y.Path), "step"))
	on := map[string]bool{}
	for i := range y.Path {
		w.edge("  ", &y.Path[i])
		on[y.Path[i].Recipe+"\x00"+y.Path[i].To] = true
	}
	rest := slices.DeleteFunc(slices.Clone(y.Edges), func(e Edge) bool { return on[e.Recipe+"\x00"+e.To] })
	if len(rest) > 0 {
		w.line("other ways go by:")
		for i := range rest {
			w.line("  %-48s %s:%d", rest[i].From+" → "+rest[i].To, rest[i].File, rest[i].Line)
		}
	}
	w.assumed(y.Assumed)
	return w.to(out)
}

// WriteText writes the numbers for people.
func (s *Stats) WriteText(out io.Writer) error {
	w := &writer{}
	s.write(w)
	if len(s.OwnersWithoutRecipe) > 0 {
		w.line("owners without a recipe: %s", andList(s.OwnersWithoutRecipe))
	}
	switch {
	case !s.Results:
		w.line("evidence: no recorded results")
	case len(s.Stale) > 0:
		w.line("stale evidence, changed since they recovered: %s", andList(s.Stale))
	}
	if len(s.Unused) > 0 {
		w.line("conditions that were not used when the recipe recovered:")
		for i := range s.Unused {
			e := &s.Unused[i]
			w.line("  %s:%d: %s → %s", e.File, e.Line, e.From, e.To)
		}
	}
	for _, list := range []struct {
		title string
		of    []Count
	}{{"tools", s.Tools}, {"library", s.Stdlib}} {
		for i, c := range list.of {
			if i == 10 {
				w.line("%-10s and %d more", "", len(list.of)-i)
				break
			}
			title := ""
			if i == 0 {
				title = list.title
			}
			w.line("%-10s %-32s %s", title, c.Name, number(c.Count, "recipe"))
		}
	}
	w.assumed(s.Assumed)
	return w.to(out)
}

func (s *Stats) write(w *writer) {
	var states []string
	for _, x := range []struct {
		n    int
		what State
	}{{s.Services.Proven, Proven}, {s.Services.Claimed, Claimed}, {s.Services.Unpared, Unpared}, {s.Services.Unproven, Unproven}, {s.Services.Unowned, Unowned}} {
		if x.n > 0 {
			states = append(states, thousands(x.n)+" "+string(x.what))
		}
	}
	all := s.Services.Proven + s.Services.Claimed + s.Services.Unpared + s.Services.Unproven + s.Services.Unowned
	head := number(all, "service")
	if states != nil {
		head += ": " + strings.Join(states, ", ")
	}
	w.line("%s", head)
	if s.Services.Known > 0 {
		w.line("%s of other repositories", number(s.Services.Known, "service"))
	}
	line := fmt.Sprintf("%s, %s, %s", number(s.Recipes.All, "recipe"), number(s.Edges, "edge"), number(s.Depth, "layer"))
	if n := s.Recipes.Unpared + s.Recipes.Failed; n > 0 {
		line += fmt.Sprintf("; %s no way out (%d unpared, %d failed)", number(n, "recipe"), s.Recipes.Unpared, s.Recipes.Failed)
	}
	w.line("%s", line)
	if s.LargestComponent > 1 {
		w.line("largest component: %s", number(s.LargestComponent, "service"))
	}
	for i, n := range s.MostNeeded {
		title := ""
		if i == 0 {
			title = "most needed"
		}
		w.line("%-12s %-32s by %s directly, %s in all", title, n.Service, thousands(n.Direct), thousands(n.Indirect))
	}
}

// WriteSummary writes what people meet first: what the graph is like, whether
// all of it comes back, and where to look next.
func (g *Graph) WriteSummary(out io.Writer, cycles *Cycles) error {
	w := &writer{}
	s := g.Stats()
	s.MostNeeded = s.MostNeeded[:min(5, len(s.MostNeeded))]
	s.write(w)
	o := g.Outage(OutageOptions{All: true})
	w.line("")
	blocking := cycles.Blocking()
	switch {
	case len(o.Stuck) == 0:
		w.line("everything comes back from nothing, in %s (bj graph --order)", number(len(o.Waves), "wave"))
	default:
		in := 0
		for _, x := range o.Stuck {
			if x.InCycle {
				in++
			}
		}
		w.line("%s do not come back from nothing: %s in a cycle, the rest behind (bj graph --order)", number(len(o.Stuck), "service"), thousands(in))
	}
	if len(cycles.Cycles) > 0 {
		waived := 0
		for i := range cycles.Cycles {
			if cycles.Cycles[i].Waived {
				waived++
			}
		}
		w.line("%s: %s blocking, %s waived (bj graph --cycles)", number(len(cycles.Cycles), "cycle"), thousands(blocking), thousands(waived))
		for i := range cycles.Cycles[:min(3, len(cycles.Cycles))] {
			w.line("")
			cycles.Cycles[i].write(w)
		}
	}
	w.assumed(s.Assumed)
	return w.to(out)
}

// WriteText writes what changed for people.
func (d *Diff) WriteText(out io.Writer) error {
	w := &writer{}
	if len(d.Edges)+len(d.Gone)+len(d.Cycles) == 0 {
		w.line("no edge and no cycle is new, and none is gone")
	}
	for i := range d.Cycles {
		c := &d.Cycles[i]
		w.line("new:")
		if c.ClosedBy != nil {
			w.line("  closed by %s:%d: %s", c.ClosedBy.File, c.ClosedBy.Line, c.ClosedBy.sentence())
		} else {
			w.line("  no need is new: an alternative that avoided it is gone")
		}
		c.write(w)
		w.line("")
	}
	for _, list := range []struct {
		title string
		of    []Edge
	}{{"new edges", d.Edges}, {"gone", d.Gone}} {
		if len(list.of) > 0 {
			w.line("%s: %s", list.title, thousands(len(list.of)))
			for i := range list.of {
				e := &list.of[i]
				w.line("  %-48s %s:%d", e.From+" → "+e.To, e.File, e.Line)
			}
		}
	}
	w.assumed(d.Assumed)
	return w.to(out)
}

// WriteText writes the comparison for people.
func (d *TraceDiff) WriteText(out io.Writer) error {
	w := &writer{}
	w.line("%s only in traces, %s only in recipes, %s in both", number(len(d.OnlyTraces), "edge"), thousands(len(d.OnlyRecipes)), thousands(len(d.Both)))
	if len(d.OnlyTraces) > 0 {
		w.line("only in traces: called, and no recipe of the caller allows it")
		for _, c := range d.OnlyTraces {
			w.line("  %-48s %s", c.From+" → "+c.To, number(c.Count, "call"))
		}
	}
	if len(d.OnlyRecipes) > 0 {
		w.line("only in recipes: needed to recover, and never called in these traces")
		slices.SortStableFunc(d.OnlyRecipes, func(a, b Edge) int { return cmp.Or(strings.Compare(a.From, b.From), strings.Compare(a.To, b.To)) })
		for i := range d.OnlyRecipes {
			e := &d.OnlyRecipes[i]
			w.line("  %-48s %s:%d", e.From+" → "+e.To, e.File, e.Line)
		}
	}
	if len(d.Unknown) > 0 {
		w.line("not declared here: %s", andList(d.Unknown))
	}
	w.assumed(d.Assumed)
	return w.to(out)
}
