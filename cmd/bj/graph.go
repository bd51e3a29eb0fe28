package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"bj/fleet"
	"bj/graph"
	"bj/lang"
	"bj/lang/diag"
	"bj/run/event"
)

// graphFlags are the flags of bj graph.
type graphFlags struct {
	cycles, cuts, order, stats bool
	outage                     string
	impact                     string
	why                        string
	diff                       string

	format   string
	spread   bool
	parallel int
	budget   time.Duration
	assume   string
	waivers  string
	results  string
}

func graphCommand() *command {
	var f graphFlags
	return &command{
		name:  "graph",
		args:  "[PATTERN...]",
		short: "answers what must be back before what, from recipes alone",
		long: patternHelp + `
without a pattern: the whole workspace. the graph has the recipes that patterns
name, and all that they need.

without a question: a summary; with --format json the graph itself, to be saved
and compared with, or to be known to other workspaces.
a service is proven if results show that a recipe as it stands recovered,
claimed if it has a recipe, unpared if its only recipes say allow("*"), and
unproven if it has none. what is not proven or claimed, and endpoints that
nobody declares, are taken to come back by other means, and counted.

--cycles exits 1 if a blocking cycle is not waived, --diff if there is a new
one. waivers are those of workspace(...), and of --waivers: a JSON list of
{"services", "owner", "reason", "expires"}.

answers as JSON say their schema, bj.graph.<question>/1, and what they assume.
--stats: services and recipes by state, edges, depth, largest_component,
most_needed [{service, direct, indirect}], owners_without_recipe, stale
[label], unused [edge], tools and stdlib [{name, count}].
--diff: edges and gone [edge], cycles [cycle with closed_by, an edge or null];
with traces: only_traces [{from, to, count}], only_recipes and both [edge],
unknown [name].`,
		example: `  bj graph
  bj graph --cycles
  bj graph --outage all
  bj graph --outage names,package-store --spread
  bj graph --why coordination names
  bj graph --order --parallel 4
  bj graph --format html > fleet.html
  bj graph --format json > before.json; bj graph --diff before.json
  bj graph --diff traces.json`,
		flags: f.register,
		run:   f.run,
	}
}

// formats are those of bj graph.
var formats = []string{"text", "json", "dot", "svg", "html", "mermaid", "sarif"}

// register declares the flags.
func (f *graphFlags) register(fs *pflag.FlagSet) {
	fs.BoolVar(&f.cycles, "cycles", false, "services that need each other, and what would break that")
	fs.BoolVar(&f.cuts, "cuts", false, "the cheapest conditions to live without, so that everything comes back")
	fs.BoolVar(&f.order, "order", false, "what comes back after what, and how long it takes")
	fs.StringVar(&f.outage, "outage", "", "what comes back when `services` are down: names with commas between, or all")
	fs.StringVar(&f.impact, "impact", "", "what needs a `service`, on some way back or on every one")
	fs.StringVar(&f.why, "why", "", "why a `service` needs another, which is the next argument")
	fs.BoolVar(&f.stats, "stats", false, "numbers")
	fs.StringVar(&f.diff, "diff", "", "what changed since a graph was saved to `file`, or what traces in it (OTLP or Jaeger, JSON) show beside it")
	fs.StringVar(&f.format, "format", "text", "`one` of "+strings.Join(formats, ", "))
	fs.BoolVar(&f.spread, "spread", false, "with --outage: all that needs them is down, too")
	fs.IntVar(&f.parallel, "parallel", 0, "with --order: a plan for `n` hands")
	fs.DurationVar(&f.budget, "budget", graph.CutBudget, "with --cuts: search for that `time` at most")
	fs.StringVar(&f.assume, "assume", "", "unproven=down: what is assumed to come back does `not`")
	fs.StringVar(&f.waivers, "waivers", "", "further waivers from `file`")
	fs.StringVar(&f.results, "results", "", "recorded runs in `folder`; in the user's folder for state if empty")
}

// answer is what every answer can be written as.
type answer interface{ WriteText(io.Writer) error }

// drawn is an answer that other programs can draw.
type drawn interface {
	View(*graph.Graph) *graph.View
}

