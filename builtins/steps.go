package builtins

import (
	"strings"
	"time"

	"go.starlark.net/starlark"

	"bj/fleet"
	"bj/lang"
)

// An action is a step, a validation or a fault before a recipe has given it
// machines.
type action struct {
	fleet.Action
	on  []*machineValue // nil for all
	run starlark.Value  // String, Callable or nil
	// atLeast is as written: 0 for all.
	atLeast int
	unit    bool // the unit was named
}

// script checks the argument run.
func (c *call) script() starlark.Value {
	v := c.args[c.arg("run")]
	switch s := v.(type) {
	case nil:
	case starlark.Callable:
		return s
	case starlark.String:
		if strings.TrimSpace(string(s)) == "" {
			c.errorf("run", nil, "empty", "a step without run is a manual one", "run of %s is empty", c.sig.name)
		}
		return c.cleanScript(s)
	default:
		c.wrongType("run", nil, v, "a script, or a function of the machine that returns one")
	}
	return nil
}

func (c *call) cleanScript(s starlark.String) starlark.Value {
	if strings.ContainsRune(string(s), 0) {
		c.errorf("run", nil, "script", "", "run of %s contains a NUL byte", c.sig.name)
	}
	return s
}

// title reads the title of an action: one line.
func (c *call) title() string {
	t := strings.TrimSpace(c.required("title"))
	if strings.ContainsAny(t, "\n\r") {
		c.errorf("title", nil, "name", "put the rest into doc", "title of %s has several lines", c.sig.name)
	}
	return t
}

func step(c *call) starlark.Value {
	t := &thing[action]{kind: "step", at: c.place()}
	s := &fleet.Step{Title: c.title(), Pos: c.start()}
	t.v.Step = s
	t.v.run = c.script()
	t.v.on = c.machines("on")
	s.Doc = strings.TrimSpace(c.str("doc"))
	s.Within = c.duration("within", 5*time.Minute, false)
	s.Daemon, s.Restart = c.boolean("daemon"), c.boolean("restart")
	if s.Unit = c.required("unit"); s.Unit != "" {
		t.v.unit = true
		if err := fleet.CheckName("unit", s.Unit); err != nil {
			c.syntaxError("unit", nil, "name", err)
		}
	} else {
		s.Unit = slug(s.Title)
	}
	s.User = "root"
	if user := c.required("user"); user != "" {
		s.User = user
		if err := fleet.CheckName("user", user); err != nil && !strings.HasPrefix(user, "_") {
			c.syntaxError("user", nil, "name", err)
		}
	}
	s.Env = c.env("env")
	s.Expect = c.regexp("expect")
	if s.Capture = c.required("capture"); s.Capture != "" {
		if err := fleet.CheckCaptureName("capture", s.Capture); err != nil {
			c.syntaxError("capture", nil, "name", err)
		}
	}
	s.Masked = c.boolean("masked")
	s.Retry = c.integer("retry", 0, 0, 1000)
	s.IfFails, s.Danger = strings.TrimSpace(c.str("if_fails")), strings.TrimSpace(c.str("danger"))
	only := func(arg, needs string, given, met bool) {
		if given && !met {
			c.errorf(arg, nil, "argument", "leave it out, or add "+needs, "%s of step needs %s", arg, needs)
		}
	}
	only("restart", "daemon = True", s.Restart, s.Daemon)
	only("masked", "capture", s.Masked, s.Capture != "")
	if s.Daemon && s.Capture != "" {
		c.errorf("capture", nil, "argument", "capture in a step that ends", "a daemon has no output to capture")
	}
	if s.Daemon && s.Retry > 0 {
		c.errorf("retry", nil, "argument", "restart = True starts it again", "a daemon is not retried")
	}
	if t.v.run == nil && !c.bad {
		for _, arg := range []string{"daemon", "restart", "expect", "capture", "retry", "env"} {
			v := c.args[c.arg(arg)]
			if v != nil && v.Truth() {
				c.errorf(arg, nil, "argument", "add run, or leave it out", "a manual step, without run, has no %s", arg)
			}
		}
	}
	t.bad = c.bad
	return t
}

