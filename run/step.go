package run

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"bj/fleet"
	"bj/run/event"
	"bj/sandbox"
)

// step does one step on all its machines at once. The first machine on which
// it fails ends it on the others.
func (s *site) step(ctx context.Context, st *fleet.Step) *failure {
	if len(st.Run) == 0 {
		s.voice.emit(event.Event{Event: event.Note, Step: st.Title, Text: fmt.Sprintf("the step %q is done by hand, and was not tested", st.Title)})
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	var once sync.Once
	var first *failure
	for i, name := range st.On {
		s.spawn(&all, func() {
			if f := s.stepOn(ctx, st, s.machines[name], scriptFor(st.Run, i)); f != nil {
				once.Do(func() { first = f })
				cancel()
			}
		})
	}
	all.Wait()
	return first
}

// stepOn does one step on one machine, again as often as it may be retried.
func (s *site) stepOn(ctx context.Context, st *fleet.Step, m *machine, script string) *failure {
	for attempt := 0; ; attempt++ {
		var f *failure
		if st.Daemon {
			f = s.startDaemon(ctx, st, m, script)
		} else {
			f = s.attempt(ctx, st, m, script)
		}
		if f == nil || f.kind == "" || m.lost() || attempt >= st.Retry {
			return f
		}
		if stop := stopped(ctx); stop != nil {
			// It would have been tried again: what ended the tries is what failed.
			if stop.kind != kindTimeout || f.kind == kindTimeout {
				return f
			}
			late := *stop
			late.machine, late.script, late.output = m.Name(), f.script, f.output
			return &late
		}
		s.voice.emit(event.Event{Event: event.Note, Machine: m.Name(), Step: st.Title,
			Text: fmt.Sprintf("%s; trying again (%d of %d)", f.message, attempt+1, st.Retry)})
		sleep(ctx, retryPause)
	}
}

// attempt runs a step's command once, and judges it.
func (s *site) attempt(ctx context.Context, st *fleet.Step, m *machine, script string) *failure {
	start := time.Now()
	s.voice.emit(event.Event{Event: event.StepStarted, Machine: m.Name(), Step: st.Title})
	out := newOutput(s.mask, outputOptions{
		show: s.shower(st.Title, m.Name()), expect: s.expr(st.Expect),
		capture: st.Capture != "", hidden: st.Masked,
	})
	limit, cancel := within(ctx, st.Within)
	defer cancel()
	exit, err := s.exec(limit, m, sandbox.Command{Script: script, Env: s.environ(st.Env), User: st.User, Unit: st.Unit}, out)
	finished := event.Event{Event: event.StepFinished, Machine: m.Name(), Step: st.Title, Seconds: seconds(start)}
	if err == nil {
		finished.Exit = &exit.Code
	}
	s.voice.emit(finished)

	failed := func(format string, args ...any) *failure {
		return &failure{kind: kindStep, title: st.Title, machine: m.Name(), unit: st.Unit, script: script, output: out.end(), since: start, ended: err == nil,
			message: fmt.Sprintf("step %q failed on %s: ", st.Title, m.Name()) + fmt.Sprintf(format, args...)}
	}
	switch {
	case err != nil && ctx.Err() == nil && limit.Err() != nil:
		return failed("it had not ended after %s", st.Within)
	case err != nil:
		f := *s.gone(ctx, m, st.Title, err)
		if f.kind == kindTimeout {
			f.machine, f.script, f.output = m.Name(), script, out.end()
		}
		return &f
	case exit.Code != 0:
		return failed("it %s", exitText(exit, s.memory(m.Name())))
	case st.Expect != "" && !out.matched():
		return failed("it ended with exit code 0, and its output does not match %q", st.Expect)
	case st.Capture != "":
		return s.capture(st, out, failed)
	}
	return nil
}

// capture keeps what the step printed for later steps.
func (s *site) capture(st *fleet.Step, out *output, failed func(string, ...any) *failure) *failure {
	switch {
	case len(out.capture) > maxCapture:
		return failed("it printed more than the %d KiB that can be kept as $%s", maxCapture>>10, st.Capture)
	case bytes.IndexByte(out.capture, 0) >= 0:
		return failed("it printed a zero byte, which $%s cannot hold", st.Capture)
	}
	value := strings.TrimSuffix(string(out.capture), "\n")
	if st.Masked {
		s.mask.add(value)
	}
	s.captures[st.Capture] = value
	return nil
}
