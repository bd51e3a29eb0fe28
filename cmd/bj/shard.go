package main

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"bj/fleet"
	"bj/run/event"
)

// shard is a part of the recipes: the index-th of count, from 1. The zero value
// is all of them.
type shard struct {
	index, count int
	source       string // what said so: a flag or a variable
}

// text is the shard as --shard takes it; "" for all of the recipes.
func (s shard) text() string {
	if s.count == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%d", s.index, s.count)
}

// parseShard parses I/N, or /N with the index from the engine that runs the
// job, for engines that do not say how many jobs there are.
func parseShard(text, source string, getenv func(string) string) (shard, error) {
	bad := func(format string, args ...any) (shard, error) {
		return shard{}, usage("the second of four: --shard 2/4", source+" is I/N: "+format, args...)
	}
	i, n, ok := strings.Cut(text, "/")
	if !ok {
		return bad("%q has no /", text)
	}
	count, err := strconv.Atoi(n)
	if err != nil || count < 1 {
		return bad("%q is no number of shards", n)
	}
	if i == "" {
		for _, e := range engines {
			if index, ok := e.position(getenv); ok {
				return checkShard(shard{index, count, source + " and " + e.index})
			}
		}
		return bad("no engine's variable says which of %d this is", count)
	}
	index, err := strconv.Atoi(i)
	if err != nil {
		return bad("%q is no number", i)
	}
	return checkShard(shard{index, count, source})
}

// checkShard refuses an index outside 1 … count.
func checkShard(s shard) (shard, error) {
	if s.index < 1 || s.index > s.count {
		return shard{}, usage("shards count from 1", "%s says shard %d of %d", s.source, s.index, s.count)
	}
	return s, nil
}

// engine is a job array's way to tell a job which one it is.
type engine struct {
	index string // variable with the job's number
	first string // number of the first job, or the variable that holds it
	step  string // variable with the distance between numbers; 1 if empty
	count string // variable with the number of jobs; empty if the engine has none
	touch string // variable with a file to touch: sharding is supported
}

// engines are those whose variables are read, in this order.
var engines = [...]engine{
	{index: "TEST_SHARD_INDEX", first: "0", count: "TEST_TOTAL_SHARDS", touch: "TEST_SHARD_STATUS_FILE"}, // Bazel
	{index: "SLURM_ARRAY_TASK_ID", first: "SLURM_ARRAY_TASK_MIN", step: "SLURM_ARRAY_TASK_STEP", count: "SLURM_ARRAY_TASK_COUNT"},
	{index: "BUILDKITE_PARALLEL_JOB", first: "0", count: "BUILDKITE_PARALLEL_JOB_COUNT"},
	{index: "CI_NODE_INDEX", first: "1", count: "CI_NODE_TOTAL"},         // GitLab
	{index: "CIRCLE_NODE_INDEX", first: "0", count: "CIRCLE_NODE_TOTAL"}, // CircleCI
	{index: "JOB_COMPLETION_INDEX", first: "0"},                          // Kubernetes indexed jobs
	{index: "NOMAD_ALLOC_INDEX", first: "0"},                             // Nomad
}

// position returns which job this is, from 1.
func (e engine) position(getenv func(string) string) (int, bool) {
	number := func(name string) (int, bool) {
		n, err := strconv.Atoi(getenv(name))
		return n, err == nil
	}
	index, ok := number(e.index)
	if !ok {
		return 0, false
	}
	first, err := strconv.Atoi(e.first)
	if err != nil {
		first, _ = number(e.first)
	}
	step := 1
	if n, ok := number(e.step); ok && n > 0 {
		step = n
	}
	return (index-first)/step + 1, true
}

// shardOf returns the shard that was asked for: by the flag, by $BJ_SHARD, or
// by the variables of an engine that says both which job this is and of how
// many.
func shardOf(flag string, getenv func(string) string) (shard, error) {
	if flag != "" {
		return parseShard(flag, "--shard", getenv)
	}
	if text := getenv("BJ_SHARD"); text != "" {
		return parseShard(text, "BJ_SHARD", getenv)
	}
	for _, e := range engines {
		index, ok := e.position(getenv)
		if !ok || e.count == "" {
			continue
		}
		count, err := strconv.Atoi(getenv(e.count))
		if err != nil {
			continue
		}
		if file := getenv(e.touch); e.touch != "" && file != "" {
			if err := os.WriteFile(file, nil, 0o644); err != nil {
				return shard{}, fmt.Errorf("telling the engine that shards are supported: %w", err)
			}
		}
		return checkShard(shard{index, count, e.index})
	}
	return shard{}, nil
}

// pick returns the recipes of the shard, in their order. Every recipe is in
// exactly one shard, and the same inputs give the same shards everywhere: the
// longest recipe first, each to the shard with the least to do so far (Graham's
// LPT rule, at most 4/3 of the best there is).
func (s shard) pick(recipes []*fleet.Recipe, seconds func(*fleet.Recipe) float64) []*fleet.Recipe {
	if s.count <= 1 {
		return recipes
	}
	type work struct {
		recipe  *fleet.Recipe
		seconds float64
	}
	all := make([]work, len(recipes))
	for i, r := range recipes {
		all[i] = work{r, seconds(r)}
	}
	slices.SortFunc(all, func(a, b work) int {
		return cmp.Or(cmp.Compare(b.seconds, a.seconds), strings.Compare(a.recipe.Label, b.recipe.Label))
	})
	loads := make([]float64, s.count)
	mine := map[*fleet.Recipe]bool{}
	for _, w := range all {
		least := 0
		for i, load := range loads {
			if load < loads[least] {
				least = i
			}
		}
		loads[least] += w.seconds
		if least == s.index-1 {
			mine[w.recipe] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(recipes), func(r *fleet.Recipe) bool { return !mine[r] })
}

// guess is how long a recipe takes as far as its source says: its estimate, or
// a minute.
func guess(r *fleet.Recipe) float64 {
	if r.Estimate != nil {
		return r.Estimate.Seconds()
	}
	return time.Minute.Seconds()
}

// recorded returns how long a recipe takes as far as the results in dir say: the
// median of the runs that recovered, or else its guess.
func recorded(dir string) func(*fleet.Recipe) float64 {
	return func(r *fleet.Recipe) float64 {
		records, err := event.Records(dir, r.Label)
		if err != nil { // what cannot be read here could not be read elsewhere
			return guess(r)
		}
		var took []float64
		for _, x := range records {
			if x.Verdict.Verdict == event.Recovered {
				took = append(took, x.End.Sub(x.Start).Seconds())
			}
		}
		if len(took) == 0 {
			return guess(r)
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
}
