package run

import (
	"bj/fleet"
	"bj/graph"
	"bj/run/event"
)

// Opens reports whether a condition would have allowed a blocked attempt, as far
// as its endpoints are addresses.
func Opens(f *fleet.Fleet, c *fleet.Condition, b event.Blocked) bool {
	want, err := fleet.ParseEndpoint(b.Endpoint)
	if err != nil {
		return false
	}
	want.Methods = b.Methods
	s := &fleet.Service{Name: "x", Pathways: []fleet.Pathway{{Name: "x", Endpoints: endpoints(f, c)}}}
	return len(graph.NewOwners([]*fleet.Service{s}).Of(&want)) > 0
}

// Condition returns the condition that would have allowed a blocked attempt, as
// its line says; false if none can.
func Condition(b event.Blocked) (fleet.Condition, bool) {
	c := fleet.Condition{Effort: 1, Text: b.Allow}
	if b.Service != nil {
		c.Service, c.Pathways = *b.Service, []string{b.Pathway}
		return c, true
	}
	e, err := fleet.ParseEndpoint(b.Endpoint)
	if err != nil {
		return c, false
	}
	e.Methods = b.Methods
	c.Endpoint = &e
	return c, true
}
