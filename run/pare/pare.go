// Package pare finds a minimal set of conditions with which a recipe still
// recovers. It is pure: conditions are numbers, and running the recipe with
// some of them is an Oracle's.
//
// What one run tells is used before anything is searched: which conditions were
// touched at all, and, where the recipe failed, which absent one is blamed. A
// recipe that needs k of n conditions then takes some 2k+1 runs, whatever n is.
// Only where nobody can be blamed is the set halved, as in delta debugging.
//
// Whatever led there, the result stands on runs alone: the recipe recovered
// with exactly what is kept, and it failed without each of them while it had
// all the others.
package pare

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Outcome is what came of one run with some of the conditions.
type Outcome struct {
	Recovered bool `json:"recovered"`
	// Used are the conditions that were touched; nil if that is not known.
	Used []int `json:"used,omitempty"`
	// Suspects are absent conditions that the failure is blamed on, the most
	// likely first.
	Suspects []int `json:"suspects,omitempty"`
	// Failed says what failed, for people.
	Failed string `json:"failed,omitempty"`
}

// Oracle runs the recipe with the conditions in set, which is sorted. An error
// means that the run says nothing: the search ends with it.
type Oracle func(ctx context.Context, set []int) (Outcome, error)

// Options is how Minimize works; its zero value is the default.
type Options struct {
	// Repeat is how often a set must fail, without recovering once, before it
	// counts as failing; 0 means 1.
	Repeat int
	// Runs bounds how often the oracle is asked; 0 means no bound.
	Runs int
	// Progress is told before each run.
	Progress func(Progress)
}

// Progress says how far a search is.
type Progress struct {
	Runs  int // that were made
	Left  int // conditions of which it is not known whether they are needed
	Kept  int // in the smallest set that is known to recover
	Tried int // conditions in the set that is run now
}

// Result is what Minimize found.
type Result struct {
	Kept []Kept
	// Removed are all others, sorted. The recipe recovered without all of them.
	Removed []int
	Used    []int // in the run with all conditions; nil if that is not known
	Runs    int
}

// Kept is a condition that remains.
type Kept struct {
	Index  int
	Proven bool   // it was run without
	Failed string // what failed then
}

// Proven reports whether every condition that is kept was shown to be needed.
func (r *Result) Proven() bool {
	return !slices.ContainsFunc(r.Kept, func(k Kept) bool { return !k.Proven })
}

// FullError says that the recipe does not recover with all of its conditions.
type FullError struct{ Failed string }

func (e *FullError) Error() string { return "it does not recover as it stands: " + e.Failed }

// errRuns ends a search at its bound; its result is what is known by then.
var errRuns = errors.New("no run is left")

// removeAt is how few conditions are removed one by one at once, which proves
// each of them as well.
const removeAt = 4

// Minimize finds a minimal subset of the conditions 0 … n-1. When an error of
// the oracle ends the search after the first run, the result is what was known
// by then; it is nil if nothing was.
func Minimize(ctx context.Context, n int, run Oracle, o Options) (*Result, error) {
	s := &search{run: run, Options: o}
	for i := range n {
		s.upper = append(s.upper, i)
	}
	all, err := s.try(ctx, s.upper)
	if err != nil {
		return nil, err
	}
	if !all.Recovered {
		return nil, &FullError{all.Failed}
	}
	err = s.narrow(ctx, all)
	if err == nil {
		err = s.prove(ctx)
	}
	r := s.result(n, all.Used)
	if errors.Is(err, errRuns) {
		err = nil
	}
	return r, err
}

// search is the state of one Minimize.
type search struct {
	Options
	run   Oracle
	runs  int
	upper []int // the smallest set that has recovered
	lower []int // conditions that were blamed, or found by halving
	fails []failed
}

// failed is a set that did not recover.
type failed struct {
	set  []int
	what string
}

// try runs a set, as often as its failure must repeat.
func (s *search) try(ctx context.Context, set []int) (Outcome, error) {
	var out Outcome
	for i := range max(1, s.Repeat) {
		if s.Runs > 0 && s.runs >= s.Runs {
			return out, errRuns
		}
		if err := context.Cause(ctx); err != nil {
			return out, err
		}
		if s.Progress != nil {
			s.Progress(Progress{Runs: s.runs, Left: s.left(), Kept: len(s.upper), Tried: len(set)})
		}
		s.runs++
		o, err := s.run(ctx, slices.Clone(set))
		if err != nil {
			return out, err
		}
		if o.Recovered {
			s.upper = set
			return o, nil
		}
		// A flake blames nobody.
		if i == 0 || len(out.Suspects) == 0 {
			out = o
		}
	}
	s.fails = append(s.fails, failed{set, out.Failed})
	return out, nil
}

// left counts conditions that are neither removed nor shown to be needed.
func (s *search) left() int {
	n := 0
	for _, c := range s.upper {
		if _, ok := s.proof(c); !ok {
			n++
		}
	}
	return n
}

