package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"bj/fleet"
	"bj/run"
	"bj/run/event"
	"bj/sandbox/gate"
	"bj/sandbox/image"
)

// demonstration is a fleet of this repository, and what runs it.
type demonstration struct {
	*loaded
	options run.Options
	say     bytes.Buffer
}

// newDemonstration loads what pattern names in the workspace in folder.
func newDemonstration(t *testing.T, folder, pattern string) *demonstration {
	t.Helper()
	d := &demonstration{}
	e := newEnv()
	e.dir, e.stderr = folder, &d.say
	if dir, err := filepath.Abs(e.dir); err == nil {
		e.dir = dir
	}
	var err error
	if d.loaded, err = loadFleet(t.Context(), e, []string{pattern}, false); err != nil {
		t.Fatal(err)
	}
	cache, done, err := e.cache()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(done)
	store := &image.Store{Dir: filepath.Join(cache, "tools"), Workspace: d.workspace.Root}
	provider, err := newProvider(t.Context(), defaultSandbox, "the test", cache, store, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	d.options = run.Options{
		Provider: provider,
		Lookup:   gate.Lookup,
		Stager:   store,
		Version:  version,
	}
	return d
}

// run runs recipes, which may differ from those of the fleet, n at once.
func (d *demonstration) run(ctx context.Context, recipes []*fleet.Recipe, n int) []run.Result {
	o := d.options
	o.Jobs = n
	plans := run.NewPlans(d.fleet, recipes, run.PlanOptions{Root: d.workspace.Root, Supply: run.Recipes})
	return run.Run(ctx, plans, o).Results
}

// TestFleetInAnyOrder holds that the demonstration fleet recovers also one
// recipe after the other, and in an order that nobody chose.
func TestFleetInAnyOrder(t *testing.T) {
	d := newDemonstration(t, filepath.Join("..", ".."), "//recipes/...")
	for _, jobs := range []int{1, 4} {
		recipes := slices.Clone(d.recipes)
		seed := rand.Uint64()
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(recipes), func(i, j int) { recipes[i], recipes[j] = recipes[j], recipes[i] })
		for _, r := range d.run(t.Context(), recipes, jobs) {
			if r.Verdict.Verdict != event.Recovered {
				t.Errorf("%s, %d at once, in the order of seed %d: %s: %s", r.Plan.Label(), jobs, seed, r.Verdict.Verdict, r.Verdict.Reason)
			}
		}
	}
}

// TestEveryConditionIsNeeded holds that no recipe of the demonstration fleet
// recovers without one of its conditions: what is not needed is not allowed.
func TestEveryConditionIsNeeded(t *testing.T) {
	d := newDemonstration(t, filepath.Join("..", ".."), "//recipes/...")
	var recipes []*fleet.Recipe
	var without []fleet.Condition
	for _, r := range d.recipes {
		for i, c := range r.Conditions {
			less := *r
			less.Conditions = slices.Delete(slices.Clone(r.Conditions), i, i+1)
			recipes, without = append(recipes, &less), append(without, c)
		}
	}
	if len(recipes) == 0 {
		t.Fatal("no recipe has a condition")
	}
	start := time.Now()
	for i, r := range d.run(t.Context(), recipes, 6) {
		what := fmt.Sprintf("%s without %s", r.Plan.Label(), without[i].Text)
		if r.Verdict.Verdict != event.NotRecovered {
			t.Errorf("%s: %s: %s", what, r.Verdict.Verdict, r.Verdict.Reason)
			continue
		}
		t.Logf("%s: %s", what, r.Verdict.Reason)
	}
	t.Logf("%d conditions in %s", len(recipes), time.Since(start).Round(time.Second))
}

// TestStdlib runs recipes that try what the shared steps promise, also where the
// other side lies or is not there.
func TestStdlib(t *testing.T) {
	d := newDemonstration(t, filepath.Join("testdata", "stdlib"), "//...")
	for _, r := range d.run(t.Context(), d.recipes, 2) {
		if r.Verdict.Verdict != event.Recovered {
			t.Errorf("%s: %s: %s", r.Plan.Label(), r.Verdict.Verdict, r.Verdict.Reason)
		}
	}
}

// TestFleetIsShort holds what the fleet promises to who reads it: a recipe is at
// most 25 lines long beside its documentation.
func TestFleetIsShort(t *testing.T) {
	const most = 25
	documented := regexp.MustCompile(`(?s)    doc = """.*?""",\n`)
	calls := regexp.MustCompile(`(?ms)^recipe\(\n.*?^\)$`)
	files, err := filepath.Glob(filepath.Join("..", "..", "recipes", "*", "*.star"))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range calls.FindAllString(string(source), -1) {
			found++
			if n := 1 + strings.Count(documented.ReplaceAllString(call, ""), "\n"); n > most {
				t.Errorf("%s: a recipe of %d lines beside its documentation; %d are enough:\n%s", file, n, most, call)
			}
		}
	}
	if found < 15 {
		t.Errorf("%d recipes were found, which is not the fleet", found)
	}
}
