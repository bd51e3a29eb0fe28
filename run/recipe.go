package run

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bj/run/event"
)

// recipe runs one plan and emits its verdict. Judged is called when the
// verdict is known; with Keep the environment may live on for a while then.
func (r *runner) recipe(ctx context.Context, p *Plan, out *Result, judged func()) {
	x := &execution{runner: r, plan: p, judged: judged,
		voice: &voice{stream: r.stream, recipe: p.Label(), mask: newMask(append(slices.Clone(p.Suppliers), p)...), judged: new(atomic.Bool)}}
	// group ends with the run, and when a supplier fails.
	x.group, x.fail = context.WithCancelCause(ctx)
	defer x.fail(nil)
	out.Verdict = x.run()
	out.Used, out.Blamed = x.used, x.blamed
}

// execution is one run of one plan: it owns the recipe's site and its suppliers'.
type execution struct {
	*runner
	plan      *Plan
	voice     *voice
	judged    func()
	group     context.Context
	fail      context.CancelCauseFunc
	mu        sync.Mutex       // guards what suppliers that come up at once write
	suppliers map[string]*site // by label
	order     []*site          // in which they came up
	used      []int64          // by condition; nil if that is not known
	blamed    []event.Blocked  // for a failure, the most likely first
	stops     []func() bool    // end what watches the suppliers
	site      *site
}

// run does everything, and gives the verdict. Whatever panics is an error of
// this recipe alone.
func (x *execution) run() event.Verdict {
	f := x.guarded(x.prove)
	v := x.verdict(f)
	keep := x.Keep > 0 && f != nil && x.site != nil && x.site.env != nil && f.code != codeInterrupted
	if keep {
		x.give(v)
		x.guarded(func() *failure { x.wait(); return nil })
		x.guarded(func() *failure { x.close(); return nil })
		return v
	}
	if g := x.guarded(func() *failure { x.close(); return nil }); g != nil && f == nil {
		v = x.verdict(g)
	}
	x.give(v)
	return v
}

// guarded calls f, and makes a panic a failure.
func (x *execution) guarded(f func() *failure) (out *failure) {
	defer func() {
		if p := recover(); p != nil {
			out = x.voice.panicked(p)
		}
	}()
	return f()
}

// give emits the verdict.
func (x *execution) give(v event.Verdict) {
	x.voice.judged.Store(true)
	x.voice.emit(event.Event{Event: event.VerdictGiven, Verdict: &v})
	x.judged()
}

// prove is the whole line from plan to what was used.
func (x *execution) prove() *failure {
	if f := stopped(x.group); f != nil {
		f.message = "interrupted before it began"
		return f
	}
	if f := x.open(); f != nil {
		return f
	}
	f := x.site.canaries(x.site.life)
	var empty *control
	if f == nil {
		empty, f = openControl(x.site)
		defer empty.close()
	}
	if f == nil {
		f = x.site.prove()
	}
	if f == nil {
		f = empty.again()
	}
	if f == nil && empty.idle() {
		x.site.free = append(x.site.free, "evidence: every validation is invariant, and held on empty hardware as well")
	}
	// The last word before a verdict: nothing may have died meanwhile, here or in
	// what the recipe was supplied by.
	for _, s := range x.order {
		if f == nil {
			if late := s.lateDeath(); late != nil {
				f = supplierFailure(s.plan, late)
			}
		}
	}
	if f == nil {
		f = x.site.lateDeath()
	}
	if f == nil || f.code != codeInterrupted {
		x.account(f)
	}
	return f
}

// account tells what was blocked and used, and gives f what was blocked while
// what failed ran.
func (x *execution) account(f *failure) {
	ctx := context.WithoutCancel(x.group)
	flows := x.site.tellAllBlocked(ctx)
	if f != nil && !f.since.IsZero() {
		f.blocked, f.earlier = x.site.suspects(flows, f)
		x.blamed = slices.Concat(f.blocked, f.earlier)
		if f.hint == "" && !slices.ContainsFunc(x.blamed, func(b event.Blocked) bool { return b.Allow != "" }) {
			f.hint = lacking(x.plan.fleet, x.plan.Recipe, f.script+"\n"+f.output)
		}
	}
	x.site.tellMattered(flows, f)
	x.used = x.site.tellUsed(ctx)
}

// verdict makes the verdict of f; nil means that the recipe recovered.
func (x *execution) verdict(f *failure) event.Verdict {
	v := event.Verdict{Verdict: event.Recovered, Except: slices.Clone(x.plan.Except)}
	if x.site != nil {
		v.Root, v.Free = x.site.root, slices.Clone(x.site.free)
	}
	for _, s := range x.plan.Suppliers {
		v.Free = append(v.Free, "supplier "+s.Label())
	}
	if f == nil {
		if len(v.Except) > 0 {
			v.Reason = "proven except what is done by hand: " + strings.Join(v.Except, ", ")
		}
		return v
	}
	logs := ""
	if x.Logs != nil {
		logs = x.Logs(x.plan.Label())
	}
	v.Verdict, v.Hint, v.Reason = f.verdict(), f.hint, f.reason(logs, x.lookInside(f))
	if f.kind != "" {
		v.Failed = &event.Failed{Kind: f.kind, Title: f.title, Machine: f.machine}
	} else if f.code != "" {
		v.Code = &f.code
	}
	return v
}

