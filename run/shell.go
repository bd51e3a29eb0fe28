package run

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"bj/fleet"
	"bj/run/event"
	"bj/sandbox"
)

// Inside is an environment that people look into.
type Inside struct {
	Label    string
	Machines []string // in order, those that have not crashed
	site     *site
}

func (s *site) inside() *Inside {
	in := &Inside{Label: s.plan.Label(), site: s}
	for _, m := range s.plan.Machines {
		if !s.machines[m.Name].lost() {
			in.Machines = append(in.Machines, m.Name)
		}
	}
	return in
}

// Start starts a command on a machine, with the variables that a step sees. It
// takes part in no verdict.
func (in *Inside) Start(ctx context.Context, machine string, c sandbox.Command, output func(sandbox.Stream, []byte)) (sandbox.Process, error) {
	m := in.site.machines[machine]
	if m == nil || m.lost() {
		return nil, fmt.Errorf("%s has no machine %q; there are: %s", in.Label, machine, strings.Join(in.Machines, ", "))
	}
	c.Env = in.site.environ(c.Env)
	return m.Start(ctx, c, output)
}

// Lost is closed when the environment has died.
func (in *Inside) Lost() <-chan struct{} { return in.site.env.Lost() }

// Shell opens the environment of one plan, seals and tries the seal as Run does,
// does the first n actions of the strategy, and calls visit. Where an action
// fails, its reason is a note, and visit is called all the same. The environment
// is gone when Shell returns. The error is of what is not the recipe's fault, or
// visit's.
func Shell(ctx context.Context, p *Plan, n int, o Options, visit func(ctx context.Context, in *Inside) error) error {
	r := &runner{Options: o, stream: &stream{sink: o.Sink}}
	if r.Dial == nil {
		r.Dial = hostDial
	}
	r.stream.emit(event.Event{Event: event.Start, Schema: event.Schema, Version: o.Version})
	r.staged = r.stage(ctx, []*Plan{p})
	x := &execution{runner: r, plan: p, judged: func() {},
		voice: &voice{stream: r.stream, recipe: p.Label(), mask: newMask(append(append([]*Plan{}, p.Suppliers...), p)...), judged: new(atomic.Bool)}}
	x.group, x.fail = context.WithCancelCause(ctx)
	defer x.fail(nil)
	defer x.guarded(func() *failure { x.close(); return nil })
	var err error
	f := x.guarded(func() *failure {
		f := x.open()
		if f == nil {
			f = x.site.canaries(x.site.life)
		}
		if f != nil {
			return f
		}
		if f = x.site.recover(n); f != nil && f.kind == "" {
			return f
		}
		if f != nil {
			f.blocked, f.earlier = x.site.suspects(x.site.tellAllBlocked(context.WithoutCancel(x.group)), f)
			x.voice.emit(event.Event{Event: event.Note, Machine: f.machine, Step: f.title, Text: f.reason("", "")})
		}
		// What the recipe would fail with, such as a daemon that ends, is no
		// reason to end a visit.
		err = visit(x.group, x.site.inside())
		x.site.tellAllBlocked(context.WithoutCancel(x.group))
		return nil
	})
	if f != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return &sandbox.Error{Code: sandbox.Code(f.code), Err: f, Hint: f.hint}
	}
	return err
}

// open leases and seals the environment, with its suppliers up.
func (x *execution) open() *failure {
	p := x.plan
	if p.Refusal != nil {
		return &failure{code: p.Refusal.Code, message: p.Refusal.Error(), hint: p.Refusal.Hint}
	}
	if f := x.staged[p].failure; f != nil {
		return f
	}
	if f := x.probe(); f != nil {
		return f
	}
	if f := x.supplyAll(); f != nil {
		return f
	}
	x.site = newSite(x.group, p, x.voice, x.Provider, x.staged[p].files, x.dialFor(p))
	x.site.deadline = time.Now().Add(p.Recipe.Within + x.Keep + 30*time.Minute)
	var f *failure
	if x.site.policy, f = x.policy(p); f != nil {
		return f
	}
	return x.site.open()
}

// Actions returns the titles of a recipe's strategy, in order.
func Actions(r *fleet.Recipe) []string {
	titles := make([]string, 0, len(r.Strategy))
	for _, a := range r.Strategy {
		switch {
		case a.Step != nil:
			titles = append(titles, a.Step.Title)
		case a.Validation != nil:
			titles = append(titles, a.Validation.Title)
		case a.Fault != nil:
			titles = append(titles, a.Fault.Title)
		}
	}
	return titles
}
