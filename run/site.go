package run

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bj/fleet"
	"bj/run/event"
	"bj/sandbox"
)

// How long bj waits for what is not the recipe's own. They are generous: only
// what hangs reaches them.
const (
	leaseLimit   = 5 * time.Minute
	sealLimit    = 5 * time.Minute // machines that boot their own init system do so under the seal
	canaryLimit  = 2 * time.Minute
	askLimit     = 15 * time.Second // counters and rules
	killLimit    = 10 * time.Second
	releaseLimit = time.Minute
	emptyLimit   = 10 * time.Second       // a validation on empty hardware
	settleTime   = 100 * time.Millisecond // a daemon that lives so long was started
	retryPause   = time.Second
	lostPause    = 500 * time.Millisecond // between a command's end and its machine's
	blockedEvery = time.Second
)

// dialer connects to what is allowed.
type dialer func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)

// site is one environment of a run: the recipe's own, one that supplies it, or
// the empty one in which validations are tried. It has one owner, who calls
// close.
type site struct {
	plan     *Plan
	policy   sandbox.Policy // the plan's, with names resolved, and what faults have closed closed
	voice    *voice
	provider sandbox.Provider
	dial     dialer
	tools    toolFiles // staged
	deadline time.Time

	env      sandbox.Environment
	machines map[string]*machine
	mask     *mask

	// life ends with the first thing that makes a verdict of recovered
	// impossible, wherever it happens: its cause is a *failure.
	life context.Context
	fail context.CancelCauseFunc
	// parent is what life hangs on: the run, and its suppliers' health.
	parent context.Context
	// alive ends when the site is closed; what watches hangs on it.
	alive context.Context
	close func()

	watchers sync.WaitGroup
	mu       sync.Mutex
	daemons  []*daemon // that are up; under mu
	captures map[string]string
	looks    map[*fleet.Validation]int           // rounds that each validation took
	took     map[*fleet.Validation]time.Duration // and how long they were, without the pauses
	blocked  blockedLog
	root     string
	free     []string
}

// machine is a machine of a site.
type machine struct {
	sandbox.Machine
	crashed atomic.Pointer[string] // title of the fault that crashed it
}

// lost reports whether the machine is gone.
func (m *machine) lost() bool {
	select {
	case <-m.Lost():
		return true
	default:
		return m.crashed.Load() != nil
	}
}

// newSite prepares a site whose life ends with parent. Nothing is leased yet.
func newSite(parent context.Context, p *Plan, v *voice, provider sandbox.Provider, tools toolFiles, dial dialer) *site {
	s := &site{
		parent: parent, plan: p, policy: p.Policy, voice: v, provider: provider, tools: tools, dial: dial, mask: v.mask,
		machines: map[string]*machine{}, captures: map[string]string{}, looks: map[*fleet.Validation]int{}, took: map[*fleet.Validation]time.Duration{},
		deadline: time.Now().Add(p.Recipe.Within + 30*time.Minute),
	}
	s.life, s.fail = context.WithCancelCause(parent)
	var end context.CancelFunc
	s.alive, end = context.WithCancel(context.WithoutCancel(parent))
	s.close = sync.OnceFunc(func() {
		end()
		s.fail(nil)
		s.release()
		s.watchers.Wait()
	})
	return s
}

// spawn runs f in a goroutine of group. What panics there ends the site's life,
// and nobody else's.
func (s *site) spawn(group *sync.WaitGroup, f func()) {
	group.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				s.fail(s.voice.panicked(p))
			}
		}()
		f()
	})
}

// within returns ctx with a limit.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, d)
}

// during returns why ctx ended, if it did, and else err as a failure.
func during(ctx context.Context, err error, code sandbox.Code, what string) *failure {
	if f := stopped(ctx); f != nil {
		return f
	}
	f := asFailure(err, code)
	f.message = what + ": " + f.message
	return f
}

