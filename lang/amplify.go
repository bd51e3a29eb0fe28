package lang

import (
	"fmt"
	"math/bits"
	"strings"

	"go.starlark.net/lib/json"
	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
	"go.starlark.net/syntax"
)

// A few operations of Starlark make much out of little in one step: "x" *
// 1000000000, ",".join([s] * n), str of a list that holds one list a thousand
// times, zip of a thousand ranges. They are done here under a limit, so that no
// single step allocates more than some multiple of what is there already.
//
// Builtins are replaced under their own names: the resolver finds predeclared
// names before universal ones. Operators and methods cannot be replaced, so
// bound rewrites the syntax tree before it is compiled:
//
//	x + y        becomes   x + «+»(y)       where «+»(y) is y in a box that
//	x * y        becomes   x * «*»(y)       does the operation itself, or y
//	x % y        becomes   x % «%»(y)
//	x.join       becomes   «.join»(x)       likewise replace, format and extend
//
// The names in guillemets cannot be written in a file, and the calls have the
// place of the operator.
const (
	maxString   = 16 << 20 // bytes of a string that one operation makes
	maxElements = 1 << 20  // elements of a list that one operation makes
	maxRange    = 1 << 24  // more cannot be looped over within the steps
	maxIntBits  = 1 << 20
	maxDepth    = 500 // of values that are printed
)

func tooLarge(what string, limit int) error {
	return fmt.Errorf("result is too large: at most %d %s", limit, what)
}

// bound rewrites the statements of a file.
func bound(f *syntax.File) {
	boundStmts(f.Stmts)
}

func boundStmts(stmts []syntax.Stmt) {
	for _, s := range stmts {
		switch s := s.(type) {
		case *syntax.AssignStmt:
			boundTarget(s.LHS)
			boundExpr(&s.RHS)
			switch s.Op {
			case syntax.PLUS_EQ:
				s.RHS = boxed(syntax.PLUS, nil, s.RHS, s.OpPos)
			case syntax.STAR_EQ:
				s.RHS = boxed(syntax.STAR, nil, s.RHS, s.OpPos)
			case syntax.PERCENT_EQ:
				s.RHS = boxed(syntax.PERCENT, nil, s.RHS, s.OpPos)
			}
		case *syntax.ExprStmt:
			boundExpr(&s.X)
		case *syntax.ReturnStmt:
			boundExpr(&s.Result)
		case *syntax.IfStmt:
			for {
				boundExpr(&s.Cond)
				boundStmts(s.True)
				// A long chain of elif must not become as deep a recursion.
				if len(s.False) == 1 {
					if next, ok := s.False[0].(*syntax.IfStmt); ok {
						s = next
						continue
					}
				}
				break
			}
			boundStmts(s.False)
		case *syntax.ForStmt:
			boundTarget(s.Vars)
			boundExpr(&s.X)
			boundStmts(s.Body)
		case *syntax.WhileStmt:
			boundExpr(&s.Cond)
			boundStmts(s.Body)
		case *syntax.DefStmt:
			boundParams(s.Params)
			boundStmts(s.Body)
		}
	}
}

func boundParams(params []syntax.Expr) {
	for _, p := range params {
		if b, ok := p.(*syntax.BinaryExpr); ok { // name = default
			boundExpr(&b.Y)
		}
	}
}

// boundTarget rewrites what is evaluated on the left of an assignment.
func boundTarget(e syntax.Expr) {
	switch e := e.(type) {
	case *syntax.ParenExpr:
		boundTarget(e.X)
	case *syntax.TupleExpr:
		for _, x := range e.List {
			boundTarget(x)
		}
	case *syntax.ListExpr:
		for _, x := range e.List {
			boundTarget(x)
		}
	case *syntax.IndexExpr:
		boundExpr(&e.X)
		boundExpr(&e.Y)
	case *syntax.DotExpr:
		boundExpr(&e.X)
	}
}

