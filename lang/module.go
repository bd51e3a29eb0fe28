package lang

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"go.starlark.net/resolve"
	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"bj/lang/diag"
)

// A Module is one file: compiled, evaluated once, or known from the cache.
type Module struct {
	File    string // relative to the workspace, or @bj//stdlib/x.star
	Package string
	Doc     string // its docstring
	Loads   []LoadStmt
	// Facts is what Options.End made of it, or what the cache kept of that.
	Facts string
	// State is what Options.Begin made if the module was evaluated, or what
	// Options.Revive made of the facts in the cache.
	State any
	// Broken modules could not be compiled or were cut off by a mistake; so are
	// those that load one. Their State holds what came before.
	Broken bool
	// Diags are the mistakes of the module, by whichever file's code they were
	// made while its top level ran.
	Diags diag.List

	src     []byte
	key     fileKey
	cached  bool
	printed atomic.Bool

	prog    *starlark.Program
	globals starlark.StringDict
	// undefined are the names that nothing defines, where the module can be
	// evaluated all the same.
	undefined starlark.StringDict
}

// A LoadStmt is one load statement: the file of a module, and where it is named.
type LoadStmt struct {
	File  string
	Label string // as written
	Pos   diag.Pos
	names []loadName
}

type loadName struct {
	name string // in the module
	pos  diag.Pos
}

const (
	maxSource  = 1 << 20 // bytes of a file
	maxNesting = 200     // brackets in brackets
)

// fileOptions are the dialect: see the package comment.
var fileOptions = &syntax.FileOptions{Set: true, TopLevelControl: true}

// compile parses and resolves the module, and adds its mistakes to Diags.
func (m *Module) compile(env starlark.StringDict, resolveLoad func(*Module, string) (string, error)) {
	defer func() {
		if r := recover(); r != nil {
			m.fail(diag.Diagnostic{Pos: diag.Pos{File: m.File, Line: 1, Col: 1}, Rule: "internal", Message: fmt.Sprintf("internal error: %v", r)})
		}
	}()
	f, err := parse(m.File, m.src)
	if err != nil {
		var se *sourceError
		if errors.As(err, &se) {
			m.fail(diag.Diagnostic{Pos: se.pos, Rule: "syntax", Message: se.message, Hint: se.hint})
			return
		}
		m.failStatic(err, env)
		return
	}
	m.Doc = docstring(f)
	for _, s := range f.Stmts {
		if s, ok := s.(*syntax.LoadStmt); ok {
			m.addLoad(s, resolveLoad)
		}
	}
	bound(f)
	m.prog, err = starlark.FileProgram(f, env.Has)
	if err != nil {
		m.failStatic(err, env)
		m.compileUndefined(err, env)
	}
}

// compileUndefined compiles a module whose only mistakes so far are names that
// nothing defines, with Undefined for each.
func (m *Module) compileUndefined(err error, env starlark.StringDict) {
	list, ok := err.(resolve.ErrorList)
	if !ok {
		return
	}
	names := starlark.StringDict{}
	for _, e := range list {
		message, _ := cutHint(e.Msg)
		name, ok := strings.CutPrefix(message, "undefined: ")
		if !ok {
			return
		}
		names[name] = Undefined{}
	}
	f, err := parse(m.File, m.src)
	if err != nil {
		return
	}
	bound(f)
	prog, err := starlark.FileProgram(f, func(name string) bool { return env.Has(name) || names.Has(name) })
	if err == nil {
		m.prog, m.undefined = prog, names
	}
}

func (m *Module) addLoad(s *syntax.LoadStmt, resolveLoad func(*Module, string) (string, error)) {
	label := s.ModuleName()
	pos := posOf(s.Module.TokenPos)
	file, err := resolveLoad(m, label)
	if err != nil {
		d := diag.Diagnostic{Pos: pos, Rule: "load", Message: err.Error()}
		var le *LabelError
		var he *hintedError
		switch {
		case errors.As(err, &le):
			d.Hint = `load files like "//lib:ports.star", ":near.star" or "@bj//stdlib:container.star"`
		case errors.As(err, &he):
			d.Hint = he.hint
		}
		m.fail(d)
		return
	}
	l := LoadStmt{File: file, Label: label, Pos: pos}
	for _, from := range s.From {
		l.names = append(l.names, loadName{from.Name, posOf(from.NamePos)})
	}
	m.Loads = append(m.Loads, l)
}

// Cached reports whether the module was not evaluated, as the cache knew it.
func (m *Module) Cached() bool { return m.cached }

// fail records a mistake after which the module cannot be evaluated.
func (m *Module) fail(d diag.Diagnostic) {
	m.Broken = true
	d.Severity = diag.Error
	m.Diags = append(m.Diags, d)
}