func (f *graphFlags) run(ctx context.Context, e *env, args []string) error {
	question, args, err := f.check(args)
	if err != nil {
		return err
	}
	l, services, err := f.load(ctx, e, args)
	if err != nil {
		return err
	}
	g, err := f.build(e, l, services)
	if err != nil {
		return err
	}
	cycles, mistakes, err := f.cyclesOf(e, l, g, question)
	if err != nil {
		return err
	}
	code := exitOK
	var a answer
	switch question {
	case "cycles":
		a = cycles
		if cycles.Blocking() > 0 {
			code = exitNotRecovered
		}
	case "cuts":
		a = g.Cuts(f.budget)
	case "order":
		a = g.Order(f.parallel)
	case "outage":
		o := graph.OutageOptions{All: f.outage == "all", Spread: f.spread}
		if o.All {
			if i, ok := g.Find("all"); ok {
				return usage("", "%q is a service (%s) and a word of --outage", "all", g.Services()[i].File)
			}
		} else if o.Down, err = find(g, strings.Split(f.outage, ",")); err != nil {
			return err
		}
		a = g.Outage(o)
	case "impact":
		found, err := find(g, []string{f.impact})
		if err != nil {
			return err
		}
		a = g.Impact(found[0])
	case "why":
		found, err := find(g, []string{f.why, args[0]})
		if err != nil {
			return err
		}
		a = g.Why(found[0], found[1])
	case "stats":
		a = g.Stats()
	case "diff":
		d, blocking, err := f.compare(e, g, cycles)
		if err != nil {
			return err
		}
		if a = d; blocking > 0 {
			code = exitNotRecovered
		}
	}
	if f.format == "sarif" && cycles != nil { // read by code scanning alone
		for i := range cycles.Cycles {
			c := &cycles.Cycles[i]
			for _, edges := range [][]graph.Edge{c.Path, c.Break} {
				for j := range edges {
					edges[j].File = e.inRepository(l.workspace.Root, edges[j].File)
				}
			}
		}
	}
	if err := f.write(e.stdout, workspaceName(cmp.Or(l.fleet.Workspace.Name, l.workspace.Root)), g, cycles, a); err != nil {
		return err
	}
	e.diagnose(mistakes)
	if mistakes.HasErrors() {
		code = exitUsage
	}
	return exit(code)
}

// check returns the question, and the patterns among the arguments; those of
// --why begin with the second service.
func (f *graphFlags) check(args []string) (question string, patterns []string, err error) {
	var asked []string
	for _, q := range []struct {
		name string
		is   bool
	}{
		{"cycles", f.cycles}, {"cuts", f.cuts}, {"order", f.order}, {"outage", f.outage != ""}, {"impact", f.impact != ""},
		{"why", f.why != ""}, {"stats", f.stats}, {"diff", f.diff != ""},
	} {
		if q.is {
			asked = append(asked, q.name)
		}
	}
	if len(asked) > 1 {
		return "", nil, usage("ask one after the other", "--%s and --%s are two questions", asked[0], asked[1])
	}
	if len(asked) == 1 {
		question = asked[0]
	}
	switch {
	case !slices.Contains(formats, f.format):
		return "", nil, usage(lang.DidYouMean(f.format, formats, "there are: "+strings.Join(formats, ", ")), "there is no format %q", f.format)
	case question == "why" && len(args) == 0:
		return "", nil, usage("bj graph --why coordination names", "--why needs two services")
	case f.spread && question != "outage":
		return "", nil, usage("bj graph --outage names --spread", "--spread belongs to --outage")
	case f.parallel < 0, f.parallel > 0 && question != "order":
		return "", nil, usage("bj graph --order --parallel 4", "--parallel is a number of hands, and belongs to --order")
	case f.budget <= 0:
		return "", nil, usage("", "--budget is a time such as 2s, not %s", f.budget)
	case f.assume != "" && f.assume != "unproven=down":
		return "", nil, usage("bj graph --order --assume unproven=down", "--assume knows unproven=down, and not %q", f.assume)
	}
	return question, args, nil
}

