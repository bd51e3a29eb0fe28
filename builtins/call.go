package builtins

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"strings"
	"time"

	"go.starlark.net/starlark"

	"bj/fleet"
	"bj/lang"
	"bj/lang/diag"
)

// A param is one parameter of a builtin.
type param struct {
	name     string
	required bool
	dflt     string // as written in the reference
}

// A signature is the parameters of a builtin, in order. rest names the
// positional ones beyond the first, or is empty.
type signature struct {
	name   string
	params []param
	rest   string
}

// sign reads a signature such as `what, *pathways, only=None`.
func sign(name, params string) *signature {
	s := &signature{name: name}
	for p := range strings.SplitSeq(params, ", ") {
		if rest, ok := strings.CutPrefix(p, "*"); ok {
			s.rest = rest
			continue
		}
		n, dflt, optional := strings.Cut(p, "=")
		s.params = append(s.params, param{n, !optional, dflt})
	}
	return s
}

// A call is one call of a builtin: its arguments by parameter, and where it
// stands. Mistakes are collected, so that the next one is found too.
type call struct {
	state  *state
	thread *starlark.Thread
	sig    *signature
	pos    diag.Pos // of the parenthesis
	stack  []diag.Frame
	args   []starlark.Value // parallel to the parameters; nil where not given
	index  []int            // parallel: which positional argument, or -1
	rest   []starlark.Value
	cursor int
	bad    bool
}

// begin matches arguments with parameters.
func begin(thread *starlark.Thread, sig *signature, args starlark.Tuple, kwargs []starlark.Tuple) *call {
	n := len(sig.params)
	c := &call{state: lang.StateOf(thread).(*state), thread: thread, sig: sig, args: make([]starlark.Value, n), index: make([]int, n)}
	c.pos, c.stack = lang.Place(thread)
	for i := range c.index {
		c.index[i] = -1
	}
	for i, a := range args {
		switch {
		case sig.rest != "" && i > 0:
			c.rest = append(c.rest, a)
		case i >= n:
			c.errorAt(lang.Arg{Index: i}, "argument", "", "%s takes at most %d arguments", sig.name, n)
			return c
		default:
			c.args[i], c.index[i] = a, i
		}
	}
	for _, kv := range kwargs {
		name := string(kv[0].(starlark.String))
		i := sig.find(name)
		switch {
		case i < 0:
			c.errorAt(lang.Arg{Name: name, Index: -1, Keyword: true}, "unknown-argument",
				lang.DidYouMean(name, sig.names(), sig.name+" takes "+strings.Join(sig.names(), ", ")),
				"%s has no argument %s", sig.name, name)
		case c.args[i] != nil:
			c.errorAt(lang.Arg{Name: name, Index: -1, Keyword: true}, "argument", "", "argument %s is given twice", name)
		default:
			c.args[i] = kv[1]
		}
	}
	for i, p := range sig.params {
		switch c.args[i].(type) {
		case starlark.NoneType:
			if !p.required {
				c.args[i] = nil
			}
		case lang.Undefined:
			c.args[i], c.bad = nil, true
			continue
		}
		if p.required && c.args[i] == nil {
			c.errorAt(lang.Arg{Index: -1}, "missing-argument", "", "%s needs the argument %s", sig.name, p.name)
		}
	}
	return c
}

func (s *signature) find(name string) int {
	for i := range s.params {
		if s.params[i].name == name {
			return i
		}
	}
	return -1
}

func (s *signature) names() []string {
	names := make([]string, len(s.params))
	for i, p := range s.params {
		names[i] = p.name
	}
	return names
}

// arg returns the index of a parameter; getters ask for them in order.
func (c *call) arg(name string) int {
	for range c.sig.params {
		i := c.cursor
		if c.cursor++; c.cursor == len(c.sig.params) {
			c.cursor = 0
		}
		if c.sig.params[i].name == name {
			return i
		}
	}
	panic("no parameter " + name + " of " + c.sig.name)
}

