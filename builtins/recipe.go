package builtins

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.starlark.net/starlark"

	"bj/fleet"
	"bj/lang"
	"bj/lang/diag"
)

// A recipeBuilder puts the ingredients of one recipe together.
type recipeBuilder struct {
	*call
	r        *fleet.Recipe
	hardware []*hardwareValue
	machines []*machineValue
	units    []string // of the steps so far
	// conditions are those of the recipe, as they were written.
	conditions []*thing[fleet.Condition]
}

func recipe(c *call) starlark.Value {
	b := &recipeBuilder{call: c, r: &fleet.Recipe{Package: c.state.module.Package}}
	r := b.r
	r.Pos, r.Stack = c.declared()
	if r.Name = c.required("name"); r.Name != "" {
		if err := fleet.CheckName("recipe", r.Name); err != nil {
			c.syntaxError("name", nil, "name", err)
		} else if r.Name == "all" {
			c.errorf("name", nil, "name", "the pattern :all means every recipe of a package", `recipe name "all" is reserved`)
		}
	}
	r.Label = lang.Label{Package: r.Package, Name: r.Name}.String()
	switch v := c.args[c.arg("service")].(type) {
	case nil:
	case *serviceValue:
		r.Service = v.name
	case starlark.String:
		r.Service = string(v)
		if err := fleet.CheckServiceName(r.Service); err != nil {
			c.syntaxError("service", nil, "name", err)
		}
	default:
		c.wrongType("service", nil, v, "a service or its name")
	}
	b.addHardware()
	strategy := c.list("strategy", "a list of steps, validations and faults")
	validation := c.list("validation", "a list of validations")
	b.addTooling()
	b.addConditions()
	b.addActions(strategy)
	b.addValidation(validation)
	b.checkUnits()
	if c.has("restores") {
		c.cursor = c.sig.find("restores")
		r.Restores = c.strings("restores")
		for i, p := range r.Restores {
			if err := fleet.CheckName("pathway", p); err != nil {
				c.syntaxError("restores", []any{i}, "name", err)
			} else if slices.Contains(r.Restores[:i], p) {
				c.errorf("restores", []any{i}, "duplicate", "", "pathway %q is named twice", p)
			}
		}
		if len(r.Restores) == 0 && !c.bad {
			c.errorf("restores", nil, "empty", "leave it out to mean all pathways", "restores of recipe is empty")
		}
	}
	r.Doc = strings.TrimSpace(c.str("doc"))
	r.Tags = c.strings("tags")
	for i, t := range r.Tags {
		if err := fleet.CheckName("tag", t); err != nil {
			c.syntaxError("tags", []any{i}, "name", err)
		}
	}
	r.Within = c.duration("within", 10*time.Minute, false)
	if c.has("estimate") {
		c.cursor = c.sig.find("estimate")
		d := c.duration("estimate", 0, false)
		r.Estimate = &d
	}
	if c.bad {
		c.state.broken = append(c.state.broken, r)
	} else {
		c.state.recipes = append(c.state.recipes, r)
	}
	return starlark.None
}

// later records a mistake in an ingredient that shows only in the recipe.
func (b *recipeBuilder) later(place at, arg lang.Arg, rule, hint, format string, args ...any) {
	b.bad = true
	b.state.mistakes = append(b.state.mistakes, mistake{at: place, arg: arg, d: diag.Diagnostic{
		Severity: diag.Error, Rule: rule, Hint: hint, Message: fmt.Sprintf(format, args...),
	}})
}

