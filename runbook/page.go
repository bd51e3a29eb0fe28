package runbook

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"bj/fleet"
	"bj/graph"
	"bj/run/event"
)

// maxFile is the size of the largest file that is a block on a page, in bytes.
const maxFile = 128 << 10

// page writes one recipe.
type page struct {
	strings.Builder
	*ink
	b      *Book
	r      *fleet.Recipe
	s      *fleet.Service
	proof  proof
	level  int // of the title's heading
	inputs string
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
	return Page{Name(r.Label), title, seal(p.String())}, nil
}

func (b *Book) newPage(r *fleet.Recipe, level int) (*page, error) {
	k, err := b.newInk(r)
	if err != nil {
		return nil, err
	}
	p := &page{ink: k, b: b, r: r, s: b.Fleet.Service(r.Service), level: level, inputs: event.Inputs(r, b.Read)}
	p.proof = proofOf(b.records(r.Label), event.Digest(b.Fleet, r), p.inputs)
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

// verdict is section 1.
func (p *page) verdict() {
	p.section(1, "Verdict")
	word, rest := p.proof.stamp(p.r, p.ink)
	if rest != "" {
		rest = ", " + strings.TrimPrefix(rest, ", ")
		if !p.proof.failed {
			rest = " " + strings.TrimPrefix(rest, ", ")
		}
	}
	p.f("**%s**%s.\n\n", word, rest)
	good := p.proof.good
	if p.proof.failed {
		last := p.proof.last
		p.f("The last run ended on %s. What it said:\n\n%s\n", day(last.End), fence("text", p.output(last.Reason)))
		if good != nil {
			p.f("What follows is the text as it is now; times and output are those of the last run that recovered.\n\n")
		}
		if differs(last, event.Digest(p.b.Fleet, p.r), p.inputs) {
			p.f("The recipe has changed since that run failed.\n\n")
		}
	}
	if e := p.proof.errored; e != nil {
		p.f("The newest run, of %s, ended in an error, which says nothing of the recipe: %s\n\n", day(e.End), inline(p.line(firstLine(e.Reason))))
	}
	if p.proof.changed {
		p.f("**The recipe has changed since its proof**: what is written here was not run as it stands.\n\n")
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

// before is section 3.
func (p *page) before() {
	p.section(3, "What must be healthy first")
	switch wave := p.b.waves[p.r.Service]; {
	case wave == 1:
		p.f("The service comes back in wave 1: among the first, when everything is down.\n\n")
	case wave > 1:
		p.f("The service comes back in wave %d, when everything is down.\n\n", wave)
	default:
		p.f("From nothing, the service does not come back by recipes alone: `bj graph --order` says why.\n\n")
	}
	if len(p.r.Conditions) == 0 {
		p.f("Nothing.\n\n")
	}
	for i := range p.r.Conditions {
		p.condition(&p.r.Conditions[i])
	}
	if len(p.r.Conditions) > 0 {
		p.f("\n")
	}
}

// condition writes one item of section 3.
func (p *page) condition(c *fleet.Condition) {
	var endpoints []fleet.Endpoint
	var owners []graph.Pathway
	switch {
	case c.Endpoint != nil:
		p.f("- **%s**", code(p.line(c.Endpoint.URL)))
		endpoints = []fleet.Endpoint{*c.Endpoint}
		owners = graph.NewOwners(p.b.Fleet.Services).Of(c.Endpoint)
	case c.Service == "*":
		p.f("- **everything in production**: no way back was proven without it")
	default:
		p.f("- **%s**", escape(p.line(c.Service)))
		if s := p.b.Fleet.Service(c.Service); s != nil {
			for _, name := range c.Pathways {
				owners = append(owners, graph.Pathway{Service: s.Name, Name: name})
				if w := s.Pathway(name); w != nil {
					endpoints = append(endpoints, w.Endpoints...)
				}
			}
		}
		if !slices.Equal(c.Pathways, []string{"default"}) {
			p.f(", for %s", p.list(c.Pathways))
		}
	}
	if len(c.On) > 0 {
		p.f(", from %s", p.names(c.On))
	}
	if c.Why != "" {
		p.f(": %s", inline(p.line(c.Why)))
	}
	p.f("\n")
	for _, e := range endpoints {
		p.f("  - %s%s\n", code(p.line(e.URL)), p.known(&e))
	}
	var links []string
	for _, r := range p.b.Fleet.Recipes {
		for _, w := range owners {
			if r.Service == w.Service && slices.Contains(r.Restores, w.Name) && r != p.r {
				if l := p.link(r.Label); !slices.Contains(links, l) {
					links = append(links, l)
				}
			}
		}
	}
	switch {
	case len(links) > 0:
		p.f("  - if it is down: %s\n", strings.Join(links, " or "))
	case c.Service != "*":
		p.f("  - no recipe brings it back; who owns it must\n")
	}
}

// link is the link to a recipe's page.
func (p *page) link(label string) string {
	return fmt.Sprintf("[%s](%s)", escape(p.line(label)), link(Name(label)))
}

// known says whose an address is, or that a name has none here.
func (p *page) known(e *fleet.Endpoint) string {
	if !e.Prefix.IsValid() {
		if e.Host != "" && e.Scheme != "dns" {
			return ", whose address is not written down; note it here: ______"
		}
		return ""
	}
	for _, r := range p.b.Fleet.Recipes {
		for _, m := range r.Machines() {
			if a := e.Prefix.Addr(); m.Declared && e.Prefix.IsSingleIP() && (a == m.V4 || a == m.V6) {
				name := m.Name
				if x := p.b.Machines.row(r.Label, m.Name); x != nil && x.name != "" {
					name = x.name
				}
				return " (" + code(p.line(name)) + ")"
			}
		}
	}
	return ""
}

// hardware is section 4.
func (p *page) hardware() {
	p.section(4, "Machines")
	filled := p.b.Machines != nil
	p.f("| in the recipe | your machine | IPv4 | IPv6 | size | image |\n| --- | --- | --- | --- | --- | --- |\n")
	var hosts strings.Builder
	for _, h := range p.r.Hardware {
		image := "the workspace's"
		if h.Image != nil {
			image = cell(inline(p.line(h.Image.Name)))
		}
		for _, m := range h.Machines {
			own, v4, v6 := "______", m.V4.String(), m.V6.String()
			aliases := m.Name
			if filled {
				v4, v6 = p.machines.addr(m.V4), p.machines.addr(m.V6)
				own = code(p.machines.name(m.Name))
				if n := p.machines.name(m.Name); n != m.Name {
					aliases = n + " " + m.Name
				}
			}
			p.f("| %s | %s | %s | %s | %d × CPU, %s memory, %s disk | %s |\n", code(m.Name), own, code(v4), code(v6), h.CPUs, fleet.FormatSize(h.Memory), fleet.FormatSize(h.Disk), image)
			fmt.Fprintf(&hosts, "%s %s\n%s %s\n", v4, aliases, v6, aliases)
		}
	}
	p.f("\n")
	for _, h := range p.r.Hardware {
		if h.Doc != "" {
			p.f("%s: %s\n\n", code(h.Name), inline(p.line(h.Doc)))
		}
	}
	switch {
	case filled && len(p.machines.changed) > 0:
		p.f("Your names and addresses were filled in: in all commands, files and outputs of this page, these were replaced wherever they stand by themselves:\n\n")
		for _, c := range p.machines.changed {
			p.f("- %s\n", code(c))
		}
		p.f("\nWhat is fetched or computed while the steps run was not, nor were networks (`10.0.0.0/8`) and parts of other names.\n\n")
	case filled:
		p.f("None of these machines is in the list of yours, so names and addresses are the recipe's.\n\n")
	default:
		p.f("Names and addresses are the recipe's: give them to your machines, or make this page again with `--machines hosts.csv`, which fills in yours.\n\n")
	}
	if p.s != nil && len(p.s.Listens) > 0 {
		var ports []string
		for _, l := range p.s.Listens {
			ports = append(ports, code(l.String()))
		}
		p.f("The service listens on %s: there its machines must reach each other.\n\n", join(ports))
	}
	p.f("On each machine, so that they know each other:\n\n%s\n", fence("sh", "cat >>/etc/hosts <<'END'\n"+hosts.String()+"END"))
}

// tools is section 5.
func (p *page) tools() {
	p.section(5, "Tools, files, secrets")
	if len(p.r.Tools)+len(p.r.Files)+len(p.r.Secrets) == 0 {
		p.f("None.\n\n")
		return
	}
	if len(p.r.Tools) > 0 {
		p.f("Put on `PATH` of every machine:\n\n| tool | from | where it is kept | SHA-256 |\n| --- | --- | --- | --- |\n")
		for i := range p.r.Tools {
			t := &p.r.Tools[i]
			kept := "not said"
			if t.Kept != nil && t.Kept.Allow != nil {
				kept = "in " + escape(p.line(t.Kept.Allow.Name()))
			} else if t.Kept != nil {
				kept = inline(p.line(t.Kept.Text))
			}
			name := code(p.line(t.Name))
			if t.Doc != "" {
				name += ", which " + inline(p.line(t.Doc))
			}
			digest := "not known"
			if d := p.digest(t); d != "" {
				digest = code(d)
			}
			p.f("| %s | %s | %s | %s |\n", cell(name), cell(code(p.line(source(t)))), cell(kept), digest)
		}
		p.f("\n")
	}
	for i := range p.r.Secrets {
		s := &p.r.Secrets[i]
		where := p.line(s.Where)
		if where == "" {
			where = "not said where"
		}
		p.f("The secret %s is kept here: %s. On each machine, paste this with the value in place of the middle line:\n\n%s\n", code(s.Name), inline(strings.TrimSuffix(where, ".")), fence("sh", value(s.Name, "PASTE THE VALUE OF "+s.Name+" HERE")))
	}
	for i := range p.r.Files {
		p.file(&p.r.Files[i])
	}
}

// value is what an operator pastes to keep a value where steps find it.
func value(name, words string) string {
	return fmt.Sprintf("mkdir -p %[1]s\n(umask 077; cat >%[1]s/%[2]s <<'END'\n%[3]s\nEND\n)", home, name, words)
}

// file writes one file of section 5.
func (p *page) file(f *fleet.File) {
	where := "On each machine"
	if len(f.On) > 0 {
		where = "On " + p.names(f.On)
	}
	name := p.verbatim(f.Path)
	p.f("%s, the file %s", where, code(p.line(f.Path)))
	content := f.Content
	if f.Source != "" {
		p.f(", from %s of the workspace", code(p.line(f.Source)))
		data, err := p.b.Read(f.Source)
		if err != nil {
			p.f(". **Its content is not here: it cannot be read.**\n\n")
			return
		}
		content = string(data)
	}
	before := p.mask(content)
	masked := before != content
	content = p.machines.text(before)
	sum := sha256.Sum256([]byte(content))
	digest := code(hex.EncodeToString(sum[:]))
	switch {
	case len(content) > maxFile && !masked:
		p.f(". It has %d bytes and is not printed here: bring it along. SHA-256: %s\n\n", len(content), digest)
		return
	case masked:
		p.f(". **It holds a secret, which reads `%s` here: put in what is meant.**\n\n", maskText)
	default:
		p.f(", SHA-256 %s:\n\n", digest)
	}
	p.WriteString(fence("sh", file(name, content, f.Mode)) + "\n")
}

// source says where a tool comes from.
func source(t *fleet.Tool) string {
	switch {
	case t.Go != "":
		return "go " + t.Go
	case t.Deb != "":
		return "deb " + t.Deb
	case t.URL != "":
		return t.URL
	case t.Target != "":
		return "target " + t.Target
	}
	return t.Path
}

// digest is that of a tool: the recipe's, or that of the run that recovered.
func (p *page) digest(t *fleet.Tool) string {
	if t.SHA256 != "" || p.proof.good == nil {
		return t.SHA256
	}
	for _, free := range p.proof.good.Free {
		if rest, ok := strings.CutPrefix(free, "tool "+t.Name+":"); ok {
			if _, d, ok := strings.Cut(rest, ", sha256 "); ok {
				return p.line(d)
			}
		}
	}
	return ""
}

// steps is section 6.
func (p *page) steps() {
	p.section(6, "Steps")
	values := []string{}
	for _, s := range p.r.Secrets {
		values = append(values, s.Name)
	}
	n, checks := 0, 0
	var faults []string
	for i, a := range p.r.Strategy {
		switch {
		case a.Step != nil:
			n++
			if len(faults) > 0 {
				p.f("In the proof, this came after: %s.\n\n", strings.Join(faults, "; "))
				faults = nil
			}
			p.step(n, a.Step, values, p.r.Strategy[i+1:])
			if a.Step.Capture != "" && !slices.Contains(values, a.Step.Capture) {
				values = append(values, a.Step.Capture)
			}
		case a.Validation != nil:
			checks++
			p.f("%s Check: %s\n\n", strings.Repeat("#", p.level+2), inline(p.line(a.Validation.Title)))
			p.check(fmt.Sprintf("check-%d", checks), a.Validation, values)
		case a.Fault != nil:
			faults = append(faults, inline(p.line(a.Fault.Title)))
		}
	}
}

// step writes one step. Later is what comes after it.
func (p *page) step(n int, s *fleet.Step, values []string, later []fleet.Action) {
	p.f("%s Step %d: %s\n\n", strings.Repeat("#", p.level+2), n, inline(p.line(s.Title)))
	if s.Danger != "" {
		p.f("**Danger: %s**\n\n", strings.TrimSpace(inline(p.line(s.Danger))))
	}
	if s.Doc != "" {
		p.WriteString(p.prose(s.Doc))
	}
	if len(s.Run) == 0 {
		p.f("By hand, on %s: nobody has tested this step.\n\n", p.names(s.On))
	}
	for _, g := range group(s.Run) {
		c := command{name: fmt.Sprintf("step-%d", n), script: p.verbatim(g.text), user: s.User, env: p.environ(s.Env), values: values,
			daemon: s.Daemon, restart: s.Restart, unit: s.Unit, retry: s.Retry, capture: s.Capture, masked: s.Masked}
		p.f("%s\n\n%s\n", p.place(g.machines, len(s.On)), fence("sh", c.text()))
		if p.mask(g.text) != g.text {
			p.f("**A secret reads `%s` in it: put in what is meant.**\n\n", maskText)
		}
	}
	p.expected(s)
	p.printed(s)
	limit := fmt.Sprintf("Limit: %s", fleet.FormatDuration(s.Within))
	if median, longest, runs := p.proof.times(s.Title); runs > 0 {
		limit = fmt.Sprintf("It took %s, at most %s (%s). %s", took(median), took(longest), plural(runs, "run"), limit)
	}
	if s.Retry > 0 {
		limit += fmt.Sprintf(" for each try; it may fail at first, and is tried again up to %s, a second apart", plural(s.Retry, "time"))
	}
	p.f("%s.\n\n", limit)
	if s.Capture != "" {
		p.capture(n, s, later)
	}
	switch {
	case s.IfFails != "":
		p.f("If it fails: %s\n\n", inline(p.line(s.IfFails)))
	default:
		p.f("If it fails or reaches its limit: stop here, compare what it prints, and call %s.\n\n", inline(p.owner()))
	}
}

// environ is a step's own environment, masked and with own names.
func (p *page) environ(env map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range env {
		out[k] = p.verbatim(v)
	}
	return out
}

// expected says by what one knows that a step has worked.
func (p *page) expected(s *fleet.Step) {
	expr := code(p.line(s.Expect))
	switch c := (&command{unit: s.Unit}); {
	case len(s.Run) == 0:
	case s.Daemon && s.Expect != "":
		p.f("It keeps running. It is up when its log %s matches the expression %s; `tail -f %s` shows the log.\n\n", code(c.log()), expr, c.log())
	case s.Daemon:
		p.f("It keeps running; `tail -f %s` shows its log.\n\n", c.log())
	case s.Expect != "":
		p.f("It worked if it ends without an error and prints what matches the expression %s.\n\n", expr)
	}
}

// printed shows what a step printed when it last worked.
func (p *page) printed(s *fleet.Step) {
	if p.proof.good == nil || len(s.Run) == 0 {
		return
	}
	if s.Masked {
		p.f("What it prints is a secret, and was not kept.\n\n")
		return
	}
	for _, m := range s.On {
		x := p.proof.on(s.Title, m)
		if x == nil {
			continue
		}
		text := p.output(x.Output)
		if text == "" {
			p.f("When it last worked it printed nothing.\n\n")
			return
		}
		p.f("When it last worked it printed, on %s:\n\n%s\n", p.names([]string{m}), fence("text", text))
		return // other machines print the like
	}
}

// capture says what to keep of a step, and where to paste it.
func (p *page) capture(n int, s *fleet.Step, later []fleet.Action) {
	var others []string
	need := func(on []string) {
		for _, m := range on {
			if !slices.Contains(s.On, m) && !slices.Contains(others, m) {
				others = append(others, m)
			}
		}
	}
	for _, a := range later {
		if a.Step != nil && len(a.Step.Run) > 0 {
			need(a.Step.On)
		}
		if a.Validation != nil {
			need(a.Validation.On)
		}
	}
	for _, v := range p.r.Validation {
		need(v.On)
	}
	p.f("Keep what it printed: later steps use it as `$%s`. On %s it is in `%s/%s`.", s.Capture, p.names(s.On), home, s.Capture)
	if s.Masked {
		p.f(" It is a secret: do not write it down.")
	}
	p.f("\n\n")
	if len(others) > 0 {
		p.f("%s, paste this with what was printed in place of the middle line:\n\n%s\n", strings.TrimSuffix(p.place(others, -1), ":"), fence("sh", value(s.Capture, fmt.Sprintf("PASTE WHAT STEP %d PRINTED HERE", n))))
	}
}

// plural is a number of things.
func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

// alike are machines on which the same script runs.
type alike struct {
	machines []string
	text     string
}

// group puts machines with the same script together.
func group(scripts []fleet.Script) []alike {
	var out []alike
	for _, s := range scripts {
		if i := slices.IndexFunc(out, func(a alike) bool { return a.text == s.Text }); i >= 0 {
			out[i].machines = append(out[i].machines, s.Machine)
			continue
		}
		out = append(out, alike{[]string{s.Machine}, s.Text})
	}
	return out
}

// place says on which machines to paste.
func (p *page) place(machines []string, of int) string {
	if len(machines) == 1 {
		return "On " + p.names(machines) + ":"
	}
	at := ""
	if of > 0 {
		at = ", at the same time"
	}
	return "On each of " + p.names(machines) + at + ":"
}

// validations is section 7.
func (p *page) validations() {
	p.section(7, "Validation")
	p.f("It is healthy when all of this holds.\n\n")
	values := []string{}
	for _, s := range p.r.Secrets {
		values = append(values, s.Name)
	}
	for _, a := range p.r.Strategy {
		if a.Step != nil && a.Step.Capture != "" && !slices.Contains(values, a.Step.Capture) {
			values = append(values, a.Step.Capture)
		}
	}
	for i, v := range p.r.Validation {
		p.f("%s %s\n\n", strings.Repeat("#", p.level+2), inline(p.line(v.Title)))
		p.check(fmt.Sprintf("final-%d", i+1), v, values)
	}
	if p.r.Within > 0 {
		p.f("All of it, from the first step on, has a limit of %s. If a check does not hold in its time, call %s.\n\n", fleet.FormatDuration(p.r.Within), inline(p.owner()))
	}
}

// check writes one validation.
func (p *page) check(name string, v *fleet.Validation, values []string) {
	if v.Doc != "" {
		p.WriteString(p.prose(v.Doc))
	}
	for _, g := range group(v.Run) {
		c := command{name: name, script: p.verbatim(g.text), values: values}
		p.f("%s\n\n%s\n", p.place(g.machines, -1), fence("sh", c.text()))
		if p.mask(g.text) != g.text {
			p.f("**A secret reads `%s` in it: put in what is meant.**\n\n", maskText)
		}
	}
	want := fmt.Sprintf("Expected: exit code %d", v.Exit)
	if v.Expect != "" {
		want += ", and output that matches the expression " + code(p.line(v.Expect))
	}
	if v.AtLeast != len(v.On) {
		want += fmt.Sprintf(", on at least %d of the %d machines", v.AtLeast, len(v.On))
	}
	if v.Steady > 0 {
		want += ", for " + fleet.FormatDuration(v.Steady) + " without a break"
	}
	p.f("%s. Wait up to %s, and look every %s.\n\n", want, fleet.FormatDuration(v.Within), fleet.FormatDuration(v.Every))
	if median, longest, runs := p.proof.times(v.Title); runs > 0 {
		p.f("It held after %s, at most %s (%s).\n\n", took(median), took(longest), plural(runs, "run"))
	}
	if x := p.proof.on(v.Title, ""); x != nil {
		if text := p.output(x.Output); text != "" {
			p.f("When it last held, this was printed:\n\n%s\n", fence("text", text))
		}
	}
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
	p.f("- Digest of the recipe: %s\n", code(event.Digest(p.b.Fleet, p.r)))
	if p.inputs != "" {
		p.f("- Digest of what its files hold: %s\n", code(p.inputs))
	}
	if g := p.proof.good; g != nil {
		p.f("- Proven by `bj` %s, with digest %s\n", escape(p.line(g.Version)), code(p.line(g.Digest)))
		if g.Sandbox != "" {
			p.f("- In the sandbox %s\n", code(p.line(g.Sandbox)))
		}
	}
	due := "now"
	if g := p.proof.good; g != nil && !p.proof.failed && !p.proof.changed {
		due = g.End.Add(validFor).UTC().Format(time.DateOnly)
	}
	p.f("- To be proven again: %s\n- Written by `bj` %s\n\n", due, p.b.Version)
}