// lookInside is the command that opens a shell where f happened: in what is kept,
// or in a fresh environment in which the same was done.
func (x *execution) lookInside(f *failure) string {
	line := "bj shell " + x.plan.Label()
	if x.Keep > 0 {
		return line
	}
	titles := Actions(x.plan.Recipe)
	if len(titles) == 0 {
		return line
	}
	after := titles[len(titles)-1]
	if slices.Contains(titles, f.title) {
		after = f.title
	}
	return fmt.Sprintf("%s --after %q", line, after)
}

// supplyAll brings all suppliers up, those of one wave at the same time. The first
// that fails ends the others.
func (x *execution) supplyAll() *failure {
	for rest := x.plan.Suppliers; len(rest) > 0; {
		n := slices.IndexFunc(rest, func(p *Plan) bool { return p.Wave != rest[0].Wave })
		if n < 0 {
			n = len(rest)
		}
		var wave sync.WaitGroup
		for _, p := range rest[:n] {
			wave.Go(func() {
				if f := x.guarded(func() *failure { return x.supply(p) }); f != nil {
					x.fail(f)
				}
			})
		}
		wave.Wait()
		if f := stopped(x.group); f != nil {
			return f
		}
		rest = rest[n:]
	}
	return nil
}

// supply brings one supplier up; it stays up until the execution is closed.
func (x *execution) supply(p *Plan) *failure {
	failed := func(f *failure) *failure { return supplierFailure(p, f) }
	if f := x.staged[p].failure; f != nil {
		return failed(f)
	}
	v := &voice{stream: x.stream, recipe: x.plan.Label(), supplier: p.Label(), mask: x.voice.mask, judged: x.voice.judged}
	s := newSite(x.group, p, v, x.Provider, x.staged[p].files, x.dialFor(p))
	s.deadline = x.deadline()
	var unresolved *failure
	if s.policy, unresolved = x.policy(p); unresolved != nil {
		return failed(unresolved)
	}
	x.mu.Lock()
	if x.suppliers == nil {
		x.suppliers = map[string]*site{}
	}
	x.suppliers[p.Label()] = s
	x.order = append(x.order, s)
	x.mu.Unlock()
	if f := s.open(); f != nil {
		return failed(f)
	}
	if f := s.canaries(s.life); f != nil {
		return failed(f)
	}
	if f := s.prove(); f != nil {
		if flows := s.tellAllBlocked(context.WithoutCancel(x.group)); !f.since.IsZero() {
			f.blocked, f.earlier = s.suspects(flows, f)
		}
		return failed(f)
	}
	stop := context.AfterFunc(s.life, func() {
		if f := stopped(s.life); f.code != codeInterrupted {
			x.fail(failed(f))
		}
	})
	x.mu.Lock()
	x.stops = append(x.stops, stop)
	x.mu.Unlock()
	return nil
}

// supplier returns the site of a supplier that comes up or is up, else nil.
func (x *execution) supplier(label string) *site {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.suppliers[label]
}

const supplierWords = "the supplier "

// supplierFailure makes a supplier's failure the consumer's.
func supplierFailure(p *Plan, f *failure) *failure {
	if f.code == codeInterrupted || (f.code == codeSupply && f.kind == "" && strings.HasPrefix(f.message, supplierWords)) {
		return f
	}
	g := *f
	g.code, g.kind = codeSupply, ""
	g.message = fmt.Sprintf("%s%s did not hold: %s", supplierWords, p.Label(), f.message)
	return &g
}

// deadline is when every environment of the run must be over.
func (x *execution) deadline() time.Time {
	d := x.plan.Recipe.Within + x.Keep + 30*time.Minute
	for _, s := range x.plan.Suppliers {
		d += s.Recipe.Within
	}
	return time.Now().Add(d)
}

// dialFor returns how the relay of p's environment reaches what p allows.
func (x *execution) dialFor(p *Plan) dialer {
	if p.Supply != Recipes {
		return x.Dial
	}
	return func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
		s := x.supplier(p.Routes[to.Addr().Unmap()])
		if s == nil || s.env == nil {
			return nil, fmt.Errorf("no supplier has the address %s", to.Addr())
		}
		return s.env.Dial(ctx, network, to)
	}
}

// wait keeps the environment for a look inside.
func (x *execution) wait() {
	until := time.Now().Add(x.Keep)
	x.voice.emit(event.Event{Event: event.Note, Text: fmt.Sprintf("the environment %s of %s is kept until %s: bj shell %s enters it, Ctrl-C here removes it now",
		x.site.env.Name(), x.plan.Label(), until.Format(time.TimeOnly), x.plan.Label())})
	ctx, cancel := context.WithDeadline(x.group, until)
	defer cancel()
	var visits sync.WaitGroup
	if x.Kept != nil {
		x.site.spawn(&visits, func() { x.Kept(ctx, x.site.inside()) })
	}
	select {
	case <-ctx.Done():
	case <-x.site.env.Lost():
	}
	cancel()
	visits.Wait()
}

// close removes every environment, the recipe's first.
func (x *execution) close() {
	for _, stop := range x.stops {
		stop()
	}
	if x.site != nil {
		x.site.close()
	}
	for _, s := range slices.Backward(x.order) {
		s.close()
	}
}

// newMask returns the mask of all secrets of plans: what a supplier hands out
// is as secret with those who ask for it.
func newMask(plans ...*Plan) *mask {
	m := &mask{}
	for _, p := range plans {
		for _, value := range p.Secrets {
			m.add(value)
		}
	}
	return m
}
