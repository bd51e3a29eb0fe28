package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"bj/fleet"
)

// historySchema names the format of bj history --json.
const historySchema = "bj.history/1"

func historyCommand() *command {
	var asJSON bool
	var results string
	return &command{
		name:  "history",
		args:  "LABEL",
		short: "prints the recorded runs of a recipe, the newest last",
		long:  `a run of which the recipe has changed since says so: it proves nothing of the recipe as it is.`,
		example: `  bj history //recipes/etcd:cold_start
  bj history :cold_start --json | jq .runs[-1].reason`,
		flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&asJSON, "json", false, "print JSON, as "+historySchema)
			fs.StringVar(&results, "results", "", "recorded runs in `folder`; in the user's folder for state if empty")
		},
		run: func(ctx context.Context, e *env, args []string) error {
			return runHistory(ctx, e, args, results, asJSON)
		},
	}
}

// pastRun is one recorded run as bj history prints it.
type pastRun struct {
	Verdict  string    `json:"verdict"`
	Start    time.Time `json:"start"`
	Seconds  float64   `json:"seconds"`
	Changed  bool      `json:"changed"` // the recipe is another one now
	Digest   string    `json:"digest"`
	Version  string    `json:"version"`
	Revision string    `json:"revision"`
	Code     *string   `json:"code"`
	Reason   string    `json:"reason"`
}

func runHistory(ctx context.Context, e *env, args []string, results string, asJSON bool) error {
	if len(args) != 1 {
		return usage("bj list lists labels", "bj history takes one label, and got %d", len(args))
	}
	l, err := loadFleet(ctx, e, args, true)
	if err != nil {
		return err
	}
	if len(l.recipes) != 1 {
		return usage("bj list "+args[0], "%s names %s", args[0], plural(len(l.recipes), "recipe"))
	}
	r := l.recipes[0]
	records, err := recordsOf(e, l, results)
	if err != nil {
		return err
	}
	runs := []pastRun{}
	if records != nil {
		digest := l.digest(r)
		for _, x := range records(r.Label) {
			runs = append(runs, pastRun{Verdict: x.Verdict.Verdict, Start: x.Start.UTC(), Seconds: x.End.Sub(x.Start).Seconds(),
				Changed: x.Digest != digest, Digest: x.Digest, Version: x.Version, Revision: x.Revision, Code: x.Code, Reason: x.Reason})
		}
	}
	if asJSON {
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(struct {
			Schema string    `json:"schema"`
			Recipe string    `json:"recipe"`
			Runs   []pastRun `json:"runs"`
		}{historySchema, r.Label, runs})
	}
	if len(runs) == 0 {
		_, err := fmt.Fprintf(e.stdout, "%s: never run\n", r.Label)
		return err
	}
	return printHistory(e.stdout, runs)
}

// printHistory prints a table of runs.
func printHistory(out io.Writer, runs []pastRun) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "when\tverdict\ttook\tbj\tcommit\trecipe\treason")
	for _, x := range runs {
		state := "as now"
		if x.Changed {
			state = "changed since"
		}
		reason, _, _ := strings.Cut(x.Reason, "\n")
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", x.Start.Format("2006-01-02 15:04:05Z"), oneLine(x.Verdict),
			fleet.FormatDuration(time.Duration(x.Seconds*float64(time.Second)).Round(100*time.Millisecond)), oneLine(x.Version), cmp.Or(oneLine(shortRevision(x.Revision)), "-"), state, oneLine(reason))
	}
	return w.Flush()
}

// shortRevision is the beginning of a commit, and its + if it has one.
func shortRevision(rev string) string {
	if len(rev) <= 12 {
		return rev
	}
	return rev[:12] + rev[len(strings.TrimSuffix(rev, "+")):]
}