func (b *recipeBuilder) addHardware() {
	i := b.arg("hardware")
	if h, ok := b.args[i].(*hardwareValue); ok {
		b.args[i] = starlark.Tuple{h}
	}
	b.cursor = i
	given := b.args[i] != nil
	names := map[string]*hardwareValue{}
	for i, v := range b.list("hardware", "a list of hardware") {
		h, ok := v.(*hardwareValue)
		if !ok {
			b.wrongType("hardware", []any{i}, v, "hardware")
			continue
		}
		b.bad = b.bad || h.bad
		if slices.Contains(b.hardware, h) {
			b.errorf("hardware", []any{i}, "duplicate", "", "hardware %q is in the recipe twice", h.hw.Name)
			continue
		}
		b.hardware = append(b.hardware, h)
		hw := h.hw
		b.r.Hardware = append(b.r.Hardware, &hw)
		for _, m := range h.machines {
			if other := names[m.m.Name]; other != nil {
				b.later(h.at, lang.Arg{Name: "name"}, "duplicate", "give the hardware of a recipe different names", "two machines of the recipe are called %q", m.m.Name)
				b.relate(other.at.pos, "the other one")
				break
			}
			names[m.m.Name] = h
		}
		b.machines = append(b.machines, h.machines...)
	}
	if given && b.isEmpty("hardware") {
		b.errorf("hardware", nil, "empty", "a recipe needs at least one machine", "hardware of recipe is empty")
	}
	b.checkAddresses()
}

// isEmpty reports whether an argument is a sequence without elements.
func (b *recipeBuilder) isEmpty(name string) bool {
	v, ok := b.args[b.sig.find(name)].(starlark.Sequence)
	return ok && v.Len() == 0
}

// relate adds another place to the last mistake.
func (b *recipeBuilder) relate(pos diag.Pos, message string) {
	last := &b.state.mistakes[len(b.state.mistakes)-1]
	last.d.Related = append(last.d.Related, diag.Related{Pos: pos, Message: message})
}

func (b *recipeBuilder) checkAddresses() {
	type owner struct {
		m *machineValue
	}
	used := make(map[netip.Addr]owner, 2*len(b.machines))
	for _, m := range b.machines {
		for _, a := range []netip.Addr{m.m.V4, m.m.V6} {
			if !a.IsValid() {
				continue
			}
			if o, ok := used[a]; ok && o.m != m {
				culprit := m
				if !m.m.Declared && o.m.m.Declared {
					culprit, o.m = o.m, m
				}
				b.later(culprit.hardware.at, lang.Arg{Name: "addresses", Index: -1, Path: []any{culprit.m.Index}}, "address",
					"give every machine of a recipe an address of its own", "address %s is used twice: by %s and %s", a, o.m.m.Name, culprit.m.Name)
				b.relate(o.m.hardware.at.pos, "the other one")
				return
			}
			used[a] = owner{m}
		}
	}
}

// own checks that machines belong to the recipe, and returns their names; all
// of the recipe's if there are none.
func (b *recipeBuilder) own(ms []*machineValue, place at) []*machineValue {
	if ms == nil {
		return b.machines
	}
	for _, m := range ms {
		if !slices.Contains(b.hardware, m.hardware) {
			b.later(place, lang.Arg{Name: "on", Index: -1}, "hardware", fmt.Sprintf("add %s to the hardware of the recipe", m.hardware.hw.Name),
				"machine %s is not in the recipe %q", m.m.Name, b.r.Name)
			return nil
		}
	}
	return ms
}

func (b *recipeBuilder) addTooling() {
	names := map[string]diag.Pos{}
	once := func(kind, name string, place at, param string) {
		if first, ok := names[kind+name]; ok {
			b.later(place, lang.Arg{Name: param}, "duplicate", "", "%s %q is in the recipe twice", kind, name)
			b.relate(first, "the other one")
		}
		names[kind+name] = place.pos
	}
	for i, v := range b.list("tooling", "a list of tools, files and secrets") {
		switch v := v.(type) {
		case *thing[fleet.Tool]:
			b.bad = b.bad || v.bad
			once("tool", v.v.Name, v.at, "name")
			b.r.Tools = append(b.r.Tools, v.v)
		case *thing[fileThing]:
			b.bad = b.bad || v.bad
			for _, m := range b.own(v.v.on, v.at) {
				once("file", v.v.Path+"\" of machine \""+m.m.Name, v.at, "path")
			}
			b.r.Files = append(b.r.Files, v.v.File)
		case *thing[fleet.Secret]:
			b.bad = b.bad || v.bad
			once("secret", v.v.Name, v.at, "name")
			b.r.Secrets = append(b.r.Secrets, v.v)
		default:
			b.wrongType("tooling", []any{i}, v, "a tool, a file or a secret")
		}
	}
}