func boundExpr(p *syntax.Expr) {
	switch e := (*p).(type) {
	case nil:
	case *syntax.ParenExpr:
		boundExpr(&e.X)
	case *syntax.TupleExpr:
		boundList(e.List)
	case *syntax.ListExpr:
		boundList(e.List)
	case *syntax.DictExpr:
		boundList(e.List)
	case *syntax.DictEntry:
		boundExpr(&e.Key)
		boundExpr(&e.Value)
	case *syntax.CondExpr:
		boundExpr(&e.Cond)
		boundExpr(&e.True)
		boundExpr(&e.False)
	case *syntax.IndexExpr:
		boundExpr(&e.X)
		boundExpr(&e.Y)
	case *syntax.SliceExpr:
		boundExpr(&e.X)
		boundExpr(&e.Lo)
		boundExpr(&e.Hi)
		boundExpr(&e.Step)
	case *syntax.UnaryExpr:
		boundExpr(&e.X)
	case *syntax.LambdaExpr:
		boundParams(e.Params)
		boundExpr(&e.Body)
	case *syntax.Comprehension:
		boundExpr(&e.Body)
		for _, c := range e.Clauses {
			switch c := c.(type) {
			case *syntax.ForClause:
				boundTarget(c.Vars)
				boundExpr(&c.X)
			case *syntax.IfClause:
				boundExpr(&c.Cond)
			}
		}
	case *syntax.BinaryExpr:
		boundExpr(&e.X)
		boundExpr(&e.Y)
		switch e.Op {
		case syntax.PLUS, syntax.STAR, syntax.PERCENT:
			e.Y = boxed(e.Op, e.X, e.Y, e.OpPos)
		}
	case *syntax.CallExpr:
		boundExpr(&e.Fn)
		for i, arg := range e.Args {
			if b, ok := arg.(*syntax.BinaryExpr); ok && b.Op == syntax.EQ { // name = value
				boundExpr(&b.Y)
			} else if u, ok := arg.(*syntax.UnaryExpr); ok && (u.Op == syntax.STAR || u.Op == syntax.STARSTAR) {
				boundExpr(&u.X)
			} else {
				boundExpr(&e.Args[i])
			}
		}
	case *syntax.DotExpr:
		boundExpr(&e.X)
		switch e.Name.Name {
		case "join", "replace", "format", "extend":
			*p = guardCall("."+e.Name.Name, e.X, e.Dot)
		}
	}
}

func boundList(list []syntax.Expr) {
	for i := range list {
		boundExpr(&list[i])
	}
}

// boxed returns y, or a call that puts it into a box where the operation could
// make much out of little.
func boxed(op syntax.Token, x, y syntax.Expr, pos syntax.Position) syntax.Expr {
	switch lit := y.(type) {
	case *syntax.Literal:
		if len(lit.Raw) < 256 && (op != syntax.STAR || isNumber(x)) {
			return y
		}
	case *syntax.ListExpr, *syntax.Comprehension:
		if op == syntax.PLUS {
			return y // not more than was written, or than took its steps to make
		}
	}
	return guardCall(op.String(), y, pos)
}

func isNumber(x syntax.Expr) bool {
	lit, ok := x.(*syntax.Literal)
	return ok && (lit.Token == syntax.INT || lit.Token == syntax.FLOAT)
}

func guardName(what string) string { return "«" + what + "»" }

func guardCall(what string, arg syntax.Expr, pos syntax.Position) *syntax.CallExpr {
	return &syntax.CallExpr{Fn: &syntax.Ident{NamePos: pos, Name: guardName(what)}, Lparen: pos, Args: []syntax.Expr{arg}, Rparen: pos}
}

// isGuardName reports whether a name is one that only bound writes.
func isGuardName(name string) bool { return strings.HasPrefix(name, "«") }

// bounded returns the builtins of a module with those that bound needs, and
// with the universal ones that make much out of little replaced.
func bounded(predeclared starlark.StringDict) starlark.StringDict {
	env := make(starlark.StringDict, len(predeclared)+32)
	for _, op := range []syntax.Token{syntax.PLUS, syntax.STAR, syntax.PERCENT} {
		name := guardName(op.String())
		env[name] = starlark.NewBuiltin(name, func(thread *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, _ []starlark.Tuple) (starlark.Value, error) {
			return box(thread, op, args[0])
		})
	}
	for name, f := range map[string]builtinFunc{"join": boundedJoin, "replace": boundedReplace, "format": boundedFormat} {
		method := starlark.NewBuiltin(name, f)
		env[guardName("."+name)] = starlark.NewBuiltin(guardName("."+name), func(_ *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, _ []starlark.Tuple) (starlark.Value, error) {
			return attr(args[0], name, method)
		})
	}
	env[guardName(".extend")] = starlark.NewBuiltin(guardName(".extend"), func(_ *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, _ []starlark.Tuple) (starlark.Value, error) {
		v, err := attr(args[0], "extend", nil)
		if m, ok := v.(*starlark.Builtin); ok {
			if _, ok := args[0].(*starlark.List); ok {
				return checked(m, checkElements), nil
			}
		}
		return v, err
	})
	for name, check := range map[string]func(starlark.Tuple, []starlark.Tuple) error{
		"str": checkPrinted, "repr": checkPrinted, "print": checkPrinted, "fail": checkPrinted,
		"list": checkElements, "tuple": checkElements, "sorted": checkElements, "set": checkElements, "dict": checkElements,
		"enumerate": checkElements, "reversed": checkElements, "bytes": checkElements,
		"zip": checkZip, "int": checkInt, "range": nil, "getattr": nil,
	} {
		orig := starlark.Universe[name].(*starlark.Builtin)
		switch name {
		case "range":
			env[name] = starlark.NewBuiltin(name, boundedRange)
		case "getattr":
			env[name] = starlark.NewBuiltin(name, boundedGetattr)
		default:
			env[name] = checked(orig, check)
		}
	}
	for name, v := range predeclared {
		env[name] = v
	}
	return env
}

