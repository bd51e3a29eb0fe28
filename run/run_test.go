package run

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bj/fleet"
	"bj/run/event"
	"bj/sandbox"
)

func TestRecovers(t *testing.T) {
	trial(t, func(l *lab) {
		v := l.want(recipe(), "recovered")
		if v.Root != "fake root" || len(v.Free) != 1 {
			t.Errorf("verdict: %+v", v)
		}
		var names []string
		for _, e := range l.events {
			names = append(names, e.Event)
		}
		want := strings.Join([]string{
			event.Start, event.Lease, event.Sealed, event.CanaryTried, event.ValidationStarted, event.ValidationFinished,
			event.StepStarted, event.StepFinished, event.ValidationStarted, event.ValidationFinished, event.CanaryTried,
			event.Released, event.VerdictGiven, event.End,
		}, " ")
		if got := strings.Join(names, " "); got != want {
			t.Errorf("events: %s\nwant    %s", got, want)
		}
	})
}

func TestLeak(t *testing.T) {
	trial(t, func(l *lab) { // before the first step
		l.provider.leaky = func(*fakeEnv, int) bool { return true }
		l.want(recipe(), "error leak", "the seal leaks: on m, tcp 192.0.2.1:443 was not held: it answered")
		if len(l.of(event.StepStarted)) > 0 {
			t.Error("a step was done all the same")
		}
	})
	trial(t, func(l *lab) { // after the last
		l.provider.leaky = func(_ *fakeEnv, call int) bool { return call == 2 }
		l.want(recipe(), "error leak")
	})
	trial(t, func(l *lab) { // it overrides what the recipe did
		l.provider.leaky = func(_ *fakeEnv, call int) bool { return call == 2 }
		l.want(with(func(_ *fleet.Recipe, s *fleet.Step) { script(s, "exit 1") }), "error leak")
	})
}

func TestLeaseFails(t *testing.T) {
	trial(t, func(l *lab) {
		l.provider.leaseErr = func(string) error {
			return &sandbox.Error{Code: sandbox.CodeLimits, Err: errors.New("no cgroups"), Hint: "run it as root"}
		}
		v := l.want(recipe(), "error limits", "leasing machines: no cgroups")
		if v.Hint != "run it as root" || l.outcome.Exit() != 3 {
			t.Errorf("%+v, exit %d", v, l.outcome.Exit())
		}
	})
	trial(t, func(l *lab) {
		l.provider.leaseErr = func(string) error { return errors.New("boom") }
		l.want(recipe(), "error lease", "leasing machines: boom")
	})
}

func TestEnvironmentLost(t *testing.T) {
	trial(t, func(l *lab) {
		l.provider.onLease = func(e *fakeEnv) {
			if e.name == "bj-0" {
				time.AfterFunc(time.Minute, func() { e.machines[0].end() })
			}
		}
		l.want(with(func(_ *fleet.Recipe, s *fleet.Step) { script(s, "sleep 4m") }), "error lease", "m was lost")
	})
}

func TestPanicIsOneRecipesError(t *testing.T) {
	trial(t, func(l *lab) {
		l.provider.leaseErr = func(owner string) error {
			if owner == "//p:bad" {
				panic("boom")
			}
			return nil
		}
		bad := recipe()
		bad.Label = "//p:bad"
		vs := l.run(bad, recipe())
		l.check(vs[0], "error", "internal error: boom")
		l.check(vs[1], "recovered")
	})
}

func TestPanicInAGoroutine(t *testing.T) {
	for name, change := range map[string]func(r *fleet.Recipe){
		"step":       func(r *fleet.Recipe) { script(r.Strategy[0].Step, "panic") },
		"daemon":     func(r *fleet.Recipe) { r.Strategy[0].Step = daemonStep(r, "go", "panic") },
		"validation": func(r *fleet.Recipe) { r.Validation[0].Run[0].Text = "panic" },
	} {
		t.Run(name, func(t *testing.T) {
			trial(t, func(l *lab) {
				r := recipe()
				change(r)
				other := recipe()
				other.Label = "//p:s"
				vs := l.run(r, other)
				l.check(vs[0], "error", "internal error: boom")
				l.check(vs[1], "recovered")
				if n := l.of(event.Note); len(n) == 0 || !strings.Contains(n[0].Text, "goroutine") {
					t.Errorf("nobody says where: %+v", n)
				}
			})
		})
	}
}