// load loads the workspace, and of its fleet what patterns name, with all that
// this needs. Services are those that the patterns cover, with or without a
// recipe; nil means all.
func (f *graphFlags) load(ctx context.Context, e *env, patterns []string) (*loaded, map[string]bool, error) {
	if f.why != "" {
		patterns = patterns[1:]
	}
	if len(patterns) > 0 {
		l, err := loadFleet(ctx, e, patterns, true)
		if err != nil {
			return nil, nil, err
		}
		cwd, err := l.workspace.PackageOf(e.dir)
		if err != nil {
			return nil, nil, err
		}
		covered := map[string]bool{}
		for _, text := range patterns {
			p, err := lang.ParsePattern(text, cwd)
			if err != nil {
				return nil, nil, err
			}
			for _, s := range l.fleet.Services {
				if s.Known == "" && p.Kind != lang.One && p.Covers(s.Package) {
					covered[s.Name] = !p.Negative
				}
			}
		}
		for _, r := range l.recipes {
			covered[r.Service] = true
		}
		return l, covered, nil
	}
	ws, result, err := e.loadWorkspace(ctx)
	if err != nil {
		return nil, nil, err
	}
	if result.Diagnostics.HasErrors() {
		return nil, nil, result.Diagnostics
	}
	e.diagnose(result.Diagnostics)
	return &loaded{ws, result.Fleet, result.Fleet.Recipes, &sums{root: ws.Root}}, nil, nil
}

// build makes the graph of what was loaded.
func (f *graphFlags) build(e *env, l *loaded, services map[string]bool) (*graph.Graph, error) {
	o := graph.Options{AssumeDown: f.assume != ""}
	for _, file := range l.fleet.Workspace.Known {
		saved, err := readSaved(l.workspace, file)
		if err != nil {
			return nil, err
		}
		o.Known = append(o.Known, saved)
	}
	dir, err := e.resultsDir(f.results, workspaceName(cmp.Or(l.fleet.Workspace.Name, l.workspace.Root)))
	named := f.results != "" || e.getenv("BJ_RESULTS") != ""
	if err == nil {
		_, err = os.Stat(dir)
	}
	switch {
	case err == nil:
		o.Digest = l.digestIn
		o.Results = func(label string) []event.Record {
			records, err := event.Records(dir, label)
			if err != nil {
				e.say("warning: " + err.Error())
			}
			return records
		}
	case named:
		return nil, usage("bj test records runs there", "--results: %w", err)
	}
	if services != nil {
		return graph.New(closure(l, services), o)
	}
	return graph.New(l.fleet, o)
}

