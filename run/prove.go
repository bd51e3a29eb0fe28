package run

import (
	"context"
	"fmt"
	"time"

	"bj/run/event"
)

// prove does the strategy and the final validations, and tries the seal again.
// The environment is open, and its seal was tried.
func (s *site) prove() *failure {
	f := s.recover(all)
	if f == nil {
		f = s.lateDeath()
	}
	if f != nil && f.verdict() == event.Errored {
		return f
	}
	// The seal is tried again whatever came out: a leak explains anything. A
	// daemon that dies meanwhile fails the recipe still.
	ctx := s.parent
	if f == nil {
		ctx = s.life
	}
	leak := s.canaries(ctx)
	switch {
	case leak != nil && (f == nil || leak.code == codeLeak || leak.code == codeInterrupted):
		return leak
	case f != nil:
		return f
	}
	return s.lateDeath()
}

// all is how many actions of a strategy recover does for a verdict: all of
// them, and the final validations.
const all = -1

// recover does the first n actions of the strategy within the recipe's limit;
// if n is all, the final validations as well.
func (s *site) recover(n int) *failure {
	r := s.plan.Recipe
	ctx, cancel := context.WithTimeoutCause(s.life, r.Within, &failure{kind: kindTimeout})
	defer cancel()
	do := func(title string, action func() *failure) *failure {
		start := time.Now()
		stop := s.pollBlocked(ctx, title)
		f := action()
		if f == nil {
			f = stopped(ctx)
		}
		stop()
		s.tellBlocked(context.WithoutCancel(s.life), title, false)
		if f != nil && f.kind == kindTimeout {
			f = pointer(*f) // what ended ctx is shared
			f.title, f.since = title, start
			f.message = fmt.Sprintf("the recipe had not recovered after %s, its limit; it was at %q", r.Within, title)
		}
		return f
	}
	for i, a := range r.Strategy {
		if i == n {
			return nil
		}
		var f *failure
		switch {
		case a.Step != nil:
			f = do(a.Step.Title, func() *failure { return s.step(ctx, a.Step) })
		case a.Validation != nil:
			f = do(a.Validation.Title, func() *failure { return s.validate(ctx, a.Validation, event.PhaseBetween) })
		case a.Fault != nil:
			f = do(a.Fault.Title, func() *failure { return s.fault(ctx, a.Fault) })
		}
		if f != nil {
			return f
		}
	}
	if n != all {
		return nil
	}
	for _, v := range r.Validation {
		if f := do(v.Title, func() *failure { return s.validate(ctx, v, event.PhaseFinal) }); f != nil {
			return f
		}
	}
	return nil
}
