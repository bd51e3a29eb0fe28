package run

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bj/fleet"
	"bj/run/event"
	"bj/sandbox"
)

// fakeProvider leases machines that exist in memory alone. Their scripts are
// lines of a small language: see fakeProc.do.
type fakeProvider struct {
	mu       sync.Mutex
	leases   []*fakeEnv
	leaseErr func(owner string) error
	leaky    func(e *fakeEnv, call int) bool // whether the canaries of that call fail
	onLease  func(e *fakeEnv)
}

func (p *fakeProvider) Name() string                           { return "fake" }
func (p *fakeProvider) Check(context.Context) error            { return nil }
func (p *fakeProvider) Ready(context.Context) error            { return nil }
func (p *fakeProvider) Reap(context.Context) ([]string, error) { return nil, nil }

func (p *fakeProvider) Lease(ctx context.Context, spec sandbox.Spec) (sandbox.Environment, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leaseErr != nil {
		if err := p.leaseErr(spec.Owner); err != nil {
			return nil, err
		}
	}
	e := &fakeEnv{provider: p, name: fmt.Sprintf("bj-%d", len(p.leases)), spec: spec, lost: make(chan struct{})}
	for _, m := range spec.Machines {
		e.machines = append(e.machines, &fakeMachine{env: e, spec: m, files: map[string]string{}, lost: make(chan struct{})})
	}
	p.leases = append(p.leases, e)
	if p.onLease != nil {
		p.onLease(e)
	}
	return e, nil
}

// leaks returns the names of environments that were not released.
func (p *fakeProvider) held() (names []string) {
	for _, e := range p.leases {
		if e.released == 0 {
			names = append(names, e.name)
		}
	}
	return names
}

type fakeEnv struct {
	provider *fakeProvider
	name     string
	spec     sandbox.Spec
	machines []*fakeMachine
	lost     chan struct{}

	mu       sync.Mutex
	sealed   bool
	policy   sandbox.Policy
	canaries int
	flows    []sandbox.Flow
	used     map[int]int64
	released int
}

func (e *fakeEnv) Name() string   { return e.name }
func (e *fakeEnv) Root() string   { return "fake root" }
func (e *fakeEnv) Free() []string { return []string{"clock: the host's"} }
func (e *fakeEnv) Machines() []sandbox.Machine {
	var ms []sandbox.Machine
	for _, m := range e.machines {
		ms = append(ms, m)
	}
	return ms
}
func (e *fakeEnv) Seal(ctx context.Context, p sandbox.Policy) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sealed, e.policy = true, p
	return ctx.Err()
}
func (e *fakeEnv) Canaries(ctx context.Context) ([]sandbox.Canary, error) {
	e.mu.Lock()
	e.canaries++
	call := e.canaries
	e.mu.Unlock()
	if err := pause(ctx, 50*time.Millisecond); err != nil {
		return nil, err
	}
	leak := e.provider.leaky != nil && e.provider.leaky(e, call)
	var cs []sandbox.Canary
	for _, m := range e.machines {
		if !m.gone() {
			cs = append(cs, sandbox.Canary{Machine: m.spec.Name, Probe: "tcp 192.0.2.1:443", Held: !leak, Detail: "it answered"})
		}
	}
	return cs, nil
}
func (e *fakeEnv) Blocked(context.Context) ([]sandbox.Flow, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.flows), nil
}
func (e *fakeEnv) Used(context.Context) ([]sandbox.Use, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var us []sandbox.Use
	for _, c := range slices.Sorted(maps.Keys(e.used)) {
		us = append(us, sandbox.Use{Condition: c, Count: e.used[c], Bytes: 10 * e.used[c]})
	}
	return us, nil
}
func (e *fakeEnv) Rules(context.Context) (string, error) { return "table inet bj {}", nil }
func (e *fakeEnv) Dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	for _, m := range e.machines {
		if (m.spec.V4 == to.Addr() || m.spec.V6 == to.Addr()) && m.has("listening") {
			a, b := net.Pipe()
			b.Close()
			return a, nil
		}
	}
	return nil, errors.New("nobody listens there")
}
func (e *fakeEnv) Lost() <-chan struct{} { return e.lost }
func (e *fakeEnv) Release(ctx context.Context) error {
	e.mu.Lock()
	e.released++
	first := e.released == 1
	e.mu.Unlock()
	if first {
		for _, m := range e.machines {
			m.end()
		}
		close(e.lost)
	}
	return ctx.Err()
}