func TestInterrupted(t *testing.T) {
	trial(t, func(l *lab) {
		ctx, cancel := context.WithCancel(l.ctx)
		l.ctx = ctx
		time.AfterFunc(30*time.Second, cancel)
		slow := with(func(_ *fleet.Recipe, s *fleet.Step) { script(s, "touch ready\nsleep 4m") })
		late := recipe()
		late.Label = "//p:s"
		l.options.Jobs = 1
		start := time.Now()
		vs := l.run(slow, late)
		l.check(vs[0], "error interrupted")
		l.check(vs[1], "error interrupted", "before it began")
		if l.outcome.Exit() != 130 || time.Since(start) > time.Minute {
			t.Errorf("exit %d after %s", l.outcome.Exit(), time.Since(start))
		}
		if len(l.provider.leases) != 2 { // one, and its empty one
			t.Errorf("%d leases", len(l.provider.leases))
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	trial(t, func(l *lab) {
		var rs []*fleet.Recipe
		for i := range 8 {
			r := with(func(_ *fleet.Recipe, s *fleet.Step) { script(s, "sleep 60s\ntouch ready") })
			r.Label = fmt.Sprintf("//p:r%d", 7-i)
			if i == 3 {
				r.Strategy[0].Step.Run[0].Text = "exit 1"
			}
			rs = append(rs, r)
		}
		start := time.Now()
		l.run(rs...)
		if took := time.Since(start); took > 3*time.Minute { // 8 minutes, 4 at once
			t.Errorf("took %s", took)
		}
		for i, x := range l.outcome.Results {
			if x.Plan.Label() != rs[i].Label || (x.Verdict.Verdict == event.Recovered) == (i == 3) {
				t.Errorf("result %d: %s %s", i, x.Plan.Label(), x.Verdict.Verdict)
			}
		}
		if l.outcome.Totals != (event.Totals{Recovered: 7, NotRecovered: 1}) || l.outcome.Exit() != 1 {
			t.Errorf("%+v", l.outcome)
		}
	})
}

func TestRepeat(t *testing.T) {
	trial(t, func(l *lab) {
		l.options.Repeat = 3
		l.run(recipe())
		if l.outcome.Totals.Recovered != 3 {
			t.Errorf("%+v", l.outcome.Totals)
		}
		open := 0 // no run begins before the last has ended
		for _, e := range l.events {
			switch e.Event {
			case event.Lease:
				open++
			case event.VerdictGiven:
				open--
			}
			if open > 1 {
				t.Fatal("two runs of a recipe at once")
			}
		}
	})
}

func TestKeep(t *testing.T) {
	failing := func() *fleet.Recipe {
		return with(func(_ *fleet.Recipe, s *fleet.Step) { script(s, "exit 1") })
	}
	trial(t, func(l *lab) { // until the deadline; the next recipe does not wait
		l.options.Keep, l.options.Jobs = time.Hour, 1
		next := recipe()
		next.Label = "//p:s"
		start := time.Now()
		vs := l.run(failing(), next)
		l.check(vs[0], "not recovered step go m")
		l.check(vs[1], "recovered")
		if took := time.Since(start); took < time.Hour || took > 61*time.Minute {
			t.Errorf("kept for %s", took)
		}
		if x := l.outcome.Results[1]; x.Start.Sub(start) > time.Minute {
			t.Errorf("the next recipe waited until %s", x.Start.Sub(start))
		}
		if notes := l.of(event.Note); len(notes) != 1 || !strings.Contains(notes[0].Text, "bj-0 of //p:r is kept until") {
			t.Errorf("%+v", notes)
		}
	})
	trial(t, func(l *lab) { // Ctrl-C removes it, and changes no verdict
		l.options.Keep = time.Hour
		ctx, cancel := context.WithCancel(l.ctx)
		l.ctx = ctx
		time.AfterFunc(10*time.Minute, cancel)
		start := time.Now()
		l.want(failing(), "not recovered step go m")
		if took := time.Since(start); took > 11*time.Minute || l.outcome.Exit() != 1 {
			t.Errorf("kept for %s, exit %d", took, l.outcome.Exit())
		}
	})
}

func TestUsed(t *testing.T) {
	trial(t, func(l *lab) {
		l.fleet.Services = append([]*fleet.Service{service("names", "default", "tcp://10.0.0.1:53"), service("pkgs", "default", "tcp://10.0.0.2:443")}, l.fleet.Services...)
		r := with(func(r *fleet.Recipe, s *fleet.Step) {
			r.Conditions = []fleet.Condition{allow("names", "default"), allow("pkgs", "default")}
			script(s, "connect 10.0.0.2:443\ntouch ready")
		})
		var asked atomic.Int64
		l.options.Dial = func(context.Context, string, netip.AddrPort) (net.Conn, error) {
			asked.Add(1)
			a, _ := net.Pipe()
			return a, nil
		}
		l.options.Jobs = 1
		l.want(r, "recovered")
		used := l.of(event.UsedCounted)
		if len(used) != 2 || used[0].Used.Count != 0 || used[1].Used.Count != 1 || used[1].Used.Allow != `allow("pkgs")` || used[1].Used.Bytes != 10 {
			t.Errorf("%+v", used)
		}
		if n := l.of(event.Note); len(n) != 1 || n[0].Text != "production is contacted: tcp://10.0.0.1:53, tcp://10.0.0.2:443" || l.events[1].Event != event.Note {
			t.Errorf("%+v", n)
		}
		if n := asked.Load(); n != 3 { // two are tried, one is used
			t.Errorf("dialled %d times", n)
		}
	})
}

func allow(service string, pathways ...string) fleet.Condition {
	return fleet.Condition{Service: service, Pathways: pathways, Text: fmt.Sprintf("allow(%q)", service), Effort: 1}
}

func TestConditionNotMet(t *testing.T) {
	for name, c := range map[string]struct {
		dial func(ctx context.Context) error
		want string
	}{
		"refused": {func(context.Context) error { return errors.New("connection refused") }, "tcp://10.0.0.1:53 does not answer: connection refused"},
		"silent":  {func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, "tcp://10.0.0.1:53 does not answer: silent for 5s"},
	} {
		t.Run(name, func(t *testing.T) {
			trial(t, func(l *lab) {
				l.fleet.Services = append([]*fleet.Service{service("names", "default", "tcp://10.0.0.1:53", "more", "udp://10.0.0.1:53")}, l.fleet.Services...)
				l.options.Dial = func(ctx context.Context, _ string, _ netip.AddrPort) (net.Conn, error) { return nil, c.dial(ctx) }
				r := recipe()
				r.Conditions = []fleet.Condition{allow("names", "default", "more")}
				l.want(r, "error condition", c.want)
				if len(l.provider.leases) > 0 {
					t.Error("machines were leased all the same")
				}
				if n := l.of(event.Note)[0].Text; !strings.HasSuffix(n, "(not tried before the run: udp://10.0.0.1:53)") {
					t.Errorf("note: %s", n)
				}
			})
		})
	}
}

// Whether the host lets bj ping is known before the first step, not when nobody
// answers.
func TestNoPingSockets(t *testing.T) {
	trial(t, func(l *lab) {
		l.fleet.Services = append([]*fleet.Service{service("ping", "default", "icmp://10.0.0.1")}, l.fleet.Services...)
		l.options.Dial = func(_ context.Context, network string, _ netip.AddrPort) (net.Conn, error) {
			return nil, fmt.Errorf("opening a %s socket: %w", network, syscall.EACCES)
		}
		r := recipe()
		r.Conditions = []fleet.Condition{allow("ping", "default")}
		l.want(r, "error limits", `this host cannot carry what the condition allow("ping") (`)
		if len(l.provider.leases) > 0 {
			t.Error("machines were leased all the same")
		}
	})
}

// fakeStager makes a file for each tool, and fails for the tool "bad".
type fakeStager struct{ calls atomic.Int64 }

func (s *fakeStager) Stage(_ context.Context, tools []sandbox.Tool, _ *sandbox.Image, progress func(string)) ([]sandbox.File, error) {
	s.calls.Add(1)
	var fs []sandbox.File
	for _, t := range tools {
		if t.Name == "bad" {
			return nil, errors.New("tool bad: no such module")
		}
		progress("building " + t.Name)
		fs = append(fs, sandbox.File{Path: "/usr/local/bin/" + t.Name, About: t.Name + ": built", Digest: "0123"})
	}
	return fs, nil
}

func TestTools(t *testing.T) {
	trial(t, func(l *lab) {
		stager := &fakeStager{}
		l.options.Stager = stager
		a, b, bad := recipe(), recipe(), recipe()
		a.Tools, b.Tools, bad.Tools = []fleet.Tool{{Name: "etcd", Go: "x@v1"}}, []fleet.Tool{{Name: "etcd", Go: "x@v1"}}, []fleet.Tool{{Name: "bad", Go: "x"}}
		b.Label, bad.Label = "//p:s", "//p:t"
		l.plan.Tools = map[string]string{"unrelated": "/x"}
		vs := l.run(a, b, bad)
		l.check(vs[0], "recovered")
		l.check(vs[1], "recovered")
		l.check(vs[2], "error", "making tools: tool bad: no such module")
		if n := stager.calls.Load(); n != 2 {
			t.Errorf("staged %d times", n)
		}
		if f := l.provider.leases[0].spec.Machines[0].Files; len(f) != 1 || f[0].Path != "/usr/local/bin/etcd" {
			t.Errorf("files: %+v", f)
		}
		if vs[0].Free[0] != "tool etcd: built, sha256 0123" {
			t.Errorf("free: %v", vs[0].Free)
		}
		if l.events[1].Event != event.Build {
			t.Errorf("first event: %+v", l.events[1])
		}
	})
	trial(t, func(l *lab) {
		r := recipe()
		r.Tools = []fleet.Tool{{Name: "etcd", Go: "x@v1"}}
		l.want(r, "error", "nothing here can make them")
	})
}

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		totals      event.Totals
		interrupted bool
		want        int
	}{
		{event.Totals{}, false, 0},
		{event.Totals{Recovered: 3}, false, 0},
		{event.Totals{Recovered: 3, Errors: 1}, false, 3},
		{event.Totals{NotRecovered: 1, Errors: 1}, false, 1},
		{event.Totals{NotRecovered: 1, Errors: 1}, true, 130},
	} {
		if got := ExitCode(c.totals, c.interrupted); got != c.want {
			t.Errorf("%+v: %d, want %d", c.totals, got, c.want)
		}
	}
}

func TestDefaultJobs(t *testing.T) {
	plan := func(mib int64, suppliers ...*Plan) *Plan {
		return &Plan{Machines: []sandbox.MachineSpec{{Memory: mib << 20}}, Suppliers: suppliers}
	}
	for _, c := range []struct {
		plans []*Plan
		cores int
		mib   int64
		want  int
	}{
		{nil, 4, 1000, 4},
		{[]*Plan{plan(100)}, 4, 1000, 4},
		{[]*Plan{plan(100), plan(400)}, 4, 1000, 2},
		{[]*Plan{plan(100, plan(400))}, 4, 1000, 2},
		{[]*Plan{plan(4000)}, 4, 1000, 1},
		{[]*Plan{plan(4000)}, 4, 0, 4},
	} {
		if got := DefaultJobs(c.plans, c.cores, c.mib<<20); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
