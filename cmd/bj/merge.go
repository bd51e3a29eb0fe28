package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"bj/run"
	"bj/run/event"
	"bj/run/junit"
)

func reportCommand() *command {
	var junitFile, results string
	return &command{
		name:  "report",
		args:  "merge FOLDER...",
		short: "joins the reports of shards, as if one run had written them",
		long: `each folder is what bj test --report wrote, or holds such folders. every recipe
counts once: the worse verdict, where two reports have one. shards that are
missing, folders without a report, and recipes without a verdict because their
run was cut off, are errors.
the exit code is what bj test would have had.`,
		example: `  bj test //... --shard 2/4 --report out/2
  bj report merge out --junit junit.xml`,
		flags: func(fs *pflag.FlagSet) {
			fs.StringVar(&junitFile, "junit", "", "write a JUnit report to `file`")
			fs.StringVar(&results, "results", "", "record the runs in `folder`, by which later shards are balanced")
		},
		run: func(ctx context.Context, e *env, args []string) error {
			return runMerge(ctx, e, args, junitFile, results)
		},
	}
}

func runMerge(ctx context.Context, e *env, args []string, junitFile, results string) error {
	if len(args) == 0 || args[0] != "merge" {
		return usage("bj report merge out/*", "bj report has one use: merge")
	}
	if len(args) == 1 {
		return usage("bj report merge out/*", "bj report merge needs the folders that bj test --report wrote")
	}
	folders, empty, err := reportFolders(e, args[1:])
	if err != nil {
		return err
	}
	m := merger{runs: map[string][]*mergedRun{}}
	for _, dir := range empty {
		m.said = append(m.said, fmt.Sprintf("%s holds no report: there is no events.jsonl", dir))
		m.unknown = append(m.unknown, dir+" holds no report")
	}
	for _, dir := range folders {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := m.read(dir); err != nil {
			return fmt.Errorf("reading the report %s: %w", dir, err)
		}
	}
	if err := m.checkShards(); err != nil {
		return err
	}
	for _, words := range m.said {
		e.say(words)
	}
	report := &junit.Report{}
	for _, label := range slices.Sorted(maps.Keys(m.runs)) {
		for _, r := range m.runs[label] {
			for _, x := range r.events {
				report.Event(x)
			}
			m.print(e.stdout, label, r)
		}
	}
	fmt.Fprintf(e.stdout, "%d recovered, %d not recovered, %s\n", m.totals.Recovered, m.totals.NotRecovered, plural(m.totals.Errors, "error"))
	if junitFile != "" {
		var b bytes.Buffer
		if err := report.Write(&b); err != nil {
			return err
		}
		if err := event.WriteFile(e.path(junitFile), b.Bytes()); err != nil {
			return fmt.Errorf("writing the JUnit report: %w", err)
		}
	}
	if results != "" {
		if err := keepRecords(folders, e.path(results)); err != nil {
			return err
		}
	}
	return exit(run.ExitCode(m.totals, m.interrupted))
}

// reportFolders returns the folders of reports that args name, each once, and
// those folders among args that hold none: whoever was to write there did not.
func reportFolders(e *env, args []string) (folders, empty []string, err error) {
	for _, arg := range args {
		dir, err := filepath.Abs(e.path(arg))
		if err != nil {
			return nil, nil, err
		}
		found := []string{dir}
		if _, err := os.Stat(filepath.Join(dir, "events.jsonl")); errors.Is(err, fs.ErrNotExist) {
			below, err := filepath.Glob(filepath.Join(escapeGlob(dir), "*", "events.jsonl"))
			if err != nil {
				return nil, nil, err
			}
			found = nil
			for _, file := range below {
				found = append(found, filepath.Dir(file))
			}
		}
		if info, err := os.Stat(dir); len(found) == 0 && err == nil && info.IsDir() {
			empty = append(empty, arg)
		} else if len(found) == 0 {
			return nil, nil, usage("name the folders that bj test --report wrote", "%s holds no report: there is no events.jsonl", arg)
		}
		folders = append(folders, found...)
	}
	if len(folders) == 0 {
		return nil, nil, usage("name the folders that bj test --report wrote", "%s holds no report: there is no events.jsonl", strings.Join(empty, ", "))
	}
	slices.Sort(folders)
	return slices.Compact(folders), empty, nil
}