func (c *call) has(name string) bool { return c.args[c.arg(name)] != nil }

// errorf records a mistake in an argument, or in a part of it.
func (c *call) errorf(name string, path []any, rule, hint, format string, args ...any) {
	index := -1
	if i := c.sig.find(name); i >= 0 {
		index = c.index[i]
	}
	c.errorAt(lang.Arg{Name: name, Index: index, Path: path}, rule, hint, format, args...)
}

func (c *call) errorAt(arg lang.Arg, rule, hint, format string, args ...any) {
	c.bad = true
	c.state.mistakes = append(c.state.mistakes, mistake{at: c.place(), arg: arg, d: diag.Diagnostic{
		Severity: diag.Error, Rule: rule, Hint: hint, Message: fmt.Sprintf(format, args...),
	}})
}

// syntaxError records what a parser of package fleet said.
func (c *call) syntaxError(name string, path []any, rule string, err error) {
	hint := ""
	var se *fleet.SyntaxError
	if errors.As(err, &se) {
		hint = se.Hint
	}
	c.errorf(name, path, rule, hint, "%s", err)
}

func (c *call) place() at { return at{pos: c.pos, stack: c.stack} }

// start is where the call begins, if it is written with the builtin's name.
func (c *call) start() diag.Pos {
	p := c.pos
	if p.Col > len(c.sig.name) {
		p.Col -= len(c.sig.name)
	}
	return p
}

// declared returns where the call belongs at the top level of the module, and
// the way from there to the call through macros.
func (c *call) declared() (diag.Pos, []diag.Frame) {
	if len(c.stack) == 0 {
		return c.start(), nil
	}
	stack := append([]diag.Frame(nil), c.stack[1:]...)
	return c.stack[0].Pos, append(stack, diag.Frame{Pos: c.start(), Func: c.thread.CallFrame(1).Name})
}

func typeName(v starlark.Value) string {
	switch v.(type) {
	case *starlark.Function, *starlark.Builtin:
		return "function"
	}
	return v.Type()
}

func (c *call) wrongType(name string, path []any, v starlark.Value, want string) {
	hint := ""
	switch v.(type) {
	case lang.Undefined:
		c.bad = true
		return
	case starlark.Int:
		if want == "a time" || want == "a size" {
			hint = map[string]string{"a time": `write the unit: "30s"`, "a size": `write the unit: "512MiB"`}[want]
		}
	case starlark.String:
		if strings.HasPrefix(want, "a list") {
			hint = fmt.Sprintf("put it in brackets: [%s]", v)
			if len(hint) > 80 {
				hint = "put it in brackets"
			}
		}
	}
	where := name
	for range path {
		where = "an element of " + name
	}
	c.errorf(name, path, "wrong-type", hint, "%s of %s must be %s, not %s", where, c.sig.name, want, typeName(v))
}

// str returns a string argument, or "" if it is not given.
func (c *call) str(name string) string {
	i := c.arg(name)
	v := c.args[i]
	if v == nil {
		return ""
	}
	s, ok := v.(starlark.String)
	if !ok {
		c.wrongType(name, nil, v, "a string")
		c.args[i] = nil
		return ""
	}
	return string(s)
}

// required is str of an argument that must not be empty.
func (c *call) required(name string) string {
	i := c.arg(name)
	v := c.args[i]
	c.cursor = i
	s := c.str(name)
	if _, ok := v.(starlark.String); ok && strings.TrimSpace(s) == "" {
		c.errorf(name, nil, "empty", "", "%s of %s is empty", name, c.sig.name)
		return ""
	}
	return s
}

func (c *call) boolean(name string) bool {
	v := c.args[c.arg(name)]
	if v == nil {
		return false
	}
	b, ok := v.(starlark.Bool)
	if !ok {
		c.wrongType(name, nil, v, "True or False")
	}
	return bool(b)
}