// open leases the environment and seals it.
func (s *site) open() *failure {
	start := time.Now()
	spec := sandbox.Spec{Owner: s.plan.Label(), Deadline: s.deadline, Policy: s.policy, Users: s.plan.Users, Dial: s.dial}
	var trusted []sandbox.File
	if inspects(s.policy) {
		a, err := newAuthority(s.deadline)
		if err != nil {
			return &failure{code: codeLease, message: "making the authority of the lease: " + err.Error()}
		}
		s.policy.Authority, spec.Policy.Authority = a, a
		trusted = []sandbox.File{trust(a)}
	}
	for _, m := range s.plan.Machines {
		tools := s.tools.of(m.Image)
		m.Files = slices.Concat(trusted, tools, stillAbsent(m.Files, tools))
		spec.Machines = append(spec.Machines, m)
	}
	ctx, cancel := within(s.life, leaseLimit)
	defer cancel()
	env, err := s.provider.Lease(ctx, spec)
	if err != nil {
		return during(s.life, err, sandbox.CodeLease, "leasing machines")
	}
	s.env, s.root, s.free = env, env.Root(), slices.Concat(toolsFree(s.plan, s.tools.all()), s.plan.Free, env.Free())
	for _, m := range env.Machines() {
		s.machines[m.Name()] = &machine{Machine: m}
	}
	for _, m := range s.plan.Machines {
		if s.machines[m.Name] == nil {
			return &failure{code: codeLease, message: fmt.Sprintf("leasing machines: there is no %s among them", m.Name)}
		}
	}
	s.voice.emit(event.Event{Event: event.Lease, Seconds: seconds(start), Text: env.Name()})
	s.watch()

	start = time.Now()
	sctx, scancel := within(s.life, sealLimit)
	defer scancel()
	if err := env.Seal(sctx, s.policy); err != nil {
		return during(s.life, err, sandbox.CodeLease, "sealing the environment")
	}
	took := seconds(start)
	rules := ""
	if !s.voice.quiet {
		rctx, rcancel := within(s.life, askLimit)
		defer rcancel()
		if rules, err = env.Rules(rctx); err != nil {
			return during(s.life, err, sandbox.CodeLease, "reading the rules of the seal")
		}
	}
	s.voice.emit(event.Event{Event: event.Sealed, Seconds: took, Rules: rules})
	return nil
}

// watch ends the site's life when a machine, or all of it, is lost.
func (s *site) watch() {
	guard := func(lost <-chan struct{}, excused func() bool, what func() string) {
		s.spawn(&s.watchers, func() {
			select {
			case <-s.alive.Done():
			case <-lost:
				if !excused() {
					s.fail(&failure{code: codeLease, message: what()})
				}
			}
		})
	}
	for _, m := range s.machines {
		guard(m.Lost(), func() bool { return m.crashed.Load() != nil }, func() string { return lostText(m) })
	}
	guard(s.env.Lost(), s.allCrashed, func() string { return "the environment was lost: what holds it up has died" })
}

func lostText(m *machine) string {
	if why := m.Why(); why != "" {
		return fmt.Sprintf("the machine %s was lost: %s", m.Name(), why)
	}
	return fmt.Sprintf("the machine %s was lost: it ended, and no fault of the recipe did that", m.Name())
}

func (s *site) allCrashed() bool {
	for _, m := range s.machines {
		if m.crashed.Load() == nil {
			return false
		}
	}
	return true
}

// canaries tries the seal from inside every machine.
func (s *site) canaries(ctx context.Context) *failure {
	tctx, cancel := within(ctx, canaryLimit)
	defer cancel()
	start := time.Now()
	tried, err := s.env.Canaries(tctx)
	if err != nil {
		return during(ctx, err, sandbox.CodeLeak, "trying the seal")
	}
	seen := map[string]bool{}
	var leak *failure
	for _, c := range tried {
		seen[c.Machine] = true
		s.voice.emit(event.Event{Event: event.CanaryTried, Machine: c.Machine, Held: pointer(c.Held), Probe: c.Probe})
		if !c.Held && leak == nil {
			leak = &failure{code: codeLeak, machine: c.Machine, since: start,
				message: fmt.Sprintf("the seal leaks: on %s, %s was not held: %s", c.Machine, c.Probe, c.Detail)}
		}
	}
	if leak != nil {
		return leak
	}
	for _, m := range s.plan.Machines { // in order
		if !seen[m.Name] && !s.machines[m.Name].lost() {
			return &failure{code: codeLeak, machine: m.Name, since: start, message: fmt.Sprintf("the seal of %s was not tried, and what was not seen to hold proves nothing", m.Name)}
		}
	}
	return nil
}