// closure returns the part of a fleet that has some services, the recipes that
// were selected, and all that they need, with the recipes of that. What is left
// out is needed by nothing in it.
func closure(l *loaded, services map[string]bool) *fleet.Fleet {
	owners := graph.NewOwners(l.fleet.Services)
	of := map[string][]*fleet.Recipe{}
	for _, r := range l.fleet.Recipes {
		of[r.Service] = append(of[r.Service], r)
	}
	var queue []string
	for _, s := range l.fleet.Services {
		if services[s.Name] {
			queue = append(queue, s.Name)
		}
	}
	in := map[string]bool{}
	need := func(c *fleet.Condition) {
		if c.Endpoint == nil {
			queue = append(queue, c.Service)
			return
		}
		for _, p := range owners.Of(c.Endpoint) {
			queue = append(queue, p.Service)
		}
	}
	out := &fleet.Fleet{Workspace: l.fleet.Workspace}
	for len(queue) > 0 {
		name := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		s := l.fleet.Service(name)
		if in[name] || s == nil {
			continue
		}
		in[name] = true
		out.Services = append(out.Services, s)
		for _, r := range of[name] {
			out.Recipes = append(out.Recipes, r)
			for i := range r.Conditions {
				need(&r.Conditions[i])
			}
			for i := range r.Tools {
				if k := r.Tools[i].Kept; k != nil && k.Allow != nil {
					need(k.Allow)
				}
			}
		}
	}
	slices.SortFunc(out.Services, func(a, b *fleet.Service) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(out.Recipes, func(a, b *fleet.Recipe) int { return strings.Compare(a.Label, b.Label) })
	return out
}

// cyclesOf returns the cycles with what is waived, where the question is about
// them, and what is wrong with the waivers.
func (f *graphFlags) cyclesOf(e *env, l *loaded, g *graph.Graph, question string) (*graph.Cycles, diag.List, error) {
	if question != "" && question != "cycles" && question != "diff" && f.format != "html" && f.format != "svg" {
		return nil, nil, nil
	}
	waivers := l.fleet.Workspace.Waivers
	if f.waivers != "" {
		data, err := os.ReadFile(e.path(f.waivers))
		if err != nil {
			return nil, nil, usage("", "--waivers: %w", err)
		}
		more, err := graph.ReadWaivers(f.waivers, data)
		if err != nil {
			return nil, nil, usage(`write [{"services": ["a", "b"], "owner": "x", "reason": "y", "expires": "2030-01-31"}]`, "--waivers: %w", err)
		}
		waivers = append(slices.Clone(waivers), more...)
	}
	// A waiver for services that were left out cannot be judged.
	waivers = slices.DeleteFunc(slices.Clone(waivers), func(w fleet.Waiver) bool {
		return slices.ContainsFunc(w.Services, func(s string) bool {
			_, in := g.Find(s)
			return !in && l.fleet.Service(s) != nil
		})
	})
	cycles := g.Cycles()
	return cycles, cycles.Waive(waivers, time.Now()), nil
}

// find returns the numbers of services.
func find(g *graph.Graph, names []string) ([]int, error) {
	var out []int
	for _, name := range names {
		name = strings.TrimSpace(name)
		i, ok := g.Find(name)
		if !ok {
			var all []string
			for _, s := range g.Services() {
				all = append(all, s.Name)
			}
			return nil, usage(lang.DidYouMean(name, all, "bj graph --format json lists all services"), "there is no service %q in the graph", name)
		}
		out = append(out, i)
	}
	return out, nil
}

// compare answers --diff, and how many new cycles block.
func (f *graphFlags) compare(e *env, g *graph.Graph, cycles *graph.Cycles) (answer, int, error) {
	data, err := os.ReadFile(e.path(f.diff))
	if err != nil {
		return nil, 0, usage("", "--diff: %w", err)
	}
	saved, calls, err := graph.ReadForDiff(data)
	if err != nil {
		return nil, 0, usage("save a graph with bj graph --format json", "--diff: %s: %w", f.diff, err)
	}
	if saved == nil {
		return g.DiffTraces(calls), 0, nil
	}
	d, err := g.Diff(saved, cycles)
	if err != nil {
		return nil, 0, fmt.Errorf("comparing with %s: %w", f.diff, err)
	}
	return d, d.Blocking(), nil
}

// write writes the answer, or the graph where there was no question.
func (f *graphFlags) write(w io.Writer, title string, g *graph.Graph, cycles *graph.Cycles, a answer) error {
	wrong := func(has string) error {
		return usage("it is written as "+has, "this answer has no format %s", f.format)
	}
	switch f.format {
	case "json":
		if a == nil {
			return graph.WriteJSON(w, g.Saved())
		}
		return graph.WriteJSON(w, a)
	case "dot", "mermaid":
		view := g.View
		if d, ok := a.(drawn); ok {
			view = func() *graph.View { return d.View(g) }
		} else if a != nil {
			return wrong("text or json")
		}
		if f.format == "dot" {
			return view().WriteDOT(w)
		}
		return view().WriteMermaid(w)
	case "sarif":
		if _, ok := a.(*graph.Cycles); !ok && a != nil {
			return wrong("text or json; SARIF is about --cycles")
		}
		return cycles.WriteSARIF(w, version)
	case "svg", "html":
		if _, ok := a.(*graph.Cycles); !ok && a != nil {
			return wrong("text or json; a picture is of the whole graph, without a question")
		}
		p := g.Picture(cycles)
		if f.format == "svg" {
			return p.WriteSVG(w, title)
		}
		return p.WriteHTML(w, title)
	}
	if a == nil {
		return g.WriteSummary(w, cycles)
	}
	return a.WriteText(w)
}
