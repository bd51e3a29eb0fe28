package builtins

import (
	"bj/fleet"
	"bj/lang"
)

// facts are what one module declares.
type facts struct {
	services []*fleet.Service
	recipes  []*fleet.Recipe

	// The cache keeps only modules without mistakes, so none of these.
	phantoms []string        // services with mistakes
	broken   []*fleet.Recipe // recipes with mistakes
}

// factsVersion changes with the meaning or encoding of facts.
const factsVersion = "facts/2"

// endModule encodes what a module without mistakes declared.
func endModule(m *lang.Module) string {
	s := m.State.(*state)
	if len(s.mistakes) > 0 {
		return ""
	}
	return encodeFacts(m.File, &facts{services: s.services, recipes: s.recipes})
}

func encodeFacts(file string, f *facts) string {
	c := &codec{file: file}
	facter(c, f)
	return string(c.buf)
}

func decodeFacts(file, in string) (*facts, bool) {
	c := &codec{file: file, in: in, read: true}
	f := new(facts)
	facter(c, f)
	return f, !c.bad && c.in == ""
}

// factsOf returns what a module declared, up to where it was cut off, or what
// the cache kept of it.
func factsOf(m *lang.Module) *facts {
	if s, ok := m.State.(*state); ok {
		return &facts{services: s.services, recipes: s.recipes, phantoms: s.phantoms, broken: s.broken}
	}
	if f, ok := m.State.(*facts); ok {
		return f
	}
	return &facts{}
}

// reviveModule is the State of a module that the cache knows.
func reviveModule(file, in string) (any, bool) {
	f, ok := decodeFacts(file, in)
	return f, ok
}
