package run

import (
	"cmp"
	"context"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"bj/run/event"
	"bj/sandbox"
)

// attemptKey is what makes two blocked flows the same for people: programs that
// are started again and again are one.
type attemptKey struct {
	machine, protocol string
	to                netip.AddrPort
	name, path        string
	method            string
	unit, exe, argv   string
}

func keyOf(f sandbox.Flow) attemptKey {
	k := attemptKey{machine: f.Machine, unit: f.Unit, protocol: f.Protocol, to: f.Destination, name: f.Name, path: f.Path, method: f.Method}
	if o := f.Origin; o != nil {
		k.unit, k.exe, k.argv = o.Unit, o.Exe, strings.Join(o.Argv, "\x00")
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
	if b.Service == nil && s.within(f.Destination.Addr()) {
		if b.Wider = nil; !f.Idle && (f.Protocol == "tcp" || f.Protocol == "udp") {
			b.Wider = []string{listensLine(s.plan.Recipe.Service, f)}
		}
	}
	s.plan.widen(&b, f)
	if b.Service == nil || s.plan.recovery == nil {
		return b
	}
	if g := s.plan.recovery(); g != nil {
		b.ClosesCycle = g.Closes(s.plan.Label(), *b.Service, b.Pathway)
	}
	return b
}

// within reports whether an address is one of the recipe's own machines.
func (s *site) within(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsLoopback() || slices.ContainsFunc(s.plan.Machines, func(m sandbox.MachineSpec) bool { return m.V4 == a || m.V6 == a })
}

// attempts asks for all blocked attempts so far.
func (s *site) attempts(ctx context.Context) ([]sandbox.Flow, error) {
	tctx, cancel := within(ctx, askLimit)
	defer cancel()
	flows, err := s.env.Blocked(tctx)
	return slices.DeleteFunc(flows, func(f sandbox.Flow) bool { return !s.missing(f) }), err
}

// missing reports whether an attempt is one that a seal has to do with. On a
// Unix socket that is not there it is if some service of others declares it, or
// if it is there on the host. Anything else, such as a cache that the C library
// asks in case there is one, would be absent without a seal as well.
func (s *site) missing(f sandbox.Flow) bool {
	if f.Protocol != "unix" {
		return true
	}
	e, ok := wanted(f)
	if !ok {
		return false
	}
	if by := owners(s.plan.fleet, e); len(by) > 0 {
		return !slices.ContainsFunc(by, func(p pathway) bool { return p.service == s.plan.Recipe.Service })
	}
	info, err := os.Stat(e.Path)
	return err == nil && info.Mode().Type() == fs.ModeSocket
}

// tellAllBlocked emits, in the end, what was blocked and not yet told, and
// returns all of it; nil if it is not known.
func (s *site) tellAllBlocked(ctx context.Context) []sandbox.Flow {
	flows, err := s.tellBlocked(ctx, "", false)
	if err != nil {
		s.voice.emit(event.Event{Event: event.Note, Text: "what was blocked is not known: " + err.Error()})
	}
	return flows
}

// tellBlocked emits what was blocked since it was last asked. What is missing
// because of an error is told when it is asked again.
func (s *site) tellBlocked(ctx context.Context, title string, unseenOnly bool) ([]sandbox.Flow, error) {
	flows, err := s.attempts(ctx)
	if err != nil {
		return nil, err
	}
	for _, f := range s.blocked.fresh(flows, unseenOnly) {
		b := s.blame(f)
		s.voice.emit(event.Event{Event: event.BlockedSeen, Machine: f.Machine, Step: title, Blocked: &b})
	}
	return flows, nil
}

// tellMattered says of each attempt, once the verdict is known, whether it
// mattered: none did if the recipe recovered, and the likely cause of a failure
// did. Of the rest nobody can tell.
func (s *site) tellMattered(flows []sandbox.Flow, f *failure) {
	var cause event.Blocked
	if f != nil {
		i := -1
		all := slices.Concat(f.blocked, f.earlier)
		if f.kind != "" {
			i = slices.IndexFunc(all, func(b event.Blocked) bool { return b.Allow != "" })
		}
		if i < 0 {
			return
		}
		cause = all[i]
	}
	seen := map[attemptKey]bool{}
	for _, x := range flows {
		if k := keyOf(x); seen[k] {
			continue
		} else {
			seen[k] = true
		}
		b := s.blame(x)
		b.Count, b.Mattered = 0, pointer(false)
		if f != nil {
			if b.Allow != cause.Allow || b.Destination.Address != cause.Destination.Address || b.Destination.Port != cause.Destination.Port {
				continue
			}
			b.Mattered = pointer(true)
		}
		s.voice.emit(event.Event{Event: event.BlockedSeen, Machine: x.Machine, Blocked: &b})
	}
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

// suspects returns whom to blame for a failure: each destination and program
// once, the most likely first. What was tried before the failure began comes
// after all else: a daemon may have given up by then.
func (s *site) suspects(flows []sandbox.Flow, f *failure) (during, before []event.Blocked) {
	index := map[attemptKey]*event.Blocked{}
	for _, x := range s.likeliest(flows, f) {
		k := keyOf(x)
		k.machine = ""
		if old := index[k]; old != nil {
			old.Count += x.Count
			continue
		}
		b := s.blame(x)
		list := &during
		if x.Last.Before(f.since) {
			list = &before
			if b.Allow == "" {
				continue
			}
		}
		// Room for all, so that what index points to stays where it is.
		*list = append(slices.Grow(*list, len(flows)), b)
		index[k] = &(*list)[len(*list)-1]
	}
	return during, before
}

// A suspicion is how likely an attempt has caused a failure. It is compared
// field by field, and more is likelier.
type suspicion struct {
	// near is what was tried since that began, if a condition can allow it and
	// somebody would have answered; by the command that failed, on its machine.
	near [5]int
	// late is what was still being tried when the last of those near began: a
	// program ends with what it could not have, and goes on after what it can do
	// without.
	late int
	// Of those that were tried at the same time: if the command ended by itself,
	// not of one that it left running; at a declared service; of a kind that waits
	// for an answer; begun last.
	among [3]int
	first time.Time
}

func (a *suspicion) compare(b *suspicion) int {
	return cmp.Or(slices.Compare(a.near[:], b.near[:]), cmp.Compare(a.late, b.late), slices.Compare(a.among[:], b.among[:]), a.first.Compare(b.first))
}

// likeliest sorts attempts by how likely they have caused f, the likeliest first.
func (s *site) likeliest(flows []sandbox.Flow, f *failure) []sandbox.Flow {
	type suspect struct {
		sandbox.Flow
		suspicion
	}
	all := make([]suspect, len(flows))
	last := map[[5]int]time.Time{} // when the last of those that are equally near began
	for i, x := range flows {
		want, ok := wanted(x)
		own := 0
		switch {
		case x.Origin == nil || f.unit == "":
			own = 1
		case x.Origin.Unit == f.unit:
			own = 2
		}
		waits := x.Protocol != "udp" && x.Protocol != "icmp" && x.Protocol != "icmpv6"
		all[i] = suspect{x, suspicion{
			near:  [5]int{bit(!x.Last.Before(f.since)), bit(ok), bit(!x.Idle), own, bit(x.Machine == f.machine)},
			among: [3]int{bit(!(x.Running && f.ended && own == 2)), bit(ok && len(owners(s.plan.fleet, want)) > 0), bit(waits)},
			first: x.First,
		}}
		if near := all[i].near; x.First.After(last[near]) {
			last[near] = x.First
		}
	}
	for i := range all {
		all[i].late = bit(!all[i].Last.Before(last[all[i].near]))
	}
	slices.SortStableFunc(all, func(a, b suspect) int { return b.compare(&a.suspicion) })
	sorted := make([]sandbox.Flow, len(all))
	for i, x := range all {
		sorted[i] = x.Flow
	}
	return sorted
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// tellUsed emits how often each condition was used, also those never touched,
// and returns it; nil if it is not known.
func (s *site) tellUsed(ctx context.Context) []int64 {
	tctx, cancel := within(ctx, askLimit)
	defer cancel()
	used, err := s.env.Used(tctx)
	if err != nil {
		s.voice.emit(event.Event{Event: event.Note, Text: "how often the conditions were used is not known: " + err.Error()})
		return nil
	}
	counts := make([]int64, 0, len(s.plan.Recipe.Conditions))
	for i, c := range s.plan.Recipe.Conditions {
		u := event.Used{Allow: c.Text, File: c.Pos.File, Line: c.Pos.Line}
		for _, x := range used {
			if x.Condition == i {
				u.Count, u.Bytes = u.Count+x.Count, u.Bytes+x.Bytes
			}
		}
		s.voice.emit(event.Event{Event: event.UsedCounted, Used: &u})
		counts = append(counts, u.Count)
	}
	return counts
}
