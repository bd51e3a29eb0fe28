package builtins

import (
	"bj/fleet"
	"bj/lang"
)

// facts are what one module declares.
type facts struct {
	services []*fleet.Service
	recipes  []*fleet.Recipe
	phantoms []string        // services with mistakes
	broken   []*fleet.Recipe // recipes with mistakes
}

// factsOf returns what a module declared, up to where it was cut off, or what
// the cache kept of it.
func factsOf(m *lang.Module) *facts {
	if s, ok := m.State.(*state); ok {
		return &facts{s.services, s.recipes, s.phantoms, s.broken}
	}
	return &facts{}
}
