package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"bj/fleet"
	"bj/run/event"
)

func variablesOf(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestShardOf(t *testing.T) {
	for _, c := range []struct {
		flag         string
		env          []string
		index, count int
		fails        bool
	}{
		{},
		{flag: "2/4", index: 2, count: 4},
		{flag: "2/4", env: []string{"BJ_SHARD", "1/3"}, index: 2, count: 4},
		{env: []string{"BJ_SHARD", "1/3", "CI_NODE_INDEX", "2", "CI_NODE_TOTAL", "9"}, index: 1, count: 3},
		{env: []string{"CI_NODE_INDEX", "2", "CI_NODE_TOTAL", "9"}, index: 2, count: 9},
		{env: []string{"BUILDKITE_PARALLEL_JOB", "0", "BUILDKITE_PARALLEL_JOB_COUNT", "5"}, index: 1, count: 5},
		{env: []string{"SLURM_ARRAY_TASK_ID", "14", "SLURM_ARRAY_TASK_MIN", "10", "SLURM_ARRAY_TASK_STEP", "2", "SLURM_ARRAY_TASK_COUNT", "4"}, index: 3, count: 4},
		{env: []string{"TEST_SHARD_INDEX", "1", "TEST_TOTAL_SHARDS", "2"}, index: 2, count: 2},
		{env: []string{"JOB_COMPLETION_INDEX", "3"}}, // of how many is not known
		{flag: "/8", env: []string{"JOB_COMPLETION_INDEX", "3"}, index: 4, count: 8},
		{flag: "/2", env: []string{"JOB_COMPLETION_INDEX", "3"}, fails: true},
		{flag: "/8", fails: true},
		{flag: "0/4", fails: true},
		{flag: "5/4", fails: true},
		{flag: "1", fails: true},
		{flag: "1/0", fails: true},
		{flag: "a/4", fails: true},
		{flag: "1/4/2", fails: true},
	} {
		s, err := shardOf(c.flag, variablesOf(c.env...))
		if (err != nil) != c.fails || s.index != c.index || s.count != c.count {
			t.Errorf("shardOf(%q, %v) = %d/%d, %v; want %d/%d", c.flag, c.env, s.index, s.count, err, c.index, c.count)
		}
		if err != nil && exitCode(err) != exitUsage {
			t.Errorf("shardOf(%q, %v): exit code %d, want %d", c.flag, c.env, exitCode(err), exitUsage)
		}
	}
}

// Every recipe is in one shard, whatever the order in which they were listed,
// and no shard has much more to do than another.
func TestShardPick(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var recipes []*fleet.Recipe
		var total, longest float64
		for i := range rng.IntN(40) {
			d := time.Duration(1+rng.IntN(600)) * time.Second
			r := &fleet.Recipe{Label: fmt.Sprintf("//r:%02d", i), Estimate: &d}
			if i%5 == 0 {
				r.Estimate = nil
			}
			recipes = append(recipes, r)
			total += guess(r)
			longest = max(longest, guess(r))
		}
		count := 1 + rng.IntN(6)
		seen := map[string]int{}
		for index := 1; index <= count; index++ {
			mine := shard{index: index, count: count}.pick(recipes, guess)
			var load float64
			for _, r := range mine {
				seen[r.Label]++
				load += guess(r)
			}
			if load > total/float64(count)+longest {
				t.Errorf("shard %d/%d has %v s of %v s to do", index, count, load, total)
			}
			shuffled := slices.Clone(recipes)
			rng.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			again := shard{index: index, count: count}.pick(shuffled, guess)
			if len(again) != len(mine) || slices.ContainsFunc(again, func(r *fleet.Recipe) bool { return !slices.Contains(mine, r) }) {
				t.Errorf("shard %d/%d depends on the order of recipes", index, count)
			}
		}
		for _, r := range recipes {
			if seen[r.Label] != 1 {
				t.Errorf("%s is in %d shards of %d", r.Label, seen[r.Label], count)
			}
		}
	}
}

// Recorded durations count where there are some; those of runs that did not
// recover say nothing.
func TestRecorded(t *testing.T) {
	dir := t.TempDir()
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i, x := range []struct {
		verdict string
		seconds int
	}{{event.Recovered, 30}, {event.Recovered, 10}, {event.Recovered, 20}, {event.NotRecovered, 600}} {
		r := event.Recorder{Dir: dir}
		begin := start.Add(time.Duration(i) * time.Hour)
		r.Event(event.Event{Event: event.Lease, Recipe: "//a:a", Time: begin})
		r.Event(event.Event{Event: event.VerdictGiven, Recipe: "//a:a", Time: begin.Add(time.Duration(x.seconds) * time.Second), Verdict: &event.Verdict{Verdict: x.verdict}})
		if err := r.Err(); err != nil {
			t.Fatal(err)
		}
	}
	duration := recorded(dir)
	if got := duration(&fleet.Recipe{Label: "//a:a"}); got != 20 {
		t.Errorf("//a:a takes %v s, want the median of those that recovered, 20", got)
	}
	if got := duration(&fleet.Recipe{Label: "//a:b"}); got != 60 {
		t.Errorf("//a:b takes %v s, want a guess of 60", got)
	}
}

// The longest of four shards takes at most 1.25 of a quarter of all, by recorded
// durations, wherever no recipe is longer than a twelfth of all: what LPT can
// promise. With longer ones the longest recipe is the limit.
func TestShardBalance(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	held := 0
	for range 500 {
		var recipes []*fleet.Recipe
		took := map[string]float64{}
		var total, longest float64
		for i := range 4 + rng.IntN(80) {
			r := &fleet.Recipe{Label: fmt.Sprintf("//r:%02d", i)}
			seconds := 1 + rng.ExpFloat64()*60
			recipes, took[r.Label] = append(recipes, r), seconds
			total, longest = total+seconds, max(longest, seconds)
		}
		var most float64
		for index := 1; index <= 4; index++ {
			var load float64
			for _, r := range (shard{index: index, count: 4}).pick(recipes, func(r *fleet.Recipe) float64 { return took[r.Label] }) {
				load += took[r.Label]
			}
			most = max(most, load)
		}
		bound := 1.25 * total / 4
		if longest > total/12 {
			bound = total/4 + longest*3/4
		} else {
			held++
		}
		if most > bound+1e-6 {
			t.Errorf("%d recipes of %v s, the longest of %v s: the longest shard has %v s, more than %v s", len(recipes), total, longest, most, bound)
		}
	}
	if held < 100 {
		t.Errorf("only %d of 500 fleets had no recipe longer than a twelfth", held)
	}
}