// connect is what a program inside does to reach something.
func (e *fakeEnv) connect(ctx context.Context, m *fakeMachine, to netip.AddrPort) error {
	for _, a := range e.policy.Allows {
		if a.Prefix.Contains(to.Addr()) && a.First <= to.Port() && to.Port() <= a.Last {
			e.mu.Lock()
			if e.used == nil {
				e.used = map[int]int64{}
			}
			e.used[a.Condition]++
			e.mu.Unlock()
			c, err := e.spec.Dial(ctx, a.Protocol, to)
			if err == nil {
				c.Close()
			}
			return err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	e.flows = append(e.flows, sandbox.Flow{Machine: m.spec.Name, Interface: "eth0", Protocol: "tcp", Destination: to, Count: 1, First: now, Last: now})
	return errors.New("silence")
}

type fakeMachine struct {
	env  *fakeEnv
	spec sandbox.MachineSpec
	lost chan struct{}

	mu    sync.Mutex
	files map[string]string
	procs []*fakeProc
	ended bool
}

func (m *fakeMachine) Name() string          { return m.spec.Name }
func (m *fakeMachine) Lost() <-chan struct{} { return m.lost }
func (m *fakeMachine) Why() string           { return "" }
func (m *fakeMachine) gone() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ended
}
func (m *fakeMachine) has(file string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.files[file]
	return ok
}
func (m *fakeMachine) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return
	}
	m.ended = true
	for _, p := range m.procs {
		p.kill()
	}
	close(m.lost)
}
func (m *fakeMachine) Crash(context.Context) error { m.end(); return nil }
func (m *fakeMachine) KillUnit(ctx context.Context, unit string) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, p := range m.procs {
		if p.cmd.Unit == unit && p.alive() {
			p.kill()
			n++
		}
	}
	return n, nil
}
func (m *fakeMachine) Start(ctx context.Context, c sandbox.Command, output func(sandbox.Stream, []byte)) (sandbox.Process, error) {
	if c.Script == "panic" {
		panic("boom")
	}
	if !m.env.sealed {
		panic("a command ran before the seal")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return nil, errors.New("the machine is gone")
	}
	p := &fakeProc{m: m, cmd: c, output: output, done: make(chan struct{})}
	p.ctx, p.kill = context.WithCancel(context.Background())
	m.procs = append(m.procs, p)
	go p.run()
	return p, nil
}

type fakeProc struct {
	m      *fakeMachine
	cmd    sandbox.Command
	output func(sandbox.Stream, []byte)
	ctx    context.Context
	kill   func()
	done   chan struct{}
	exit   sandbox.Exit
}

func (p *fakeProc) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}
func (p *fakeProc) Write(context.Context, []byte) error            { return nil }
func (p *fakeProc) CloseInput(context.Context) error               { return nil }
func (p *fakeProc) Resize(context.Context, sandbox.Terminal) error { return nil }
func (p *fakeProc) Done() <-chan struct{}                          { return p.done }
func (p *fakeProc) Kill(context.Context) error {
	p.kill()
	return nil
}
func (p *fakeProc) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
	if p.m.gone() {
		return sandbox.Exit{}, errors.New("the machine is lost")
	}
	return p.exit, nil
}
func (p *fakeProc) run() {
	defer close(p.done)
	for line := range strings.SplitSeq(p.cmd.Script, "\n") {
		exit, ended := p.do(strings.TrimSpace(line))
		if p.ctx.Err() != nil {
			p.exit = sandbox.Exit{Code: 137, Signal: "SIGKILL"}
			return
		}
		if ended || exit.Code != 0 {
			p.exit = exit
			return
		}
	}
}

