package pare

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// recipe is a model of one: it needs one of each group of alternatives, in
// order, and fails at the first that is not there.
type recipe struct {
	n      int
	needs  [][]int // groups of alternatives
	used   []int   // nil: not known
	blames bool    // a failure says what was missing
	noise  []int   // blamed as well, and before
	runs   int
	flake  func() bool
}

func (r *recipe) run(_ context.Context, set []int) (Outcome, error) {
	r.runs++
	o := Outcome{Used: intersect(r.used, set)}
	if r.used == nil {
		o.Used = nil
	}
	if !slices.IsSorted(set) {
		return o, errors.New("not sorted")
	}
	for i, group := range r.needs {
		if len(intersect(group, set)) > 0 {
			continue
		}
		o.Failed = fmt.Sprintf("step %d", i)
		if r.blames {
			o.Suspects = append(without(r.noise, set), group...)
		}
		return o, nil
	}
	if r.flake != nil && r.flake() {
		return Outcome{Failed: "flake"}, nil
	}
	o.Recovered = true
	return o, nil
}

func count(n int) []int {
	var out []int
	for i := range n {
		out = append(out, i)
	}
	return out
}

func kept(r *Result) []int {
	var out []int
	for _, k := range r.Kept {
		out = append(out, k.Index)
	}
	return out
}

// TestThreeOfTwenty holds what is promised: 20 allowed of which 3 are needed are
// pared in at most 8 runs, whether few or all of them were touched.
func TestThreeOfTwenty(t *testing.T) {
	need := [][]int{{3}, {11}, {17}}
	for name, used := range map[string][]int{
		"those used": {3, 11, 17}, "a few more": {2, 3, 9, 11, 17}, "many": {1, 2, 3, 5, 8, 9, 11, 14, 17}, "all": count(20),
	} {
		t.Run(name, func(t *testing.T) {
			r := &recipe{n: 20, needs: need, used: used, blames: true}
			got, err := Minimize(t.Context(), 20, r.run, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(kept(got), []int{3, 11, 17}) || !got.Proven() || len(got.Removed) != 17 {
				t.Errorf("got %+v", got)
			}
			if r.runs > 8 || got.Runs != r.runs {
				t.Errorf("%d runs, %d said", r.runs, got.Runs)
			}
		})
	}
}

// TestFlaky holds that a step that fails at random does not make a condition
// needed, if failures are repeated.
func TestFlaky(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		r := &recipe{n: 20, needs: [][]int{{3}, {11}, {17}}, used: count(20), blames: true, flake: func() bool { return rng.IntN(4) == 0 }}
		got, err := Minimize(t.Context(), 20, r.run, Options{Repeat: 12})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(kept(got), []int{3, 11, 17}) || !got.Proven() {
			t.Fatalf("seed %d: got %+v", seed, got)
		}
	}
}

// minimal compares a result with all subsets.
func minimal(t *testing.T, r *recipe, got *Result) {
	t.Helper()
	set := kept(got)
	holds := func(set []int) bool {
		o, err := (&recipe{needs: r.needs}).run(t.Context(), set)
		if err != nil {
			t.Fatal(err)
		}
		return o.Recovered
	}
	if !holds(set) {
		t.Fatalf("%v does not recover; needs %v", set, r.needs)
	}
	for mask := range 1 << len(set) {
		var sub []int
		for i, c := range set {
			if mask&(1<<i) != 0 {
				sub = append(sub, c)
			}
		}
		if len(sub) < len(set) && holds(sub) {
			t.Fatalf("%v recovers, and %v was the result; needs %v", sub, set, r.needs)
		}
	}
	if !got.Proven() {
		t.Fatalf("not proven: %+v", got)
	}
	if all := sorted(append(kept(got), got.Removed...)); !slices.Equal(all, count(r.n)) {
		t.Fatalf("kept and removed are %v of %d", all, r.n)
	}
}

// generate makes a recipe of bytes: what it says of itself may be wrong.
func generate(rng *rand.Rand) *recipe {
	r := &recipe{n: rng.IntN(12), blames: rng.IntN(2) == 0}
	pick := func() (out []int) {
		for c := range r.n {
			if rng.IntN(3) == 0 {
				out = append(out, c)
			}
		}
		return out
	}
	for range rng.IntN(6) {
		if group := pick(); len(group) > 0 {
			r.needs = append(r.needs, group)
		}
	}
	if rng.IntN(2) == 0 {
		r.used = append([]int{}, pick()...)
	}
	if rng.IntN(2) == 0 {
		r.noise = pick()
	}
	return r
}

