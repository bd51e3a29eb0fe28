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

// newDemonstration loads what patterns name in the workspace in folder.
func newDemonstration(t *testing.T, folder string, patterns ...string) *demonstration {
	t.Helper()
	d := &demonstration{}
	e := newEnv()
	e.dir, e.stderr = folder, &d.say
	if dir, err := filepath.Abs(e.dir); err == nil {
		e.dir = dir
	}
	var err error
	if d.loaded, err = loadFleet(t.Context(), e, patterns, false); err != nil {
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
// recipe after the other, in an order that nobody chose; -short does three at
// once. Several at once, in their own order, is what make test runs as a user
// would.
func TestFleetInAnyOrder(t *testing.T) {
	d := newDemonstration(t, filepath.Join("..", ".."), "//recipes/...")
	recipes := slices.Clone(d.recipes)
	seed := rand.Uint64()
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(recipes), func(i, j int) { recipes[i], recipes[j] = recipes[j], recipes[i] })
	jobs := 1
	if testing.Short() {
		jobs = 3
	}
	for _, r := range d.run(t.Context(), recipes, jobs) {
		if r.Verdict.Verdict != event.Recovered {
			t.Errorf("%s, in the order of seed %d: %s: %s", r.Plan.Label(), seed, r.Verdict.Verdict, r.Verdict.Reason)
		}
	}
}

// TestEveryConditionIsNeeded holds that no recipe of the demonstration fleet
// recovers without one of its conditions: what is not needed is not allowed. And
// it is for want of that condition, which it asked for, that it does not recover.
func TestEveryConditionIsNeeded(t *testing.T) {
	// Each of them has to wait for something that never comes. None need wait for
	// as long as an operator would: whoever was only slow has asked for nothing
	// that it may not have.
	const patience = 15 * time.Second
	d := newDemonstration(t, filepath.Join("..", ".."), "//recipes/...")
	var recipes []*fleet.Recipe
	var without []fleet.Condition
	for _, r := range d.recipes {
		for i, c := range r.Conditions {
			less := hurried(r, patience)
			less.Conditions = slices.Delete(slices.Clone(r.Conditions), i, i+1)
			recipes, without = append(recipes, less), append(without, c)
		}
	}
	if len(recipes) == 0 {
		t.Fatal("no recipe has a condition")
	}
	start := time.Now()
	for i, r := range d.run(t.Context(), recipes, 6) {
		c := without[i]
		what := fmt.Sprintf("%s without %s, %s", r.Plan.Label(), c.Text, r.Duration.Round(time.Second))
		asked := slices.ContainsFunc(r.Blamed, func(b event.Blocked) bool {
			return b.Service != nil && *b.Service == c.Service && slices.Contains(c.Pathways, b.Pathway)
		})
		if r.Verdict.Verdict != event.NotRecovered || !asked {
			t.Errorf("%s: %s: %s (blocked: %v)", what, r.Verdict.Verdict, r.Verdict.Reason, r.Blamed)
			continue
		}
		t.Logf("%s: %s", what, r.Verdict.Reason)
	}
	t.Logf("%d conditions in %s", len(recipes), time.Since(start).Round(time.Second))
}

// hurried is a recipe whose steps and validations wait for no longer than limit.
func hurried(r *fleet.Recipe, limit time.Duration) *fleet.Recipe {
	out := *r
	validation := func(v *fleet.Validation) *fleet.Validation {
		hurried := *v
		hurried.Within = min(v.Within, max(limit, 2*v.Steady))
		return &hurried
	}
	out.Strategy = slices.Clone(r.Strategy)
	for i, a := range out.Strategy {
		switch {
		case a.Step != nil:
			step := *a.Step
			step.Within = min(step.Within, limit)
			out.Strategy[i].Step = &step
		case a.Validation != nil:
			out.Strategy[i].Validation = validation(a.Validation)
		}
	}
	out.Validation = slices.Clone(r.Validation)
	for i, v := range out.Validation {
		out.Validation[i] = validation(v)
	}
	return &out
}

// TestCycle holds that of the fleet's two cycles none comes back from the one
// that is closed, which costs no machine, and all from the one with a way out.
func TestCycle(t *testing.T) {
	d := newDemonstration(t, filepath.Join("..", ".."), "//recipes/cycle:closed_names", "//recipes/cycle:open_names_from_store")
	for _, r := range d.run(t.Context(), d.recipes, 2) {
		want, reason := event.Recovered, ""
		if r.Plan.Label() == "//recipes/cycle:closed_names" {
			want, reason = event.Errored, "//recipes/cycle:closed_names → //recipes/cycle:closed_store → //recipes/cycle:closed_certificates → //recipes/cycle:closed_names"
		}
		if r.Verdict.Verdict != want || !strings.Contains(r.Verdict.Reason, reason) {
			t.Errorf("%s: %s: %s", r.Plan.Label(), r.Verdict.Verdict, r.Verdict.Reason)
		}
	}
}

// TestStdlib runs recipes that try what the shared steps promise, also where the
// other side lies or is not there; wait_fails is to fail.
func TestStdlib(t *testing.T) {
	d := newDemonstration(t, filepath.Join("testdata", "stdlib"), "//...")
	for _, r := range d.run(t.Context(), d.recipes, 2) {
		want, reason := event.Recovered, ""
		if r.Plan.Label() == "//:wait_fails" {
			want, reason = event.NotRecovered, `validation "port 8080 is open" did not hold on host-`
		}
		if r.Verdict.Verdict != want || !strings.Contains(r.Verdict.Reason, reason) {
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