// escapeGlob makes a pattern that matches dir alone.
func escapeGlob(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

// mergedRun is one run of one recipe.
type mergedRun struct {
	events  []event.Event
	verdict *event.Verdict
	from    string // the folder
}

// merger joins reports.
type merger struct {
	runs        map[string][]*mergedRun // by label; several where --repeat was
	shards      map[int]string          // index → folder
	count       int                     // of shards
	said        []string
	unknown     []string // reports that do not say of whom they are: "out/3 was cut off"
	totals      event.Totals
	interrupted bool
}

// read takes one report.
func (m *merger) read(dir string) error {
	f, err := os.Open(filepath.Join(dir, "events.jsonl"))
	if err != nil {
		return err
	}
	defer f.Close()
	d := event.NewDecoder(f)
	mine := map[string][]*mergedRun{}
	var planned []string
	for {
		x, err := d.Next()
		if err == io.EOF {
			break
		}
		if errors.Is(err, event.ErrCut) {
			m.said = append(m.said, fmt.Sprintf("the report %s was cut off", dir))
			if len(mine) == 0 && len(planned) == 0 { // of whom is not known
				m.unknown = append(m.unknown, dir+" was cut off")
			}
			break
		}
		if err != nil {
			return err
		}
		if x.Event == event.Start {
			planned = x.Recipes
			if err := m.shard(x.Shard, dir); err != nil {
				return err
			}
		}
		if x.Recipe == "" {
			continue
		}
		runs := mine[x.Recipe]
		if len(runs) == 0 || runs[len(runs)-1].verdict != nil && x.Event != event.Released && x.Event != event.Note && x.Event != event.Build {
			runs = append(runs, &mergedRun{from: dir})
			mine[x.Recipe] = runs
		}
		r := runs[len(runs)-1]
		r.events = append(r.events, x)
		if x.Event == event.VerdictGiven && x.Supplier == "" {
			r.verdict = x.Verdict
		}
	}
	for _, label := range planned {
		if mine[label] == nil {
			mine[label] = []*mergedRun{{from: dir}}
		}
	}
	for label, runs := range mine {
		for i, r := range runs {
			if r.verdict == nil {
				r.cutOff(label)
			}
			switch there := m.runs[label]; {
			case i >= len(there):
				m.runs[label] = append(there, r)
			default:
				m.said = append(m.said, fmt.Sprintf("%s is in %s and in %s: the worse verdict counts", label, there[i].from, dir))
				if badness(r.verdict) > badness(there[i].verdict) {
					there[i] = r
				}
			}
		}
	}
	return nil
}

// cutOff gives a run without a verdict one: an error.
func (r *mergedRun) cutOff(label string) {
	x := event.Event{Event: event.VerdictGiven, Recipe: label, Verdict: &event.Verdict{Verdict: event.Errored, Reason: "its run was cut off before it had a verdict"}}
	if n := len(r.events); n > 0 {
		x.Time = r.events[n-1].Time
	} else {
		x.Verdict.Reason = "its run was cut off before it began"
	}
	r.events, r.verdict = append(r.events, x), x.Verdict
}

// lost counts what nobody reports as an error of its own.
func (m *merger) lost(name, reason string) {
	v := &event.Verdict{Verdict: event.Errored, Reason: reason}
	m.runs[name] = []*mergedRun{{verdict: v, events: []event.Event{{Event: event.VerdictGiven, Recipe: name, Verdict: v}}}}
}

// badness orders verdicts: what proves least last.
func badness(v *event.Verdict) int {
	return slices.Index([]string{event.Recovered, event.Errored, event.NotRecovered}, v.Verdict)
}

// shard notes which shard a report is of.
func (m *merger) shard(text, dir string) error {
	if text == "" {
		return nil
	}
	s, err := parseShard(text, "the report", func(string) string { return "" })
	if err != nil {
		return err
	}
	if m.shards == nil {
		m.shards = map[int]string{}
	}
	if m.count != 0 && m.count != s.count {
		return usage("merge reports of one run", "it is of %d shards, %s of %d", s.count, cmp.Or(m.anyShard(), "another"), m.count)
	}
	m.count = s.count
	m.shards[s.index] = dir
	return nil
}

func (m *merger) anyShard() string {
	for _, i := range slices.Sorted(maps.Keys(m.shards)) {
		return m.shards[i]
	}
	return ""
}

// checkShards makes an error of every shard that is missing, and counts.
func (m *merger) checkShards() error {
	missing := 0
	for i := 1; i <= m.count; i++ {
		if m.shards[i] == "" {
			missing++
			m.said = append(m.said, fmt.Sprintf("shard %d of %d is missing", i, m.count))
			m.lost(fmt.Sprintf("//bj:shard %d of %d", i, m.count), "its report is missing: what its recipes did is not known")
		}
	}
	// Those of the missing shards are told already.
	for _, words := range m.unknown[min(missing, len(m.unknown)):] {
		m.lost("//bj:report "+words, "what its recipes did is not known")
	}
	for _, runs := range m.runs {
		for _, r := range runs {
			switch r.verdict.Verdict {
			case event.Recovered:
				m.totals.Recovered++
			case event.NotRecovered:
				m.totals.NotRecovered++
			default:
				m.totals.Errors++
			}
			if c := r.verdict.Code; c != nil && *c == "interrupted" {
				m.interrupted = true
			}
		}
	}
	return nil
}

// print says the verdict of one run.
func (m *merger) print(w io.Writer, label string, r *mergedRun) {
	verdict := r.verdict.Verdict
	if c := r.verdict.Code; c != nil {
		verdict += " (" + *c + ")"
	}
	took := ""
	if n := len(r.events); n > 1 {
		took = fmt.Sprintf("  %.1fs", r.events[n-1].Time.Sub(r.events[0].Time).Seconds())
	}
	fmt.Fprintf(w, "%s  %s%s\n", verdict, label, took)
	if r.verdict.Verdict != event.Recovered && r.verdict.Reason != "" {
		fmt.Fprintf(w, "  %s\n", indent(r.verdict.Reason, 2))
	}
}

// keepRecords copies the records of reports into a folder of results.
func keepRecords(folders []string, results string) error {
	for _, dir := range folders {
		files, err := filepath.Glob(filepath.Join(escapeGlob(dir), "*", "result.json"))
		if err != nil {
			return err
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("reading a result: %w", err)
			}
			x, err := event.ParseRecord(data)
			if err != nil {
				return fmt.Errorf("reading the result %s: %w", file, err)
			}
			there, err := event.Records(results, x.Recipe)
			if err != nil {
				return err
			}
			if slices.ContainsFunc(there, func(y event.Record) bool { return y.Start.Equal(x.Start) && y.End.Equal(x.End) && y.Digest == x.Digest }) {
				continue // it was kept before
			}
			if err := x.Write(results); err != nil {
				return fmt.Errorf("recording the run of %s: %w", x.Recipe, err)
			}
		}
	}
	return nil
}
