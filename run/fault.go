package run

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"bj/fleet"
	"bj/run/event"
	"bj/sandbox"
)

// fault makes something go wrong on purpose, and waits until it is seen.
func (s *site) fault(ctx context.Context, ft *fleet.Fault) *failure {
	start := time.Now()
	if ft.Dark != "" {
		return s.darken(ctx, ft)
	}
	var all sync.WaitGroup
	failures := make([]*failure, len(ft.On))
	for i, name := range ft.On {
		s.spawn(&all, func() {
			m := s.machines[name]
			if ft.Crash {
				failures[i] = s.crash(ctx, ft, m)
			} else {
				failures[i] = s.kill(ctx, ft, m)
			}
			if failures[i] == nil {
				s.voice.emit(event.Event{Event: event.FaultDone, Machine: name, Step: ft.Title, Seconds: seconds(start)})
			}
		})
	}
	all.Wait()
	for _, f := range failures {
		if f != nil {
			return f
		}
	}
	return stopped(ctx)
}

// darken closes the conditions of a name for machines, from here on. What they
// had let through is cut; everything else stays as it was.
func (s *site) darken(ctx context.Context, ft *fleet.Fault) *failure {
	start := time.Now()
	p := s.policy
	p.Dark = slices.Clone(p.Dark)
	for i := range s.plan.Recipe.Conditions {
		c := &s.plan.Recipe.Conditions[i]
		open := func(name string) bool {
			return (len(c.On) == 0 || slices.Contains(c.On, name)) && !s.policy.IsDark(i, name) && !s.machines[name].lost()
		}
		if c.Name() == ft.Dark && slices.ContainsFunc(ft.On, open) {
			p.Dark = append(p.Dark, sandbox.Dark{Condition: i, Machines: slices.Clone(ft.On)})
		}
	}
	if len(p.Dark) == len(s.policy.Dark) {
		return &failure{title: ft.Title, message: fmt.Sprintf("the fault %q had nothing to close: %q is open on none of %s", ft.Title, ft.Dark, strings.Join(ft.On, ", "))}
	}
	limit, cancel := within(ctx, sealLimit)
	defer cancel()
	if err := s.env.Seal(limit, p); err != nil {
		return during(ctx, err, sandbox.CodeLease, fmt.Sprintf("closing %s", ft.Dark))
	}
	s.policy = p
	for _, name := range ft.On {
		s.voice.emit(event.Event{Event: event.FaultDone, Machine: name, Step: ft.Title, Seconds: seconds(start)})
	}
	return stopped(ctx)
}

// crash ends a machine, and waits until it is gone.
func (s *site) crash(ctx context.Context, ft *fleet.Fault, m *machine) *failure {
	if m.lost() {
		return &failure{title: ft.Title, machine: m.Name(), message: fmt.Sprintf("the fault %q had nothing to crash: %s is gone already", ft.Title, m.Name())}
	}
	m.crashed.Store(&ft.Title)
	limit, cancel := within(ctx, killLimit)
	defer cancel()
	if err := m.Crash(limit); err != nil {
		return during(ctx, err, sandbox.CodeLease, fmt.Sprintf("crashing %s", m.Name()))
	}
	select {
	case <-m.Lost():
		return nil
	case <-limit.Done():
		return during(ctx, fmt.Errorf("it still lives after %s", killLimit), sandbox.CodeLease, fmt.Sprintf("crashing %s", m.Name()))
	}
}

// kill ends every process of a unit on a machine, and waits until the daemons
// among them are seen to be dead.
func (s *site) kill(ctx context.Context, ft *fleet.Fault, m *machine) *failure {
	if m.lost() {
		return &failure{title: ft.Title, machine: m.Name(), message: fmt.Sprintf("the fault %q had nothing to kill: %s is gone", ft.Title, m.Name())}
	}
	victims := s.excuse(ft, m)
	limit, cancel := within(ctx, killLimit)
	defer cancel()
	n, err := m.KillUnit(limit, ft.Kill)
	if err != nil {
		return during(ctx, err, sandbox.CodeLease, fmt.Sprintf("killing %s on %s", ft.Kill, m.Name()))
	}
	if n == 0 {
		return &failure{title: ft.Title, machine: m.Name(), message: fmt.Sprintf("the fault %q had nothing to kill: no process of the unit %q runs on %s", ft.Title, ft.Kill, m.Name())}
	}
	for _, p := range victims {
		select {
		case <-p.Done():
		case <-limit.Done():
			return during(ctx, fmt.Errorf("a process of it still lives after %s", killLimit), sandbox.CodeLease, fmt.Sprintf("killing %s on %s", ft.Kill, m.Name()))
		}
	}
	return nil
}

// excuse lets the daemons of the unit on m die without failing the recipe, and
// returns their processes.
func (s *site) excuse(ft *fleet.Fault, m *machine) []sandbox.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	var victims []sandbox.Process
	for _, d := range s.daemons {
		if d.m != m || d.step.Unit != ft.Kill {
			continue
		}
		d.mu.Lock()
		if !d.ended {
			d.excused = ft.Title
			victims = append(victims, d.proc)
		}
		d.mu.Unlock()
	}
	return victims
}