// env reads a dict of variables.
func (c *call) env(name string) map[string]string {
	v := c.args[c.arg(name)]
	if v == nil {
		return nil
	}
	d, ok := v.(*starlark.Dict)
	if !ok {
		c.wrongType(name, nil, v, "a dict of strings")
		return nil
	}
	env := make(map[string]string, d.Len())
	for k, v := range d.Entries() {
		key, ok1 := k.(starlark.String)
		value, ok2 := v.(starlark.String)
		if !ok1 {
			c.wrongType(name, nil, k, "a dict of strings")
			continue
		}
		if !ok2 {
			c.wrongType(name, []any{string(key)}, v, "a string")
			continue
		}
		if err := fleet.CheckEnvName(string(key)); err != nil {
			c.syntaxError(name, []any{string(key)}, "name", err)
		}
		if strings.ContainsRune(string(value), 0) { // which no variable can hold
			c.errorf(name, []any{string(key)}, "script", "", "%s of %s contains a NUL byte", name, c.sig.name)
		}
		env[string(key)] = string(value)
	}
	return env
}

// slug makes a unit's name from a title.
func slug(title string) string {
	var b strings.Builder
	gap := false
	for _, r := range strings.ToLower(title) {
		if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
			if gap && b.Len() > 0 {
				b.WriteByte('-')
			}
			b.WriteRune(r)
			gap = false
		} else {
			gap = true
		}
	}
	s := b.String()
	if len(s) > 48 {
		s = strings.TrimRight(s[:48], "-")
	}
	if s == "" {
		return "step"
	}
	return s
}

func validate(c *call) starlark.Value {
	t := &thing[action]{kind: "validate", at: c.place()}
	v := &fleet.Validation{Title: c.title(), Pos: c.start()}
	t.v.Validation = v
	t.v.run = c.script()
	t.v.on = c.machines("on")
	v.Expect = c.regexp("expect")
	v.Exit = c.integer("exit", 0, 0, 255)
	v.Within = c.duration("within", 30*time.Second, false)
	v.Every = c.duration("every", time.Second, false)
	v.Steady = c.duration("steady", 0, true)
	if c.has("at_least") {
		t.v.atLeast = c.integer("at_least", 1, 1, maxMachines)
	}
	v.Invariant = c.boolean("invariant")
	v.Doc = strings.TrimSpace(c.str("doc"))
	if v.Steady >= v.Within && !c.bad {
		c.errorf("steady", nil, "time", "make within longer: it counts from the first round", "steady %s does not fit into within %s", fleet.FormatDuration(v.Steady), fleet.FormatDuration(v.Within))
	}
	t.bad = c.bad
	return t
}

func fault(c *call) starlark.Value {
	t := &thing[action]{kind: "fault", at: c.place()}
	f := &fleet.Fault{Title: c.title(), Pos: c.start()}
	t.v.Fault = f
	t.v.on = c.machines("on")
	given := c.one("kill", "crash", "dark")
	if f.Kill = c.required("kill"); f.Kill != "" {
		if err := fleet.CheckName("unit", f.Kill); err != nil {
			c.syntaxError("kill", nil, "name", err)
		}
	}
	f.Crash = c.boolean("crash")
	switch v := c.args[c.arg("dark")].(type) {
	case nil:
	case starlark.String:
		f.Dark = string(v)
		if strings.Contains(f.Dark, "://") {
			if e, ok := c.endpoint("dark", nil, v); ok {
				f.Dark = e.URL
			}
		}
	case *serviceValue:
		f.Dark = v.name
	case *thing[fleet.Endpoint]:
		f.Dark = v.v.URL
	case *thing[fleet.Condition]:
		f.Dark = v.v.Name()
	default:
		c.wrongType("dark", nil, v, "the name of a condition")
	}
	if t.v.on == nil && given != "dark" && !c.bad {
		c.errorAt(lang.Arg{Index: -1}, "missing-argument", "say which machines", "fault needs the argument on")
	}
	t.bad = c.bad
	return t
}
