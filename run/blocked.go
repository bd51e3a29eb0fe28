package run

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"bj/run/event"
	"bj/sandbox"
)

// attempt is what makes two blocked flows the same for people.
type attemptKey struct {
	machine, protocol string
	to                netip.AddrPort
	name, unit, exe   string
	pid               int
}

func keyOf(f sandbox.Flow) attemptKey {
	k := attemptKey{machine: f.Machine, protocol: f.Protocol, to: f.Destination, name: f.Name}
	if o := f.Origin; o != nil {
		k.unit, k.exe, k.pid = o.Unit, o.Exe, o.PID
	}
	return k
}

// blockedLog knows which blocked attempts were told already, so that each
// event counts what is new.
type blockedLog struct {
	mu   sync.Mutex
	told map[attemptKey]int64
}

// fresh returns what flows has beyond what was told, in the same order, and
// remembers it. With unseenOnly it leaves out attempts of which some were told.
func (l *blockedLog) fresh(flows []sandbox.Flow, unseenOnly bool) []sandbox.Flow {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.told == nil {
		l.told = map[attemptKey]int64{}
	}
	var order []attemptKey
	sum := map[attemptKey]sandbox.Flow{}
	for _, f := range flows {
		k := keyOf(f)
		if g, ok := sum[k]; ok {
			f.Count += g.Count
		} else {
			order = append(order, k)
		}
		sum[k] = f
	}
	var out []sandbox.Flow
	for _, k := range order {
		f := sum[k]
		told, seen := l.told[k]
		if f.Count <= told || (seen && unseenOnly) {
			continue
		}
		l.told[k] = f.Count
		f.Count -= told
		out = append(out, f)
	}
	return out
}

// blame says whom to blame for an attempt, and whether the line that would allow
// it would close a cycle.
func (s *site) blame(f sandbox.Flow) event.Blocked {
	b := blame(s.plan.fleet, f)
	if b.Service == nil || s.plan.recovery == nil {
		return b
	}
	if g := s.plan.recovery(); g != nil {
		b.ClosesCycle = g.Closes(s.plan.Label(), *b.Service, b.Pathway)
	}
	return b
}

// tellBlocked emits what was blocked since it was last asked.
func (s *site) tellBlocked(ctx context.Context, title string, unseenOnly bool) []sandbox.Flow {
	tctx, cancel := within(ctx, askLimit)
	defer cancel()
	flows, err := s.env.Blocked(tctx)
	if err != nil {
		return nil // what is missing now is told at the end, or its error is
	}
	for _, f := range s.blocked.fresh(flows, unseenOnly) {
		b := s.blame(f)
		s.voice.emit(event.Event{Event: event.BlockedSeen, Machine: f.Machine, Step: title, Blocked: &b})
	}
	return flows
}

// pollBlocked tells new blocked attempts while an action runs; it returns what
// ends it.
func (s *site) pollBlocked(ctx context.Context, title string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	s.spawn(&done, func() {
		for {
			sleep(ctx, blockedEvery)
			if ctx.Err() != nil {
				return
			}
			s.tellBlocked(ctx, title, true)
		}
	})
	return func() { cancel(); done.Wait() }
}

// blockedSince returns whom to blame for the attempts since a moment: each
// destination once, those of the machine first, in order of first sight.
func (s *site) blockedSince(flows []sandbox.Flow, since time.Time, machine string) []event.Blocked {
	flows = slices.Clone(flows)
	flows = slices.DeleteFunc(flows, func(f sandbox.Flow) bool { return f.Last.Before(since) })
	slices.SortStableFunc(flows, func(a, b sandbox.Flow) int {
		return -cmp.Compare(bit(a.Machine == machine), bit(b.Machine == machine))
	})
	index := map[attemptKey]int{}
	var out []event.Blocked
	for _, f := range flows {
		k := keyOf(f)
		k.machine = ""
		if i, ok := index[k]; ok {
			out[i].Count += f.Count
			continue
		}
		index[k] = len(out)
		out = append(out, s.blame(f))
	}
	return out
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// tellUsed emits how often each condition was used; also those never touched.
func (s *site) tellUsed(ctx context.Context) {
	tctx, cancel := within(ctx, askLimit)
	defer cancel()
	used, err := s.env.Used(tctx)
	if err != nil {
		s.voice.emit(event.Event{Event: event.Note, Text: "how often the conditions were used is not known: " + err.Error()})
		return
	}
	for i, c := range s.plan.Recipe.Conditions {
		u := event.Used{Allow: c.Text, File: c.Pos.File, Line: c.Pos.Line}
		for _, x := range used {
			if x.Condition == i {
				u.Count, u.Bytes = u.Count+x.Count, u.Bytes+x.Bytes
			}
		}
		s.voice.emit(event.Event{Event: event.UsedCounted, Used: &u})
	}
}