// do runs one line, as sh -e would:
//
//	echo TEXT, err TEXT   print a line; $NAME alone is replaced by its value
//	raw QUOTED            print a Go string, one write for each argument
//	exit N                end
//	sleep D, forever      wait
//	touch F, rm F, test F a file of the machine; test fails without it
//	after D touch F       a file that appears later, by a child
//	count F N             fails until it was run N times on this machine
//	connect ADDR          to an address and port, through the seal
//	oom, unplug           what can go wrong
func (p *fakeProc) do(line string) (exit sandbox.Exit, ended bool) {
	fail := sandbox.Exit{Code: 1}
	word, rest, _ := strings.Cut(line, " ")
	m := p.m
	switch word {
	case "", "#":
	case "echo", "err":
		if name, ok := strings.CutPrefix(rest, "$"); ok {
			rest = p.cmd.Env[name]
		}
		s := sandbox.Stdout
		if word == "err" {
			s = sandbox.Stderr
		}
		p.output(s, []byte(rest+"\n"))
	case "raw":
		for rest = strings.TrimSpace(rest); rest != ""; rest = strings.TrimSpace(rest) {
			q, err := strconv.QuotedPrefix(rest)
			if err != nil {
				panic(err)
			}
			text, _ := strconv.Unquote(q)
			p.output(sandbox.Stdout, []byte(text))
			rest = rest[len(q):]
		}
	case "exit":
		n, _ := strconv.Atoi(rest)
		return sandbox.Exit{Code: n}, true
	case "sleep":
		d, err := time.ParseDuration(rest)
		if err != nil {
			panic(err)
		}
		_ = pause(p.ctx, d)
	case "forever":
		<-p.ctx.Done()
	case "touch":
		m.mu.Lock()
		m.files[rest] = ""
		m.mu.Unlock()
	case "rm":
		m.mu.Lock()
		delete(m.files, rest)
		m.mu.Unlock()
	case "test":
		if !m.has(rest) {
			return fail, true
		}
	case "after":
		wait, cmd, _ := strings.Cut(rest, " ")
		d, _ := time.ParseDuration(wait)
		go func() {
			select {
			case <-time.After(d):
				p.do(cmd)
			case <-m.lost:
			}
		}()
	case "count":
		file, n, _ := strings.Cut(rest, " ")
		want, _ := strconv.Atoi(n)
		m.mu.Lock()
		m.files[file] += "x"
		got := len(m.files[file])
		m.mu.Unlock()
		if got < want {
			return fail, true
		}
	case "connect":
		if err := m.env.connect(p.ctx, m, netip.MustParseAddrPort(rest)); err != nil {
			return fail, true
		}
	case "oom":
		return sandbox.Exit{Code: 137, Signal: "SIGKILL", OOM: true}, true
	case "unplug":
		go m.end()
		<-p.ctx.Done()
	default:
		p.output(sandbox.Stderr, []byte(word+": not found\n"))
		return sandbox.Exit{Code: 127}, true
	}
	return sandbox.Exit{}, false
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lab runs recipes of a fleet of its own on a fakeProvider.
type lab struct {
	t        *testing.T
	fleet    *fleet.Fleet
	provider *fakeProvider
	options  Options
	plan     PlanOptions
	ctx      context.Context
	events   []event.Event
	outcome  Outcome
}

// trial runs f in a bubble of fake time.
func trial(t *testing.T, f func(l *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &lab{t: t, provider: &fakeProvider{}, ctx: t.Context(),
			fleet: &fleet.Fleet{Services: []*fleet.Service{{Name: "svc", Pathways: []fleet.Pathway{{Name: "default"}}}}}}
		f(l)
	})
}

// recipe returns a recipe of one machine, with one step and a validation that
// holds after it.
func recipe() *fleet.Recipe {
	r := &fleet.Recipe{Label: "//p:r", Package: "p", Name: "r", Service: "svc", Restores: []string{"default"}, Within: 10 * time.Minute,
		Hardware: hardware("m", 1)}
	r.Strategy = []fleet.Action{{Step: step(r, "go", "touch ready")}}
	r.Validation = []*fleet.Validation{validation(r, "ready", "test ready")}
	return r
}

func hardware(name string, n int) []*fleet.Hardware {
	h := &fleet.Hardware{Name: name, CPUs: 1, Memory: 256 << 20}
	for i := range n {
		m := fleet.Machine{Name: name, Index: i, V4: netip.AddrFrom4([4]byte{198, 18, 0, byte(10 + i)}), V6: netip.MustParseAddr(fmt.Sprintf("fd62:6a::%x", 16+i))}
		if n > 1 {
			m.Name = fmt.Sprintf("%s-%d", name, i)
		}
		m.Address = m.V4
		h.Machines = append(h.Machines, m)
	}
	return []*fleet.Hardware{h}
}