// narrow brings the upper set down by what runs say of themselves.
func (s *search) narrow(ctx context.Context, all Outcome) error {
	if all.Used != nil {
		used := intersect(all.Used, s.upper)
		if len(used) <= removeAt {
			if len(used) == len(s.upper) {
				return nil
			}
			o, err := s.try(ctx, used)
			if err != nil || o.Recovered {
				return err
			}
			s.lower = used
			return s.grow(ctx, o)
		}
		// Those that were not touched come last where the set is halved.
		s.upper = append(used, without(s.upper, used)...)
	} else if len(s.upper) <= removeAt {
		return nil
	}
	candidates := s.upper
	s.upper = sorted(candidates)
	o, err := s.try(ctx, nil)
	if err != nil || o.Recovered {
		return err
	}
	return s.growIn(ctx, candidates, o)
}

// grow adds to the lower set, which fails with o, until it recovers.
func (s *search) grow(ctx context.Context, o Outcome) error { return s.growIn(ctx, s.upper, o) }

// growIn is grow, with the order in which candidates are halved.
func (s *search) growIn(ctx context.Context, order []int, o Outcome) error {
	for {
		rest := without(intersectOrdered(order, s.upper), s.lower)
		if len(rest) == 0 {
			return nil
		}
		next := -1
		for _, c := range o.Suspects {
			if slices.Contains(rest, c) {
				next = c
				break
			}
		}
		if next < 0 {
			var err error
			if next, err = s.halve(ctx, rest); err != nil {
				return err
			}
		}
		s.lower = sorted(append(slices.Clone(s.lower), next))
		if len(s.lower) == len(s.upper) {
			return nil // it is the upper set, which recovers
		}
		if n := len(s.upper); n > 2*removeAt && 2*len(s.lower) > n {
			return nil // most are needed: removing one by one is no more runs
		}
		var err error
		if o, err = s.try(ctx, s.lower); err != nil || o.Recovered {
			return err
		}
	}
}

// halve returns one of rest that is needed beside the lower set, and leaves out
// of the upper set what comes after it.
func (s *search) halve(ctx context.Context, rest []int) (int, error) {
	low, high := 0, len(rest) // the lower set and rest[:low] fails; with rest[:high] it recovers
	for high-low > 1 {
		mid := (low + high) / 2
		o, err := s.try(ctx, sorted(append(slices.Clone(s.lower), rest[:mid]...)))
		if err != nil {
			return 0, err
		}
		if o.Recovered {
			high = mid
		} else {
			low = mid
		}
	}
	return rest[high-1], nil
}

// prove runs the upper set without each of its conditions that no run has shown
// to be needed, and leaves out those that are not.
func (s *search) prove(ctx context.Context) error {
	for _, c := range slices.Clone(s.upper) {
		if _, ok := s.proof(c); ok {
			continue
		}
		if _, err := s.try(ctx, without(s.upper, []int{c})); err != nil {
			return err
		}
	}
	return nil
}

// proof returns what failed without c while all others of the upper set were
// there.
func (s *search) proof(c int) (what string, ok bool) {
	others := without(s.upper, []int{c})
	for _, f := range s.fails {
		if !slices.Contains(f.set, c) && len(without(others, f.set)) == 0 {
			return f.what, true
		}
	}
	return "", false
}

func (s *search) result(n int, used []int) *Result {
	r := &Result{Used: used, Runs: s.runs}
	for c := range n {
		if !slices.Contains(s.upper, c) {
			r.Removed = append(r.Removed, c)
			continue
		}
		what, ok := s.proof(c)
		r.Kept = append(r.Kept, Kept{Index: c, Proven: ok, Failed: what})
	}
	return r
}

func sorted(a []int) []int { a = slices.Clone(a); slices.Sort(a); return a }

// without returns a without what is in b.
func without(a, b []int) []int {
	in := map[int]bool{}
	for _, x := range b {
		in[x] = true
	}
	out := make([]int, 0, len(a))
	for _, x := range a {
		if !in[x] {
			out = append(out, x)
		}
	}
	return out
}

// intersect returns what a and b share, sorted.
func intersect(a, b []int) []int { return sorted(intersectOrdered(a, b)) }

// intersectOrdered returns what a and b share, in the order of a.
func intersectOrdered(a, b []int) []int { return without(a, without(a, b)) }

// Memory is an oracle that asks another, and keeps what it said: a search that
// was interrupted goes on where it was, since it asks the same questions again.
type Memory struct {
	Ask Oracle
	// Save is called after each new run.
	Save func() error
	// Runs are all runs, in order.
	Runs []Run

	asked map[string]int
}

// Run is one run that a Memory keeps.
type Run struct {
	Set     []int   `json:"set"`
	Outcome Outcome `json:"outcome"`
}

// Oracle answers from memory, else asks.
func (m *Memory) Oracle(ctx context.Context, set []int) (Outcome, error) {
	if m.asked == nil {
		m.asked = map[string]int{}
	}
	k := key(set)
	seen := m.asked[k]
	m.asked[k]++
	for _, r := range m.Runs {
		if key(r.Set) == k {
			if seen == 0 {
				return r.Outcome, nil
			}
			seen--
		}
	}
	o, err := m.Ask(ctx, set)
	if err != nil {
		return o, err
	}
	m.Runs = append(m.Runs, Run{Set: append([]int{}, set...), Outcome: o})
	if m.Save != nil {
		if err := m.Save(); err != nil {
			return o, fmt.Errorf("keeping what was tried: %w", err)
		}
	}
	return o, nil
}

func key(set []int) string {
	var b strings.Builder
	for _, x := range set {
		b.WriteString(strconv.Itoa(x))
		b.WriteByte(' ')
	}
	return b.String()
}
