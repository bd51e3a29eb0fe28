// Package run executes recipes, emits events, and decides verdicts.
//
//	NewPlans   fleet → plans: immutable values that leave execution no choices
//	Run        plans → events and verdicts, many recipes at once
//	Outcome    what came of them; ExitCode of its totals
//
// Execution of one plan is a straight line: bring up its suppliers, lease and
// seal (site.open), try the seal (site.canaries), try the validations on empty
// hardware (control), do the strategy and the final validations
// (site.prove), count what was blocked and used, release, and give the verdict.
// Every way out of it is a *failure: with a kind it is the recipe's, and the
// verdict "not recovered"; without, the environment's, and the verdict "error".
// What happens beside the line - a daemon dies, a machine or a supplier is
// lost, bj is interrupted - ends the site's life with a *failure as its cause,
// and so ends whatever waits.
//
// Terminal, JUnit, reports and recorded results are folds over the events: see
// run/term, run/junit, run/report and run/event.
package run

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"bj/run/event"
	"bj/sandbox"
)

// Options is how Run works. Provider must be set; the zero value of the rest
// is the default.
type Options struct {
	Provider sandbox.Provider
	Stager   sandbox.Stager // nil: a recipe with tools is an error
	Sink     event.Sink     // takes all events; nil: nobody listens
	Version  string         // of bj
	Shard    string         // which part of the recipes this is, as "2/4"; "": all
	Jobs     int            // recipes at once; 0: what cores and memory allow
	Repeat   int            // runs of each recipe; 0 means 1
	// Keep is how long the environment of a recipe that did not recover is
	// kept; 0: not at all. Run returns when it has been removed.
	Keep time.Duration
	// Kept is called while an environment is kept, and must return when ctx is
	// done: it may let people look inside.
	Kept func(ctx context.Context, in *Inside)
	// Logs says where the logs of a recipe will be, for people; nil: nowhere.
	Logs func(label string) string
	// Dial reaches production; nil: the network of this host.
	Dial func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
	// Lookup asks servers, which dial reaches, for the addresses of a name. Nil:
	// an endpoint that is written with a name has no supplier.
	Lookup lookup
}

// Result is what came of one run of one recipe.
type Result struct {
	Plan     *Plan
	Verdict  event.Verdict
	Start    time.Time
	Duration time.Duration
	// Used is how often each of the recipe's conditions was used; nil if that is
	// not known.
	Used []int64
	// Blamed are the attempts that may have caused a failure, the most likely
	// first.
	Blamed []event.Blocked
}

// Outcome is what came of all of them, in the order of the plans.
type Outcome struct {
	Results     []Result
	Totals      event.Totals
	Interrupted bool
}

// Exit returns the exit code: see ExitCode.
func (o Outcome) Exit() int { return ExitCode(o.Totals, o.Interrupted) }

// ExitCode returns the exit code of bj test: 130 if it was interrupted, 1 if a
// recipe did not recover, 3 if there was an error, else 0.
func ExitCode(t event.Totals, interrupted bool) int {
	switch {
	case interrupted:
		return 130
	case t.NotRecovered > 0:
		return 1
	case t.Errors > 0:
		return 3
	}
	return 0
}

// Run runs all plans, emits their events, from start to end, and returns when
// every environment has been removed. When ctx ends, what runs is torn down
// first.
func Run(ctx context.Context, plans []*Plan, o Options) Outcome {
	r := &runner{Options: o, stream: &stream{sink: o.Sink}}
	if r.Dial == nil {
		r.Dial = hostDial
	}
	start := event.Event{Event: event.Start, Schema: event.Schema, Version: o.Version, Shard: o.Shard}
	if o.Shard != "" {
		for _, p := range plans {
			start.Recipes = append(start.Recipes, p.Label())
		}
	}
	r.stream.emit(start)

	r.staged = r.stage(ctx, plans)
	jobs := o.Jobs
	if jobs <= 0 {
		jobs = DefaultJobs(plans, cores(), freeMemory())
	}
	var out Outcome
	for range max(1, o.Repeat) {
		// One run of a recipe has ended before its next begins: their events
		// carry the same label.
		out.Results = append(out.Results, r.once(ctx, plans, jobs)...)
	}
	for _, x := range out.Results {
		switch x.Verdict.Verdict {
		case event.Recovered:
			out.Totals.Recovered++
		case event.NotRecovered:
			out.Totals.NotRecovered++
		default:
			out.Totals.Errors++
		}
		if c := x.Verdict.Code; c != nil && *c == codeInterrupted {
			out.Interrupted = true
		}
	}
	exit := out.Exit()
	r.stream.emit(event.Event{Event: event.End, Exit: &exit, Totals: &out.Totals})
	return out
}

// once runs every plan one time, jobs of them at once, in their order.
func (r *runner) once(ctx context.Context, plans []*Plan, jobs int) []Result {
	results := make([]Result, len(plans))
	slots := make(chan struct{}, jobs)
	var all sync.WaitGroup
	for i, p := range plans {
		slots <- struct{}{}
		all.Go(func() {
			x := &results[i]
			x.Plan, x.Start = p, time.Now()
			free := sync.OnceFunc(func() {
				x.Duration = time.Since(x.Start)
				<-slots
			})
			defer free()
			r.recipe(ctx, p, x, free)
		})
	}
	all.Wait()
	return results
}

// runner is what the recipes of one Run share.
type runner struct {
	Options
	stream *stream
	staged map[*Plan]staged
}