func scripts(r *fleet.Recipe, text string) (on []string, run []fleet.Script) {
	for _, m := range r.Machines() {
		on = append(on, m.Name)
		run = append(run, fleet.Script{Machine: m.Name, Text: text})
	}
	return on, run
}

func step(r *fleet.Recipe, title, text string) *fleet.Step {
	s := &fleet.Step{Title: title, Within: 5 * time.Minute, Unit: title, User: "root"}
	s.On, s.Run = scripts(r, text)
	return s
}

func daemonStep(r *fleet.Recipe, title, text string) *fleet.Step {
	s := step(r, title, text)
	s.Daemon = true
	return s
}

func validation(r *fleet.Recipe, title, text string) *fleet.Validation {
	v := &fleet.Validation{Title: title, Within: 30 * time.Second, Every: time.Second}
	v.On, v.Run = scripts(r, text)
	v.AtLeast = len(v.On)
	return v
}

// run runs recipes and checks what must be true of every run.
func (l *lab) run(recipes ...*fleet.Recipe) []event.Verdict {
	l.t.Helper()
	for _, r := range recipes {
		if l.fleet.Recipe(r.Label) == nil {
			l.fleet.Recipes = append(l.fleet.Recipes, r)
			slices.SortFunc(l.fleet.Recipes, func(a, b *fleet.Recipe) int { return strings.Compare(a.Label, b.Label) })
		}
	}
	o := l.options
	o.Provider = l.provider
	if o.Jobs == 0 {
		o.Jobs = 4
	}
	var mu sync.Mutex
	o.Sink = func(e event.Event) {
		mu.Lock()
		defer mu.Unlock()
		line, err := event.Marshal(e)
		if err != nil {
			l.t.Errorf("encoding %+v: %v", e, err)
		}
		if os.Getenv("BJ_TEST_EVENTS") != "" {
			l.t.Log(string(line))
		}
		l.events = append(l.events, e)
		if l.options.Sink != nil {
			l.options.Sink(e)
		}
	}
	l.outcome = Run(l.ctx, NewPlans(l.fleet, recipes, l.plan), o)
	synctest.Wait()
	if held := l.provider.held(); len(held) > 0 {
		l.t.Errorf("environments were not released: %v", held)
	}
	if first, last := l.events[0], l.events[len(l.events)-1]; first.Event != event.Start || last.Event != event.End || *last.Exit != l.outcome.Exit() {
		l.t.Errorf("the stream begins with %+v and ends with %+v", first, last)
	}
	var vs []event.Verdict
	for _, x := range l.outcome.Results {
		vs = append(vs, x.Verdict)
	}
	return vs
}

// want runs one recipe and compares its verdict: "recovered", "not recovered
// KIND TITLE MACHINE", or "error CODE"; each of words must be in its reason.
func (l *lab) want(r *fleet.Recipe, verdict string, words ...string) event.Verdict {
	l.t.Helper()
	v := l.run(r)[0]
	l.check(v, verdict, words...)
	return v
}

func (l *lab) check(v event.Verdict, verdict string, words ...string) {
	l.t.Helper()
	got := v.Verdict
	if v.Failed != nil {
		got = strings.TrimSpace(strings.Join([]string{got, v.Failed.Kind, v.Failed.Title, v.Failed.Machine}, " "))
	}
	if v.Code != nil {
		got += " " + *v.Code
	}
	if got != verdict {
		l.t.Errorf("verdict is %q, want %q; reason:\n%s", got, verdict, v.Reason)
	}
	for _, w := range words {
		if !strings.Contains(v.Reason+"\n"+v.Hint, w) {
			l.t.Errorf("reason and hint lack %q:\n%s\n%s", w, v.Reason, v.Hint)
		}
	}
}

// of returns the events of that name.
func (l *lab) of(name string) (es []event.Event) {
	for _, e := range l.events {
		if e.Event == name {
			es = append(es, e)
		}
	}
	return es
}

// output returns all that was shown.
func (l *lab) output() string {
	var b strings.Builder
	for _, e := range l.of(event.OutputWritten) {
		b.WriteString(e.Text)
	}
	return b.String()
}