// integer returns a whole number between lowest and highest.
func (c *call) integer(name string, dflt, lowest, highest int) int {
	v := c.args[c.arg(name)]
	if v == nil {
		return dflt
	}
	n, ok := v.(starlark.Int)
	if !ok {
		c.wrongType(name, nil, v, "a whole number")
		return dflt
	}
	i, ok := n.Int64()
	if !ok || i < int64(lowest) || i > int64(highest) {
		c.errorf(name, nil, "range", "", "%s of %s must be %d to %d", name, c.sig.name, lowest, highest)
		return dflt
	}
	return int(i)
}

func (c *call) duration(name string, dflt time.Duration, zero bool) time.Duration {
	v := c.args[c.arg(name)]
	if v == nil {
		return dflt
	}
	s, ok := v.(starlark.String)
	if !ok {
		c.wrongType(name, nil, v, "a time")
		return dflt
	}
	d, err := fleet.ParseDuration(string(s))
	if err != nil {
		c.syntaxError(name, nil, "time", err)
		return dflt
	}
	if d == 0 && !zero {
		c.errorf(name, nil, "time", "", "%s of %s must be longer than nothing", name, c.sig.name)
		return dflt
	}
	return d
}

func (c *call) size(name string, dflt int64) int64 {
	v := c.args[c.arg(name)]
	if v == nil {
		return dflt
	}
	s, ok := v.(starlark.String)
	if !ok {
		c.wrongType(name, nil, v, "a size")
		return dflt
	}
	n, err := fleet.ParseSize(string(s))
	if err != nil {
		c.syntaxError(name, nil, "size", err)
		return dflt
	}
	return n
}

// list returns the elements of a list or tuple.
func (c *call) list(name, want string) []starlark.Value {
	v := c.args[c.arg(name)]
	if v == nil {
		return nil
	}
	return c.elements(name, nil, v, want)
}

func (c *call) elements(name string, path []any, v starlark.Value, want string) []starlark.Value {
	switch v := v.(type) {
	case starlark.Tuple:
		return v
	case *starlark.List:
		list := make([]starlark.Value, v.Len())
		for i := range list {
			list[i] = v.Index(i)
		}
		return list
	case lang.Undefined:
		c.bad = true
		return nil
	}
	c.wrongType(name, path, v, want)
	return nil
}

// strings returns a list of strings.
func (c *call) strings(name string) []string {
	var out []string
	for i, v := range c.list(name, "a list of strings") {
		s, ok := v.(starlark.String)
		if !ok {
			c.wrongType(name, []any{i}, v, "a string")
			continue
		}
		out = append(out, string(s))
	}
	return out
}

// regexp returns a regular expression of RE2.
func (c *call) regexp(name string) string {
	s := c.str(name)
	if s == "" {
		return ""
	}
	if _, err := syntax.Parse(s, syntax.Perl); err != nil {
		message := err.Error()
		if se, ok := err.(*syntax.Error); ok {
			message = fmt.Sprintf("%s: `%s`", se.Code, se.Expr)
		}
		c.errorf(name, nil, "regexp", "expect is a regular expression of RE2 (https://github.com/google/re2/wiki/Syntax); escape what is meant literally", "malformed regular expression: %s", message)
		return ""
	}
	return s
}

// one checks that exactly one of the named arguments is given, and returns its
// name.
func (c *call) one(names ...string) string {
	given := ""
	for _, n := range names {
		v := c.args[c.arg(n)]
		if v == nil || v == starlark.False {
			continue
		}
		if given != "" {
			c.errorf(n, nil, "argument", "give one of "+orList(names), "%s has both %s and %s", c.sig.name, given, n)
			return given
		}
		given = n
	}
	if given == "" && !c.bad {
		c.errorAt(lang.Arg{Index: -1}, "missing-argument", "", "%s needs one of %s", c.sig.name, orList(names))
	}
	return given
}

func orList(names []string) string {
	n := len(names)
	if n == 1 {
		return names[0]
	}
	return strings.Join(names[:n-1], ", ") + " or " + names[n-1]
}
