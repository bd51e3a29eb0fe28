package main

import (
	"strings"
	"testing"

	"bj/fleet"
	"bj/run"
	"bj/run/event"
)

// TestNext holds what bj test ends with: a word for each recipe is its verdict,
// or its error's code.
func TestNext(t *testing.T) {
	for _, c := range []struct {
		results, report string
		pages           bool
		want            string
	}{
		{"", "", false, ""},
		{"recovered recovered", "", false, "now read it as an operator will: bj runbook //... -//d/..."},
		{"recovered", "", true, "now see what must be back before what: bj graph //... -//d/..."},
		{"recovered", "out", true, "when all shards are there, join them: bj report merge out"},
		{"recovered lost lease", "out", false, "mend what is said above, then run: bj test //b"},
		{"lost recovered lost", "", false, "mend what is said above, then run: bj test //a //c"},
		{"lost lost lost lost", "", false, "mend what is said above, then run: bj test //... -//d/..."},
		{"vacuous recovered", "", false, "mend what is said above, then run: bj test //a"},
		{"vacuous limits", "", false, "bj doctor says what this machine lacks; then run: bj test //a //b"},
		{"hinted recovered", "", false, "mend what is said above, then run: bj test //a"}, // the hint says what
	} {
		var out run.Outcome
		for i, word := range strings.Fields(c.results) {
			v := event.Verdict{Verdict: event.Errored, Code: &word, Reason: "one\ntwo"}
			switch word {
			case "recovered":
				v = event.Verdict{Verdict: event.Recovered}
			case "hinted":
				code := "limits"
				v.Code, v.Hint = &code, "run it with --sandbox libvirt"
			case "lost":
				v = event.Verdict{Verdict: event.NotRecovered}
			}
			plan := &run.Plan{Recipe: &fleet.Recipe{Label: "//" + string(rune('a'+i))}}
			out.Results = append(out.Results, run.Result{Plan: plan, Verdict: v}, run.Result{Plan: plan, Verdict: v}) // --repeat 2
		}
		if got := next(out, []string{"//...", "-//d/..."}, c.report, c.pages); got != c.want {
			t.Errorf("after %q: %q, want %q", c.results, got, c.want)
		}
		if got := strings.Join(errored(out), "; "); strings.HasPrefix(c.results, "vacuous ") && !strings.HasPrefix(got, "//a: error (vacuous): one two; ") {
			t.Errorf("of %q: %q", c.results, got)
		}
		out.Interrupted = true
		if got := next(out, nil, "", false); got != "" {
			t.Errorf("after Ctrl-C: %q", got)
		}
	}
}
