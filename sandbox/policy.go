package sandbox

import (
	"reflect"
	"slices"
)

// Dark closes a condition again, in the midst of a recipe.
type Dark struct {
	Condition int
	Machines  []string // for which machines; all if empty
}

// Narrowed returns p with what Dark closes taken out of the rest: what is open.
// Machines are all there are, by name.
func (p Policy) Narrowed(machines []string) Policy {
	if len(p.Dark) == 0 {
		return p
	}
	left := func(condition int, of []string) (rest []string, some bool) {
		if len(of) == 0 {
			of = machines
		}
		rest = slices.DeleteFunc(slices.Clone(of), func(m string) bool { return p.IsDark(condition, m) })
		return rest, len(rest) > 0
	}
	out := p
	out.Allows, out.Names, out.Sockets = nil, nil, nil
	for _, a := range p.Allows {
		if p.touches(a.Condition) {
			var some bool
			if a.Machines, some = left(a.Condition, a.Machines); !some {
				continue
			}
		}
		out.Allows = append(out.Allows, a)
	}
	for _, n := range p.Names {
		if p.touches(n.Condition) {
			var some bool
			if n.Machines, some = left(n.Condition, n.Machines); !some {
				continue
			}
		}
		out.Names = append(out.Names, n)
	}
	for _, s := range p.Sockets {
		if p.touches(s.Condition) {
			var some bool
			if s.Machines, some = left(s.Condition, s.Machines); !some {
				continue
			}
		}
		out.Sockets = append(out.Sockets, s)
	}
	return out
}

func (p Policy) touches(condition int) bool {
	return slices.ContainsFunc(p.Dark, func(d Dark) bool { return d.Condition == condition })
}

// IsDark reports whether a condition is closed again for a machine.
func (p Policy) IsDark(condition int, machine string) bool {
	return slices.ContainsFunc(p.Dark, func(d Dark) bool {
		return d.Condition == condition && (len(d.Machines) == 0 || slices.Contains(d.Machines, machine))
	})
}

// Darkens reports whether p differs from old in that more is dark, and in
// nothing else: then what is open under both need not be cut.
func (p Policy) Darkens(old Policy) bool {
	for _, d := range old.Dark {
		if !slices.ContainsFunc(p.Dark, func(e Dark) bool { return reflect.DeepEqual(d, e) }) {
			return false
		}
	}
	p.Dark, old.Dark = nil, nil
	return reflect.DeepEqual(p, old)
}

// MaxUnits is how many units of a policy can be told apart: their numbers travel
// in six bits.
const MaxUnits = 62

// Number returns the number of a unit, from 1 on; 0 if it has none.
func (p Policy) Number(unit string) int {
	if i := slices.Index(p.Units, unit); i < MaxUnits {
		return i + 1
	}
	return 0
}

// Among reports whether one of the names that something is for, all if there are
// none, is name.
func Among(names []string, name string) bool { return len(names) == 0 || slices.Contains(names, name) }
