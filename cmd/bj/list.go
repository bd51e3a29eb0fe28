package main

import (
	"context"
	"fmt"
)

func listCommand() *command {
	return &command{
		name:  "list",
		args:  "[PATTERN...]",
		short: "prints the labels of the recipes that patterns name",
		long:  patternHelp + "\nwithout a pattern: everything below the current folder.",
		example: `  bj list //recipes/... -//recipes/etcd:all
  bj list | wc -l`,
		run: runList,
	}
}

// patternHelp is about patterns, for every command that takes some.
const patternHelp = `patterns: //recipes/... is everything below recipes, //recipes/etcd:all all of a
package, //recipes/etcd the recipe etcd of it if there is one, else all,
//recipes/etcd:cold_start one recipe; without // they begin at the current
folder; with - before it a pattern subtracts.`

func runList(ctx context.Context, e *env, args []string) error {
	if len(args) == 0 {
		args = []string{"..."}
	}
	l, err := loadFleet(ctx, e, args, true)
	if err != nil {
		return err
	}
	for _, r := range l.recipes {
		if _, err := fmt.Fprintln(e.stdout, r.Label); err != nil {
			return fmt.Errorf("writing labels: %w", err)
		}
	}
	return nil
}