// FuzzMinimize holds that whatever a run says of use and blame, the result is a
// minimal set, and that a search that was cut off ends the same when resumed.
func FuzzMinimize(f *testing.F) {
	for seed := range uint64(2000) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		r := generate(rng)
		want, err := Minimize(t.Context(), r.n, r.run, Options{})
		if err != nil {
			t.Fatal(err)
		}
		minimal(t, r, want)

		m := &Memory{}
		for cut := 1; ; cut = 3 {
			left := cut
			m = &Memory{Runs: m.Runs, Ask: func(ctx context.Context, set []int) (Outcome, error) {
				if left == 0 {
					return Outcome{}, context.Canceled
				}
				left--
				return r.run(ctx, set)
			}}
			got, err := Minimize(t.Context(), r.n, m.Oracle, Options{})
			if errors.Is(err, context.Canceled) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(kept(got), kept(want)) || len(m.Runs) != want.Runs {
				t.Fatalf("resumed: %v in %d runs; at once: %v in %d", kept(got), len(m.Runs), kept(want), want.Runs)
			}
			return
		}
	})
}

func TestBounds(t *testing.T) {
	r := &recipe{n: 20, needs: [][]int{{3}, {11}, {17}}, used: count(20), blames: true}
	for bound := 1; bound < 8; bound++ {
		got, err := Minimize(t.Context(), 20, r.run, Options{Runs: bound})
		if err != nil || got == nil || got.Runs > bound || (bound < 7) == got.Proven() {
			t.Errorf("bound %d: %+v, %v", bound, got, err)
		}
	}
	_, err := Minimize(t.Context(), 2, (&recipe{needs: [][]int{{7}}}).run, Options{Repeat: 2})
	var full *FullError
	if !errors.As(err, &full) || full.Failed != "step 0" {
		t.Error(err)
	}
	boom := errors.New("boom")
	if _, err := Minimize(t.Context(), 2, func(context.Context, []int) (Outcome, error) { return Outcome{}, boom }, Options{}); !errors.Is(err, boom) {
		t.Error(err)
	}
}

// ddmin is plain delta debugging (Zeller and Hildebrandt), to compare with.
func ddmin(ctx context.Context, n int, run Oracle) []int {
	set, parts := count(n), 2
	holds := func(s []int) bool { o, _ := run(ctx, s); return o.Recovered }
	if holds(nil) {
		return nil
	}
	for len(set) >= 2 {
		reduced := false
		for i := range parts {
			part := set[i*len(set)/parts : (i+1)*len(set)/parts]
			if holds(part) {
				set, parts, reduced = part, 2, true
				break
			}
			if rest := without(set, part); parts > 2 && holds(rest) {
				set, parts, reduced = rest, max(parts-1, 2), true
				break
			}
		}
		if !reduced {
			if parts >= len(set) {
				break
			}
			parts = min(len(set), 2*parts)
		}
	}
	return set
}

// BenchmarkRuns reports how often a recipe is run, beside plain delta
// debugging: 20 conditions, all of them touched.
func BenchmarkRuns(b *testing.B) {
	for _, k := range []int{0, 1, 3, 6, 20} {
		for _, how := range []string{"blame", "halving"} {
			b.Run(fmt.Sprintf("needed=%d/%s", k, how), func(b *testing.B) {
				total, plain, rounds := 0, 0, 0
				for b.Loop() {
					rng := rand.New(rand.NewPCG(uint64(rounds), 2))
					r := &recipe{n: 20, used: count(20), blames: how == "blame"}
					for _, c := range rng.Perm(20)[:k] {
						r.needs = append(r.needs, []int{c})
					}
					if _, err := Minimize(b.Context(), 20, r.run, Options{}); err != nil {
						b.Fatal(err)
					}
					total += r.runs
					r.runs = 0
					ddmin(b.Context(), 20, r.run)
					plain += r.runs
					rounds++
				}
				b.ReportMetric(float64(total)/float64(rounds), "runs/op")
				b.ReportMetric(float64(total)/float64(plain), "x-ddmin")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