type builtinFunc = func(*starlark.Thread, *starlark.Builtin, starlark.Tuple, []starlark.Tuple) (starlark.Value, error)

// checked returns a builtin that refuses what check refuses.
func checked(orig *starlark.Builtin, check func(starlark.Tuple, []starlark.Tuple) error) *starlark.Builtin {
	return starlark.NewBuiltin(orig.Name(), func(thread *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		if err := check(args, kwargs); err != nil {
			return nil, fmt.Errorf("%s: %w", orig.Name(), err)
		}
		return orig.CallInternal(thread, args, kwargs)
	})
}

// JSON returns the module json, with limits on what it makes.
func JSON() *starlarkstruct.Module {
	members := make(starlark.StringDict)
	for name, v := range json.Module.Members {
		members[name] = checked(v.(*starlark.Builtin), checkJSON)
	}
	return &starlarkstruct.Module{Name: "json", Members: members}
}

// checkJSON bounds what is encoded, decoded and, by the length of a line's
// indentation, indented.
func checkJSON(args starlark.Tuple, kwargs []starlark.Tuple) error {
	indent := 1
	for _, kv := range kwargs {
		if s, ok := kv[1].(starlark.String); ok {
			indent += len(s)
		}
	}
	n, err := printedSize(maxString/indent, args...)
	if err != nil {
		return err
	}
	if n > maxString/indent {
		return tooLarge("bytes", maxString)
	}
	// Indentation is repeated for each level.
	if len(kwargs) > 0 && len(args) > 0 {
		if s, ok := args[0].(starlark.String); ok && strings.Count(string(s), "[")+strings.Count(string(s), "{") > maxDepth {
			if n*maxDepth*indent > maxString {
				return tooLarge("bytes", maxString)
			}
		}
	}
	return nil
}

func checkPrinted(args starlark.Tuple, kwargs []starlark.Tuple) error {
	n, err := printedSize(maxString, args...)
	if err != nil {
		return err
	}
	for _, kv := range kwargs { // sep
		n += starlark.Len(kv[1]) * len(args)
	}
	if n > maxString {
		return tooLarge("bytes", maxString)
	}
	return nil
}

func checkElements(args starlark.Tuple, _ []starlark.Tuple) error {
	for _, a := range args {
		if starlark.Len(a) > maxElements {
			if _, ok := a.(starlark.String); !ok {
				return tooLarge("elements", maxElements)
			}
		}
	}
	return nil
}

func checkZip(args starlark.Tuple, _ []starlark.Tuple) error {
	rows := 0
	for i, a := range args {
		if n := starlark.Len(a); i == 0 || n < rows {
			rows = n
		}
	}
	if rows > 0 && len(args) > maxElements/rows {
		return tooLarge("elements", maxElements)
	}
	return nil
}

func checkInt(args starlark.Tuple, _ []starlark.Tuple) error {
	if len(args) > 0 {
		if s, ok := args[0].(starlark.String); ok && len(s) > maxIntBits/4 {
			return tooLarge("bits", maxIntBits)
		}
	}
	return nil
}

func boundedRange(thread *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	v, err := starlark.Universe["range"].(*starlark.Builtin).CallInternal(thread, args, kwargs)
	if err == nil {
		if n := starlark.Len(v); n > maxRange || n < 0 {
			return nil, fmt.Errorf("range is too long: at most %d elements", maxRange)
		}
	}
	return v, err
}

func boundedGetattr(thread *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	v, err := starlark.Universe["getattr"].(*starlark.Builtin).CallInternal(thread, args, kwargs)
	if m, ok := v.(*starlark.Builtin); ok && len(args) > 1 {
		if s, ok := m.Receiver().(starlark.String); ok {
			switch m.Name() {
			case "join":
				return starlark.NewBuiltin("join", boundedJoin).BindReceiver(s), nil
			case "replace":
				return starlark.NewBuiltin("replace", boundedReplace).BindReceiver(s), nil
			case "format":
				return starlark.NewBuiltin("format", boundedFormat).BindReceiver(s), nil
			}
		}
		if m.Name() == "extend" && m.Receiver() != nil {
			return checked(m, checkElements), nil
		}
	}
	return v, err
}