func (b *recipeBuilder) addConditions() {
	for i, v := range b.list("conditions", "a list of allow(...)") {
		switch v := v.(type) {
		case *thing[fleet.Condition]:
			b.bad = b.bad || v.bad
			for _, name := range v.v.On {
				if !slices.ContainsFunc(b.machines, func(m *machineValue) bool { return m.m.Name == name }) {
					b.later(v.at, lang.Arg{Name: "on", Index: -1}, "hardware", "add its hardware to the recipe", "machine %s is not in the recipe %q", name, b.r.Name)
				}
			}
			b.r.Conditions = append(b.r.Conditions, v.v)
			b.conditions = append(b.conditions, v)
		case starlark.String, *serviceValue, *thing[fleet.Endpoint]:
			name := v.String()
			if e, ok := v.(*thing[fleet.Endpoint]); ok {
				name = fmt.Sprintf("%q", e.v.URL)
			} else if s, ok := v.(*serviceValue); ok {
				name = fmt.Sprintf("%q", s.name)
			}
			b.errorf("conditions", []any{i}, "wrong-type", "write allow("+name+")", "an element of conditions of recipe must be an allow(...), not %s", typeName(v))
		default:
			b.wrongType("conditions", []any{i}, v, "an allow(...)")
		}
	}
}

func (b *recipeBuilder) addActions(list []starlark.Value) {
	steps := 0
	for i, v := range list {
		t, ok := v.(*thing[action])
		if !ok {
			steps++ // perhaps
			b.wrongType("strategy", []any{i}, v, "a step, a validation or a fault")
			continue
		}
		b.bad = b.bad || t.bad
		if t.v.Step != nil {
			steps++
		}
		b.r.Strategy = append(b.r.Strategy, b.place(t))
	}
	if steps == 0 && (len(list) > 0 || b.isEmpty("strategy")) {
		b.errorf("strategy", nil, "no-step", "say how the service is brought back: step(...)", "recipe %q has no step", b.r.Name)
	}
}

func (b *recipeBuilder) addValidation(list []starlark.Value) {
	for i, v := range list {
		t, ok := v.(*thing[action])
		if !ok || t.v.Validation == nil {
			b.wrongType("validation", []any{i}, v, "a validation")
			continue
		}
		b.bad = b.bad || t.bad
		b.r.Validation = append(b.r.Validation, b.place(t).Validation)
	}
	if b.isEmpty("validation") {
		b.errorf("validation", nil, "no-validation", "say how one knows that the service is back: validate(...)", "recipe %q has no validation", b.r.Name)
	}
}

