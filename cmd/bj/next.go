package main

import (
	"slices"
	"strings"

	"bj/run"
	"bj/run/event"
	"bj/sandbox"
)

// machineFaults are the codes of errors of which bj doctor can say more, where
// no hint says what to do.
var machineFaults = []sandbox.Code{sandbox.CodeLease, sandbox.CodeLimits, sandbox.CodeLeak}

// next is what a person does after bj test of these patterns, in one line; empty
// if there is nothing to say. Of a part of the recipes report is the folder of
// its report, and pages says that runbooks were written.
func next(out run.Outcome, patterns []string, report string, pages bool) string {
	var failed, stuck []string
	machine := false
	for _, r := range out.Results {
		switch r.Verdict.Verdict {
		case event.NotRecovered:
			failed = append(failed, r.Plan.Recipe.Label)
		case event.Errored:
			stuck = append(stuck, r.Plan.Recipe.Label)
			machine = machine || r.Verdict.Hint == "" && r.Verdict.Code != nil && slices.Contains(machineFaults, sandbox.Code(*r.Verdict.Code))
		}
	}
	again := func(labels []string) string {
		slices.Sort(labels)
		if labels = slices.Compact(labels); len(labels) > 3 {
			labels = patterns
		}
		return "bj test " + strings.Join(labels, " ")
	}
	all := strings.Join(patterns, " ")
	switch {
	case out.Interrupted || len(out.Results) == 0:
		return ""
	case len(failed) > 0:
		return "mend what is said above, then run: " + again(failed)
	case machine:
		return "bj doctor says what this machine lacks; then run: " + again(stuck)
	case len(stuck) > 0:
		return "mend what is said above, then run: " + again(stuck)
	case report != "":
		return "when all shards are there, join them: bj report merge " + report
	case pages:
		return "now see what must be back before what: bj graph " + all
	}
	return "now read it as an operator will: bj runbook " + all
}

// errored says of each recipe with an error what it was, a line each.
func errored(out run.Outcome) []string {
	var lines []string
	for _, r := range out.Results {
		if r.Verdict.Verdict != event.Errored {
			continue
		}
		head := r.Plan.Recipe.Label + ": " + event.Errored
		if r.Verdict.Code != nil {
			head += " (" + *r.Verdict.Code + ")"
		}
		lines = append(lines, head+": "+strings.ReplaceAll(r.Verdict.Reason, "\n", " "))
	}
	return lines
}