// attr is x.name, with method in the place of a string's own.
func attr(x starlark.Value, name string, method *starlark.Builtin) (starlark.Value, error) {
	if s, ok := x.(starlark.String); ok && method != nil {
		return method.BindReceiver(s), nil
	}
	if x, ok := x.(starlark.HasAttrs); ok {
		v, err := x.Attr(name)
		if v != nil || err != nil {
			return v, err
		}
	}
	return nil, fmt.Errorf("%s has no .%s field or method", x.Type(), name)
}

// method calls the string's own method.
func method(thread *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	m, err := b.Receiver().(starlark.String).Attr(b.Name())
	if err != nil {
		return nil, err
	}
	return m.(*starlark.Builtin).CallInternal(thread, args, kwargs)
}

func boundedJoin(thread *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	if len(args) == 1 {
		if it, ok := args[0].(starlark.Iterable); ok {
			total, sep := 0, len(b.Receiver().(starlark.String))
			for v := range starlark.Elements(it) {
				if s, ok := v.(starlark.String); ok {
					total += len(s) + sep
				}
				if total > maxString {
					return nil, fmt.Errorf("join: %w", tooLarge("bytes", maxString))
				}
			}
		}
	}
	return method(thread, b, args, kwargs)
}

func boundedReplace(thread *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	if len(args) >= 2 {
		s := string(b.Receiver().(starlark.String))
		old, ok1 := args[0].(starlark.String)
		with, ok2 := args[1].(starlark.String)
		if ok1 && ok2 && len(with) > len(old) {
			over, extra := bits.Mul(uint(strings.Count(s, string(old))), uint(len(with)-len(old)))
			if over != 0 || extra > maxString || len(s)+int(extra) > maxString {
				return nil, fmt.Errorf("replace: %w", tooLarge("bytes", maxString))
			}
		}
	}
	return method(thread, b, args, kwargs)
}

func boundedFormat(thread *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	format := string(b.Receiver().(starlark.String))
	values := append(starlark.Tuple(nil), args...)
	for _, kv := range kwargs {
		values = append(values, kv[1])
	}
	n, err := printedSize(maxString, values...)
	if err != nil {
		return nil, fmt.Errorf("format: %w", err)
	}
	if len(values) > 0 {
		// Each field prints at most all of them.
		if over, total := bits.Mul(uint(strings.Count(format, "{")), uint(n)); over != 0 || total > maxString {
			return nil, fmt.Errorf("format: %w", tooLarge("bytes", maxString))
		}
	}
	return method(thread, b, args, kwargs)
}

// printedSize returns about how many bytes the values print as, and stops
// counting beyond limit. It is an error if they are nested too deeply to print.
func printedSize(limit int, values ...starlark.Value) (int, error) {
	n := 0
	var count func(v starlark.Value, depth int) error
	count = func(v starlark.Value, depth int) error {
		if n++; n > limit {
			return nil
		}
		if depth > maxDepth {
			return fmt.Errorf("value is nested more than %d levels deep", maxDepth)
		}
		switch v := v.(type) {
		case starlark.String:
			n += len(v) + 2
		case starlark.Bytes:
			n += len(v) + 3
		case starlark.NoneType, starlark.Bool, *starlark.Function, *starlark.Builtin:
			n += 8
		case starlark.Float:
			n += 24
		case starlark.Int:
			n += 8 + v.BigInt().BitLen()/3
		case starlark.IterableMapping:
			if d, ok := v.(*starlark.Dict); ok {
				for k, x := range d.Entries() {
					if err := count(k, depth+1); err != nil {
						return err
					}
					if err := count(x, depth+1); err != nil {
						return err
					}
					if n > limit {
						break
					}
				}
			}
		case starlark.Iterable:
			if r := starlark.Len(v); v.Type() == "range" {
				n += 8 * min(r, limit)
				return nil
			}
			for x := range starlark.Elements(v) {
				if err := count(x, depth+1); err != nil || n > limit {
					return err
				}
			}
		case *starlarkstruct.Struct:
			for _, name := range v.AttrNames() {
				x, err := v.Attr(name)
				if err != nil {
					continue
				}
				n += len(name)
				if err := count(x, depth+1); err != nil || n > limit {
					return err
				}
			}
		default:
			n += 64
		}
		return nil
	}
	for _, v := range values {
		if err := count(v, 0); err != nil {
			return n, err
		}
	}
	return n, nil
}
