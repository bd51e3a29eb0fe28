package run

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"bj/fleet"
	"bj/run/event"
	"bj/sandbox"
)

// try is one command of one round of a validation.
type try struct {
	machine string
	script  string
	exit    sandbox.Exit
	ended   bool // exit is known
	absent  bool // the machine is gone: nothing ran
	held    bool
	out     *output
}

// said says why a try did not hold.
func (t *try) said(v *fleet.Validation, memory int64) string {
	switch {
	case t.absent:
		return "the machine is gone"
	case !t.ended:
		return "the command had not ended"
	case t.exit.Code != v.Exit:
		return "the command " + exitText(t.exit, memory)
	}
	return fmt.Sprintf("the output does not match %q", v.Expect)
}

// validate waits until v holds, or its time is over.
func (s *site) validate(ctx context.Context, v *fleet.Validation, phase string) *failure {
	start := time.Now()
	s.voice.emit(event.Event{Event: event.ValidationStarted, Step: v.Title, Phase: phase})
	held, rounds, last, f := s.rounds(ctx, v, start)
	s.looks[v] += rounds
	if f == nil || f.kind == kindTimeout {
		for _, t := range last {
			if t != nil {
				s.showTail(v.Title, t)
			}
		}
	}
	s.voice.emit(event.Event{Event: event.ValidationFinished, Step: v.Title, Phase: phase, Held: &held, Seconds: seconds(start)})
	if f != nil && f.kind == kindTimeout {
		g := s.notHeld(v, start, rounds, last)
		return &failure{kind: kindTimeout, machine: g.machine, script: g.script, output: g.output}
	}
	if f != nil || held {
		return f
	}
	return s.notHeld(v, start, rounds, last)
}

// rounds tries v round after round. It returns the last try of each machine,
// one that ended rather than one that was cut off.
func (s *site) rounds(ctx context.Context, v *fleet.Validation, start time.Time) (held bool, n int, last []*try, f *failure) {
	limit, cancel := within(ctx, v.Within)
	defer cancel()
	last = make([]*try, len(v.On))
	var since time.Time // when it began to hold without a break
	for {
		began := time.Now()
		ok, tries := s.round(limit, v)
		s.took[v] += time.Since(began)
		if f := stopped(ctx); f != nil {
			return false, n, last, f
		}
		for i, t := range tries {
			if t != nil && (last[i] == nil || t.ended || t.absent || !last[i].ended) {
				last[i] = t
			}
		}
		n++
		now := time.Now()
		next := began.Add(v.Every)
		switch {
		case !ok:
			since = time.Time{}
		case limit.Err() != nil:
			return false, n, last, nil
		case since.IsZero():
			since = now
		}
		if ok {
			if now.Sub(since) >= v.Steady {
				return true, n, last, nil
			}
			if end := since.Add(v.Steady); end.Before(next) {
				next = end
			}
		}
		if limit.Err() != nil || !next.Before(start.Add(v.Within)) && !ok {
			return false, n, last, nil
		}
		sleep(limit, time.Until(next))
		if f := stopped(ctx); f != nil {
			return false, n, last, f
		}
		if limit.Err() != nil {
			return false, n, last, nil
		}
	}
}

// round runs v's command on all its machines at once, and ends as soon as it is
// decided: enough of them hold, or too many do not.
func (s *site) round(ctx context.Context, v *fleet.Validation) (bool, []*try) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	held, failed := 0, 0
	var late *time.Timer
	tries := make([]*try, len(v.On))
	var all sync.WaitGroup
	for i, name := range v.On {
		t := &try{machine: name, script: scriptFor(v.Run, i)}
		t.out = newOutput(s.mask, outputOptions{expect: s.expr(v.Expect)})
		tries[i] = t
		s.spawn(&all, func() {
			s.tryOn(ctx, v, t)
			mu.Lock()
			defer mu.Unlock()
			if t.held {
				held++
			} else {
				failed++
			}
			switch {
			case held >= v.AtLeast:
				cancel()
			case failed == len(v.On)-v.AtLeast+1:
				// The rest may still say how they are, but not hold up the next round.
				late = time.AfterFunc(v.Every, cancel)
			}
		})
	}
	all.Wait()
	if late != nil {
		late.Stop()
	}
	return held >= v.AtLeast, tries
}

// tryOn runs v's command once on one machine.
func (s *site) tryOn(ctx context.Context, v *fleet.Validation, t *try) {
	m := s.machines[t.machine]
	if m.lost() {
		t.absent = true
		t.out.finish()
		return
	}
	exit, err := s.exec(ctx, m, sandbox.Command{Script: t.script, Env: s.environ(nil), Unit: unitOf(v.Title)}, t.out)
	if err != nil {
		t.absent = m.lost()
		if !t.absent && ctx.Err() == nil {
			f := asFailure(err, sandbox.CodeLease)
			s.fail(&failure{code: f.code, hint: f.hint, machine: t.machine, message: fmt.Sprintf("running %q on %s: %s", v.Title, t.machine, f.message)})
		}
		return
	}
	t.exit, t.ended = exit, true
	t.held = exit.Code == v.Exit && (v.Expect == "" || t.out.matched())
}

// unitOf makes the name of a process group of a title.
func unitOf(title string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(title) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	return "validate-" + strings.Trim(b.String()[:min(b.Len(), 40)], "-")
}

// showTail shows the end of what a try printed.
func (s *site) showTail(title string, t *try) {
	if text := t.out.end(); text != "" {
		s.voice.emit(event.Event{Event: event.OutputWritten, Machine: t.machine, Step: title, Stream: string(sandbox.Stdout), Text: text})
	}
}

// notHeld is the failure of a validation whose time is over.
func (s *site) notHeld(v *fleet.Validation, start time.Time, rounds int, last []*try) *failure {
	f := &failure{kind: kindValidation, title: v.Title, unit: unitOf(v.Title), since: start}
	held := 0
	for _, t := range last {
		switch {
		case t == nil: // no round ended
		case t.held:
			held++
		case f.machine == "":
			f.machine, f.script, f.output = t.machine, t.script, t.out.end()
			f.message = t.said(v, s.memory(t.machine))
		}
	}
	tried := "once"
	if rounds > 1 {
		tried = fmt.Sprintf("%d times", rounds)
	}
	why := fmt.Sprintf(" (tried %s)", tried)
	if len(v.On) > 1 {
		why = fmt.Sprintf(" (tried %s; at last %d of %d machines held, %d must)", tried, held, len(v.On), v.AtLeast)
	}
	if f.machine == "" && last[0] != nil { // it held at times, not for long enough
		t := last[0]
		f.machine, f.script, f.output = t.machine, t.script, t.out.end()
		f.message = fmt.Sprintf("it held, but not for %s without a break", v.Steady)
	}
	f.message = fmt.Sprintf("validation %q did not hold on %s within %s%s: %s", v.Title, f.machine, v.Within, why, f.message)
	return f
}