// failStatic records what the parser or resolver said.
func (m *Module) failStatic(err error, env starlark.StringDict) {
	var list resolve.ErrorList
	var se syntax.Error
	switch {
	case errors.As(err, &list):
		for _, e := range list {
			d := diag.Diagnostic{Pos: posOf(e.Pos), Rule: "name", Message: e.Msg}
			d.Message, d.Hint = cutHint(e.Msg)
			if name, ok := strings.CutPrefix(d.Message, "undefined: "); ok && d.Hint == "" {
				if near := Nearest(name, knownNames(env)); near != "" {
					d.Hint = "did you mean " + near + "?"
				}
			}
			m.fail(d)
		}
	case errors.As(err, &se):
		m.fail(diag.Diagnostic{Pos: posOf(se.Pos), Rule: "syntax", Message: se.Msg})
	default:
		m.fail(diag.Diagnostic{Pos: diag.Pos{File: m.File, Line: 1, Col: 1}, Rule: "syntax", Message: err.Error()})
	}
}

// cutHint splits "message (did you mean x?)".
func cutHint(msg string) (message, hint string) {
	message, rest, ok := strings.Cut(msg, " (did you mean ")
	if !ok || !strings.HasSuffix(rest, "?)") {
		return msg, ""
	}
	return message, "did you mean " + strings.TrimSuffix(rest, ")")
}

func knownNames(env starlark.StringDict) []string {
	var names []string
	for _, n := range env.Keys() {
		if !isGuardName(n) {
			names = append(names, n)
		}
	}
	for _, n := range starlark.Universe.Keys() {
		if !env.Has(n) {
			names = append(names, n)
		}
	}
	return names
}

func docstring(f *syntax.File) string {
	if len(f.Stmts) == 0 {
		return ""
	}
	if s, ok := f.Stmts[0].(*syntax.ExprStmt); ok {
		if lit, ok := s.X.(*syntax.Literal); ok && lit.Token == syntax.STRING {
			return strings.TrimSpace(lit.Value.(string))
		}
	}
	return ""
}

func posOf(p syntax.Position) diag.Pos {
	return diag.Pos{File: p.Filename(), Line: int(p.Line), Col: int(p.Col)}
}

// failEval records the error that cut the evaluation off.
func (m *Module) failEval(err error) {
	d := EvalDiagnostic(err)
	if !d.Pos.IsValid() {
		d.Pos = diag.Pos{File: m.File, Line: 1, Col: 1}
	}
	m.fail(d)
}

// EvalDiagnostic says where and why an evaluation was cut off. Its Pos is not
// valid where that is not known.
func EvalDiagnostic(err error) diag.Diagnostic {
	d := diag.Diagnostic{Severity: diag.Error, Rule: "evaluation", Message: err.Error()}
	// A call from a builtin makes an inner error with a longer stack.
	var inner *starlark.EvalError
	for e := err; e != nil; e = errors.Unwrap(e) {
		if ee, ok := e.(*starlark.EvalError); ok {
			inner = ee
		}
	}
	if inner != nil {
		d.Pos, d.Stack = place(inner.CallStack, d.Pos)
		d.Message, d.Hint = cutHint(inner.Msg)
	}
	d.Message = strings.TrimPrefix(d.Message, "Starlark computation cancelled: ")
	if first, _, ok := strings.Cut(d.Message, "\n"); ok {
		d.Message = first
	}
	if r := []rune(d.Message); len(r) > 500 {
		d.Message = string(r[:497]) + "..."
	}
	var limit *limitError
	var coded *CodedError
	switch {
	case errors.As(err, &limit):
		d.Rule = "limit"
		d.Message = "evaluation " + limit.reason
		d.Hint = "a file describes; compute less in it"
	case errors.As(err, &coded):
		d.Rule, d.Hint = coded.Rule, coded.Hint
	}
	return d
}

// A CodedError lets a builtin that cannot go on name the rule and the hint.
type CodedError struct {
	Rule, Message, Hint string
}

func (e *CodedError) Error() string { return e.Message }

// place returns the innermost place in a file of a call stack, and the calls
// that led there, outermost first.
func place(stack starlark.CallStack, otherwise diag.Pos) (diag.Pos, []diag.Frame) {
	var frames []diag.Frame
	for _, fr := range stack {
		if fr.Pos.Line == 0 {
			continue // a builtin
		}
		name := fr.Name
		if name == "<toplevel>" {
			name = "the top level"
		}
		frames = append(frames, diag.Frame{Pos: posOf(fr.Pos), Func: name})
	}
	if len(frames) == 0 {
		return otherwise, nil
	}
	last := len(frames) - 1
	return frames[last].Pos, frames[:last:last]
}

// Place returns where the running builtin was called and the calls that led
// there, outermost first; and the place at the top level of the module, which
// is the first of them.
func Place(thread *starlark.Thread) (pos diag.Pos, stack []diag.Frame) {
	n := thread.CallStackDepth()
	if n == 2 { // the top level, and the builtin
		return posOf(thread.CallFrame(1).Pos), nil
	}
	return place(thread.CallStack(), diag.Pos{})
}
