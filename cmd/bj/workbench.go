package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"bj/fleet"
	"bj/run"
	"bj/sandbox"
)

// workbench is what a command needs to run one recipe.
type workbench struct {
	*loaded
	recipe   *fleet.Recipe
	sandbox  string // the provider's name
	provider sandbox.Provider
	stager   sandbox.Stager
	supply   run.Supply
	results  string // folder of recorded runs
	done     func()
}

// workbench prepares for the one recipe that args name; its done must be
// called. Command is the name of who asks.
func (e *env) workbench(ctx context.Context, command string, args []string, sandboxFlag, supplyFlag, resultsFlag string) (*workbench, error) {
	if len(args) != 1 {
		return nil, usage("bj list lists labels", "bj %s takes one label, and got %d", command, len(args))
	}
	l, err := loadFleet(ctx, e, args, true)
	if err != nil {
		return nil, err
	}
	if len(l.recipes) != 1 {
		var labels []string
		for _, r := range l.recipes {
			labels = append(labels, r.Label)
		}
		return nil, usage("name one of them: "+strings.Join(labels, " "), "%s names %s", args[0], plural(len(l.recipes), "recipe"))
	}
	w := &workbench{loaded: l, recipe: l.recipes[0]}
	if w.supply, err = chooseSupply(supplyFlag, e.getenv("BJ_SUPPLY"), l.fleet.Workspace.Supply); err != nil {
		return nil, err
	}
	if w.results, err = e.resultsDir(resultsFlag, workspaceName(cmp.Or(l.fleet.Workspace.Name, l.workspace.Root))); err != nil {
		return nil, err
	}
	cache, done, err := e.cache()
	if err != nil {
		return nil, err
	}
	w.done = done
	say := func(s string) { fmt.Fprintln(e.stderr, "bj: "+s) }
	name, source := setting("--sandbox", sandboxFlag, "BJ_SANDBOX", e.getenv("BJ_SANDBOX"), l.fleet.Workspace.Sandbox, defaultSandbox)
	images := newStore(cache, l.workspace.Root, name)
	if w.provider, err = newProvider(ctx, name, source, cache, images, say); err != nil {
		done()
		return nil, err
	}
	w.sandbox = name
	w.stager = images
	if err := prepare(ctx, w.provider, say); err != nil {
		done()
		return nil, err
	}
	return w, nil
}

// plans plans r, which may differ from the loaded recipe.
func (w *workbench) plans(r *fleet.Recipe) []*run.Plan {
	return run.NewPlans(w.fleet, []*fleet.Recipe{r}, run.PlanOptions{Root: w.workspace.Root, Supply: w.supply})
}
