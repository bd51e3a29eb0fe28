package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"bj/fleet"
	"bj/lang"
	"bj/run"
	"bj/sandbox/gate"
)

// testFlags are the flags of bj test.
type testFlags struct {
	sandbox, supply string
	jobs            int
	shard           string
	changedSince    string
	tools           []string
	json            bool
	junit           string
	report          string
	runbooks        string
	results         string
	keep            bool
	repeat          int
	bazel           bool
	targets         []string
	filter          *regexp.Regexp // of labels; nil: all

	errored []string // after the run: what is said of each error
}

func testCommand() *command {
	var f testFlags
	return &command{
		name:  "test",
		args:  "PATTERN...",
		short: "runs recipes in sealed environments, and says of each whether it recovers",
		long: patternHelp + `

each recipe gets fresh machines on which everything is dark but what its
conditions allow. its verdict is recovered, not recovered, or error: the
environment, not the recipe, is at fault. recipes with the tag manual run only
when they are named. verdicts go to stdout, progress goes to stderr.`,
		example: `  bj test //...
  bj test //recipes/etcd:cold_start --report out
  bj test //... --changed-since main --junit junit.xml
  bj test //recipes/etcd --tool etcd=./build/etcd`,
		flags: f.register,
		run:   f.run,
	}
}

// register declares the flags.
func (f *testFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.sandbox, "sandbox", "", "lease machines from `provider`: "+strings.Join(sandboxes(), " or "))
	fs.StringVar(&f.supply, "supply", "", "take allowed capabilities from `production|recipes`; from recipes, each is first brought back by its own")
	fs.IntVar(&f.jobs, "jobs", 0, "run `n` recipes at once; what memory and cores allow if 0")
	fs.StringVar(&f.shard, "shard", "", "run only the `i/n`-th part of the recipes, from 1; /n takes i from the engine of a job array")
	fs.StringVar(&f.changedSince, "changed-since", "", "run only recipes that changes since git's `revision` can affect")
	fs.StringArrayVar(&f.tools, "tool", nil, "put a program in the place of a tool: `name=path`; may be repeated")
	fs.BoolVar(&f.json, "json", false, "write events to stdout, one JSON object a line")
	fs.StringVar(&f.junit, "junit", "", "write a JUnit report to `file`")
	fs.StringVar(&f.report, "report", "", "write events, logs, rules and results into `folder`, one folder for each recipe")
	fs.StringVar(&f.runbooks, "runbooks", "", "rewrite the runbook of each recipe in `folder` at its verdict")
	fs.StringVar(&f.results, "results", "", "record runs in `folder`; in the user's folder for state if empty")
	fs.BoolVar(&f.keep, "keep", false, "keep the environment of a recipe that did not recover until its deadline")
	fs.IntVar(&f.repeat, "repeat", 1, "run each recipe `n` times")
	fs.StringArrayVar(&f.targets, "target", nil, "take a Bazel target that is built already: `label=path`; may be repeated")
	fs.BoolVar(&f.bazel, "bazel", false, "be the test of a Bazel rule, as bj_test has it: what Bazel's variables ask for")
}

// keepFor is how long --keep keeps the environment of a recipe that did not
// recover.
const keepFor = 30 * time.Minute

// run runs bj test.
func (f *testFlags) run(ctx context.Context, e *env, args []string) error {
	if f.bazel {
		return f.underBazel(ctx, e, args)
	}
	return f.test(ctx, e, args)
}