// place gives an action the machines of the recipe, and runs the function that
// makes its scripts.
func (b *recipeBuilder) place(t *thing[action]) fleet.Action {
	machines := b.own(t.v.on, t.at)
	names := machineNames(machines)
	switch {
	case t.v.Step != nil:
		s := *t.v.Step
		s.On, s.Run = names, b.scripts(t, machines)
		if !t.v.unit {
			for n := 2; slices.Contains(b.units, s.Unit); n++ {
				s.Unit = fmt.Sprintf("%s-%d", t.v.Step.Unit, n)
			}
		}
		b.units = append(b.units, s.Unit)
		if s.Capture != "" {
			b.checkCapture(t, &s)
		}
		return fleet.Action{Step: &s}
	case t.v.Validation != nil:
		v := *t.v.Validation
		v.On, v.Run = names, b.scripts(t, machines)
		v.AtLeast = len(names)
		if t.v.atLeast > 0 {
			v.AtLeast = t.v.atLeast
			if v.AtLeast > len(names) && len(names) > 0 {
				b.later(t.at, lang.Arg{Name: "at_least", Index: -1}, "range", "", "at_least is %d, but the validation runs on %d machines", v.AtLeast, len(names))
			}
		}
		return fleet.Action{Validation: &v}
	}
	f := *t.v.Fault
	f.On = names
	// A service of an init system is known when it runs.
	if f.Kill != "" && !slices.Contains(b.units, f.Kill) && !strings.HasSuffix(f.Kill, ".service") {
		b.later(t.at, lang.Arg{Name: "kill", Index: -1}, "unknown-unit", lang.DidYouMean(f.Kill, b.units, "no step before it has that unit"), "unknown unit %q", f.Kill)
	}
	if f.Dark != "" {
		var known []string
		for i := range b.r.Conditions {
			known = append(known, b.r.Conditions[i].Name())
		}
		if !slices.Contains(known, f.Dark) {
			b.later(t.at, lang.Arg{Name: "dark", Index: -1}, "unknown-condition", lang.DidYouMean(f.Dark, known, "only what the conditions allow can go dark"), "no condition of the recipe is %q", f.Dark)
		}
	}
	return fleet.Action{Fault: &f}
}

func (b *recipeBuilder) scripts(t *thing[action], machines []*machineValue) []fleet.Script {
	if t.v.run == nil {
		return nil
	}
	out := make([]fleet.Script, 0, len(machines))
	for _, m := range machines {
		text, ok := t.v.run.(starlark.String)
		if !ok {
			v, err := starlark.Call(b.thread, t.v.run, starlark.Tuple{m}, nil)
			if err != nil {
				b.failScript(t, err)
				return nil
			}
			if text, ok = v.(starlark.String); !ok {
				b.later(t.at, lang.Arg{Name: "run", Index: -1}, "wrong-type", "", "the function of run must return a script, not %s", typeName(v))
				return nil
			}
			if strings.TrimSpace(string(text)) == "" || strings.ContainsRune(string(text), 0) {
				b.later(t.at, lang.Arg{Name: "run", Index: -1}, "script", "", "the function of run returned an empty script for %s, or one with a NUL byte", m.m.Name)
				return nil
			}
		}
		out = append(out, fleet.Script{Machine: m.m.Name, Text: string(text)})
	}
	return out
}

// failScript records a mistake in a function that makes scripts, where it was
// made.
func (b *recipeBuilder) failScript(t *thing[action], err error) {
	d := lang.EvalDiagnostic(err)
	if d.Pos.IsValid() {
		b.bad = true
		b.state.mistakes = append(b.state.mistakes, mistake{at: at{d.Pos, d.Stack}, arg: lang.Arg{Index: -2}, d: d})
		b.relate(t.at.pos, "the function of this run")
		return
	}
	b.later(t.at, lang.Arg{Name: "run", Index: -1}, "evaluation", "", "%s", errors.Unwrap(err))
}

// checkUnits checks that the units that conditions name are the recipe's.
func (b *recipeBuilder) checkUnits() {
	for _, cond := range b.conditions {
		for i, u := range cond.v.Only {
			if !slices.Contains(b.units, u) {
				b.later(cond.at, lang.Arg{Name: "only", Index: -1, Path: []any{i}}, "unknown-unit", lang.DidYouMean(u, b.units, "no step of the recipe has that unit"), "unknown unit %q", u)
			}
		}
	}
}

// checkCapture checks where the output of a step goes.
func (b *recipeBuilder) checkCapture(t *thing[action], s *fleet.Step) {
	arg := lang.Arg{Name: "capture", Index: -1}
	if slices.ContainsFunc(b.r.Secrets, func(x fleet.Secret) bool { return x.Name == s.Capture }) {
		b.later(t.at, arg, "duplicate", "", "%q is the name of a secret", s.Capture)
	}
	if len(s.On) > 1 {
		b.later(t.at, arg, "argument", "choose one with on", "capture takes the output of one machine, not of %d", len(s.On))
	}
}
