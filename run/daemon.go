package run

import (
	"context"
	"fmt"
	"sync"
	"time"

	"bj/fleet"
	"bj/run/event"
	"bj/sandbox"
)

// restartPause is how long the first restart of a daemon waits; each further
// one in a row waits twice as long, up to restartPauseMax.
const (
	restartPause    = 100 * time.Millisecond
	restartPauseMax = 5 * time.Second
)

// daemon is one command that keeps running on one machine.
type daemon struct {
	site  *site
	step  *fleet.Step
	m     *machine
	cmd   sandbox.Command
	out   *output
	start time.Time

	mu      sync.Mutex
	up      bool   // it was started: from here on its end fails the recipe
	ended   bool   // for good
	excused string // title of the fault that may end it
	proc    sandbox.Process
	early   *failure      // how it ended before it was up
	over    chan struct{} // closed when it has ended for good
}

// startDaemon starts a daemon on one machine, and returns when it is up: its
// output matched, or it has run for a moment.
func (s *site) startDaemon(ctx context.Context, st *fleet.Step, m *machine, script string) *failure {
	d := &daemon{site: s, step: st, m: m, start: time.Now(), over: make(chan struct{}),
		cmd: sandbox.Command{Script: script, Env: s.environ(st.Env), User: st.User, Unit: st.Unit}}
	s.voice.emit(event.Event{Event: event.StepStarted, Machine: m.Name(), Step: st.Title})
	d.out = newOutput(s.mask, outputOptions{show: s.shower(st.Title, m.Name()), expect: s.expr(st.Expect), waiting: true})
	p, err := m.Start(s.alive, d.cmd, d.out.write)
	if err != nil {
		d.out.finish()
		return s.gone(ctx, m, st.Title, err)
	}
	d.proc = p
	s.spawn(&s.watchers, func() { d.watch(p) })

	f := d.wait(ctx)
	finished := event.Event{Event: event.StepFinished, Machine: m.Name(), Step: st.Title, Seconds: seconds(d.start)}
	s.voice.emit(finished)
	if f != nil {
		return f
	}
	s.keep(d)
	return nil
}

// keep remembers a daemon that is up.
func (s *site) keep(d *daemon) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.daemons = append(s.daemons, d)
}

// wait returns when the daemon is up, or why it is not.
func (d *daemon) wait(ctx context.Context) *failure {
	limit, cancel := within(ctx, d.step.Within)
	defer cancel()
	settled := time.NewTimer(settleTime)
	defer settled.Stop()
	found, moment := d.out.found, settled.C
	if d.step.Expect == "" {
		found = nil
	} else {
		moment = nil
	}
	select {
	case <-found:
	case <-moment:
	case <-d.over:
	case <-limit.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.early != nil:
		return d.early
	case stopped(ctx) != nil:
		d.giveUp(ctx)
		return stopped(ctx)
	case limit.Err() != nil:
		d.giveUp(ctx)
		f := &failure{kind: kindStep, title: d.step.Title, machine: d.m.Name(), unit: d.step.Unit, script: d.cmd.Script, output: d.out.end(), since: d.start,
			message: fmt.Sprintf("step %q failed on %s: the daemon's output did not match %q within %s", d.step.Title, d.m.Name(), d.step.Expect, d.step.Within)}
		if f.output == "" {
			f.hint = "it runs and has printed nothing: many programs keep back what they print to a pipe (python3 needs -u); without expect, wait_for_port of @bj//stdlib:wait.star waits until it listens"
		}
		return f
	}
	d.up = true
	return nil
}

// giveUp kills a daemon that did not come up; d.mu is held.
func (d *daemon) giveUp(ctx context.Context) {
	d.ended = true
	kctx, cancel := within(context.WithoutCancel(ctx), killLimit)
	defer cancel()
	_ = d.proc.Kill(kctx) // at worst it ends with the environment
}