func (f *testFlags) test(ctx context.Context, e *env, args []string) error {
	if err := f.check(args); err != nil {
		return err
	}
	part, err := shardOf(f.shard, e.getenv)
	if err != nil {
		return err
	}
	l, err := loadFleet(ctx, e, args, false)
	if err != nil {
		return err
	}
	supply, err := chooseSupply(f.supply, e.getenv("BJ_SUPPLY"), l.fleet.Workspace.Supply)
	if err != nil {
		return err
	}
	tools, err := f.overrides(e, l)
	if err != nil {
		return err
	}
	programs, err := f.programs(e)
	if err != nil {
		return err
	}
	results, err := e.resultsDir(f.results, workspaceName(cmp.Or(l.fleet.Workspace.Name, l.workspace.Root)))
	if err != nil {
		return err
	}
	duration := guess
	if named := f.results != "" || e.getenv("BJ_RESULTS") != ""; named && part.count > 1 {
		// What is recorded there is the same for all machines as long as no
		// shard adds to it: bj report merge does.
		duration = recorded(results)
		results = filepath.Join(results, fmt.Sprintf("shard-%d-of-%d", part.index, part.count))
	}
	recipes, err := f.choose(ctx, e, l, string(supply), tools, part, duration)
	if err != nil {
		return err
	}

	cache, done, err := e.cache()
	if err != nil {
		return err
	}
	defer done()
	name, source := setting("--sandbox", f.sandbox, "BJ_SANDBOX", e.getenv("BJ_SANDBOX"), l.fleet.Workspace.Sandbox, defaultSandbox)
	images := newStore(cache, l.workspace.Root, name)
	provider, err := newProvider(ctx, name, source, cache, images, e.say)
	if err != nil {
		return err
	}
	if _, err := images.Tidy(ctx, 0); err != nil {
		e.say(err.Error())
	}
	if err := prepare(ctx, provider, e.say); err != nil {
		return err
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e.stdout.onClose(func() { cancel(errNoReader) })
	o, err := f.outputs(ctx, e, l, results, name, tools)
	if err != nil {
		return err
	}
	out := run.Run(ctx, run.NewPlans(l.fleet, recipes, run.PlanOptions{Root: l.workspace.Root, Supply: supply, Tools: tools}), run.Options{
		Lookup:   gate.Lookup,
		Provider: provider,
		Stager:   targetStager{images, programs, f.bazel},
		Sink:     o.sink,
		Version:  version,
		Shard:    part.text(),
		Jobs:     f.jobs,
		Repeat:   f.repeat,
		Keep:     f.keepTime(),
		Kept:     func(ctx context.Context, in *run.Inside) { serveKept(ctx, l.workspace.Root, in) },
		Logs:     o.logs,
	})
	if err := o.close(); err != nil {
		// Verdicts were told, and count more than what could not be written.
		return &failure{code: cmp.Or(out.Exit(), exitError), err: err}
	}
	if cause := context.Cause(ctx); errors.Is(cause, errNoReader) {
		return cause
	}
	f.errored = errored(out)
	report := ""
	if part.count > 1 {
		report = f.report
	}
	if line := next(out, args, report, f.runbooks != ""); line != "" && !f.json && !f.bazel {
		e.say(line)
	}
	return exit(out.Exit())
}

// errNoReader is why a run ends whose results nobody reads.
var errNoReader = errors.New("writing results: the reader of stdout has gone away")

// check refuses flags and arguments that make no sense.
func (f *testFlags) check(args []string) error {
	switch {
	case len(args) == 0:
		return usage("everything is bj test //...", "bj test needs a pattern")
	case f.jobs < 0:
		return usage("", "--jobs is a number of recipes, not %d", f.jobs)
	case f.repeat < 1:
		return usage("", "--repeat is 1 or more, not %d", f.repeat)
	}
	return nil
}

func (f *testFlags) keepTime() time.Duration {
	if f.keep {
		return keepFor
	}
	return 0
}

// setting returns the value that counts and who asked for it: flag, variable,
// workspace, default.
func setting(flagName, flag, variableName, variable, workspace, standard string) (value, source string) {
	switch {
	case flag != "":
		return flag, flagName
	case variable != "":
		return variable, variableName
	case workspace != "":
		return workspace, lang.SettingsFile
	}
	return standard, "the default"
}

// chooseSupply returns where allowed capabilities come from.
func chooseSupply(flag, variable, workspace string) (run.Supply, error) {
	value, source := setting("--supply", flag, "BJ_SUPPLY", variable, workspace, string(run.Production))
	known := []string{string(run.Production), string(run.Recipes)}
	if !slices.Contains(known, value) {
		return "", usage(lang.DidYouMean(value, known, "there are: "+strings.Join(known, ", ")), "there is no supply %q, which %s asks for", value, source)
	}
	return run.Supply(value), nil
}

// overrides parses --tool, and refuses tools that no recipe brings.
func (f *testFlags) overrides(e *env, l *loaded) (map[string]string, error) {
	if len(f.tools) == 0 {
		return nil, nil
	}
	var names []string
	for _, r := range l.fleet.Recipes {
		for _, t := range r.Tools {
			names = append(names, t.Name)
		}
	}
	tools := map[string]string{}
	for _, text := range f.tools {
		name, path, ok := strings.Cut(text, "=")
		if !ok || name == "" || path == "" {
			return nil, usage("--tool etcd=./build/etcd", "--tool is NAME=PATH, not %q", text)
		}
		if !slices.Contains(names, name) {
			return nil, usage(lang.DidYouMean(name, names, "bj show LABEL lists a recipe's tools"), "no recipe brings a tool %q", name)
		}
		path = e.path(path)
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return nil, usage("", "--tool %s: %w", name, err)
		case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
			return nil, usage("", "--tool %s: %s is no program", name, path)
		}
		tools[name] = path
	}
	return tools, nil
}

// choose leaves out what did not change, and what belongs to other shards.
func (f *testFlags) choose(ctx context.Context, e *env, l *loaded, supply string, tools map[string]string, part shard, duration func(*fleet.Recipe) float64) ([]*fleet.Recipe, error) {
	recipes := f.filtered(e, l.recipes)
	if f.changedSince != "" {
		changed, err := changedSince(ctx, l.workspace.Root, f.changedSince)
		if err != nil {
			return nil, err
		}
		recipes = affected(l.fleet, recipes, changed, supply, tools)
		fmt.Fprintf(e.stderr, "bj: changes since %s can affect %d of %s\n", f.changedSince, len(recipes), plural(len(l.recipes), "recipe"))
	}
	if part.count > 1 {
		mine := part.pick(recipes, duration)
		fmt.Fprintf(e.stderr, "bj: shard %d of %d (%s): %d of %s\n", part.index, part.count, part.source, len(mine), plural(len(recipes), "recipe"))
		recipes = mine
	}
	return recipes, nil
}
