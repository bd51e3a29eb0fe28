package lang

import (
	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// Undefined stands for a name that nothing defines, after that has been
// reported, so that the rest of the file is read for mistakes too. Whatever is
// done with it gives it again; builtins take it without a word.
type Undefined struct{}

var (
	_ starlark.Callable  = Undefined{}
	_ starlark.HasAttrs  = Undefined{}
	_ starlark.Mapping   = Undefined{}
	_ starlark.Iterable  = Undefined{}
	_ starlark.HasBinary = Undefined{}
	_ starlark.HasUnary  = Undefined{}
)

func (Undefined) String() string        { return "undefined" }
func (Undefined) Type() string          { return "undefined" }
func (Undefined) Freeze()               {}
func (Undefined) Truth() starlark.Bool  { return true }
func (Undefined) Hash() (uint32, error) { return 0, nil }
func (Undefined) Name() string          { return "undefined" }
func (Undefined) CallInternal(*starlark.Thread, starlark.Tuple, []starlark.Tuple) (starlark.Value, error) {
	return Undefined{}, nil
}
func (Undefined) Attr(string) (starlark.Value, error) { return Undefined{}, nil }
func (Undefined) AttrNames() []string                 { return nil }
func (Undefined) Get(starlark.Value) (starlark.Value, bool, error) {
	return Undefined{}, true, nil
}
func (Undefined) Iterate() starlark.Iterator { return starlark.Tuple(nil).Iterate() }
func (Undefined) Binary(syntax.Token, starlark.Value, starlark.Side) (starlark.Value, error) {
	return Undefined{}, nil
}
func (Undefined) Unary(syntax.Token) (starlark.Value, error) { return Undefined{}, nil }
