package run

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"bj/fleet"
	"bj/run/event"
)

// control is the first honesty rule, and what an experiment calls its control:
// every validation is tried on empty hardware, which is thrown away. One that
// holds there proves nothing.
//
// Neither does one that makes true what it looks at, be it at once, in the
// background, or at the third look. So the empty machines stay until the recipe
// has recovered, and are then looked at as often as the recipe's own had to be:
// what holds on them by then was not brought back by any step.
type control struct {
	of    *site // the recipe's own environment
	empty *site

	validations []*fleet.Validation
	left        []time.Duration // of emptyLimit
	looks       []int
	shown       []string // what the look printed that held
	held        []bool
}

// openControl leases the empty machines and looks at them for the first time.
func openControl(s *site) (*control, *failure) {
	quiet := &voice{stream: s.voice.stream, recipe: s.voice.recipe, supplier: s.voice.supplier, mask: s.mask, quiet: true}
	vs := s.plan.validations()
	c := &control{of: s, empty: newSite(s.life, s.plan, quiet, s.provider, s.tools, s.dial), validations: vs,
		left: make([]time.Duration, len(vs)), looks: make([]int, len(vs)), shown: make([]string, len(vs)), held: make([]bool, len(vs))}
	c.empty.policy = s.policy
	if f := c.empty.open(); f != nil {
		f.message = "trying the validations on empty hardware: " + f.message
		return c, f
	}
	for i, v := range vs {
		c.left[i] = emptyLimit
		s.voice.emit(event.Event{Event: event.ValidationStarted, Step: v.Title, Phase: event.PhaseEmpty})
	}
	begun := time.Now()
	if f := c.look(func(int) bool { return true }); f != nil {
		return c, f
	}
	for i, v := range vs {
		held := c.held[i]
		s.voice.emit(event.Event{Event: event.ValidationFinished, Step: v.Title, Phase: event.PhaseEmpty, Held: &held, Seconds: seconds(begun)})
	}
	return c, c.verdict("before any step was done: it proves nothing")
}

// close throws the empty machines away.
func (c *control) close() { c.empty.close() }

// again looks at the empty machines as often as the recipe's own were looked at,
// and once at least, now that as much time has passed on them. What was cut off
// was no look. There is half again as much time as the recipe's own looks took,
// whatever the first one has used up: on a slow host those were slow, too.
func (c *control) again() *failure {
	for i, v := range c.validations {
		c.left[i] = max(c.left[i], c.of.took[v]*3/2)
	}
	for first := true; ; first = false {
		more := false
		due := func(i int) bool { return first || c.looks[i] < c.of.looks[c.validations[i]] }
		for i := range c.validations {
			more = more || due(i) && !c.held[i] && c.left[i] > 0
		}
		if !more {
			break
		}
		if f := c.look(due); f != nil {
			return f
		}
	}
	return c.verdict("when it is tried again there: it takes its time, or trying it, or another one, makes true what it looks at, so it proves nothing")
}

// look tries those validations once that are due and have time left.
func (c *control) look(due func(i int) bool) *failure {
	var all sync.WaitGroup
	for i, v := range c.validations {
		if c.held[i] || c.left[i] <= 0 || !due(i) {
			continue
		}
		c.empty.spawn(&all, func() {
			start := time.Now()
			ctx, cancel := within(c.empty.life, c.left[i])
			defer cancel()
			ok, tries := c.empty.round(ctx, v)
			c.left[i] -= time.Since(start)
			if ok || ctx.Err() == nil {
				c.looks[i]++
			}
			if ok {
				c.held[i], c.shown[i] = true, tries[0].out.end()
			}
		})
	}
	all.Wait()
	return stopped(c.empty.life)
}

// idle reports whether every validation holds on empty hardware, which each says
// that it may: then there is no evidence of what the steps did.
func (c *control) idle() bool {
	return !slices.Contains(c.held, false)
}

// verdict is about the first validation that has held, if one has that does not
// say that it may.
func (c *control) verdict(when string) *failure {
	for i, v := range c.validations {
		if c.held[i] && !v.Invariant {
			return &failure{code: codeVacuous, title: v.Title, script: scriptFor(v.Run, 0), output: c.shown[i],
				message: fmt.Sprintf("the validation %q holds on empty hardware, %s", v.Title, when),
				hint:    "look at something that only the recovered service can do, or say invariant = True"}
		}
	}
	return nil
}
