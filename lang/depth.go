package lang

import (
	"fmt"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
)

// maxFlatSteps is how many steps a module may take before its values are
// checked for their depth: each step nests at most one level, and freezing,
// which is recursive, copes with as many.
const maxFlatSteps = 1_000_000

// checkDepth refuses values that are nested so deeply that walking them by
// recursion would exhaust the stack. It is a depth-first search without
// recursion; what contains itself counts once.
func checkDepth(globals starlark.StringDict) error {
	type level struct {
		key      any
		children []starlark.Value
		next     int
		height   int
	}
	heights := map[any]int{}
	for _, name := range globals.Keys() {
		stack := []level{{children: []starlark.Value{globals[name]}}}
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if top.next < len(top.children) {
				child := top.children[top.next]
				top.next++
				key := identity(child)
				if key == nil {
					continue
				}
				if h, ok := heights[key]; ok {
					top.height = max(top.height, h+1)
					continue
				}
				heights[key] = 0
				stack = append(stack, level{key: key, children: children(child)})
				continue
			}
			h, key := top.height, top.key
			if h > maxFlatSteps {
				return fmt.Errorf("%s is nested more than %d levels deep", name, maxFlatSteps)
			}
			stack = stack[:len(stack)-1]
			if key != nil {
				heights[key] = h
			}
			if len(stack) > 0 {
				up := &stack[len(stack)-1]
				up.height = max(up.height, h+1)
			}
		}
	}
	return nil
}

// identity returns a key for a value that holds others, or nil.
func identity(v starlark.Value) any {
	switch v := v.(type) {
	case starlark.Tuple:
		if len(v) > 0 {
			return &v[0]
		}
	case *starlark.List, *starlark.Dict, *starlark.Set, *starlark.Function, *starlarkstruct.Struct:
		return v
	}
	return nil
}

func children(v starlark.Value) []starlark.Value {
	var list []starlark.Value
	switch v := v.(type) {
	case starlark.Tuple:
		return v
	case *starlark.List:
		for x := range v.Elements() {
			list = append(list, x)
		}
	case *starlark.Dict:
		for k, x := range v.Entries() {
			list = append(list, k, x)
		}
	case *starlark.Set:
		for x := range v.Elements() {
			list = append(list, x)
		}
	case *starlark.Function:
		for i := range v.NumFreeVars() {
			if _, x := v.FreeVar(i); x != nil {
				list = append(list, x)
			}
		}
		for i := range v.NumParams() {
			if x := v.ParamDefault(i); x != nil {
				list = append(list, x)
			}
		}
	case *starlarkstruct.Struct:
		for _, n := range v.AttrNames() {
			if x, err := v.Attr(n); err == nil {
				list = append(list, x)
			}
		}
	}
	return list
}
