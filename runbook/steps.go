package runbook

import (
	"fmt"
	"slices"
	"strings"

	"bj/fleet"
)

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
		limit = fmt.Sprintf("It took %s (median) and %s (longest) in %s. %s", took(median), took(longest), plural(runs, "run"), limit)
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
	var outputs []fleet.Script // what machines printed
	for _, m := range s.On {
		if x := p.proof.on(s.Title, m); x != nil {
			outputs = append(outputs, fleet.Script{Machine: m, Text: p.output(x.Output)})
		}
	}
	shown := 0
	for _, g := range group(outputs) {
		switch {
		case g.text == "" && len(g.machines) == len(outputs):
			p.f("When it last worked it printed nothing.\n\n")
		case g.text != "" && shown < maxOutputs:
			shown++
			p.f("When it last worked it printed, on %s:\n\n%s\n", p.names(g.machines), fence("text", g.text))
		}
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

// maxOutputs is of how many machines a page shows what they printed, where they
// printed different things.
const maxOutputs = 3

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
		p.f("%s Check: %s\n\n", strings.Repeat("#", p.level+2), inline(p.line(v.Title)))
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
		p.f("It held after %s (median) and %s (longest) in %s.\n\n", took(median), took(longest), plural(runs, "run"))
	}
	if x := p.proof.on(v.Title, ""); x != nil {
		if text := p.output(x.Output); text != "" {
			p.f("When it last held, this was printed:\n\n%s\n", fence("text", text))
		}
	}
}