// release destroys the environment; also when bj is interrupted.
func (s *site) release() {
	if s.env == nil {
		return
	}
	start := time.Now()
	ctx, cancel := within(context.WithoutCancel(s.life), releaseLimit)
	defer cancel()
	if err := s.env.Release(ctx); err != nil {
		s.voice.emit(event.Event{Event: event.Note, Text: fmt.Sprintf("the environment %s could not be removed: %v; the next bj tries again", s.env.Name(), err)})
		return
	}
	s.voice.emit(event.Event{Event: event.Released, Seconds: seconds(start)})
}

// environ is what a step or validation sees: secrets, captures, and its own.
func (s *site) environ(own map[string]string) map[string]string {
	env := maps.Clone(s.plan.Secrets)
	if env == nil {
		env = map[string]string{}
	}
	if s.policy.Authority != nil {
		for _, name := range trustVariables {
			env[name] = trustBundle
		}
	}
	maps.Copy(env, s.captures)
	maps.Copy(env, own)
	return env
}

// expr returns the expression of an expect; nil if nothing is expected.
func (s *site) expr(text string) *regexp.Regexp {
	if text == "" {
		return nil
	}
	return s.plan.exprs[text]
}

// shower shows what a command prints as events.
func (s *site) shower(title, machine string) func(sandbox.Stream, string) {
	return func(stream sandbox.Stream, text string) {
		s.voice.emit(event.Event{Event: event.OutputWritten, Machine: machine, Step: title, Stream: string(stream), Text: text})
	}
}

// exec runs one command to its end. If ctx ends before, the command is killed.
// An error means that its end is not known.
func (s *site) exec(ctx context.Context, m *machine, c sandbox.Command, out *output) (sandbox.Exit, error) {
	defer out.finish()
	p, err := m.Start(ctx, c, out.write)
	if err != nil {
		return sandbox.Exit{}, err
	}
	exit, err := p.Wait(ctx)
	if err != nil && !m.lost() {
		kctx, cancel := within(context.WithoutCancel(ctx), killLimit)
		defer cancel()
		if kerr := p.Kill(kctx); kerr != nil && !m.lost() && ctx.Err() != nil {
			return exit, fmt.Errorf("killing a command: %w", kerr)
		}
	}
	return exit, err
}

// gone is what happened to a command on m whose end is not known.
func (s *site) gone(ctx context.Context, m *machine, title string, err error) *failure {
	if f := stopped(ctx); f != nil {
		return f
	}
	if by := m.crashed.Load(); by != nil {
		return &failure{kind: kindStep, title: title, machine: m.Name(),
			message: fmt.Sprintf("%q cannot run on %s: the fault %q crashed it", title, m.Name(), *by)}
	}
	if errors.Is(err, sandbox.ErrCommand) {
		return &failure{kind: kindStep, title: title, machine: m.Name(),
			message: fmt.Sprintf("step %q failed on %s: %v", title, m.Name(), err)}
	}
	select { // which of the two is known first is chance
	case <-m.Lost():
		return &failure{code: codeLease, machine: m.Name(), message: lostText(m)}
	case <-ctx.Done():
		return stopped(ctx)
	case <-time.After(lostPause):
	}
	f := asFailure(err, sandbox.CodeLease)
	f.machine = m.Name()
	f.message = fmt.Sprintf("running %q on %s: %s", title, m.Name(), f.message)
	return f
}

// exitText says how a command ended, for people.
func exitText(e sandbox.Exit, memory int64) string {
	switch {
	case e.OOM:
		return fmt.Sprintf("was killed: the machine's memory (%d MiB) was used up", memory>>20)
	case e.Signal != "":
		return "was ended by " + e.Signal
	}
	return fmt.Sprintf("ended with exit code %d", e.Code)
}

// memory returns the memory of a machine, in bytes.
func (s *site) memory(name string) int64 {
	for _, m := range s.plan.Machines {
		if m.Name == name {
			return m.Memory
		}
	}
	return 0
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// scriptFor returns the script of the i-th machine.
func scriptFor(scripts []fleet.Script, i int) string { return scripts[i].Text }