// watch waits for the daemon's end, starts it again if it is to be, and else
// fails the recipe.
func (d *daemon) watch(p sandbox.Process) {
	s := d.site
	defer close(d.over)
	defer d.out.finish()
	pause := restartPause
	for {
		began := time.Now()
		exit, err := p.Wait(s.alive)
		if s.alive.Err() != nil {
			return
		}
		if err != nil {
			d.vanished(err)
			return
		}
		again, excused := d.died(exit)
		if !again {
			return
		}
		if time.Since(began) > restartPauseMax {
			pause = restartPause
		}
		if !excused {
			s.voice.emit(event.Event{Event: event.Note, Machine: d.m.Name(), Step: d.step.Title,
				Text: fmt.Sprintf("the daemon %q %s on %s; it is started again", d.step.Title, exitText(exit, s.memory(d.m.Name())), d.m.Name())})
		}
		sleep(s.alive, pause)
		pause = min(2*pause, restartPauseMax)
		if s.alive.Err() != nil || d.m.lost() {
			return
		}
		if p, err = d.restart(); err != nil {
			d.vanished(err)
			return
		}
		if p == nil {
			return
		}
	}
}

// restart starts the daemon's command again; the process is nil if the daemon
// was given up.
func (d *daemon) restart() (sandbox.Process, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return nil, nil
	}
	p, err := d.m.Start(d.site.alive, d.cmd, d.out.write)
	if err == nil {
		d.proc = p
	}
	return p, err
}

// died judges the end of the daemon's process: whether it is to be started
// again, and whether a fault caused it.
func (d *daemon) died(exit sandbox.Exit) (again, excused bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return false, false
	}
	excused = d.excused != ""
	d.excused = ""
	if d.step.Restart {
		return true, excused
	}
	d.ended = true
	d.out.finish()
	if excused || d.m.crashed.Load() != nil {
		return false, true
	}
	f := &failure{kind: kindDaemon, title: d.step.Title, machine: d.m.Name(), unit: d.step.Unit, script: d.cmd.Script, output: d.out.end(), since: d.start, ended: true,
		message: fmt.Sprintf("the daemon %q %s on %s, %s after it was started; it must keep running",
			d.step.Title, exitText(exit, d.site.memory(d.m.Name())), d.m.Name(), time.Since(d.start).Round(time.Millisecond))}
	if exit.Code == 0 {
		f.hint = "keep the program in the foreground (exec program --foreground); a program that puts itself into the background has ended"
	}
	if d.up {
		d.site.fail(f)
	} else {
		d.early = f
	}
	return false, false
}

// vanished handles a daemon whose end is not known: its machine was lost, which
// its watcher tells.
func (d *daemon) vanished(err error) {
	d.mu.Lock()
	d.ended = true
	d.mu.Unlock()
	t := time.NewTimer(killLimit)
	defer t.Stop()
	select {
	case <-d.m.Lost():
	case <-d.site.alive.Done():
	case <-t.C:
		if d.m.crashed.Load() == nil {
			f := asFailure(err, sandbox.CodeLease)
			d.site.fail(&failure{code: f.code, machine: d.m.Name(), message: fmt.Sprintf("watching the daemon %q on %s: %s", d.step.Title, d.m.Name(), f.message)})
		}
	}
}

// lateDeath returns the failure of a daemon whose process has ended, or of a
// machine that is gone, though what watches it did not say so yet.
func (s *site) lateDeath() *failure {
	s.mu.Lock()
	daemons := s.daemons
	s.mu.Unlock()
	for _, d := range daemons {
		d.mu.Lock()
		p, settled := d.proc, d.ended || d.excused != "" || d.step.Restart
		d.mu.Unlock()
		if settled || d.m.lost() {
			continue
		}
		select {
		case <-p.Done():
			// its watcher is about to end the site's life
			t := time.NewTimer(killLimit)
			defer t.Stop()
			select {
			case <-s.life.Done():
			case <-d.over:
			case <-t.C:
			}
		default:
		}
	}
	for _, m := range s.machines {
		if m.lost() && m.crashed.Load() == nil && stopped(s.life) == nil {
			return &failure{code: codeLease, machine: m.Name(), message: lostText(m)}
		}
	}
	return stopped(s.life)
}
