package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"bj/lang"
	"bj/run"
	"bj/sandbox"
	"bj/sandbox/pool"
)

// poolFlags are the flags of bj pool.
type poolFlags struct{ sandbox string }

func poolCommand() *command {
	var f poolFlags
	return &command{
		name:  "pool",
		args:  "status|fill|drain [PATTERN…]",
		short: "shows, makes and removes the templates that virtual machines start from",
		long: `a virtual machine that has booted is saved as a template, before it knows who it
is; machines that are alike start from it, each as a new one, in a part of the
time. bj test makes the templates that it needs. bj pool fill makes those of
recipes ahead, bj pool drain removes what is not in use, and bj pool status
lists them. templates of another kernel, image, agent or bj retire by themselves.
machines of namespaces start in milliseconds, and have no templates.`,
		example: `  bj pool fill --sandbox libvirt //recipes/...
  bj pool status --sandbox libvirt`,
		flags: func(fs *pflag.FlagSet) {
			fs.StringVar(&f.sandbox, "sandbox", "", "of the machines of `provider`: "+strings.Join(sandboxes(), " or "))
		},
		run: f.run,
	}
}

func (f *poolFlags) run(ctx context.Context, e *env, args []string) error {
	verbs := []string{"status", "fill", "drain"}
	if len(args) == 0 {
		return usage("bj pool status lists templates", "bj pool needs one of: %s", strings.Join(verbs, ", "))
	}
	verb, patterns := args[0], args[1:]
	switch {
	case !slices.Contains(verbs, verb):
		return usage(lang.DidYouMean(verb, verbs, "there are: "+strings.Join(verbs, ", ")), "there is no bj pool %s", verb)
	case verb == "fill" && len(patterns) == 0:
		return usage("everything is bj pool fill //...", "bj pool fill needs a pattern")
	case verb != "fill" && len(patterns) > 0:
		return usage("", "bj pool %s takes no pattern", verb)
	}
	var l *loaded
	root, ofWorkspace := "", ""
	if verb == "fill" {
		var err error
		if l, err = loadFleet(ctx, e, patterns, true); err != nil {
			return err
		}
		root, ofWorkspace = l.workspace.Root, l.fleet.Workspace.Sandbox
	}
	cache, done, err := e.cache()
	if err != nil {
		return err
	}
	defer done()
	say := func(s string) { fmt.Fprintln(e.stderr, "bj: "+s) }
	name, source := setting("--sandbox", f.sandbox, "BJ_SANDBOX", e.getenv("BJ_SANDBOX"), ofWorkspace, virtualSandbox)
	images := newStore(cache, root, name)
	provider, err := newProvider(ctx, name, source, cache, images, say)
	if err != nil {
		return err
	}
	p, ok := provider.(*pool.Pool)
	if !ok || !p.Warms() {
		fmt.Fprintf(e.stdout, "machines of the sandbox %s start in milliseconds: there are no templates\n", name)
		return nil
	}
	switch verb {
	case "drain":
		removed, err := p.Drain()
		for _, s := range removed {
			fmt.Fprintln(e.stdout, "removed "+templateLine(s))
		}
		if err != nil {
			return err
		}
		return listTemplates(e, p, "in use, and not removed: ")
	case "fill":
		if err := prepare(ctx, p, say); err != nil {
			return err
		}
		for _, plan := range run.NewPlans(l.fleet, l.recipes, run.PlanOptions{Root: root}) {
			if err := fill(ctx, p, plan, images, say); err != nil {
				return err
			}
		}
	}
	return listTemplates(e, p, "")
}

// fill makes the templates of a plan's machines.
func fill(ctx context.Context, p *pool.Pool, plan *run.Plan, images sandbox.Stager, say func(string)) error {
	if plan.Refusal != nil {
		say(plan.Label() + " cannot be run: " + plan.Refusal.Error())
		return nil
	}
	for _, m := range plan.Machines {
		tools, err := images.Stage(ctx, slices.Clone(plan.Tools), m.Image, func(s string) { say(plan.Label() + ": " + s) })
		if err != nil {
			return fmt.Errorf("%s: %w", plan.Label(), err)
		}
		m.Files = slices.Concat(tools, m.Files)
		if _, err := p.Fill(ctx, m); err != nil {
			return fmt.Errorf("%s: making the template of %s: %w", plan.Label(), m.Name, err)
		}
	}
	return nil
}

func listTemplates(e *env, p *pool.Pool, what string) error {
	all, err := p.Status()
	if err != nil {
		return err
	}
	var sum int64
	for _, s := range all {
		fmt.Fprintln(e.stdout, what+templateLine(s))
		sum += s.Bytes
	}
	_, err = fmt.Fprintf(e.stdout, "%s, %d MiB\n", plural(len(all), "template"), sum>>20)
	return err
}

func templateLine(s pool.Status) string {
	busy := ""
	if s.Busy {
		busy = ", in use"
	}
	return fmt.Sprintf("%.12s  %d MiB, made %s, used %s%s: %s", s.Key, s.Bytes>>20, s.Made.Local().Format(time.DateTime), s.Used.Local().Format(time.DateTime), busy, s.About)
}
