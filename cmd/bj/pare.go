package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/pflag"

	"bj/fleet"
	"bj/lang"
	"bj/lang/diag"
	"bj/run"
	"bj/run/event"
	"bj/run/pare"
	terminalview "bj/run/term"
	"bj/sandbox/gate"
)

// pareFlags are the flags of bj pare.
type pareFlags struct {
	sandbox, supply, results string
	repeat, runs             int
	write, fresh             bool
}

func pareCommand() *command {
	var f pareFlags
	return &command{
		name:  "pare",
		args:  "LABEL",
		short: "finds the smallest set of conditions with which a recipe still recovers",
		long: `runs the recipe with fewer and fewer conditions: first it leaves out what was
never used, then it asks of each of the rest whether the recipe fails without
it. what remains is proven: the recipe recovered with exactly that, and failed
without each one. of allow("*") nothing is kept: what the recipe is seen to need
becomes conditions of its own, of the services that own it where there are any.
prints the change to the file as a diff. a search that was interrupted goes on
where it was.`,
		example: `  bj pare //recipes/etcd:cold_start
  bj pare //recipes/etcd:cold_start --repeat 5 --write`,
		flags: func(fs *pflag.FlagSet) {
			fs.StringVar(&f.sandbox, "sandbox", "", "lease machines from `provider`: "+strings.Join(sandboxes(), " or "))
			fs.StringVar(&f.supply, "supply", "", "take allowed capabilities from `production|recipes`")
			fs.StringVar(&f.results, "results", "", "keep what was tried in `folder`; in the user's folder for state if empty")
			fs.IntVar(&f.repeat, "repeat", 1, "a set of conditions is too small only if the recipe fails `n` times with it, and never recovers")
			fs.IntVar(&f.runs, "runs", 200, "stop after `n` runs, with what is known by then")
			fs.BoolVar(&f.write, "write", false, "change the file")
			fs.BoolVar(&f.fresh, "fresh", false, "forget what an interrupted search has tried")
		},
		run: f.run,
	}
}

// parer is one run of bj pare.
type parer struct {
	*workbench
	e          *env
	flags      *pareFlags
	conditions []fleet.Condition // candidates
	star       *fleet.Condition  // allow("*"), which is left out; nil if there is none
	sources    map[string][]byte // the files that hold conditions, as the search found them
	state      pareState
	path       string
	start      time.Time
	live       bool
	progress   pare.Progress
}

// pareState is what is kept of a search.
type pareState struct {
	Schema     string   `json:"schema"`
	Recipe     string   `json:"recipe"`
	Digest     string   `json:"digest"`
	Sandbox    string   `json:"sandbox"`
	Supply     string   `json:"supply"`
	Conditions []string `json:"conditions"` // those of the recipe
	// Found are those that took the place of allow("*"), after the others.
	Found []fleet.Condition `json:"found,omitempty"`
	Runs  []pare.Run        `json:"runs"`
}

const pareSchema = "bj.pare/1"

func (f *pareFlags) run(ctx context.Context, e *env, args []string) error {
	switch {
	case f.repeat < 1:
		return usage("", "--repeat is 1 or more, not %d", f.repeat)
	case f.runs < 1:
		return usage("", "--runs is 1 or more, not %d", f.runs)
	}
	w, err := e.workbench(ctx, "pare", args, f.sandbox, f.supply, f.results)
	if err != nil {
		return err
	}
	defer w.done()
	p := newParer(w, e, f)
	if len(w.recipe.Conditions) == 0 {
		fmt.Fprintf(e.stdout, "%s has no condition\n", w.recipe.Label)
		return nil
	}
	if err := p.resume(); err != nil {
		return err
	}
	result, err := p.search(ctx)
	if p.live {
		fmt.Fprint(e.stderr, "\r\x1b[K")
	}
	if err != nil {
		var full *pare.FullError
		if errors.As(err, &full) {
			return &failure{code: exitNotRecovered, err: fmt.Errorf("%s cannot be pared: %w", w.recipe.Label, err), hint: "bj test " + w.recipe.Label + " says what it lacks"}
		}
		if len(p.state.Runs) > 0 {
			fmt.Fprintf(e.stderr, "bj: %s so far are kept; the next bj pare %s goes on from there\n", plural(len(p.state.Runs), "run"), w.recipe.Label)
		}
		return err
	}
	if err := p.report(result); err != nil {
		return err
	}
	if result.Proven() {
		if err := os.Remove(p.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing what was tried: %w", err)
		}
	}
	return nil
}

