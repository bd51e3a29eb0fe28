package run

import (
	"fmt"
	"slices"
	"strings"

	"bj/fleet"
	"bj/run/event"
	"bj/sandbox"
)

// WithOnly writes a condition's line for some units alone.
func WithOnly(text string, units []string) string {
	if len(units) == 0 {
		return text
	}
	var quoted []string
	for _, u := range units {
		quoted = append(quoted, fmt.Sprintf("%q", u))
	}
	return fmt.Sprintf("%s, only = [%s])", strings.TrimSuffix(text, ")"), strings.Join(quoted, ", "))
}

// widen says which line would allow an attempt that some condition allows to
// other units alone: that one, with one unit more.
func (p *Plan) widen(b *event.Blocked, f sandbox.Flow) {
	if len(p.Policy.Units) == 0 || b.Endpoint == "" {
		return
	}
	unit := f.Unit
	if f.Origin != nil {
		unit = f.Origin.Unit
	}
	named := *b // the same, as a condition has it that is written with the name
	if f.Name != "" && f.Protocol == "tcp" {
		named.Endpoint = fmt.Sprintf("tcp://%s:%d", f.Name, f.Destination.Port())
	}
	for i := range p.Recipe.Conditions {
		c := &p.Recipe.Conditions[i]
		if len(c.Only) == 0 || slices.Contains(c.Only, unit) || !sandbox.Among(c.On, f.Machine) || !Opens(p.fleet, c, *b) && !Opens(p.fleet, c, named) {
			continue
		}
		if c.Endpoint == nil && c.Service != "*" && (b.Service == nil || *b.Service != c.Service) {
			b.Service, b.Pathway = &c.Service, c.Pathways[0] // of several that own it, the one that the line is about
		}
		b.Allow, b.Wider = c.Text, nil
		// Validations, and what belongs to no step, have no unit that can be named.
		if slices.ContainsFunc(p.Recipe.Strategy, func(a fleet.Action) bool { return a.Step != nil && a.Step.Unit == unit }) {
			b.Allow, b.Wider = WithOnly(c.Text, append(slices.Clone(c.Only), unit)), []string{c.Text}
		}
		return
	}
}