func newParer(w *workbench, e *env, f *pareFlags) *parer {
	p := &parer{workbench: w, e: e, flags: f, sources: map[string][]byte{}, start: time.Now(), live: e.animated(e.stderr)}
	for i := range w.recipe.Conditions {
		c := &w.recipe.Conditions[i]
		if c.Service == "*" {
			p.star = c
		} else {
			p.conditions = append(p.conditions, *c)
		}
		if src, err := os.ReadFile(w.workspace.Path(c.Pos.File)); err == nil { // else it is of the library inside bj
			p.sources[c.Pos.File] = src
		}
	}
	return p
}

// resume reads what an interrupted search has tried, if it was of this recipe as
// it stands.
func (p *parer) resume() error {
	p.path = filepath.Join(p.results, "pare", event.SafeName(p.recipe.Label)+".json")
	p.state = pareState{Schema: pareSchema, Recipe: p.recipe.Label, Digest: p.digest(p.recipe), Sandbox: p.sandbox, Supply: string(p.supply), Runs: []pare.Run{}}
	for _, c := range p.conditions {
		p.state.Conditions = append(p.state.Conditions, c.Text)
	}
	if p.flags.fresh {
		return nil
	}
	data, err := os.ReadFile(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading what was tried: %w", err)
	}
	var old pareState
	if json.Unmarshal(data, &old) != nil || old.Schema != pareSchema || old.Recipe != p.state.Recipe || old.Digest != p.state.Digest || old.Sandbox != p.state.Sandbox ||
		old.Supply != p.state.Supply || !slices.Equal(old.Conditions, p.state.Conditions) {
		return nil // of another state of things
	}
	p.state.Runs, p.state.Found = old.Runs, old.Found
	p.conditions = append(p.conditions, old.Found...)
	fmt.Fprintf(p.e.stderr, "bj: going on after %s\n", plural(len(old.Runs), "run"))
	return nil
}

func (p *parer) save() error {
	if err := os.MkdirAll(filepath.Dir(p.path), 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(p.state, "", "  ")
	if err != nil {
		return err
	}
	return event.WriteFile(p.path, append(data, '\n'))
}

// search finds the minimal set.
func (p *parer) search(ctx context.Context) (*pare.Result, error) {
	spent := 0
	if p.star != nil {
		if err := p.grow(ctx); err != nil {
			return nil, err
		}
		spent = len(p.state.Runs)
	}
	memory := &pare.Memory{Runs: p.state.Runs, Ask: p.ask}
	memory.Save = func() error { p.state.Runs = memory.Runs; return p.save() }
	r, err := pare.Minimize(ctx, len(p.conditions), memory.Oracle, pare.Options{
		Repeat: p.flags.repeat, Runs: max(1, p.flags.runs-spent),
		Progress: func(x pare.Progress) { p.progress = x },
	})
	if r != nil {
		r.Runs = len(memory.Runs)
	}
	return r, err
}

// grow replaces allow("*") by what the recipe is seen to need: it is run with
// nothing, and what it is blamed to lack is added, until it recovers.
func (p *parer) grow(ctx context.Context) error {
	set := func() (all []int) {
		for i := range p.conditions {
			all = append(all, i)
		}
		return all
	}
	if all := set(); slices.ContainsFunc(p.state.Runs, func(r pare.Run) bool { return r.Outcome.Recovered && len(r.Set) == len(all) }) {
		return nil // before it was interrupted
	}
	fails := 0
	for {
		if len(p.state.Runs) >= p.flags.runs {
			return &failure{code: exitError, err: fmt.Errorf("it does not recover after %s, with %s", plural(len(p.state.Runs), "run"), plural(len(p.conditions), "condition")), hint: "allow more runs with --runs"}
		}
		p.progress = pare.Progress{Runs: len(p.state.Runs), Left: len(p.conditions), Tried: len(p.conditions)}
		o, blamed, err := p.try(ctx, set())
		if err != nil {
			return err
		}
		p.state.Runs = append(p.state.Runs, pare.Run{Set: append([]int{}, set()...), Outcome: o})
		if o.Recovered {
			return p.save()
		}
		added := false
		for _, b := range blamed {
			c, ok := run.Condition(b)
			c.Only = p.star.Only
			c.Text = run.WithOnly(c.Text, c.Only)
			if !ok || slices.ContainsFunc(p.conditions, func(d fleet.Condition) bool { return d.Text == c.Text }) {
				continue
			}
			c.Pos = p.star.Pos
			p.conditions = append(p.conditions, c)
			p.state.Found = append(p.state.Found, c)
			added, fails = true, 0
			break
		}
		if err := p.save(); err != nil {
			return fmt.Errorf("keeping what was tried: %w", err)
		}
		if added {
			continue
		}
		if fails++; fails >= p.flags.repeat {
			return &pare.FullError{Failed: o.Failed + "; nothing that the seal blocked explains it"}
		}
	}
}

// ask runs the recipe with some of the conditions.
func (p *parer) ask(ctx context.Context, set []int) (pare.Outcome, error) {
	o, _, err := p.try(ctx, set)
	return o, err
}

func (p *parer) try(ctx context.Context, set []int) (pare.Outcome, []event.Blocked, error) {
	r := *p.recipe
	r.Conditions = nil
	for _, i := range set {
		r.Conditions = append(r.Conditions, p.conditions[i])
	}
	p.say(len(set))
	out := run.Run(ctx, p.plans(&r), run.Options{Provider: p.provider, Stager: p.stager, Version: version, Jobs: 1, Lookup: gate.Lookup})
	if err := context.Cause(ctx); err != nil {
		return pare.Outcome{}, nil, err
	}
	x := out.Results[0]
	o := pare.Outcome{}
	switch x.Verdict.Verdict {
	case event.Recovered:
		o.Recovered = true
	case event.NotRecovered:
		o.Failed, _, _ = strings.Cut(x.Verdict.Reason, "\n")
	default:
		return o, nil, &failure{code: exitError, err: fmt.Errorf("running it with %s: %s", plural(len(set), "condition"), x.Verdict.Reason), hint: x.Verdict.Hint}
	}
	if x.Used != nil {
		o.Used = []int{}
		for i, n := range x.Used {
			if n > 0 {
				o.Used = append(o.Used, set[i])
			}
		}
	}
	for _, b := range x.Blamed {
		for i := range p.conditions {
			if !slices.Contains(set, i) && !slices.Contains(o.Suspects, i) && run.Opens(p.fleet, &p.conditions[i], b) {
				o.Suspects = append(o.Suspects, i)
			}
		}
	}
	return o, x.Blamed, nil
}

// say shows what is tried now.
func (p *parer) say(tried int) {
	text := fmt.Sprintf("run %d: with %s; %d left to judge", len(p.state.Runs)+1, plural(tried, "condition"), p.progress.Left)
	if p.live {
		fmt.Fprintf(p.e.stderr, "\r\x1b[K%s  %s", terminalview.Seconds(time.Since(p.start).Seconds()), p.e.clean(text))
		return
	}
	p.e.say(text)
}

// report prints what was found, and the change.
func (p *parer) report(r *pare.Result) error {
	out := p.e.stdout
	all := len(p.recipe.Conditions)
	needs := fmt.Sprintf("%d of %s", len(r.Kept), plural(all, "condition"))
	if p.star != nil {
		needs = plural(len(r.Kept), "condition") + " instead of " + p.star.Text
	}
	fmt.Fprintf(out, "%s needs %s (%s, %s)\n", p.recipe.Label, needs, plural(r.Runs, "run"), terminalview.Seconds(time.Since(p.start).Seconds()))
	for _, k := range r.Kept {
		fmt.Fprintf(out, "  kept     %s\n", p.conditions[k.Index].Text)
		if k.Proven {
			fmt.Fprintf(out, "           without it: %s\n", k.Failed)
		} else {
			fmt.Fprintf(out, "           not proven: it was not run without it\n")
		}
	}
	for _, i := range r.Removed {
		why := "it recovered without"
		if r.Used != nil && !slices.Contains(r.Used, i) {
			why = "never used"
		}
		fmt.Fprintf(out, "  removed  %s: %s\n", p.conditions[i].Text, why)
	}
	if p.star != nil {
		fmt.Fprintf(out, "  removed  %s: replaced by what is kept\n", p.star.Text)
	}
	if !r.Proven() {
		fmt.Fprintf(p.e.stderr, "bj: not all of it is proven after %s; the next bj pare %s goes on, with --runs\n", plural(r.Runs, "run"), p.recipe.Label)
	}
	return p.change(r)
}

// change edits the files that hold the conditions, or prints how it would. What
// it cannot change without touching more than that is for a person to do.
func (p *parer) change(r *pare.Result) error {
	edits := map[string][]lang.CallEdit{}
	texts := map[diag.Pos]string{} // what each edit is about
	var by []string                // what a person has to do
	add := func(c *fleet.Condition, with []string) {
		if why := p.bound(c, r); why != "" {
			by = append(by, fmt.Sprintf("%s: %s %s", c.Pos, change(c.Text, with), why))
			return
		}
		if _, ok := texts[c.Pos]; !ok {
			edits[c.Pos.File] = append(edits[c.Pos.File], lang.CallEdit{Pos: c.Pos, With: with})
		}
		texts[c.Pos] = change(c.Text, with)
	}
	for _, i := range r.Removed {
		if p.star == nil || p.conditions[i].Pos != p.star.Pos {
			add(&p.conditions[i], nil)
		}
	}
	if p.star != nil {
		var with []string
		for _, k := range r.Kept {
			if c := p.conditions[k.Index]; c.Pos == p.star.Pos {
				with = append(with, fmt.Sprintf("%s, why = %q)", strings.TrimSuffix(c.Text, ")"), "without it: "+k.Failed))
			}
		}
		add(p.star, with)
		for i := range p.recipe.Conditions { // it may have been said twice
			if c := &p.recipe.Conditions[i]; c.Service == "*" && c.Pos != p.star.Pos {
				add(c, nil)
			}
		}
	}
	for _, file := range slices.Sorted(maps.Keys(edits)) {
		path, src := p.workspace.Path(file), p.sources[file]
		if now, err := os.ReadFile(path); err != nil {
			return fmt.Errorf("reading the recipe: %w", err)
		} else if !bytes.Equal(now, src) {
			return &failure{code: exitError, err: fmt.Errorf("%s has changed since the search began, so it is left as it is", file), hint: "bj pare " + p.recipe.Label + " again: what was tried is kept as long as the recipe means the same"}
		}
		after, missed, err := lang.EditCalls(file, src, edits[file])
		if err != nil {
			return err
		}
		for _, pos := range missed {
			by = append(by, fmt.Sprintf("%s: %s is not an element of a list as it is written", pos, texts[pos]))
		}
		if bytes.Equal(src, after) {
			continue
		}
		if !p.flags.write {
			out := p.e.stdout.exact() // for patch
			if terminal(out) {
				out = p.e.stdout
			}
			if _, err := out.Write(diff.Diff("a/"+file, src, "b/"+file, after)); err != nil {
				return fmt.Errorf("writing the change: %w", err)
			}
			continue
		}
		if err := os.WriteFile(path, after, 0o644); err != nil { // which keeps the mode that it has
			return fmt.Errorf("changing the recipe: %w", err)
		}
		fmt.Fprintf(p.e.stderr, "bj: changed %s\n", file)
	}
	for _, text := range by {
		p.e.say("to be changed by hand: " + text)
	}
	return nil
}

// change says what is to be done with a condition.
func change(text string, with []string) string {
	if len(with) == 0 {
		return "remove " + text + ", which"
	}
	return "replace " + text + " by " + strings.Join(with, ", ") + ": it"
}

// bound says why the place of a condition cannot be changed for it alone: other
// recipes have it too, as in a common list, or this one has others from there,
// as from a macro, that are kept.
func (p *parer) bound(c *fleet.Condition, r *pare.Result) string {
	if _, ok := p.sources[c.Pos.File]; !ok {
		return "is not in a file of this workspace"
	}
	var labels []string
	for _, x := range p.fleet.Recipes {
		if x.Label != p.recipe.Label && slices.ContainsFunc(x.Conditions, func(d fleet.Condition) bool { return d.Pos == c.Pos }) {
			labels = append(labels, x.Label)
		}
	}
	if len(labels) > 0 {
		return "is shared with " + strings.Join(labels, ", ")
	}
	for _, k := range r.Kept {
		if d := &p.conditions[k.Index]; d.Pos == c.Pos && c != p.star {
			return "is made by the same line as " + d.Text + ", which is kept"
		}
	}
	return ""
}
